"""What users of other libraries pass: it is refused or warned of, with the way out."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lovasz_repro.losses import (
    CrossEntropy,
    LovaszSoftmax,
    binary_cross_entropy,
    cross_entropy,
    inputs,
    lovasz_hinge,
    lovasz_softmax,
)

LOGITS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
MULTICLASS = pytest.mark.parametrize("loss", [lovasz_softmax, cross_entropy])
BINARY = pytest.mark.parametrize("loss", [lovasz_hinge, binary_cross_entropy])


@pytest.fixture
def first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_looked", False)


@MULTICLASS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("first_call")
def test_probabilities_are_warned_of_once(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    probabilities = LOGITS.softmax(1).to(dtype)
    with pytest.warns(UserWarning, match="probabilities") as caught:
        loss(probabilities, LABELS)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(probabilities, LABELS)


@MULTICLASS
@pytest.mark.parametrize(
    "logits", [LOGITS, 0 * LOGITS, LOGITS.sigmoid(), LOGITS.log_softmax(1), LOGITS[:1, :, 0, 0]]
)
@pytest.mark.usefixtures("first_call")
def test_logits_are_not(loss: Callable[..., Tensor], logits: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits, LABELS if logits.dim() == 4 else LABELS[:1, 0, 0])


@MULTICLASS
@pytest.mark.parametrize(
    ("labels", "error", "way_out"),
    [
        (LABELS[:, None], ValueError, r"labels\.squeeze\(1\)"),
        (LABELS.float(), TypeError, r"labels\.long\(\)"),
        (torch.eye(3).long()[LABELS].movedim(-1, 1), ValueError, r"labels\.argmax\(1\)"),
        (LABELS.masked_fill(LABELS == 1, 255), ValueError, "ignore_index=255"),
    ],
)
def test_masks_of_another_form(
    loss: Callable[..., Tensor], labels: Tensor, error: type[Exception], way_out: str
) -> None:
    with pytest.raises(error, match=way_out):
        loss(LOGITS, labels)


@BINARY
def test_binary_masks_of_another_form(loss: Callable[..., Tensor]) -> None:
    masks = (LABELS == 1).long()
    logits = LOGITS[:, :1]
    assert loss(logits, masks[:, None]) == loss(logits, masks) == loss(logits[:, 0], masks)
    with pytest.raises(ValueError, match=r"labels\.squeeze\(1\)"):
        loss(logits[:, 0], masks[:, None])
    with pytest.raises(TypeError, match=r"labels\.long\(\)"):
        loss(logits, masks[:, None].float())
    with pytest.raises(ValueError, match="lovasz_softmax"):
        loss(LOGITS[:, :2], masks)


@MULTICLASS
def test_one_logit_a_pixel_is_for_the_binary_losses(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="lovasz_hinge"):
        loss(LOGITS[:, :1], torch.zeros(2, 8, 8, dtype=torch.int64))


def test_options_by_their_names_elsewhere() -> None:
    for loss in (lovasz_softmax, lovasz_hinge, cross_entropy):
        with pytest.raises(TypeError, match="no option ignore; here it is ignore_index"):
            loss(LOGITS, LABELS, ignore=255)
    for name in ("weight", "class_weight"):
        with pytest.raises(TypeError, match=f"no option {name}; here it is class_weights"):
            CrossEntropy(**{name: [1.0, 2.0, 3.0]})
    with pytest.raises(TypeError, match=r"no option weight; it has .*per_image, ignore_index"):
        lovasz_hinge(LOGITS[:, 0], LABELS == 1, weight=LABELS)
    with pytest.raises(TypeError, match="no option ignore; here it is ignore_index"):
        LovaszSoftmax(ignore=255)
