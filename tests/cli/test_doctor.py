"""``doctor``: what the VOC experiments need, found or told how to get."""

from pathlib import Path

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
