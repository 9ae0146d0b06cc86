"""Scores of a DeepLab-v2 on labelled photographs of Pascal VOC, single scale."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lovasz_repro.data.palettes import VOC
from lovasz_repro.data.voc import VOID, VocImage
from lovasz_repro.data.voc_training import VocScored
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.evaluate import AtSize, Prepare, evaluate, predicted_classes
from lovasz_repro.evaluation.scoring import SegmentationScoring
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import block_counts, load_deeplab_weights


def load_voc_network(path: Path) -> DeepLab:
    """The DeepLab-v2 in one of our files, of any depth and width, in evaluation mode.

    Raises:
        UserError: no such file, another network, or other outputs than VOC's 21 classes.
    """
    weights = load_deeplab_weights(path)
    if weights.num_classes != len(VOC):
        outputs = weights.num_classes or "no"
        raise UserError(f"weights {path}: {outputs} outputs; VOC has {len(VOC)} classes. A network "
                        "without a classifier has to be trained first.")  # fmt: skip
    eps = float(weights.notes.get("bn_eps", 1e-5))
    width = len(weights.tensors["conv1.weight"])
    model = DeepLab(len(VOC), block_counts(weights.tensors), width, bn_eps=eps)
    weights.load_into(model)
    return model.eval()


def score_voc(
    model: DeepLab,
    images: Sequence[VocImage],
    device: torch.device,
    prepare: Prepare,
    to_size: AtSize,
    workers: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> SegmentationScoring:
    """Dataset-mIoU, image-mIoU and the IoU of each class, at the photographs' own size.

    Args:
        model: 21 outputs.
        images: photographs and masks.
        device: where to compute.
        prepare, to_size: how a DeepLab-v2 is fed and how its logits come to the photograph's size.
        workers: processes that decode photographs.
        advance: called with 1 after each image.

    Raises:
        UserError: files are missing or unreadable.
    """
    return evaluate(
        model.to(device),
        DataLoader(VocScored(images), batch_size=1, num_workers=workers),
        SegmentationScoring(VOC.names, VOID),
        device,
        predict=partial(predicted_classes, to_size=to_size),
        prepare=prepare,
        advance=advance,
    )
