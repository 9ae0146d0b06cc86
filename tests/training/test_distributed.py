"""A run on N ranks is the run on one: curves, weights, scores, and what happens to a team."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from lovasz_repro.config.schema import LossConfig, TrainingConfig
from lovasz_repro.data.sampling import Draw, ShareOfBatches, ShuffledBatches
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.predictor import Feeding, Predictor
from lovasz_repro.evaluation.scoring import SegmentationScoring, evaluate
from lovasz_repro.models.enet import ENet, SpatialDropout
from lovasz_repro.run.build import evaluation_batches, spread_model
from lovasz_repro.training.distributed import ALONE, Team
from lovasz_repro.training.loop import TrainingState, train
from lovasz_repro.training.objective import build_objective
from tests.ranks import RankError, RankPool

CPU = torch.device("cpu")
CLASSES, VOID = 5, 11
NAMES = tuple(f"class {index}" for index in range(CLASSES))
SHARES = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05])


def pictures(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels with void, some of whose classes are rare."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 7, (8, 8), generator=generator).repeat_interleave(4, 0)
        labels = labels.repeat_interleave(4, 1)[:24, :32]
        labels = torch.where(labels < CLASSES, labels, VOID).to(torch.uint8)
        noise = torch.randint(0, 60, (3, 24, 32), generator=generator)
        found.append(((noise + 15 * labels.long()).to(torch.uint8), labels))
    return found


def team_of(group: distributed.ProcessGroup | None) -> Team:
    return Team(group.rank(), group.size(), group) if group else ALONE


def small_network() -> nn.Module:
    """Statistics that mean something, as a pre-trained network has them."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), SpatialDropout(0.3)
    network = nn.Sequential(*layers, nn.Conv2d(8, CLASSES, 1))
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    return network


NETWORKS = {"enet": lambda: ENet(CLASSES), "small": small_network}


def run(
    group: distributed.ProcessGroup | None,
    network: str,
    batch_norm: str,
    precision: str,
    loss: dict[str, Any],
) -> tuple[list[float], dict[str, torch.Tensor], dict[str, float]]:
    """Loss curve, final weights and scores of a short training, put together as in ``run_cell``."""
    team = team_of(group)
    torch.manual_seed(1)
    config = TrainingConfig.model_validate(
        {
            "iterations": 4, "batch_size": 10, "lr": 1e-3, "validate_every": 4,
            "checkpoint_every": 4, "batch_norm": batch_norm, "precision": precision,
        }
    )  # fmt: skip
    model = NETWORKS[network]()
    if precision == "float64":
        model.double()
    state = TrainingState(model, torch.optim.Adam(model.parameters()))
    spread_model(model, config, team)
    images = pictures(13)
    draws = ShareOfBatches(ShuffledBatches(13, 10, 4, seed=3), team.share(10))
    batches = [
        tuple(torch.stack(part) for part in zip(*(images[d.image] for d in draw), strict=True))
        for draw in draws
    ]
    curve: list[float] = []
    scores: list[dict[str, float]] = []

    def validate() -> dict[str, float]:
        loader = evaluation_batches(images, (1, 1), team)  # type: ignore[arg-type]
        scoring = SegmentationScoring(NAMES, VOID)
        found = evaluate(Predictor(model, Feeding(), CPU), loader, scoring, group=team.group)
        scores.append(found.as_metrics("val"))
        return scores[-1]

    train(
        state,
        batches,  # type: ignore[arg-type]
        build_objective(LossConfig.model_validate(loss), VOID, SHARES, team.group),
        config,
        CPU,
        network=team.wrap(model),
        validate=validate,
        log=lambda iteration, values: curve.extend(v for k, v in values.items() if "loss" in k),
        save=lambda state: None,
        stop_asked=lambda: 0,
    )
    return curve, {k: v.clone() for k, v in model.state_dict().items()}, scores[-1]


def on_rank(rank: int, group: distributed.ProcessGroup, *arguments: Any) -> Any:
    return run(group, *arguments)


