"""Predictions of a whole split of Cityscapes as files, in the form that its test server takes.

    <out>/aachen_000000_000019_labelIds.png    8 bits, official label ids, the photograph's size
    <out>/predictions.json                     of which weights, photographs and settings

The official script and the server look for ``<city>_<sequence>_<frame>*.png`` in any folder and
take exactly one such file for each photograph (``getPrediction`` of cityscapesScripts).

A call that is cut short is continued by the next one with the same weights and settings: files are
there whole or not at all, and every photograph passes the network alone, so that the files do not
depend on where it was cut. Photographs that were replaced since are labelled anew. The list,
``predictions.json``, is written first, so that no other command goes on with the folder.
"""

import hashlib
import io
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from lovasz_repro.data.cityscapes import STREET_CLASSES, TO_LABEL_ID, Frame
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.photographs import (
    as_seen,
    label_photograph,
    make_folder,
    write_file,
    write_picture,
)
from lovasz_repro.evaluation.predictor import Feeding, Predictor, Upsample
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.files import remove_left_over
from lovasz_repro.models.snapshot import RELEASED_OUTPUTS, ENetWeights, load_weights

Unlabelled = Literal["dropped", "kept"]
INPUT_SIZE = (512, 1024)
"""Height and width at which the network sees the photographs (Sec. 4.4)."""
ANSWERS = {
    "dropped": range(1, len(STREET_CLASSES)),
    "kept": range(len(STREET_CLASSES)),
}
"""Outputs among which the network chooses, by what becomes of 0, "unlabelled"."""
READERS, AHEAD = 4, 8  # threads that decode, photographs decoded before the network is there
WRITERS, BEHIND = 2, 8  # threads that encode, predictions that may wait for them
ENDING = "_labelIds.png"
MANIFEST = "predictions.json"
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
DIFFERENT = {
    "weights": "other weights",
    "split": "another split",
    "data": "another data set",
    "size": "another --size",
    "upsample": "another --upsample",
    "unlabelled": "another --unlabelled",
}
"""What it means when an entry of the manifest differs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def predict_split(
    weights: Path,
    frames: Sequence[Frame],
    out: Path,
    *,
    split: str,
    data: str = "cityscapes",
    size: tuple[int, int] = INPUT_SIZE,
    upsample: Upsample = "logits",
    unlabelled: Unlabelled = "dropped",
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Label every photograph of a split; those whose file is there already are left out.

    Args:
        weights: a network with the 20 outputs for Cityscapes, see ``load_weights``.
        frames: the photographs.
        out: folder, made where it does not exist.
        split: name of the split, for the manifest.
        data: what the photographs are, for the manifest.
        size: (height, width) at which the network sees them, multiples of 8; Pillow's bilinear.
        upsample: "logits": scores to the photograph's size, bilinearly, before the arg max;
            "predictions": the classes, nearest, after it.
        unlabelled: "kept": also this output is an answer, label id 0, a miss on labelled pixels.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        advance: called with the number of photographs done, without those that were before.

    Returns:
        The file of each photograph, in the order of ``frames``.

    Raises:
        UserError: weights, size, device or folder cannot be used, ``out`` holds other predictions
            or is in use, or a photograph cannot be read.
    """
    on = choose_device(device)
    model = load_cityscapes(weights).build().to(on)
    first = ANSWERS[unlabelled][0]
    predictor = Predictor(model, Feeding(), on, first_class=first, upsample=upsample)
    manifest = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "split": split,
        "data": data,
        "size": f"{size[0]}x{size[1]}",
        "upsample": upsample,
        "unlabelled": unlabelled,
        "bytes": sizes(frames),
    }
    with claimed(out, manifest):
        files = prediction_files(frames, out)
        pairs = zip(frames, files, strict=True)
        missing = [(frame, file) for frame, file in pairs if not is_complete(file)]
        _predict(predictor, missing, size, ANSWERS[unlabelled], advance)
    return files


