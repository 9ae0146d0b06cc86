"""Provenance: the commit of a real repository, hashes that depend on content alone."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lovasz_repro
from lovasz_repro.host import provenance
from lovasz_repro.host.provenance import (
    config_hash,
    device_name,
    fingerprint_files,
    git_commit,
    package_versions,
    run_identity,
)

ROOT = Path(lovasz_repro.__file__).parents[1]


# -- git commit ----------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *author, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package and its experiments, committed."""
    package = tmp_path / "repository" / "lovasz_repro"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "experiments").mkdir()
    (package.parent / "experiments" / "a.yaml").write_text("a: 1")
    (package.parent / "README.md").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "Start")
    return package


def test_the_commit_of_the_source_which_is_dirty_where_it_differs(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert git_commit(package) == head
    (package.parent / "README.md").write_text("changed")
    assert git_commit(package) == head
    for name in ("lovasz_repro/__init__.py", "experiments/a.yaml"):
        (package.parent / name).write_text("# changed")
        assert git_commit(package) == f"{head}-dirty"
        git(package.parent, "checkout", name)
    (package / "new.py").write_text("")
    assert git_commit(package) == f"{head}-dirty"


def test_the_source_may_belong_to_another_user(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(package, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own tests have it
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    with pytest.raises(subprocess.CalledProcessError):
        git(package, "rev-parse", "HEAD")
    assert git_commit(package) == head
    nested = package / "inner" / "lovasz_repro"  # lies in a repository that is not its own
    nested.mkdir(parents=True)
    (nested / "__init__.py").write_text("")
    assert provenance._git(nested, "rev-parse", "HEAD") == ""


def test_unknown_outside_git_and_inside_somebody_elses_repository(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provenance, "_installed_commit", lambda package: "unknown")
    installed = package.parent / ".venv" / "site-packages" / "lovasz_repro"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_commit(installed) == "unknown"
    outside = tmp_path / "outside"
    outside.mkdir()
    assert git_commit(outside) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(package) == "unknown"  # no git on this machine


def test_a_package_installed_from_a_checkout_knows_its_commit_while_both_are_alike(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "site packages" / "lovasz_repro"
    (installed / "__pycache__").mkdir(parents=True)
    (installed / "__pycache__" / "a.pyc").write_text("")
    shutil.copy(package / "__init__.py", installed)
    shutil.copytree(package.parent / "experiments", installed / "experiments")
    origin = json.dumps({"url": package.parent.as_uri(), "dir_info": {}})
    distribution = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    head = git(package, "rev-parse", "HEAD")
    assert git_commit(installed) == head
    changed = package.parent / "experiments" / "a.yaml"
    changed.write_text("a: 2")  # the checkout went on
    assert git_commit(installed) == "unknown"
    shutil.copy(changed, installed / "experiments")  # and was installed as it is
    assert git_commit(installed) == f"{head}-dirty"
    changed.unlink()
    assert git_commit(installed) == "unknown"


def test_a_package_installed_from_git_knows_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def __init__(self, text: str | None) -> None:
            self.text = text

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.text

    def installed(text: str | None) -> str:
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(text))
        return provenance._installed_commit(Path("lovasz_repro"))

    assert installed('{"vcs_info": {"vcs": "git", "commit_id": "abc"}, "url": "x"}') == "abc"
    assert installed('{"url": "file:///x", "dir_info": {}}') == "unknown"
    assert installed(None) == "unknown"
    assert installed("no json") == "unknown"


# -- packages and devices ------------------------------------------------------------------------


def test_versions_of_every_dependency_and_none_imported() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=\[]", line)[0].strip().lower() for line in declared}
    assert names <= set(provenance.PACKAGES)
    versions = package_versions()
    assert set(versions) == {"python", *provenance.PACKAGES}
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert versions["python"] == sys.version.split()[0]
    code = (
        "import sys; from lovasz_repro.host.provenance import package_versions; package_versions();"
        "print(sorted({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert list(package_versions()) == ["python", "numpy"]


def test_device_names() -> None:
    import torch

    name = device_name("cpu")
    assert re.fullmatch(r"CPU .+ \(\d+ cores\)", name)
    assert name == device_name(torch.device("cpu"))
    if torch.cuda.is_available():
        assert device_name("cuda") == torch.cuda.get_device_name(0)


# -- hashes --------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=40)
@given(config=st.dictionaries(st.text(), JSON, max_size=5))
def test_the_config_hash_ignores_order_and_survives_a_file(config: dict[str, object]) -> None:
    turned = dict(reversed(config.items()))
    assert config_hash(turned) == config_hash(config)
    assert config_hash(json.loads(json.dumps(config, indent=3))) == config_hash(config)
    assert re.fullmatch("[0-9a-f]{16}", config_hash(config))


def test_the_config_hash_by_hand() -> None:
    text = '{"a":[1,2.5],"b":{"c":null}}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert config_hash({"b": {"c": None}, "a": [1, 2.5]}) == expected


@pytest.mark.parametrize("value", [float("nan"), Path("x"), {1, 2}])
def test_what_json_has_not_cannot_be_hashed(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        config_hash({"a": value})


def test_every_part_makes_another_identity() -> None:
    parts = [
        run_identity("a", "b"),
        run_identity("b", "a"),
        run_identity("a", "b", "c"),
        run_identity("ab", ""),
        run_identity("a", "b", seed=1),
        run_identity("a", "b", seed=2),
    ]
    assert len(set(parts)) == len(parts)
    assert run_identity("a", "b", x=1, y=2) == run_identity("a", "b", y=2, x=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name, content in {"a.png": b"a", "b/c.png": b"ccc", "b/d.png": b""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        os.utime(root / name, (1000, 1000))
    return root


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_the_fingerprint_by_hand_and_on_another_machine(data: Path, tmp_path: Path) -> None:
    contents = {"a.png": b"a", "b/c.png": b"ccc", "b/d.png": b""}
    lines = [
        f"{name}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in sorted(contents.items())
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    assert fingerprint_files(files(data), data) == expected
    assert fingerprint_files(list(reversed(files(data))) * 2, data) == expected
    moved = data.rename(tmp_path / "elsewhere")
    assert fingerprint_files(files(moved), moved) == expected


def test_the_fingerprint_sees_content_name_and_number(data: Path) -> None:
    seen = {fingerprint_files(files(data), data)}
    (data / "a.png").write_bytes(b"b")
    seen.add(fingerprint_files(files(data), data))
    (data / "a.png").rename(data / "e.png")
    seen.add(fingerprint_files(files(data), data))
    (data / "b" / "d.png").unlink()
    seen.add(fingerprint_files(files(data), data))
    assert len(seen) == 4


def test_unchanged_files_are_read_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "fingerprints.json"
    first = fingerprint_files(files(data), data, cache)
    read: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda f, name: (read.append(Path(f.name).name), real(f, name))[1]
    )
    assert fingerprint_files(files(data), data, cache) == first
    assert read == []
    (data / "a.png").write_bytes(b"z")
    second = fingerprint_files(files(data), data, cache)
    assert second != first
    assert read == ["a.png"]
    assert fingerprint_files(files(data), data, cache) == second
    assert read == ["a.png"] * 2  # written a moment ago: may change again within one tick


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", '{"x": 3}', "nonsense"])
def test_a_broken_cache_is_only_slow(data: Path, tmp_path: Path, content: str) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    assert fingerprint_files(files(data), data, cache) == fingerprint_files(files(data), data)
    blocked = tmp_path / "file" / "cache.json"
    (tmp_path / "file").write_text("")
    assert fingerprint_files(files(data), data, blocked) == fingerprint_files(files(data), data)


def test_missing_and_foreign_files(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint_files([data / "missing.png"], data)
    with pytest.raises(ValueError, match="is not in the subpath"):
        fingerprint_files([tmp_path / "outside.png"], data)
