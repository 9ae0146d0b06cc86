"""The wheel: everything the tool needs travels in it, and it works from any directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_carries_the_experiments_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if name.startswith("lovasz_repro/experiments/")}
    here = {f"lovasz_repro/experiments/{path.name}" for path in (ROOT / "experiments").iterdir()}
    assert shipped == here
    assert not [name for name in names if name.startswith(("tests/", "results/"))]
    assert "lovasz_repro/py.typed" in names
    assert "lovasz_repro/report/page/template/page.html" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_an_unpacked_wheel_runs_anywhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lovasz_repro.cli", "experiments"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "synthetic" in done.stdout
    assert "voc-binary" in done.stdout
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import lovasz_repro; print(lovasz_repro.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path / "site"))


@pytest.mark.slow
def test_the_losses_alone_need_torch_alone(tmp_path: Path) -> None:
    """As lovasz_losses, from a wheel, where no lovasz_repro can be imported."""
    folder = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(ROOT / "lovasz_repro" / "losses")], check=True)
    assert (folder / "lovasz_losses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    program = """if True:
        import sys
        sys.modules["lovasz_repro"] = None  # importing it fails
        sys.path.insert(0, sys.argv[1])
        import torch
        from lovasz_losses import lovasz_softmax, metrics
        logits, labels = torch.tensor([[[0.0, 9.0], [0.0, -9.0]]]), torch.tensor([[0, 0]])
        logits.requires_grad_()
        loss = lovasz_softmax(logits, labels)  # errors 1/2 and nearly 0, gains 1/2 each
        loss.backward()
        assert abs(loss.item() - 0.25) < 1e-4, loss
        assert logits.grad.any()
        assert metrics.batch_miou(labels, labels, 2) == 1
        print(metrics.__file__)
    """
    run = [sys.executable, "-P", "-c", program, str(folder)]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(str(folder))

    user = tmp_path / "user.py"
    user.write_text(
        "from lovasz_losses import lovasz_softmax\n"
        "reveal_type(lovasz_softmax)\n"
        'lovasz_softmax("logits", "labels", per_image=1.5)\n'
    )
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--follow-imports=silent", str(user)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "logits: torch" in checked.stdout, checked.stdout
    assert checked.stdout.count("[arg-type]") == 3, checked.stdout


def test_both_distributions_have_one_version() -> None:
    """And torch in the same range, which is all that the losses need."""
    import tomllib

    whole, losses = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for folder in (".", "lovasz_repro/losses")
    )
    assert whole["version"] == losses["version"]
    assert losses["dependencies"] == [one for one in whole["dependencies"] if "torch" in one]


def test_constraints_pin_what_is_declared() -> None:
    """Every dependency has one exact pin, and no CPU-only suffix (it would not fit a GPU)."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert len(pins) == sum(1 for line in lines if line and not line.startswith("#"))
    for requirement in declared:
        name = requirement.split(">")[0].split("<")[0].split("=")[0].split("[")[0].lower()
        # CUDA builds of torch ask for one exact Triton, which a pin here could contradict.
        assert (name in pins) != (name == "triton"), name
    assert pins["torch"] == "2.13.0"
    assert pins["numpy"].startswith("2.3.")
    assert not [pin for pin in pins.values() if "+" in pin]
