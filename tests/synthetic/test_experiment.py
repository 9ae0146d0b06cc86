"""The synthetic experiment: its numbers, its repeatability, its stored run, its config."""

import csv
import importlib.metadata
import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from lovasz_repro.config.synthetic import load_synthetic
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import config_hash
from lovasz_repro.report.figures import FIGURES
from lovasz_repro.report.tables import TABLES
from lovasz_repro.store import Store
from lovasz_repro.synthetic import experiment as synthetic
from lovasz_repro.synthetic.bias_search import SEARCHED_LOSSES, SURROGATES
from lovasz_repro.synthetic.experiment import run_synthetic, search, stored_result, summary

TINY = {
    "seeds": 3,
    "circles.images": 2,
    "circles.size": 12,
    "circles.radius": [2, 5],
    "search.curve_step": 0.5,
}


@pytest.fixture(scope="module")
def tiny():
    return load_synthetic(overrides=TINY)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all tests, as making it takes seconds; each test brings a config of its own."""
    return Store(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def thirty_seeds():
    return search(load_synthetic(), range(30))


def same(first, second):
    assert first.seeds == second.seeds
    for one, other in ((first.metrics, second.metrics), (first.curves, second.curves)):
        assert list(one) == list(other)
        for name in one:
            assert np.array_equal(one[name], other[name]), name
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(first.features, second.features)


@pytest.mark.parametrize(
    ("loss", "excess", "tolerance"),
    [("lovasz_hinge", 0.009, 0.004), ("hinge", 0.095, 0.005), ("cross_entropy", 0.124, 0.0075)],
)
def test_excess_is_that_of_an_independent_implementation(thirty_seeds, loss, excess, tolerance):
    """Reference: another program, other random circles of radius 3 to 20, 30 seeds.

    The tolerance is three standard errors of the difference of two means over 30 seeds.
    """
    assert thirty_seeds.metrics[f"excess/{loss}"].mean() == pytest.approx(excess, abs=tolerance)


@pytest.mark.parametrize(
    ("loss", "low", "high"),
    [
        ("jaccard", -0.13, 0.10),
        ("lovasz_hinge", -0.45, -0.43),
        ("hinge", -1.20, -1.18),
        ("cross_entropy", -1.38, -1.35),
        ("soft_iou", 0.9, 1.0),
    ],
)
def test_minima_lie_where_a_check_on_three_seeds_saw_them(thirty_seeds, loss, low, high):
    """An independent search on three seeds, which tell the place to about their spread here."""
    values = thirty_seeds.metrics[f"argmin/{loss}"]
    standard_error = values.std(ddof=1) * np.sqrt(1 / 3 + 1 / 30)
    assert low - 3 * standard_error < values.mean() < high + 3 * standard_error


def test_only_the_lovasz_hinge_captures_the_minimum(thirty_seeds):
    """The claim of Sec. 4.1, seed by seed."""
    rows = {row.loss: row for row in summary(thirty_seeds)}
    assert rows["lovasz_hinge"].nearest == 30
    others = [rows[name] for name in SURROGATES if name != "lovasz_hinge"]
    assert all(row.nearest == 0 for row in others)
    assert min(row.excess.mean for row in others) > 3 * rows["lovasz_hinge"].excess.mean


def test_metrics_fit_together(thirty_seeds):
    metrics = thirty_seeds.metrics
    assert set(metrics) == {f"{c}/{n}" for c in synthetic.COLUMNS for n in SEARCHED_LOSSES}
    assert (metrics["excess/jaccard"] == 0).all()
    for name in SEARCHED_LOSSES:
        assert metrics[f"argmin/{name}"].shape == (30,)
        assert (metrics[f"excess/{name}"] >= 0).all()
        lowest = metrics["jaccard_at_argmin/jaccard"]
        assert metrics[f"excess/{name}"] == pytest.approx(
            metrics[f"jaccard_at_argmin/{name}"] - lowest
        )


def test_summary_is_mean_and_spread_over_seeds(tiny):
    result = search(tiny, [4, 9, 2])
    for row in summary(result):
        values = result.metrics[f"excess/{row.loss}"]
        assert row.excess.mean == pytest.approx(sum(values) / 3)
        squares = sum((v - row.excess.mean) ** 2 for v in values)
        assert row.excess.deviation == pytest.approx((squares / 2) ** 0.5)
    assert [row.loss for row in summary(result)] == list(SEARCHED_LOSSES)
    assert summary(result)[0].nearest is None
    assert summary(search(tiny, [4]))[0].argmin.deviation is None


def test_seeds_decide_the_result_alone(tiny):
    threads = torch.get_num_threads()
    forward, backward = search(tiny, [0, 1, 2]), search(tiny, [2, 1, 0])
    same(forward, search(tiny, [0, 1, 2]))
    for name, values in forward.metrics.items():
        assert np.array_equal(values, backward.metrics[name][::-1])
    torch.set_num_threads(3)
    try:
        same(forward, search(tiny, [0, 1, 2]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds(tiny):
    on_cpu, on_gpu = search(tiny, [0, 1]), search(tiny, [0, 1], device="cuda")
    for name, values in on_cpu.metrics.items():
        assert on_gpu.metrics[name] == pytest.approx(values, abs=2e-3), name


def test_progress_counts_seeds_and_may_stop_the_search(tiny):
    calls = []
    search(tiny, range(3), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    threads = torch.get_num_threads()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny, range(3), progress=stop)
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="at least one seed"):
        search(tiny, [])


def test_run_is_stored_with_all_that_traces_its_numbers(tiny, store):
    run, result, reused = run_synthetic(tiny, store)
    assert not reused
    same(result, search(tiny, range(3)))
    assert run.status == "FINISHED"
    assert run.group == "synthetic"
    assert run.params["seeds"] == "3"
    assert run.params["circles.radius"] == "[2.0, 5.0]"
    assert (
        run.tags.items() >= {"experiment": "synthetic", "scale": "reduced", "seed": "0-2"}.items()
    )
    for tag in ("identity", "config_hash", "data_fingerprint", "git_commit", "device", "profile"):
        assert run.tags[tag]
    assert json.loads(run.tags["packages"])["torch"] == importlib.metadata.version("torch")
    for name, values in result.metrics.items():
        assert store.history(run.run_id, name) == list(enumerate(values.tolist()))

    with store.artifact(run.run_id, "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["b", "jaccard", "lovasz_hinge", "hinge", "cross_entropy", "soft_iou"]
    assert [float(row["b"]) for row in rows] == pytest.approx([-3 + i / 2 for i in range(13)])
    with np.load(store.artifact(run.run_id, "sample.npz"), allow_pickle=False) as sample:
        assert (sample["label"].dtype, sample["label"].shape) == (np.uint8, (12, 12))
        assert sample["features"].dtype == np.float32
    same(stored_result(store, run), result)


def test_finished_run_is_reported_and_not_repeated(store, monkeypatch):
    config = load_synthetic(overrides=TINY | {"seeds": 2})
    first = run_synthetic(config, store)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "search", None)
        again = run_synthetic(config, Store(store.results))
    assert again.reused
    assert again.run.run_id == first.run.run_id
    same(again.result, first.result)
    assert [asdict(row) for row in summary(again.result)] == [
        asdict(row) for row in summary(first.result)
    ]

    store.artifact(first.run.run_id, "sample.npz").write_bytes(b"damaged")
    mended = run_synthetic(config, store)
    assert (mended.reused, mended.run.run_id) == (False, first.run.run_id)
    same(stored_result(store, mended.run), first.result)

    other = run_synthetic(load_synthetic(overrides=TINY | {"seeds": 1}), store)
    assert not other.reused
    assert other.run.run_id != first.run.run_id


@pytest.mark.parametrize(
    ("error", "status", "noise"), [(KeyboardInterrupt, "KILLED", 1.5), (OSError, "FAILED", 2.5)]
)
def test_run_that_breaks_off_is_closed_and_done_again(store, error, status, noise):
    config = load_synthetic(overrides=TINY | {"circles.noise": noise})

    def fail(done, total):
        raise error

    def states():
        return [
            r.status for r in store.runs("synthetic") if r.params["circles.noise"] == f"{noise}"
        ]

    with pytest.raises(error):
        run_synthetic(config, store, progress=fail)
    assert states() == [status]
    assert not run_synthetic(config, store).reused
    assert states() == ["FINISHED"]


def test_identity_follows_what_decides_the_result(tiny):
    assert synthetic.fingerprint(tiny) == synthetic.fingerprint(load_synthetic(overrides=TINY))
    more = load_synthetic(overrides=TINY | {"circles.noise": 2.0})
    assert synthetic.fingerprint(more) != synthetic.fingerprint(tiny)
    assert load_synthetic().recipe().keys() == {"seeds", "circles", "search"}


def test_scale_is_paper_only_with_the_images_of_the_paper():
    assert load_synthetic().scale == "paper"
    assert load_synthetic(overrides={"seeds": 1}).scale == "paper"
    assert load_synthetic(overrides={"circles.images": 9}).scale == "reduced"
    assert load_synthetic(overrides={"circles.noise": 1.1}).scale == "reduced"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seeds", 0, "seeds: input should be greater than or equal to 1, not 0"),
        ("circles.images", 0, "circles.images: .* not 0"),
        ("circles.images", 2.5, "circles.images: .* integer"),
        ("circles.colour", 1, "unknown key circles.colour"),
        ("colour", 1, "unknown key colour"),
        ("circles.radius", [3, 26], "radius 26 does not fit an image of size 50: at most 25"),
        ("circles.radius", [9, 3], "from 9 down to 3"),
        ("circles.radius", [0.5, 3], "greater than or equal to 1"),
        ("circles.noise", 0, "circles.noise: .* greater than 0"),
        ("circles.noise", "1e-4", "1.0e-4"),
        ("search.bias", [1, 1], "from low to high"),
        ("search.step", 7, "step must divide the range of biases, 6, into 1 to 10000 steps"),
        ("search.curve_step", 1.0e-9, "curve_step must divide"),
        ("search.resolution", 0, "search.resolution: .* greater than 0"),
        ("kind", "training", "kind: .*'synthetic'"),
    ],
)
def test_wrong_config_ends_in_one_line(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        load_synthetic(overrides={key: value})
    assert "\n" not in str(error.value)


def test_a_sweep_tries_every_radius_with_every_noise_and_leaves_the_paper_alone():
    base = load_synthetic()
    cells = base.cells()
    assert base.sweep is not None
    tried = [(cell.circles.radius, cell.circles.noise) for cell in cells]
    assert sorted(tried) == sorted(itertools.product(base.sweep.radius, base.sweep.noise))
    assert len({config_hash(cell.recipe()) for cell in (base, *cells)}) == len(cells) + 1
    for cell in cells:
        assert (cell.circles.images, cell.circles.size, cell.circles.mean) == (10, 50, 0.5)
        assert (cell.profile, cell.scale) == ("sweep", "reduced")
    without = base.model_copy(update={"sweep": None})
    assert config_hash(without.recipe()) == config_hash(base.recipe())


def test_a_sweep_of_circles_that_do_not_fit_ends_in_one_line(tiny):
    with pytest.raises(UserError, match="does not fit") as error:
        tiny.cells()
    assert "\n" not in str(error.value)


def test_runs_of_a_sweep_have_a_figure_and_stand_in_no_table(store):
    sizes = {"sweep.radius": [[2, 3], [4, 6]], "sweep.noise": [1.0], "sweep.seeds": 2}
    config = load_synthetic(overrides=TINY | sizes)
    before = TABLES["synthetic"](store)
    runs = [run_synthetic(cell, store).run for cell in config.cells()]
    assert {run.tags["profile"] for run in runs} == {"sweep"}
    assert TABLES["synthetic"](store) == before
    drawing = FIGURES["synthetic-sweep"](store)
    (curve,) = [c for c in drawing.curves if c.panel == "noise 1, excess" and c.label == "hinge"]
    assert curve.data["largest radius"] == [3.0, 6.0]
    means = [100 * np.mean([v for _, v in store.history(r.run_id, "excess/hinge")]) for r in runs]
    assert curve.data["excess"] == pytest.approx(means)
