"""Gradient accumulation without a window, with a carried one, and with an exact one."""

import pytest
import torch
from torch import Tensor, nn

from lovasz_repro.losses import AccumulationWindow, lovasz_softmax
from tests.losses.test_lovasz_softmax import batch

HOW = {"method": "histogram", "bins": 4096, "ignore_index": 255}
SHARES = [slice(0, 3), slice(3, 4), slice(4, 6)]


def numbers() -> tuple[Tensor, Tensor]:
    logits, labels = batch(6, 9, 11)
    labels[:, 0] = 255
    labels[3, 2:4] = 4  # a class of the second micro-batch alone
    return logits, labels


def gradient(logits: Tensor, labels: Tensor, **options) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = lovasz_softmax(leaf, labels, **HOW, **options)
    (value / len(SHARES)).backward()
    return value.item(), leaf.grad


def test_exact_window_gives_the_gradient_of_the_whole_batch() -> None:
    logits, labels = numbers()
    value, expected = gradient(logits, labels)
    window = AccumulationWindow()
    for _ in range(2):  # the second after a reset
        for share in SHARES:
            with torch.no_grad():
                lovasz_softmax(logits[share], labels[share], window=window, **HOW)
        window.freeze()
        found = [gradient(logits[share], labels[share], window=window) for share in SHARES]
        assert {loss for loss, _ in found} == {value}
        total = torch.cat([part for _, part in found])
        torch.testing.assert_close(total, len(SHARES) * expected, rtol=1e-12, atol=1e-15)
        window.reset()


def test_exact_window_trains_as_the_whole_batch() -> None:
    """Divided by the number of micro-batches, as gradient accumulation does anyway."""
    images, labels = numbers()
    steps = []
    for accumulate in (False, True):
        torch.manual_seed(0)
        model = nn.Conv2d(5, 5, 3, padding=1).double()
        window = AccumulationWindow()
        if accumulate:
            with torch.no_grad():
                for share in SHARES:
                    lovasz_softmax(model(images[share]), labels[share], window=window, **HOW)
            window.freeze()
            for share in SHARES:
                loss = lovasz_softmax(model(images[share]), labels[share], window=window, **HOW)
                (loss / len(SHARES)).backward()
        else:
            lovasz_softmax(model(images), labels, **HOW).backward()
        steps.append(model.weight.grad)
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-9, atol=1e-12)


def test_carried_window_sees_what_came_before() -> None:
    """The loss of a micro-batch is that of all pixels so far, for its own logits."""
    logits, labels = numbers()
    window = AccumulationWindow()
    for number, share in enumerate(SHARES, start=1):
        value, found = gradient(logits[share], labels[share], window=window)
        so_far = slice(0, share.stop)
        expected_value, expected = gradient(logits[so_far], labels[so_far])
        assert value == expected_value
        torch.testing.assert_close(found, number * expected[share.start :], rtol=1e-12, atol=1e-15)


def test_without_a_window_each_micro_batch_is_a_batch() -> None:
    logits, labels = numbers()
    values = [gradient(logits[share], labels[share])[0] for share in SHARES]
    alone = [lovasz_softmax(logits[s], labels[s], ignore_index=255).item() for s in SHARES]
    assert values == pytest.approx(alone, abs=1e-3)
    assert sum(values) / 3 != pytest.approx(gradient(logits, labels)[0], abs=1e-3)


def test_window_with_weights() -> None:
    logits, labels = numbers()
    weight = torch.rand(labels.shape, dtype=torch.float64)
    value, _ = gradient(logits, labels, pixel_weight=weight)
    window = AccumulationWindow()
    for share in SHARES:
        options = {"pixel_weight": weight[share], "window": window}
        found, _ = gradient(logits[share], labels[share], **options)
    assert found == pytest.approx(value, rel=1e-12)


def test_windows_refuse_what_they_cannot_do() -> None:
    logits, labels = numbers()
    window = AccumulationWindow()
    with pytest.raises(ValueError, match=r"no micro-batch was counted before freeze\(\)"):
        window.freeze()
    for options in ({"per_image": True}, {"method": "sort"}):
        with pytest.raises(ValueError, match="not with per_image or"):
            lovasz_softmax(logits, labels, window=window, ignore_index=255, **options)
    lovasz_softmax(logits, labels, window=window, **HOW)
    with pytest.raises(ValueError, match="need the same classes, bins"):
        lovasz_softmax(logits, labels, window=window, **HOW | {"bins": 100})
