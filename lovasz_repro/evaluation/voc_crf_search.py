"""The dense CRF with several sets of parameters, compared on labelled photographs.

DeepLab's authors choose them by the mIoU on some validation images. All sets take the same files of
probabilities: the network is not asked again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.classes import VOC
from lovasz_repro.data.voc import VOID, VocImage, read_labels
from lovasz_repro.evaluation.scoring import SegmentationScoring
from lovasz_repro.evaluation.voc_regimes import count, refine_photographs
from lovasz_repro.host.processes import mapped


@dataclass(frozen=True)
class Compared:
    """What one set of parameters reaches."""

    crf: CrfConfig
    scoring: SegmentationScoring

    @property
    def dataset_miou(self) -> float:
        """In [0, 1]; what sets are compared by."""
        return self.scoring.confusion.mean_iou()


def compare_crfs(
    images: Sequence[VocImage],
    files: Sequence[Path],
    folder: Path,
    crfs: Sequence[CrfConfig],
    *,
    processes: int = 1,
    refined: Callable[[int], None] = lambda images: None,
) -> list[Compared]:
    """Refine the photographs with each set of parameters and score the labels.

    Args:
        images: photographs and masks.
        files: their probabilities.
        folder: of the probabilities; labels that are there already stay.
        crfs: sets of parameters.
        processes: that refine.
        refined: called with 1 after each photograph of each set.

    Returns:
        One for each set, the highest dataset-mIoU first; of equal ones the first given.

    Raises:
        UserError: a file cannot be read, or the CRF is not installed.
        RunFailed: the disk refuses, or a process died.
    """
    compared = []
    with mapped(min(processes, len(images)), "refined predictions") as map_:
        for crf in crfs:
            labels = refine_photographs(images, files, folder, crf, map_, refined)
            scoring = SegmentationScoring(VOC.names, VOID)
            count(scoring, images, map(read_labels, labels))
            compared.append(Compared(crf, scoring))
    return sorted(compared, key=lambda one: one.dataset_miou, reverse=True)
