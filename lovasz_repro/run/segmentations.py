"""What a run on all classes of VOC keeps for Figures 5 and 7: its masks of a few images."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.voc import presence_of
from lovasz_repro.evaluation.crf import refine
from lovasz_repro.evaluation.masks import NamedImages
from lovasz_repro.evaluation.multiclass_masks import (
    Regime,
    choose_images,
    pixels_of,
    segment,
    write_segmentations,
)
from lovasz_repro.run.build import multi_scale_of, predictor_of
from lovasz_repro.run.datasets import ScoredSet
from lovasz_repro.run.inputs import Inputs
from lovasz_repro.run.session import Session

FOLDER = "segmentations"


def keep_segmentations(
    model: nn.Module,
    images: ScoredSet,
    cell: CellConfig,
    inputs: Inputs,
    device: torch.device,
    session: Session,
) -> None:
    """Store what a network finds in a few images of "val" that show as many classes as possible.

    Args:
        model: the network.
        images: all of the split, in the order of ``list_images``.
        cell: says how many images, and whether there is a CRF.
        inputs: where the data are.
        device: where the model is.
        session: gets the files, in the folder ``segmentations``.

    Raises:
        UserError: a mask or a photograph cannot be read, or the CRF is not installed.
        RunFailed: the disk refuses.
    """

    def write(folder: Path) -> list[Path]:
        chosen = choose_images(presence_of(inputs.data, "val"), cell.evaluation.examples)
        regimes = regimes_of(model, cell, device)
        found = []
        with session.progress.task("  predicting examples", len(chosen)) as bar:
            for index in chosen:
                found.append(segment(cast(NamedImages, images), index, regimes))
                bar.advance()
        return write_segmentations(found, folder)

    session.keep_files(FOLDER, write)


def regimes_of(model: nn.Module, cell: CellConfig, device: torch.device) -> dict[str, Regime]:
    """How a run's network predicts: ``prediction`` at one scale, ``crf`` where it has one."""
    evaluation = cell.evaluation
    single = predictor_of(model, cell, device)

    def prediction(image: Tensor, size: Sequence[int]) -> np.ndarray:
        return single.classes(image[None], size)[0].to(torch.uint8).cpu().numpy()

    regimes: dict[str, Regime] = {"prediction": prediction}
    if evaluation.multi_scale and evaluation.crf:
        fused, parameters = multi_scale_of(model, cell, device), evaluation.crf

        def crf(image: Tensor, size: Sequence[int]) -> np.ndarray:
            probabilities = fused.probabilities(image[None], size)[0].cpu().numpy()
            return refine(pixels_of(image), probabilities, parameters)

        regimes["crf"] = crf
    return regimes
