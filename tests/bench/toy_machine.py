"""A machine for reports that nothing was measured for, and whoever counts the turns."""

from lovasz_repro.bench.harness import Advance, Machine

TOY = Machine("Toy", "CPU Toy (1 cores)", 1, "2.9", "abc", None)


class Turns(Advance):
    """How many turns were expected, and the names of those that were taken."""

    def __init__(self) -> None:
        self.expected = 0
        self.taken: list[str] = []

    def expect(self, turns: int) -> None:
        self.expected += turns

    def __call__(self, name: str) -> None:
        self.taken.append(name)
