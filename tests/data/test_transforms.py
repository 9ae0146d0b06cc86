"""Image and mask transforms."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.data.images import mirror, resize_image, resize_mask
from lovasz_repro.models.enet import to_unit_range

sides = st.integers(1, 40)


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 99))
def test_a_resized_mask_invents_no_id(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    ids = np.array([0, 3, 10, 11, 255], dtype=np.uint8)
    mask = np.random.default_rng(seed).choice(ids, size=(height, width))
    resized = resize_mask(mask, (new_height, new_width))
    assert resized.shape == (new_height, new_width)
    assert set(np.unique(resized)) <= set(np.unique(mask))


@given(height=st.integers(4, 30), width=st.integers(4, 30), factor=st.integers(1, 4))
def test_image_and_mask_stay_aligned(height: int, width: int, factor: int) -> None:
    """Each pixel's column, written into both, is the same in both after shrinking."""
    columns = np.broadcast_to(np.arange(width * factor, dtype=np.uint8), (height, width * factor))
    image = np.repeat(columns[..., None], 3, axis=2).copy()
    small_image = resize_image(image, (height, width)).astype(int)[..., 0]
    small_mask = resize_mask(columns.copy(), (height, width)).astype(int)
    assert np.abs(small_image - small_mask).max() <= factor
    assert (np.diff(small_mask, axis=1) >= 0).all()


def test_a_fitting_size_is_not_resampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    assert resize_image(image, (8, 12)) is image


def test_mirror_flips_both() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mask = np.arange(8, dtype=np.uint8).reshape(2, 4)
    flipped_image, flipped_mask = mirror(image, mask)
    assert flipped_image[0, 0].tolist() == image[0, 3].tolist()
    assert flipped_mask.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]


def test_unit_range_divides_by_255_and_keeps_the_memory_format_asked_for() -> None:
    images = torch.tensor([[[[0]], [[51]], [[255]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_unit_range(images).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    large = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    assert to_unit_range(large, True).is_contiguous(memory_format=torch.channels_last)
