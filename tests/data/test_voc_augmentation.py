"""The augmentation of VOC: aligned, void where padded, a function of the position, fair."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from lovasz_repro.data.examples import (
    CROP,
    CROP_SCALES,
    MEAN_BGR,
    PADDING_RGB,
    AugmentationName,
    augment,
    pad,
    resize_bilinear,
    resize_labels,
    resize_labels_by_centres,
    to_caffe,
)

VOID = 255


def coordinates(height: int, width: int) -> np.ndarray:
    """RGB (H, W, 3) uint8, sides up to 120: red is 2 * column, green 2 * row, blue 1."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([2 * columns, 2 * rows, np.ones_like(rows)], axis=-1).astype(np.uint8)


def random_labels(height: int, width: int, seed: int) -> np.ndarray:
    labels = np.random.default_rng(seed).choice([0, 3, 20, VOID], (height, width))
    return labels.astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    """RGB (H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


sides = st.integers(1, 120)
seeds = st.integers(0, 2**31 - 1)
positions = st.integers(0, 200_000)


# ---- all of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "most"), [("deeplab", 1.51), ("deeplab-centres", 0.76)])
@given(sides, sides, seeds, positions, st.integers(1, 90))
def test_image_and_labels_stay_aligned(
    how: AugmentationName, most: float, height: int, width: int, seed: int, position: int, crop: int
) -> None:
    """Labels that hold a column or a row show the one that the image shows beside them.

    By their centres to half a pixel. OpenCV's rule takes the pixel that begins at or before its
    own beginning, which is a pixel more, and up to a quarter where 5 pixels become 2.
    """
    image = coordinates(height, width)
    for channel in (0, 1):
        labels = image[..., channel] // 2
        shown, there = augment(image, labels, seed=seed, position=position, crop=crop, how=how)
        inside = there != VOID
        off = np.abs(shown[..., channel] / 2 - there)[inside]
        assert off.size > 0
        assert off.max() <= most  # a quarter of it are 8-bit values of 2


@given(seeds, positions)
def test_what_is_shown_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    image, labels = coordinates(70, 60), random_labels(70, 60, 0)
    before = image.copy(), labels.copy()
    first = augment(image, labels, seed=seed, position=position, crop=33)
    second = augment(image, labels, seed=seed, position=position, crop=33)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


@given(sides, sides, st.integers(0, 400), st.integers(1, 90))
def test_it_is_one_of_the_crops_of_the_whole_image_resized_and_padded(
    height: int, width: int, position: int, crop: int
) -> None:
    """Against the plain definition: one scale, one place, mirrored or not, for both alike."""
    image, labels = noise(height, width), random_labels(height, width, 2)
    shown, there = augment(image, labels, seed=3, position=position, crop=crop)
    for scale in CROP_SCALES:
        size = max(1, int(height * scale)), max(1, int(width * scale))
        whole = resize_labels(labels, size, (slice(None), slice(None)))
        padded, void = pad(resize_bilinear(image, size), whole, crop)
        for turned in (slice(None), slice(None, None, -1)):
            windows = sliding_window_view(padded, (crop, crop), (0, 1)).transpose(0, 1, 3, 4, 2)
            tops, lefts = np.nonzero((windows[..., 0, 0, :] == shown[0, turned][0]).all(-1))
            for top, left in zip(tops, lefts, strict=True):
                same = np.array_equal(windows[top, left], shown[:, turned])
                cut = void[top : top + crop, left : left + crop]
                if same and np.array_equal(cut, there[:, turned]):
                    return
    raise AssertionError("no crop of any scale")


def test_positions_and_seeds_differ() -> None:
    image, labels = coordinates(100, 100), random_labels(100, 100, 0)

    def shown(seed: int) -> set[bytes]:
        return {augment(image, labels, seed=seed, position=k, crop=33)[0].tobytes()
                for k in range(50)}  # fmt: skip

    assert len(shown(1)) > 45
    assert len(shown(1) & shown(2)) < 5


def test_scales_crops_and_mirroring_are_fair() -> None:
    """On a ramp that fits the crop at no scale, the slope gives scale and mirroring."""
    image, labels = coordinates(120, 120), np.zeros((120, 120), np.uint8)
    draws = 1000
    slopes: Counter[tuple[float, bool]] = Counter()
    places = []
    for position in range(draws):
        shown, _ = augment(image, labels, seed=5, position=position, crop=31)
        slope = (float(shown[15, 25, 0]) - float(shown[15, 5, 0])) / 2 / 20
        scale = min(CROP_SCALES, key=lambda scale: abs(1 / scale - abs(slope)))
        slopes[scale, slope < 0] += 1
        places.append(shown[15, 15, :2] / 240 * 120 * scale - 15.5)  # left and top, about
        assert abs(1 / scale - abs(slope)) < 0.06
    for scale in CROP_SCALES:
        assert abs(slopes[scale, False] + slopes[scale, True] - 200) < 60  # 5 deviations of 12.6
    assert abs(sum(slopes[scale, True] for scale in CROP_SCALES) - 500) < 80  # 5 deviations of 15.8
    lefts, tops = np.array(places).T
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.7
    assert lefts.min() < 3
    assert lefts.max() > 130  # of 0..149 at scale 1.5
    assert tops.max() > 130


def test_the_first_and_the_last_place_of_the_crop_occur() -> None:
    """At scale 1 an image of 10 x 11 has 2 x 3 places for a crop of 9; labels number its pixels."""
    labels = np.arange(110, dtype=np.uint8).reshape(10, 11)
    crops = {(top, left): labels[top : top + 9, left : left + 9]
             for top in range(2) for left in range(3)}  # fmt: skip
    seen = set()
    for position in range(300):
        _, shown = augment(coordinates(10, 11), labels, seed=0, position=position, crop=9)
        for place, crop in crops.items():
            if np.array_equal(shown, crop) or np.array_equal(shown[:, ::-1], crop):
                seen.add(place)
    assert seen == set(crops)


def test_the_papers_crop_of_a_small_and_a_large_image() -> None:
    for height, width in ((333, 500), (100, 640)):
        image = np.zeros((height, width, 3), np.uint8)
        shown, labels = augment(image, np.zeros((height, width), np.uint8), seed=0, position=9)
        assert shown.shape == (CROP, CROP, 3) == (321, 321, 3)
        assert labels.shape == (321, 321)


# ---- as the paper's authors do for Sec. 4.2 ------------------------------------------------------


def shown_by(image: np.ndarray, position: int, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image whose labels are its columns plus 1; in the way of jaccardSegment."""
    labels = np.broadcast_to(np.arange(1, image.shape[1] + 1, dtype=np.uint8), image.shape[:2])
    return augment(image, labels, seed=0, position=position, crop=crop, how="jaccard-segment")


