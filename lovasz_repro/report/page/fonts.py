"""The figures' typeface for the whole page: of STIX, which matplotlib brings, the characters that
the page has. Text in figures is text, and its places were computed for these letters."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
