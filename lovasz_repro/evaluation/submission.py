"""What is sent to the test servers: label files, checked, in one archive.

    Cityscapes   a flat zip of aachen_000000_000019_labelIds.png: 8-bit grey, official label ids
    Pascal VOC   a tar.gz of results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png: indices
                 into VOC's palette, class ids 0-20; void (255) is no answer

One file for each photograph of the test set, of its size, and nothing else. The servers take few
submissions and do not always say what they could not read, so everything is looked for before.
"""

import gzip
import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.cityscapes import TO_LABEL_ID
from lovasz_repro.data.classes import VOC, voc_colour
from lovasz_repro.data.images import (
    GREYSCALE,
    INDEXED,
    ImagePair,
    opened,
    photograph_size,
    png_form,
)
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.photographs import make_folder, write_file, write_picture
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.evaluation.regimes import chunks_of, labels_of
from lovasz_repro.host.output import plural
from lovasz_repro.host.processes import mapped

VOC_FOLDER = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")
"""Where VOC's server looks; comp6 is the competition in which any data may be trained on."""
PALETTE = bytes(channel for index in range(256) for channel in voc_colour(index))
SHOWN_PROBLEMS = 3  # problems, or ids, that a line names
FILE_READERS = 4  # threads
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


@dataclass(frozen=True)
class Server:
    """What a test server takes, and how it is given."""

    ending: str
    """Of an archive."""
    colour_type: int
    """Of an 8-bit PNG; a server would take the indices of another palette for ids."""
    pixel: str
    """What a pixel is."""
    ids: frozenset[int]
    """Values that a pixel may have."""
    described: str
    most_bytes: int
    """Of a label file; without compression it takes a quarter."""
    steps: str
    """What to do with an archive; of a run whose scores are to be kept with it."""


CITYSCAPES_SERVER = Server(
    ".zip",
    GREYSCALE,
    "label id",
    frozenset(TO_LABEL_ID[1:].tolist()),
    f"label id of the {len(TO_LABEL_ID) - 1} scored classes",
    8 << 20,
    "1. Register at https://www.cityscapes-dataset.com/submit and upload {archive}\n"
    "   to the pixel-level semantic labeling task.\n"
    "2. Write the four scores that the server shows into a file, class_iou: 63.1, class_iiou,\n"
    "   category_iou and category_iiou in YAML, and keep them with the run:\n"
    "   lovasz-repro runs record {run} --server-scores FILE",
)
VOC_SERVER = Server(
    ".tar.gz",
    INDEXED,
    "palette index",
    frozenset(range(len(VOC))),
    f"class id 0-{len(VOC) - 1}",
    1 << 20,
    "1. Register at http://host.robots.ox.ac.uk:8080/ and sign in.\n"
    "2. Upload {archive} to VOC2012, segmentation, competition comp6, and fill in every\n"
    "   field of the form.\n"
    "3. The server shows the IoU of the 20 objects and the mean over 21 classes, the\n"
    "   background with them: the dataset-mIoU of Tables 2 and 3.\n"
    "4. Write them to a YAML file, mean: 79.00 and classes: {{aeroplane: 92.63, ...}}, and run\n"
    "   lovasz-repro runs record {run} --server-scores FILE\n"
    "The server takes few submissions; choose settings on the validation set.",
)


# -- label files of VOC's test photographs ------------------------------------------------------


