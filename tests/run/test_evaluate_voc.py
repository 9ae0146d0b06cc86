"""``evaluate`` on Pascal VOC: single scale, several scales, the CRF, its search, the test set."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro import cli
from lovasz_repro.cli.evaluate import parse_grid
from lovasz_repro.config.read import read_stored
from lovasz_repro.config.schema import CrfConfig, EvaluationConfig
from lovasz_repro.data.check import TreeNote, write_note
from lovasz_repro.data.classes import voc_colour
from lovasz_repro.data.voc import VOC_LISTS
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.evaluation.probabilities import read_probabilities
from lovasz_repro.models.convert import convert
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run.evaluate import VocOptions, find_network, settings_of
from lovasz_repro.store import Store
from tests.foreign_deeplab import kazuto, random_deeplab
from tests.plain_deeplab import confusion, fused, iou_of, photograph, refined, single_scale
from tests.tiny_voc import write_voc

SMALL = ("--least-side", 65)
CRF: dict[str, Any] = {
    "iterations": 10, "smoothness_weight": 3.0, "smoothness_xy": 1.0, "bilateral_weight": 4.0,
    "bilateral_xy": 67.0, "bilateral_rgb": 3.0, "normalization": "after",
}  # fmt: skip


@pytest.fixture
def model() -> DeepLab:
    return random_deeplab(seed=3).eval()


@pytest.fixture
def weights(tmp_path: Path, model: DeepLab) -> Path:
    file = tmp_path / "net.safetensors"
    names = tuple(str(index) for index in range(21))
    save_weights(model, file, {"dataset": "voc", "class_names": names})
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images of validation; the first four training photographs are the test set."""
    root = write_voc(tmp_path / "data" / "voc", train=4, val=5)
    lists = root / "VOC2012" / VOC_LISTS
    (lists / "test.txt").write_text((lists / "train_aug.txt").read_text())
    return root


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """The command in an empty folder: its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("LOVASZ_REPRO_RESULTS", raising=False)

    def run(*arguments: object) -> SimpleNamespace:
        given = ["lovasz-repro", "evaluate", *map(str, arguments), "--device", "cpu"]
        monkeypatch.setattr("sys.argv", [*given, "--data", str(tmp_path / "data")])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=int(caught.value.code or 0), out=out, err=err)

    return run


Call = Callable[..., SimpleNamespace]


def names_of(root: Path, split: str) -> list[str]:
    return (root / "VOC2012" / VOC_LISTS / f"{split}.txt").read_text().split()


def cached(results: Path, name: str) -> np.ndarray:
    [folder] = (results / "work" / "probabilities").iterdir()
    return read_probabilities(folder / f"{name}.png", name)


# -- scores --------------------------------------------------------------------------------------


def test_from_a_foreign_file_to_scores(
    call: Call, root: Path, model: DeepLab, tmp_path: Path
) -> None:
    torch.save(kazuto(model), tmp_path / "kazuto.pth")
    converted = tmp_path / "deeplab.safetensors"
    convert(tmp_path / "kazuto.pth", converted)
    told = json.loads(call(converted, "--json").out)
    names = names_of(root, "val")
    counts = confusion(root, lambda n: single_scale(model, photograph(root, n), 513), names)
    iou = iou_of(counts)
    assert told["images"] == 5
    assert told["scores"]["val/dataset_miou"] == pytest.approx(np.nanmean(iou), abs=1e-6)
    assert told["scores"]["val/iou/bird"] == pytest.approx(iou[3], abs=1e-6)
    assert "5 images of val" in call(converted).out


def test_a_network_of_other_classes_is_refused(call: Call, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    names = tuple("abcd")
    save_weights(random_deeplab(outputs=4), file, {"dataset": "x", "class_names": names})
    done = call(file)
    assert done.code == 2
    assert "4 outputs; VOC has 21 classes" in done.err


def test_three_scales_against_a_plain_loop(
    call: Call, weights: Path, root: Path, model: DeepLab
) -> None:
    told = json.loads(call(weights, "--multi-scale", *SMALL, "--json").out)
    names = names_of(root, "val")
    several = confusion(root, lambda name: fused(model, photograph(root, name)).argmax(0), names)
    alone = confusion(root, lambda name: single_scale(model, photograph(root, name), 65), names)
    iou, mean, single = iou_of(several), np.nanmean(iou_of(several)), np.nanmean(iou_of(alone))
    scores = told["scores"]
    assert scores["val/multi_scale/dataset_miou"] == pytest.approx(mean, abs=2e-4)
    assert scores["val/multi_scale/iou/bird"] == pytest.approx(iou[3], abs=2e-4)
    assert scores["val/dataset_miou"] == pytest.approx(single, abs=1e-6)
    assert abs(mean - single) > 1e-3  # else the one could stand for the other
    expected = {"scales": [1.0, 0.75, 0.5], "fusion": "probabilities", "least_side": 65}
    assert (told["multi_scale"], told["crf"]) == (expected, None)
    assert (told["images"], told["images_of_split"]) == (5, 5)


def test_the_crf_and_its_search_without_the_network(
    call: Call, weights: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydensecrf")
    done = call(weights, "--crf", *SMALL, "--images", 3)
    assert done.code == 0, done.err
    header = done.out.splitlines()[0].split("  ")
    assert [cell.strip() for cell in header if cell.strip()] == [
        "class", "single scale", "3 scales", "3 scales + CRF"
    ]  # fmt: skip
    assert "the first 3 of 5 images of val" in done.out
    assert "results/work/probabilities/" in done.out
    names = names_of(root, "val")[:3]
    grid = [(rgb, weight) for rgb in (3.0, 40.0) for weight in (4.0, 9.0)]
    expected = {}
    for rgb, weight in grid:
        parameters = CrfConfig(**CRF | {"bilateral_rgb": rgb, "bilateral_weight": weight})

        def answer(name: str, parameters: CrfConfig = parameters) -> np.ndarray:
            probabilities = cached(tmp_path / "results", name)
            return refined(photograph(root, name), probabilities, parameters)

        expected[rgb, weight] = np.nanmean(iou_of(confusion(root, answer, names)))

    def no_network(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(MultiScale, "probabilities", no_network)
    search = (weights, *SMALL, "--images", 3, "--crf-set", "bilateral_rgb=3,40",
              "--crf-set", "bilateral_weight=4,9")  # fmt: skip
    told = json.loads(call(*search, "--json", "--processes", 2).out)
    found = {
        (one["crf"]["bilateral_rgb"], one["crf"]["bilateral_weight"]): one["dataset_miou"]
        for one in told["search"]
    }
    assert found == pytest.approx(expected, abs=1e-9)
    assert len(set(found.values())) > 1
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert told["crf"] is None
    assert set(told["search"][0]["crf"]) == set(CRF)
    shown = call(*search).out
    best = max(found, key=lambda values: found[values])
    assert f"The best: --crf-set bilateral_weight={best[1]:g} --crf-set bilateral_rgb=" in shown
    assert "In all of them: iterations 10, smoothness_weight 3, smoothness_xy 1," in shown
    rows = [line.split() for line in shown.splitlines()]
    first = next(row for row in rows if row and row[0].isdigit())
    assert float(first[2]) == pytest.approx(100 * found[best], abs=0.006)


def test_what_was_stopped_is_gone_on_with(
    call: Call, weights: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = MultiScale.probabilities, []

    def counted(*arguments: Any, **options: Any) -> Any:
        if len(asked) == 2:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append("predicted")
        return original(*arguments, **options)

    monkeypatch.setattr(MultiScale, "probabilities", counted)
    once = (weights, "--multi-scale", *SMALL, "--processes", 1, "--json")
    assert call(*once).code == 130
    told = json.loads(call(*once).out)
    assert asked == ["predicted"] * 2 + ["stopped"] + ["predicted"] * 3
    assert told["scores"] == json.loads(call(*once, "--results", "elsewhere").out)["scores"]
    assert len(asked) == 6 + 5


def test_a_runs_own_settings_are_the_defaults(
    call: Call, make_store: Callable[..., Store], weights: Path, root: Path
) -> None:
    store = make_store()
    params = {
        "data.name": "voc", "data.folder": "None", "data.category": "None",
        "data.images": "photographs", "data.train_split": "train_aug", "data.size": "[33, 33]",
        "evaluation.multi_scale.scales": "[1.0, 0.5]",
        "evaluation.multi_scale.fusion": "max-logits",
        "evaluation.multi_scale.least_side": "65",
    }  # fmt: skip
    run_id = store.open_child("voc-multiclass", None, "lovasz-s0", "id", params, {})
    weights = weights.rename(weights.with_name("best.safetensors"))
    store.add_artifact(run_id, weights)
    store.close(run_id, "FINISHED")
    own = {"scales": [1.0, 0.5], "fusion": "max-logits", "least_side": 65}
    told = json.loads(call(run_id[:8], "--multi-scale", "--images", 1, "--json").out)
    assert (told["multi_scale"], told["run_id"]) == (own, run_id)
    told = json.loads(call(run_id[:8], "--scales", "1", "--images", 1, "--json").out)
    assert told["multi_scale"] == own | {"scales": [1.0]}
    assert json.loads(call(run_id[:8], "--json").out)["multi_scale"] is None
    done = call(run_id[:8], "--split", "test")
    assert "was trained on train_aug" in done.err
    assert f"results/evaluate/lovasz-s0-{run_id[:8]}-test/results/VOC2012" in done.out


# -- the test set --------------------------------------------------------------------------------


def unpacked(archive: Path) -> dict[str, np.ndarray]:
    """Name -> class ids of the label files in a submission, whose palette is VOC's."""
    labels = {}
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            picture = Image.open(io.BytesIO(tar.extractfile(entry).read()))  # type: ignore[union-attr]
            assert picture.mode == "P"
            palette = picture.getpalette() or []
            assert tuple(palette[3 * 15 : 3 * 16]) == voc_colour(15)
            labels[entry.name] = np.asarray(picture)
    return labels


