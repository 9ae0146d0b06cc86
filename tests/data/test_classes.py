"""Class tables against the published ones."""

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.classes import (
    CAMVID,
    CITYSCAPES,
    CLASS_TABLES,
    VOC,
    class_table,
    colourise,
    voc_colour,
)
from tests.conftest import real_data


@pytest.mark.parametrize("table", CLASS_TABLES.values(), ids=CLASS_TABLES)
def test_tables_are_complete_and_unambiguous(table) -> None:
    count = len(table)
    for column in (table.names, table.colours, table.label_ids, table.predictable):
        assert len(column) == count
    assert len(set(table.names)) == len(set(table.colours)) == len(set(table.label_ids)) == count


def test_sizes_and_what_is_predicted() -> None:
    assert (len(CITYSCAPES), len(CAMVID), len(VOC)) == (20, 11, 21)
    assert CITYSCAPES.predictable == (False, *[True] * 19)
    assert all(CAMVID.predictable)
    assert all(VOC.predictable)


def test_voc_colours_of_the_development_kit() -> None:
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        9: (192, 0, 0),
        15: (192, 128, 128),
        16: (0, 64, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {index: voc_colour(index) for index in published} == published


def test_tables_by_data_set_and_names() -> None:
    assert class_table("cityscapes", (), 20) is CITYSCAPES
    assert class_table("cityscapes", CITYSCAPES.names, 20) == CITYSCAPES
    scored = class_table("cityscapes", CITYSCAPES.names[1:], 19)
    assert scored.label_ids == CITYSCAPES.label_ids[1:]
    assert all(scored.predictable)
    turned = class_table("camvid", CAMVID.names[::-1], 11)
    assert turned.colours == CAMVID.colours[::-1]
    assert turned.label_ids == tuple(range(10, -1, -1))


def test_unknown_data_set_gets_voc_colours() -> None:
    table = class_table("toy", ("left", "right"), 2)
    assert table.colours == ((0, 0, 0), (128, 0, 0))
    assert class_table("unknown", (), 3).names == ("class 0", "class 1", "class 2")
    assert class_table("cityscapes", ("road", "moon"), 2).label_ids == (0, 1)
    with pytest.raises(ValueError, match="256 classes"):
        class_table("toy", (), 256)


def test_colourise() -> None:
    picture = colourise(np.array([[0, 10], [3, 3]]), CAMVID)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [[128, 128, 128], [0, 128, 192]],
        [[128, 64, 128], [128, 64, 128]],
    ]


def test_voc_colours_of_a_real_mask() -> None:
    folder = real_data("voc", "VOC2012", "SegmentationClassAug")
    with Image.open(min(folder.iterdir())) as mask:
        palette = mask.getpalette()
    if palette is None:
        pytest.skip("these masks carry no palette")
    colours = [tuple(palette[3 * index : 3 * index + 3]) for index in range(21)]
    assert colours == list(VOC.colours)
