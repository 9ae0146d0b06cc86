"""Counts of classes per image, and the shares that ENet's weights come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lovasz_repro.data.statistics import class_counts, class_shares


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


def test_every_class_has_its_share() -> None:
    shares = class_shares(class_counts(Labels()), 4)
    torch.testing.assert_close(shares, torch.tensor([2, 3, 0, 1]).double() / 6)
