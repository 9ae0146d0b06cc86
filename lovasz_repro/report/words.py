"""Sentences that titles and captions of several tables and figures share."""

from collections.abc import Sequence

from lovasz_repro.report.runs import Cohort
from lovasz_repro.report.sets import on_features

DEMO = (
    " A demo trains small networks from random weights for minutes on drawn pictures: which loss "
    "comes out ahead in it says nothing of the paper."
)
ON_FEATURES = (
    " The networks saw features: noise drawn from the masks in the place of photographs, as "
    "Sec. 4.1 does for circles."
)
NO_CAMVID = " The paper has no CamVid result."
STARTS = {
    "enet-cityscapes": "released network",
    "deeplab-coco": "released weights",
    "basis": "basis network",
    None: "random weights",
}
"""What a network starts from -> what it is called."""


def titled(title: str, lacking: str) -> str:
    """The title of a figure; ``lacking``: what the paper's has and this one has not."""
    return f"Not the paper's: {lacking}. Shown: {title}" if lacking else title


def caveats(figure: int, cohort: Cohort, lacking: str) -> str:
    """What the caption of a figure of the paper says where its runs are not the paper's."""
    return (
        (f" This is not the paper's Figure {figure}: {lacking}." if lacking else "")
        + (DEMO if cohort.scale == "demo" else "")
        + (ON_FEATURES if on_features(cohort) else "")
    )


def passed_over(broken: Sequence[str]) -> str:
    """What a caption says of files that are not as they should be."""
    return f" Passed over: {'; '.join(dict.fromkeys(broken))}." if broken else ""


def starting_point(cohort: Cohort | None, otherwise: str = "enet-cityscapes") -> str:
    """What a network was before the first step."""
    weights = cohort.setting("model.weights", "") if cohort else otherwise
    start = STARTS.get(weights)
    return f"{start}, before training" if start else "before training"
