"""The page as a file: content into the templates, which escape every word of it."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lovasz_repro.host.output import visible, write_files
from lovasz_repro.report.claims import SetEvidence
from lovasz_repro.report.claims_render import asked_text, counted, effect_size
from lovasz_repro.report.layout import layout
from lovasz_repro.report.page.content import (
    VERDICTS_AT,
    PageContent,
    page_content,
    scale_of,
    slug,
)
from lovasz_repro.report.page.svg import faces
from lovasz_repro.report.runs import SCALES, Provenance, RunStore
from lovasz_repro.report.words import sentence

INDEX = re.compile(r"\b([A-Za-z])_([a-z])\b")
PAGE_NAME = "index.html"
MOST_ROWS = 26
"""Of a table that is shown at once; a longer one opens."""


def write_page(store: RunStore, out: Path, told: Callable[[str], None] = lambda name: None) -> Path:
    """Write ``<out>/index.html``, or ``out`` itself if it ends so: one file, which loads nothing.

    Args:
        store: where to read.
        out: folder, made if it is not there, or a name that ends in .html.
        told: as in `page_content`.

    Raises:
        UserError: the folder refuses, or a file of ``experiments/`` is not as it should be.
    """
    folder, name = (out.parent, out.name) if out.suffix == ".html" else (out, PAGE_NAME)
    write_files(folder, {})  # a folder that refuses is told before all the work
    (path,) = write_files(folder, {name: render_page(page_content(store, told))})
    return path


def render_page(content: PageContent) -> str:
    """The page; the same runs give the same bytes."""
    environment = Environment(
        loader=PackageLoader("lovasz_repro.report.page", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs: dict[Provenance, int] = {}  # numbered as the templates meet them

    def refer(sources: Sequence[Provenance]) -> str:
        """Numbers of runs, as the page's script reads them."""
        return " ".join(str(runs.setdefault(source, len(runs))) for source in sources)

    environment.globals["zip"] = zip
    environment.filters |= {
        "slug": slug, "words": _words, "tally": _tally, "asked": asked_text, "size": effect_size,
        "refer": refer, "layout": layout, "scale": scale_of,
    }  # fmt: skip
    script = _template("page.js")
    fields = {
        "content": content, "runs": runs, "scales": SCALES, "verdicts": VERDICTS_AT,
        "most_rows": MOST_ROWS,
        "how_to_read": sentence("how-to-read-claims"),
        "style": Markup(_template("page.css")), "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }  # fmt: skip
    page = environment.get_template("page.html")
    text = page.render(fields, fonts=())
    return page.render(fields, fonts=tuple(faces(text)))


def _template(name: str) -> str:
    return files("lovasz_repro.report.page").joinpath("template", name).read_text("utf-8")


def _shown(value: object) -> object:
    """Strangers' text as text that can be seen; the autoescape comes after it."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _tally(sets: Sequence[SetEvidence]) -> str:
    """ "18 sets of runs: 15 hold, 2 do not hold, 1 undecided"; of a single one, its verdict."""
    if len(sets) == 1:
        return sets[0].outcome.verdict
    return f"{len(sets)} sets of runs: {counted(sets)}"


def _words(text: str) -> Markup:
    """A caption or note with its `commands` as code, and r_i as a letter with an index."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0 or "" in parts[1:-1]:  # somebody's name has a backtick
        parts = [visible(text)]
    code = Markup("<code>{}</code>").format
    return Markup("").join(code(part) if i % 2 else _indexed(part) for i, part in enumerate(parts))


def _indexed(text: str) -> Markup:
    return Markup(INDEX.sub(r"<i>\1</i><sub>\2</sub>", str(escape(text))))
