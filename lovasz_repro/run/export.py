"""``export``: a trained network as a file for other programs, with its preprocessing written down.

    model.onnx        ONNX; ``preprocessing`` in its metadata
    model.pt2         torch.export; ``preprocessing.json`` among its extra files
    model.onnx.json   the same beside it, and how far the file's answers are from the network's

The file takes what the network takes and gives its logits, at any batch size and at every height
and width that the network allows. It is put in place only after its answers were compared.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lovasz_repro.data.demo import draw_objects
from lovasz_repro.data.examples import GRID_STRIDE, MEAN_BGR
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import RunFailed, UserError, install
from lovasz_repro.evaluation.photographs import as_seen
from lovasz_repro.host.files import try_writing, write_durably
from lovasz_repro.models.enet import ENET_STRIDE
from lovasz_repro.run.trained import Trained

TOLERATED = 1e-3
"""Largest difference of a logit, as a share of the largest logit or of 1."""
AXES = ("batch", "height", "width")
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Exportable:
    """What other programs have to know of a kind of network."""

    remainder: int
    """Height and width are 8 n + this."""
    channels: str
    divisor: float
    mean: tuple[float, ...]
    """That is subtracted after the division, in the order of the channels."""
    fit: str
    """How a photograph comes to such a size."""
    upsampling: str
    """How logits come to the size of the photograph."""


EXPORTABLE = {
    "enet": Exportable(
        0, "RGB", 255, (0, 0, 0),
        "Resize it to height x width, bilinearly; or repeat its last row and column until both "
        f"sides are multiples of {ENET_STRIDE}.",
        "Logits have the size of the input. Cut what was repeated off, or resize them to the "
        "photograph bilinearly with half-pixel centres (align_corners false).",
    ),
    "deeplab-v2": Exportable(
        1, "BGR", 1, MEAN_BGR,
        "Keep its size and continue it to the right and below with the mean, which is 0 after the "
        f"subtraction, until both sides are {GRID_STRIDE} n + 1 and at least least_side pixels.",
        f"Logits stand at every {GRID_STRIDE}th pixel of the input. Resize them to the input "
        "bilinearly, corners on corners (align_corners true), and cut what was continued off.",
    ),
}  # fmt: skip
"""By architecture."""


class ExportedFile(NamedTuple):
    """What came out."""

    file: Path
    notes: Path
    size: int
    about: Mapping[str, Any]
    """The content of ``notes``."""


def export_network(
    network: Trained,
    target: Path,
    photograph: Path | None = None,
    advance: Callable[[str], None] = lambda step: None,
) -> ExportedFile:
    """Write a network and its notes, after comparing its answers.

    Args:
        network: of a kind in ``EXPORTABLE``.
        target: its ending says the format.
        photograph: to compare on; None: a drawn one.
        advance: called with each of the three steps that is done.

    Raises:
        UserError: the network or the photograph cannot be used, a package is missing, or the place
            cannot be written to.
        RunFailed: the file would answer otherwise than the network, or the disk refuses.
    """
    write, ask = format_of(target)
    kind = EXPORTABLE.get(network.snapshot.architecture)
    if kind is None:  # one that sees features is refused where it is loaded
        raise UserError(f"{network.title}: a network of your own is not exported; "
                        "torch.export and torch.onnx take it.")  # fmt: skip
    check_place(target)
    seen = photograph_for(network, photograph)
    about = preprocessing(network, kind)
    model = network.snapshot.model.eval()
    asked = model if network.category is None else OneOutput(model, network.category).eval()
    with quiet():
        program = traced(asked, kind)
        advance("traced")
        content = write(program, about)
        advance("written")
        found = compare(asked, lambda images: ask(content, images), seen, kind)
    if not found["largest_difference"] <= TOLERATED * max(1, found["largest_logit"]):
        raise RunFailed(f"{target}: not written, since the exported network answers otherwise "
                        f"(logits differ by up to {found['largest_difference']:.3g})")  # fmt: skip
    advance("compared")
    about |= {"compared": {"photograph": photograph.name if photograph else "drawn", **found}}
    notes = target.with_name(f"{target.name}.json")
    try:
        write_durably(notes, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
        write_durably(target, content)
    except OSError as error:
        with suppress(OSError):
            notes.unlink()
        raise RunFailed(f"cannot write {target}: {error.strerror or error}") from error
    return ExportedFile(target, notes, len(content), about)


class OneOutput(nn.Module):
    """A network's output for one category, (B, 1, h, w)."""

    def __init__(self, network: nn.Module, category: int) -> None:
        super().__init__()
        self.network, self.category = network, category

    def forward(self, images: Tensor) -> Tensor:
        """Its logits."""
        logits: Tensor = self.network(images)
        return logits[:, self.category : self.category + 1]


