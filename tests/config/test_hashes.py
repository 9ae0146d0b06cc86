"""Stored runs are found again by the hash of their config: that of shipped cells never changes.

Where a setting has to change one, runs of the old hash are orphaned: say so in the changelog, and
have older runs read as they are.
"""

import hashlib

import pytest

from lovasz_repro.config.schema import experiment_names, load_experiment
from lovasz_repro.host.provenance import config_hash

# Experiment and profile: how many cells, and a digest of their names and hashes as of the commit
# that made the runs in results/reference.
PINNED = {
    "camvid-as-cityscapes/paper": (6, "e83aca26a496e879"),
    "camvid-as-cityscapes/reduced": (6, "1ec1ab7dfd0ff290"),
    "camvid-as-cityscapes/full-size": (3, "11ded8284d72ecf0"),
    "camvid-enet/paper": (3, "b75bc527acef5693"),
    "camvid-enet/reduced": (9, "550da8f3c0844f79"),
    "camvid-enet/full-size": (3, "804c6bc68d3e27db"),
    "camvid-enet/demo": (3, "6045dd9b6d737ae9"),
    "cityscapes-enet/paper": (6, "ed3c8d637c46a81c"),
    "cityscapes-enet/demo": (4, "e4f0f0e734feb72f"),
    "voc-binary/paper": (81, "411f4b1d5fd848a9"),
    "voc-binary/features": (81, "bce61c61ba62a224"),
    "voc-binary/demo": (13, "ece620d91e422274"),
    "voc-multiclass/paper": (8, "c8aa336aa675656d"),
    "voc-multiclass/trainval": (3, "deb8924f31c52c06"),
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
