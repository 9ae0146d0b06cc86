"""What is computed on in measurements, and what others write, to compare with; not for training.

Algorithm 1 as it is usually written down: a Python loop over classes or images, float32, a sort,
differences of neighbouring Jaccard losses, and autograd for everything around them.

The loader of Pascal VOC in plain Pillow, as most ports of DeepLab have it: open, resize the whole
photograph, pad, crop, mirror, convert to float and subtract the mean. Pillow widens its kernel
where it shrinks, so photographs look slightly different.

Losses of other libraries, where they are installed.
"""

import importlib.metadata
import importlib.util
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from lovasz_repro.data.classes import VOID
from lovasz_repro.data.examples import CROP_SCALES, MEAN_BGR, PADDING_RGB
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc import read_sbd
from lovasz_repro.errors import UserError
from lovasz_repro.losses import lovasz_softmax

# ---- What is computed on -------------------------------------------------------------------------
#
# What the losses are measured on: sizes, and logits and labels of two kinds of networks.
#
# ``random``: standard normal logits, each label as likely as any other: a network before training.
#
# ``trained``: a good network. Labels come in square regions, the first class most often and the
# others in falling shares, so that an image shows a few of them. The predicted class, which is the
# label but for 5 % of the pixels, has a logit 10 above the others on average.

REGION = 32  # side in pixels
MARGIN, SPREAD = 10.0, 2.0  # of the predicted class's logit; of all logits
WRONG = 0.05
FOREGROUND = 0.25  # share, of regions, in the binary labels
# Largest use of memory, measured: the float64 references are kept while the losses run.
BYTES_A_LOGIT, BYTES_A_PIXEL = 60, 150


class Size(NamedTuple):
    """Shape of the logits; B x H x W of it for two classes."""

    batch: int
    classes: int
    height: int
    width: int

    def __str__(self) -> str:
        return " x ".join(str(side) for side in self)


def parse_size(text: str) -> Size:
    """ "2x21x321x321" as batch, classes, height and width.

    Raises:
        UserError: another form, a zero, or fewer than two classes.
    """
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9}){3}", text.lower()):
        raise UserError(f"size {text!r}: give BxCxHxW, for example 2x21x321x321.")
    size = Size(*(int(side) for side in text.lower().split("x")))
    if 0 in size:
        raise UserError(f"size {text!r}: none of BxCxHxW may be 0.")
    if size.classes < 2:
        raise UserError(
            f"size {text!r}: Lovász-Softmax needs at least 2 classes; the hinge, for two classes "
            "in one logit, is measured with every size."
        )
    return size


def fits(size: Size, device: torch.device) -> bool:
    """Whether the losses can be measured at this size."""
    return bytes_of(size) <= free_memory(device)


def bytes_of(size: Size) -> int:
    """What the losses need."""
    return size.batch * size.height * size.width * (size.classes * BYTES_A_LOGIT + BYTES_A_PIXEL)


def check_memory(size: object, needed: int, device: torch.device) -> None:
    """Refuse a size that cannot fit.

    Raises:
        UserError: the device has less memory than the bytes that are needed.
    """
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"size {size}: needs about {needed / 2**30:.1f} GiB on {device.type}, "
            f"{free / 2**30:.1f} GiB are free. Give a smaller --size."
        )


def free_memory(device: torch.device) -> int:
    """Bytes that a new tensor may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def multiclass_sample(size: Size, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits (B, C, H, W) float32 and labels (B, H, W) int64, on the device of the generator.

    Args:
        size: of the logits.
        kind: "random" or "trained".
        generator: where they come from.
    """
    device, space = generator.device, (size.batch, size.height, size.width)
    logits = torch.randn(size.batch, size.classes, *space[1:], generator=generator, device=device)
    if kind == "random":
        return logits, torch.randint(size.classes, space, generator=generator, device=device)
    shares = 1 / torch.arange(1, size.classes + 1, device=device) ** 1.5
    labels = regions(size, shares, generator)
    other = torch.randint(size.classes, space, generator=generator, device=device)
    wrong = torch.rand(space, generator=generator, device=device) < WRONG
    predicted = torch.where(wrong, other, labels)[:, None]
    logits.mul_(SPREAD).scatter_add_(
        1, predicted, torch.full_like(predicted, MARGIN, dtype=logits.dtype)
    )
    return logits, labels


