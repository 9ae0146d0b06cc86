"""The training script of docs/losses.md does what the page says of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [code] = re.findall(r"```python\n(# train\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path_factory.mktemp("readme") / "train.py"
    path.write_text(code)
    return path


def output_of(*command: str) -> list[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    # DistributedDataParallel on gloo may abort at exit, after all is done, as the page says.
    if "terminate called without an active exception" not in done.stderr:
        assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_loss_falls(script: Path) -> None:
    losses = [float(line.split()[-1]) for line in output_of(sys.executable, str(script))]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["2", "3"])
def test_one_process_and_several_print_the_same_losses(script: Path, ranks: str) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    together = output_of(*torchrun, "--nproc-per-node", ranks, str(script))
    assert together == output_of(sys.executable, str(script))
