"""Weights of the networks as files: one snapshot format for all, and the authors' file of ENet.

A snapshot is a safetensors file. Its metadata says which network it is of ("architecture"), the
data set, the class names and what the tensors do not say; whatever else a run notes comes back as
`notes`. Equal weights and metadata give equal bytes. The Torch7 file of ENet's authors is read as
it is; files of DeepLab-v2 that others released are converted once (`convert`). A file of another
network, a damaged one or one with values that are not finite ends in a `UserError` of one line.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import open_regular, write_durably
from lovasz_repro.models.deeplab import DeepLab, EvidenceNet
from lovasz_repro.models.enet import Activation, DropoutConvention, ENet
from lovasz_repro.models.torch7 import enet_tensors, read_torch7

OF_ENET, OF_DEEPLAB, OF_EVIDENCE_NET = "enet", "deeplab-v2", "evidence-net"
OF_OWN_NETWORK = "callable"
"""Values of "architecture"."""
RELEASED_OUTPUTS = 20  # the released ENet: "unlabelled" and the 19 classes of Cityscapes
BLOCK_NAME = re.compile(r"(layer[1-4])\.(\w+)\.")
MAX_BLOCKS = 200  # ResNet-152 has 50


class ForeignFile(ValueError):
    """A weight file that is not one of ours; perhaps it can be converted."""


@contextmanager
def told(path: Path, advice: str, foreign: str = "") -> Iterator[None]:
    """Have what is wrong with a weight file end in one line of what to do; ``foreign`` is the
    advice on a file that is not one of ours."""
    try:
        yield
    except OSError as error:
        raise UserError(f"weights {path}: {error.strerror or error}") from error
    except ValueError as error:
        problem = str(error).removeprefix(f"{path}: ")
        what_to_do = foreign if isinstance(error, ForeignFile) else advice
        raise UserError(f"weights {path}: {problem}. {what_to_do}") from error


@contextmanager
def is_no(network: str) -> Iterator[None]:
    """Have a ValueError say which network a file is not of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"not {network}: {error}") from error


def kind_of_file(path: Path) -> Literal["safetensors", "pytorch", "hdf5", "other"]:
    """What a file is by its first bytes; raises OSError where it cannot be read."""
    with open_regular(path) as file:
        head = file.read(9)
    if head[8:] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pytorch"
    return "hdf5" if head.startswith(b"\x89HDF") else "other"


@dataclass(frozen=True)
class Weights:
    """Weights of a network and what they were trained for.

    Attributes:
        tensors: on the CPU, under the names of the network's state dict.
        num_classes: number of outputs, None for a backbone without a classifier.
        dataset: short name of the data set, "unknown" where the file does not say.
        class_names: one for each output; empty where the file does not say.
        notes: whatever else a snapshot's metadata holds (run id, git commit, score).
    """

    tensors: dict[str, Tensor]
    num_classes: int | None
    dataset: str
    class_names: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


# ---- the format ----------------------------------------------------------------------------------


def encoded(
    architecture: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    outputs: int | None,
    own: Mapping[str, str],
) -> bytes:
    """A snapshot.

    Arguments:
        architecture: which network.
        tensors: on any device, in any memory format.
        metadata: "dataset" (short name) and "class_names" (one for each output, or none) are
            required; further entries are stored as strings.
        outputs: of the classifier, None without one.
        own: what the network itself notes.

    Raises ValueError for a missing entry or a wrong number of names.
    """
    entries = dict(metadata)
    try:
        dataset, names = entries.pop("dataset"), tuple(entries.pop("class_names"))
    except KeyError as error:
        raise ValueError(f"metadata needs an entry {error}") from error
    check_names(names, outputs)
    header = {key: str(value) for key, value in entries.items()} | {
        "architecture": architecture,
        "dataset": str(dataset),
        "class_names": json.dumps(names),
        **own,
    }
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return ordered(safetensors.torch.save(content, header))


def ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted; the library writes it in random order.

    A file is the length of its header (8 bytes), the header as JSON padded to a multiple of 8, and
    the tensors. The header's entry `__metadata__` maps strings to strings.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file.

    Raises OSError where the file cannot be read and ValueError where it is not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"unreadable safetensors file ({error})") from error


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of one of our files; nothing of any other file or none at all."""
    try:
        with open_regular(path), safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return {}


def class_names(text: str) -> tuple[str, ...]:
    """Class names from a JSON list of strings; raises ValueError where it is none."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its metadata entry 'class_names' is no list of names")
    return tuple(names)


def check_names(names: tuple[str, ...], outputs: int | None) -> None:
    """Raise ValueError unless there are no class names or one for each output."""
    if names and len(names) != outputs:
        raise ValueError(f"{len(names)} class names for {outputs or 'no'} outputs")


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the first difference in names, shapes or types."""
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    if missing or surplus:
        name, count = (missing or surplus)[0], len(missing or surplus)
        what = "lacks" if missing else "has a surplus"
        raise ValueError(f"{what} tensor {name[:80]!r} ({count} such)")
    for name, tensor in tensors.items():
        have, want = (tensor.dtype, tensor.shape), (expected[name].dtype, expected[name].shape)
        if have != want:
            raise ValueError(
                f"tensor {name!r} is {have[0]} {tuple(have[1])}, not {want[0]} {tuple(want[1])}"
            )


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming a tensor that is not finite, or a variance below 0."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds values that are not finite")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"tensor {name!r} holds a variance below 0")


# ---- ENet ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ENetWeights(Weights):
    """Weights of an ENet; for ``decoder`` and ``dropout_convention`` see `ENet`."""

    num_classes: int
    decoder: Activation
    dropout_convention: DropoutConvention

    def build(self) -> ENet:
        """The network with a copy of these weights, in training mode; draws no random numbers."""
        model = self.empty_model()
        model.load_state_dict({k: v.clone() for k, v in self.tensors.items()}, assign=True)
        return model

    def empty_model(self) -> ENet:
        """The network without storage for its weights."""
        with torch.device("meta"):
            return ENet(self.num_classes, self.decoder, self.dropout_convention)


def load_weights(path: Path) -> ENetWeights:
    """Weights of an ENet from the authors' Torch7 file or from a snapshot, told by the content.

    Raises UserError where the file is missing, unreadable, damaged, or not an ENet.
    """
    with told(path, "Give the authors' Torch7 file (enet-model.net) or a .safetensors snapshot of "
              "a run"):  # fmt: skip
        kind = kind_of_file(path)
        if kind == "pytorch":
            raise ValueError("a PyTorch pickle, which is not read")
        ours = kind == "safetensors" or path.suffix == ".safetensors"
        weights = read_enet(path) if ours else read_released(path)
        with is_no("an ENet"):
            check_shapes(weights.tensors, weights.empty_model().state_dict())
        check_values(weights.tensors)
    return weights


def read_released(path: Path) -> ENetWeights:
    """Weights in a Torch7 file; raises ValueError where it is damaged or not an ENet."""
    content = read_torch7(path)
    with is_no("an ENet"):
        tensors, decoder = enet_tensors(content)
    outputs = tensors["classifier.bias"].shape[0]
    dataset = "cityscapes" if outputs == RELEASED_OUTPUTS else "unknown"
    return ENetWeights(
        tensors=tensors,
        num_classes=outputs,
        decoder=decoder,
        dropout_convention="torch7",
        dataset=dataset,
    )


def read_enet(path: Path) -> ENetWeights:
    """Weights in a snapshot of ENet; raises ValueError where it is not one."""
    tensors, notes = read_safetensors(path)
    architecture = notes.pop("architecture", "missing")
    if architecture != OF_ENET:
        raise ValueError(f"not an ENet: architecture {architecture[:60]!r} in its metadata")
    try:
        names = class_names(notes.pop("class_names"))
        if notes.pop("num_classes") != str(len(names)):
            raise ValueError(f"its metadata names {len(names)} classes, but counts others")
        return ENetWeights(
            tensors=tensors,
            num_classes=len(names),
            decoder=cast(Activation, notes.pop("decoder")),
            dropout_convention=cast(DropoutConvention, notes.pop("dropout_convention")),
            dataset=notes.pop("dataset"),
            class_names=names,
            notes=notes,
        )
    except KeyError as error:
        raise ValueError(f"its metadata has no entry {error}") from error


# ---- DeepLab-v2 ----------------------------------------------------------------------------------


class DeepLabWeights(Weights):
    """Weights of a DeepLab: `stored_tensors`, without `aspp.*` for the backbone alone."""

    def build(self) -> DeepLab:
        """The network with these weights; raises UserError where they lack a classifier."""
        width, eps = len(self.tensors["conv1.weight"]), float(self.notes.get("bn_eps", 1e-5))
        model = DeepLab(self.num_classes or 1, block_counts(self.tensors), width, bn_eps=eps)
        self.load_into(model)
        return model

    def load_into(self, model: DeepLab, *, classifier: bool = True) -> None:
        """Copy the weights into `model`, in place, on any device.

        Arguments:
            model: with the same blocks and width, and with a classifier the same outputs.
            classifier: whether `model.aspp` is loaded too; False leaves it as it is.

        Raises UserError, and leaves `model` as it is, where the sizes differ or where a
        classifier is wanted and there is none.
        """
        own = stored_tensors(model)
        have, want = backbone_sizes(self.tensors), backbone_sizes(own)
        if have != want:
            raise UserError(f"The weights are of a DeepLab with {have}; the model has {want}.")
        if classifier and self.num_classes is None:
            raise UserError("The weights hold the backbone alone, without a classifier: train one.")
        if classifier and self.num_classes != model.num_classes:
            raise UserError(
                f"The weights have {self.num_classes} outputs, the model {model.num_classes}."
            )
        tensors = self.tensors
        if not classifier:
            own, tensors = without_classifier(own), without_classifier(tensors)
        try:
            check_shapes(tensors, own)
        except ValueError as error:
            raise UserError(f"The weights do not fit the model: {error}.") from error
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


def load_deeplab_weights(path: Path) -> DeepLabWeights:
    """The weights in one of our .safetensors files.

    Raises UserError where the file is missing, damaged, or somebody else's.
    """
    convert = "Released weights are converted once: lovasz-repro weights convert"
    with told(path, "Convert or fetch it again.", f"{convert} {path} DST.safetensors"):
        if kind_of_file(path) != "safetensors":
            raise ForeignFile("no safetensors file")
        return read_deeplab(path)


def read_deeplab(path: Path) -> DeepLabWeights:
    """Weights in a snapshot of DeepLab; raises ValueError where it is damaged or not ours."""
    tensors, notes = read_safetensors(path)
    architecture = notes.pop("architecture", "")
    if architecture != OF_DEEPLAB:
        what = f"weights of {architecture[:60]!r}" if architecture else "no weights of ours"
        raise ForeignFile(f"{what}, not of {OF_DEEPLAB!r}")
    fitting_network(tensors)
    check_values(tensors)
    for key, value in sizes(tensors).items():
        if notes.pop(key, None) != value:
            raise ValueError(f"its metadata entry {key!r} disagrees with its tensors ({value})")
    names, outputs = class_names(notes.pop("class_names", "")), outputs_of(tensors)
    check_names(names, outputs)
    return DeepLabWeights(tensors, outputs, notes.pop("dataset", "unknown"), names, notes)


def encoded_deeplab(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A snapshot of all of `stored_tensors`, or of all but `aspp.*`; raises ValueError for others.

    See `encoded` for the metadata.
    """
    fitting_network(tensors)
    return encoded(OF_DEEPLAB, tensors, metadata, outputs_of(tensors), sizes(tensors))