def binary_sample(size: Size, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits (B, H, W) float32 and labels (B, H, W) of 0 and 1, likewise."""
    device, space = generator.device, (size.batch, size.height, size.width)
    logits = torch.randn(space, generator=generator, device=device)
    if kind == "random":
        return logits, torch.randint(2, space, generator=generator, device=device)
    shares = torch.tensor([1 - FOREGROUND, FOREGROUND], device=device)
    labels = regions(size, shares, generator)
    wrong = torch.rand(space, generator=generator, device=device) < WRONG
    predicted = (labels == 1) ^ wrong
    return logits.add_(torch.where(predicted, MARGIN / 2, -MARGIN / 2)), labels


def regions(size: Size, shares: Tensor, generator: torch.Generator) -> Tensor:
    """(B, H, W) labels in squares of REGION pixels, of the given shares."""
    rows, columns = -(-size.height // REGION), -(-size.width // REGION)
    count = size.batch * rows * columns
    coarse = torch.multinomial(shares, count, replacement=True, generator=generator)
    labels = coarse.view(size.batch, rows, columns)
    labels = labels.repeat_interleave(REGION, 1).repeat_interleave(REGION, 2)
    return labels[:, : size.height, : size.width].contiguous()


# ---- What others write ---------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits (B, C, H, W) and labels (B, H, W)."""


class Peer(NamedTuple):
    """A loss of another library."""

    build: Callable[[Any], Loss]
    """From its module ``losses``."""
    exact: Loss | None
    """The same loss of ours, by sorting; None: its own in float64."""


def monai_dice(losses: Any) -> Loss:
    """MONAI's soft Dice, for scale: its sums need no sort."""
    dice = losses.DiceLoss(softmax=True, to_onehot_y=True)
    return lambda logits, labels: dice(logits, labels[:, None])


PEERS: Mapping[tuple[str, str], Peer] = {
    ("kornia", "LovaszSoftmaxLoss"): Peer(
        lambda losses: losses.LovaszSoftmaxLoss(),
        partial(lovasz_softmax, classes="all", per_image=True, method="sort"),
    ),
    ("monai", "DiceLoss"): Peer(monai_dice, None),
    ("segmentation_models_pytorch", "LovaszLoss"): Peer(
        lambda losses: losses.LovaszLoss("multiclass"), partial(lovasz_softmax, method="sort")
    ),
}
"""By library and name."""


def peers() -> tuple[dict[str, tuple[Loss, Loss]], list[str]]:
    """Those that are installed.

    Returns:
        "kornia 0.9.0 LovaszSoftmaxLoss" -> the loss, and the loss whose float64 result is the
        reference; and a sentence on each library that is installed and cannot be imported.
    """
    found: dict[str, tuple[Loss, Loss]] = {}
    notes = []
    for (library, name), peer in PEERS.items():
        if importlib.util.find_spec(library):
            try:
                loss = peer.build(import_module(f"{library}.losses"))
                version = importlib.metadata.version(library)
            except Exception as error:  # whatever its import runs into
                notes.append(f"{library}: not measured, {type(error).__name__} on its import.")
            else:
                found[f"{library} {version} {name}"] = loss, peer.exact or loss
    return found, notes


def sort_loop_softmax(logits: Tensor, labels: Tensor, ignore_index: int | None = None) -> Tensor:
    """Lovász-Softmax (Eq. 11-13) over the classes present in the batch, one class at a time.

    Args:
        logits: (B, C, ...) unnormalised scores.
        labels: (B, ...) class ids in [0, C).
        ignore_index: label of the pixels that do not count.

    Returns:
        0-dim float32 tensor, 0 without a valid pixel.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(1, dtype=torch.float32)
    probabilities = probabilities.movedim(1, -1).reshape(-1, classes)  # (P, C)
    labels = labels.reshape(-1)
    if ignore_index is not None:
        valid = labels != ignore_index
        probabilities, labels = probabilities[valid], labels[valid]
    losses = []
    for item in range(classes):
        foreground = (labels == item).float()
        if foreground.sum() == 0:
            continue
        losses.append(_extension((foreground - probabilities[:, item]).abs(), foreground))
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0


def sort_loop_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász hinge (Eq. 10), one image at a time.

    Args:
        logits: (B, ...) unnormalised scores of the foreground.
        labels: (B, ...) 1 on the foreground, 0 elsewhere.

    Returns:
        0-dim float32 tensor, the mean over the images.
    """
    losses = []
    for scores, truth in zip(logits.float().flatten(1), labels.flatten(1), strict=True):
        foreground = truth.float()
        losses.append(_extension((1 - scores * (2 * foreground - 1)).relu(), foreground))
    return torch.stack(losses).mean()


def _extension(errors: Tensor, foreground: Tensor) -> Tensor:
    """Eq. 8 for errors and foreground (P,): sort, gains, dot product."""
    errors, order = torch.sort(errors, descending=True)
    return torch.dot(errors, _gains(foreground[order]))


def _gains(ranked: Tensor) -> Tensor:
    """Lines 3-8 of Algorithm 1 for the foreground (P,) in the order of decreasing errors."""
    size = ranked.sum()
    intersection = size - ranked.cumsum(0)
    union = size + (1 - ranked).cumsum(0)
    jaccard = 1 - intersection / union
    jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return jaccard


class PlainVoc(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crops as DeepLab-v2 takes them; nothing of it is checked, and labels are of all classes.

    An item is B, G, R minus the mean, (3, crop, crop) float32, and its labels (crop, crop) int64.

    Args:
        images: what ``list_images`` gives.
        crop: side of what comes out, pixels.
    """

    def __init__(self, images: Sequence[ImagePair], crop: int) -> None:
        self.images = images
        self.crop = crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | Draw) -> tuple[torch.Tensor, torch.Tensor]:
        files = self.images[item.image if isinstance(item, Draw) else item]
        with Image.open(files.image) as opened:
            image: Image.Image = opened.convert("RGB")
        mask = open_mask(files.mask)
        scale = random.choice(CROP_SCALES)
        size = int(image.width * scale), int(image.height * scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        mask = mask.resize(size, Image.Resampling.NEAREST)
        border = (0, 0, max(self.crop - image.width, 0), max(self.crop - image.height, 0))
        if any(border):
            image = ImageOps.expand(image, border, PADDING_RGB)
            mask = ImageOps.expand(mask, border, VOID)
        left = random.randint(0, image.width - self.crop)
        top = random.randint(0, image.height - self.crop)
        window = (left, top, left + self.crop, top + self.crop)
        image, mask = image.crop(window), mask.crop(window)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.array(image, dtype=np.float32)[:, :, ::-1] - np.array(MEAN_BGR, np.float32)
        channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return torch.from_numpy(channels_first), torch.from_numpy(np.array(mask, dtype=np.int64))


def open_mask(file: Path) -> Image.Image:
    """A mask of VOC, or of SBD, which Pillow cannot read."""
    if file.suffix == ".mat":
        return Image.fromarray(read_sbd(file))
    with Image.open(file) as opened:
        opened.load()
        return opened
