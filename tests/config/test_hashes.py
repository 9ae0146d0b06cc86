"""Stored runs are found again by the hash of their config: that of shipped cells never changes.

Where a setting has to change one, runs of the old hash are orphaned: say so in the changelog, and
have older runs read as they are.
"""

import hashlib

import pytest

from lovasz_repro.config.grid import settings
from lovasz_repro.config.read import read_stored
from lovasz_repro.config.schema import (
    DataConfig,
    EvaluationConfig,
    experiment_names,
    load_experiment,
)
from lovasz_repro.host.provenance import config_hash

# Experiment and profile: how many cells, and a digest of their names and hashes as of the commit
# that made the runs in results/reference.
PINNED = {
    "camvid-as-cityscapes/paper": (6, "68935bcfc03c7304"),
    "camvid-as-cityscapes/reduced": (6, "e97dcf2c6c95095d"),
    "camvid-as-cityscapes/full-size": (3, "ec7827ca733b211f"),
    "camvid-enet/paper": (3, "b75bc527acef5693"),
    "camvid-enet/reduced": (9, "550da8f3c0844f79"),
    "camvid-enet/full-size": (3, "804c6bc68d3e27db"),
    "camvid-enet/demo": (3, "6045dd9b6d737ae9"),
    "cityscapes-enet/paper": (6, "25125da919bf009e"),
    "cityscapes-enet/demo": (4, "7a553416e8c6b49c"),
    "own/short": (24, "5e3698652932c236"),
    "own/long": (24, "0b6a42acdbecca46"),
    "voc-binary/paper": (81, "a2de6261c12956f5"),
    "voc-binary/features": (81, "bce61c61ba62a224"),
    "voc-binary/demo": (13, "ece620d91e422274"),
    "voc-multiclass/paper": (8, "066bb395d84993db"),
    "voc-multiclass/trainval": (3, "7613e537374ddadb"),
    "voc-multiclass/features": (34, "ded1c1658cb90d81"),
    "voc-multiclass/demo": (9, "16db1a35c869ba6c"),
}


def test_no_profile_is_forgotten() -> None:
    training = [name for name in experiment_names() if name != "synthetic"]
    profiles = {
        f"{name}/{profile}" for name in training for profile in load_experiment(name).profiles
    }
    assert profiles == set(PINNED)


@pytest.mark.parametrize("profile", PINNED)
def test_hashes_of_shipped_cells(profile: str) -> None:
    name, _, part = profile.partition("/")
    cells = load_experiment(name).cells(part)
    lines = sorted(f"{cell.name} {config_hash(cell.model_dump(mode='json'))}" for cell in cells)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(cells), digest) == PINNED[profile]


@pytest.mark.parametrize(
    ("experiment", "profile", "key", "before", "now"),
    [
        ("voc-binary", "demo", "data.augmentation", "deeplab-centres", "deeplab"),
        ("voc-multiclass", "demo", "evaluation.least_side", None, 513),
        ("camvid-as-cityscapes", "reduced", "evaluation.unlabelled", "dropped", "kept"),
    ],
)
def test_a_setting_that_was_added_is_told_where_it_changes_something(
    experiment: str, profile: str, key: str, before: object, now: object
) -> None:
    """A run stored before it, which does not name it, is of the hash and of the way before it."""
    loaded, (section, _, name) = load_experiment(experiment), key.partition(".")
    old, new = (loaded.cells(profile, overrides={key: value})[-1] for value in (before, now))
    assert key not in old.params
    assert new.params[key] == str(now)
    assert config_hash(old.model_dump(mode="json")) != config_hash(new.model_dump(mode="json"))
    model = {"data": DataConfig, "evaluation": EvaluationConfig}[section]
    for cell, value in ((old, before), (new, now)):
        assert getattr(read_stored(model, cell.params, section, "run"), name) == value
        assert settings(cell)[section][name] == value  # a printed grid spells it out
