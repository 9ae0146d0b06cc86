"""The formats: escaped, complete, and the same bytes for the same runs."""

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.cells import cell_len

from lovasz_repro.errors import UserError
from lovasz_repro.host.output import Terminal, visible
from lovasz_repro.report.layout import layout
from lovasz_repro.report.model import Block, Cell, Column, Table, TableRow
from lovasz_repro.report.render import (
    latex_text,
    md_escape,
    print_table,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from lovasz_repro.report.runs import command
from lovasz_repro.report.tables import TABLES
from tests.report_files import assert_same_bytes, write_tables


def awkward() -> Table:
    """A table whose words mean something in every format."""
    row = TableRow(
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
        r"a\_b \textbar{} 50\% \& \#1 \textasciitilde{} x\textasciicircum{}2 \{y\} \$z "
        r"\textbackslash{}w \textless{}i\textgreater{} & $-$1.50 $\pm$ 0.25 & -- \\"
    )
    assert expected in text
    assert r"\caption{T \& U. See \texttt{run it -{}-now}.}" in text
    assert r"\multicolumn{3}{l}{\emph{h\_1}} \\" in text


def test_latex_is_balanced_and_even(camvid):
    for name, build in TABLES.items():
        text = to_latex(build(camvid))
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}"), name
        for body in text.split(r"\midrule")[1:]:
            width = text[text.index(r"\begin{tabular}{") :].split("{")[2].index("}")
            for line in body.split(r"\bottomrule")[0].splitlines():
                if line.endswith(r"\\") and "multicolumn" not in line:
                    assert line.replace(r"\&", "").count("&") == width - 1, line
        assert all(ord(c) < 128 or c in "áÁ" for c in text), name


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_latex_fits_its_page(camvid, tmp_path, columns):
    """All tables and one with a hostile word in every place, as LaTeX itself judges them."""
    built = [build(camvid) for build in TABLES.values()]
    long = replace(built[2], blocks=tuple(replace(b, rows=b.rows * 12) for b in built[2].blocks))
    tables = "\n\\clearpage\n".join(map(to_latex, [*built, long, hostile()]))
    (tmp_path / "all.tex").write_text(
        f"\\documentclass[{columns}]{{article}}\\usepackage{{booktabs,adjustbox}}"
        f"\\begin{{document}}{tables}\\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    log = done.stdout
    assert done.returncode == 0, log[-2000:]
    for wrong in ("Overfull", "too large for page", "Missing character", "Undefined control"):
        assert wrong not in log, log[log.index(wrong) :][:300]


def test_latex_numbers_its_tables_itself(store):
    caption = to_latex(TABLES["table-2"](store)).split(r"\caption{")[1].split("\n")[0]
    assert not caption.startswith("Table")
    assert "Table 2 of the paper" in caption


HOSTILE = "[x] \x1b]0;x\x07 `code` *b*\n| forged | 99.9 |\n\n# head\\input{/etc/passwd} 猫 <i>"


def hostile() -> Table:
    """A table of which every word came from a stranger."""
    cells = (Cell(-1.5, 0.25, 2), Cell(command=command("voc-binary", HOSTILE)))
    row = TableRow(f"={HOSTILE}", HOSTILE, cells)
    columns = (Column("@c", HOSTILE, "%"), Column("d", HOSTILE))
    blocks = (Block(HOSTILE, (row, row)),)
    return Table("hostile", HOSTILE, HOSTILE, HOSTILE, columns, blocks, (HOSTILE,))


def test_strangers_forge_no_line_and_no_formula():
    lines = to_markdown(hostile()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [row.replace(r"\|", "").count("|") for row in rows] == [4] * 5
    assert sum(line.startswith("#") for line in lines) == 1
    for text in (to_markdown(hostile()), to_latex(hostile()), to_csv(hostile())):
        assert all(c.isprintable() or c == "\n" for c in text)
    found = list(csv.reader(io.StringIO(to_csv(hostile()))))
    assert len(found) == 1 + 4
    for value in (value for row in found for value in row):
        with suppress(ValueError):
            float(value)
            continue
        assert not value.startswith(("=", "+", "-", "@"))
    assert r"\input" not in to_latex(hostile()).replace(r"\textbackslash{}input", "")


def test_a_command_to_copy_runs_nothing_else():
    profile = "demo; touch x; $(id) 'q'"
    words = shlex.split(command("voc-binary", profile))
    assert words == ["lovasz-repro", "run", "voc-binary", "--profile", profile]


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
    assert len(rows) == 2 * (2 + 3 * 4)  # initial network: two scores; each variant: four


def test_same_runs_same_bytes(camvid, tmp_path):
    first = write_tables(camvid, tmp_path / "a")
    camvid.stored.reverse()
    second = write_tables(camvid, tmp_path / "b")
    assert len(first) == 4 * len(TABLES)
    assert_same_bytes(first, second)


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


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_value_is_shown_at_every_width(camvid, monkeypatch, width):
    """Each number with its sign, spread and mark, whole; a line is never longer than the screen."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    for build in [*TABLES.values(), lambda _: hostile()]:
        screen.truncate(0)
        table = build(camvid)
        print_table(table, Terminal(width=width))
        shown = screen.getvalue().replace("\0", "")
        assert all(cell_len(line) <= width for line in shown.splitlines()), table.name
        texts = [
            f"{cell.text} ({cell.mark})" if cell.mark else cell.text
            for section in layout(table).sections
            for line in section.lines
            for cell in line.cells
            if cell.text
        ]
        for text, count in Counter(texts).items():
            assert shown.count(text) >= count, (table.name, text)
        folded = "".join(shown.split())
        for command_ in {cell.command for cell in table.cells if cell.value is None}:
            assert "".join(visible(command_).replace("`", "").split()) in folded


def test_a_pipe_gets_full_width(store, capsys):
    print_table(TABLES["table-2"](store), Terminal())
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("Lovász + equibatch, 30K")]
    assert [row.count(value) for value in ("77.41", "78.22", "79.12", "79.00")] == [1] * 4


def test_reading_tables_and_claims_needs_no_heavy_library():
    code = (
        "import sys; import lovasz_repro.report.render, lovasz_repro.report.claims_render, "
        "lovasz_repro.report.figures; "
        "print([m for m in ('torch', 'mlflow', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
