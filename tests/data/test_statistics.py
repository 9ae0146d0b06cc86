"""Counts of classes per image, and the shares that ENet's weights come from."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lovasz_repro.data.camvid import CAMVID_IDS, list_files
from lovasz_repro.data.images import read_mask
from lovasz_repro.data.sampling import class_counts, class_presence, class_shares
from lovasz_repro.data.voc import presence_of
from tests.conftest import real_data


class Labels:
    """Two images of labels, and how often they were read."""

    def __init__(self, last: int = 3) -> None:
        self.read = 0
        self.images = [np.array([[0, 1, 1]]), np.array([[last, 1, 0]])]

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, index: int) -> np.ndarray:
        self.read += 1
        return self.images[index].astype(np.uint8)


def test_counts_are_those_of_each_image() -> None:
    counts = class_counts(Labels(last=255))
    assert counts.shape == (2, 256)
    assert counts[:, [0, 1, 2, 255]].tolist() == [[1, 2, 0, 0], [1, 1, 0, 1]]
    assert counts.sum() == 6


def test_presence_by_hand() -> None:
    """Three images show class 1, one each of 2 and 3, none 4; 0 is no class."""
    counts = np.zeros((4, 256), dtype=np.int32)
    counts[:3, 1] = counts[0, 2] = counts[3, 3] = 7
    counts[:, 0] = counts[:, 255] = 9
    found = class_presence(counts, range(1, 5))
    shares = [3 / 5, 1 / 5, 1 / 5]
    entropy = -sum(share * math.log(share) for share in shares)
    assert found == {
        "classes_per_image": pytest.approx(5 / 4),
        "class_uniformity": pytest.approx(entropy / math.log(3)),
    }
    even = class_presence(counts[[0, 0]], [1, 2])
    assert even == {"classes_per_image": 2.0, "class_uniformity": pytest.approx(1.0)}
    assert math.isnan(class_presence(counts, [1])["class_uniformity"])


def counts_of(presence: np.ndarray) -> np.ndarray:
    return np.pad(presence, ((0, 0), (0, 256 - presence.shape[1]))).astype(np.int32)


@pytest.mark.slow
def test_streets_are_more_uniform_than_voc() -> None:
    """Sec. 4.4 says so of Cityscapes; CamVid's 11 classes stand in for it."""
    voc = class_presence(counts_of(presence_of(real_data("voc"), "train_aug")), range(21))
    assert voc["classes_per_image"] == pytest.approx(2.47, abs=0.005)
    assert voc["class_uniformity"] == pytest.approx(0.751, abs=0.001)
    masks = [read_mask(mask, CAMVID_IDS) for _, _, mask in list_files(real_data("camvid"), "train")]
    shown = np.array([[(mask == label).any() for label in range(11)] for mask in masks])
    streets = class_presence(counts_of(shown), range(11))
    assert streets["classes_per_image"] == pytest.approx(9.63, abs=0.005)
    assert streets["class_uniformity"] == pytest.approx(0.990, abs=0.001)


def test_counts_are_kept_and_read_once(tmp_path: Path) -> None:
    images, cache = Labels(), tmp_path / "counts" / "some.npy"
    first = class_counts(images, cache)
    assert images.read == 2
    np.testing.assert_array_equal(class_counts(images, cache), first)
    assert images.read == 2
    assert [file.name for file in cache.parent.iterdir()] == ["some.npy"]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_or_foreign_cache_is_counted_again(tmp_path: Path, content: bytes | None) -> None:
    cache = tmp_path / "some.npy"
    if content is None:
        np.save(cache, np.zeros((3, 256), dtype=np.int32))
    else:
        cache.write_bytes(content)
    images = Labels()
    expected = class_counts(images)
    np.testing.assert_array_equal(class_counts(images, cache), expected)
    np.testing.assert_array_equal(np.load(cache), expected)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert class_counts(Labels(), tmp_path / "file" / "some.npy").sum() == 6


def test_every_image_is_followed() -> None:
    followed: list[int] = []

    def follow(indices):  # type: ignore[no-untyped-def]
        for index in indices:
            followed.append(index)
            yield index

    class_counts(Labels(), follow=follow)
    assert followed == [0, 1]


def test_shares_count_void_in_the_total() -> None:
    counts = class_counts(Labels(last=4))
    shares = class_shares(counts, 4)
    torch.testing.assert_close(shares, torch.tensor([2, 3, 0, 0]).double() / 6)
    shares = class_shares(class_counts(Labels()), 4)
    torch.testing.assert_close(shares, torch.tensor([2, 3, 0, 1]).double() / 6)
