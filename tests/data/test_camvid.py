"""CamVid: the layout, what is refused, and the real set where it is at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.data.camvid import CAMVID_SIZES, camvid_images, list_files
from lovasz_repro.data.classes import CAMVID
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.statistics import class_counts, class_shares
from lovasz_repro.errors import UserError


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three 16x24 training images whose colours encode their coordinates and their ids."""
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    for number in range(3):
        rows, columns = np.mgrid[0:16, 0:24].astype(np.uint8)
        image = np.stack([rows, columns, np.full_like(rows, number)], axis=-1)
        Image.fromarray(image).save(tmp_path / "train" / f"{number}.png")
        Image.fromarray(columns // 2).save(tmp_path / "trainannot" / f"{number}.png")
    return tmp_path


def test_items_are_image_and_labels_at_the_asked_size(tiny: Path) -> None:
    image, labels = camvid_images(tiny, "train", (16, 24), own_labels=False)[2]
    assert image.shape == (3, 16, 24)
    assert image.dtype == labels.dtype == torch.uint8
    assert image[2].unique().tolist() == [2]
    assert (image[1] // 2 == labels).all()
    small, native = camvid_images(tiny, "train", (8, 8))[0]
    assert small.shape == (3, 8, 8)
    assert native.shape == (16, 24)


def test_mirroring_is_fair_aligned_and_a_function_of_seed_and_position(tiny: Path) -> None:
    dataset = camvid_images(tiny, "train", (16, 24), own_labels=False, flip=True, seed=3)
    items = [dataset[Draw(1, position)] for position in range(400)]
    flipped = [bool(image[1, 0, 0] > image[1, 0, -1]) for image, _ in items]
    assert 150 < sum(flipped) < 250  # 200 +- 5 standard deviations of 10
    assert all((image[1] // 2 == labels).all() for image, labels in items)
    again = camvid_images(tiny, "train", (16, 24), own_labels=False, flip=True, seed=3)
    for position in (5, 0, 17):
        assert torch.equal(again[Draw(1, position)][0], items[position][0])


def break_photograph(root: Path) -> None:
    file = root / "train" / "1.png"
    file.write_bytes(file.read_bytes()[:60])


def break_mask(root: Path) -> None:
    (root / "trainannot" / "1.png").write_bytes(b"not a png")


def remove_mask(root: Path) -> None:
    (root / "trainannot" / "1.png").unlink()


def write_mask(root: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(root / "trainannot" / "1.png")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (break_photograph, r"train/1\.png: unreadable image"),
        (break_mask, r"trainannot/1\.png: unreadable image"),
        (remove_mask, r"trainannot: no mask for 1\.png"),
        (lambda r: write_mask(r, np.zeros((5, 6), np.uint8)), "5x6, its photograph is 16x24"),
        (lambda r: write_mask(r, np.full((16, 24), 12, np.uint8)), "class id 12"),
        (lambda r: write_mask(r, np.zeros((16, 24, 3), np.uint8)), "not a mask"),
    ],
)
def test_damage_is_named_in_one_line(tiny: Path, damage, word: str) -> None:  # type: ignore[no-untyped-def]
    damage(tiny)
    with pytest.raises(UserError, match=word) as caught:
        camvid_images(tiny, "train", (16, 24), own_labels=False)[1]
    assert "\n" not in str(caught.value)


def test_what_a_mac_leaves_is_no_image_and_capitals_are_no_other(tiny: Path) -> None:
    before = [camvid_images(tiny, "train", (16, 24), own_labels=False)[index] for index in range(3)]
    (tiny / "train" / "1.png").rename(tiny / "train" / "1.PNG")
    for folder in (tiny / "train", tiny / "trainannot"):
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "._0.png").write_bytes(b"\0\5\x16\7")
    dataset = camvid_images(tiny, "train", (16, 24), own_labels=False)
    assert [dataset.name(index) for index in range(len(dataset))] == ["0", "1", "2"]
    for index, (image, _) in enumerate(before):
        assert torch.equal(dataset[index][0], image)
    Image.new("RGB", (24, 16)).save(tiny / "train" / "2.jpg")
    with pytest.raises(UserError, match=r"train/2\.png: .*train/2\.jpg has the same name"):
        camvid_images(tiny, "train", (16, 24), own_labels=False)


def test_missing_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data or LOVASZ_REPRO_DATA"):
        camvid_images(tmp_path, "val", (16, 24), own_labels=False)
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(UserError, match=r"no \.png or \.jpg"):
        camvid_images(tmp_path, "val", (16, 24), own_labels=False)


def test_the_real_set_is_whole(camvid_root: Path) -> None:
    """Counts, sizes and class shares published with the split."""
    for split, size in CAMVID_SIZES.items():
        assert len(list_files(camvid_root, split)) == size
    image, labels = camvid_images(camvid_root, "test", (360, 480))[0]
    assert image.shape == (3, 360, 480)
    assert labels.max() <= CAMVID.ignore_index
    counts = class_counts(camvid_images(camvid_root, "train", (360, 480), own_labels=False))
    shares = class_shares(counts, len(CAMVID))
    published = [16.845, 23.259, 0.983, 31.658, 4.486, 9.724, 1.173, 1.127, 5.866, 0.639, 0.292]
    np.testing.assert_allclose(100 * shares.numpy(), published, atol=6e-4)
    assert len(CAMVID) == len(published)