def stored_tensors(model: DeepLab) -> dict[str, Tensor]:
    """The part of a state dict that files hold, as released ports do; shares memory with `model`.

    520 tensors of the backbone and 8 of the classifier for ResNet-101, without the counters
    `num_batches_tracked` that frozen batch normalisations have no use for.
    """
    state = model.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def without_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("aspp.")}


def outputs_of(tensors: Mapping[str, Tensor]) -> int | None:
    """How many outputs the classifier has, None without one."""
    bias = tensors.get("aspp.0.bias")
    return None if bias is None else bias.numel()


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata entries that tell people what the tensors themselves tell us."""
    return {
        "blocks": json.dumps(block_counts(tensors)),
        "width": str(len(tensors["conv1.weight"])),
        "num_classes": str(outputs_of(tensors)).lower(),
    }


def backbone_sizes(tensors: Mapping[str, Tensor]) -> str:
    """In words what `tensors`, checked or of a model, say of depth and width."""
    return f"blocks {block_counts(tensors)} and width {len(tensors['conv1.weight'])}"


def block_counts(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many bottlenecks layer1 to layer4 have by the names."""
    found = {match.groups() for name in tensors if (match := BLOCK_NAME.match(name))}
    return tuple(sum(stage == f"layer{k}" for stage, _ in found) for k in (1, 2, 3, 4))


