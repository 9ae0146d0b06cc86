"""A batch in parts: loss, gradient and what is dropped are those of the batch, on any ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

from lovasz_repro.config.schema import LossConfig, TrainingConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.losses import lovasz_softmax
from lovasz_repro.models.deeplab import EvidenceNet, small_deeplab
from lovasz_repro.models.enet import SpatialDropout
from lovasz_repro.run.build import spread_model
from lovasz_repro.training.distributed import ALONE, Team
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective
from tests.ranks import RankPool

CPU = torch.device("cpu")
CLASSES, VOID, IMAGES = 21, 255, 10
EXACT = {"rtol": 1e-10, "atol": 1e-12}
Found = tuple[float, dict[str, torch.Tensor], list[int]]


def dropping(classes: int) -> nn.Module:
    """Two dropouts and statistics as a trained network has them."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), SpatialDropout(0.3)
    more = nn.Conv2d(8, 8, 1), SpatialDropout(0.5, "pytorch"), nn.Conv2d(8, classes, 1)
    network = nn.Sequential(*layers, *more)
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "deeplab": small_deeplab, "evidence": EvidenceNet, "dropping": dropping,
}  # fmt: skip


def batch(network: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Some classes are in one image only, the last image is void throughout."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (IMAGES, 33, 33), generator=generator)
    labels[2, :16] = 20
    labels[7, :, :16] = 11
    labels[:, -9:] = VOID
    labels[-1] = VOID
    if network == "evidence":
        evidence = torch.randn(IMAGES, CLASSES, 5, 5, generator=generator, dtype=torch.float64)
        return evidence, labels[:, ::8, ::8].to(torch.uint8)
    images = torch.randint(0, 256, (IMAGES, 3, 33, 33), generator=generator)
    return images.to(torch.uint8), labels.to(torch.uint8)


def prepare(images: torch.Tensor, channels_last: bool, dtype: torch.dtype) -> torch.Tensor:
    return images.to(dtype) if images.is_floating_point() else images.to(dtype) - 110


def settings(parts: int, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "iterations": 3, "batch_size": IMAGES, "iter_size": parts, "lr": 1e-3, "optimizer": "sgd",
        "validate_every": 3, "checkpoint_every": 3, "batch_norm": "frozen", "precision": "float64",
    }  # fmt: skip
    return TrainingConfig.model_validate(values | changes)


def plain(name: str, loss: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the whole batch in plain PyTorch."""
    torch.manual_seed(1)
    model = NETWORKS[name](CLASSES).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images, labels = batch(name)
    torch.manual_seed(2)
    logits = model(prepare(images, False, torch.float64))
    labels = labels.long()
    if name == "deeplab":
        labels = labels[:, ::8, ::8]
    if loss == "cross_entropy":
        value = F.cross_entropy(logits, labels, ignore_index=VOID)
    else:
        value = lovasz_softmax(logits, labels, ignore_index=VOID)
    value.backward()
    return value.item(), gradients(model)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def in_parts(
    group: distributed.ProcessGroup | None, name: str, loss: str, parts: int, ranks: int = 1
) -> Found:
    """Loss, gradients and how many images the network saw at once, of one step."""
    team = Team(group.rank(), group.size(), group) if group else ALONE
    assert team.size == ranks
    torch.manual_seed(1)
    model = NETWORKS[name](CLASSES).double()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    config = settings(parts)
    spread_model(model, config, team)
    network = team.wrap(model)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0))
    objective = build_objective(LossConfig(terms={loss: 1.0}), VOID, group=team.group)  # type: ignore[dict-item]
    images, labels = (whole[team.share(IMAGES)] for whole in batch(name))
    torch.manual_seed(2)
    value = training_step(state, network, images, labels, objective, config, 1e-3, CPU, prepare)
    return value, gradients(model), seen


def on_rank(rank: int, group: distributed.ProcessGroup, *arguments: Any) -> Found:
    return in_parts(group, *arguments)


def check(found: Found, expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, msg=name, **EXACT)


@pytest.mark.parametrize("loss", ["cross_entropy", "lovasz_softmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_parts_have_the_loss_and_the_gradient_of_the_batch(name: str, loss: str) -> None:
    expected = plain(name, loss)
    for parts, most in ((1, 10), (2, 5), (3, 4), (5, 2), (10, 1)):
        found = in_parts(None, name, loss, parts)
        check(found, expected)
        assert max(found[2]) == most
        assert sum(found[2]) == IMAGES * (1 if parts == 1 else 2)


@pytest.mark.parametrize("loss", ["cross_entropy", "lovasz_softmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_ranks_and_parts_are_one_batch(rank_pool: RankPool, name: str, loss: str) -> None:
    expected = plain(name, loss)
    for ranks, parts in ((2, 2), (2, 3), (2, 5), (4, 3)):  # (4, 3): shares of 3, 3, 2 and 2 images
        for rank, found in enumerate(rank_pool.run(on_rank, ranks, name, loss, parts, ranks)):
            check(found, expected)
            share = len(range(IMAGES)[Team(rank, ranks).share(IMAGES)])
            assert len(found[2]) == 2 * min(parts, share)
            assert max(found[2]) == -(-share // parts)


def test_more_parts_than_the_images_of_a_rank(rank_pool: RankPool) -> None:
    """Ranks of 3 and 2 images, which make 3 and 2 parts of them."""
    expected = plain("dropping", "lovasz_softmax")
    for found in rank_pool.run(on_rank, 4, "dropping", "lovasz_softmax", 10, 4):
        check(found, expected)
        assert set(found[2]) == {1}


def test_a_mean_of_the_losses_of_parts_is_another_objective() -> None:
    """Otherwise the tests above would not notice it."""
    torch.manual_seed(1)
    model = EvidenceNet(CLASSES).double()
    images, labels = batch("evidence")
    halves = [
        lovasz_softmax(model(images[part]), labels[part].long(), ignore_index=VOID).item()
        for part in (slice(0, 5), slice(5, 10))
    ]
    assert abs(sum(halves) / 2 - plain("evidence", "lovasz_softmax")[0]) > 1e-4


def steps(state: TrainingState, parts: int, first: int, last: int, **changes: Any) -> list[float]:
    config = settings(parts, **changes)
    objective = build_objective(LossConfig(terms={"lovasz_softmax": 1.0}), VOID)
    images, labels = batch("dropping")
    found = []
    for k in range(first, last):
        order = torch.arange(IMAGES).roll(k)
        given = images[order], labels[order], objective, config, 0.1, CPU, prepare
        found.append(training_step(state, state.model, *given))
    return found


def new_state(dtype: torch.dtype = torch.float64) -> TrainingState:
    torch.manual_seed(1)
    model = dropping(CLASSES).to(dtype)
    return TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9))


def test_training_in_parts_goes_on_bitwise_and_leaves_the_random_state_of_whole_batches() -> None:
    ends = []
    for parts in (1, 2):
        whole = new_state()
        torch.manual_seed(3)
        curve = steps(whole, parts, 0, 4)
        ends.append((curve, torch.get_rng_state()))

        first = new_state()
        torch.manual_seed(3)
        begun = steps(first, parts, 0, 2)
        kept = first.to_checkpoint()
        torch.manual_seed(99)  # another process, another random state
        second = new_state()
        second.restore(kept)
        assert begun + steps(second, parts, 2, 4) == curve
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-10)
    assert torch.equal(ends[0][1], ends[1][1])


def test_one_part_is_bitwise_a_plain_step() -> None:
    for loss in ("cross_entropy", "lovasz_softmax"):
        for name in NETWORKS:
            expected, found = plain(name, loss), in_parts(None, name, loss, 1)
            assert found[0] == expected[0]
            assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


def test_bfloat16_in_parts_is_as_near_as_in_one() -> None:
    """An autocast of its own for each pass: weights that one without gradients cast are stale."""
    exact = steps(new_state(torch.float32), 1, 0, 1, precision="float32")
    for parts in (1, 3):
        state = new_state(torch.float32)
        torch.manual_seed(3)
        found = steps(state, parts, 0, 1, precision="bfloat16")
        assert found == pytest.approx(exact, rel=0.05)
        assert all(p.grad is not None and p.grad.norm() > 0 for p in state.model.parameters())


def test_a_batch_without_a_label_has_no_gradient() -> None:
    """Nor an error: the loss is 0 for one part and for several."""
    objective = build_objective(LossConfig(terms={"lovasz_softmax": 1.0}), VOID)
    images, labels = batch("dropping")
    for parts in (1, 2):
        state = new_state()
        config = settings(parts)
        value = training_step(
            state, state.model, images, labels.fill_(VOID), objective, config, 1.0, CPU, prepare
        )
        assert value == 0.0
        assert all((p.grad == 0).all() for p in state.model.parameters() if p.grad is not None)


def test_a_loss_that_is_not_finite_leaves_the_weights_in_parts_too() -> None:
    state = new_state()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    images, labels = batch("dropping")
    with pytest.raises(RunFailed, match="The loss is nan at iteration 1"):
        training_step(
            state,
            state.model,
            images,
            labels,
            lambda logits, labels: logits.sum() * float("nan"),
            settings(3),
            0.1,
            CPU,
            prepare,
        )
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(
        module.share is None
        for module in state.model.modules()
        if isinstance(module, SpatialDropout)
    )
