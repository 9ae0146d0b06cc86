"""Experiment files: what is refused, in one line, and how a grid resolves."""

import os
from pathlib import Path

import pytest
import yaml

from lovasz_repro.cli import MOST_CHARACTERS, describe
from lovasz_repro.config.read import merge, parse_overrides, read_yaml, validate
from lovasz_repro.config.schema import (
    ExperimentConfig,
    experiments_folder,
    load_experiment,
)
from lovasz_repro.errors import UserError

SMALL = """
experiment: small
kind: training
title: t
section: s
claim: c
cost: c
seeds: [0, 1]
batch_sizes: [2, 4]
recipe:
  data: {name: camvid, size: [16, 24]}
  model: {name: enet}
  training: {iterations: 10, lr: 1.0e-3, validate_every: 5, checkpoint_every: 5}
variants:
  a: {loss: {terms: {cross_entropy: 1.0}}}
  b: {loss: {terms: {lovasz_softmax: 2.0}}}
profiles:
  paper: {scale: paper, about: full}
  demo: {scale: demo, about: small, seeds: [7], recipe: {training: {iterations: 3}}}
"""


def experiment(text: str, folder: Path) -> ExperimentConfig:
    path = folder / "small.yaml"
    path.write_text(text)
    return load_experiment(str(path))


def refusal(text: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        experiment(text, folder).cells("paper")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_grid_is_batch_sizes_by_seeds_by_variants(tmp_path: Path) -> None:
    cells = experiment(SMALL, tmp_path).cells("paper")
    assert [cell.name for cell in cells] == [
        "a-b2-s0", "b-b2-s0", "a-b2-s1", "b-b2-s1",
        "a-b4-s0", "b-b4-s0", "a-b4-s1", "b-b4-s1",
    ]  # fmt: skip
    assert cells[1].loss.terms == {"lovasz_softmax": 2.0}
    assert cells[0].training.power == 0.9


def test_profile_changes_numbers_and_scale(tmp_path: Path) -> None:
    cells = experiment(SMALL, tmp_path).cells("demo", batch_sizes=[3])
    assert {(c.seed, c.training.batch_size, c.training.iterations, c.scale) for c in cells} == {
        (7, 3, 3, "demo")
    }


def test_overrides_come_last_and_leave_paper_scale(tmp_path: Path) -> None:
    overrides = parse_overrides(["training.lr=5.0e-2", "model.decoder=relu"])
    cell = experiment(SMALL, tmp_path).cells("paper", overrides=overrides)[0]
    assert cell.training.lr == 0.05
    assert cell.model.decoder == "relu"
    assert cell.scale == "reduced"


def test_unknown_key_is_named_with_a_near_match(tmp_path: Path) -> None:
    message = refusal(SMALL.replace("lr: 1.0e-3", "lr: 1.0e-3, itertions: 3"), tmp_path)
    assert "training.itertions" in message
    assert "did you mean iterations?" in message


def test_number_that_yaml_reads_as_text_is_explained(tmp_path: Path) -> None:
    message = refusal(SMALL.replace("1.0e-3", "1e-3"), tmp_path)
    assert "training.lr" in message
    assert "1.0e-4" in message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("iterations: 10", "iterations: -1", "training.iterations"),
        ("iterations: 10", "iterations: 1.5", "training.iterations"),
        ("iterations: 10", "iterations: yes", "training.iterations"),
        ("cross_entropy: 1.0", "crossentropy: 1.0", "loss.terms.crossentropy"),
        ("cross_entropy: 1.0", "cross_entropy: 0.0", "loss.terms.cross_entropy"),
        ("size: [16, 24]", "size: [16]", "data.size"),
        ("name: enet", "name: unet", "model.name"),
    ],
)
def test_impossible_values_name_their_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert key in refusal(SMALL.replace(old, new), tmp_path)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("iterations: 10", "iterations: 0").replace("1.0e-3", "-1.0")
    message = refusal(text, tmp_path)
    assert "training.iterations" in message
    assert "training.lr" in message


def test_batch_of_one_needs_frozen_statistics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="frozen"):
        experiment(SMALL, tmp_path).cells("paper", batch_sizes=[1])
    frozen = {"training.batch_norm": "frozen"}
    assert experiment(SMALL, tmp_path).cells("paper", batch_sizes=[1], overrides=frozen)


def test_released_weights_refuse_a_relu_decoder() -> None:
    with pytest.raises(UserError, match="PReLU decoder"):
        load_experiment("camvid-enet").cells("demo", overrides={"model.decoder": "relu"})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"profile": "dem"}, "demo"), ({"variants": ["lovasz-softmx"]}, "lovasz-softmax")],
)
def test_unknown_names_get_a_near_match(arguments: dict[str, str], word: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {word}"):
        load_experiment("camvid-enet").cells(**{"profile": "demo", **arguments})


def test_unknown_experiment_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"did you mean camvid-enet.*There are: .*synthetic"):
        load_experiment("camvid-ent")