def write_predictions(
    predictor: MultiScale,
    images: Sequence[ImagePair],
    folder: Path,
    crf: CrfConfig | None,
    out: Path,
    *,
    processes: int = 1,
    predicted: Callable[[int], None] = lambda images: None,
    refined: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Predict photographs, refine them where parameters are given, and write all label files anew.

    Args:
        predictor: what predicts.
        images: the photographs; masks are not read.
        folder: see ``open_folder``; what is there is not computed again.
        crf: parameters of the CRF; None: without it.
        out: see ``write_prediction``.
        processes: that write and refine.
        predicted, refined: called with a number of photographs.

    Returns:
        The label file of each photograph.

    Raises:
        UserError: a photograph cannot be read, a label file not be written, or the CRF is not
            installed.
        RunFailed: the disk refuses, or a process died.
    """
    written = []
    with mapped(processes, "wrote and refined predictions") as map_:
        for chunk in chunks_of(len(images), processes):
            some = images[chunk]
            labels = labels_of(predictor, some, folder, crf, map_, predicted, refined)
            of_regime = labels["crf" if crf else "multi_scale"]
            for image, classes in zip(some, of_regime, strict=True):
                written.append(write_prediction(out, image.name, classes))
    return written


def write_prediction(out: Path, name: str, classes: np.ndarray) -> Path:
    """Write the label file of one photograph, whole or not at all; returns it.

    Args:
        out: folder, under which is ``VOC_FOLDER``; made where it does not exist.
        name: of the photograph, like ``2008_000006``.
        classes: (H, W), integers in 0..20; H and W are the photograph's.

    Raises:
        ValueError: another shape, or a value that is no class id.
        UserError: it cannot be written.
    """
    if classes.ndim != 2 or classes.size == 0:
        raise ValueError(f"classes must be of shape (H, W), got {classes.shape}")
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= len(VOC):
        raise ValueError(f"{name}: classes must be integers in 0..{len(VOC) - 1}")
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(PALETTE)
    make_folder(out / VOC_FOLDER)
    file = out / VOC_FOLDER / f"{name}.png"
    write_picture(file, picture)
    return file


# -- what a server would refuse -----------------------------------------------------------------


def check_predictions(
    server: Server,
    files: Sequence[Path],
    photographs: Sequence[Path],
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Make sure that there is a good label file for every photograph.

    Args:
        server: that is to take them.
        files: the label files.
        photographs: that they are of, in the same order.
        advance: called with 1 after each.

    Raises:
        UserError: the first problems, and how many there are.
    """
    # The reader sets warning filters, which threads do not put back in order
    problems = []
    with warnings.catch_warnings(), ThreadPoolExecutor(FILE_READERS) as pool:
        for problem in pool.map(lambda *pair: _problem(server, *pair), files, photographs):
            advance(1)
            problems += [problem] if problem else []
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        more = f" (and {rest} more)" if rest > 0 else ""
        total = plural(len(problems), "problem")
        raise UserError(f"no submission: {total}: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}.")


def _problem(server: Server, file: Path, photograph: Path) -> str | None:
    """What is wrong with one label file; of another size than the photograph, it is not decoded."""
    if not file.exists():
        return f"no prediction {file.name}"
    if not file.is_file():
        return f"{file.name} is no file"
    if file.stat().st_size > server.most_bytes:
        return f"{file.name} has more than {server.most_bytes:,} bytes"
    try:
        height, width = photograph_size(photograph)
        with opened(file, ["PNG"]) as picture:
            if png_form(picture) != (8, server.colour_type):
                return f"{file.name} is not of one 8-bit {server.pixel} per pixel"
            if picture.size != (width, height):
                own = f"{picture.height}x{picture.width}"
                return f"{file.name} is {own}, its photograph {height}x{width}"
            ids, palette = np.unique(np.asarray(picture)).tolist(), picture.getpalette() or []
    except UserError as error:
        return str(error).rstrip(".")
    wrong = [str(value) for value in ids if value not in server.ids]
    if wrong:
        shown = ", ".join(wrong[:SHOWN_PROBLEMS]) + (", ..." if len(wrong) > SHOWN_PROBLEMS else "")
        return f"{file.name} holds {shown}, no {server.described}"
    colours = 3 * len(VOC)
    if server.colour_type == INDEXED and bytes(palette[:colours]) != PALETTE[:colours]:
        return f"{file.name} has another palette than VOC's"
    return None


# -- archives -----------------------------------------------------------------------------------


def write_zip(files: Sequence[Path], archive: Path) -> None:
    """Pack files flat into a zip: the same predictions give the same bytes.

    PNG files are compressed already, so they are stored as they are.

    Raises:
        UserError: a file cannot be read or the archive not written; then it is not there.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as packed:
        for name, pixels in _read_all(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # the same anywhere
            packed.writestr(entry, pixels)
    make_folder(archive.parent)
    write_file(archive, content.getvalue())


def write_tar(files: Sequence[Path], archive: Path) -> None:
    """Pack files into a tar.gz, below ``VOC_FOLDER``; else as ``write_zip``."""
    content = io.BytesIO()  # label files are small: all 1,456 take some megabytes
    with (
        gzip.GzipFile("", "wb", fileobj=content, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, pixels in _read_all(files):
            entry = tarfile.TarInfo((VOC_FOLDER / name).as_posix())  # of nobody, at time 0
            entry.size = len(pixels)
            tar.addfile(entry, io.BytesIO(pixels))
    make_folder(archive.parent)
    write_file(archive, content.getvalue())


def _read_all(files: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Names and contents, sorted by name."""
    try:
        return [(file.name, file.read_bytes()) for file in sorted(files, key=lambda f: f.name)]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror or error}.") from error
