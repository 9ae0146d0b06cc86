"""Work shared by processes: results in order, deaths told, requests to stop left to the first."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.processes import Map, mapped


@pytest.fixture(scope="module")
def two() -> Iterator[Map]:
    with mapped(2, "counted") as map_:
        yield map_


def test_results_come_in_order_and_several_processes_work(two: Map) -> None:
    with mapped(1, "counted") as map_:
        assert list(map_(abs, [-3, 2, -1])) == [3, 2, 1]
    assert list(two(abs, [-3, 2, -1])) == [3, 2, 1]
    assert os.getpid() not in set(two(_pid, range(4)))
    assert list(two(max, [1, 5], [4, 2])) == [4, 5]


def _pid(number: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def test_a_process_that_dies_is_told_where_its_results_are_taken() -> None:
    with mapped(2, "counted") as map_:
        with pytest.raises(RunFailed, match=r"a process that counted died \(killed, or out of"):
            list(map_(os._exit, [3]))
        with pytest.raises(RunFailed, match="died"):  # nor does a broken pool take more
            list(map_(abs, [1]))


def test_signals_that_every_process_of_a_job_gets_do_not_end_the_work(two: Map) -> None:
    for process in set(two(_pid, range(8))):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process, number)
    assert list(two(abs, [-3, 2])) == [3, 2]
