"""``export``: what the file answers when somebody follows the notes beside it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lovasz_repro.data.classes import CAMVID, VOC
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run import export
from lovasz_repro.run.export import ExportedFile, export_network
from lovasz_repro.run.trained import find_trained

CAT = VOC.names.index("cat")


def saved(model: nn.Module, file: Path, **notes: object) -> Path:
    table = VOC if isinstance(model, DeepLab) else CAMVID
    save_weights(model, file, {"dataset": table.dataset, "class_names": table.names, **notes})
    return file


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepLab, Path]:
    torch.manual_seed(0)
    model = DeepLab(len(VOC), blocks=(1, 1, 1, 1), width=2)
    with torch.no_grad():
        for branch in model.aspp:
            branch.weight.normal_()
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    return model.eval(), saved(model, file, input_size="321x321")


def exported(weights: Path, target: Path, photo: Path | None = None) -> ExportedFile:
    return export_network(find_trained(str(weights), target.parent, None), target, photo)


def photo(folder: Path, height: int, width: int) -> Path:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(folder / "photo.png")
    return folder / "photo.png"


def by_the_notes(about: Any, file: Path) -> torch.Tensor:
    """A photograph as the notes say that the network takes it, (1, 3, H, W)."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    given = about["input"]
    if given["channels"] == "BGR":
        pixels = pixels[..., ::-1]
    pixels = pixels / given["divisor"] - np.array(given["mean"], np.float32)
    remainder = {"8 n": 0, "8 n + 1": 1}[given["sides"]]
    sides = [max(-(-(side - remainder) // 8) * 8 + remainder, given.get("least_side", 1))
             for side in pixels.shape[:2]]  # fmt: skip
    pad = [(0, full - side) for full, side in zip(sides, pixels.shape[:2], strict=True)]
    mode: Any = "constant" if remainder else "edge"
    return torch.from_numpy(np.pad(pixels, [*pad, (0, 0)], mode=mode).transpose(2, 0, 1)[None])


def answers_of_onnx(file: Path, images: torch.Tensor) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    assert given.shape[0] == "batch"
    return session.run(None, {given.name: images.numpy()})[0]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()))


def test_onnx_answers_as_the_network_by_the_notes(deeplab, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, weights = deeplab
    path, target = photo(tmp_path, 40, 61), tmp_path / "to" / "model.onnx"
    done = exported(weights, target, path)
    assert sorted(file.name for file in target.parent.iterdir()) == [target.name, done.notes.name]
    about = json.loads(done.notes.read_text())
    metadata = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    inside = json.loads(metadata["preprocessing"])
    assert inside == {key: value for key, value in about.items() if key != "compared"}
    assert about["compared"]["photograph"] == "photo.png"
    assert about["trained"]["size"] == [321, 321]
    assert [entry["name"] for entry in about["classes"]] == list(VOC.names)
    images = by_the_notes(about, path)
    assert images.shape == (1, 3, 513, 513)
    with torch.no_grad():
        for batch in (images, torch.rand(3, 3, 33, 49) * 255):  # sizes and batches vary
            assert close(answers_of_onnx(target, batch), model(batch).numpy())


@pytest.mark.slow
def test_enet_as_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ENet(len(CAMVID))
    model(torch.rand(4, 3, 64, 64))
    weights = saved(model.eval(), tmp_path / "w.safetensors", input_size="360x480")
    path, target = photo(tmp_path, 40, 61), tmp_path / "model.onnx"
    about = exported(weights, target, path).about
    images = by_the_notes(about, path)
    assert images.shape == (1, 3, 40, 64)
    with torch.no_grad():
        for batch in (images, torch.rand(2, 3, 16, 24)):
            assert close(answers_of_onnx(target, batch), model(batch).numpy())


def test_unpooling_is_pytorchs() -> None:
    torch.manual_seed(0)
    pooled, indices = functional.max_pool2d(torch.randn(2, 3, 8, 12), 2, return_indices=True)
    values = torch.randn_like(pooled)
    expected = functional.max_unpool2d(values, indices, 2)
    assert torch.equal(export.scattered(values, indices, [8, 12]), expected)


def test_a_binary_network_has_one_output(deeplab, tmp_path: Path) -> None:
    model, _ = deeplab
    weights = saved(model, tmp_path / "w.safetensors", category="cat")
    path, target = photo(tmp_path, 25, 33), tmp_path / "model.pt2"
    about = exported(weights, target, path).about
    assert [entry["name"] for entry in about["classes"]] == ["cat"]
    assert about["classes"][0]["label_id"] == CAT
    images, inside = by_the_notes(about, path), {"preprocessing.json": ""}
    program = torch.export.load(target, extra_files=inside).module()
    assert json.loads(inside["preprocessing.json"])["input"] == json.loads(
        json.dumps(about["input"])
    )
    with torch.no_grad():
        assert close(program(images).numpy(), model(images)[:, [CAT]].numpy())


def refused(kind: type[Exception], weights: Path, target: Path, photo: Path | None = None) -> str:
    with pytest.raises(kind) as caught:
        exported(weights, target, photo)
    assert not target.is_file()
    assert not list(target.parent.glob("*.json"))
    return str(caught.value)


def test_what_cannot_be_is_said_before_anything_is_traced(
    deeplab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("traced"))
    weights = deeplab[1]
    assert ".onnx or .pt2" in refused(UserError, weights, tmp_path / "model.pth")
    (tmp_path / "folder.pt2").mkdir()
    assert "is a folder" in refused(UserError, weights, tmp_path / "folder.pt2")
    (tmp_path / "file").write_text("")
    below_a_file = tmp_path / "file" / "model.pt2"
    assert f"cannot write {below_a_file}" in refused(UserError, weights, below_a_file)
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert f"{bad}: unreadable" in refused(UserError, weights, tmp_path / "model.pt2", bad)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert "[export]" in refused(UserError, weights, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "EXPORTABLE", {})
    assert "is not exported" in refused(UserError, weights, tmp_path / "model.pt2")


@pytest.fixture
def cheap(deeplab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A format that costs nothing; ``cheap(factor)`` lets it answer with logits times that."""

    def answers(factor: float) -> None:
        def ask(content: bytes, images: torch.Tensor) -> np.ndarray:
            with torch.no_grad():
                return deeplab[0](images).numpy() * factor

        monkeypatch.setattr(export, "traced", lambda model, kind: model)
        monkeypatch.setitem(export.FORMATS, ".pt2", (lambda *_: b"network", ask, ()))

    return answers


def test_a_file_that_answers_otherwise_is_not_put_in_place(cheap, deeplab, tmp_path: Path) -> None:
    cheap(1.01)
    assert "answers otherwise" in refused(RunFailed, deeplab[1], tmp_path / "model.pt2")
    cheap(1.0001)
    assert exported(deeplab[1], tmp_path / "model.pt2").file.read_bytes() == b"network"


@pytest.mark.parametrize("synced", [0, 2])
def test_a_full_disk_leaves_nothing(
    cheap, deeplab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: int
) -> None:
    """Neither the network nor its notes, whose file and folder are synced first."""
    cheap(1)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > synced:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(RunFailed, deeplab[1], tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
