"""Stored masks of all classes: that no stored file is trusted."""

import json

import pytest

from lovasz_repro.errors import UserError
from lovasz_repro.report.examples import SEGMENTATIONS, Pictures
from tests.fake_segmentations import LABELS, PHOTO, add, listing, masks_of, png

LIST = "segmentations.json"


def read_all(store, run):
    """Every file of the first image."""
    pictures = Pictures(store, run, SEGMENTATIONS)
    entry = pictures.listing()[0]
    masks = [pictures.mask(0, entry, kind) for kind in ("labels", "prediction", "crf")]
    return (*masks, pictures.photograph(0, entry))


def read_listing(store, run):
    return Pictures(store, run, SEGMENTATIONS).listing()


def test_files_are_read_as_they_are(store):
    run = add(store, "lovasz", masks_of(2), crf=masks_of(3), score=0.25)
    [entry] = read_listing(store, run)
    assert (entry.name, entry.height, entry.width) == ("2007_000000", 2, 3)
    assert entry.batch_miou.prediction == 0.25
    assert entry.batch_miou.crf == 0.375
    found = [values.tolist() for values in read_all(store, run)]
    assert found == [LABELS, masks_of(2)[0], masks_of(3)[0], PHOTO.tolist()]


def test_a_run_without_masks_has_none(store):
    run = add(store, "lovasz", [], files={LIST: None})
    assert read_listing(store, run) is None


def test_a_long_list_is_read_no_further(store):
    run = add(
        store, "lovasz", masks_of(1), files={LIST: listing(SEGMENTATIONS.most + 5, crf=False)}
    )
    assert len(read_listing(store, run)) == SEGMENTATIONS.most


def of(**changed):
    return listing(1, crf=True, **changed)


BROKEN = {
    "no json": (LIST, b"[{", "not readable as JSON"),
    "no text": (LIST, b"\xff\xfe\x00", "not readable as JSON"),
    "deep": (LIST, b"[" * 100_000, "not readable as JSON"),
    "no mapping": (LIST, b"[3]", "not a list of masks"),
    "no list": (LIST, b'{"segmentations": 3}', "segmentations: "),
    "other key": (LIST, b'{"masks": []}', "masks"),
    "long": (LIST, b" " * 1_000_001, "larger than"),
    "huge": (LIST, of(height=99999), "height"),
    "empty": (LIST, of(width=0), "width"),
    "score": (LIST, of(batch_miou={"prediction": 1.5}), "prediction"),
    "no number": (LIST, of(batch_miou={"prediction": float("nan")}), "prediction"),
    "no score": (LIST, of(batch_miou={"crf": 0.5}), "prediction"),
    "other mask": (LIST, of(batch_miou={"prediction": 0.5, "best": 0.5}), "best"),
    "name": (LIST, of(name="$\\frac$"), "name"),
    "path": (LIST, of(name="../../etc/passwd"), "name"),
    "no png": ("0-prediction.png", b"GIF89a", "not a readable PNG"),
    "cut": ("0-crf.png", png(masks_of(2)[0])[:45], "not a readable PNG"),
    "class 21": ("0-crf.png", png(masks_of(2, cat=21)[0]), "holds 21, which is no class of VOC"),
    "void found": ("0-prediction.png", png(LABELS), "holds 255, which is no class of VOC"),
    "class 254": ("0-labels.png", png([[254, 0, 255]] * 2), "holds 254, which is no class"),
    "size": ("0-labels.png", png([[1]]), "L of 1×1, not L of 3×2"),
    "mode": ("0-prediction.png", png(masks_of(0)[0], "RGB"), "RGB of 3×2, not L of 3×2"),
    "grey photo": ("0-photo.png", png(LABELS), "L of 3×2, not RGB of 3×2"),
    "gone": ("0-labels.png", None, "listed, but not stored"),
}


@pytest.mark.parametrize(("name", "data", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(store, name, data, problem):
    run = add(store, "lovasz", masks_of(2), crf=masks_of(3), files={name: data})
    with pytest.raises(UserError) as caught:
        read_all(store, run)
    message = str(caught.value)
    assert message.startswith(f"{run.name}, segmentations/{name}: "), message
    assert problem in message
    assert "\n" not in message
    assert not message.endswith(".")


def test_all_values_of_a_mask_are_taken(store):
    every = [list(range(7)), list(range(7, 14)), list(range(14, 21))]
    entries = {"height": 3, "width": 7, "batch_miou": {"prediction": 1, "crf": 0}}
    content = {"segmentations": [{"name": "a"} | entries]}
    run = add(
        store, "lovasz", [every], crf=[every], labels=[[255] * 7] * 3,
        files={LIST: json.dumps(content).encode(), "0-photo.png": png([[[0] * 3] * 7] * 3)},
    )  # fmt: skip
    labels, mask, refined, _ = read_all(store, run)
    assert mask.tolist() == refined.tolist() == every
    assert set(labels.ravel().tolist()) == {255}