def load_cityscapes(weights: Path) -> ENetWeights:
    """Weights of a network with the outputs of the released one: unlabelled and 19 classes.

    Raises:
        UserError: unreadable, or a network with other outputs.
    """
    loaded = load_weights(weights)
    needed = f"Cityscapes needs the {RELEASED_OUTPUTS} of the released network"
    if loaded.num_classes != RELEASED_OUTPUTS:
        what = f" ({loaded.dataset})" if loaded.dataset != "unknown" else ""
        raise UserError(f"weights {weights}: {loaded.num_classes} outputs{what}; {needed}.")
    names = zip(loaded.class_names, STREET_CLASSES, strict=bool(loaded.class_names))
    for index, (name, expected) in enumerate(names):
        if name != expected:
            raise UserError(f"weights {weights}: output {index} is {name}; {needed}, "
                            f"of which that is {expected}.")  # fmt: skip
    return loaded


def _predict(
    predictor: Predictor,
    missing: Sequence[tuple[Frame, Path]],
    size: tuple[int, int],
    answers: Sequence[int],
    advance: Callable[[int], None],
) -> None:
    """Photographs are decoded and predictions encoded in threads, while the network is at work."""
    readers, writers = ThreadPoolExecutor(READERS), ThreadPoolExecutor(WRITERS)
    writing: deque[Future[None]] = deque()

    def finish(most: int) -> None:
        while len(writing) > most:
            writing.popleft().result()
            advance(1)

    def read(pair: tuple[Frame, Path]) -> tuple[Tensor, tuple[int, int]]:
        photograph = read_photograph(pair[0].image)
        return as_seen(photograph, size), (photograph.shape[0], photograph.shape[1])

    try:
        with warnings.catch_warnings():  # threads do not put back each other's filters in order
            photographs = ahead(readers, read, missing, AHEAD)
            for (frame, file), (seen, own) in zip(missing, photographs, strict=True):
                classes = label_photograph(predictor, seen, own, answers, frame.image)
                label_ids = Image.fromarray(TO_LABEL_ID[classes])
                writing.append(writers.submit(write_picture, file, label_ids))
                finish(BEHIND)
            finish(0)
    finally:
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """``map`` in a pool that is never more than ``count`` results ahead of who takes them."""
    rest = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(rest, count))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield result


# -- the folder ---------------------------------------------------------------------------------


def prediction_files(frames: Iterable[Frame], out: Path) -> list[Path]:
    """Where the prediction of each photograph is written, there or not."""
    return [out / f"{frame.name}{ENDING}" for frame in frames]


def is_complete(file: Path) -> bool:
    """Whether a prediction is there with its first and last bytes; it is not decoded."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(PNG_START))
            opened.seek(-len(PNG_END), io.SEEK_END)
            return start == PNG_START and opened.read() == PNG_END
    except OSError:
        return False


@contextmanager
def claimed(out: Path, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder alone, after making sure that it holds these predictions or none.

    Raises:
        UserError: it holds others, another process is at work in it, or it cannot be written.
    """
    make_folder(out)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{out} is in use: another process predicts into it.") from None
    except OSError as error:
        raise UserError(f"output folder {out}: {error.strerror or error}") from error
    try:
        before = _read_manifest(out, manifest)
        if before != manifest:
            for name, length in manifest["bytes"].items():
                if before.get("bytes", {}).get(name) != length:  # another photograph
                    (out / f"{name}{ENDING}").unlink(missing_ok=True)
            write_file(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        remove_left_over(out)
        yield
    finally:
        lock.release()


def _read_manifest(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says of its predictions; empty where it has none.

    Raises:
        UserError: it has predictions that are not those of ``manifest``.
    """
    file = out / MANIFEST
    try:
        before = {"unlabelled": "dropped"} | json.loads(file.read_bytes())  # once the only way
        changed = [words for key, words in DIFFERENT.items() if before[key] != manifest[key]]
        dict(before["bytes"])
    except FileNotFoundError:
        if next(out.glob("*.png"), None):
            raise UserError(f"{out} holds PNG files and no {MANIFEST}: they are not of this "
                            "command. Choose another --out.") from None  # fmt: skip
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: unreadable ({error}). Choose another --out.") from None
    if changed:
        raise UserError(f"{out} holds predictions of {', '.join(changed)} ({MANIFEST} says which). "
                        "Choose another --out.")  # fmt: skip
    return dict(before)


def sizes(frames: Iterable[Frame]) -> dict[str, int]:
    """Length in bytes of every photograph, which tells one from another and takes no time."""
    try:
        return {frame.name: frame.image.stat().st_size for frame in frames}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}.") from error
