"""Which part may import which, and what the command line may not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lovasz_repro

PACKAGE = Path(lovasz_repro.__file__).parent
ALONE = ("losses", "metrics", "data/transforms")
FORBIDDEN = {
    "data": ("models", "training", "evaluation", "store", "report", "experiment"),
    "models": ("training", "evaluation", "store", "report", "experiment"),
    "training": ("evaluation", "store", "report", "experiment", "launch"),
    "evaluation": ("training", "store", "report", "experiment"),
    "report": ("training", "experiment", "session", "launch"),
    "store": ("training", "models", "data", "experiment", "report"),
    "synthetic": ("training", "models", "evaluation", "experiment", "report"),
    "bench": ("synthetic", "store", "report", "session", "experiment"),
    "experiment": ("report", "launch"),
    "stages": ("store", "report", "experiment", "launch"),
    "regimes": ("store", "report", "experiment", "launch"),
    "segmentations": ("store", "report", "experiment", "launch"),
    "batch_scores": ("store", "report", "session", "experiment", "launch"),
    "building": ("store", "report", "session", "experiment", "launch"),
    "datasets": ("models", "training", "store", "report", "session", "experiment", "launch"),
    "place": ("store", "report", "session", "experiment", "launch"),
    "session": ("report", "experiment", "launch"),
    "launch": ("report",),
    "config": ("losses", "models", "training", "store", "experiment", "report"),
}  # fmt: skip


def modules(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, except for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("part", ALONE)
def test_losses_metrics_and_transforms_import_nothing_of_ours(part: str) -> None:
    own = f"lovasz_repro.{part.replace('/', '.')}"
    for path in modules(part):
        ours = {name for name in imports(path) if name.startswith("lovasz_repro")}
        assert {name for name in ours if not name.startswith(own)} == set(), path


@pytest.mark.parametrize(("part", "forbidden"), FORBIDDEN.items())
def test_imports_point_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    for path in modules(part):
        for name in imports(path):
            assert not any(
                name == f"lovasz_repro.{other}" or name.startswith(f"lovasz_repro.{other}.")
                for other in forbidden
            ), f"{path.relative_to(PACKAGE)} imports {name}"


def test_nothing_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        for name in imports(path):
            assert name != "lovasz_repro.cli", where
            of_commands = name.startswith("lovasz_repro.commands")
            assert not of_commands or where == "cli.py" or where.startswith("commands/"), where


def test_only_the_store_imports_mlflow() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "mlflow" for name in imports(path))
    }
    assert importers == {"store/mlflow_store.py"}, importers


@pytest.mark.parametrize("module", ["cli", "commands.run", "config", "synthetic.config", "errors"])
def test_light_modules_stay_light(module: str) -> None:
    """--help, completion and config errors must not wait for torch."""
    code = (
        f"import sys, lovasz_repro.{module}; "
        "heavy = {'torch', 'mlflow', 'pandas', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_losses_imports_torch_and_nothing_of_the_tool() -> None:
    code = """if True:
        import sys, lovasz_repro.losses
        ours = [m for m in sys.modules if m.startswith("lovasz_repro.") and "losses" not in m]
        foreign = [m for m in ("mlflow", "pandas", "typer", "matplotlib") if m in sys.modules]
        sys.exit(", ".join(ours + foreign) or 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
