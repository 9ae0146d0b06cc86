"""One run in full, and several side by side: ``runs show`` and ``runs compare``."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lovasz_repro.config.schema import experiment_names
from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import (
    Moment,
    Run,
    RunStore,
    command,
    remember,
    score_at,
    seed,
    setting,
    shipped,
    typed,
)

FILLED_IN = ("data.folder", "data.classes", "model.name", "model.callable", "model.weights")
"""Settings of data of one's own that `--data`, `--network` and `--weights` stand for."""
OF_THE_GRID = ("profile", "scale", "variant", "seed")
"""Tags that are settings, too."""
MOMENTS: tuple[Moment, ...] = ("start", "best", "last")


def of_moments(store: RunStore, run: Run) -> dict[str, dict[str, float | None]]:
    """Each metric before training, at the best snapshot and at the end, where it was logged then.

    What is logged as ``initial/<name>`` is the start of ``<name>``.
    """
    names = [name for name in sorted(run.metrics) if not name.startswith("initial/")]
    remembered = remember(store)
    return {name: {at: score_at(remembered, run, name, at) for at in MOMENTS} for name in names}


def again(run: Run, experiment: str) -> str:
    """The command that repeats a run with the experiments of this version.

    Settings in which it differs from these follow as ``--set``; of an experiment that does not come
    with the tool the file has to be named.
    """
    profile = run.tags.get("profile", "paper")
    if experiment not in experiment_names():
        return f"{command(f'{experiment}.yaml', profile)}  (the file of the experiment is your own)"
    if experiment == "synthetic":
        return command(experiment)
    variant = run.tags.get("variant")
    category, size = (setting(run, key) for key in ("data.category", "training.batch_size"))
    number = int(seed(run)) if seed(run).isdecimal() else None
    cell = {"--variant": variant, "--classes": category, "--batch-size": size, "--seed": number}
    options = [
        f"{option} {shlex.quote(str(value))}" for option, value in cell.items() if value is not None
    ]
    try:
        cells = shipped(experiment).cells(
            profile,
            variants=[variant or ""],
            categories=[category] if category else None,
            seeds=None if number is None else [number],
            batch_sizes=None if size is None else [size],
        )
    except UserError:  # neither profile nor variant is there any more
        cells = []
    expected = next((found.params for found in cells if found.variant == variant), {})
    options += _of_own_data(run) if run.params.get("data.name") == "own" else []
    return " ".join([command(experiment, profile), *options, *_overrides(run, expected)])


def _of_own_data(run: Run) -> list[str]:
    """The folder, which nobody stored, and the network; code that a stranger's run names is not."""
    callable_ = run.params.get("model.callable")
    if callable_ and "origin_run_id" in run.tags:
        callable_ = "MODULE:FUNCTION"
    network = callable_ or run.params.get("model.name", "")
    return ["--data DIR", f"--network {shlex.quote(network)}"]


def _overrides(run: Run, expected: Mapping[str, str]) -> list[str]:
    """The settings of a run that are not the expected ones, as options of ``run``."""
    return [
        f"--set {shlex.quote(f'{key}={_as_yaml(run.params[key])}')}"
        for key, text in expected.items()
        if not (key in FILLED_IN and run.params.get("data.name") == "own")
        and run.params.get(key, text) != text  # an older run lacks settings that came later
    ]


def _as_yaml(text: str) -> str:
    value = typed(text)
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def side_by_side(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Settings in which runs differ, and the metrics that any of them ended with.

    Returns: ``settings`` and ``metrics``, rows of ``name`` and a value for each run's number 1, 2,
        ...; a metric also has the ``difference`` of the last run from the first where both have it.
    """
    numbers = [str(number) for number, _ in enumerate(runs, start=1)]

    def rows(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        names = sorted(set().union(*values))
        return [
            {"name": name} | {n: v.get(name) for n, v in zip(numbers, values, strict=True)}
            for name in names
        ]

    marked = [{key: run.tags[key] for key in OF_THE_GRID if key in run.tags} for run in runs]
    settings = rows([
        {key: typed(text) for key, text in {**run.params, **marks}.items()}
        for run, marks in zip(runs, marked, strict=True)
    ])  # fmt: skip
    metrics = rows([run.metrics for run in runs])
    for row in metrics:
        first, last = row[numbers[0]], row[numbers[-1]]
        row["difference"] = None if first is None or last is None else last - first
    differ = [row for row in settings if len({str(row[number]) for number in numbers}) > 1]
    return {"settings": differ, "metrics": metrics}
