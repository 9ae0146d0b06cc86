"""One table of data sets: what a line of it and the KIND behind it say fits together."""

from types import SimpleNamespace
from typing import Any

import pytest

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.config.tables import DATASET_LINES, OWN_SETTINGS, DatasetLine
from lovasz_repro.data import datasets
from lovasz_repro.errors import UserError


@pytest.mark.parametrize("name", DATASET_LINES)
def test_what_is_said_of_a_data_set_fits_together(name: str) -> None:
    kind, line = datasets.dataset(name), DATASET_LINES[name]
    classes = range(kind.first_class, len(kind.table))
    assert kind.ignore_index not in classes
    assert [kind.table.predictable[c] for c in classes] == [True] * len(classes)
    assert kind.sizes_differ == line.crops
    if kind.from_cityscapes:
        assert sorted(kind.from_cityscapes) == [*classes]


def test_own_settings_are_settings() -> None:
    for setting in OWN_SETTINGS:
        section, _, key = setting.partition(".")
        assert key in CellConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]


def test_settings_of_another_data_set_are_refused() -> None:
    values: dict[str, Any] = {
        "data.category": "cat",
        "data.images": "features",
        "data.crop_with_class": True,
        "data.train_split": "trainval_aug",
        "evaluation.multi_scale": {},
        "data.augmentation": "deeplab",
        "evaluation.batches": {},
        "evaluation.least_side": 513,
        "evaluation.unlabelled": "kept",
        "data.classes": ["sky", "ground"],
        "data.resize": True,
    }
    experiment = load_experiment("camvid-enet")
    for setting, names in OWN_SETTINGS.items():
        alone = rf"{setting} is of the data set {' and '.join(names)} alone"
        with pytest.raises(UserError, match=alone):
            experiment.cells("demo", overrides={setting: values[setting]})


def test_a_line_is_all_that_the_rest_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment("camvid-enet")
    with pytest.raises(UserError, match=r"data\.name: .*camvid, cityscapes, voc.*'moon'"):
        experiment.cells("demo", overrides={"data.name": "moon"})
    kind = datasets.dataset("camvid")
    monkeypatch.setitem(DATASET_LINES, "moon", DatasetLine("moon"))
    monkeypatch.setattr(datasets, "import_module", lambda name: SimpleNamespace(KIND=kind))
    cell, *_ = experiment.cells("demo", overrides={"data.name": "moon"})
    assert datasets.dataset(cell.data.name) is kind
    datasets.dataset.cache_clear()