@pytest.mark.parametrize("how", ["single", "scales", "crf"])
def test_a_submission_holds_what_the_network_says(
    call: Call, weights: Path, root: Path, model: DeepLab, tmp_path: Path, how: str
) -> None:
    if how == "crf":
        pytest.importorskip("pydensecrf")
    write_note(root, TreeNote("demo", "a test", (60, 60), {"test": 4}))
    options = {"single": SMALL, "scales": ("--multi-scale", *SMALL), "crf": ("--crf", *SMALL)}[how]
    archive = tmp_path / "sub" / "voc.tar.gz"
    done = call(weights, "--split", "test", "--submission", archive, *options)
    assert done.code == 0, done.err
    assert "which no server scores" in done.out
    assert "http://host.robots.ox.ac.uk:8080/" not in done.out
    labels = unpacked(archive)
    names = names_of(root, "test")
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert list(labels) == [f"{folder}/{name}.png" for name in sorted(names)]
    for name in names:
        rgb = photograph(root, name)
        expected = {
            "single": lambda rgb=rgb: single_scale(model, rgb, 65),
            "scales": lambda rgb=rgb: fused(model, rgb).argmax(0),
            "crf": lambda rgb=rgb, name=name: refined(
                rgb, cached(tmp_path / "results", name), CrfConfig()
            ),
        }[how]()
        assert (labels[f"{folder}/{name}.png"] != expected).mean() < 1e-3
    first = archive.read_bytes()
    again = call(weights, "--split", "test", "--submission", archive, *options, "--json")
    told = json.loads(again.out)
    assert (told["scores"], told["submission"]) == (None, str(archive))
    assert archive.read_bytes() == first


