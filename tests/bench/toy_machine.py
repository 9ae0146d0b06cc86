"""A machine for reports that nothing was measured for."""

from lovasz_repro.bench.harness import Machine

TOY = Machine("Toy", "CPU Toy (1 cores)", 1, "2.9", "abc", None)