def test_any_scale_is_drawn_and_what_is_small_is_centred_in_black() -> None:
    """A grey square of 100 in a crop of 161 has sides int(100 s) for s in [0.5, 1.5), all inside,
    and its labels where it is."""
    sides_seen = []
    for position in range(400):
        image, labels = shown_by(np.full((100, 100, 3), 200, np.uint8), position, 161)
        rows, columns = (np.flatnonzero((image[..., 0] > 0).any(axis)) for axis in (1, 0))
        side, left = len(rows), (161 - len(rows)) // 2
        assert side == len(columns)
        assert rows[0] == left
        assert columns[0] in (left, 161 - side - left)  # mirrored
        assert np.array_equal(labels != VOID, image[..., 0] > 0)
        assert set(np.unique(image)) == {0, 200}
        sides_seen.append(side)
    seen = np.array(sides_seen)
    assert seen.min() in range(50, 53)
    assert seen.max() in range(147, 150)
    assert len(set(sides_seen)) > 85  # of 100
    assert abs(seen.mean() - 99.5) < 7  # 5 deviations of 1.44


def test_image_and_labels_are_resized_by_pillow() -> None:
    """With the whole image in the crop, against Pillow's own resizing."""
    image = noise(60, 70)
    for position in range(30):
        shown, there = shown_by(image, position, 121)
        inside = there != VOID
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        width, height = size = len(columns), len(rows)
        pixels = shown[inside].reshape(height, width, 3)
        labels = there[inside].reshape(height, width)
        if labels[0, 0] > labels[0, -1]:  # mirrored
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        numbers = Image.fromarray(np.tile(np.arange(1, 71, dtype=np.uint8), (60, 1)))
        expected = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        assert np.array_equal(pixels, np.asarray(expected))
        nearest = numbers.resize(size, Image.Resampling.NEAREST)
        assert np.array_equal(labels, np.asarray(nearest))


