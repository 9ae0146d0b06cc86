"""`predict`: what it writes, what it must not resample, and how it refuses."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.classes import CAMVID, CAMVID_FROM_CITYSCAPES, CITYSCAPES, VOC
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation import photographs
from lovasz_repro.evaluation.photographs import (
    Prediction,
    best_class,
    parse_size,
    photographs_in,
)
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.models.deeplab import DeepLab, EvidenceNet, small_deeplab
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.own_network import build_own, save_own
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run import predict
from lovasz_repro.run.evaluate import find_network
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.run.predict import Looking
from lovasz_repro.run.trained import find_trained
from lovasz_repro.store import Store

# facts of cityscapesScripts: official id of trainId 0..18
OFFICIAL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def random_network(outputs: int) -> ENet:
    """A network that answers with many classes: random weights, spread scores."""
    torch.manual_seed(outputs)
    model = ENet(outputs)
    model(torch.rand(4, 3, 64, 64))
    with torch.no_grad():
        model.classifier.weight.normal_()
    return model.eval()


def saved_network(model: ENet, path: Path, dataset: str, names: tuple[str, ...]) -> Path:
    save_weights(model, path, {"dataset": dataset, "class_names": names})
    return path


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ENet, Path]:
    model, folder = random_network(20), tmp_path_factory.mktemp("weights")
    with torch.no_grad():
        model.classifier.bias[0] = 1000  # "unlabelled" would win everywhere
    return model, saved_network(model, folder / "c.safetensors", "cityscapes", CITYSCAPES.names)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> tuple[ENet, Path]:
    model, folder = random_network(11), tmp_path_factory.mktemp("weights")
    return model, saved_network(model, folder / "c.safetensors", "camvid", CAMVID.names)


def photo(folder: Path, height: int, width: int, name: str = "street.png") -> Path:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(values).save(folder / name)
    return folder / name


def network_input(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        values = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None] / 255


def scores(model: ENet, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def forbid_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("resampled")

    monkeypatch.setattr(functional, "interpolate", refuse)
    monkeypatch.setattr(Image.Image, "resize", refuse)


def predict_images(
    images: Sequence[Path],
    weights: Path | str,
    out: Path,
    size: tuple[int, int] | None = None,
    *,
    results: Path | None = None,
    **options: Any,
) -> list[Prediction]:
    """What the command does, with weights or a run of the store in ``results``."""
    network = find_trained(str(weights), results or out, None)
    looking = Looking(size, options.pop("multi_scale", False), options.pop("crf", False))
    return predict.predict_images(images, network, out, looking, **options)


# What is written


def test_cityscapes_writes_official_ids_and_never_unlabelled(cityscapes, tmp_path: Path) -> None:
    model, weights = cityscapes
    path = photo(tmp_path / "in", 32, 48)
    (done,) = predict_images([path], weights, tmp_path / "out")
    assert done.image == path
    assert done.label_ids == tmp_path / "out" / "street_labelIds.png"
    assert done.size == (32, 48)
    best = scores(model, network_input(path))[0, 1:].argmax(0).numpy()
    assert len(np.unique(best)) > 5
    labels = read(done.label_ids)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, np.array(OFFICIAL_IDS)[best])


def test_camvid_writes_class_indices(camvid, tmp_path: Path) -> None:
    model, weights = camvid
    path = photo(tmp_path / "in", 32, 48)
    said: list[str] = []
    (done,) = predict_images([path], weights, tmp_path / "out", say=said.append)
    expected = scores(model, network_input(path))[0].argmax(0).numpy()
    assert np.array_equal(read(done.label_ids), expected)
    assert said == []
    Image.new("L", (48, 32)).save(done.label_ids)  # another network's, and another photograph's
    images = [path, photo(tmp_path / "in", 32, 48, "other.png")]
    predict_images(images, weights, tmp_path / "out", say=said.append)
    assert np.array_equal(read(done.label_ids), expected)
    assert [("1 of 2" in line, "replaced" in line) for line in said] == [(True, True)]


def test_overlay_mixes_photograph_and_class_colours(camvid, tmp_path: Path) -> None:
    path = photo(tmp_path / "in", 32, 48)
    (done,) = predict_images([path], camvid[1], tmp_path / "out")
    colours = np.array(CAMVID.colours)[read(done.label_ids)]
    expected = (1 - photographs.OPACITY) * read(path) + photographs.OPACITY * colours
    assert np.abs(read(done.overlay) - expected).max() <= 1


def test_unknown_data_set_still_works(tmp_path: Path) -> None:
    names = ("left", "right")
    weights = saved_network(random_network(2), tmp_path / "w.safetensors", "toy", names)
    (done,) = predict_images([photo(tmp_path / "in", 16, 16)], weights, tmp_path / "out")
    assert set(np.unique(read(done.label_ids))) <= {0, 1}


def test_progress_hears_of_every_image(camvid, tmp_path: Path) -> None:
    paths = [photo(tmp_path / "in", 8, 8, f"{name}.png") for name in "abc"]
    heard: list[Path] = []
    predict_images(paths, camvid[1], tmp_path / "out", advance=heard.append)
    assert heard == paths


# Sizes


@pytest.mark.parametrize("size", [None, (32, 48)])
def test_own_size_is_not_resampled(camvid, tmp_path: Path, monkeypatch, size) -> None:
    path = photo(tmp_path / "in", 32, 48)
    seen: list[torch.Tensor] = []
    forward = ENet.forward

    def watched(self: ENet, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return forward(self, images)

    monkeypatch.setattr(ENet, "forward", watched)
    forbid_resampling(monkeypatch)
    predict_images([path], camvid[1], tmp_path / "out", size)
    assert len(seen) == 1
    assert torch.equal(seen[0], network_input(path))


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (40, 9)])
def test_other_own_sizes_are_padded_and_cropped(
    camvid, tmp_path: Path, monkeypatch, height: int, width: int
) -> None:
    model, weights = camvid
    path = photo(tmp_path / "in", height, width)
    padded = np.pad(
        network_input(path).numpy(),
        [(0, 0), (0, 0), (0, -height % 8), (0, -width % 8)],
        mode="edge",
    )
    expected = scores(model, torch.from_numpy(padded))[0, :, :height, :width].argmax(0).numpy()
    forbid_resampling(monkeypatch)
    (done,) = predict_images([path], weights, tmp_path / "out")
    assert done.size == (height, width)
    assert np.array_equal(read(done.label_ids), expected)


def test_another_size_resamples_photograph_and_scores(camvid, tmp_path: Path) -> None:
    model, weights = camvid
    path = photo(tmp_path / "in", 30, 50)
    (done,) = predict_images([path], weights, tmp_path / "out", (64, 32))
    with Image.open(path) as image:
        values = np.array(image.resize((32, 64), Image.Resampling.BILINEAR), dtype=np.float32)
    logits = scores(model, torch.from_numpy(values).permute(2, 0, 1)[None] / 255)
    restored = functional.interpolate(logits, (30, 50), mode="bilinear", align_corners=False)
    labels = read(done.label_ids)
    assert labels.shape == (30, 50)
    assert (labels == restored[0].argmax(0).numpy()).mean() > 0.999  # rounding may turn a tie


def test_rotated_photograph_is_labelled_upright(camvid, tmp_path: Path) -> None:
    upright = photo(tmp_path / "in", 24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = tmp_path / "in" / "rotated.png"
    Image.fromarray(np.rot90(read(upright), 1).copy()).save(rotated, exif=exif)
    first, second = predict_images([upright, rotated], camvid[1], tmp_path / "out")
    assert second.size == (24, 40)
    assert np.array_equal(read(first.label_ids), read(second.label_ids))


def test_best_class_equals_argmax_of_all_scores() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 5, 7)
    answer = best_class(logits, range(6), (5, 7))
    assert torch.equal(answer.long(), logits[0].argmax(0))
    larger = functional.interpolate(logits, (11, 9), mode="bilinear", align_corners=False)
    chosen = [1, 2, 4]
    expected = torch.tensor(chosen)[larger[0, chosen].argmax(0)]
    assert torch.equal(best_class(logits, chosen, (11, 9)).long(), expected)


@pytest.mark.parametrize(
    ("text", "size"), [("512x1024", (512, 1024)), ("8X16", (8, 16)), ("008x8", (8, 8))]
)
def test_parse_size(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "512", "x", "512x", "ax8", "-8x8", "8x8x8", "8.0x8", "²x8"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="give HEIGHTxWIDTH"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "better"), [("360x481", "360x480"), ("0x8", "8x8"), ("3x100", "8x104")]
)
def test_size_that_is_no_multiple_of_8(text: str, better: str) -> None:
    with pytest.raises(UserError, match=f"size {text}: .* multiples of 8, for example {better}$"):
        parse_size(text)


# What is refused


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        predict_images(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_bad_images_are_told_of_and_the_good_ones_are_done(camvid, tmp_path: Path) -> None:
    good = [photo(tmp_path / "in", 16, 16, name) for name in ("a.png", "d.png")]
    truncated = photo(tmp_path / "in", 64, 64, "b.png")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    absent, out = tmp_path / "in" / "c.png", tmp_path / "out"
    heard: list[Path] = []
    lines: list[str] = []
    paths = [good[0], truncated, absent, good[1]]
    message = refusal(paths, camvid[1], out, advance=heard.append, say=lines.append)
    assert [line.startswith(f"{path}: ") for line, path in zip(lines, paths[1:3], strict=True)]
    assert "2 of 4" in message
    assert str(out) in message
    assert heard == paths
    written = sorted(path.name for path in out.iterdir())
    assert written == ["a_labelIds.png", "a_overlay.png", "d_labelIds.png", "d_overlay.png"]
    assert f"{absent}: no such file" in refusal([absent], camvid[1], out)


def test_folders_give_their_photographs(tmp_path: Path) -> None:
    street, room = tmp_path / "street", tmp_path / "room"
    first, second = photo(street, 8, 8, "b.JPG"), photo(street, 8, 8, "a.png")
    photo(street, 8, 8, ".hidden.png")
    (street / "notes.txt").write_text("")
    (street / "below").mkdir()
    room.mkdir()
    assert photographs_in([street, first]) == [second, first, first]
    with pytest.raises(UserError, match=f"{room}: no photographs"):
        photographs_in([street, room])


def test_same_stem_is_refused_before_anything_is_written(camvid, tmp_path: Path) -> None:
    first, second = photo(tmp_path / "in", 8, 8, "a.png"), photo(tmp_path / "b", 8, 8, "a.bmp")
    message = refusal([first, second], camvid[1], tmp_path / "out")
    assert str(first) in message
    assert str(second) in message
    assert not (tmp_path / "out").exists()


def test_names_that_leave_no_room_for_results_are_refused_before(camvid, tmp_path: Path) -> None:
    fine, long = (
        photo(tmp_path / "in", 8, 8, f"{'é' * n}.png") for n in (121, 122)
    )  # of two bytes
    (done,) = predict_images([fine], camvid[1], tmp_path / "out")
    assert done.label_ids.is_file()
    message = refusal([fine, long], camvid[1], tmp_path / "none")
    assert message.startswith(f"{long}: its name is too long")
    assert not (tmp_path / "none").exists()


def test_input_is_never_overwritten(camvid, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    first, second = photo(photos, 8, 8, "a.png"), photo(photos, 8, 8, "a_overlay.png")
    before = second.read_bytes()
    assert "would overwrite an input" in refusal([first, second], camvid[1], photos)
    assert second.read_bytes() == before


def test_wrong_weights(tmp_path: Path) -> None:
    path = photo(tmp_path / "in", 8, 8)
    assert "not an ENet" not in refusal([path], tmp_path / "absent.net", tmp_path / "out")
    other = tmp_path / "other.net"
    other.write_bytes(b"<html>")
    message = refusal([path], other, tmp_path / "out")
    assert str(other) in message
    assert not (tmp_path / "out").exists()


def test_wrong_device_folder_and_no_image(camvid, tmp_path: Path) -> None:
    path, weights, out = photo(tmp_path / "in", 8, 8), camvid[1], tmp_path / "out"
    assert "device 'abacus'" in refusal([path], weights, out, device="abacus")
    assert "device 'cuda:99'" in refusal([path], weights, out, device="cuda:99")
    assert "no image given" in refusal([], weights, out)
    (tmp_path / "file").write_text("")
    assert f"output folder {tmp_path / 'file'}" in refusal([path], weights, tmp_path / "file")
    assert not out.exists()


def test_full_disk_is_one_line_and_leaves_no_half_file(camvid, tmp_path: Path, monkeypatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path, out = photo(tmp_path / "in", 8, 8), tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)
    assert "street_labelIds.png: No space left" in refusal([path], camvid[1], out)
    assert list(out.iterdir()) == []


def test_photograph_beyond_memory_is_named(camvid, tmp_path: Path, monkeypatch) -> None:
    def too_large(_self: ENet, _images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 1 TB")

    path = photo(tmp_path / "in", 8, 8)
    monkeypatch.setattr(ENet, "forward", too_large)
    assert f"{path}: is too large for the memory" in refusal([path], camvid[1], tmp_path / "out")


# The real network


def test_released_network_labels_a_street(
    enet_weights: Path, camvid_root: Path, tmp_path: Path
) -> None:
    """CamVid's own labels are met on far more pixels than the 32 % that "road" would meet."""
    path = sorted((camvid_root / "val").iterdir())[50]
    (done,) = predict_images([path], enet_weights, tmp_path, (512, 1024))
    labels = read(done.label_ids)
    truth = read(camvid_root / "valannot" / f"{path.stem}.png")
    assert labels.shape == truth.shape == (360, 480)
    assert set(np.unique(labels)) <= set(OFFICIAL_IDS)
    official = np.array([CITYSCAPES.label_ids[old or 0] for old in CAMVID_FROM_CITYSCAPES.values()])
    scored = truth < 11
    assert (labels[scored] == official[truth[scored]]).mean() > 0.7


