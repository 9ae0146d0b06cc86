"""The numbers in docs/results.md: rebuilt from the exported runs that are kept with the project."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.claims_render import statements
from lovasz_repro.report.figures import FIGURES, figure_texts
from lovasz_repro.report.model import Drawing
from lovasz_repro.report.page.write import write_page
from lovasz_repro.store.transfer import import_runs
from tests.report_files import write_tables

if TYPE_CHECKING:
    from lovasz_repro.store import Store

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
TABLES = ["synthetic", "camvid-enet", "camvid-enet-classes", "camvid-as-cityscapes"]
TABLES += ["camvid-as-cityscapes-classes", "voc-binary", "voc-binary-classes"]
TABLES += ["voc-multiclass", "voc-multiclass-classes", "voc-measures", "decision-rule-by-scale"]
KEPT_FIGURES = ["figure-3", "synthetic-sweep", "camvid-enet", "camvid-enet-classes"]
KEPT_FIGURES += ["camvid-as-cityscapes", "voc-measures", "figure-6"]


@pytest.fixture(scope="module")
def reference_store(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator["Store"]:
    results = tmp_path_factory.mktemp("reference")
    shutil.copy(empty_database, results / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from lovasz_repro.store import Store

        store = Store(results)
        assert import_runs(store, REFERENCE / "runs").added
        yield store


def test_kept_tables_are_what_the_kept_runs_say(reference_store: "Store", tmp_path: Path) -> None:
    for file in write_tables(reference_store, tmp_path, TABLES, ["md"]):
        kept = REFERENCE / "tables" / file.name
        assert file.read_text() == kept.read_text(), (
            f"{kept} is not what its runs say: lovasz-repro runs import results/reference/runs "
            "&& lovasz-repro report tables --format md --out results/reference/tables"
        )


@pytest.mark.parametrize("name", KEPT_FIGURES)
def test_kept_figures_are_what_the_kept_runs_say(reference_store: "Store", name: str) -> None:
    """The numbers as drawn; pixels may differ between versions of the drawing library."""
    drawing = FIGURES[name](reference_store)
    assert isinstance(drawing, Drawing)
    for file, text in figure_texts(drawing, name).items():
        assert text == (REFERENCE / "figures" / file).read_text()


def test_claims_page_is_what_the_kept_runs_say(reference_store: "Store") -> None:
    page = (ROOT / "docs" / "claims.md").read_text()
    rows = statements(evaluate_claims(reference_store))
    assert "\n".join(rows) in page, (
        "docs/claims.md is not what the kept runs say: its table is the first of the claims.md of "
        "lovasz-repro runs import results/reference/runs && lovasz-repro report claims"
    )


def test_one_page_has_every_kept_number(reference_store: "Store", tmp_path: Path) -> None:
    page = write_page(reference_store, tmp_path)
    assert page.stat().st_size < 10_000_000
    text = page.read_text()
    for name in TABLES:
        start = text.index(f'id="{name}-numbers"')
        shown = text[start : text.index("</table>", start)]
        for row in (REFERENCE / "tables" / f"{name}.md").read_text().splitlines():
            for number in re.findall(r"[−\d]+\.\d+(?: ± \d+\.\d+)?", row.partition(" | ")[2]):
                assert f">{number}</button>" in shown, f"{name} lacks {number}"


def test_results_page_shows_the_kept_tables() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    whole = ("synthetic", "voc-binary", "camvid-enet", "camvid-as-cityscapes", "voc-measures")
    for name in whole:
        kept = (REFERENCE / "tables" / f"{name}.md").read_text().splitlines()
        rows = [line for line in kept if line.startswith("|")]
        assert len(rows) > 3
        for row in rows:
            assert row in page, f"docs/results.md lacks this row of {name}: {row}"
    of_all_sets = (REFERENCE / "tables" / "voc-multiclass.md").read_text()
    drawn = of_all_sets[of_all_sets.index("| **Drawn pictures") :].split("\n\n")[0].splitlines()
    assert len(drawn) > 8
    for row in drawn:
        assert row in page, f"docs/results.md lacks this row of voc-multiclass: {row}"
    for name in KEPT_FIGURES:
        assert f"results/reference/figures/{name}.png" in page
        assert (REFERENCE / "figures" / f"{name}.png").is_file()


def test_no_weights_and_no_photographs_are_kept() -> None:
    """The released weights, CamVid and VOC's masks are not ours to pass on."""
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    kinds = {".json", ".csv", ".yaml", ".npz", ".md", ".png", ".txt"}
    assert {path.suffix for path in files} <= kinds
    assert not [path for path in files if {"examples", "masks", "segmentations"} & set(path.parts)]
    assert sum(path.stat().st_size for path in files) < 5_000_000
