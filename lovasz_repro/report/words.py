"""What stands under and over tables and figures: ``experiments/captions.yaml``, filled in."""

from collections.abc import Sequence
from functools import cache

from pydantic import Field

from lovasz_repro.config.read import Strict, read_yaml, validate
from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.report.runs import Cohort
from lovasz_repro.report.sets import on_features

STARTS = {
    "enet-cityscapes": "released network",
    "deeplab-coco": "released weights",
    "basis": "basis network",
    None: "random weights",
}
"""What a network starts from -> what it is called."""


class TableWords(Strict):
    """What a table says beside its numbers."""

    title: str
    row_title: str
    caption: str


class SectionWords(Strict):
    """A section of the paper on the report's page, and which tables and figures stand in it."""

    number: str
    """ "" for what the paper has not; such a one takes whatever no other names."""
    title: str
    about: str
    tables: list[str] = Field(default_factory=list)
    figures: list[str] = Field(default_factory=list)


class Captions(Strict):
    """``experiments/captions.yaml``."""

    sentences: dict[str, str]
    tables: dict[str, TableWords]
    figures: dict[str, str]
    sections: list[SectionWords]
    alternatives: dict[str, str]
    """What a figure shows, for who cannot see it."""


@cache
def captions() -> Captions:
    """The file, read once.

    Raises:
        UserError: it is missing or holds something else.
    """
    path = experiments_folder() / "captions.yaml"
    return validate(Captions, read_yaml(path), path.name)


class _Fields(dict[str, object]):
    """Values by name; a name without one is another sentence, filled with the same values."""

    def __missing__(self, name: str) -> str:
        return captions().sentences[name].format_map(self)


def sentence(name: str, **fields: object) -> str:
    """A sentence that several captions share.

    Raises:
        KeyError: there is none of this name, or it needs a field that is not given.
    """
    return captions().sentences[name].format_map(_Fields(fields))


def table_caption(name: str, **fields: object) -> str:
    """The caption of a table."""
    return captions().tables[name].caption.format_map(_Fields(fields))


def figure_caption(name: str, *more: str, **fields: object) -> str:
    """The caption of a figure, and more sentences after it; empty ones are left out."""
    text = captions().figures[name].format_map(_Fields(fields))
    return " ".join([text, *filter(None, more)])


def titled(title: str, lacking: str) -> str:
    """The title of a figure; ``lacking``: what the paper's has and this one has not."""
    return sentence("not-the-papers", lacking=lacking, title=title) if lacking else title


def caveats(figure: int, cohort: Cohort, lacking: str) -> str:
    """What the caption of a figure of the paper says where its runs are not the paper's."""
    told = [sentence("not-the-figure", number=figure, lacking=lacking)] if lacking else []
    told += [sentence("demo")] if cohort.scale == "demo" else []
    told += [sentence("on-features")] if on_features(cohort) else []
    return " ".join(told)


def passed_over(broken: Sequence[str]) -> str:
    """What a caption says of files that are not as they should be."""
    return sentence("passed-over", broken="; ".join(dict.fromkeys(broken))) if broken else ""


def starting_point(cohort: Cohort | None) -> str:
    """What a network was before the first step."""
    weights = cohort.setting("model.weights", "") if cohort else "enet-cityscapes"
    start = STARTS.get(weights)
    return f"{start}, before training" if start else "before training"