def fitting_network(tensors: Mapping[str, Tensor]) -> DeepLab:
    """The DeepLab, without storage, that `tensors` are the weights of; draws no random numbers.

    Without `aspp.*` its classifier has one output, and none of `tensors` is for it.

    Raises ValueError naming the first difference where no DeepLab has exactly these tensors.
    """
    stem = tensors.get("conv1.weight")
    if stem is None or stem.shape[1:] != (3, 7, 7):
        raise ValueError("not a DeepLab-v2: no 'conv1.weight' of shape (width, 3, 7, 7)")
    blocks = block_counts(tensors)
    if sum(blocks) > MAX_BLOCKS:
        raise ValueError(f"not a DeepLab-v2: {sum(blocks)} blocks, more than {MAX_BLOCKS}")
    outputs = outputs_of(tensors)
    with is_no("a DeepLab-v2"):
        with torch.device("meta"):
            model = DeepLab(1 if outputs is None else outputs, blocks, len(stem))
        expected = stored_tensors(model)
        if len(without_classifier(tensors)) == len(tensors):
            expected = without_classifier(expected)
        check_shapes(tensors, expected)
    return model


# ---- whichever it is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A trained network that sees photographs, as one of our files or the authors' has it.

    Attributes:
        architecture: which network; a name of ``run.networks.NETWORKS``.
        model: on the CPU, in evaluation mode.
        outputs: of the model.
        dataset, class_names, notes: see `Weights`.
    """

    architecture: str
    model: nn.Module
    outputs: int
    dataset: str
    class_names: tuple[str, ...]
    notes: dict[str, str]


def load_snapshot(path: Path) -> Snapshot:
    """The network in a file.

    Raises UserError where it is missing or damaged, holds no classifier, or the network sees no
    photographs.
    """
    architecture = metadata_of(path).get("architecture")
    if architecture == OF_EVIDENCE_NET:
        raise UserError(f"weights {path}: of {architecture}, which sees features drawn from masks "
                        "and no photographs.")  # fmt: skip
    if architecture == OF_OWN_NETWORK:
        raise UserError(f"weights {path}: of a network of your own. Give the id of its run: a file "
                        "does not say which code is run.")  # fmt: skip
    weights: ENetWeights | DeepLabWeights
    if architecture == OF_DEEPLAB:
        weights = load_deeplab_weights(path)
    else:
        weights, architecture = load_weights(path), OF_ENET
    model = weights.build().eval()
    about = weights.dataset, weights.class_names, weights.notes
    return Snapshot(architecture, model, model.num_classes, *about)


# ---- writing, and the smallest network -----------------------------------------------------------


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a snapshot of any of the networks; never leaves a half-written file at `path`.

    Arguments:
        model: any device, any memory format.
        path: ends in .safetensors.
        metadata: see `encoded`; one class name for each output.

    Raises ValueError for a missing entry or a wrong number of names, OSError where the file
    cannot be written.
    """
    assert isinstance(model, ENet | DeepLab | EvidenceNet)
    outputs = model.num_classes
    if not metadata.get("class_names", True):
        raise ValueError(f"0 class names for {outputs} outputs")
    if isinstance(model, DeepLab):
        content = encoded_deeplab(stored_tensors(model), {"bn_eps": model.bn1.eps, **metadata})
    elif isinstance(model, ENet):
        own: dict[str, str] = {
            "num_classes": str(outputs),
            "decoder": model.decoder,
            "dropout_convention": model.dropout_convention,
        }
        content = encoded(OF_ENET, model.state_dict(), metadata, outputs, own)
    else:
        content = encoded(OF_EVIDENCE_NET, model.state_dict(), metadata, outputs, {})
    write_durably(path, content)


