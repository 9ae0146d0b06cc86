"""SIGKILL to a random process of a command, at a random moment, again and again.

Whatever dies (a launcher, a rank, a run of a grid, the one process there is), the same command
ends with the curves and weights of runs that nothing happened to, bit by bit.
"""

import random
import time
from pathlib import Path

import pytest

from tests.launch.command import Bench, Process, alive, kill, wait_until

WAYS = {"one process": (), "ranks": ("--procs", "2"), "side by side": ("--jobs", "2")}
KILLS = 7  # for each way
SHORTEST, LONGEST = 3.0, 16.0  # seconds between the start, or a kill, and the next kill


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", WAYS)
def test_random_kills_change_no_bit(way: str, tmp_path: Path, empty_database: Path) -> None:
    bench = Bench(tmp_path / "bench", empty_database)
    options = (*WAYS[way], "--set", "training.iterations=40")
    bench.run("whole", *options)
    dice, killed, rounds = random.Random(way), list[str](), 0
    while len(killed) < KILLS:
        name = f"killed-{rounds}"
        process, known = bench.start(name, *options), set[int]()
        while process.code() is None and len(killed) < KILLS:
            known |= {process.pid, *process.descendants()}
            wait_or_end(process, dice.uniform(SHORTEST, LONGEST))
            victims = sorted(pid for pid in {process.pid, *process.descendants()} if alive(pid))
            if process.code() is None and victims:
                known |= set(victims)
                victim = dice.choice(victims)
                killed.append(f"{name}: {described(process, victim)}")
                kill(victim)
                wait_or_end(process, 1.0)
        if process.code() is None:
            process.wait()
        wait_until(lambda known=known: not any(map(alive, known)), "the end of orphans")
        if process.code() == 0:
            bench.assert_same(name, "whole")
            rounds += 1
    print("\n".join(killed))
    bench.run(name, *options)
    bench.assert_same(name, "whole")


def wait_or_end(process: Process, seconds: float) -> None:
    """Sleep, unless the command ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.code() is None:
        time.sleep(0.05)


def described(process: Process, pid: int) -> str:
    """Which process it is, and what the command had said by then."""
    ranks = {number: rank for rank, number in process.ranks().items()}
    who = "the command" if pid == process.pid else f"rank {ranks[pid]}" if pid in ranks else "a run"
    return f"{who} after {(process.said().splitlines() or ['nothing'])[-1]!r}"
