"""``bench validation``: the parts of a pass, what they are compared with, and which limits it."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lovasz_repro.bench import validation
from lovasz_repro.bench.harness import ImageClock, Report, to_json, to_markdown
from lovasz_repro.bench.validation import compare, page, run_bench
from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.evaluation.predictor import MultiScale, Predictor
from lovasz_repro.evaluation.scoring import evaluate
from lovasz_repro.run.inputs import Place
from lovasz_repro.run.networks import NETWORKS
from tests.bench.conftest import CPU, TOY, Command, Turns
from tests.tiny_camvid import write_camvid, write_experiment
from tests.tiny_voc import write_voc

PARTS = [
    "whole pass, single scale", "network alone, single scale", "whole pass, 2 scales fused",
    "network alone, 2 scales fused", "loading alone, the same process", "metric alone",
]  # fmt: skip


def demo_cell() -> CellConfig:
    overrides = {"data.folder": "tiny", "evaluation.multi_scale.least_side": 65}
    return load_experiment("voc-multiclass").cells("demo", overrides=overrides)[-1]


def fixed(whole: float, network: float, loading: float, metric: float) -> dict[str, Any]:
    """What two rounds find out, the second twice as slow."""
    times = {
        "whole pass, single scale": whole,
        "network alone, single scale": network,
        "loading alone, the same process": 3 * loading,
        "loading alone, 4 workers": loading,
        "metric alone": metric,
    }
    both = {name: (time_ms, 2 * time_ms) for name, time_ms in times.items()}
    found = {"title": "voc (demo)", "workers": 4, "images": 3, "rounds": 2}
    return found | compare(both, ["single scale"], 4)


def as_report(found: dict[str, Any]) -> Report:
    return Report(TOY, found, [page(TOY, found)])


def test_json_has_every_part_and_its_share_of_the_pass(bench: Command, tmp_path: Path) -> None:
    write_voc(tmp_path / "tiny", val=3)
    given = (
        f"validation --profile demo --data {tmp_path} --device cpu --json --set data.folder=tiny"
    )
    given += " --set evaluation.multi_scale.least_side=65 --images 2 --rounds 2"
    given += " --set evaluation.multi_scale.scales=[1,0.5]"
    code, out, err = bench(given)
    assert code == 0, err
    content = json.loads(out)
    assert [part["name"] for part in content["parts"]] == PARTS
    assert content["regimes"] == ["single scale", "2 scales fused"]
    times = {part["name"]: part["times_ms"] for part in content["parts"]}
    assert all(len(own) == 2 and min(own) > 0 for own in times.values())
    for part in content["parts"]:
        for regime in content["regimes"]:
            wholes = times[f"whole pass, {regime}"]
            expected = [own / one for own, one in zip(part["times_ms"], wholes, strict=True)]
            assert part["shares"][regime]["median"] == pytest.approx(statistics.median(expected))
    assert set(content["limits"]) == {"single scale", "2 scales fused"}


def test_progress_is_told_of_every_pass(tmp_path: Path) -> None:
    write_voc(tmp_path / "tiny", val=3)
    turns = Turns()
    run_bench(demo_cell(), Place(tmp_path, tmp_path, None, CPU), 1, 1, turns)
    assert len(turns.taken) == turns.expected == 1 + len(PARTS)


def test_missing_photographs_are_one_line(bench: Command, tmp_path: Path) -> None:
    given = f"validation --data {tmp_path} --device cpu --set data.folder=tiny --profile demo"
    code, _, err = bench(given)
    assert code == 2
    assert "tiny not found" in err
    write_voc(tmp_path / "tiny", val=3, photographs=False)
    code, _, err = bench(given)
    assert code == 2
    assert "3 of 3 photographs" in err
    code, _, err = bench(f"validation --data {tmp_path} --device cpu")
    assert "lovasz-repro data demo voc" in err


def test_a_network_of_one_scale_is_measured_at_one(bench: Command, tmp_path: Path) -> None:
    """Through another data set, whose images come in batches of one size."""
    experiment, data = write_experiment(tmp_path), write_camvid(tmp_path / "data")
    given = f"validation {experiment} --profile demo --data {data} --device cpu"
    code, printed, err = bench(f"{given} --images 3 --rounds 1 --markdown")
    assert code == 0, err
    assert "| whole pass, single scale |" in printed
    assert "fused" not in printed


def test_the_clock_leaves_out_the_images_before() -> None:
    """Two workers that take 10 seconds to start and 4 for each image."""
    times = iter([14.0, 14.0, 18.0, 18.0, 22.0, 22.0])
    clock = ImageClock(2, now=lambda: next(times))
    for _ in range(6):
        clock.tick(1)
    assert clock.milliseconds() == pytest.approx(1000 * 4 / 2)


def test_the_slower_part_limits_the_pass() -> None:
    limit = fixed(whole=10.4, network=10, loading=5, metric=1)["limits"]["single scale"]
    assert limit["part"] == "network alone"
    assert limit["whole_in_slowest"].median == pytest.approx(1.04)
    assert limit["parts_in_whole"].median == pytest.approx(16 / 10.4)
    limit = fixed(whole=21, network=10, loading=20, metric=1)["limits"]["single scale"]
    assert limit["part"] == "loading alone"
    assert limit["whole_in_slowest"].median == pytest.approx(1.05)


def test_tables_say_what_limits_the_pass() -> None:
    text = to_markdown(as_report(fixed(whole=10.4, network=10, loading=5, metric=1)))
    assert "- single scale: limited by the network. The pass takes 1.04 times" in text
    assert "| loading alone, the same process | 44.4 | 22.5 | 1.44 |" in text
    text = to_markdown(as_report(fixed(whole=16, network=10, loading=5, metric=1)))
    assert "- single scale: the slowest part is the network. The pass takes 1.60 times" in text
    json.loads(to_json(as_report(fixed(16, 10, 5, 1))))


def test_the_pass_is_that_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every whole pass goes through ``evaluate``, with the network's options, over every image.

    There are two: one comes again.
    """
    write_voc(tmp_path / "tiny", val=2)
    seen: list[tuple[type, int]] = []

    def spy(predictor: Predictor, *given: Any, advance: Callable[[int], None]) -> Any:
        images: list[int] = []
        found = evaluate(predictor, *given, advance=lambda n: (images.append(n), advance(n))[0])
        seen.append((type(predictor), sum(images)))
        assert predictor.kind is NETWORKS["deeplab-v2-small"]
        return found

    monkeypatch.setattr(validation, "evaluate", spy)
    run_bench(demo_cell(), Place(tmp_path, tmp_path, None, CPU), 2, 1)
    assert seen == [(Predictor, 3), (MultiScale, 3)]
