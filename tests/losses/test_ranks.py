"""One objective on any number of ranks: losses and gradients of uneven shares of one batch."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn

from lovasz_repro import losses
from lovasz_repro.losses import JaccardLoss
from lovasz_repro.losses.ranks import Ranks

IMAGES, CLASSES = 10, 5
Loss = Callable[[Tensor, Tensor, Tensor, distributed.ProcessGroup | None], Tensor]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights: a class that one image alone has, and void images."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(IMAGES, CLASSES, 23, 31, generator=generator)
    labels = torch.randint(0, CLASSES - 1, (IMAGES, 23, 31), generator=generator)
    labels[:, :2] = 255
    labels[7:] = 255  # the last of four ranks has no valid pixel, and of three
    labels[4, 3:6] = CLASSES - 1
    return logits, labels, torch.rand(labels.shape, generator=generator)


def softmax(**options) -> Loss:
    def loss(logits, labels, weight, group):
        return losses.lovasz_softmax(logits, labels, ignore_index=255, group=group, **options)

    return loss


def weighted(**options) -> Loss:
    def loss(logits, labels, weight, group):
        options_ = {"pixel_weight": weight, "ignore_index": 255, "group": group} | options
        return losses.lovasz_softmax(logits, labels, **options_)

    return loss


def binary(function, **options) -> Loss:
    def loss(logits, labels, weight, group):
        truth = torch.where(labels == 255, 255, (labels == 1).long())
        return function(logits[:, 0], truth, ignore_index=255, group=group, **options)

    return loss


def extension(method: str) -> Loss:
    """Rows are classes, and the ranks bring pixels of each."""

    def loss(logits, labels, weight, group):
        errors = logits.transpose(0, 1).flatten(1).abs()
        foreground = (labels.flatten() == torch.arange(CLASSES)[:, None]) & (errors > 0.1)
        options = {"valid": (labels != 255).flatten().expand_as(errors), "group": group}
        # So few that three ranks, each alone, would count different numbers of rows at once.
        with mock.patch.object(losses.extension, "NUMBERS_AT_ONCE", 2**14):
            values = losses.lovasz_extension(
                errors, foreground, JaccardLoss(), method=method, bins=500, **options
            )
        return (values * torch.arange(1, CLASSES + 1)).sum()

    return loss


def cross_entropy(logits, labels, weight, group) -> Tensor:
    weights = [1.0, 2.0, 0.5, 1.0, 3.0]
    return losses.cross_entropy(
        logits, labels, ignore_index=255, class_weights=weights, group=group
    )


def overlap(function, **options) -> Loss:
    def loss(logits, labels, weight, group) -> Tensor:
        return function(logits, labels, ignore_index=255, group=group, **options)

    return loss


def all_losses() -> dict[str, Loss]:
    found: dict[str, Loss] = {"cross_entropy": cross_entropy}
    for method, per_image in itertools.product(("sort", "histogram"), (False, True)):
        how = {"method": method, "per_image": per_image}
        for classes in ("present", "all", [4, 0]):
            found[f"softmax {method} {per_image} {classes}"] = softmax(classes=classes, **how)
        found[f"weighted {method} {per_image}"] = weighted(**how)
        found[f"hinge {method} {per_image}"] = binary(losses.lovasz_hinge, **how)
    for method in ("sort", "histogram"):
        found[f"extension {method}"] = extension(method)
    for function in (losses.binary_cross_entropy, losses.hinge, losses.soft_iou):
        for per_image in (False, True):
            found[f"{function.__name__} {per_image}"] = binary(function, per_image=per_image)
    for function in (losses.soft_dice, losses.soft_jaccard):
        for per_image, classes in itertools.product((False, True), ("present", "all", [4, 0])):
            options = {"per_image": per_image, "classes": classes}
            found[f"{function.__name__} {options}"] = overlap(function, **options)
    return found


def value_and_gradient(loss: Loss, numbers, group=None) -> tuple[float, Tensor]:
    logits, labels, weight = numbers
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels, weight, group)
    value.backward()
    with torch.no_grad():
        assert torch.equal(loss(logits, labels, weight, group), value.detach())
    return value.item(), leaf.grad


def share(rank: int, size: int) -> slice:
    """10 over 4 is 3 + 3 + 2 + 2."""
    sizes = [IMAGES // size + (i < IMAGES % size) for i in range(size)]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def work(rank: int, group: distributed.ProcessGroup) -> dict:
    mine = tuple(number[share(rank, group.size())] for number in batch())
    return {
        "losses": {
            name: value_and_gradient(loss, mine, group) for name, loss in all_losses().items()
        },
        "counts": counts_of(mine, group),
        "ddp": weights_after_a_step(mine, group),
        "message": message_of_a_bad_label(rank, mine, group),
    }


def counts_of(numbers, group=None) -> Tensor:
    """What the first pass counts, added up over ranks."""
    from lovasz_repro.losses.backends import backend_for
    from lovasz_repro.losses.histogram import Method, ProbabilityBins
    from lovasz_repro.losses.inputs import multiclass_pixels
    from lovasz_repro.losses.plain import Problem, rows_of

    ranks = Ranks(group)
    pixels = multiclass_pixels(numbers[0], numbers[1], 255, ranks)
    rest = (rows_of(pixels, "all", False, None), JaccardLoss(), ranks, Method("histogram"))
    problem = Problem(pixels.labels, pixels.valid, None, *rest, ProbabilityBins(512))
    return ranks.sum_(backend_for(pixels.logits, problem).count(pixels.logits, problem)[0])


def weights_after_a_step(numbers, group=None) -> Tensor:
    """A network under DistributedDataParallel, which averages gradients over ranks."""
    torch.manual_seed(0)
    model: nn.Module = nn.Conv2d(CLASSES, CLASSES, 3, padding=1)
    if group is not None:
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    logits, labels, _ = numbers
    options = {"ignore_index": 255, "group": group}
    scores = model(logits)
    loss = losses.cross_entropy(scores, labels, **options)
    loss = loss + losses.lovasz_softmax(scores, labels, method="histogram", **options)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def message_of_a_bad_label(rank: int, numbers, group) -> str:
    """All ranks refuse a label that one of them has; none waits for the others."""
    logits, labels, _ = numbers
    labels = labels.clone()
    if rank == 0:
        labels[0, 5, 5] = 77
    with pytest.raises(ValueError, match="out of range") as raised:
        losses.lovasz_softmax(logits, labels, ignore_index=255, group=group)
    with pytest.raises(ValueError, match="out of range"):
        losses.lovasz_hinge(logits[:, 0], labels.clamp(max=77), ignore_index=255, group=group)
    return str(raised.value)


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[float, Tensor]]:
    return {name: value_and_gradient(loss, batch()) for name, loss in all_losses().items()}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_objective_is_that_of_one_process(size: int, alone, rank_pool) -> None:
    ranks = rank_pool.run(work, size)
    for name, (value, gradient) in alone.items():
        assert {rank["losses"][name][0] for rank in ranks} == {ranks[0]["losses"][name][0]}
        assert ranks[0]["losses"][name][0] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        # each times the number of ranks, for an average to take off
        found = torch.cat([rank["losses"][name][1] for rank in ranks]) / size
        assert ((found - gradient).norm() / gradient.norm()).item() < 1e-6, name
    expected = counts_of(batch())
    assert all(torch.equal(rank["counts"], expected) for rank in ranks)
    step = weights_after_a_step(batch())
    for rank in ranks:
        torch.testing.assert_close(rank["ddp"], step, rtol=1e-5, atol=1e-6)
    messages = [rank["message"] for rank in ranks]
    assert "label 77 is out of range for 5 classes" in messages[0]
    assert all("a label of another rank is out of range" in message for message in messages[1:])


def test_group_without_processes_is_refused() -> None:
    logits, labels, _ = batch()
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        losses.lovasz_softmax(logits, labels, ignore_index=255, group="world")


def test_one_rank_is_one_process(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        group = distributed.group.WORLD
        for loss in (softmax(method="sort"), softmax(method="histogram"), cross_entropy):
            value, gradient = value_and_gradient(loss, batch(), group)
            expected, expected_gradient = value_and_gradient(loss, batch())
            assert value == expected
            assert torch.equal(gradient, expected_gradient)
    finally:
        distributed.destroy_process_group()


def test_losses_with_options_can_be_pickled() -> None:
    """Modules travel to worker processes with their options."""
    module = losses.LovaszSoftmax(method="histogram", bins=128, class_weights=[1.0] * CLASSES)
    logits, labels, _ = batch()
    labels = labels.clamp(max=CLASSES - 1)
    copy = pickle.loads(pickle.dumps(module))
    assert torch.equal(copy(logits, labels), module(logits, labels))