# -- before -------------------------------------------------------------------------------------


def check_place(target: Path) -> None:
    """Raise UserError where a file cannot be written, minutes before it is."""
    if target.is_dir():
        raise UserError(f"{target} is a folder; name a file")
    try:
        try_writing(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def photograph_for(network: Trained, file: Path | None) -> Tensor:
    """What the network takes of a photograph, (1, 3, H, W)."""
    photo = read_photograph(file) if file else draw_objects(0, "val", 0)[0]
    of_one_size = network.snapshot.architecture == "enet"
    return network.predictor(torch.device("cpu")).inputs(
        as_seen(photo, network.size if of_one_size else None)
    )


def preprocessing(network: Trained, kind: Exportable) -> dict[str, Any]:
    """What to do before and after the network, for programs and for people."""
    table, evaluation = network.table, network.evaluation
    deeplab = kind.remainder == 1
    category = None if network.category is None else table.names[network.category]
    stride = {"stride": GRID_STRIDE} if deeplab else {"stride": 1}
    classes = [
        {"output": output, "name": table.names[output], "label_id": table.label_ids[output],
         "answer": output in network.answers}
        for output in range(len(table))
    ]  # fmt: skip
    decide = "The class of a pixel is the output with the highest logit among the answers."
    if category:
        classes = [classes[network.category or 0] | {"output": 0}]
        decide = f"A pixel is of {category} where the logit is above 0."
    elif evaluation.upsample == "predictions":
        decide += " It was scored with classes, not logits, resized to the photograph (nearest)."
    scaled = f"divide by {kind.divisor:g}" if kind.divisor != 1 else "subtract the mean"
    return {
        "made_by": "lovasz-repro export",
        "network": network.snapshot.architecture,
        "trained": {"dataset": table.dataset, "run": network.run_id, "size": network.size,
                    **({"note": network.snapshot.notes["run"]}
                       if "run" in network.snapshot.notes else {})},
        "input": {
            "name": INPUT, "shape": ["batch", 3, "height", "width"], "dtype": "float32",
            "channels": kind.channels, "divisor": kind.divisor, "mean": kind.mean,
            "sides": f"8 n + {kind.remainder}" if kind.remainder else "8 n",
            **({"least_side": evaluation.least_side or 1} if deeplab else {}),
        },
        "output": {"name": OUTPUT, "shape": ["batch", len(classes), "rows", "columns"], **stride},
        "classes": classes,
        "steps": [
            "Read the photograph as RGB, upright by its EXIF orientation, 0 to 255.",
            kind.fit,
            f"Order the channels as {kind.channels} and {scaled}, as float32 (batch, 3, height, "
            "width).",
            kind.upsampling,
            decide,
        ],
    }  # fmt: skip


# -- the formats --------------------------------------------------------------------------------


def traced(model: nn.Module, kind: Exportable) -> ExportedProgram:
    """The program of a network, at any batch size and at sides of 8 n + the remainder."""
    batch, high, wide = Dim("batch", min=1), Dim("high", min=1), Dim("wide", min=1)
    sides = [8 * high, 8 * wide] if kind.remainder == 0 else [8 * high + 1, 8 * wide + 1]
    example = torch.zeros(2, 3, 64 + kind.remainder, 96 + kind.remainder)
    return torch.export.export(
        model, (example,), dynamic_shapes=({0: batch, 2: sides[0], 3: sides[1]},)
    )


def to_pt2(program: ExportedProgram, about: Mapping[str, Any]) -> bytes:
    """The content of a .pt2 file."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"preprocessing.json": json.dumps(about)})
    return content.getvalue()


def ask_pt2(content: bytes, images: Tensor) -> np.ndarray:
    """Logits of a .pt2 file."""
    logits = torch.export.load(io.BytesIO(content)).module()(images)
    return logits.detach().numpy()


def to_onnx(program: ExportedProgram, about: Mapping[str, Any]) -> bytes:
    """The content of a .onnx file; axes have names."""
    program = program.run_decompositions({torch.ops.aten.max_unpool2d.default: scattered})
    exported = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert exported is not None, "nothing was asked to be written to a file"
    model = exported.model_proto
    graph = model.graph
    shape = graph.input[0].type.tensor_type.shape.dim
    of = dict(zip((found for axis in shape for found in re.findall(r"s\d+", axis.dim_param)),
                  AXES, strict=True))  # fmt: skip
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"s\d+", lambda m: of.get(m[0], m[0]), axis.dim_param)
    entry = model.metadata_props.add()
    entry.key, entry.value = "preprocessing", json.dumps(about)
    return model.SerializeToString()


def scattered(values: Tensor, indices: Tensor, size: list[int]) -> Tensor:
    """``max_unpool2d``, which ONNX's exporter does not have, as it is defined."""
    flat = values.new_zeros(*values.shape[:2], size[0] * size[1])
    flat = flat.scatter(2, indices.flatten(2), values.flatten(2))
    return flat.view(*values.shape[:2], *size)


def ask_onnx(content: bytes, images: Tensor) -> np.ndarray:
    """Logits of a .onnx file, by ONNX Runtime on the CPU."""
    runtime: Any = import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images.numpy()})[0]