# ---- its parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", CROP_SCALES)
@given(height=sides, width=sides, seed=seeds)
def test_resizing_is_opencvs(scale: float, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    size = max(1, int(height * scale)), max(1, int(width * scale))
    resized = resize_bilinear(image, size)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert resized.shape == (*size, 3)
    assert resized.flags["C_CONTIGUOUS"]  # else PyTorch took it for channels first, which is slow
    assert np.abs(resized.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("scale", CROP_SCALES)
@given(height=st.integers(1, 520), width=sides, seed=seeds)
def test_labels_are_resized_as_opencv_does(
    scale: float, height: int, width: int, seed: int
) -> None:
    labels = random_labels(height, width, seed)
    size = max(1, int(height * scale)), max(1, int(width * scale))
    expected = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(resize_labels(labels, size, (slice(None), slice(None))), expected)


@given(sides, sides, sides, sides, st.integers(0, 50), st.integers(1, 60))
def test_labels_are_those_of_the_nearest_pixel(
    height: int, width: int, new_height: int, new_width: int, start: int, side: int
) -> None:
    """In whole numbers: no pixel's centre is nearer than that of the pixel shown."""
    part = slice(start, start + side)
    for axis, (old, new) in enumerate(((height, new_height), (width, new_width))):
        numbers = np.indices((height, width), dtype=np.uint8)[axis]
        shown = resize_labels_by_centres(numbers, (new_height, new_width), (part, part))
        assert shown.shape == tuple(len(range(n)[part]) for n in (new_height, new_width))
        places = (2 * np.arange(new)[part] + 1) * old  # of centres, times 2 * new
        centres = (2 * shown.astype(int) + 1) * new
        off = np.abs(centres - (places[:, None] if axis == 0 else places))
        assert (off <= new).all()  # half a pixel of the old ones


@given(sides, sides, sides, sides, st.integers(0, 50), st.integers(0, 50), st.integers(1, 60))
def test_a_window_of_labels_is_cut_from_all_of_them(
    height: int, width: int, new_height: int, new_width: int, top: int, left: int, side: int
) -> None:
    labels, size = random_labels(height, width, 3), (new_height, new_width)
    whole = resize_labels(labels, size, (slice(None), slice(None)))
    window = slice(top, top + side), slice(left, left + side)
    assert whole.shape == size
    assert np.array_equal(resize_labels(labels, size, window), whole[window])


@given(sides, sides, st.integers(1, 120))
def test_padding_is_right_and_bottom_only(height: int, width: int, crop: int) -> None:
    image, labels = coordinates(height, width), random_labels(height, width, 1)
    padded, void = pad(image, labels, crop)
    assert padded.shape[:2] == void.shape == (max(height, crop), max(width, crop))
    assert np.array_equal(padded[:height, :width], image)
    assert np.array_equal(void[:height, :width], labels)
    outside = np.ones(void.shape, bool)
    outside[:height, :width] = False
    assert np.all(void[outside] == VOID)
    assert np.all(padded[outside] == PADDING_RGB)


def test_the_network_takes_bgr_minus_the_mean() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    taken = to_caffe(images)
    assert taken.dtype == torch.float32
    assert taken.is_contiguous()
    numbers = images.numpy().astype(np.float64)
    expected = np.stack(
        [numbers[:, 2] - 104.008, numbers[:, 1] - 116.669, numbers[:, 0] - 122.675], axis=1
    )
    np.testing.assert_allclose(taken.numpy(), expected, atol=1e-4)
    last = to_caffe(images, channels_last=True, dtype=torch.bfloat16)
    assert last.dtype == torch.bfloat16
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_padding_becomes_about_zero() -> None:
    """Eight bits hold the mean to half a grey level; the rounding is the best there is."""
    padding = torch.tensor(PADDING_RGB, dtype=torch.uint8).view(1, 3, 1, 1)
    rest = to_caffe(padding).flatten()
    torch.testing.assert_close(rest, torch.tensor([-0.008, 0.331, 0.325]), atol=1e-4, rtol=0)
    assert tuple(round(value) for value in reversed(MEAN_BGR)) == PADDING_RGB
