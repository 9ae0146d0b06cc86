"""Predictions of a whole split of Cityscapes as files, in the form that its test server takes.

    <out>/aachen_000000_000019_labelIds.png    8 bits, official label ids, the photograph's size
    <out>/predictions.json                     of which weights, photographs and settings

The official script and the server look for ``<city>_<sequence>_<frame>*.png`` in any folder and
take exactly one such file for each photograph (``getPrediction`` of cityscapesScripts).

A call that is cut short is continued by the next one with the same weights and settings: files are
there whole or not at all, and every photograph passes the network alone, so that the files do not
depend on where it was cut. Photographs that were replaced since are labelled anew.
"""

import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from lovasz_repro.data.cityscapes import CLASSES, TO_LABEL_ID, Frame
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predict import as_seen, check_size, label_photograph
from lovasz_repro.evaluation.prediction_folder import (
    claimed,
    digest,
    is_complete,
    prediction_files,
    sizes,
    write_file,
)
from lovasz_repro.evaluation.predictor import Feeding, Predictor, Upsample
from lovasz_repro.host.device import choose_device
from lovasz_repro.models.snapshot import RELEASED_OUTPUTS, Weights, load_weights

INPUT_SIZE = (512, 1024)
"""Height and width at which the network sees the photographs (Sec. 4.4)."""
ANSWERS = range(1, len(CLASSES))
"""Outputs among which the network chooses; 0, "unlabelled", is no answer."""
READERS, AHEAD = 4, 8  # threads that decode, photographs decoded before the network is there
WRITERS, BEHIND = 2, 8  # threads that encode, predictions that may wait for them

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
        device: "auto", "cpu", "cuda", "cuda:1", ...
        advance: called with the number of photographs done, without those that were before.

    Returns:
        The file of each photograph, in the order of ``frames``.

    Raises:
        UserError: weights, size, device or folder cannot be used, ``out`` holds other predictions
            or is in use, or a photograph cannot be read.
    """
    check_size(size)
    on = choose_device(device)
    model = load_cityscapes(weights).build().to(on)
    predictor = Predictor(model, Feeding(), on, first_class=ANSWERS[0], upsample=upsample)
    manifest = {
        "weights": digest(weights),
        "split": split,
        "data": data,
        "size": f"{size[0]}x{size[1]}",
        "upsample": upsample,
        "bytes": sizes(frames),
    }
    with claimed(out, manifest):
        files = prediction_files(frames, out)
        pairs = zip(frames, files, strict=True)
        missing = [(frame, file) for frame, file in pairs if not is_complete(file)]
        _predict(predictor, missing, size, advance)
    return files


def load_cityscapes(weights: Path) -> Weights:
    """Weights of a network with the outputs of the released one: unlabelled and 19 classes.

    Raises:
        UserError: unreadable, or a network with other outputs.
    """
    loaded = load_weights(weights)
    needed = f"Cityscapes needs the {RELEASED_OUTPUTS} of the released network"
    if loaded.num_classes != RELEASED_OUTPUTS:
        what = f" ({loaded.dataset})" if loaded.dataset != "unknown" else ""
        raise UserError(f"weights {weights}: {loaded.num_classes} outputs{what}; {needed}.")
    names = zip(loaded.class_names, CLASSES, strict=bool(loaded.class_names))
    for index, (name, expected) in enumerate(names):
        if name != expected:
            raise UserError(f"weights {weights}: output {index} is {name}; {needed}, "
                            f"of which that is {expected}.")  # fmt: skip
    return loaded


def _predict(
    predictor: Predictor,
    missing: Sequence[tuple[Frame, Path]],
    size: tuple[int, int],
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
                classes = label_photograph(predictor, seen, own, ANSWERS, frame.image)
                writing.append(writers.submit(_write, file, classes))
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


def _write(file: Path, classes: np.ndarray) -> None:
    """Write classes (H, W) as official label ids."""
    content = io.BytesIO()
    Image.fromarray(TO_LABEL_ID[classes]).save(content, "PNG")
    write_file(file, content.getvalue())
