"""A DeepLab at several scales and with the CRF: its probabilities as files, their scores, against
plain loops and counts by hand; kept over kills, told apart, shared among ranks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import distributed, nn

from lovasz_repro.config.schema import CrfConfig, MultiScaleConfig
from lovasz_repro.data.images import ImagePair, read_photograph
from lovasz_repro.data.voc import list_images
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation import regimes
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.evaluation.probabilities import STEP, read_classes, read_probabilities
from lovasz_repro.evaluation.regimes import (
    CHUNK,
    NOTE_FILE,
    about_probabilities,
    chunks_of,
    open_folder,
    predict_probabilities,
    prediction_key,
    score_regimes,
)
from lovasz_repro.host.processes import mapped
from lovasz_repro.models.deeplab import DeepLab, small_deeplab
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run.evaluate import load_voc_network
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import Team
from tests.plain_deeplab import confusion, fused, iou_of, photograph, refined
from tests.ranks import RankPool
from tests.tiny_voc import write_voc

CPU = torch.device("cpu")
SIDE = 65
SETTINGS = MultiScaleConfig(least_side=SIDE)


def deeplab(seed: int = 0) -> DeepLab:
    torch.manual_seed(seed)
    return small_deeplab(21).eval()


def network() -> nn.Module:
    """One layer with DeepLab's grid, which is sure of some pixels."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 21, 9, stride=8, padding=4).eval()


def scorer(
    model: nn.Module, settings: MultiScaleConfig = SETTINGS, precision: str = "float32"
) -> MultiScale:
    return MultiScale(model, NETWORKS["deeplab-v2"], CPU, precision, multi_scale=settings)


def forwards(model: nn.Module) -> list[int]:
    """Grows by one for every pass of the network."""
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.fixture
def images(tmp_path: Path) -> list[ImagePair]:
    return list_images(write_voc(tmp_path / "voc", val=4), "val")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("fusion", ["probabilities", "max-logits"])
def test_files_hold_what_a_plain_loop_over_scales_gives(
    images: list[ImagePair], folder: Path, fusion: Any
) -> None:
    model = network()
    settings = MultiScaleConfig(least_side=SIDE, fusion=fusion)
    files = predict_probabilities(scorer(model, settings), images, folder)
    assert [file.name for file in files] == [f"{image.name}.png" for image in images]
    shown = set()
    for image, file in zip(images, files, strict=True):
        expected = fused(model, read_photograph(image.image), fusion=fusion)
        found = read_probabilities(file, image.name)
        difference = np.abs(np.log(found) - np.log(np.clip(expected, 1e-5, 1)))
        assert (difference <= 1.5 * STEP + 1e-4).all()
        classes = read_classes(file, image.name)
        second, first = np.sort(expected, 0)[-2:]
        clear = first > second + 1e-5
        assert classes.dtype == np.uint8
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(classes[clear], expected.argmax(0)[clear])
        np.testing.assert_array_equal(classes, found.argmax(0))
        shown |= set(classes.ravel().tolist())
    assert len(shown) > 3


