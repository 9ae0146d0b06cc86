"""Scores of a network on a labelled set, at the labels' own resolution.

Logits are upsampled bilinearly to the size of the labels before the arg max, so networks that
saw images of different sizes are scored on the same pixels. The set is never held: images pass
through one confusion matrix and one sum of per-image scores, which add up over ranks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn import functional as F

from lovasz_repro.data.transforms import to_unit_range
from lovasz_repro.metrics import ConfusionMatrix, ImageIoU


@dataclass(frozen=True)
class Scores:
    """What a network scores on a set; fractions in [0, 1]."""

    dataset_miou: float
    """Mean over classes of the IoU over all pixels of the set (Eq. 14)."""
    image_miou: float
    """Mean over images of the mean IoU of the image, 0/0 = 1 (Eq. 3)."""
    iou: tuple[float, ...]
    """IoU of each class over the set; NaN for a class in neither labels nor predictions."""

    def as_metrics(self, split: str, classes: tuple[str, ...]) -> dict[str, float]:
        """Named for the store: ``<split>/dataset_miou``, ``<split>/iou/<class>`` and so on."""
        metrics = {
            f"{split}/dataset_miou": self.dataset_miou,
            f"{split}/image_miou": self.image_miou,
        }
        named = zip(classes, self.iou, strict=True)
        return metrics | {f"{split}/iou/{name}": iou for name, iou in named}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    num_classes: int,
    ignore_index: int | None,
    device: torch.device,
    *,
    bfloat16: bool = False,
    channels_last: bool = False,
    group: distributed.ProcessGroup | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Scores:
    """Score ``model`` in evaluation mode on every image of ``batches``, each once.

    Args:
        model: (B, 3, h, w) float in [0, 1] -> logits (B, C, h, w).
        batches: images (B, 3, h, w) uint8 and labels (B, H, W), of any size.
        num_classes: C.
        ignore_index: label of pixels that are not scored.
        device: where the model is.
        bfloat16: autocast around the network.
        channels_last: memory format of the images.
        group: ranks that have one part of the set each; every rank gets the scores of the whole.
        advance: called with the number of images scored, after each batch.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    confusion = ConfusionMatrix(num_classes, ignore_index=ignore_index)
    per_image = ImageIoU(num_classes, ignore_index=ignore_index)
    for images, labels in batches:
        inputs = to_unit_range(images.to(device, non_blocking=True), channels_last, dtype)
        labels = labels.to(device, non_blocking=True).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(inputs)
        if bfloat16:
            logits = logits.float()
        # max, not argmax: the same answer, several times faster on the CPU along dim 1
        predictions = at_label_size(logits, labels).max(dim=1).indices
        confusion.update(predictions, labels)
        per_image.update(predictions, labels)
        advance(len(images))
    if group:
        confusion, per_image = confusion.over_ranks(group), per_image.over_ranks(group)
    if not per_image.images:
        raise ValueError("nothing to evaluate: no images")
    return Scores(
        dataset_miou=confusion.mean_iou(),
        image_miou=per_image.mean_iou(),
        iou=tuple(confusion.iou().tolist()),
    )


def at_label_size(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, h, w) upsampled bilinearly to the labels' (H, W); as they are if equal."""
    size = labels.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
