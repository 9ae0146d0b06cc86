"""A contact sheet: some images of a folder with their masks laid over them, and a legend."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.own_look import Looked
from lovasz_repro.data.own_masks import OWN_VOID, OwnClasses, read_own_mask
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import unfinished, write_durably
from lovasz_repro.host.output import visible

SHEET_COLUMNS, MOST_SHEET = 5, 20
CELL, LINE, EDGE = 220, 18, 8
"""Side of an image, height of a line and space between, pixels."""
MASK_OPACITY = 0.55
VOID_COLOUR = (255, 255, 255)
LONGEST_LABEL = 34  # characters below an image


def check_place(file: Path) -> None:
    """Raise UserError where a sheet could not be written, before images are read for it."""
    if file.suffix.lower() != ".png" or file.is_dir():
        raise UserError(f"--sheet {file}: the name of a .png file is expected.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(file) as place:
            place.touch()
    except OSError as error:
        raise UserError(f"--sheet {file}: cannot be written ({error.strerror}).") from None


def write_sheet(file: Path, looked: Sequence[Looked], classes: OwnClasses) -> None:
    """Write a PNG of up to ``MOST_SHEET`` images, of which as many as can be show rare classes.

    Raises:
        UserError: the file cannot be written.
    """
    content = io.BytesIO()
    draw_sheet(choose(looked), classes).save(content, "PNG")
    try:
        write_durably(file, content.getbuffer())
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); choose another --sheet."
        ) from None


def draw_sheet(chosen: Sequence[Looked], classes: OwnClasses) -> Image.Image:
    """The images in rows, each over its split and name, and the legend below."""
    drawn = [(one, overlay(one, classes)) for one in chosen]
    rows = [drawn[i : i + SHEET_COLUMNS] for i in range(0, len(drawn), SHEET_COLUMNS)]
    tops = np.cumsum([EDGE, *(max(p.height for _, p in row) + LINE + EDGE for row in rows)])
    legend = legend_lines(classes)
    size = EDGE + SHEET_COLUMNS * (CELL + EDGE), int(tops[-1]) + LINE * len(legend) + EDGE
    sheet = Image.new("RGB", size, (24, 24, 24))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    lefts = [EDGE + column * (CELL + EDGE) for column in range(SHEET_COLUMNS)]
    for row, top in zip(rows, tops.tolist(), strict=False):
        for (one, picture), left in zip(row, lefts, strict=False):
            sheet.paste(picture, (left, top))
            label = visible(f"{one.split}: {one.pair.name}")[:LONGEST_LABEL]
            draw.text((left, top + picture.height + 1), label, "white", font)
    for line, entries in enumerate(legend):
        top = int(tops[-1]) + LINE * line
        for (name, colour), left in zip(entries, lefts, strict=False):
            draw.rectangle((left, top, left + 14, top + 14), colour, "grey")
            draw.text((left + 20, top), name[:LONGEST_LABEL], "white", font)
    return sheet


def choose(looked: Sequence[Looked]) -> list[Looked]:
    """Images that can be read: for each class in turn, the rarest first, the next that shows most
    of it; in the order of the folder."""
    able = [one for one in looked if one.labels is not None and one.size and not one.faults]
    if len(able) <= MOST_SHEET:
        return able
    counts = np.stack([one.labels for one in able if one.labels is not None])
    counts[:, OWN_VOID] = 0
    shown = np.argsort((counts > 0).sum(axis=0), kind="stable")
    turns = [label for label in shown.tolist() if counts[:, label].any()]
    taken: dict[int, None] = {}
    while len(taken) < MOST_SHEET:
        for label in turns:
            order = np.argsort(-counts[:, label], kind="stable").tolist()
            taken[next(index for index in order if index not in taken)] = None
    return [able[index] for index in sorted([*taken][:MOST_SHEET])]


def overlay(one: Looked, classes: OwnClasses) -> Image.Image:
    """A photograph with its mask over it, at most ``CELL`` pixels a side."""
    photograph = Image.fromarray(read_photograph(one.pair.image))
    labels = Image.fromarray(read_own_mask(one.pair.mask, classes))
    scale = CELL / max(photograph.size)
    size = tuple(max(1, round(side * scale)) for side in photograph.size)
    photograph = photograph.resize((size[0], size[1]))
    small = np.asarray(labels.resize((size[0], size[1]), Image.Resampling.NEAREST))
    table = np.full((256, 3), VOID_COLOUR, np.uint8)
    table[: len(classes.names)] = classes.colours
    colours = Image.fromarray(table[small])
    laid = Image.blend(photograph, colours, MASK_OPACITY)
    background = Image.fromarray(np.where(small == 0, 255, 0).astype(np.uint8))
    if classes.has_background:
        laid.paste(photograph, mask=background)
    return laid


def legend_lines(classes: OwnClasses) -> list[list[tuple[str, tuple[int, int, int]]]]:
    """Names with colours, as many a line as images."""
    entries = [*zip(classes.names, classes.colours, strict=True)]
    if classes.ignore:
        entries.append(("ignored", VOID_COLOUR))
    return [entries[i : i + SHEET_COLUMNS] for i in range(0, len(entries), SHEET_COLUMNS)]
