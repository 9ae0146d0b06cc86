"""What every test shares: where real data lies, and calm settings for property tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


def real_data(*parts: str) -> Path:
    """Path below LOVASZ_REPRO_DATA, or skip the test where it is not there."""
    root = os.environ.get("LOVASZ_REPRO_DATA")
    if not root:
        pytest.skip("LOVASZ_REPRO_DATA is not set")
    path = Path(root, *parts).resolve()
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not under LOVASZ_REPRO_DATA")
    return path


@pytest.fixture
def camvid_root() -> Path:
    """The SegNet-layout CamVid folder."""
    return real_data("camvid")


@pytest.fixture
def enet_weights() -> Path:
    """The Torch7 file that the ENet authors released for Cityscapes."""
    return real_data("weights", "enet-model.net")
