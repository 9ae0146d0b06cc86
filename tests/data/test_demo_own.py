"""The drawn folder of one's own: what is in it, and that the tool finds no fault with it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.check_own import check_own_folder
from lovasz_repro.data.demo import draw_small, mask_of, write_own_demo
from lovasz_repro.data.own_files import list_pairs
from lovasz_repro.data.own_masks import (
    OwnClasses,
    decode_mask,
    folder_palette,
    read_classes,
    read_own_mask,
)
from lovasz_repro.data.own_prepare import prepare_own
from lovasz_repro.errors import UserError

COUNTS = 7, 3, 2


def classes_of(root: Path) -> OwnClasses:
    found = read_classes(root)
    assert found
    return folder_palette(decode_mask(list_pairs(root, "train")[0].mask), found)


@pytest.mark.parametrize("kinds", [1, 3])
def test_a_drawn_folder_is_whole(tmp_path: Path, kinds: int) -> None:
    root = tmp_path / "demo"
    assert write_own_demo(root, 1, COUNTS, 96, kinds=kinds)
    assert not write_own_demo(root, 1, COUNTS, 96, kinds=kinds)
    report = check_own_folder(root)
    assert report.ok, report.problems
    assert [row.images for row in report.splits] == [*COUNTS]
    assert len(report.classes) == 1 + kinds
    assert len(report.sizes) > 1
    assert prepare_own(root).wrote == ()
    with pytest.raises(UserError, match="data demo own"):
        write_own_demo(root, 2, COUNTS, 96, kinds=kinds)


def test_masks_are_those_of_what_was_drawn(tmp_path: Path) -> None:
    for kinds in (1, 3):
        root = tmp_path / str(kinds)
        write_own_demo(root, 1, COUNTS, 96, kinds=kinds)
        pair = list_pairs(root, "val")[1]
        _, drawn = draw_small(1, "val", 1, 96)
        expected = np.where(drawn <= kinds, drawn, 0)
        assert np.array_equal(read_own_mask(pair.mask, classes_of(root)), expected)
    names = [sorted(p.name for p in (tmp_path / k / "images").iterdir()) for k in ("1", "3")]
    assert names[0] == names[1]
    for name in names[0]:
        first, second = ((tmp_path / k / "images" / name).read_bytes() for k in ("1", "3"))
        assert first == second


def test_objects_are_small_and_some_images_have_none() -> None:
    drawn = [draw_small(0, "train", number, 96)[1] for number in range(14)]
    shares = np.array([(labels == 1).mean() for labels in drawn])
    assert (shares[[6, 13]] == 0).all()
    assert (np.delete(shares, [6, 13]) > 0).all()
    assert shares.mean() < 0.05


def test_a_stranger_reads_the_masks_alike(tmp_path: Path) -> None:
    labels = draw_small(0, "train", 0, 96)[1]
    mask_of(labels, 5).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