def test_what_is_there_and_whole_is_not_predicted_again(
    images: list[ImagePair], folder: Path
) -> None:
    model = network()
    passes, advanced = forwards(model), list[int]()
    files = predict_probabilities(scorer(model), images, folder, advance=advanced.append)
    assert sum(advanced) == len(images)
    assert len(passes) == 3 * len(images)
    right = [file.read_bytes() for file in files]
    flipped = bytearray(right[2])
    flipped[len(flipped) // 2] ^= 1
    for wrong in (
        [],
        [right[0][:-20], b"", bytes(flipped), right[3]],
        [right[1], right[0], right[2], images[0].mask.read_bytes()],
    ):
        for file, content in zip(files, wrong, strict=False):
            file.write_bytes(content)
        damaged = sum(a != b for a, b in zip(wrong, right, strict=False))
        passes.clear()
        advanced.clear()
        again = predict_probabilities(scorer(model), images, folder, advance=advanced.append)
        assert len(passes) == 3 * damaged
        assert sum(advanced) == len(images)
        assert [file.read_bytes() for file in again] == right


def test_a_photograph_of_another_size_is_predicted_again(
    images: list[ImagePair], folder: Path
) -> None:
    model = network()
    files = predict_probabilities(scorer(model), images, folder)
    kept = [file.stat().st_mtime_ns for file in files]
    with Image.open(images[1].image) as opened:
        turned = opened.transpose(Image.Transpose.ROTATE_90)
        if turned.size == opened.size:
            turned = turned.crop((0, 0, turned.width, turned.height - 1))
        turned.save(images[1].image)
    again = predict_probabilities(scorer(model), images, folder)
    assert [file.stat().st_mtime_ns == t for file, t in zip(again, kept, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert read_classes(again[1], images[1].name).shape == turned.size[::-1]


def test_a_call_that_was_cut_short_is_continued(images: list[ImagePair], folder: Path) -> None:
    model = network()
    plain = scorer(model)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3 * 2 + 1:  # the first scale of the third photograph
            raise KeyboardInterrupt

    hook = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_probabilities(plain, images, folder)
    hook.remove()
    assert sorted(file.name for file in folder.iterdir()) == [
        f"{image.name}.png" for image in images[:2]
    ]
    passes = forwards(model)
    predict_probabilities(plain, images, folder)
    assert len(passes) == 3 * 2


def test_other_processes_write_the_same_files(images: list[ImagePair], tmp_path: Path) -> None:
    model = network()
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone = predict_probabilities(scorer(model), images, tmp_path / "alone")
    with mapped(2, "wrote") as map_:
        shared = predict_probabilities(scorer(model), images, tmp_path / "shared", map_=map_)
        with pytest.raises(RunFailed, match="cannot write"):
            predict_probabilities(scorer(model), images, tmp_path / "none", map_=map_)
    assert [file.read_bytes() for file in shared] == [file.read_bytes() for file in alone]


def test_photographs_that_cannot_be_read_are_named(images: list[ImagePair], folder: Path) -> None:
    images[1].image.write_bytes(images[1].image.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{images[1].name}\.jpg: unreadable image"):
        predict_probabilities(scorer(network()), images, folder)
    images[0].image.unlink()
    with pytest.raises(UserError, match=rf"{images[0].name}\.jpg: no such file"):
        predict_probabilities(scorer(network()), images, folder)


# -- whose they are ------------------------------------------------------------------------------


def predictors() -> Iterator[tuple[MultiScale, str]]:
    """One by one, everything that makes other probabilities."""
    yield scorer(deeplab()), "data"
    yield scorer(deeplab(seed=1)), "data"
    for change in ({"scales": [1.0, 0.5]}, {"fusion": "max-logits"}, {"least_side": 97}):
        other = MultiScaleConfig.model_validate(SETTINGS.model_dump() | change)
        yield scorer(deeplab(), other), "data"
    yield scorer(deeplab()), "other data"
    yield scorer(deeplab(), precision="bfloat16"), "data"
    for change in ("eps", "bias", "running_var"):
        model = deeplab()
        with torch.no_grad():
            if change == "eps":
                model.layer1[0].bn1.eps = 1e-3
            elif change == "bias":
                model.aspp[3].bias[20] += 1e-6
            else:
                model.layer4[0].bn1.running_var[0] *= 1.0001
        yield scorer(model), "data"


def test_a_key_names_everything_that_probabilities_depend_on() -> None:
    keys = [prediction_key(about_probabilities(*given)) for given in predictors()]
    assert len(set(keys)) == len(keys) == 10
    assert all(len(key) == 12 for key in keys)


def test_a_network_keeps_its_key_in_its_file_and_in_other_formats(tmp_path: Path) -> None:
    model = deeplab()
    key = prediction_key(about_probabilities(scorer(model, SETTINGS), "data"))
    file = tmp_path / "weights.safetensors"
    save_weights(model, file, {"dataset": "voc", "class_names": tuple("c" * 21)})
    model.train().double()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for same in (model, load_voc_network(file)):
        assert prediction_key(about_probabilities(scorer(same, SETTINGS), "data")) == key


def test_a_folder_is_of_one_network(tmp_path: Path) -> None:
    about, other, *_ = predictors()
    folder = open_folder(tmp_path, *about)
    assert json.loads((folder / NOTE_FILE).read_text()) == about_probabilities(*about)
    assert open_folder(tmp_path, *about) == folder
    assert open_folder(tmp_path, *other) != folder
    (folder / "2007_000033.png").touch()
    for content in (json.dumps(about_probabilities(*other)).encode(), b"", b"\xff"):
        (folder / NOTE_FILE).write_bytes(content)
        with pytest.raises(UserError, match=r"holds other probabilities .* Remove the folder"):
            open_folder(tmp_path, *about)
    (folder / NOTE_FILE).unlink()
    with pytest.raises(UserError, match="holds other probabilities"):
        open_folder(tmp_path, *about)
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match="cannot write"):
        open_folder(tmp_path / "file", *about)


# -- scores --------------------------------------------------------------------------------------

CRF = CrfConfig(iterations=3, bilateral_xy=20, bilateral_rgb=20)


@pytest.fixture
def densecrf() -> Any:
    return pytest.importorskip("pydensecrf.densecrf")


def test_scores_are_those_of_a_plain_loop(
    densecrf: Any, images: list[ImagePair], tmp_path: Path
) -> None:
    scored, advanced = scorer(network()), {"predicted": 0, "refined": 0}

    def advance(what: str) -> Callable[[int], None]:
        def by(count: int) -> None:
            advanced[what] += count

        return by

    folder = open_folder(tmp_path / "out", scored, "data")
    found = score_regimes(
        scored, images, folder, CRF, predicted=advance("predicted"), refined=advance("refined")
    )
    assert list(found) == ["multi_scale", "crf"]
    assert advanced == {"predicted": 4, "refined": 4}
    root, names = tmp_path / "voc", [image.name for image in images]

    def after_the_crf(name: str) -> np.ndarray:
        probabilities = read_probabilities(folder / f"{name}.png", name)
        return refined(photograph(root, name), probabilities, CRF)

    def by_hand(name: str) -> np.ndarray:
        return fused(scored.network, photograph(root, name)).argmax(0)

    expected = {
        "multi_scale": confusion(root, by_hand, names), "crf": confusion(root, after_the_crf, names)
    }  # fmt: skip
    assert (expected["crf"] != expected["multi_scale"]).any()
    for regime, counts in expected.items():
        np.testing.assert_array_equal(found[regime].confusion.counts.numpy(), counts)
        mean = np.nanmean(iou_of(counts))
        assert found[regime].as_metrics("val")["val/dataset_miou"] == pytest.approx(mean)


def test_a_crf_without_energies_changes_nothing(
    densecrf: Any, images: list[ImagePair], tmp_path: Path
) -> None:
    scored = scorer(network())
    folder = open_folder(tmp_path, scored, "data")
    nothing = CrfConfig(smoothness_weight=0, bilateral_weight=0)
    found = score_regimes(scored, images, folder, nothing)
    assert torch.equal(found["crf"].confusion.counts, found["multi_scale"].confusion.counts)
    assert list(score_regimes(scored, images, folder, None)) == ["multi_scale"]


def test_what_was_stopped_between_chunks_is_gone_on_with(
    densecrf: Any, images: list[ImagePair], tmp_path: Path
) -> None:
    whole = scorer(network())
    expected = score_regimes(whole, images, open_folder(tmp_path / "whole", whole, "data"), CRF)
    scored = scorer(network())
    passes, done = forwards(scored.network), list[int]()
    folder = open_folder(tmp_path / "out", scored, "data")

    def stop_after_two(work: Callable[[], None]) -> None:
        work()
        done.append(len(passes))
        if len(done) == 2:
            raise KeyboardInterrupt

    chunks = [slice(start, start + 1) for start in range(4)]
    with pytest.raises(KeyboardInterrupt):
        score_regimes(scored, images, folder, CRF, chunks=chunks, do=stop_after_two)
    assert done == [3, 6]
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("crf/*/*.png"))) == 2
    found = score_regimes(scored, images, folder, CRF, chunks=chunks)
    assert len(passes) == 3 * len(images)
    score_regimes(scored, images, folder, CRF)
    assert len(passes) == 3 * len(images)
    damaged = folder / f"{images[3].name}.png"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again = score_regimes(scored, images, folder, CRF)
    assert len(passes) == 3 * len(images) + 3
    for regime, scoring in expected.items():
        for other in (found, again):
            assert torch.equal(other[regime].confusion.counts, scoring.confusion.counts)
            assert other[regime].as_metrics("v") == pytest.approx(
                scoring.as_metrics("v"), nan_ok=True
            )


def test_processes_give_the_same_scores(
    densecrf: Any, images: list[ImagePair], tmp_path: Path
) -> None:
    found = []
    for processes in (1, 2):
        scored = scorer(network())
        folder = open_folder(tmp_path / str(processes), scored, "data")
        found.append(score_regimes(scored, images, folder, CRF, processes=processes))
    for regime in ("multi_scale", "crf"):
        alone, shared = (one[regime].confusion.counts for one in found)
        assert torch.equal(alone, shared)


def test_a_mask_of_another_size_is_named(images: list[ImagePair], tmp_path: Path) -> None:
    scored = scorer(network())
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(images[2].mask)
    with pytest.raises(UserError, match=rf"{images[2].name}\.png: 7x9, its photograph is"):
        score_regimes(scored, images, open_folder(tmp_path, scored, "data"), None)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 9))
