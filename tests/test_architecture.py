"""Which part may import which, and what the command line may not load."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lovasz_repro

PACKAGE = Path(lovasz_repro.__file__).parent
FLOORS = (
    ("cli",),
    ("launch", "bench"),
    ("run",),
    ("evaluation", "training", "report"),
    ("models", "synthetic"),
    ("data", "store"),
    ("config",),
    ("host",),
    ("losses", "metrics", "errors"),
)
"""From the top; a module imports from its own part and from floors below, never up or across."""
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def modules(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("part", FLOOR)
def test_imports_go_down_only(part: str) -> None:
    for path in modules(part):
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package == "lovasz_repro" and other in FLOOR and other != part:
                where = path.relative_to(PACKAGE)
                assert FLOOR[other] > FLOOR[part], f"{where} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    module = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in paths}
    graph = {name: (imports(path) & module.keys()) - {name} for name, path in module.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_module_has_a_floor() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__", "experiments"} == set(FLOOR)


INTERFACE = {"KIND", "CAPTION", "HEADS"}
"""What each data set's or bench's file has of its own, under one name."""


def definitions(path: Path) -> list[tuple[str, ast.AST]]:
    """Names and nodes of the classes of a file and of what is assigned at its top."""
    tree = ast.parse(path.read_text())
    found: list[tuple[str, ast.AST]] = [
        (node.name, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                found += [(name.id, name)] if isinstance(name, ast.Name) else []
    return found


def test_a_name_exists_once() -> None:
    """A reader who searches for a class or a constant finds the one that is meant."""
    where: dict[str, list[str]] = {}
    for part in FLOOR:
        for path in modules(part):
            for name, node in definitions(path):
                is_class = isinstance(node, ast.ClassDef)
                constant = re.fullmatch(r"[A-Z][A-Z0-9_]+", name) and name not in INTERFACE
                if is_class or constant:
                    where.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    twice = {name: paths for name, paths in where.items() if len(paths) > 1}
    assert twice == {}, "give the new one a name of its own"


def test_only_the_store_imports_mlflow() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "mlflow" for name in imports(path))
    }
    assert importers == {"store/mlflow_store.py"}, importers


def test_text_leaves_through_one_door() -> None:
    """Strangers' names reach the terminal escaped, because all text goes out by host.output."""
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "host" / "output.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                past = called in ("print", "typer.echo", "typer.secho", "Console") or re.fullmatch(
                    r"sys\.(__)?std(out|err)(__)?(\.buffer)?\.(write|writelines)", called
                )
                assert not past, f"{path.relative_to(PACKAGE)}:{node.lineno} calls {called}"


@pytest.mark.parametrize(
    "module", ["cli", "cli.run", "config.schema", "config.synthetic", "errors"]
)
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
