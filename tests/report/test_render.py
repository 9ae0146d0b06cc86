"""The formats: escaped, complete, and the same bytes for the same runs."""

import csv
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from lovasz_repro.errors import UserError
from lovasz_repro.report.model import Block, Cell, Column, Row, Table
from lovasz_repro.report.render import (
    latex_text,
    md_escape,
    print_table,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    write_tables,
)
from lovasz_repro.report.tables import TABLES


def awkward() -> Table:
    """A table whose words mean something in every format."""
    row = Row(
        "r",
        "a_b | 50% & #1 ~ x^2 {y} $z \\w <i>",
        (Cell(-1.5, 0.25, 2), Cell(command="do it_now --all")),
    )
    columns = (Column("c", "100% _raw_", "%"), Column("d", "*d*"))
    return Table(
        "awkward", "T & U", "See `run it --now`.", "row|", columns, (Block("h_1", (row,)),)
    )


def test_markdown_escapes():
    text = to_markdown(awkward())
    assert r"a\_b \| 50% & \#1 \~ x^2 {y} $z \\w \<i\>" in text
    assert r"100% \_raw\_ (%)" in text
    assert "| −1.50 ± 0.25 | – |" in text
    assert "filled by `do it_now --all`" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") == 4


def test_latex_escapes():
    text = to_latex(awkward())
    expected = (
        r"a\_b | 50\% \& \#1 \textasciitilde{} x\textasciicircum{}2 \{y\} \$z "
        r"\textbackslash{}w \textless{}i\textgreater{} & $-$1.50 $\pm$ 0.25 & -- \\"
    )
    assert expected in text
    assert r"\caption{T \& U. See \texttt{run it -{}-now}.}" in text
    assert r"\multicolumn{3}{l}{\emph{h\_1}} \\" in text


def test_latex_is_balanced_and_even(camvid):
    for name, build in TABLES.items():
        text = to_latex(build(camvid))
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}"), name
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        width = text[text.index(r"\begin{tabular}{") :].split("{")[2].index("}")
        for line in body.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert line.replace(r"\&", "").count("&") == width - 1, line
        assert all(ord(c) < 128 or c in "áÁ" for c in text), name


def test_commands_survive_latex():
    assert latex_text("`a --b`") == r"\texttt{a -{}-b}"
    assert latex_text("1–2 ± 3 × 4") == r"1--2 $\pm$ 3 $\times$ 4"


def test_markdown_escape_is_only_for_special_characters():
    assert md_escape("Lovász, 3 + 4 = 7 (%)") == "Lovász, 3 + 4 = 7 (%)"


def test_json_has_the_provenance_of_every_number(camvid):
    content = json.loads(to_json(TABLES["camvid-enet"](camvid)))
    found = [c for c in content["cells"] if (c["row"], c["column"]) == ("sum", "test")]
    assert [cell["n"] for cell in found] == [2, 1]
    assert found[0]["value"] == pytest.approx(52.5)
    assert found[0]["sources"][0] == {
        "run_id": "id002",
        "name": "sum-b10-s0",
        "git_commit": "c0ffee",
        "config_hash": "hash2",
        "data_fingerprint": "d4ta5e7f1234",
        "seed": "0",
        "device": "cpu",
        "profile": "reduced",
        "scale": "reduced",
    }


def test_missing_numbers_are_null_in_json_and_empty_in_csv(store):
    table = TABLES["table-2"](store)
    cell = json.loads(to_json(table))["cells"][0]
    assert (cell["value"], cell["published"], cell["difference"]) == (None, 74.64, None)
    assert cell["command"] == "lovasz-repro run voc-multiclass"
    first = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert (first["value"], first["published"]) == ("", "74.64")


def test_csv_has_a_line_per_cell(camvid):
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLES["camvid-enet"](camvid)))))
    value = next(r for r in rows if (r["row"], r["column"]) == ("lovasz-softmax", "test"))
    assert float(value["value"]) == pytest.approx(53.2)
    assert value["runs"] == "id001 id004"
    assert len(rows) == 2 * (3 + 3 * 4)  # initial network: three cells; each variant: four


def test_same_runs_same_bytes(camvid, tmp_path):
    first = write_tables(camvid, tmp_path / "a")
    camvid.stored.reverse()
    second = write_tables(camvid, tmp_path / "b")
    assert [file.name for file in first] == [file.name for file in second]
    assert len(first) == 4 * len(TABLES)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_chosen_tables_and_formats(store, tmp_path):
    files = write_tables(store, tmp_path, ["table-2"], ["md", "csv"])
    assert [file.name for file in files] == ["table-2.md", "table-2.csv"]


@pytest.mark.parametrize(
    ("names", "formats", "words"),
    [
        (["tabel-2"], ["md"], "did you mean table-2"),
        (["table-2"], ["html"], "There are: md, tex, csv, json"),
    ],
)
def test_unknown_names_say_what_there_is(store, tmp_path, names, formats, words):
    with pytest.raises(UserError, match=words):
        write_tables(store, tmp_path, names, formats)


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_shows_published_and_own_numbers(store, width):
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(TABLES["table-2"](store), console)
    shown = console.export_text()
    assert "74.64" in shown
    assert "difference" in shown
    assert "lovasz-repro run voc-multiclass" in " ".join(shown.split())
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())


def test_reading_tables_and_claims_needs_no_heavy_library():
    code = (
        "import sys; import lovasz_repro.report.render, lovasz_repro.report.claims_render, "
        "lovasz_repro.report.figures; "
        "print([m for m in ('torch', 'mlflow', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
