"""Predictions of a split as files: the right ids, the same bytes wherever it was cut short."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from lovasz_repro.data.camvid import camvid_images
from lovasz_repro.data.cityscapes import STREET_CLASSES, TO_LABEL_ID, Frame, list_frames
from lovasz_repro.data.classes import CAMVID_FROM_CITYSCAPES
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation import split
from lovasz_repro.evaluation.split import ahead, is_complete, predict_split
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import load_weights, save_weights
from tests.left_overs import left_over
from tests.tiny_cityscapes import write_cityscapes

SIZE = (24, 32)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    root = write_cityscapes(tmp_path_factory.mktemp("data"), images=5)
    return list_frames(root / "cityscapes", "val")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(ENet(20), file, {"dataset": "cityscapes", "class_names": STREET_CLASSES})
    return file


def scores_of(weights: Path, frame: Frame, size: tuple[int, int]) -> torch.Tensor:
    """Scores (20, h, w) of one photograph."""
    with Image.open(frame.image) as photograph:
        small = photograph.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return load_weights(weights).build().eval()(pixels)[0]


def upsampled(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """All of them at once, to the photograph's size."""
    return torch.nn.functional.interpolate(
        scores[None], size=size, mode="bilinear", align_corners=False
    )[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_best_scored_class_of_every_pixel(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    seen: list[int] = []
    files = predict_split(weights, frames, tmp_path, split="val", size=SIZE, advance=seen.append)
    assert [file.name for file in files] == [f"{frame.name}_labelIds.png" for frame in frames]
    assert sum(seen) == len(frames)
    for file, frame in zip(files, frames, strict=True):
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("L", (64, 48))
            answer = np.asarray(image)
        scores = upsampled(scores_of(weights, frame, SIZE), (48, 64))[1:]
        best = scores.topk(2, dim=0).values
        clear = (best[0] - best[1] > 1e-4).numpy()  # else rounding may decide
        expected = TO_LABEL_ID[scores.argmax(0).numpy() + 1]
        assert clear.mean() > 0.9
        assert (answer == expected)[clear].all()
        assert set(np.unique(answer)) <= set(TO_LABEL_ID[1:].tolist())


def test_classes_may_be_upsampled_instead(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    files = predict_split(
        weights, frames[:2], tmp_path, split="val", size=SIZE, upsample="predictions"
    )
    for file, frame in zip(files, frames, strict=False):
        classes = scores_of(weights, frame, SIZE)[1:].argmax(0).numpy() + 1
        expected = TO_LABEL_ID[classes].repeat(2, 0).repeat(2, 1)  # 48x64 is twice 24x32
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_unlabelled_is_no_answer_even_where_it_scores_highest(
    frames: list[Frame], tmp_path: Path
) -> None:
    model = ENet(20)
    with torch.no_grad():
        assert model.classifier.bias is not None
        model.classifier.bias[0] = 1e6
    save_weights(model, tmp_path / "w.safetensors", {"dataset": "d", "class_names": STREET_CLASSES})
    for upsample in ("logits", "predictions"):
        [file] = predict_split(
            tmp_path / "w.safetensors", frames[:1], tmp_path / upsample, split="val", size=SIZE,
            upsample=upsample,  # type: ignore[arg-type]
        )  # fmt: skip
        with Image.open(file) as image:
            assert np.asarray(image).min() >= 7
        [file] = predict_split(
            tmp_path / "w.safetensors", frames[:1], tmp_path / f"{upsample}-kept", split="val",
            size=SIZE, upsample=upsample, unlabelled="kept",  # type: ignore[arg-type]
        )  # fmt: skip
        with Image.open(file) as image:
            assert not np.asarray(image).any()  # a miss wherever there is a label


def test_predictions_of_the_other_way_are_not_mixed_in(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    """A folder that was made before there were two ways is of the first."""
    predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE)
    manifest = json.loads((tmp_path / split.MANIFEST).read_text())
    del manifest["unlabelled"]
    (tmp_path / split.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another --unlabelled"):
        predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE, unlabelled="kept")
    predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE)


def test_what_was_cut_short_is_gone_on_with(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    files = predict_split(weights, frames, whole, split="val", size=SIZE)
    predict_split(weights, frames, cut, split="val", size=SIZE)
    names = [file.name for file in files]
    (cut / names[0]).unlink()
    (cut / names[1]).write_bytes((whole / names[1]).read_bytes()[:-20])
    (cut / names[2]).write_bytes(b"")
    left_over(cut).write_bytes(b"\x89PNG")
    before = (cut / names[4]).stat().st_mtime_ns
    seen: list[int] = []
    assert predict_split(weights, frames, cut, split="val", size=SIZE, advance=seen.append) == [
        cut / name for name in names
    ]
    assert sum(seen) == 3
    assert contents(cut) == contents(whole)
    assert (cut / names[4]).stat().st_mtime_ns == before


def test_a_process_that_is_stopped_leaves_whole_files(
    weights: Path, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(images: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(split, "BEHIND", 0)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_split(weights, frames, out, split="val", size=SIZE, advance=stop)
    there = list(out.glob("*.png"))
    assert 1 <= len(there) < len(frames)
    assert all(map(is_complete, there))
    predict_split(weights, frames, out, split="val", size=SIZE)
    predict_split(weights, frames, tmp_path / "whole", split="val", size=SIZE)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_photograph_that_was_replaced_is_labelled_anew(weights: Path, tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, images=3) / "cityscapes"
    frames, out = list_frames(root, "val"), tmp_path / "out"
    photograph = frames[1].image.read_bytes()
    frames[1].image.write_bytes(photograph[:-200])
    with pytest.raises(UserError, match=f"{frames[1].name}.*unreadable image"):
        predict_split(weights, frames, out, split="val", size=SIZE)
    frames[1].image.write_bytes(photograph)
    predict_split(weights, frames, out, split="val", size=SIZE)
    shutil.copy(frames[0].image, frames[1].image)
    seen: list[int] = []
    files = predict_split(weights, frames, out, split="val", size=SIZE, advance=seen.append)
    assert sum(seen) == 1
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": (32, 32)}, "another --size"),
        ({"upsample": "predictions"}, "another --upsample"),
        ({"split": "test"}, "another split"),
        ({"data": "demo"}, "another data set"),
    ],
)
def test_other_predictions_are_not_mixed_in(
    weights: Path, frames: list[Frame], tmp_path: Path, change: dict[str, object], told: str
) -> None:
    settings: dict = {"split": "val", "size": SIZE}
    predict_split(weights, frames[:1], tmp_path, **settings)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"holds predictions of {told} .*another --out"):
        predict_split(weights, frames[:1], tmp_path, **settings | change)
    assert contents(tmp_path) == before


def test_neither_are_those_of_other_weights(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    predict_split(weights, frames[:1], tmp_path / "out", split="val", size=SIZE)
    other = tmp_path / "other.safetensors"
    save_weights(ENet(20), other, {"dataset": "cityscapes", "class_names": STREET_CLASSES})
    with pytest.raises(UserError, match="holds predictions of other weights"):
        predict_split(other, frames[:1], tmp_path / "out", split="val", size=SIZE)


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", "{}", '{"weights": 1, "bytes": 3}'])
def test_a_folder_that_is_not_ours(
    weights: Path, frames: list[Frame], tmp_path: Path, content: str
) -> None:
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(UserError, match=r"predictions\.json: unreadable"):
        predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE)
    (tmp_path / "predictions.json").unlink()
    shutil.copy(frames[0].image, tmp_path / f"{frames[0].name}_labelIds.png")
    with pytest.raises(UserError, match=r"holds PNG files and no predictions\.json"):
        predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE)


def test_two_processes_do_not_share_a_folder(
    weights: Path, frames: list[Frame], tmp_path: Path
) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="is in use"):
        predict_split(weights, frames[:1], tmp_path, split="val", size=SIZE)


