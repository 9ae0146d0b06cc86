"""Experiment files: what is refused, in one line, and how a grid resolves."""

from pathlib import Path

import pytest

from lovasz_repro.config.read import merge, parse_overrides, read_yaml, validate
from lovasz_repro.config.schema import ExperimentConfig, experiment_names, load_experiment
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


def test_every_shipped_training_experiment_resolves_in_every_profile() -> None:
    names = [name for name in experiment_names() if name != "synthetic"]
    assert "camvid-enet" in names
    for name in names:
        loaded = load_experiment(name)
        for profile in loaded.profiles:
            cells = loaded.cells(profile)
            assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\na: 2\n", "given twice: a"),
        ("a: [1", "expected"),
        ("- 1\n", "expected keys and values"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        read_yaml(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No experiment file at .*gone\.yaml"):
        load_experiment(str(tmp_path / "gone.yaml"))


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
