"""Batch normalisation on several ranks against `nn.BatchNorm2d` on the whole batch."""

import copy
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_repro.models.batch_norm import (
    RanksBatchNorm2d,
    synchronise_batch_norm,
)

CHANNELS, STEPS = 5, 3
SHARES = [(5, 5), (2, 1, 4), (3, 3, 2, 2), (1, 1, 1), (0, 0, 2, 0)]
Case = dict[str, Any]


def case(shares: tuple[int, ...], **changes: Any) -> Case:
    plain = {"size": (4, 6), "dtype": torch.float64, "mean": 0.5, "options": {}}
    return plain | {"shares": shares} | changes


def batch(case: Case, step: int) -> tuple[Tensor, Tensor]:
    """Images, unlike each other in mean and contrast, and the gradient of the output."""
    generator = torch.Generator().manual_seed(step)
    shape = (sum(case["shares"]), CHANNELS, *case["size"])
    images, gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    each = torch.arange(len(images), dtype=torch.float64).view(-1, *[1] * (images.ndim - 1))
    images = images * (1 + each / 3) + each + case["mean"]
    return images.to(case["dtype"]), gradient.to(case["dtype"])


def layer(case: Case) -> nn.Module:
    dtype = case.get("parameters", case["dtype"])
    made = nn.BatchNorm2d(CHANNELS, dtype=dtype, **case["options"])
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.linspace(-1, 2, CHANNELS) + index)
    return made


def train(layer: nn.Module, case: Case, mine: slice) -> dict[str, list[Tensor]]:
    """Everything that three steps give: lists over steps, and in the end over parameters."""
    outputs, gradients = [], []
    for step in range(STEPS):
        images, gradient = (part[mine] for part in batch(case, step))
        x = images.to(memory_format=case.get("format", torch.preserve_format)).requires_grad_()
        y = layer(x)
        y.backward(gradient.to(memory_format=case.get("back", torch.preserve_format)))
        outputs.append(y.detach())
        gradients.append(x.grad)
    return {
        "outputs": outputs,
        "gradients": gradients,
        "parameters": [parameter.grad for parameter in layer.parameters()],
        "buffers": list(layer.buffers()),
    }


def share(case: Case, rank: int) -> slice:
    return [slice(*ends) for ends in pairwise(accumulate(case["shares"], initial=0))][rank]


def train_on_ranks(rank: int, group, case: Case) -> dict[str, list[Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=case.get("autocast", False)):
        return train(synchronise_batch_norm(layer(case), group), case, share(case, rank))


def together(ranks: list[dict[str, list[Tensor]]]) -> dict[str, list[Tensor]]:
    """What the ranks found, as one device has it."""
    for rank in ranks[1:]:
        for buffer, first in zip(rank["buffers"], ranks[0]["buffers"], strict=True):
            assert torch.equal(buffer, first)
    columns = {name: list(zip(*(rank[name] for rank in ranks), strict=True)) for name in ranks[0]}
    return {
        "outputs": [torch.cat(parts) for parts in columns["outputs"]],
        "gradients": [torch.cat(parts) for parts in columns["gradients"]],
        "parameters": [sum(parts) for parts in columns["parameters"]],
        "buffers": ranks[0]["buffers"],
    }


def compare(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]], **close) -> None:
    for name, tensors in expected.items():
        for tensor, right in zip(found[name], tensors, strict=True):
            torch.testing.assert_close(tensor, right, **close, msg=lambda m, n=name: f"{n}: {m}")


def check(pool, case: Case, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    found = together(pool.run(train_on_ranks, len(case["shares"]), case))
    compare(found, train(layer(case), case, slice(None)), rtol=rtol, atol=atol)


@pytest.mark.parametrize("shares", SHARES)
def test_ranks_are_one_device(shares: tuple[int, ...], rank_pool) -> None:
    check(rank_pool, case(shares))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": None},
        {"momentum": 0.7, "eps": 0.3},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
    ],
)
def test_options(options: dict[str, Any], rank_pool) -> None:
    check(rank_pool, case((3, 1), options=options))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shares", [(1, 1), (3, 3, 2, 2)])
