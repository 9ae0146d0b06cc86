"""The losses among PyTorch's own machinery: version checks, default devices, transforms."""

import gc

import pytest
import torch
from torch import Tensor

from lovasz_repro import losses
from lovasz_repro.losses import (
    AccumulationWindow,
    JaccardLoss,
    binary_cross_entropy,
    cross_entropy,
    hinge,
    lovasz_extension,
    lovasz_hinge,
    lovasz_softmax,
    soft_iou,
    weighted_sum,
)
from lovasz_repro.losses.backends import disagreement
from lovasz_repro.metrics import BatchIoU, ConfusionMatrix, ImageIoU

MULTICLASS = (lovasz_softmax, cross_entropy)
BINARY = (lovasz_hinge, binary_cross_entropy, hinge, soft_iou)


def numbers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    labels = torch.randint(0, 3, (2, 9, 11), generator=generator, device="cpu")
    return torch.randn(2, 3, 9, 11, generator=generator, device="cpu"), labels


def extension(errors: Tensor, labels: Tensor, **options) -> Tensor:
    return lovasz_extension(errors.flatten(1), labels.flatten(1), JaccardLoss(), **options).sum()


@pytest.mark.parametrize("changed", ["labels", "weights"])
def test_inputs_changed_before_backward_are_noticed(changed: str) -> None:
    logits, labels = numbers()
    tensors = {"labels": labels, "weights": torch.rand(labels.shape, dtype=torch.float64)}
    loss = lovasz_softmax(
        logits.requires_grad_(), labels, pixel_weight=tensors["weights"], method="histogram"
    )
    tensors[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("method", ["sort", "histogram"])
def test_a_loss_that_was_differentiated_holds_nothing_of_the_size_of_its_labels(
    method: str,
) -> None:
    logits, labels = numbers()
    logits.requires_grad_()
    mine = {id(logits), id(labels)}
    before = {id(one) for one in gc.get_objects() if type(one) is Tensor} | mine
    loss = lovasz_softmax(logits, labels, method=method)
    (gradient,) = torch.autograd.grad(loss, logits)
    gc.collect()
    held = [
        one
        for one in gc.get_objects()
        if type(one) is Tensor and id(one) not in before and one.data_ptr() != gradient.data_ptr()
    ]
    assert [one for one in held if one.numel() >= labels.numel()] == []


@pytest.mark.parametrize("loss", [*BINARY, *MULTICLASS, extension])
def test_defaults_of_torch_change_nothing(loss) -> None:
    logits, labels = numbers()
    logits = logits.to(memory_format=torch.channels_last)  # kernels read it through a buffer
    options = [{}]
    if loss in (lovasz_softmax, lovasz_hinge, extension):
        options = [{"method": "sort"}, {"method": "histogram", "bins": 64}]
    if loss in MULTICLASS:
        options = [one | {"class_weights": [1.0, 2.0, 0.5]} for one in options]
        if loss is lovasz_softmax:
            options += [{"classes": [0, 2]}, {"classes": "all", "per_image": True}]
    else:
        logits, labels = logits[:, 0], (labels == 1).long()
    losses.set_functions._checked_once.cache_clear()

    def value_and_gradient(**options) -> tuple[Tensor, Tensor]:
        scores = logits.clone().requires_grad_()
        value = loss(scores, labels, **options)
        return value.detach(), torch.autograd.grad(value, scores)[0]

    for one in options:
        expected = value_and_gradient(**one)
        with torch.device("meta"):  # where a tensor made without device= holds no numbers
            torch.testing.assert_close(value_and_gradient(**one), expected, rtol=0, atol=0)
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            try:
                found = value_and_gradient(**one)
            finally:
                torch.set_default_dtype(torch.float32)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_default_device_elsewhere_changes_no_metric_and_no_check() -> None:
    logits, labels = numbers()
    with torch.device("meta"):
        for metric in (ConfusionMatrix(3), ImageIoU(3)):
            metric.update(labels, labels)
            assert metric.mean_iou() == 1
        batches = BatchIoU(3)
        batches.update(labels, labels)
        assert batches.mean_iou(2) == 1
        losses.check_submodular(JaccardLoss())
        losses.LovaszSoftmax(class_weights=[1.0, 2.0, 3.0])(logits, labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [*BINARY, *MULTICLASS])
def test_ignored_pixels_may_hold_anything(loss, value: float) -> None:
    logits, labels = numbers()
    if loss in BINARY:
        logits, labels = logits[:, 0], (labels == 1).long()
    labels[0, 2:4] = 255
    clean = logits.clone().requires_grad_()
    dirty = logits.clone()
    dirty[0, ..., 2:4, :] = value
    dirty.requires_grad_()
    expected, found = (loss(one, labels, ignore_index=255) for one in (clean, dirty))
    assert found == expected
    found.backward()
    expected.backward()
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)


def test_no_loss_at_all_is_zero_whatever_the_logits() -> None:
    logits = torch.full((2, 3, 4), torch.nan, requires_grad=True)
    loss = weighted_sum(logits, torch.zeros(2, 4).long(), [cross_entropy], [0.0])
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_a_micro_batch_that_failed_is_not_in_the_window() -> None:
    logits, labels = numbers()
    window, other = AccumulationWindow(), AccumulationWindow()
    for one in (window, other):
        lovasz_softmax(logits[:1], labels[:1].clamp(max=1), window=one, bins=64)
    for wrong in ({"bins": 100}, {"bins": 64, "classes": [7]}):
        with pytest.raises(ValueError, match=r"the same classes|out of range"):
            lovasz_softmax(logits, labels, window=window, **wrong)
    logits, labels = logits[1:], labels[1:].clamp(max=1)
    after = [lovasz_softmax(logits, labels, window=one, bins=64) for one in (window, other)]
    assert after[0] == after[1]
    assert window.micro_batches == other.micro_batches == 2


@pytest.mark.parametrize("loss", [*BINARY, *MULTICLASS, extension])
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_what_cannot_work_says_so(loss) -> None:
    logits, labels = numbers()
    if loss not in MULTICLASS:
        logits, labels = logits[:, 0], (labels == 1).long()
    with pytest.raises(RuntimeError, match="cannot be traced"):
        torch.jit.trace(loss, (logits, labels))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(loss)(logits[:, None], labels[:, None])
    if loss in (lovasz_softmax, lovasz_hinge, extension):
        with pytest.raises(RuntimeError, match=r"torch\.func"):
            torch.func.grad(loss)(logits, labels)
    else:
        leaf = logits.clone().requires_grad_()
        loss(leaf, labels).backward()
        torch.testing.assert_close(torch.func.grad(loss)(logits, labels), leaf.grad)


def test_fullgraph_is_refused_with_the_reason() -> None:
    logits, labels = numbers()

    def compiled(scores: Tensor, truth: Tensor) -> Tensor:
        return lovasz_softmax(2 * scores, truth)

    whole = torch.compile(compiled, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="fullgraph"):
        whole(logits, labels)
    assert torch.compile(compiled, backend="eager")(logits, labels) == compiled(logits, labels)


def test_the_kernels_are_tried_under_any_default_device() -> None:
    class Plain:
        """Kernels that do nothing: what matters is that the numbers are made."""

        @staticmethod
        def forward(logits: Tensor, *rest: object) -> None:
            assert logits.device.type == "cpu"
            raise ArithmeticError

    with torch.device("meta"), pytest.raises(ArithmeticError):
        disagreement(Plain, torch.device("cpu"))  # type: ignore[arg-type]
