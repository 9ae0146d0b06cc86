"""A figure as SVG inside a page: text as text, names of its own, colours and type of the page."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from lovasz_repro.report.model import Drawing
from lovasz_repro.report.style import RC

SVG_RC = RC | {"svg.fonttype": "none"}
NAMESPACE = re.compile(r"^\{[^}]*\}")
REFERENCE = re.compile(r"(?<=url\(#)[^)]+|(?<=^#).+")
THEMED = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#666666": "var(--quiet)",
    "#dddddd": "var(--hairline)",
}
"""Colours of the paper -> those of the page, which turn over where it is dark."""
LARGEST_ENLARGEMENT = 1.35
"""Times its printed size: as wide as a figure gets on a screen."""


def inline_svg(drawing: Drawing, name: str, alternative: str) -> Markup:
    """The figure, for a page that has others too.

    Args:
        drawing: what to show.
        name: stands before every id in it.
        alternative: what it shows, in words.
    """
    root = ElementTree.fromstring(_saved(drawing, name))
    _tidy(root)
    _rename(root, name)
    width = 96 * LARGEST_ENLARGEMENT * drawing.figure.get_figwidth()
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": alternative,
                   "style": f"width: {width:.0f}px"}  # fmt: skip
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _saved(drawing: Drawing, name: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context(SVG_RC | {"svg.hashsalt": name}):
        drawing.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()


def _tidy(root: ElementTree.Element) -> None:
    """Take out what is said of a file, and its style sheet, which would rule the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if NAMESPACE.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = NAMESPACE.sub("", element.tag)
        element.attrib = {NAMESPACE.sub("", k): v for k, v in element.attrib.items()}
        if style := element.get("style"):
            for colour, themed in THEMED.items():
                style = style.replace(colour, themed)
            element.set("style", style)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids that are referred to begin with the figure's name; others are of no use."""
    everywhere = [value for element in root.iter() for value in element.attrib.values()]
    used = {match for value in everywhere for match in REFERENCE.findall(value)}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            renamed = f"{name}-{value}" if key == "id" else REFERENCE.sub(rf"{name}-\g<0>", value)
            element.set(key, renamed)


# ---- The typeface --------------------------------------------------------------------------------
#
# The figures', for the whole page: of STIX, which matplotlib brings, the characters that the page
# has. Text in figures is text, and its places were computed for these letters.

FACES = {
    "STIXGeneral": ("normal", 400),
    "STIXGeneralItalic": ("italic", 400),
    "STIXGeneralBol": ("normal", 700),
}
"""File of matplotlib's -> style and weight."""
ALWAYS = "".join(map(chr, range(0x20, 0x7F))) + "–—−±×·…●○◐✓▴▾"
"""What scripts may write."""


class FontFace(NamedTuple):
    """A face, as the style sheet takes it."""

    style: str
    weight: int
    data: str
    """The WOFF file, base64."""


def faces(text: str) -> Iterator[FontFace]:
    """Every face, with the characters of a text."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for name, (style, weight) in FACES.items():
        data = _subset(folder / f"{name}.ttf", text + ALWAYS)
        yield FontFace(style, weight, base64.b64encode(data).decode())


def _subset(path: Path, text: str) -> bytes:
    from fontTools import subset

    options = subset.Options(flavor="woff", name_IDs=["*"], recalc_timestamp=False)
    options.drop_tables += ["FFTM"]  # when the font was edited
    with subset.load_font(path, options) as font:
        chosen = subset.Subsetter(options)
        chosen.populate(text=text)
        chosen.subset(font)
        out = io.BytesIO()
        subset.save_font(font, out, options)
    return out.getvalue()
