"""Submissions: what the server would refuse is found here, and equal files give equal bytes."""

import copy
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.cityscapes import TO_LABEL_ID, Frame, list_frames
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.submission import (
    check_predictions,
    find_problems,
    next_steps,
    write_submission,
)
from tests.tiny_cityscapes import write_cityscapes


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    root = write_cityscapes(tmp_path_factory.mktemp("data"), images=4)
    return list_frames(root / "cityscapes", "test", labelled=False)


@pytest.fixture
def files(frames: list[Frame], tmp_path: Path) -> list[Path]:
    """A good prediction for each photograph, of every scored class."""
    generator = np.random.default_rng(1)
    (tmp_path / "out").mkdir()
    files = [tmp_path / "out" / f"{frame.name}_labelIds.png" for frame in frames]
    for file in files:
        Image.fromarray(TO_LABEL_ID[generator.integers(1, 20, (48, 64))]).save(file)
    return files


def test_good_predictions_pass(files: list[Path], frames: list[Frame]) -> None:
    seen: list[int] = []
    check_predictions(files[::-1], frames, seen.append)
    assert sum(seen) == len(frames)


def test_the_official_script_finds_each_prediction(files: list[Path], frames: list[Frame]) -> None:
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    settings = copy.copy(script.args)
    settings.predictionPath, settings.predictionWalk = str(files[0].parent), None
    found = [script.getPrediction(settings, str(frame.label_ids)) for frame in frames]
    assert found == [str(file) for file in files]


def spoil(file: Path, way: str) -> None:
    with Image.open(file) as image:
        ids = np.array(image)
    if way == "small":
        ids = ids[::2, ::2]
    elif way == "train ids":
        ids[0, :3] = (0, 1, 255)
    elif way == "colours":
        ids = np.stack([ids] * 3, axis=-1)
    picture = Image.fromarray(ids)
    if way == "palette":
        picture.putpalette([value for value in range(256) for _ in "RGB"])
    picture.save(file)
    if way == "truncated":
        file.write_bytes(file.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("small", "_labelIds.png is 24x32, its photograph 48x64"),
        ("train ids", "_labelIds.png holds 0, 1, 255, no label id of the 19 scored classes"),
        ("colours", "_labelIds.png is not of one 8-bit label id per pixel"),
        ("palette", "_labelIds.png is not of one 8-bit label id per pixel"),
        ("truncated", "unreadable image"),
    ],
)
def test_a_file_that_the_server_would_refuse(
    files: list[Path], frames: list[Frame], way: str, told: str
) -> None:
    spoil(files[2], way)
    [problem] = find_problems(files, frames)
    assert told in problem
    assert frames[2].name in problem
    with pytest.raises(UserError, match=r"^no submission: 1 problem: "):
        check_predictions(files, frames)


def test_files_that_are_missing_or_too_many(
    files: list[Path], frames: list[Frame], tmp_path: Path
) -> None:
    twin = tmp_path / f"{frames[1].name}_again.png"
    stranger = tmp_path / "elsewhere_000000_000009_labelIds.png"
    similar = tmp_path / f"{frames[3].name}0_labelIds.png"
    for file in (twin, stranger, similar):
        Image.open(files[1]).save(file)
    given = [*files[1:], files[2], twin, stranger, similar, tmp_path / "predictions.json"]
    problems = find_problems(given, frames)
    assert problems == [
        f"{files[2].name} is there 2 times",
        f"{stranger.name} is of no photograph of this split",
        f"{similar.name} is of no photograph of this split",
        "predictions.json is of no photograph of this split",
        f"no prediction for {frames[0].name}",
        f"several predictions for {frames[1].name}: {files[1].name}, {twin.name}",
    ]
    with pytest.raises(UserError, match=r"6 problems: .*\(and 3 more\)\.$") as caught:
        check_predictions(given, frames)
    assert "\n" not in str(caught.value)
    assert len(find_problems([], frames)) == 4


def test_the_zip_is_flat_and_the_same_whenever_it_is_made(
    files: list[Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "new" / "first.zip", tmp_path / "second.zip"
    write_submission(files, first)
    for file in files:
        os.utime(file, (1, 1))
        file.chmod(0o600)
    write_submission(files[::-1], second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(file.name for file in files)
        for file in files:
            assert archive.read(file.name) == file.read_bytes()


def test_no_half_zip_is_left(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    with pytest.raises(UserError, match=r"cannot write .*a\.zip: No such file"):
        write_submission([*files, tmp_path / "zzz.png"], out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_comes_next_names_page_file_and_command() -> None:
    text = next_steps(Path("sub.zip"), "0123abcd")
    for words in ("https://www.cityscapes-dataset.com/submit", "sub.zip", "pixel-level semantic"):
        assert words in text
    assert "lovasz-repro runs record 0123abcd --server-scores FILE" in text
