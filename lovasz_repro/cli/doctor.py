"""What is installed, which devices there are, which data and weights are found."""

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from lovasz_repro import __version__
from lovasz_repro.config.tables import DATASET_LINES
from lovasz_repro.data.datasets import dataset
from lovasz_repro.data.locate import find_dataset, find_weights
from lovasz_repro.errors import UserError, install
from lovasz_repro.host.output import Terminal, plural, print_table, say_json
from lovasz_repro.store import Store

NEEDED_PACKAGES = (
    "torch",
    "numpy",
    "mlflow",
    "pandas",
    "matplotlib",
    "pillow",
    "safetensors",
    "pydantic",
)
STARTING_POINTS = {
    "enet weights": (
        "enet-cityscapes",
        "for `run cityscapes-enet`, `run camvid-enet` and `predict`; `lovasz-repro weights fetch "
        "enet-cityscapes` gets release v1.cs of e-lab/ENet-training on GitHub, CC BY-NC 4.0",
    ),
    "deeplab weights": (
        "deeplab-coco",
        "for `run voc-binary` and `run voc-multiclass`; `lovasz-repro weights list` says where "
        "they come from",
    ),
}
"""Released weights: their name, and what needs them."""
EXTRAS = {
    "cityscapesscripts": f"for `evaluate --official` alone: {install('cityscapes')}",
    "pydensecrf2": (
        "for the dense CRF of `run voc-multiclass` and `evaluate --crf`; needs a C++ compiler: "
        f"{install('crf')}"
    ),
    "onnxruntime": f"for `export RUN model.onnx` alone: {install('export')}",
}
"""Packages that some commands need, and which."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ok: bool
    detail: str
    """What was found, or what it is needed for and where it comes from."""
    essential: bool = False
    """Whether nothing works without it."""


def examine(data: Path, results: Path, tracking_uri: str | None) -> list[Finding]:
    """Look for everything that the tool can use; changes nothing."""
    return [
        Finding("lovasz-repro", True, f"{__version__} on Python {platform.python_version()}"),
        *(package(name, f"not installed: {install()}", True) for name in NEEDED_PACKAGES),
        *devices(),
        *(data_set(data, name) for name in DATASET_LINES if dataset(name).published),
        *(weights(data, name) for name in STARTING_POINTS),
        *(package(name, needed) for name, needed in EXTRAS.items()),
        store(results, tracking_uri),
        slurm(),
    ]


def package(name: str, needed: str, essential: bool = False) -> Finding:
    """The version that is installed."""
    try:
        return Finding(name, True, importlib.metadata.version(name), essential)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, needed, essential)


def devices() -> Iterator[Finding]:
    """The CPU and every GPU that torch sees."""
    import torch

    yield Finding("cpu", True, plural(torch.get_num_threads(), "thread"))
    count = torch.cuda.device_count()
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        detail = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
        yield Finding(f"cuda:{index}", True, detail)
    if not count:
        yield Finding("cuda", False, "no GPU that torch can use; needed for profile paper")


def data_set(data: Path, name: str) -> Finding:
    """A data set and how many images of each split it has, of those that have to be there."""
    folder, kind = find_dataset(data, name), dataset(name)
    if folder is None:
        return Finding(name, False, f"not at {data / name}; {kind.source}")
    try:
        found = {split: kind.count(folder, split) for split in kind.published}
    except UserError as error:
        return Finding(name, False, str(error))
    published = dict(kind.published)
    counts, expected = ("/".join(map(str, sizes.values())) for sizes in (found, published))
    note = "" if found == published else f", but the published split is {expected}"
    return Finding(name, not note, f"{folder}: {counts} {'/'.join(found)}{note}")


def weights(data: Path, name: str) -> Finding:
    """Released weights."""
    released, needed = STARTING_POINTS[name]
    file = find_weights(data, released)
    if file is None:
        return Finding(name, False, f"not below {data / 'weights'}; {needed}")
    return Finding(name, True, f"{file}, {file.stat().st_size:,} bytes")


def store(results: Path, tracking_uri: str | None) -> Finding:
    """Whether the run store answers."""
    try:
        opened = Store(results, tracking_uri)
        count = len(opened.runs())
    except UserError as error:
        return Finding("store", False, str(error), essential=True)
    return Finding("store", True, f"{opened.shown_uri}: {plural(count, 'run')}", essential=True)


def slurm() -> Finding:
    """Whether `run --slurm` can submit from here."""
    if shutil.which("sbatch") is None:
        return Finding("slurm", False, "no sbatch on the PATH; needed for `run --slurm` alone")
    found = package("submitit", f"no submitit: {install('slurm')}")
    where = f"{shutil.which('sbatch')}, submitit {found.detail}" if found.ok else found.detail
    return Finding("slurm", found.ok, where)


def print_findings(findings: list[Finding], as_json: bool) -> None:
    """One line each, or JSON."""
    if as_json:
        say_json([asdict(finding) for finding in findings])
        return
    rows: list[list[str | Text]] = [
        [
            Text("ok", "green") if finding.ok else Text("missing", "red"),
            finding.name,
            finding.detail,
        ]
        for finding in findings
    ]
    print_table(Terminal(), ["state", "what", "found"], rows, words=range(3))