# Networks of runs, and DeepLab-v2


BICYCLE = VOC.names.index("bicycle")


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepLab, Path]:
    torch.manual_seed(4)
    model, file = small_deeplab(len(VOC)), tmp_path_factory.mktemp("weights") / "best.safetensors"
    with torch.no_grad():
        for branch in model.aspp:
            branch.weight.normal_(std=0.1)
        model.aspp[0].bias.normal_()
    save_weights(model, file, {"dataset": "voc", "class_names": VOC.names})
    return model.eval(), file


def stored(store: Store, weights: Path, status: str = "FINISHED", **params: str) -> str:
    params = {"data.name": "voc", "data.size": "[321, 321]"} | params
    run_id = store.open_child("e", None, "lovasz-b10-s0", f"id{len(store.runs())}", params, {})
    store.add_artifact(run_id, weights)
    store.close(run_id, status)
    return run_id


def grid_scores(model: DeepLab, path: Path, least_side: int) -> np.ndarray:
    """Scores (C, H, W) by DeepLab's authors' steps: BGR minus the mean, continued with it, corners
    on corners, cut."""
    bgr = read(path)[..., ::-1].astype(np.float32) - np.array([104.008, 116.669, 122.675])
    height, width = bgr.shape[:2]
    sides = [max(-(-(side - 1) // 8) * 8 + 1, least_side) for side in (height, width)]
    canvas = np.zeros((1, 3, *sides), np.float32)
    canvas[0, :, :height, :width] = bgr.transpose(2, 0, 1)
    logits = scores(model, torch.from_numpy(canvas))
    full = functional.interpolate(logits, sides, mode="bilinear", align_corners=True)
    return full[0, :, :height, :width].numpy()


def agreement(path: Path, expected: np.ndarray) -> float:
    assert len(np.unique(expected)) > 1
    return float((read(path) == expected).mean())


def test_deeplab_sees_a_photograph_as_in_training(deeplab, tmp_path: Path, store: Store) -> None:
    model, weights = deeplab
    path = photo(tmp_path / "in", 30, 45)
    (done,) = predict_images([path], weights, tmp_path / "file")
    assert agreement(done.label_ids, grid_scores(model, path, 513).argmax(0)) > 0.999
    run_id = stored(store, weights, **{"evaluation.least_side": "None"})
    (done,) = predict_images([path], run_id[:8], tmp_path / "run", results=store.results)
    assert agreement(done.label_ids, grid_scores(model, path, 1).argmax(0)) > 0.999


def test_a_binary_network_finds_its_class(deeplab, tmp_path: Path, store: Store) -> None:
    model, weights = deeplab
    path = photo(tmp_path / "in", 30, 45)
    run_id = stored(store, weights, **{"data.category": "bicycle"})
    found = grid_scores(model, path, 1)[BICYCLE] > 0
    (done,) = predict_images([path], run_id, tmp_path / "run", results=store.results)
    assert agreement(done.label_ids, np.where(found, BICYCLE, 0)) > 0.999
    noted = tmp_path / "noted.safetensors"
    about = {"dataset": "voc", "class_names": VOC.names, "category": "bicycle"}
    save_weights(model, noted, about)
    (done,) = predict_images([path], noted, tmp_path / "file")
    found = grid_scores(model, path, 513)[BICYCLE] > 0
    assert agreement(done.label_ids, np.where(found, BICYCLE, 0)) > 0.999
    text = refusal([path], noted, tmp_path / "none", multi_scale=True)
    assert "several scales" in text
    with pytest.raises(UserError, match="bicycle from the rest"):
        find_network(str(noted), tmp_path, None)


def test_several_scales_are_those_of_the_run(deeplab, tmp_path: Path, store: Store) -> None:
    _, weights = deeplab
    path = photo(tmp_path / "in", 30, 45)
    asked = {"scales": "[1.0, 0.5]", "fusion": "max-logits", "least_side": "65"}
    under = "evaluation.multi_scale"
    run_id = stored(store, weights, **{f"{under}.{key}": text for key, text in asked.items()})
    network = find_trained(run_id, store.results, None)
    assert network.evaluation.multi_scale is not None
    assert network.evaluation.multi_scale.scales == [1.0, 0.5]
    kind = NETWORKS["deeplab-v2"]
    fused = MultiScale(
        network.snapshot.model, kind, torch.device("cpu"),
        multi_scale=network.evaluation.multi_scale,
    )  # fmt: skip
    seen = torch.from_numpy(read(path).copy()).permute(2, 0, 1)[None]
    expected = fused.probabilities(seen, (30, 45))[0].argmax(0).numpy()
    results = store.results
    (done,) = predict_images([path], run_id, tmp_path / "o", results=results, multi_scale=True)
    assert agreement(done.label_ids, expected) == 1
    enet = saved_network(random_network(11), tmp_path / "e.safetensors", "camvid", CAMVID.names)
    assert "several scales" in refusal([path], enet, tmp_path / "none", multi_scale=True)


def test_the_crf_refines_the_probabilities_of_the_answers(
    cityscapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, weights = cityscapes
    path = photo(tmp_path / "in", 24, 32)
    given: list[np.ndarray] = []

    def refined(image: np.ndarray, probabilities: np.ndarray, crf: CrfConfig) -> np.ndarray:
        assert np.array_equal(image, read(path))
        assert crf == CrfConfig()
        given.append(probabilities)
        return np.full((24, 32), 3, np.uint8)

    monkeypatch.setattr(predict, "check_installed", lambda: None)
    monkeypatch.setattr(predict, "refine", refined)
    (done,) = predict_images([path], weights, tmp_path / "out", crf=True)
    expected = scores(model, network_input(path))[0, 1:].softmax(0).numpy()
    assert np.allclose(given[0], expected, atol=1e-6)
    assert set(np.unique(read(done.label_ids))) == {OFFICIAL_IDS[3]}


def plain(classes: int) -> nn.Module:
    """A network of one's own."""
    torch.manual_seed(1)
    return nn.Conv2d(3, classes, 3, padding=1)


def test_a_network_of_ones_own_is_asked_by_its_run_alone(tmp_path: Path, store: Store) -> None:
    path, weights = photo(tmp_path / "in", 30, 45), tmp_path / "best.safetensors"
    source = f"{__name__}:plain"
    model = build_own(source, 3)
    with torch.no_grad():
        model.network.bias.add_(0.01)  # type: ignore[operator, union-attr]
    save_own(model.eval(), weights, {"dataset": "own", "class_names": ("a", "b", "c")})
    params = {"data.name": "own", "model.name": "callable", "model.callable": source}
    run_id = stored(store, weights, **params)
    (done,) = predict_images([path], run_id, tmp_path / "out", results=store.results)
    with torch.no_grad():
        expected = model(network_input(path))[0].argmax(0).numpy()
    assert agreement(done.label_ids, expected) > 0.999
    assert "id of its run" in refusal([path], weights, tmp_path / "none")
    store.set_tags(run_id, {"origin_run_id": "a" * 32})
    text = refusal([path], run_id, tmp_path / "none", results=store.results)
    assert "imported" in text


def test_runs_that_cannot_be_asked(deeplab, tmp_path: Path, store: Store) -> None:
    path, out, results = photo(tmp_path / "in", 8, 8), tmp_path / "out", store.results
    killed = stored(store, deeplab[1], "KILLED")
    assert "STOPPED, not FINISHED" in refusal([path], killed, out, results=results)
    features = stored(store, deeplab[1], **{"data.images": "features"})
    assert "no photograph" in refusal([path], features, out, results=results)
    other = tmp_path / "config.yaml"
    other.write_text("")
    without = stored(store, other)
    assert "best.safetensors" in refusal([path], without, out, results=results)
    assert "no run 'abcdef0'" in refusal([path], "abcdef0", out, results=results)
    assert "neither a file" in refusal([path], "no-such-thing", out, results=results)
    evidence = tmp_path / "evidence.safetensors"
    save_weights(EvidenceNet(21), evidence, {"dataset": "voc", "class_names": VOC.names})
    assert "no photographs" in refusal([path], evidence, out)
    assert not out.exists()