def test_float32_is_as_accurate_as_on_one_device(
    shares: tuple[int, ...], mean: float, rank_pool
) -> None:
    """Both against float64, of the same images."""
    single = case(shares, size=(40, 60), dtype=torch.float32, mean=mean)
    found = together(rank_pool.run(train_on_ranks, len(shares), single))
    expected = train(layer(single), single, slice(None))
    exact_layer, exact = layer(single).double(), {"outputs": [], "gradients": []}
    for step in range(STEPS):
        images, gradient = (part.double() for part in batch(single, step))
        y = exact_layer(images.requires_grad_())
        y.backward(gradient)
        exact["outputs"].append(y)
        exact["gradients"].append(images.grad)
    exact["parameters"] = [parameter.grad for parameter in exact_layer.parameters()]
    exact["buffers"] = list(exact_layer.buffers())
    for name, tensors in exact.items():
        for one, other, right in zip(found[name], expected[name], tensors, strict=True):
            error, allowed = ((value - right).abs().max() for value in (one, other))
            assert error <= 2 * allowed + 4e-7 * right.abs().max(), name


@pytest.mark.parametrize("back", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_kept(format, back, rank_pool) -> None:
    mixed = case((2, 3), format=format, back=back)
    check(rank_pool, mixed)
    for rank in rank_pool.run(train_on_ranks, 2, mixed):
        for tensor in rank["outputs"] + rank["gradients"]:
            assert tensor.is_contiguous(memory_format=format)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_bfloat16(parameters: torch.dtype, rank_pool) -> None:
    """Under autocast parameters are float32; the statistics are float32 in either case."""
    half = case((3, 0, 1), dtype=torch.bfloat16, parameters=parameters, mean=8.0, autocast=True)
    found = together(rank_pool.run(train_on_ranks, 3, half))
    with torch.autocast("cpu", torch.bfloat16):
        expected = train(layer(half), half, slice(None))
    assert found["outputs"][0].dtype == torch.bfloat16
    close = {"rtol": 2**-7, "atol": 2**-7}
    if parameters == torch.float32:
        compare({"": found["buffers"]}, {"": expected["buffers"]}, rtol=1e-6, atol=1e-6)
        compare({"": found["parameters"]}, {"": expected["parameters"]}, rtol=1e-5, atol=1e-5)
    else:
        close = {"rtol": 2**-5, "atol": 2**-5}
    compare(found, expected, **close)


def evaluate_alone(rank: int, group, images: Tensor) -> Tensor | None:
    made = synchronise_batch_norm(layer(case((1, 1))), group).eval()
    made.running_mean.fill_(3)
    return made(images) if rank == 0 else None  # would wait for rank 1 if it communicated


def test_evaluation_talks_to_nobody(rank_pool) -> None:
    images, _ = batch(case((3,)), 0)
    expected = layer(case((3,))).eval()
    expected.running_mean.fill_(3)
    assert torch.equal(rank_pool.run(evaluate_alone, 2, images)[0], expected(images))


def statistics_without_gradients(rank: int, group, case: Case) -> list[Tensor]:
    made = synchronise_batch_norm(layer(case), group)
    images = batch(case, 0)[0][share(case, rank)]
    with torch.no_grad():
        assert not made(images).requires_grad
    made(images).sum().backward()  # of the parameters, not of the images
    return list(made.buffers())


def test_statistics_without_gradients(rank_pool) -> None:
    uneven, expected = case((1, 3)), layer(case((1, 3)))
    for _ in range(2):
        expected(batch(uneven, 0)[0])
    for buffers in rank_pool.run(statistics_without_gradients, 2, uneven):
        compare({"": buffers}, {"": list(expected.buffers())}, rtol=1e-12, atol=0)


def message_of_one_value(rank: int, group) -> str:
    made = synchronise_batch_norm(nn.BatchNorm2d(CHANNELS), group)
    made(torch.randn(1, CHANNELS, 1, 1))  # one a rank is enough
    with pytest.raises(ValueError, match="got 1 from 2 ranks together") as raised:
        made(torch.randn(1 - rank, CHANNELS, 1, 1))
    with pytest.raises(ValueError, match="got 0 from 2 ranks together"):
        made(torch.randn(0, CHANNELS, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        made(torch.randn(1, CHANNELS, 1))
    return str(raised.value)


def test_one_value_on_all_ranks_is_refused_by_all(rank_pool) -> None:
    assert len(set(rank_pool.run(message_of_one_value, 2))) == 1


# -- whole models --------------------------------------------------------------------------------


def net() -> nn.Sequential:
    """Two normalisations, nested, with the gradient of the second going through the first."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6, momentum=None))
    made = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), inner)
    return made.double()


def steps(rank: int, group, case: Case) -> tuple[list[str], list[Tensor]]:
    """A mean over the pixels of all ranks, as a loss is; DistributedDataParallel averages."""
    model, ranks = net(), len(case["shares"]) if group else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = list(model.state_dict())
    trained: nn.Module = model
    if group is not None:
        assert synchronise_batch_norm(model, group) is model
        assert isinstance(model[3][1], RanksBatchNorm2d)
        trained = DistributedDataParallel(model, process_group=group)
    assert list(model.state_dict()) == before
    for step in range(STEPS):
        images, _ = batch(case, step)
        scores = trained(images[share(case, rank) if group else slice(None)])
        loss = (scores - 1).relu().square().sum() / len(images)
        optimizer.zero_grad()
        (loss * ranks).backward()
        optimizer.step()
    return before, [tensor.detach() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("shares", [(5, 5), (3, 0, 2)])
def test_training_a_net_is_training_it_on_one_device(shares: tuple[int, ...], rank_pool) -> None:
    names, expected = steps(0, None, case(shares, size=(9, 11)))
    assert not torch.equal(expected[0], net().state_dict()[names[0]])
    for found_names, found in rank_pool.run(steps, len(shares), case(shares, size=(9, 11))):
        assert found_names == names
        compare({"": found}, {"": expected}, rtol=1e-10, atol=1e-12)


def what_becomes_of_layers(rank: int, group) -> None:
    seen = []
    model = net().append(nn.InstanceNorm2d(3))
    old = model[1]
    old.weight.requires_grad_(False)
    old.register_forward_hook(lambda *_: seen.append(1))
    old.eval()
    shared = nn.ModuleDict({"one": model, "other": old})
    tensors = {id(tensor) for tensor in shared.state_dict(keep_vars=True).values()}
    synchronise_batch_norm(shared, group)
    assert {id(tensor) for tensor in shared.state_dict(keep_vars=True).values()} == tensors
    for new in (model[1], shared["other"]):
        assert type(new) is RanksBatchNorm2d
        assert not new.training
        assert not new.weight.requires_grad
        assert str(new) == str(old).replace("BatchNorm2d", "RanksBatchNorm2d")
    model[1](torch.randn(1, 4, 2, 2, dtype=torch.float64))
    assert seen == [1]
    assert type(model[-1]) is nn.InstanceNorm2d
    assert type(synchronise_batch_norm(nn.BatchNorm2d(3), group)) is RanksBatchNorm2d


def test_what_becomes_of_layers(rank_pool) -> None:
    rank_pool.run(what_becomes_of_layers, 2)


class Own(nn.BatchNorm2d):
    pass


def refusals(rank: int, group) -> None:
    for layer, message in [
        (nn.LazyBatchNorm2d(), r"^3\.2: cannot synchronise a LazyBatchNorm2d over ranks$"),
        (nn.BatchNorm1d(3), r"^3\.2: cannot synchronise a BatchNorm1d over ranks$"),
        (Own(3), r"^3\.2: cannot synchronise a Own over ranks$"),
        (nn.BatchNorm2d(3, device="meta"), r"^3\.2: cannot synchronise a layer .* on 'meta'$"),
    ]:
        model = net()
        model[3].append(layer)
        before = copy.copy(model._modules)
        with pytest.raises(ValueError, match=message):
            synchronise_batch_norm(model, group)
        assert model._modules == before


def test_other_layers_are_refused_by_name(rank_pool) -> None:
    rank_pool.run(refusals, 2)


def alone(rank: int, group) -> None:
    model = net()
    assert type(synchronise_batch_norm(model, group)[1]) is nn.BatchNorm2d
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(RanksBatchNorm2d(4, group=group)(images), nn.BatchNorm2d(4)(images))


def test_one_rank_is_one_device(rank_pool) -> None:
    alone(0, None)
    rank_pool.run(alone, 1)


def on_cuda(rank: int, group, case: Case) -> list[Tensor]:
    model = nn.Sequential(layer(case)).cuda()
    weight = model[0].weight
    synchronise_batch_norm(model, group)
    assert type(model[0]) is nn.SyncBatchNorm
    assert model[0].weight is weight
    return [model(batch(case, 0)[0][share(case, rank)].cuda()).detach().cpu()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_has_pytorchs_own_layer(rank_pool) -> None:
    uneven = case((3, 1))
    found = torch.cat([outputs[0] for outputs in rank_pool.run(on_cuda, 2, uneven)])
    expected = layer(uneven)(batch(uneven, 0)[0])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
