"""Choosing a device."""

import subprocess
import sys

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


def test_tiny_numbers_cost_no_time_in_any_thread() -> None:
    """Products below float32's normal range, which a CPU computes slowly, are 0 everywhere."""
    program = """
import torch
torch.set_num_threads(2)
from lovasz_repro.host.device import choose_device
choose_device("cpu")
print(torch.count_nonzero(torch.full((2**20,), 1e-30) * 1e-10).item())
import numpy
numpy.finfo("float32"), numpy.finfo("float64")  # without a word
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
