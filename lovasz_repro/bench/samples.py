"""What the losses are measured on: sizes, and logits and labels of two kinds of networks.

``random``: standard normal logits, each label as likely as any other: a network before training.

``trained``: a good network. Labels come in square regions, the first class most often and the
others in falling shares, so that an image shows a few of them. The predicted class, which is the
label but for 5 % of the pixels, has a logit 10 above the others on average.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_repro.errors import UserError

VOID_LABEL = 255  # of pixels that are not counted
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
    free = free_memory(device)
    return free is None or bytes_of(size) <= free


def bytes_of(size: Size) -> int:
    """What the losses need."""
    return size.batch * size.height * size.width * (size.classes * BYTES_A_LOGIT + BYTES_A_PIXEL)


def check_memory(size: object, needed: int, device: torch.device) -> None:
    """Refuse a size that cannot fit.

    Raises:
        UserError: the device has less memory than the bytes that are needed.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"size {size}: needs about {needed / 2**30:.1f} GiB on {device.type}, "
            f"{free / 2**30:.1f} GiB are free. Give a smaller --size."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new tensor may take, or None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if available:
            return int(available[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


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
