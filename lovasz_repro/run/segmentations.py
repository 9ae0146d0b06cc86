"""What a run on all classes of VOC keeps for Figures 5 and 7: its masks of a few images."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_repro.config.schema import CellConfig, CrfConfig, MultiScaleConfig
from lovasz_repro.data.voc_training import presence_of
from lovasz_repro.evaluation.crf import refine
from lovasz_repro.evaluation.evaluate import logits_of, predicted_classes
from lovasz_repro.evaluation.masks import NamedImages
from lovasz_repro.evaluation.multiclass_masks import (
    Regime,
    choose_images,
    pixels_of,
    segment,
    write_segmentations,
)
from lovasz_repro.evaluation.voc_probabilities import fused_probabilities
from lovasz_repro.run.datasets import ScoredSet
from lovasz_repro.run.inputs import Inputs
from lovasz_repro.run.networks import NETWORKS
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
        model: in evaluation mode afterwards.
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
        model.eval()
        chosen = choose_images(presence_of(inputs.data, "val"), cell.evaluation.examples)
        regimes = regimes_of(model, cell, device)
        task = session.progress.task("  predicting examples", len(chosen))
        try:
            found = []
            for index in chosen:
                found.append(segment(cast(NamedImages, images), index, regimes))
                task.advance()
        finally:
            task.close()
        return write_segmentations(found, folder)

    session.keep_files(FOLDER, write)


def regimes_of(model: nn.Module, cell: CellConfig, device: torch.device) -> dict[str, Regime]:
    """How a run's network predicts: ``prediction`` at one scale, ``crf`` where it has one."""
    network, training, evaluation = NETWORKS[cell.model.name], cell.training, cell.evaluation
    bfloat16, channels_last = training.precision == "bfloat16", training.channels_last

    def prediction(image: Tensor, size: Sequence[int]) -> np.ndarray:
        logits = logits_of(model, image[None], device, network.prepare, bfloat16, channels_last)
        found = predicted_classes(
            logits, size, upsample=evaluation.upsample, to_size=network.to_size
        )
        return found[0].to(torch.uint8).cpu().numpy()

    def refined(scales: MultiScaleConfig, parameters: CrfConfig) -> Regime:
        def crf(image: Tensor, size: Sequence[int]) -> np.ndarray:
            probabilities = fused_probabilities(
                model,
                image[None].to(device),
                scales,
                prepare=network.prepare,
                to_size=network.to_size,
                bfloat16=bfloat16,
                channels_last=channels_last,
            )
            return refine(pixels_of(image), probabilities[0].cpu().numpy(), parameters)

        return crf

    regimes: dict[str, Regime] = {"prediction": prediction}
    if evaluation.multi_scale and evaluation.crf:
        regimes["crf"] = refined(evaluation.multi_scale, evaluation.crf)
    return regimes