NINE = "[" + ", ".join(["*{0}"] * 9) + "]"
BOMB = "[&a [1, 2], " + ", ".join(
    f"&{chr(98 + level)} {NINE.format(chr(97 + level))}" for level in range(10)
) + "]"  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\na: 2\n", "given twice: a"),
        ("a: [1", "expected"),
        ("a: !!python/object/apply:os.system [ls]", "tag !!python/object/apply:os.system"),
        (BOMB, "10,000 values, aliases counted"),
        ("&a [*a]", "more than 20 deep"),
        ("&a {b: *a}", "more than 20 deep"),
        ("[" * 90_000, "more than 20 deep"),
        ("{a: " * 20_000, "more than 20 deep"),
        ("- " * 40_000, "more than 20 deep"),
        ("[" + "1," * 10_000 + "]", "10,000 values"),
        ("7" * 5_000, "a number of more than 40 characters"),
        ("0x" + "f" * 5_000, "a number of more than 40 characters"),
        ("1:" * 20_000 + "1", "a number of more than 40 characters"),
        ("0x_", "int"),
        ("!!int ten", "tag !!int"),
        ("!!int ''", "tag !!int"),
        ("!!bool maybe", "tag !!bool"),
        ("!!timestamp 2001-01-01", "tag !!timestamp"),
        ("!!binary aGVsbG8=", "tag !!binary"),
        ("!!set {a, b}", "tag !!set"),
        ("!!omap [a: 1]", "tag !!omap"),
        ("!!str [a]", "tag !!str"),
        ("!" + "x" * 50_000 + " 1", "tag !xxx"),
        ("*" + "x" * 50_000, "alias"),
        ("{[a]: 1}", "a key that is no text"),
        ('{"\\e[31m": 1}', "cannot be printed"),
        ('"\\0"', "cannot be printed"),
        ('"\\ud800"', "cannot be printed"),
        ('"\\U00110000"', "chr"),
        ("\0", "character"),
        ("--- 1\n--- 2\n", "another document"),
    ],
    ids=lambda given: given[:12],
)
def test_what_no_settings_can_be_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    """As a file, and as a value of --set."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    for call in (lambda: read_yaml(path), lambda: parse_overrides([f"a={text}"])):
        with pytest.raises(UserError) as caught:
            call()
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


def test_dates_and_odd_keys_are_text() -> None:
    text = "a={when: 2001-01-01, 7: x, yes: y, <<: {b: 1}, =: 2}"
    assert parse_overrides([text])["a"] == {
        "when": "2001-01-01", "7": "x", "yes": "y", "<<": {"b": 1}, "=": 2
    }  # fmt: skip


def test_shipped_files_say_what_yaml_says() -> None:
    files = sorted(experiments_folder().glob("*.yaml"))
    assert any("*" in file.read_text() for file in files)  # aliases among them
    for file in files:
        assert read_yaml(file) == yaml.safe_load(file.read_text())


def test_no_file_is_waited_for_or_read_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 200_000)
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "list").write_text("- 1\n")
    for path, word in (
        (tmp_path / "pipe", "Not a regular file"),
        (Path("/dev/zero"), "Not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "large", "too large"),
        (tmp_path / "latin", "no UTF-8"),
        (tmp_path / "list", "expected keys and values"),
        (tmp_path / ("x" * 300), "name too long"),
        (tmp_path / "large" / "x", "Not a directory"),
    ):
        with pytest.raises(UserError, match=word):
            read_yaml(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.lr", float("inf")),
        ("training.iterations", 10**30),
        ("data.size", [10**30, 10**30]),
        ("training." * 19 + "lr", 1),
        ("x" * 9_000, 1),
        ("data.name", "x" * 9_000),
        ("loss.terms", {f"x{number}": 1.0 for number in range(5_000)}),
    ],
)
def test_values_beyond_reason_are_one_line(key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment("camvid-enet").cells("demo", overrides={key: value})
    assert len(describe(caught.value)) <= MOST_CHARACTERS


def test_a_grid_is_bounded(tmp_path: Path) -> None:
    many = str(list(range(2, 3_000)))
    text = SMALL.replace("seeds: [0, 1]", f"seeds: {many}").replace("[2, 4]", many)
    assert "a grid of 17,976,008 runs" in refusal(text, tmp_path)  # 2 * 2,998 ** 2


@pytest.mark.parametrize("pair", ["training.lr", "=1", "a=[1"])
def test_malformed_override_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_overrides([pair])


def test_merge_leaves_its_inputs_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "terms": {"x": 1}}
    assert merge(base, {"a": {"b": 3}, "terms": {"y": 1}}) == {
        "a": {"b": 3, "c": 2},
        "terms": {"y": 1},
    }
    assert base == {"a": {"b": 1, "c": 2}, "terms": {"x": 1}}


def test_missing_key_is_named(tmp_path: Path) -> None:
    content = read_yaml_text(SMALL, tmp_path)
    del content["title"]
    with pytest.raises(UserError, match="title: field required"):
        validate(ExperimentConfig, content, "small.yaml")


def read_yaml_text(text: str, folder: Path) -> dict[str, object]:
    path = folder / "text.yaml"
    path.write_text(text)
    return read_yaml(path)


@pytest.mark.parametrize(
    "change",
    [("  a: {loss", "  /abs/x: {loss"), ("  a: {loss", "  ../x: {loss"), ("  demo:", "  '[/red]':"),
     ("experiment: small", "experiment: ../../x"), ("name: camvid,", "name: camvid, folder: /etc,"),
     ("name: camvid,", "name: camvid, folder: ../../etc,")],
)  # fmt: skip
def test_names_that_become_folders_are_refused_where_the_file_is_read(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    assert "use at most" in (told := refusal(SMALL.replace(*change), tmp_path)) or "path" in told
