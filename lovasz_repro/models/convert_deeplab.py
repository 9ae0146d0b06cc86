"""From weights that others released to a file of ours that `load_deeplab_weights` reads.

The kind of file is told by its content and the layout by its names. What was read, from which
bytes and what was left out goes into the new file's metadata.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lovasz_repro import __version__
from lovasz_repro.data.palettes import VOC
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import open_regular, write_durably
from lovasz_repro.models.caffemodel import read_caffemodel
from lovasz_repro.models.deeplab_layouts import Images, Layout, caffe_tensors, recognise, translate
from lovasz_repro.models.deeplab_tensors import check_values, fitting_network, without_classifier
from lovasz_repro.models.deeplab_weights import ARCHITECTURE, encoded
from lovasz_repro.models.pytorch_file import read_pytorch
from lovasz_repro.models.snapshot_file import read_safetensors

BN_EPS = 1e-5  # Caffe's default, which the release keeps: its prototxt sets none
DATASETS = {91: "coco", 1000: "imagenet"}  # by the outputs of a classifier that is left out


@dataclass(frozen=True)
class Conversion:
    """What a conversion read and wrote.

    Attributes:
        layout: where such files come from, for people.
        classifier: whether it was kept, left out, or not there, and why.
        outputs: of the classifier that was kept, None without one.
        tensors: how many were written.
        sha256: of the source.
        notes: sentences to print.
    """

    layout: str
    classifier: str
    outputs: int | None
    tensors: int
    sha256: str
    notes: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    classifier: bool | None = None,
    images: Images | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the weights of `source` to `target`, under our names.

    Arguments:
        source: Caffe's .caffemodel, or a PyTorch or safetensors file in one of `LAYOUTS`.
        target: ends in .safetensors; its folder is made if missing.
        classifier: whether to keep DeepLab-v2's classifier; None keeps one that is known to be
            trained.
        images: see `recognise`.
        overwrite: whether `target` may hold something else already.

    Raises UserError where `source` is missing, damaged or no ResNet DeepLab, where it lacks a
    classifier that is asked for, or where `target` holds something else; RunFailed where the
    disk refuses.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the converted file must end in .safetensors.")
    try:
        with open_regular(source) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        tensors, other_outputs, layout = read_foreign(source, images)
        fitting_network(tensors)
        check_values(tensors)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(
            f"{source}: {error}. lovasz-repro weights list names the files that can be converted."
        ) from error
    tensors, outcome = choose_classifier(tensors, layout, other_outputs, classifier, source)
    bias = tensors.get("aspp.0.bias")
    outputs = None if bias is None else len(bias)
    of_voc = outputs == len(VOC)
    metadata = {
        "dataset": VOC.dataset if of_voc else DATASETS.get(other_outputs, "unknown"),
        "class_names": VOC.names if of_voc else (),
        "bn_eps": BN_EPS,
        "source": source.name,
        "source_sha256": sha256,
        "source_bytes": source.stat().st_size,
        "source_layout": layout.name,
        "source_classifier": outcome,
        "source_notes": " ".join(layout.notes),
        "converted_by": f"lovasz-repro {__version__}",
    }
    write(encoded(tensors, metadata), target, overwrite)
    return Conversion(layout.name, outcome, outputs, len(tensors), sha256, layout.notes)


def read_foreign(
    source: Path, images: Images | None = None
) -> tuple[dict[str, Tensor], int, Layout]:
    """Tensors under our names, outputs of another classifier that is left out (or 0), layout.

    Raises OSError and ValueError as the readers do.
    """
    tensors = read_any(source)
    layout = recognise(tensors, images)
    return *translate(tensors, layout), layout


def read_any(source: Path) -> dict[str, Tensor]:
    """The tensors of a file of any kind, under its own names."""
    with source.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"\x89HDF"):
        raise ValueError(
            "an HDF5 file, which is not read: those of this network's TensorFlow port hold a pickle"
        )
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return read_pytorch(source)
    if head[8:] == b"{":
        tensors, metadata = read_safetensors(source)
        if metadata.get("architecture") == ARCHITECTURE:
            raise UserError(f"{source}: converted already, it can be used as it is.")
        return tensors
    return caffe_tensors(read_caffemodel(source))


def choose_classifier(
    tensors: dict[str, Tensor], layout: Layout, other: int, wanted: bool | None, source: Path
) -> tuple[dict[str, Tensor], str]:
    """Tensors with or without the classifier, and a sentence about it."""
    backbone = without_classifier(tensors)
    if len(backbone) == len(tensors):
        what = f"a classifier of {other} outputs without ASPP, left out" if other else "none"
        if wanted:
            raise UserError(f"{source}: no classifier of DeepLab-v2 to keep ({what}).")
        return backbone, what
    if wanted or (wanted is None and layout.keep_classifier):
        return tensors, "kept" if trained(tensors) else "kept (untrained: its biases are all 0)"
    why = "as asked" if wanted is False else "files of this layout may hold an untrained one"
    return backbone, f"left out ({why})"


def trained(tensors: dict[str, Tensor]) -> bool:
    """Whether the classifier's biases have left the 0 at which everybody starts them."""
    biases = [t for name, t in tensors.items() if re.fullmatch(r"aspp\.\d+\.bias", name)]
    return any(bool(bias.any()) for bias in biases)


def write(content: bytes, target: Path, overwrite: bool) -> None:
    """Write `content` durably, unless it is there already."""
    try:
        if target.exists() and not overwrite:
            if target.stat().st_size == len(content) and target.read_bytes() == content:
                return
            raise UserError(f"{target} exists with other content: move it away or name another.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, content)
    except OSError as error:
        raise RunFailed(f"{target} not written: {error.strerror or error}.") from error
