"""``predict``: photographs of anybody, labelled by a trained network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.config.schema import CrfConfig, MultiScaleConfig
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.crf import check_installed, refine
from lovasz_repro.evaluation.photographs import (
    Prediction,
    as_seen,
    check_names,
    label_photograph,
    make_folder,
    photograph_probabilities,
    result_paths,
    write_prediction,
)
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.host.device import choose_device
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.run.trained import Trained


@dataclass(frozen=True)
class Looking:
    """How photographs are looked at."""

    size: tuple[int, int] | None = None
    """(height, width) at which the network sees them, see ``parse_size``. Those of another size are
    resampled to it and the scores back, both bilinearly. None: each at its own size."""
    multi_scale: bool = False
    """At several scales: the run's, else the paper's."""
    crf: bool = False
    """Refined by the dense CRF: the run's, else DeepLab's; as in Table 2 on top of several scales,
    where the network takes them."""


def predict_images(
    images: Sequence[Path],
    network: Trained,
    out: Path,
    looking: Looking = Looking(),
    device: str = "cpu",
    *,
    advance: Callable[[Path], None] = lambda image: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Prediction]:
    """Label every image and write the results to ``out``.

    Args:
        images: photographs, see ``read_photograph``; no two with the same stem.
        network: what labels them.
        out: folder, made where it does not exist.
        looking: how.
        device: "cpu", "cuda", "cuda:1", ...
        advance: called with each image once it is done or found bad.
        say: called with a line where files are replaced, and about each image that could not be
            labelled.

    Raises:
        UserError: before anything is written, for a device, folder, names or ways of looking that
            cannot be; and when all other images are done, for images that could not be labelled.
    """
    check_names(images, out)
    eyes = _eyes(network, looking, device)
    make_folder(out)
    there = sum(any(file.exists() for file in result_paths(path.stem, out)) for path in images)
    if there:
        say(f"{out}: what was there of {there} of {len(images)} photographs is replaced")
    done: list[Prediction] = []
    bad = 0
    for path in images:
        try:
            photo = read_photograph(path)
            classes = _label(eyes, network, looking, photo, path)
        except UserError as error:
            if len(images) == 1:
                raise
            bad += 1
            say(str(error))
        else:
            done.append(write_prediction(path, Image.fromarray(photo), classes, network.table, out))
        advance(path)
    if bad:
        rest = f" The other {len(done)} are in {out}." if done else ""
        raise UserError(f"{bad} of {len(images)} photographs are not labelled, see above.{rest}")
    return done


def _eyes(network: Trained, looking: Looking, device: str) -> Predictor:
    on = choose_device(device)
    if looking.crf:
        check_installed()
    several = network.category is None and isinstance(network.snapshot.model, DeepLab)
    if looking.multi_scale or (looking.crf and several):
        return network.predictor(on, network.evaluation.multi_scale or MultiScaleConfig())
    return network.predictor(on)


def _label(
    eyes: Predictor, network: Trained, looking: Looking, photo: np.ndarray, path: Path
) -> np.ndarray:
    """The class of every pixel, (H, W) uint8."""
    seen, size = as_seen(photo, looking.size), (photo.shape[0], photo.shape[1])
    category = network.category
    if category is None and not looking.crf:
        return label_photograph(eyes, seen, size, network.answers, path)
    found = photograph_probabilities(eyes, seen, size, category, path)
    crf = network.evaluation.crf or CrfConfig()
    labels = refine(photo, found, crf) if looking.crf else found.argmax(0).astype(np.uint8)
    return labels + eyes.first_class if category is None else labels * category
