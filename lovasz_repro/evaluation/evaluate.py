"""Scores of a network on a labelled set, at the labels' own resolution.

Logits are upsampled bilinearly to the size of the labels before the arg max, so networks that
saw images of different sizes are scored on the same pixels. The set is never held: images pass
through a scoring (``scoring.py``), which adds up over ranks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from lovasz_repro.evaluation.scoring import Scoring
from lovasz_repro.models.enet import to_unit_range

Upsample = Literal["logits", "predictions"]
Predict = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, C, h, w) and the labels' size (H, W) -> what a scoring takes, (B, H, W)."""
AtSize = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, C, h, w) -> logits (B, C, H, W)."""
Prepare = Callable[[Tensor, bool, torch.dtype], Tensor]
"""Images as they are loaded, channels_last, dtype -> what a network takes."""
AnyScoring = TypeVar("AnyScoring", bound=Scoring)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    scoring: AnyScoring,
    device: torch.device,
    *,
    predict: Predict | None = None,
    prepare: Prepare = to_unit_range,
    bfloat16: bool = False,
    channels_last: bool = False,
    group: distributed.ProcessGroup | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> AnyScoring:
    """Score ``model`` in evaluation mode on every image of ``batches``, each once.

    Args:
        model: what ``prepare`` makes of the images -> logits (B, C, h, w).
        batches: images (B, 3, h, w) uint8 and targets: labels (B, H, W), or several such maps.
        scoring: takes the predictions; without counts yet.
        device: where the model is.
        predict: what the scoring is given; by default ``predicted_classes``.
        prepare: by default RGB in [0, 1].
        bfloat16: autocast around the network.
        channels_last: memory format of the images.
        group: ranks that have one part of the set each; every rank gets the scores of the whole.
        advance: called with the number of images scored, after each batch.

    Raises:
        ValueError: there is no image.
    """
    model.eval()
    seen = 0
    for images, targets in batches:
        logits = logits_of(model, images, device, prepare, bfloat16, channels_last)
        targets = _on_device(targets, device)
        size = _first(targets).shape[-2:]
        scoring.update((predict or predicted_classes)(logits, size), targets)
        seen += len(images)
        advance(len(images))
    if not seen and group is None:
        raise ValueError("nothing to evaluate: no images")
    return scoring.over_ranks(group) if group else scoring


def logits_of(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    prepare: Prepare,
    bfloat16: bool = False,
    channels_last: bool = False,
) -> Tensor:
    """What a network answers to images as they are loaded: logits (B, C, h, w), float32 or better.

    Args:
        model, device, prepare, bfloat16, channels_last: as of ``evaluate``.
        images: (B, ., h, w), on any device.
    """
    dtype = next(model.parameters()).dtype
    inputs = prepare(images.to(device, non_blocking=True), channels_last, dtype)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        logits: Tensor = model(inputs)
    return logits.float() if bfloat16 else logits


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) upsampled bilinearly to (H, W); as they are if equal."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def predicted_classes(
    logits: Tensor,
    size: Sequence[int],
    first_class: int = 0,
    upsample: Upsample = "logits",
    to_size: AtSize = at_size,
) -> Tensor:
    """The class with the highest score at every pixel, at another size.

    Args:
        logits: (B, C, h, w).
        size: (H, W) of what comes out.
        first_class: classes below it are no answer.
        upsample: "logits" bilinearly before the arg max, or "predictions" (nearest) after it.
        to_size: how logits are upsampled.

    Returns:
        (B, H, W) int64.
    """
    if upsample == "logits" or logits.shape[-2:] == tuple(size):
        scores = logits[:, first_class:]
        if scores.device.type == "cpu":  # the classes of a pixel side by side: faster, no others
            scores = scores.contiguous(memory_format=torch.channels_last)
        # max, not argmax: the same answer, several times faster on the CPU along dim 1
        return to_size(scores, size).max(dim=1).indices + first_class
    classes = logits[:, first_class:].max(dim=1).indices + first_class
    small = classes[:, None].to(logits.dtype)  # interpolate takes no integers; classes are exact
    return F.interpolate(small, size=tuple(size), mode="nearest-exact")[:, 0].long()


def category_logits(category: int, to_size: AtSize, logits: Tensor, size: Sequence[int]) -> Tensor:
    """Scores of one category at another size: logits (B, C, h, w) -> (B, H, W)."""
    return to_size(logits[:, category : category + 1], size)[:, 0]


def _first(targets: Any) -> Tensor:
    return targets if isinstance(targets, Tensor) else targets[0]


def _on_device(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    return tuple(target.to(device, non_blocking=True) for target in targets)
