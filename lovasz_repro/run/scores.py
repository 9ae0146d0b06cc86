"""What a run does beside training: counts classes, scores its network, keeps pictures; with bars.

``regimes.py`` has what runs on Pascal VOC score beside, after training.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.cityscapes import read_instances
from lovasz_repro.data.datasets import ScoredSet, category_of, kind_of
from lovasz_repro.data.sampling import Labelled, class_counts
from lovasz_repro.evaluation import pictures
from lovasz_repro.evaluation.pictures import Pictured
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.scoring import BasisScoring, Scoring, evaluate
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.build import (
    build_model,
    feeding_of,
    first_answer,
    predictor_of,
    scored_batches,
    scoring_of,
)
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.session import Session

# -- classes in the training images -------------------------------------------------------------


def count_labels(
    images: Labelled, split: str, cell: CellConfig, inputs: Inputs, place: Place, progress: Progress
) -> np.ndarray:
    """Pixels of each label in each image of a split, (N, 256); read once and kept.

    Raises:
        UserError: a mask cannot be read, or holds an unknown id.
    """
    # those of images that are cropped come at their own size
    size = "own-size" if cell.data.crops else "x".join(str(side) for side in cell.data.size)
    part = {"train_aug": "", "trainval_aug": "-trainval"}.get(split, f"-{split}")
    name = f"{inputs.fingerprints['data_fingerprint']}-{size}{part}.npy"
    cache = place.results / "work" / "class-counts" / name
    with progress.task("  reading masks", len(images)) as bar:
        return class_counts(images, cache, bar.over)


class Masks:
    """The masks of a scored set, at their own size.

    Args:
        images: the set.
        instances: also of instances, for the official scores.
    """

    def __init__(self, images: Any, instances: bool = False) -> None:
        self.images, self.instances = images, instances

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8; raises UserError where a file cannot be read."""
        if self.instances:
            read_instances(self.images.frames[index])
        labels: np.ndarray = self.images.label_ids(index)
        return labels


# -- a split, at one scale ----------------------------------------------------------------------


def score_on(
    model: nn.Module,
    images: ScoredSet,
    split: str,
    cell: CellConfig,
    place: Place,
    session: Session,
    scoring: Scoring | None = None,
    *,
    when: str = "",
    unsaved: bool = False,
    shapes: bool = False,
) -> Scoring:
    """Score a model on a whole split, shared among the ranks.

    Args:
        model, images, split, cell, place, session: what is scored and where.
        scoring: by default that of the data set.
        when: "before training" and the like, for the bar.
        unsaved: whether steps were taken that no checkpoint has; a request to stop waits then.
        shapes: whether masks are looked at too, see ``Measures``.
    """
    team = session.team
    scoring = scoring or scoring_of(cell, shapes)
    predictor = predictor_of(model, cell, place.device)
    batches = scored_batches(cell, images, place, team)
    with session.progress.task(f"  scoring {split} {when}".rstrip(), len(images)) as bar:

        def advance(count: int) -> None:
            bar.advance(count * team.size)
            if not unsaved:
                session.stop_if_asked()

        return evaluate(predictor, batches, scoring, group=team.group, advance=advance)


def score_basis(
    model: nn.Module, images: ScoredSet, cell: CellConfig, place: Place, session: Session
) -> dict[str, float]:
    """``basis/image_iou``: what the network of all classes reaches before it is trained further."""
    kind, category = kind_of(cell.data), category_of(cell.data)
    assert category is not None, "a basis network is compared for one category"
    scoring = BasisScoring(category, kind.ignore_index)
    return score_on(model, images, "val", cell, place, session, scoring).as_metrics("basis")


# -- pictures -----------------------------------------------------------------------------------


def keep_pictures(
    model: nn.Module,
    images: ScoredSet,
    cell: CellConfig,
    inputs: Inputs,
    place: Place,
    session: Session,
) -> None:
    """Store pictures of what the network finds in a few validation images; their data set says of
    which kind (``evaluation/pictures.py``).

    Raises:
        UserError: a file cannot be read, or the CRF is not installed.
        RunFailed: the disk refuses.
    """
    kind = kind_of(cell.data)
    network = feeding_of(cell)
    category, count, task = category_of(cell.data), cell.evaluation.examples, session.progress.task
    crops = category is None and kind.examples == "crops"
    folder = "examples" if crops else "segmentations" if category is None else "masks"

    def as_before_and_after(first_class: int = 0) -> Iterator[Predictor]:
        torch.manual_seed(cell.seed)  # a network that began at random begins so again
        for of_run in (build_model(cell, inputs, place.device), model):
            yield Predictor(of_run, network, place.device, first_class=first_class)

    def find() -> list[Pictured]:
        if crops:
            before, after = as_before_and_after(first_answer(cell))
            with task("  looking for examples", min(len(images), pictures.MOST_IMAGES)) as bar:
                return pictures.find_examples(
                    before, after, cast(pictures.Photographed, images), kind.table, count,
                    advance=bar.advance,
                )  # fmt: skip
        if category is not None:
            before, after = as_before_and_after()
            find_one = partial(pictures.find_mask, before, after, category=category)
            chosen = list(range(min(count, len(images))))
        else:
            from lovasz_repro.run.regimes import regimes_of

            regimes = regimes_of(model, cell, place.device)
            find_one = partial(pictures.segment, regimes=regimes, table=kind.table)
            if cell.data.images == "features":
                from lovasz_repro.data.voc import presence_of

                presence = presence_of(inputs.data, "val")
            else:
                masks, classes = Masks(images), len(kind.table)
                counts = count_labels(masks, "val", cell, inputs, place, session.progress)
                presence = counts[:, :classes] > 0
            chosen = pictures.choose_images(presence, count)
        with task("  predicting examples", len(chosen)) as bar:
            return [find_one(images=images, index=index) for index in bar.over(chosen)]

    session.keep_files(folder, lambda where: pictures.write_pictures(find(), where))
