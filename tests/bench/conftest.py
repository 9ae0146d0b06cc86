"""What the tests of all benches share: the command, a machine for reports that nothing was measured
for, and whoever counts the turns."""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from lovasz_repro import cli
from lovasz_repro.bench.harness import Advance, Machine

CPU = torch.device("cpu")
TOY = Machine("Toy", "CPU Toy (1 cores)", 1, "2.9", "abc", 0.0)
Command = Callable[[str], tuple[int, str, str]]


class Turns(Advance):
    """How many turns were expected, and the names of those that were taken."""

    def __init__(self) -> None:
        self.expected = 0
        self.taken: list[str] = []

    def expect(self, turns: int) -> None:
        self.expected += turns

    def __call__(self, name: str) -> None:
        self.taken.append(name)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """One thread: several wait for each other in small tensors on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `lovasz-repro bench ...`; returns exit code, stdout and stderr."""

    def call(arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lovasz-repro", "bench", *arguments.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call
