"""Scores of a network on a labelled set, at the labels' own resolution.

The set is never held: images pass through a scoring (``scoring.py``), which adds up over ranks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.scoring import Scoring

AnyScoring = TypeVar("AnyScoring", bound=Scoring)


@torch.inference_mode()
def evaluate(
    predictor: Predictor,
    batches: Iterable[tuple[Tensor, Any]],
    scoring: AnyScoring,
    *,
    ask: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
    group: distributed.ProcessGroup | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> AnyScoring:
    """Score a network on every image of ``batches``, each once.

    Args:
        predictor: what is scored.
        batches: images (B, ., h, w) and targets: labels (B, H, W), or several such maps.
        scoring: takes the predictions; without counts yet.
        ask: images, labels' size -> what the scoring is given; by default the predictor's classes.
        group: ranks that have one part of the set each; every rank gets the scores of the whole.
        advance: called with the number of images scored, after each batch.

    Raises:
        ValueError: there is no image.
    """
    ask, seen = ask or predictor.classes, 0
    for images, targets in batches:
        first = targets if isinstance(targets, Tensor) else targets[0]
        predictions = ask(images, first.shape[-2:])
        scoring.update(predictions, _on_device(targets, predictor.device))
        seen += len(images)
        advance(len(images))
    if not seen and group is None:
        raise ValueError("nothing to evaluate: no images")
    return scoring.over_ranks(group) if group else scoring


def _on_device(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    return tuple(target.to(device, non_blocking=True) for target in targets)
