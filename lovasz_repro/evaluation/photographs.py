"""Any photograph as a trained network labels it, for ``predict`` (``run/predict.py``).

For every image two files of the photograph's own size: `<stem>_labelIds.png`, 8-bit, the
official label ids for a Cityscapes network and the class index for any other, and
`<stem>_overlay.png`, the photograph under the data set's colours.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lovasz_repro.data.classes import ClassTable, colourise
from lovasz_repro.data.images import resize_image
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predictor import AtSize, Predictor, at_size
from lovasz_repro.host.files import write_durably
from lovasz_repro.models.enet import ENET_STRIDE

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""How files in a folder end that are photographs."""
OPACITY = 0.55  # of the class colours over the photograph
LONGEST_FILE_NAME = 255  # bytes, on nearly every file system


@dataclass(frozen=True)
class Prediction:
    """What was written for one image."""

    image: Path
    label_ids: Path
    overlay: Path
    size: tuple[int, int]
    """Height and width of both, those of the upright photograph."""


def photographs_in(paths: Sequence[Path]) -> list[Path]:
    """These files, and those in these folders; raises UserError for a folder without any."""
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(
                file for file in path.iterdir()
                if file.suffix.lower() in PHOTOGRAPHS and file.name[0] != "." and file.is_file()
            )  # fmt: skip
        if not inside:
            raise UserError(f"{path}: no photographs in this folder ({', '.join(PHOTOGRAPHS)})")
        found += inside
    return found


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" as (height, width) = (512, 1024); raises UserError unless multiples of 8."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and height.isascii() and width.isascii()):
        raise UserError(f"size {text!r}: give HEIGHTxWIDTH, for example 512x1024")
    size = int(height), int(width)
    if any(side < ENET_STRIDE or side % ENET_STRIDE for side in size):
        nearest = [(side + ENET_STRIDE // 2) // ENET_STRIDE * ENET_STRIDE for side in size]
        fitting = [max(ENET_STRIDE, side) for side in nearest]
        raise UserError(
            f"size {size[0]}x{size[1]}: height and width must be multiples of {ENET_STRIDE}, "
            f"for example {'x'.join(map(str, fitting))}"
        )
    return size


def check_names(images: Sequence[Path], out: Path) -> None:
    """Raise UserError for names with which results would be lost."""
    if not images:
        raise UserError("no image given")
    by_stem: dict[str, Path] = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"images {other} and {path} would both be written as {path.stem}_labelIds.png: "
                "rename one or use two output folders"
            )
    inputs = {path.resolve() for path in images}
    for stem, path in by_stem.items():
        for result in result_paths(stem, out):
            if len(os.fsencode(result.name)) > LONGEST_FILE_NAME:
                raise UserError(f"{path}: its name is too long for one of a result, which may have "
                                f"{LONGEST_FILE_NAME} bytes: rename it")  # fmt: skip
            if result.resolve() in inputs:
                raise UserError(f"result {result} would overwrite an input: choose another --out")


def result_paths(stem: str, out: Path) -> tuple[Path, Path]:
    """The label file and the overlay of an image."""
    return out / f"{stem}_labelIds.png", out / f"{stem}_overlay.png"


def make_folder(out: Path) -> None:
    """Make the folder and its parents; raises UserError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {out}: {error.strerror or error}") from error


def write_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises UserError where that cannot be."""
    try:
        write_durably(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error


def write_picture(file: Path, picture: Image.Image) -> None:
    """Write a PNG as ``write_file`` does."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_file(file, content.getvalue())


def as_seen(photo: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    """A photograph (H, W, 3) as the network sees it: RGB (1, 3, h, w) uint8."""
    seen = photo if size is None else resize_image(photo, size)
    return torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]


@torch.inference_mode()
def label_photograph(
    predictor: Predictor, seen: Tensor, size: tuple[int, int], answers: Sequence[int], path: Path
) -> np.ndarray:
    """Best of ``answers``, outputs of the network, for every pixel.

    Arguments:
        predictor: of the network.
        seen: (1, 3, h, w).
        size: (H, W) of what comes out.
        answers: outputs, the first of which is ``predictor.first_class`` where that upsamples
            predictions.
        path: of the photograph.

    Returns (H, W) uint8.

    Raises UserError, which names `path`, where the image is too large for the device's memory.
    """
    with fitting(path, predictor):
        if predictor.upsample == "predictions":
            return predictor.classes(seen, size)[0].to(torch.uint8).cpu().numpy()
        to_size = by_way_of(predictor, seen)
        return best_class(predictor.logits(seen), answers, size, to_size).cpu().numpy()


@torch.inference_mode()
def photograph_probabilities(
    predictor: Predictor, seen: Tensor, size: tuple[int, int], category: int | None, path: Path
) -> np.ndarray:
    """Probabilities (C, H, W), float32, of the outputs from ``predictor.first_class`` on.

    Arguments: as of `label_photograph`; with a ``category`` its output alone counts, and the two
    probabilities are those of the rest and of it.
    """
    with fitting(path, predictor):
        if category is None:
            found = at_size(predictor.probabilities(seen, seen.shape[2:]), size)[0]
        else:
            score = by_way_of(predictor, seen)(predictor.logits(seen)[:, [category]], size)[0, 0]
            found = torch.stack([(-score).sigmoid(), score.sigmoid()])
        return found.float().cpu().numpy()


@contextmanager
def fitting(path: Path, predictor: Predictor) -> Iterator[None]:
    """Raise UserError, which names the photograph, where the memory does not suffice for it."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(f"{path}: is too large for the memory of {predictor.device}; give a "
                        "smaller --size or another --device") from error  # fmt: skip


def by_way_of(predictor: Predictor, seen: Tensor) -> AtSize:
    """Brings logits to the size of what the network saw, and from there to another one."""
    return lambda logits, size: at_size(predictor.kind.to_size(logits, seen.shape[2:]), size)


def best_class(
    logits: Tensor, classes: Sequence[int], size: tuple[int, int], to_size: AtSize = at_size
) -> Tensor:
    """The class with the highest score at every pixel of a picture of `size`.

    Arguments:
        logits: (1, C, h, w), brought to `size` one class after another, so that a large photograph
            needs memory for three planes, not for C.
        classes: the outputs among which to choose; the first of equals wins.
        size: (H, W).
        to_size: how.

    Returns (H, W) uint8.
    """
    best = torch.full(size, -torch.inf, device=logits.device)
    answer = torch.full(size, classes[0], dtype=torch.uint8, device=logits.device)
    for index in classes:
        scores = to_size(logits[:, index : index + 1], size)[0, 0]
        answer[scores > best] = index
        torch.maximum(best, scores, out=best)
    return answer


def write_prediction(
    image: Path, photo: Image.Image, classes: np.ndarray, table: ClassTable, out: Path
) -> Prediction:
    """Write the two files of one image; raises UserError where they cannot be written."""
    label_ids = np.asarray(table.label_ids, np.uint8)[classes]
    colours = Image.fromarray(colourise(classes, table))
    pictures = (Image.fromarray(label_ids), Image.blend(photo, colours, OPACITY))
    paths = result_paths(image.stem, out)
    for path, picture in zip(paths, pictures, strict=True):
        write_picture(path, picture)
    return Prediction(image, *paths, size=(photo.height, photo.width))
