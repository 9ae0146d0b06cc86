"""What is sent to the Pascal VOC test server: label files, checked, in one tar.gz (Sec. 4.3).

    results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png

One 8-bit PNG for each of the 1,456 test photographs, of its size. A pixel is a class id 0-20, an
index into VOC's palette; void (255) is no answer. The server does not say what it could not read,
so everything is looked for before.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data.classes import VOC, voc_colour
from lovasz_repro.data.images import INDEXED, opened, photograph_size, png_form
from lovasz_repro.data.voc import SPLIT_SIZES, VocImage
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predict import make_folder
from lovasz_repro.host.files import write_durably

SUBMIT_AT = "http://host.robots.ox.ac.uk:8080/"
RESULTS = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")
"""Where the server looks; comp6 is the competition in which any data may be trained on."""
PALETTE = bytes(channel for index in range(256) for channel in voc_colour(index))
CLASSES = len(VOC)
MOST_BYTES = 1 << 20
"""Of a label file; 500x500 pixels without compression take a quarter."""
SHOWN = 3  # problems, or ids, that a line names


def write_prediction(out: Path, name: str, classes: np.ndarray) -> Path:
    """Write the label file of one photograph, whole or not at all.

    Args:
        out: folder, under which is ``RESULTS``; made where it does not exist.
        name: of the photograph, like ``2008_000006``.
        classes: (H, W), integers in 0..20; H and W are the photograph's.

    Returns:
        The file.

    Raises:
        ValueError: another shape, or a value that is no class id.
        UserError: it cannot be written.
    """
    if classes.ndim != 2 or classes.size == 0:
        raise ValueError(f"classes must be of shape (H, W), got {classes.shape}")
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= CLASSES:
        raise ValueError(f"{name}: classes must be integers in 0..{CLASSES - 1}")
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(PALETTE)
    content = io.BytesIO()
    picture.save(content, "PNG")
    file = prediction_file(out, name)
    make_folder(file.parent)
    _write(file, content.getvalue())
    return file


def prediction_file(out: Path, name: str) -> Path:
    """Where the label file of a photograph is, there or not."""
    return out / RESULTS / f"{name}.png"


def check_predictions(
    out: Path,
    images: Sequence[VocImage],
    *,
    count: int = SPLIT_SIZES["test"],
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Make sure that there is one good label file for every test photograph, and nothing else.

    Args:
        out: folder, under which is ``RESULTS``.
        images: the test set (``list_images(root, "test")``, from its test.txt).
        count: how many images the test set has.
        advance: called with 1 after each image.

    Raises:
        UserError: the first problems, and how many there are.
    """
    problems = find_problems(out, images, count=count, advance=advance)
    if problems:
        rest = len(problems) - SHOWN
        more = f" (and {rest} more)" if rest > 0 else ""
        total = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"no submission: {total}: {'; '.join(problems[:SHOWN])}{more}.")


def find_problems(
    out: Path,
    images: Sequence[VocImage],
    *,
    count: int = SPLIT_SIZES["test"],
    advance: Callable[[int], None] = lambda images: None,
) -> list[str]:
    """Everything that is wrong with label files, see ``check_predictions``; one line each."""
    folder = out / RESULTS
    problems = []
    if len(images) != count:
        problems.append(f"test.txt names {len(images):,} images, the test set has {count:,}")
    try:
        found = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    except OSError as error:
        return [*problems, f"{folder}: {error.strerror or error}"]
    wanted = {prediction_file(out, image.name).name for image in images}
    problems += [f"{name} is of no test photograph" for name in sorted(found - wanted)]
    for image in images:
        file = prediction_file(out, image.name)
        if file.name not in found:
            problems.append(f"no prediction for {image.name}")
        elif problem := _problem(file, image):
            problems.append(problem)
        advance(1)
    return problems


def write_submission(out: Path, images: Sequence[VocImage], archive: Path) -> None:
    """Pack the label files of ``images``: the same files give the same bytes.

    Args:
        out: folder, under which is ``RESULTS``; checked before (``check_predictions``).
        images: the test set, in any order.
        archive: the tar.gz, there whole or not at all; its folder is made.

    Raises:
        UserError: a label file cannot be read or the archive not written.
    """
    content = io.BytesIO()  # label files are small: all 1,456 take some megabytes
    with (
        gzip.GzipFile("", "wb", fileobj=content, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in sorted(image.name for image in images):
            file = prediction_file(out, name)
            try:
                pixels = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: {error.strerror or error}.") from error
            entry = tarfile.TarInfo((RESULTS / file.name).as_posix())  # of nobody, at time 0
            entry.size = len(pixels)
            tar.addfile(entry, io.BytesIO(pixels))
    make_folder(archive.parent)
    _write(archive, content.getvalue())


def how_to_submit(archive: Path, run: str = "RUN") -> str:
    """What to do with a submission, one step a line; ``run``: id of the run that it is of."""
    return (
        f"1. Register at {SUBMIT_AT} and sign in.\n"
        f"2. Upload {archive} to VOC2012, segmentation, competition comp6, and fill in every\n"
        "   field of the form.\n"
        "3. The server shows the IoU of the 20 objects and the mean over 21 classes, the\n"
        "   background with them: the dataset-mIoU of Tables 2 and 3.\n"
        "4. Write them to a text file, a name and its number a line (mean 79.00), and run\n"
        f"   lovasz-repro runs record {run} --server-scores FILE\n"
        "The server takes few submissions; choose settings on the validation set."
    )


def _problem(file: Path, image: VocImage) -> str | None:
    """What is wrong with one label file; of another size than the photograph, it is not decoded."""
    if not file.is_file():
        return f"{file.name} is no file"
    if file.stat().st_size > MOST_BYTES:
        return f"{file.name} has more than {MOST_BYTES:,} bytes"
    try:
        height, width = photograph_size(image.image)
        with opened(file, ["PNG"]) as picture:
            if png_form(picture) != (8, INDEXED):
                return f"{file.name} is not of one 8-bit palette index per pixel"
            if picture.size != (width, height):
                own = f"{picture.height}x{picture.width}"
                return f"{file.name} is {own}, its photograph {height}x{width}"
            ids, palette = np.asarray(picture), bytes(picture.getpalette() or ())
    except UserError as error:
        return str(error).rstrip(".")
    if ids.max() >= CLASSES:
        wrong = [str(value) for value in np.unique(ids[ids >= CLASSES])]
        shown = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
        return f"{file.name} holds {shown}, no class id 0-{CLASSES - 1}"
    if palette[: 3 * CLASSES] != PALETTE[: 3 * CLASSES]:
        return f"{file.name} has another palette than VOC's"
    return None


def _write(file: Path, content: bytes) -> None:
    try:
        write_durably(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
