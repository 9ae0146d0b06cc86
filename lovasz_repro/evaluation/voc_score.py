"""Scores of a DeepLab-v2 on labelled photographs of Pascal VOC, single scale."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from lovasz_repro.data.classes import VOC
from lovasz_repro.data.voc import VOID, VocImage
from lovasz_repro.data.voc_training import VocScored
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.evaluate import evaluate
from lovasz_repro.evaluation.predictor import Predictor
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
    predictor: Predictor,
    images: Sequence[VocImage],
    workers: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> SegmentationScoring:
    """Dataset-mIoU, image-mIoU and the IoU of each class, at the photographs' own size.

    Args:
        predictor: of 21 outputs.
        images: photographs and masks.
        workers: processes that decode photographs.
        advance: called with 1 after each image.

    Raises:
        UserError: files are missing or unreadable.
    """
    batches = DataLoader(VocScored(images), batch_size=1, num_workers=workers)
    return evaluate(predictor, batches, SegmentationScoring(VOC.names, VOID), advance=advance)