def test_networks_that_cannot_label_cityscapes(frames: list[Frame], tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(11)]
    save_weights(ENet(11), tmp_path / "a.safetensors", {"dataset": "camvid", "class_names": names})
    with pytest.raises(UserError, match=r"11 outputs \(camvid\); Cityscapes needs the 20"):
        predict_split(tmp_path / "a.safetensors", frames, tmp_path / "out", split="val")
    swapped = [STREET_CLASSES[0], STREET_CLASSES[2], STREET_CLASSES[1], *STREET_CLASSES[3:]]
    save_weights(ENet(20), tmp_path / "b.safetensors", {"dataset": "x", "class_names": swapped})
    with pytest.raises(UserError, match=r"output 1 is sidewalk; .*that is road\.$"):
        predict_split(tmp_path / "b.safetensors", frames, tmp_path / "out", split="val")
    assert not (tmp_path / "out").exists()


def test_reading_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    with split.ThreadPoolExecutor(2) as pool:
        results = ahead(pool, lambda number: number * 2, numbers(), 3)
        assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
        assert len(begun) == 3 + 4
        assert list(results) == list(range(8, 40, 2))


def test_the_released_network_on_a_street(
    enet_weights: Path, camvid_root: Path, tmp_path: Path
) -> None:
    """It was trained on streets: road below, and mostly not above, of a real photograph."""
    photograph = sorted((camvid_root / "test").glob("*.*"))[0]
    frame = Frame("a_000000_000000", "a", photograph, tmp_path / "none", tmp_path / "none")
    [file] = predict_split(enet_weights, [frame], tmp_path / "out", split="test", size=(256, 512))
    with Image.open(file) as image, Image.open(photograph) as street:
        assert image.size == street.size
        answer = np.asarray(image)
    scores = upsampled(scores_of(enet_weights, frame, (256, 512)), answer.shape)[1:]
    expected = TO_LABEL_ID[scores.argmax(0).numpy() + 1]
    assert (answer == expected).mean() > 0.9999
    half = answer.shape[0] // 2
    assert (answer[half:] == 7).mean() > 0.25
    assert (answer[:half] == 7).mean() < 0.05
    manifest = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (manifest["size"], manifest["upsample"]) == ("256x512", "logits")