LOVASZ = {"terms": {"lovasz_softmax": 1.0}}
SUM = {"terms": {"cross_entropy": 1.0, "lovasz_softmax": 1.0}, "class_weights": "enet"}
CASES = [
    ("enet", "train", SUM), ("enet", "frozen", LOVASZ), ("small", "frozen", LOVASZ),
    ("small", "train", {"terms": {"cross_entropy": 1.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("network", "batch_norm", "loss"), CASES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_n_ranks_are_one_in_float64(
    rank_pool: RankPool, network: str, batch_norm: str, loss: dict[str, Any], ranks: int
) -> None:
    expected = run(None, network, batch_norm, "float64", loss)
    assert len(expected[0]) == 4
    for curve, weights, scores in rank_pool.run(
        on_rank, ranks, network, batch_norm, "float64", loss
    ):
        torch.testing.assert_close(curve, expected[0], rtol=1e-9, atol=0)
        for name, value in expected[1].items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert scores == pytest.approx(expected[2], rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 4])
def test_n_ranks_are_one_in_float32(rank_pool: RankPool, ranks: int) -> None:
    """Four steps of lr 1e-3: sums in another order move no weight by a hundredth of a step.

    With frozen statistics: a bias before batch normalisation has gradient 0, and Adam takes the
    rounding of 0 for a direction.
    """
    expected = run(None, "small", "frozen", "float32", LOVASZ)
    for curve, weights, _ in rank_pool.run(on_rank, ranks, "small", "frozen", "float32", LOVASZ):
        torch.testing.assert_close(curve, expected[0], rtol=2e-6, atol=0)
        for name, value in expected[1].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)


def test_statistics_of_each_rank_alone_are_another_objective(rank_pool: RankPool) -> None:
    """Otherwise the test above would not notice whether they are shared."""
    expected, _, _ = run(None, "small", "per-rank", "float64", LOVASZ)
    together, _, _ = run(None, "small", "train", "float64", LOVASZ)
    assert expected == together
    found = rank_pool.run(on_rank, 2, "small", "per-rank", "float64", LOVASZ)
    assert max(abs(a - b) for a, b in zip(found[0][0], expected, strict=True)) > 1e-4


def test_shares_are_whole_and_even() -> None:
    for size in range(1, 8):
        for items in range(30):
            shares = [range(items)[Team(rank, size).share(items)] for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(items))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(range(10)[Team(rank, 4).share(10)]) for rank in range(4)] == [3, 3, 2, 2]


def test_shares_of_batches_are_the_batches_whatever_their_order() -> None:
    class Odd:
        """An order rule of its own."""

        def __iter__(self) -> Any:
            return (
                [Draw(7 * k % 5, k), Draw(k % 3, k + 1), Draw(0, 9), Draw(4, 1)] for k in range(6)
            )

    for rule in (
        Odd(),
        ShuffledBatches(5, 4, 6, seed=2),
        ShuffledBatches(5, 4, 6, seed=2, start=3),
    ):
        parts = [list(ShareOfBatches(rule, Team(rank, 3).share(4))) for rank in range(3)]
        whole = [
            [draw for share in shares for draw in share] for shares in zip(*parts, strict=True)
        ]
        assert whole == list(rule)


def answers(rank: int, group: distributed.ProcessGroup, folder: str) -> Any:
    team = team_of(group)
    touched = team.on_leader(lambda: Path(folder, "once").open("x").write("x"))  # noqa: SIM115
    largest = team.largest(10 * rank)
    errors: list[str] = []

    def fails(error: Exception) -> None:
        raise error

    for error in (UserError("no data"), RunFailed("disk full")):
        with pytest.raises(type(error)) as caught:
            team.on_leader(lambda error=error: fails(error))
        errors.append(str(caught.value))
    with pytest.raises(UserError, match=r"rank 2 has data that differ"):
        team.check_same("x" if rank < 2 else "y", "data")
    team.check_same("x", "data")
    return touched, largest, errors


def test_what_the_leader_meets_every_rank_learns(rank_pool: RankPool, tmp_path: Path) -> None:
    for answer in rank_pool.run(answers, 3, str(tmp_path)):
        assert answer == (1, 20, ["no data", "disk full"])


def shares(rank: int, group: distributed.ProcessGroup) -> tuple[int, str]:
    team = team_of(group)

    def fail() -> None:
        if rank == 2:
            raise RunFailed("disk of rank 2 full")

    with pytest.raises(RunFailed) as caught:
        team.on_all(fail)
    return team.on_all(lambda: rank * 10), str(caught.value)


def test_what_one_rank_meets_all_learn(rank_pool: RankPool) -> None:
    assert rank_pool.run(shares, 3) == [(10 * rank, "disk of rank 2 full") for rank in range(3)]
    assert ALONE.on_all(lambda: 7) == 7


def buffers(rank: int, group: distributed.ProcessGroup) -> list[float]:
    model = nn.BatchNorm2d(2)
    model.running_mean.fill_(rank + 7)
    team_of(group).share_buffers(model)
    return model.running_mean.tolist()


def test_buffers_are_the_leaders(rank_pool: RankPool) -> None:
    assert rank_pool.run(buffers, 3) == [[7.0, 7.0]] * 3


def dies(rank: int, group: distributed.ProcessGroup) -> None:
    team = team_of(group)
    team.on_leader(lambda: 1 / 0)  # no answer to anybody


def test_an_unexpected_error_is_no_answer(rank_pool: RankPool) -> None:
    with pytest.raises(RankError, match="ZeroDivisionError"):
        rank_pool.run(dies, 2)
