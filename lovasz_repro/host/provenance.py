"""Where a number comes from: source commit, package versions, device, config and data hashes."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from filecmp import cmp
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lovasz_repro.host.files import sha256_of, write_durably

PACKAGES = (
    "filelock", "fonttools", "jinja2", "markupsafe", "matplotlib", "mlflow", "numba", "numpy",
    "pandas", "pillow", "pydantic", "pyyaml", "requests", "rich", "safetensors", "scipy", "torch",
    "typer", "urllib3",
)  # fmt: skip


def git_commit(package: Path = Path(__file__).parents[1]) -> str:
    """Commit of the source that runs; "-dirty" when package or experiments differ from it.

    A package installed from a git URL knows its commit too, and one from a checkout (``pip install
    .``) while its files are still those of the checkout. "unknown" elsewhere, also where the
    package merely lies inside somebody's repository without being part of it.
    """
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(package, "rev-parse", "HEAD") if tracked else ""
    if not commit:
        return _installed_commit(package)
    folders = [str(package), str(package.parent / "experiments")]
    changes = _git(package, "status", "--porcelain", "--", *folders)
    return commit + ("-dirty" if changes else "")


def _git(package: Path, *arguments: str) -> str:
    """What git says; also in a tree that belongs to another user, whose code is run here anyway."""
    safe = f"safe.directory={package.parent.resolve()}"
    try:
        answer = subprocess.run(
            ["git", "-c", safe, "-c", "core.fsmonitor=false", *arguments],
            cwd=package,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _installed_commit(package: Path) -> str:
    try:
        distribution = importlib.metadata.distribution("lovasz-repro")
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if "vcs_info" in origin:
            return str(origin["vcs_info"]["commit_id"])
        source = Path(unquote(urlsplit(origin["url"]).path), package.name)
        alike = "dir_info" in origin and source != package and _same_files(package, source)
        return git_commit(source) if alike else "unknown"
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return "unknown"


def _same_files(installed: Path, source: Path) -> bool:
    """Whether a package has the files of a checkout, in which the experiments lie beside it."""
    found = [path for path in installed.rglob("*") if path.is_file()]
    names = [path.relative_to(installed) for path in found if path.parent.name != "__pycache__"]
    pairs = [
        (installed / name, (source.parent if name.parts[0] == "experiments" else source) / name)
        for name in names
    ]
    return all(other.is_file() and cmp(path, other, shallow=False) for path, other in pairs)


def package_versions() -> dict[str, str]:
    """{name: version} of Python and of every dependency that is installed; imports none."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_name(device: Any = "cpu") -> str:
    """What a ``torch.device`` or its name is made of: "NVIDIA H200", "CPU ... (8 cores)"."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU {next(models, platform.machine())} ({os.cpu_count()} cores)"  # ARM names no model


def config_hash(resolved: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a resolved config; the order of its keys does not matter.

    Raises:
        TypeError, ValueError: a value that JSON does not have (a Path, NaN).
    """
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_identity(*hashes: str, **parts: str | int) -> str:
    """16 hexadecimal digits that tell one run from every other.

    From its config hash, then its data fingerprint and those of other inputs, and whatever else
    makes it another run, given by name.
    """
    return config_hash({"hashes": hashes, "parts": parts})


def fingerprint_files(
    paths: Iterable[Path],
    root: Path,
    cache: Path | None = None,
    advance: Callable[[int], None] = lambda files: None,
) -> str:
    """16 hexadecimal digits over relative names, sizes and contents of files below ``root``.

    The same on every machine and in every order of ``paths``. With a ``cache`` file, contents
    whose size and modification time are unchanged are not read again. ``advance`` is called with 1
    after each file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not below ``root``.
    """
    names = sorted({path.relative_to(root).as_posix() for path in paths})
    known = _read_cache(cache)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        entries = []
        for entry in pool.map(lambda name: _entry(root / name, known), names):
            entries.append(entry)
            advance(1)
    total = hashlib.sha256()
    for name, (_, size, _, digest) in zip(names, entries, strict=True):
        total.update(f"{name}\0{size}\0{digest}\n".encode())
    if cache is not None:
        settled = time.time_ns() - 2_000_000_000  # a younger file may change unseen
        fresh = {k: [size, t, digest] for k, size, t, digest in entries if t < settled}
        if any(known.get(k) != v for k, v in fresh.items()):
            _write_cache(cache, known | fresh)
    return total.hexdigest()[:16]


def _entry(path: Path, known: Mapping[str, list[Any]]) -> tuple[str, int, int, str]:
    """(absolute path, size, mtime_ns, sha256) of a file."""
    status, key = path.stat(), str(path.absolute())
    cached = known.get(key)
    if cached and cached[:2] == [status.st_size, status.st_mtime_ns]:
        return key, *cached
    return key, status.st_size, status.st_mtime_ns, sha256_of(path)


def _read_cache(cache: Path | None) -> dict[str, list[Any]]:
    try:
        known = json.loads(cache.read_text()) if cache else {}
        return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 3}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _write_cache(cache: Path, entries: Mapping[str, list[Any]]) -> None:
    """A cache that cannot be written costs time, not the run."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_durably(cache, json.dumps(entries).encode())
