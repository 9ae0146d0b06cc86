"""Runs a trained network on any photograph: `lovasz-repro predict`.

For every image two files of the photograph's own size: `<stem>_labelIds.png`, 8-bit, the
official label ids for a Cityscapes network and the class index for any other, and
`<stem>_overlay.png`, the photograph under the data set's colours.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lovasz_repro.data.classes import ClassTable, class_table, colourise
from lovasz_repro.data.images import read_photograph, resize_image
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predictor import Feeding, Predictor
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.files import write_durably
from lovasz_repro.models.enet import ENET_STRIDE, to_unit_range
from lovasz_repro.models.snapshot import load_weights

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


def predict_images(
    images: Sequence[Path],
    weights: Path,
    out: Path,
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    progress: Callable[[Path], None] | None = None,
) -> list[Prediction]:
    """Label every image with the network in `weights` and write the results to `out`.

    Arguments:
        images: photographs, see `read_photograph`; no two with the same stem.
        weights: see `load_weights`.
        out: folder, made where it does not exist.
        size: (height, width) at which the network sees the images, see `parse_size`. Images of
            another size are resampled to it and the scores back, both bilinearly. None: each
            image's own size; where that is no multiple of 8 its last row and column are
            repeated up to the next one and the scores cropped, so nothing is resampled.
        device: "cpu", "cuda", "cuda:1", ...
        progress: called with each image once it is done or found bad.

    Raises UserError, before anything is written, for weights, device, folder or names
    that cannot be used; and at the end, when all other images are done, for images that
    could not be read.
    """
    check_names(images, out)
    loaded = load_weights(weights)
    table = class_table(loaded.dataset, loaded.class_names, loaded.num_classes)
    answers = [index for index, there in enumerate(table.predictable) if there]
    on = choose_device(device)
    predictor = Predictor(
        loaded.build().to(on), Feeding(prepare=on_the_stride), on, channels_last=True
    )
    make_folder(out)
    done: list[Prediction] = []
    bad: list[str] = []
    for path in images:
        try:
            photo = read_photograph(path)
            own = (photo.shape[0], photo.shape[1])
            classes = label_photograph(predictor, as_seen(photo, size), own, answers, path)
        except UserError as error:
            bad.append(str(error).rstrip("."))
        else:
            done.append(write_prediction(path, Image.fromarray(photo), classes, table, out))
        if progress is not None:
            progress(path)
    if bad:
        rest = f" The other {len(done)} are in {out}." if done else ""
        raise UserError(f"{'; '.join(bad)}.{rest}")
    return done


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
        predictor: of a network whose logits have the size of what it sees, or a little more.
        seen: (1, 3, h, w).
        size: (H, W) of what comes out.
        answers: outputs, the first of which is ``predictor.first_class`` where that upsamples
            predictions.
        path: of the photograph.

    Returns (H, W) uint8.

    Raises UserError, which names `path`, where the image is too large for the device's memory.
    """
    try:
        if predictor.upsample == "predictions":
            return predictor.classes(seen, size)[0].to(torch.uint8).cpu().numpy()
        logits = predictor.logits(seen)[..., : seen.shape[2], : seen.shape[3]]
        return best_class(logits, answers, size).cpu().numpy()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(f"{path}: is too large for the memory of {predictor.device}; give a "
                        "smaller --size or another --device") from error  # fmt: skip


def on_the_stride(images: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """RGB (B, 3, h, w) in [0, 1], its last row and column repeated up to multiples of 8."""
    inputs = to_unit_range(images, channels_last, dtype)
    right, bottom = -images.shape[3] % ENET_STRIDE, -images.shape[2] % ENET_STRIDE
    if not right and not bottom:
        return inputs
    return functional.pad(inputs, (0, right, 0, bottom), mode="replicate")


def best_class(logits: Tensor, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The class with the highest score at every pixel of a picture of `size`.

    Arguments:
        logits: (1, C, h, w), resampled bilinearly where (h, w) is not `size`, one class after
            another, so that a large photograph needs memory for three planes, not for C.
        classes: the outputs among which to choose; the first of equals wins.
        size: (H, W).

    Returns (H, W) uint8.
    """
    best = torch.full(size, -torch.inf, device=logits.device)
    answer = torch.full(size, classes[0], dtype=torch.uint8, device=logits.device)
    for index in classes:
        plane = logits[:, index : index + 1]
        if plane.shape[2:] != size:
            plane = functional.interpolate(plane, size, mode="bilinear", align_corners=False)
        scores = plane[0, 0]
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
