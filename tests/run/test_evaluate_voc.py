"""From somebody else's weight file to scores on Pascal VOC."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from lovasz_repro import cli
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import save_weights
from tests.foreign_deeplab import isht7, random_deeplab
from tests.tiny_voc import write_voc


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lovasz-repro", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def confusion_of(model: DeepLab, root: Path) -> np.ndarray:
    """Pixels by label and answer, (21, 21), in plain NumPy around the network."""
    counts = np.zeros((21, 21), dtype=int)
    folder = root / "VOC2012"
    names = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
    model.eval()
    for name in names:
        rgb = np.asarray(Image.open(folder / f"JPEGImages/{name}.jpg"), dtype=np.float32)
        labels = np.asarray(Image.open(folder / f"SegmentationClassAug/{name}.png"))
        height, width = labels.shape
        bgr = rgb[..., ::-1] - np.array([104.008, 116.669, 122.675], dtype=np.float32)
        rows, columns = -(-(height - 1) // 8), -(-(width - 1) // 8)
        canvas = np.zeros((1, 3, 8 * rows + 1, 8 * columns + 1), dtype=np.float32)
        canvas[0, :, :height, :width] = bgr.transpose(2, 0, 1)
        with torch.no_grad():
            logits = model(torch.from_numpy(canvas))
            full = functional.interpolate(
                logits, canvas.shape[2:], mode="bilinear", align_corners=True
            )
        answer = full[0, :, :height, :width].argmax(dim=0).numpy()
        known = labels != 255
        np.add.at(counts, (labels[known], answer[known]), 1)
    return counts


def test_from_a_foreign_file_to_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_deeplab(seed=3)
    torch.save(isht7(model), tmp_path / "MS_DeepLab.pth")
    root = write_voc(tmp_path / "data" / "voc")
    converted = tmp_path / "deeplab.safetensors"
    assert call(monkeypatch, "weights", "convert", tmp_path / "MS_DeepLab.pth", converted,
                "--classifier") == 0  # fmt: skip
    capsys.readouterr()
    options = ("--data", tmp_path / "data", "--device", "cpu")
    assert call(monkeypatch, "evaluate", converted, *options, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    counts = confusion_of(model, root)
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
    assert told["images"] == 6
    assert told["scores"]["val/dataset_miou"] == pytest.approx(np.nanmean(iou), abs=1e-6)
    assert told["scores"]["val/iou/bird"] == pytest.approx(iou[3], abs=1e-6)
    assert call(monkeypatch, "evaluate", converted, *options) == 0
    assert "6 images of val" in capsys.readouterr().out


def test_a_network_of_other_classes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    names = tuple("abcd")
    save_weights(random_deeplab(outputs=4), file, {"dataset": "x", "class_names": names})
    assert call(monkeypatch, "evaluate", file, "--data", tmp_path) == 2
    assert "4 outputs; VOC has 21 classes" in capsys.readouterr().err