def load_evidence_net(model: EvidenceNet, path: Path) -> None:
    """Give a network the weights in a file.

    Raises UserError where it is unreadable or of another network.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"weights {path}: not of this evidence-net ({problem}).") from None


# ---- PyTorch's files -----------------------------------------------------------------------------
#
# Reader of the PyTorch files (.pth, .pt) in which others released weights.
#
# They hold a pickle. PyTorch's restricted unpickler (`weights_only`) reads it: it makes tensors and
# plain containers and calls nothing that a file names. What a small file may claim to be, a huge
# tensor by a stride of 0 or by compression, is refused before anything walks over it.

MAX_PYTORCH_BYTES = 2**31  # the largest released DeepLab has less than a third of it
NESTED_IN = ("state_dict", "model")  # entries under which trainers put the state dict


def read_pytorch(path: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file, on the CPU; at the top, or in one of `NESTED_IN`.

    Raises OSError where the file cannot be read, and ValueError where it is damaged, wants code
    to run, or holds anything but a dict of plain tensors.
    """
    size = path.stat().st_size
    if size > MAX_PYTORCH_BYTES:
        raise ValueError(f"{size} bytes is too large for a network (at most 2 GiB)")
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"  # since PyTorch 1.6
    if archive:
        check_archive(path, size)
    content = state_dict(load(path))
    plain = {name: plain_tensor(name, value) for name, value in content.items()}
    announced = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    if announced > size:
        raise ValueError(f"its tensors claim {announced} bytes, the file has {size}")
    return plain


def check_archive(path: Path, size: int) -> None:
    """Raise ValueError unless a zip file is PyTorch's: uncompressed, with one pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged archives make it raise almost anything
        raise ValueError(f"a damaged archive ({one_line(error)})") from error
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        names = ", ".join(repr(entry.filename[:60]) for entry in entries[:4]) or "nothing"
        raise ValueError(f"an archive with {names}: unpack it and give the weights inside")
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > size:
        raise ValueError("an archive that is compressed, as PyTorch's are not")


def load(path: Path) -> Any:
    """What the restricted unpickler makes of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes in damaged files, refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("a damaged PyTorch file, or one that wants code to run") from error
    except Exception as error:  # damaged files make it raise almost anything
        raise ValueError(f"a damaged PyTorch file ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """The beginning of a library's message, or its type where it has none."""
    return repr(" ".join(str(error).split())[:120] or type(error).__name__)


def state_dict(content: Any) -> dict[Any, Any]:
    """The dict of tensors in what a file holds."""
    if isinstance(content, dict):
        entries = entries_of(content)
        nested = (entries[key] for key in NESTED_IN if isinstance(entries.get(key), dict))
        return next((entries_of(inner) for inner in nested), entries)
    raise ValueError(f"a PyTorch file with a {type(content).__name__}, not a state dict")


def entries_of(content: dict[Any, Any]) -> dict[Any, Any]:
    """A plain dict: a pickle may give an OrderedDict attributes that hide its methods."""
    return dict(dict.items(content))


def plain_tensor(name: Any, value: Any) -> Tensor:
    """`value` if it is a dense tensor with a name, else ValueError."""
    if not isinstance(name, str):
        raise ValueError(f"a state dict with a {type(name).__name__} as a name")
    if type(value) not in (Tensor, nn.Parameter) or vars(value):
        raise ValueError(f"entry {name[:80]!r} is a {type(value).__name__}, not a plain tensor")
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"tensor {name[:80]!r} is sparse, quantised or without content")
    tensor: Tensor = value.detach()
    return tensor
