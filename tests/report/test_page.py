"""The report as one page: what stands on it, and that nothing of a stranger's becomes markup."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lovasz_repro.report.figures import FIGURES
from lovasz_repro.report.model import Drawing, Missing
from lovasz_repro.report.page.content import (
    VERDICTS_AT,
    BiasSlider,
    PageContent,
    bias_slider,
    page_content,
    verdict_at,
)
from lovasz_repro.report.page.svg import inline_svg
from lovasz_repro.report.page.write import render_page, write_page
from lovasz_repro.report.tables import TABLES
from lovasz_repro.report.words import captions
from tests.report.conftest import FakeStore, fill_camvid
from tests.report_files import drawn

HOSTILE = "<script>document.title='taken'</script>\"'><img src=x onerror=alert(1)>&amp;"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module", autouse=True)
def without_surfaces() -> Iterator[None]:
    """Figures 1 and 2 take seconds to draw, and depend on no run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("figure-1", "figure-2"):
            patch.setitem(FIGURES, name, lambda store: Missing("left out", "a test"))
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Runs of CamVid and a search; for tests that only read."""
    return add_circles(fill_camvid(FakeStore(tmp_path_factory.mktemp("artifacts"))))


@pytest.fixture(scope="module")
def content(kept: FakeStore) -> PageContent:
    return page_content(kept)


@pytest.fixture(scope="module")
def page(content: PageContent) -> str:
    return render_page(content)


@pytest.fixture
def circles(store: FakeStore) -> FakeStore:
    return add_circles(store)


def add_circles(store: FakeStore) -> FakeStore:
    """Store a synthetic search of few biases."""
    run = store.add("synthetic", "bias-search", "0-1", batch=None, scale="paper",
                    params={"seeds": "2"})  # fmt: skip
    b = np.linspace(-1, 1, 21)
    folder = store.folder / run.run_id
    folder.mkdir(parents=True)
    columns = {"b": b, "jaccard": (b - 0.1) ** 2, "lovasz_hinge": (b + 0.2) ** 2, "hinge": b + 2}
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(repr, map(float, row))) for row in rows)]
    (folder / "curves.csv").write_text("\n".join(lines))
    label = np.zeros((4, 4), np.uint8)
    label[1:3, 1:3] = 1
    features = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    np.savez(folder / "sample.npz", label=label, features=features)
    return store


def test_every_statement_table_and_figure_stands_on_the_page_once(content: PageContent) -> None:
    claims = [claim.item.claim.id for section in content.sections for claim in section.claims]
    assert sorted(claims) == sorted(claim.item.claim.id for claim in content.claims)
    for claim in content.claims:  # and in the section that the paper makes it in
        (section,) = [s for s in content.sections if claim in s.claims]
        assert claim.item.claim.place.startswith(f"Sec. {section.words.number[:1]}")
    tables = [table.name for section in content.sections for table in section.tables]
    figures = [figure.name for section in content.sections for figure in section.figures]
    assert sorted(tables) == sorted(TABLES)
    assert sorted(figures) == sorted(FIGURES)


def test_every_figure_of_a_section_has_an_alternative() -> None:
    named = {name for section in captions().sections for name in section.figures}
    assert named <= set(captions().alternatives)


def test_what_no_section_names_stands_beyond_the_paper(
    camvid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "another", TABLES["camvid-enet"])
    last = page_content(camvid).sections[-1]
    assert last.words.number == ""
    assert "camvid-enet" in last.words.tables
    assert [table.name for table in last.tables].count("camvid-enet") == 2


def test_numbers_refer_to_their_runs(page: str, kept: FakeStore) -> None:
    runs = re.findall(r"<code>(id\d+)</code>", page[page.index('class="runs"') :])
    shown = page[page.index('id="camvid-enet-numbers"') :].partition("</table>")[0]
    found = [
        [runs[int(number)] for number in numbers.split()]
        for numbers in re.findall('data-runs="([^"]+)"', shown)
    ]
    cells = TABLES["camvid-enet"](kept).cells
    assert found == [[s.run_id for s in cell.sources] for cell in cells if cell.sources]
    assert re.findall('<tbody data-scale="([^"]*)"', shown) == ["reduced", "demo"]


def test_missing_numbers_name_the_command(content: PageContent) -> None:
    (section,) = [s for s in content.sections if s.words.number == "4.2"]
    (command,) = [c for c in section.missing if c == "lovasz-repro run voc-binary"]
    told = section.missing[command]
    assert "figure-4" in told
    assert "13 numbers of table-1" in told  # three losses by four measures, and the basis network
    waiting = [str(c.number) for c in section.claims if c.item.command == command]
    assert told[0] == f"statements {', '.join(waiting)}"


def test_a_name_is_told_as_each_experiment_means_it(store: FakeStore) -> None:
    for experiment in ("camvid-enet", "camvid-as-cityscapes"):
        for loss, iou in (("weighted-cross-entropy", 0.5), ("lovasz-softmax", 0.6)):
            store.add(experiment, loss, metrics={"test/dataset_miou": iou})
    (section,) = [s for s in page_content(store).sections if s.words.number == "4.4"]
    told = section.names["test/dataset_miou"]
    assert "Class IoU of the best snapshot (camvid-as-cityscapes)" in told
    assert "dataset-mIoU of the best snapshot (camvid-enet)" in told
    assert section.names["lovasz-softmax"] == "fine-tuned with Lovász-Softmax"


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (["holds", "undecided"], "holds"),
        (["holds", "does not hold"], "sets disagree"),
        (["undecided", "not yet run"], "undecided"),
        ([], "not yet run"),
    ],
)
def test_sets_of_a_scale_speak_together(verdicts: list[str], told: str) -> None:
    evidence = [
        SimpleNamespace(scale="reduced", outcome=SimpleNamespace(verdict=v)) for v in verdicts
    ]
    claim = SimpleNamespace(rule=object())
    item: Any = SimpleNamespace(claim=claim, verdict="not yet run", evidence=evidence)
    assert verdict_at(item, "reduced") == told
    assert verdict_at(item, "demo") == "not yet run"


def test_counts_add_up(content: PageContent) -> None:
    for scale in ("paper", "reduced", "demo"):
        counts = [content.count(scale, verdict) for verdict in VERDICTS_AT]
        assert sum(counts) == len(content.claims)
    holding = sum(shown.item.verdict == "holds" for shown in content.claims)
    assert content.count("paper", "holds") == holding


# -- the page as text --------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(kept: FakeStore, page: str, tmp_path: Path) -> None:
    assert write_page(kept, tmp_path).read_text() == page


def test_nothing_is_loaded_and_ids_are_unique(page: str) -> None:
    elements = Elements(page).found
    for tag, attributes in elements:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert name not in attributes, (tag, attributes)
        link = attributes.get("href") or ""
        if tag != "a" and link:
            assert link.startswith(("#", "data:")), (tag, link)
        assert not [name for name in attributes if name.startswith("on")], attributes
    ids = [attributes["id"] for _, attributes in elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    references = {a["href"][1:] for _, a in elements if (a.get("href") or "").startswith("#")}
    assert references <= set(ids)


def test_a_strangers_words_are_text(camvid: Any, circles: Any) -> None:
    """In names, devices, profiles (which headings show) and settings."""
    for run in camvid.stored:
        run.tags.update(device=f"cpu {HOSTILE}", git_commit=HOSTILE, profile=HOSTILE)
        object.__setattr__(run, "name", f"{HOSTILE}\x1b[31m\u202e")
    page = render_page(page_content(camvid))
    assert "&lt;script&gt;document.title" in page
    assert "<script>document.title" not in page
    tags = [tag for tag, _ in Elements(page).found]
    assert "img" not in tags
    assert tags.count("script") == 2  # the page's own, and the data of Sec. 4.1
    assert "\x1b" not in page
    assert "\u202e" not in page


# -- figures -----------------------------------------------------------------------------------


def texts(svg: str) -> Iterator[str]:
    for element in ElementTree.fromstring(svg).iter("text"):
        yield "".join(element.itertext()).strip()


def test_a_figure_keeps_its_text_and_its_names_to_itself(circles: Any) -> None:
    drawing = FIGURES["figure-3"](circles)
    assert not isinstance(drawing, Missing)
    svg = inline_svg(drawing, "one", 'a "quoted" <alternative>')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'a "quoted" <alternative>'
    assert {"label", "features", "relative loss"} <= set(texts(svg))
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert ids
    assert all(name.startswith("one-") for name in ids if name)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert used == ids
    assert "<style" not in svg  # would rule the whole page
    assert "#000000" not in svg


def test_a_figure_with_a_heading_of_anything(camvid: Any) -> None:
    for run in camvid.stored:
        run.tags["profile"] = 'a--b <c> & id="x" ]]>'
    figure = drawn(FIGURES["camvid-enet"], camvid)
    svg = inline_svg(Drawing(figure, ""), "f", "")
    assert any('a--b <c> & id="x"' in text for text in texts(svg))


# -- Sec. 4.1 ----------------------------------------------------------------------------------


def test_the_slider_has_the_stored_numbers(circles: Any) -> None:
    slider = bias_slider(circles)
    assert isinstance(slider, BiasSlider)
    data = json.loads(slider.data)
    assert data["b"] == pytest.approx(np.linspace(-1, 1, 21))
    assert sum(data["label"]) == 4
    assert {curve.name: curve.lowest for curve in slider.curves} == {
        "jaccard": "0.10", "lovasz_hinge": "−0.20", "hinge": "−1.00",
    }  # fmt: skip
    assert slider.start == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("curves.csv", "b,jaccard\n0.0,nan\n1.0,0.5\n"),
        ("curves.csv", "b,jaccard\n0.0,0.5\n"),
        ("curves.csv", "b,jaccard\n0.0,0.5\n1.0,0.2\n5.0,0.1\n"),
        ("curves.csv", "b,hinge\n0.0,0.5\n1.0,0.2\n"),
        ("curves.csv", "b,jaccard\n0.0\n"),
        ("curves.csv", ""),
        ("sample.npz", "not an archive"),
        ("sample.npz", None),
    ],
)
def test_files_that_cannot_be_shown_are_told(circles: Any, name: str, text: str | None) -> None:
    path = circles.folder / circles.stored[-1].run_id / name
    if text is not None:
        path.write_text(text)
    else:
        np.savez(path, label=np.zeros((3, 2), np.uint8), features=np.zeros((3, 2), np.float32))
    slider = bias_slider(circles)
    assert isinstance(slider, Missing)
    assert name in slider.reason
    assert "synthetic" in slider.command