Write = Callable[[ExportedProgram, Mapping[str, Any]], bytes]
Ask = Callable[[bytes, Tensor], np.ndarray]
FORMATS: dict[str, tuple[Write, Ask, tuple[str, ...]]] = {
    ".onnx": (to_onnx, ask_onnx, ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": (to_pt2, ask_pt2, ()),
}
"""By the ending of a file: how it is made, how it is asked, and the packages that both take."""


def format_of(target: Path) -> tuple[Write, Ask]:
    """How a file is made and asked; raises UserError for another ending or a missing package."""
    if target.suffix not in FORMATS:
        raise UserError(f"{target}: name a file that ends with {' or '.join(FORMATS)}")
    write, ask, packages = FORMATS[target.suffix]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"{target.suffix} files take {', '.join(missing)}, not installed here. "
                        f"Run: {install('export')}, or name a .pt2 file")  # fmt: skip
    return write, ask


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say of packages that they could use and of their own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# -- is it the same -----------------------------------------------------------------------------


@torch.no_grad()
def compare(
    model: nn.Module, ask: Callable[[Tensor], np.ndarray], seen: Tensor, kind: Exportable
) -> dict[str, float]:
    """How far answers are from the network's, on a photograph and on two parts of it at once."""
    high, wide = (8 * max(side // 16, 1) + kind.remainder for side in seen.shape[2:])
    parts = torch.cat([seen[..., :high, :wide], seen.flip(3)[..., :high, :wide]])
    differences, largest, same = [], [], []
    for images in (seen.contiguous(), parts.contiguous()):
        expected, found = model(images).numpy(), ask(images)
        if expected.shape != found.shape:
            raise RunFailed(f"the exported network gives {found.shape}, not {expected.shape}")
        differences.append(float(np.abs(found - expected).max()))
        largest.append(float(np.abs(expected).max()))
        same.append(float((_decided(found) == _decided(expected)).mean()))
    return {
        "largest_difference": max(differences),
        "largest_logit": max(largest),
        "same_class": min(same),
    }


def _decided(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0
