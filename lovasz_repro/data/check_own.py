"""Is a folder of one's own fit to train on, and what is in it?

Everything that is wrong is listed file by file; beside it stand the classes with their shares, and
what is odd without being wrong. A contact sheet shows some images with their masks laid over them,
and a legend.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lovasz_repro.data.check import (
    SHOWN,
    Begin,
    CheckReport,
    Fault,
    SplitCount,
    by,
    read_note,
    some,
    unseen,
)
from lovasz_repro.data.images import ImagePair, read_photograph
from lovasz_repro.data.own_files import (
    IMAGES,
    MASKS,
    OWN_SPLITS,
    OWN_VOID,
    OwnClasses,
    OwnFolder,
    in_folders,
    list_file,
    own_command,
    read_classes,
    read_names,
    read_own_mask,
    shown_value,
)
from lovasz_repro.data.own_look import (
    Looked,
    counted,
    counts_of,
    found_classes,
    look_at_all,
    with_palette,
)
from lovasz_repro.data.sampling import class_shares
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import try_writing, write_durably
from lovasz_repro.host.output import plural, visible

UNSPLIT = "all"
"""In the place of a split, of images that nothing has split yet."""


@dataclass(frozen=True)
class ClassReport:
    """What was found of a class."""

    name: str
    value: str
    """What it has in the masks."""
    shares: Mapping[str, float]
    """Split -> share of its pixels, ignored ones counted in the total."""
    images: Mapping[str, int]
    """Split -> images that show it."""


@dataclass(frozen=True)
class OwnReport(CheckReport):
    """What was found of a folder of one's own."""

    classes: tuple[ClassReport, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    """Heights and widths of the photographs, each once."""
    notes: tuple[str, ...] = ()
    """What is odd, and may be meant so."""


def check_own_folder(
    root: Path, begin: Begin = unseen, *, processes: int = 1, sheet: Path | None = None
) -> OwnReport:
    """Read a whole folder once and list everything that is wrong; writes nothing into it.

    Args:
        root: the folder.
        begin: see ``Begin``.
        processes: how many share the images.
        sheet: PNG to write, of some images with their masks laid over them.

    Raises:
        UserError: there are no images and masks, or the classes are not known.
        RunFailed: a process died.
    """
    if sheet:
        check_place(sheet)
    listed = read_classes(root)
    pairs, problems, notes = read_pairs(root)
    every = [pair for of_it in pairs.values() for pair in of_it]
    if not every:
        raise UserError(f"{root}: no photograph with a mask.", *map(str, problems[:SHOWN]))
    known = with_palette(every, listed) if listed else None
    looked = look_at_all(root, pairs, known, begin, processes)
    problems += grouped([fault for one in looked for fault in one.faults])
    problems += duplicates(root, looked)
    classes = known or found_where_sound(root, looked, problems)
    if classes:
        looked = counted(looked, classes)
        notes += [] if listed else [f"no classes.txt; found in the masks: {classes}"]
        notes += what_is_odd(looked, classes, [*pairs])
    if classes and sheet:
        write_sheet(sheet, looked, classes)
    if sheet:
        wrote = f"wrote {sheet}: masks laid over images, and what the colours are"
        notes.append(wrote if classes else f"no {sheet}: masks with faults hide the classes")
    missing, note = not listed or UNSPLIT in pairs, read_note(root)
    return OwnReport(
        root=str(root),
        content=note.content if note else "own",
        size=None,
        splits=tuple(
            SplitCount(split, len(of_it), sum(problem.split == split for problem in problems))
            for split, of_it in pairs.items()
        ),
        problems=tuple(sorted(problems, key=lambda problem: [*pairs].index(problem.split))),
        advice=f"`{own_command('prepare', root)}` writes what is missing." if missing else "",
        classes=report_classes(looked, classes, [*pairs]) if classes else (),
        sizes=tuple(sorted({one.size for one in looked if one.size})),
        notes=tuple(notes),
    )


def grouped(faults: Sequence[Fault]) -> list[Fault]:
    """The same, but what is wrong alike with many files of a folder is said once."""
    alike: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        alike.setdefault((fault.split, fault.file.rpartition("/")[0], fault.what), []).append(fault)
    found = []
    for (split, folder, what), of_it in alike.items():
        if len(of_it) <= SHOWN:
            found += of_it
        else:
            names = some([fault.file.rpartition("/")[2] for fault in of_it])
            found.append(Fault(split, folder, f"{len(of_it):,} files: {what}: {names}"))
    return found


def found_where_sound(
    root: Path, looked: Sequence[Looked], problems: list[Fault]
) -> OwnClasses | None:
    """The classes that masks show; None where faults hide them, which are problems."""
    try:
        return found_classes(looked, root)
    except UserError as error:
        if not any(one.faults for one in looked):
            what = str(error).removeprefix(f"{root}: ").rstrip(".")
            problems.append(Fault(looked[0].split, MASKS, what))
        return None


def read_pairs(root: Path) -> tuple[dict[str, list[ImagePair]], list[Fault], list[str]]:
    """The images of each split that have masks, what is wrong with files and lists, and odd."""
    pairs, problems, notes = dict[str, list[ImagePair]](), list[Fault](), list[str]()
    if in_folders(root):
        for split in OWN_SPLITS:
            if split != "test" or (root / split / MASKS).is_dir():
                folder = OwnFolder.read(root / split)
                pairs[split] = paired(root, split, folder, [*folder.images], problems)
                if not folder.images:
                    problems.append(
                        Fault(
                            split,
                            f"{split}/{IMAGES}",
                            "no photographs; move some of another split here",
                        )
                    )
                notes += unused(folder, folder.images, f"{split}/")
        return pairs, problems, notes
    folder = OwnFolder.read(root)
    lists = [split for split in OWN_SPLITS if list_file(root, split).is_file()]
    if not lists:
        notes.append("no train.txt and val.txt: the images are not split yet")
        pairs[UNSPLIT] = paired(root, UNSPLIT, folder, [*folder.images], problems)
        return pairs, problems, notes + unused(folder, folder.images)
    seen: dict[str, str] = {}
    for split in dict.fromkeys([*OWN_SPLITS[:2], *lists]):
        where = list_file(root, split).name
        try:
            names = read_names(list_file(root, split), folder)
        except UserError as error:
            problems.append(Fault(split, where, str(error).split(": ", 1)[-1].rstrip(".")))
            names = []
        twice = [name for name in names if seen.setdefault(name, split) != split]
        if twice:
            what = f"{some(twice)} in {seen[twice[0]]}.txt too; remove from one"
            problems.append(Fault(split, where, what))
        pairs[split] = paired(root, split, folder, names, problems)
    return pairs, problems, notes + unused(folder, seen)


def paired(
    root: Path, split: str, folder: OwnFolder, names: Sequence[str], problems: list[Fault]
) -> list[ImagePair]:
    """Those of some images that have a mask; what others lack becomes a problem."""
    for where, what, lacking, remedy in folder.lacking(names):
        place = where.relative_to(root).as_posix()
        problems.append(Fault(split, place, f"no {what} of {some(lacking)}; {remedy}"))
    return folder.pairs(names)


def unused(folder: OwnFolder, names: Mapping[str, object], before: str = "") -> list[str]:
    """Images and masks that no split has, as notes."""
    notes = []
    for found, kind in ((folder.images, IMAGES), (folder.masks, MASKS)):
        used = {file for name, file in found.items() if name in names}
        there = sorted((folder.place / kind).glob("[!.]*"))
        others = [file.name for file in there if file not in used]
        if others:
            what = f"{plural(len(others), 'file')} not used"
            notes.append(f"{before}{kind}: {what}: {some(others)}")
    return notes


def duplicates(root: Path, looked: Sequence[Looked]) -> list[Fault]:
    """Photographs whose pixels are those of one in another split."""
    first: dict[str, Looked] = {}
    found = []
    for one in looked:
        other = first.setdefault(one.content, one) if one.content else one
        if other.split != one.split:
            where, there = (o.pair.image.relative_to(root).as_posix() for o in (one, other))
            what = f"the same photograph as {there} of {other.split}; keep one of the two"
            found.append(Fault(one.split, where, what))
    return found


def what_is_odd(looked: Sequence[Looked], classes: OwnClasses, splits: Sequence[str]) -> list[str]:
    """What may be meant so, but should be known before anything is trained."""
    notes = []
    for split in splits:
        of_it = [one for one in looked if one.split == split and one.labels is not None]
        counts = counts_of(of_it)
        alone = [one.pair.name for one, row in zip(of_it, counts, strict=True)
                 if not row[1:OWN_VOID].any()]  # fmt: skip
        if alone:
            notes.append(f"{split}: {len(alone):,} of {len(of_it):,} images show nothing but "
                         f"{classes.names[0]}: {some(alone)}")  # fmt: skip
        shown = (counts > 0).sum(axis=0)
        missing = [name for label, name in enumerate(classes.names) if of_it and not shown[label]]
        if missing:
            notes.append(f"{split}: no image shows {some(missing)}")
        ignored = counts[:, OWN_VOID].sum() / max(1, counts.sum())
        if ignored:
            notes.append(f"{split}: {ignored:.1%} of the pixels are ignored")
        copies = len(of_it) - len({one.content or one.pair.name for one in of_it})
        if copies:
            notes.append(f"{split}: {copies:,} photographs are there twice")
    return notes


def report_classes(
    looked: Sequence[Looked], classes: OwnClasses, splits: Sequence[str]
) -> tuple[ClassReport, ...]:
    """Shares and images of each class in each split."""
    counts = {split: counts_of([one for one in looked if one.split == split]) for split in splits}
    shares = {split: class_shares(c, len(classes.names)) for split, c in counts.items() if c.any()}
    return tuple(
        ClassReport(
            name,
            shown_value(value),
            {split: float(shares[split][label]) for split in shares},
            {split: int((counts[split][:, label] > 0).sum()) for split in splits},
        )
        for label, (name, value) in enumerate(zip(classes.names, classes.values, strict=True))
    )


def size_words(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes in a few words: the one, or from the smallest to the largest."""
    if len(sizes) < 2:
        return by(sizes[0]) if sizes else "none"
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    return f"{len(sizes):,} of them, {by(areas[0])} to {by(areas[-1])}"


# ---- the contact sheet ---------------------------------------------------------------------------

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
        try_writing(file)
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