def test_a_real_test_set_must_be_whole(call: Call, weights: Path, root: Path) -> None:
    done = call(weights, "--split", "test", "--submission", "a.tar.gz")
    assert done.code == 2
    assert "4 photographs in test, Pascal VOC 2012 has 1,456" in done.err
    done = call(weights, "--split", "test", "--images", 2)
    assert "2 label files in results/evaluate/net-test/results/VOC2012" in done.out
    assert "this is not the whole split" in done.err
    assert "No scores: the annotations of test are not public" in done.out
    (root / "VOC2012" / VOC_LISTS / "test.txt").unlink()
    done = call(weights, "--split", "test")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "test.txt: no such list" in done.err


# -- batches -------------------------------------------------------------------------------------


def test_batches_by_the_arg_max_and_by_the_rules(
    call: Call, weights: Path, root: Path, model: DeepLab
) -> None:
    """The arg max against a plain loop over whole batches; the rules have tests of their own."""
    told = json.loads(call(weights, "--batches", "2x4", "--least-side", 65, "--json").out)
    # bird, cat and person are in images 0, 1 and 2, bird and cat again in 3 and 4
    names = names_of(root, "val")
    each = {
        name: confusion(root, lambda n: single_scale(model, photograph(root, n), 65), [name])
        for name in names
    }
    of_four = [
        present_miou(sum(counts for name, counts in each.items() if name != left_out))
        for left_out in names
    ]
    assert len(told["batches"]) == 2
    for one in told["batches"]:
        assert min(abs(one["miou"] - miou) for miou in of_four) < 1e-6
        assert one["expected_miou_decision_rule"] >= one["expected_miou"]
        assert 0 <= one["miou_calibrated_rule"] <= 1
        assert "miou_rankseg" not in one
    assert told["temperature"] > 0

    done = call(weights, "--batches", "1x5", "--least-side", 65)
    assert "1 batch of 5 images: batch-mIoU" in done.out
    assert "temperature" not in done.out  # no image is left to fit it on
    done = call(weights, "--batches", "1x2")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "Give other numbers: --batches" in done.err


