"""Choosing a device."""

import pytest
import torch

from lovasz_repro.errors import UserError
from lovasz_repro.host.device import choose_device


def test_known_names() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cuda:-1", "meta", ""])
def test_what_this_machine_has_not_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="device"):
        choose_device(name)
