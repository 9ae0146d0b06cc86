"""``doctor``: what the VOC experiments need, found or told how to get."""

import importlib.metadata
from pathlib import Path

import pytest

from lovasz_repro.cli import doctor
from lovasz_repro.data.voc import JPEGS
from tests.tiny_voc import write_voc


def test_voc_is_counted_or_told_how_to_get(tmp_path: Path) -> None:
    missing = doctor.data_set(tmp_path, "voc")
    assert not missing.ok
    assert "`run voc-binary` and `run voc-multiclass`" in missing.detail
    assert "lovasz-repro data check voc" in missing.detail
    root = write_voc(tmp_path / "voc", train=4, val=2)
    found = doctor.data_set(tmp_path, "voc")
    expected = "4/2 train_aug/val, but the published split is 10582/1449"
    assert (found.ok, found.detail) == (False, f"{root}: {expected}")
    (root / "VOC2012" / JPEGS / "2007_000000.jpg").unlink()
    damaged = doctor.data_set(tmp_path, "voc")
    assert not damaged.ok
    assert "2007_000000.jpg: missing (1 of 4 photographs are)" in damaged.detail


@pytest.mark.parametrize("installed", [True, False])
def test_the_extra_of_the_crf(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    def version(name: str) -> str:
        assert name == "pydensecrf2"
        if not installed:
            raise importlib.metadata.PackageNotFoundError
        return "1.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.package("pydensecrf2", doctor.EXTRAS["pydensecrf2"])
    assert (finding.ok, finding.essential) == (installed, False)
    if installed:
        assert finding.detail == "1.1"
    else:
        assert "`run voc-multiclass` and `evaluate --crf`" in finding.detail
        assert "pip install 'lovasz-repro[crf]'" in finding.detail


def test_everything_is_looked_for(tmp_path: Path) -> None:
    names = [finding.name for finding in doctor.examine(tmp_path, tmp_path / "results", None)]
    assert {"voc", "pydensecrf2", "deeplab weights", "cityscapesscripts"} <= set(names)
    assert len(set(names)) == len(names)
