"""The harness of `tests/ranks.py`: results come back by rank, failures surface at once."""

import os
import signal
import time
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankError, RankPool


@dataclass
class Box:
    value: torch.Tensor


def total(rank, group, box):
    value = box.value * (rank + 1)
    dist.all_reduce(value, group=group)
    alone = torch.tensor(1)
    dist.all_reduce(alone)  # the default group
    assert alone == dist.get_world_size(group)
    return Box(value)


def differentiable(rank, group):
    weight = torch.full((2,), float(rank), requires_grad=True)
    return weight * 2


@torch.no_grad()
def draw(rank, group):
    return torch.rand(1).item(), torch.get_num_threads()


def process(rank, group):
    return os.getpid()


def raise_on(rank, group, raising):
    if rank == raising:
        raise ValueError(f"boom on rank {rank}")
    dist.barrier(group)


def die_on(rank, group, dying, how):
    if rank == dying:
        os.kill(os.getpid(), how) if how else os._exit(3)
    dist.barrier(group)


def fail_on_zero(rank, group):
    if rank == 0:
        pytest.fail("zero")


def warn(rank, group):
    warnings.warn("careful", stacklevel=1)


def sleep(rank, group):
    time.sleep(60)


def not_to_pickle(rank, group):
    return lambda: rank


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_results_come_back_by_rank(rank_pool, world_size):
    boxes = rank_pool.run(total, world_size, Box(torch.tensor([1, 10])))
    assert len(boxes) == world_size
    factor = sum(range(world_size + 1))
    for box in boxes:
        assert isinstance(box, Box)
        assert torch.equal(box.value, torch.tensor([factor, 10 * factor]))


def test_the_processes_stay(rank_pool):
    first = rank_pool.run(process, 4)
    assert rank_pool.run(process, 2) == first[:2]
    assert len({*first, os.getpid()}) == 5


def test_each_run_starts_the_same(rank_pool):
    first = rank_pool.run(draw, 2)
    assert rank_pool.run(draw, 2) == first == [first[0]] * 2
    assert first[0][1] == 1


def test_a_result_may_need_a_gradient(rank_pool):
    values = rank_pool.run(differentiable, 2)
    assert [value.tolist() for value in values] == [[0, 0], [2, 2]]


@pytest.mark.parametrize("raising", [0, 2])
def test_an_exception_surfaces_at_once_and_the_next_run_works(rank_pool, raising):
    rank_pool.run(process, 3)
    start = time.monotonic()
    with pytest.raises(RankError, match=rf"(?s)rank {raising} of 3 raised.*boom on rank {raising}"):
        rank_pool.run(raise_on, 3, raising)
    assert time.monotonic() - start < 20
    assert rank_pool.run(raise_on, 3, None) == [None] * 3


@pytest.mark.parametrize(
    ("how", "named"), [(signal.SIGKILL, "SIGKILL"), (None, "exit code 3")], ids=str
)
def test_a_rank_that_dies_is_the_one_named(rank_pool, how, named):
    rank_pool.run(process, 3)
    start = time.monotonic()
    with pytest.raises(RankError, match=f"rank 1 of 3 died: {named}"):
        rank_pool.run(die_on, 3, 1, how)
    assert time.monotonic() - start < 20
    assert len(rank_pool.run(process, 3)) == 3


def test_a_process_that_died_between_runs_is_replaced(rank_pool):
    before = rank_pool.run(process, 4)
    os.kill(before[3], signal.SIGKILL)
    time.sleep(0.2)
    assert not set(rank_pool.run(process, 4)) & set(before)


def test_a_rank_that_hangs_is_ended():
    with RankPool(2, limit=1) as pool, pytest.raises(RankError, match="not done after 1 s"):
        pool.run(sleep, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [(fail_on_zero, "rank 0.*zero"), (warn, "careful"), (not_to_pickle, "pickle")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_ways_to_fail(rank_pool, function, message):
    with pytest.raises(RankError, match=f"(?s){message}"):
        rank_pool.run(function, 2)


def test_what_cannot_run_is_refused(rank_pool):
    with pytest.raises(ValueError, match=r"world_size must be 1\.\.4, got 5"):
        rank_pool.run(process, 5)
    with pytest.raises(ValueError, match="no module-level function"):
        rank_pool.run(lambda rank, group: rank, 2)