def test_chunks_hold_every_photograph_once_and_are_as_many_on_every_rank(
    images: int, processes: int, size: int
) -> None:
    most = -(-images // size)
    numbers = list(range(images))
    seen, counts = [], set()
    for rank in range(size):
        own = numbers[Team(rank, size).share(images)]
        chunks = chunks_of(len(own), processes, most)
        counts.add(len(chunks))
        parts = [own[chunk] for chunk in chunks]
        assert all(len(part) <= CHUNK for part in parts)
        seen += [number for part in parts for number in part]
        plain = [own[chunk] for chunk in chunks_of(len(own), processes)]
        assert plain == [part for part in parts if part]
    assert seen == numbers
    assert len(counts) == 1


# -- ranks ---------------------------------------------------------------------------------------


def on_ranks(
    rank: int, group: distributed.ProcessGroup, root: Path, out: Path, crf: CrfConfig | None
) -> tuple[dict[str, dict[str, float]], int]:
    """Scores on this rank, and how often its network was asked."""
    team, scored = Team(rank, group.size(), group), scorer(network())
    images = list_images(root, "val")
    own = images[team.share(len(images))]
    passes = forwards(scored.network)
    found = score_regimes(
        scored,
        own,
        open_folder(out, scored, "data"),
        crf,
        batch_size=2,
        chunks=chunks_of(len(own), 1, -(-len(images) // team.size)),
        do=team.on_all,
        group=group,
    )
    return {regime: scoring.as_metrics(regime) for regime, scoring in found.items()}, len(passes)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_share_the_photographs_and_agree(
    densecrf: Any, rank_pool: RankPool, tmp_path: Path, ranks: int
) -> None:
    """Five photographs on two ranks are 3 + 2, and on four 2 + 1 + 1 + 1."""
    root = write_voc(tmp_path / "voc", val=5)
    scored = scorer(network())
    alone = score_regimes(
        scored,
        list_images(root, "val"),
        open_folder(tmp_path / "alone", scored, "data"),
        CRF,
        batch_size=2,
    )
    answers = rank_pool.run(on_ranks, ranks, root, tmp_path / "shared", CRF)
    for metrics, _ in answers:
        for regime, scoring in alone.items():
            assert metrics[regime] == pytest.approx(scoring.as_metrics(regime), nan_ok=True)
    assert sum(passes for _, passes in answers) == 3 * 5
    assert max(passes for _, passes in answers) == 3 * -(-5 // ranks)


def failing_on_rank_1(rank: int, group: distributed.ProcessGroup, root: Path, out: Path) -> str:
    def full(*_: object, **__: object) -> None:
        raise RunFailed("disk full")

    if rank == 1:
        regimes.predict_probabilities = full  # type: ignore[assignment]
    try:
        on_ranks(rank, group, root, out, None)
    except RunFailed as error:
        return str(error)
    return "scored"


def test_a_disk_that_is_full_on_one_rank_fails_them_all(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    root = write_voc(tmp_path / "voc", val=5)
    answers = rank_pool.run(failing_on_rank_1, 2, root, tmp_path / "out")
    rank_pool.close()  # its processes were tampered with
    assert answers == ["disk full"] * 2


def test_the_precision_is_the_networks_own(images: list[ImagePair], tmp_path: Path) -> None:
    """A network in double precision is scored too, and bfloat16 has a folder of its own."""
    scored = scorer(network())
    folder = open_folder(tmp_path, scored, "data")
    rounded = replace(scored, precision="bfloat16")
    assert open_folder(tmp_path, rounded, "data") != folder
    score_regimes(rounded, images[:1], open_folder(tmp_path, rounded, "data"), None)
    scored.network.double()
    score_regimes(scored, images[:1], folder, None)
