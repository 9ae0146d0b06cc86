"""What is sent to the Cityscapes test server: predictions that are checked, in one zip file.

The server accepts few submissions, so everything it could refuse is looked for before.
"""

import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lovasz_repro.data.cityscapes import CLASSES, TO_LABEL_ID, Frame
from lovasz_repro.data.images import GREY, opened, photograph_size, png_form
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import rename_durably, unfinished

SUBMIT_AT = "https://www.cityscapes-dataset.com/submit"
SCORED = np.zeros(256, dtype=bool)
"""Whether a pixel value is a label id that is scored."""
SCORED[TO_LABEL_ID[1:]] = True
SHOWN = 3  # problems, or ids, that a line names
READERS = 4  # threads
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def check_predictions(
    files: Sequence[Path],
    frames: Sequence[Frame],
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Make sure that there is one good prediction for every photograph, and nothing else.

    Args:
        files: the predictions, in any order.
        frames: the photographs of the split.
        advance: called with the number of predictions looked at.

    Raises:
        UserError: the first problems, and how many there are.
    """
    problems = find_problems(files, frames, advance)
    if problems:
        rest = len(problems) - SHOWN
        more = f" (and {rest} more)" if rest > 0 else ""
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"no submission: {count}: {'; '.join(problems[:SHOWN])}{more}.")


def find_problems(
    files: Sequence[Path],
    frames: Sequence[Frame],
    advance: Callable[[int], None] = lambda images: None,
) -> list[str]:
    """Everything that is wrong with predictions, see ``check_predictions``; one line each."""
    counts = Counter(file.name for file in files)
    problems = [f"{name} is there {count} times" for name, count in counts.items() if count > 1]
    by_name: dict[str, dict[str, Path]] = {frame.name: {} for frame in frames}
    for file in files:
        name = _frame_name(file, by_name)
        if name is None:
            problems.append(f"{file.name} is of no photograph of this split")
        else:
            by_name[name].setdefault(file.name, file)
    for name, found in by_name.items():
        if not found:
            problems.append(f"no prediction for {name}")
        elif len(found) > 1:
            problems.append(f"several predictions for {name}: {', '.join(found)}")
    pairs = [(file, frame) for frame in frames for file in by_name[frame.name].values()]
    # The reader sets warning filters, which threads do not put back in order
    with warnings.catch_warnings(), ThreadPoolExecutor(READERS) as pool:
        for problem in pool.map(lambda pair: _problem(*pair), pairs):
            advance(1)
            problems += problem
    return problems


def write_submission(files: Sequence[Path], out_zip: Path) -> None:
    """Write a flat zip of ``files``: the same predictions give the same bytes.

    PNG files are compressed already, so they are stored as they are.

    Raises:
        UserError: a file cannot be read or the zip not written; then it is not there.
    """
    try:
        out_zip.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(out_zip) as place:
            with open(place, "wb") as opened:
                with zipfile.ZipFile(opened, "w", zipfile.ZIP_STORED) as archive:
                    for file in sorted(files, key=lambda file: file.name):
                        entry = zipfile.ZipInfo(file.name, EPOCH)
                        entry.create_system, entry.external_attr = 3, 0o100644 << 16  # anywhere
                        archive.writestr(entry, file.read_bytes())
                opened.flush()
                os.fsync(opened.fileno())
            rename_durably(place, out_zip)
    except OSError as error:
        raise UserError(f"cannot write {out_zip}: {error.strerror or error}") from error


def next_steps(out_zip: Path, run: str = "RUN") -> str:
    """What to do with a submission, one step a line."""
    return (
        f"1. Register at {SUBMIT_AT} and upload {out_zip}\n"
        "   to the pixel-level semantic labeling task.\n"
        "2. Write the four scores that the server shows into a file and keep them with the run:\n"
        f"   lovasz-repro runs record {run} --server-scores FILE"
    )


def _frame_name(file: Path, names: Container[str]) -> str | None:
    """The photograph ``<name>`` that a prediction ``<name>_*.png`` is of."""
    parts = file.stem.split("_") if file.suffix == ".png" else []
    starts = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((start for start in starts if start in names), None)


def _problem(file: Path, frame: Frame) -> list[str]:
    """What is wrong with one prediction: one line or none."""
    try:
        with opened(file, ["PNG"]) as image:
            form, ids = png_form(image), np.asarray(image)
        height, width = photograph_size(frame.image)
    except UserError as error:
        return [str(error).rstrip(".")]
    if form != (8, GREY):  # the server would take a palette's indices for ids
        return [f"{file.name} is not of one 8-bit label id per pixel"]
    if ids.shape != (height, width):
        return [f"{file.name} is {ids.shape[0]}x{ids.shape[1]}, its photograph {height}x{width}"]
    if SCORED[ids].all():
        return []
    wrong = [str(value) for value in np.unique(ids[~SCORED[ids]])]
    shown = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
    return [f"{file.name} holds {shown}, no label id of the {len(CLASSES) - 1} scored classes"]
