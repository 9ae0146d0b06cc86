"""Scores at several scales and with the CRF: against counts by hand, over kills and ranks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import distributed
from torch.nn import functional as F

from lovasz_repro.config.schema import CrfConfig, MultiScaleConfig
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.voc import VocImage, list_images, read_labels
from lovasz_repro.data.voc_crops import to_caffe
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation import regimes
from lovasz_repro.evaluation.crf import refine
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.probabilities import read_probabilities
from lovasz_repro.evaluation.regimes import CHUNK, chunks_of, open_folder, score_regimes
from lovasz_repro.models.deeplab import small_deeplab
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import Team
from tests.ranks import RankPool
from tests.tiny_voc import write_voc

CPU = torch.device("cpu")
SCALES = MultiScaleConfig(least_side=65)
CRF = CrfConfig(iterations=3, bilateral_xy=20, bilateral_rgb=20)
CLASSES = 21


def network() -> MultiScale:
    torch.manual_seed(0)
    model = small_deeplab(CLASSES)
    with torch.no_grad():
        for branch in model.aspp:
            branch.weight *= 40
    return MultiScale(model, NETWORKS["deeplab-v2"], CPU, multi_scale=SCALES)


def forwards(scored: MultiScale) -> list[int]:
    passes: list[int] = []
    scored.network.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.fixture
def images(tmp_path: Path) -> list[VocImage]:
    return list_images(write_voc(tmp_path / "voc", val=7), "val")


@pytest.fixture
def densecrf() -> Any:
    return pytest.importorskip("pydensecrf.densecrf")


def confusion_by_hand(
    images: list[VocImage], predicted: Callable[[VocImage], np.ndarray]
) -> np.ndarray:
    """[label, prediction] over all pixels that are not void."""
    total = np.zeros((CLASSES, CLASSES), dtype=int)
    for image in images:
        labels, classes = read_labels(image.mask), predicted(image)
        known = labels != 255
        np.add.at(total, (labels[known], classes[known]), 1)
    return total


def classes_by_hand(model: torch.nn.Module, image: VocImage) -> np.ndarray:
    """Arg max of the mean over three scales of the softmax, image by image."""
    photograph = read_photograph(image.image)
    height, width, _ = photograph.shape
    caffe = to_caffe(torch.from_numpy(photograph.transpose(2, 0, 1).copy())[None])
    padded = F.pad(caffe, (0, 65 - width, 0, 65 - height))
    total = torch.zeros(CLASSES, height, width)
    with torch.no_grad():
        for side in (65, 49, 33):
            small = F.interpolate(padded, (side, side), mode="bilinear", align_corners=True)
            grid = F.interpolate(model(small), (9, 9), mode="bilinear", align_corners=True)
            full = F.interpolate(grid, (65, 65), mode="bilinear", align_corners=True)
            total += full[0, :, :height, :width].softmax(0)
    return total.argmax(0).numpy()


def test_scores_are_those_of_a_plain_loop(
    densecrf: Any, images: list[VocImage], tmp_path: Path
) -> None:
    scored, advanced = network(), {"predicted": 0, "refined": 0}

    def advance(what: str) -> Callable[[int], None]:
        def by(count: int) -> None:
            advanced[what] += count

        return by

    folder = open_folder(tmp_path / "out", scored, "data")
    found = score_regimes(
        scored, images, folder, CRF, predicted=advance("predicted"), refined=advance("refined")
    )
    assert list(found) == ["multi_scale", "crf"]
    assert advanced == {"predicted": 7, "refined": 7}
    expected = {
        "multi_scale": confusion_by_hand(images, lambda i: classes_by_hand(scored.network, i))
    }

    def refined(image: VocImage) -> np.ndarray:
        probabilities = read_probabilities(folder / f"{image.name}.png", image.name)
        return refine(read_photograph(image.image), probabilities, CRF)

    expected["crf"] = confusion_by_hand(images, refined)
    assert (expected["crf"] != expected["multi_scale"]).any()
    for regime, counts in expected.items():
        np.testing.assert_array_equal(found[regime].confusion.counts.numpy(), counts)
        union = counts.sum(0) + counts.sum(1) - np.diag(counts)
        iou = np.diag(counts)[union > 0] / union[union > 0]
        assert found[regime].as_metrics("val")["val/dataset_miou"] == pytest.approx(iou.mean())


def test_a_crf_without_energies_changes_nothing(
    densecrf: Any, images: list[VocImage], tmp_path: Path
) -> None:
    scored = network()
    folder = open_folder(tmp_path, scored, "data")
    nothing = CrfConfig(smoothness_weight=0, bilateral_weight=0)
    found = score_regimes(scored, images, folder, nothing)
    assert torch.equal(found["crf"].confusion.counts, found["multi_scale"].confusion.counts)
    assert list(score_regimes(scored, images, folder, None)) == ["multi_scale"]


def test_what_was_stopped_between_chunks_is_gone_on_with(
    densecrf: Any, images: list[VocImage], tmp_path: Path
) -> None:
    whole = network()
    expected = score_regimes(whole, images, open_folder(tmp_path / "whole", whole, "data"), CRF)
    scored = network()
    passes, done = forwards(scored), list[int]()
    folder = open_folder(tmp_path / "out", scored, "data")

    def stop_after_two(work: Callable[[], None]) -> None:
        work()
        done.append(len(passes))
        if len(done) == 2:
            raise KeyboardInterrupt

    chunks = [slice(start, start + 3) for start in (0, 3, 6)]
    with pytest.raises(KeyboardInterrupt):
        score_regimes(scored, images, folder, CRF, chunks=chunks, do=stop_after_two)
    assert done == [9, 18]
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("crf/*/*.png"))) == 6
    found = score_regimes(scored, images, folder, CRF, chunks=chunks)
    assert len(passes) == 3 * len(images)
    score_regimes(scored, images, folder, CRF)
    assert len(passes) == 3 * len(images)
    damaged = folder / f"{images[4].name}.png"
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
    densecrf: Any, images: list[VocImage], tmp_path: Path
) -> None:
    found = []
    for processes in (1, 2):
        scored = network()
        folder = open_folder(tmp_path / str(processes), scored, "data")
        found.append(score_regimes(scored, images, folder, CRF, processes=processes))
    for regime in ("multi_scale", "crf"):
        alone, shared = (one[regime].confusion.counts for one in found)
        assert torch.equal(alone, shared)


def test_a_mask_of_another_size_is_named(images: list[VocImage], tmp_path: Path) -> None:
    scored = network()
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
    team, scored = Team(rank, group.size(), group), network()
    images = list_images(root, "val")
    own = images[team.share(len(images))]
    passes = forwards(scored)
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
    scored = network()
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


def test_the_precision_is_the_networks_own(images: list[VocImage], tmp_path: Path) -> None:
    """A network in double precision is scored too, and bfloat16 has a folder of its own."""
    scored = network()
    folder = open_folder(tmp_path, scored, "data")
    rounded = replace(scored, precision="bfloat16")
    assert open_folder(tmp_path, rounded, "data") != folder
    score_regimes(rounded, images[:1], open_folder(tmp_path, rounded, "data"), None)
    scored.network.double()
    score_regimes(scored, images[:1], folder, None)