def present_miou(counts: np.ndarray) -> float:
    """Over the classes that the labels contain."""
    return float(iou_of(counts)[counts.sum(axis=1) > 0].mean())


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--official"], "--official does not apply"),
        (["--size", "24x32", "--upsample", "logits"], "--size, --upsample do not apply"),
        (["--folder", "nowhere"], "nowhere not found"),
        (["--submission", "a.tar.gz"], "add --split test"),
        (["--split", "test", "--submission", "a.zip"], "name a .tar.gz file"),
        (["--split", "test", "--submission", "a.tgz", "--images", "2"], "leave out --images"),
        (["--split", "test", "--crf-set", "iterations=5,10"], "on labelled photographs"),
        (["--out", "o"], "--out is for the predictions of --split test"),
        (["--processes", "2"], "add --multi-scale or --crf"),
        (["--batches", "20"], "--batches 20: give COUNTxIMAGES"),
        (["--batches", "0x21"], "--batches 0x21: give COUNTxIMAGES"),
        (["--batches", "1x4", "--split", "train"], "--batches are of validation images"),
        (["--batches", "1x4", "--images", "4"], "leave out --images"),
        (["--rankseg"], "--rankseg decides on batches: add --batches"),
        (["--scales", "1,half"], "--scales 1,half: give numbers like 1,0.75,0.5"),
        (["--scales", "1,"], "--scales 1,: give numbers"),
        (["--scales", "1,0.7"], "multiple of 0.125"),
        (["--crf-set", "bilateral_rbg=3"], "(did you mean bilateral_rgb?)"),
        (["--crf-set", "bilateral_rgb"], "expected NAME=VALUE"),
        (["--crf-set", "bilateral_rgb=3,,5"], "expected NAME=VALUE"),
        (["--crf-set", "bilateral_rgb=0"], "greater than 0"),
        (["--crf-set", "iterations=2.5"], "--crf-set: iterations"),
        (["--crf-set", "bilateral_rgb=nan"], "--crf-set: bilateral_rgb"),
        (["--crf-set", "normalization=before"], "'after' or 'symmetric'"),
        (["--crf-set", "iterations=1", "--crf-set", "iterations=2"], "iterations: given twice"),
    ],
)
def test_what_cannot_be_is_one_line(
    call: Call, weights: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = call(weights, *arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_without_the_crfs_library(
    call: Call, weights: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    done = call(weights, "--crf")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "pip install -c constraints.txt '.[crf]'" in done.err


def test_one_scale_is_continued_as_asked_as_the_run_was_or_as_deeplab_does(
    weights: Path, tmp_path: Path
) -> None:
    file = find_network(str(weights), tmp_path, None).evaluation
    of_513 = EvaluationConfig(least_side=513)
    for own, options, expected in (
        (file, VocOptions(), 513),
        (file, VocOptions(least_side=1), 1),
        (EvaluationConfig(), VocOptions(), None),  # a run made before there was the setting
        (of_513, VocOptions(multi_scale=True), 513),
        (of_513, VocOptions(least_side=97), 97),
    ):
        settings = settings_of(options, own)
        assert settings.least_side == expected
        assert bool(settings.multi_scale) == options.multi_scale


def test_settings_over_those_of_a_run() -> None:
    params = {
        "evaluation.multi_scale.scales": "[1.0, 0.5]", "evaluation.crf.iterations": "5",
        "evaluation.crf.bilateral_rgb": "1e-05", "evaluation.crf.normalization": "symmetric",
        "evaluation.batches": "None",
    }  # fmt: skip
    own = read_stored(EvaluationConfig, params, "evaluation", "run")
    assert settings_of(VocOptions(), own).multi_scale is None
    settings = settings_of(VocOptions(crf=True), own)
    assert settings.multi_scale is not None
    assert settings.multi_scale.model_dump() == {
        "scales": [1.0, 0.5], "fusion": "probabilities", "least_side": 513
    }  # fmt: skip
    changed = CRF | {"iterations": 5, "bilateral_rgb": 1e-5, "normalization": "symmetric"}
    assert [crf.model_dump() for crf in settings.crfs] == [changed]
    grid = parse_grid(["iterations=1,2", "bilateral_rgb=3,3.0, 4", "normalization=after"])
    crfs = settings_of(VocOptions(crf_set=grid), own).crfs
    assert [(crf.iterations, crf.bilateral_rgb) for crf in crfs] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert {crf.normalization for crf in crfs} == {"after"}
    with pytest.raises(UserError, match=r"unknown key crf\.of_another_tool"):
        read_stored(EvaluationConfig, {"evaluation.crf.of_another_tool": "9"}, "evaluation", "run")
    with pytest.raises(UserError, match=r"^run: evaluation: multi_scale.least_side: .*'wide'"):
        read_stored(EvaluationConfig, {"evaluation.multi_scale.least_side": "wide"}, "evaluation",
                    "run")  # fmt: skip