@pytest.mark.slow
def test_what_the_released_network_has_of_camvids_classes(
    enet_weights: Path, camvid_root: Path
) -> None:
    """Of each of CamVid's classes one class of Cityscapes, and with what looks like it."""
    network = load_weights(enet_weights).build().eval()
    own = [CAMVID_FROM_CITYSCAPES[label] for label in range(11)]
    alike = {own[10]: STREET_CLASSES.index("rider"), own[6]: STREET_CLASSES.index("traffic light")}
    counts = {first: np.zeros((12, 20), dtype=np.int64) for first in (0, 1)}
    for image, labels in camvid_images(camvid_root, "val", (360, 480)):
        with torch.no_grad():
            scores = network(image[None].float() / 255)[0]
        for first, pairs in counts.items():
            answers = scores[first:].argmax(dim=0).numpy() + first
            np.add.at(pairs, (labels, answers), 1)
    found = {}
    for first, pairs in counts.items():
        for merged in (False, True):
            ious = []
            for label, output in enumerate(own):
                answers = [output] + ([alike[output]] if merged and output in alike else [])
                both = pairs[label, answers].sum()
                ious.append(both / (pairs[label].sum() + pairs[:11, answers].sum() - both))
            found[first, merged] = 100 * np.mean(ious)
    expected = {(1, False): 40.4, (0, False): 38.2, (1, True): 42.3, (0, True): 40.2}
    assert found == {key: pytest.approx(value, abs=0.05) for key, value in expected.items()}
