"""Blocks of logits (B, C, P) that fit the caches, and buffers to work on one of them.

A block is a range of pixels of one image, or several whole images, so that the numbers of its
pixels are a range of a flat (B * P,) tensor. Buffers have the class first: (C, b n) for n pixels
of b images.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of a block: on a CPU its buffers should fit the caches, on others be small beside logits.
BLOCK_ELEMENTS = {"cpu": 2**18, "other": 2**21}


class Block:
    """Some pixels of the logits, and buffers (C, b n) for them.

    ``first`` and ``second`` are floating, ``whole`` is int32, ``index`` and ``value`` are int64;
    ``value`` takes the memory of the floating ones.
    """

    def __init__(self, images: slice, pixels: slice, logits: Tensor, flat: list[Tensor]) -> None:
        self.images = images
        self.pixels = pixels
        self.logits = self.part_of(logits)  # (C, b, n)
        self.shape = self.logits.shape
        self.size = self.shape[1] * self.shape[2]
        buffers = [buffer[: self.logits.numel()].view(self.shape[0], -1) for buffer in flat]
        self.first, self.second, self.whole, self.index, self.value = buffers
        self._order = torch.arange(self.size, device=logits.device)
        start = images.start * logits.shape[2] + pixels.start
        self._range = slice(start, start + self.size)  # among the (B * P,) pixels

    def part_of(self, logits: Tensor) -> Tensor:
        """View (C, b, n) of logits (B, C, P)."""
        return logits[self.images, :, self.pixels].transpose(0, 1)

    def numbers_of(self, *numbers: Tensor | None) -> list[Any]:
        """Of numbers of all pixels, (B, P) or (B * P,), views (b n,) of those of this block."""
        return [None if one is None else one.view(-1)[self._range] for one in numbers]

    def elements_of(self, labels: Tensor) -> Tensor:
        """(b n,) where in a flat buffer the element of each pixel's label is."""
        return torch.add(self._order, labels, alpha=self.size)

    def elements_in(self, result: Tensor, labels: Tensor, pixels: Tensor | None = None) -> Tensor:
        """(b n,) where in flat logits (B, C, P) it is; or of some pixels of the block alone."""
        _, classes, space = result.shape
        first = self.images.start * classes * space + self.pixels.start
        starts = self._order if pixels is None else self._order[pixels]
        if self.shape[1] > 1:  # whole images
            starts = starts + starts.div(space, rounding_mode="floor") * ((classes - 1) * space)
        return torch.add(starts, labels, alpha=space).add_(first)

    def integers(self, classes: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``whole``, ``index``, ``value`` and a second int32 buffer, of some classes or of all.

        The second one and ``value`` take the memory of the floating buffers.
        """
        second = self.second.view(-1).view(torch.int32)[: self.whole.numel()].view_as(self.whole)
        if classes is None:
            return self.whole, self.index, self.value, second
        whole, count = self.whole.index_select(0, classes), len(classes)
        return whole, self.index[:count], self.value[:count], second[:count]

    def scratch(self) -> Tensor:
        """Another floating buffer, in place of the int32 one where that is large enough."""
        if self.first.dtype == torch.float32:
            return self.whole.view(torch.float32)
        return torch.empty_like(self.first)


class Blocks:
    """All blocks of some logits, one after the other."""

    def __init__(self, logits: Tensor, dtype: torch.dtype) -> None:
        self.logits = logits
        batch, classes, space = logits.shape
        elements = BLOCK_ELEMENTS["cpu" if logits.device.type == "cpu" else "other"]
        pixels = max(1, elements // classes)
        self.pixels = max(1, min(space, pixels))
        self.images = max(1, min(batch, pixels // self.pixels)) if space <= pixels else 1
        size = classes * self.images * self.pixels
        floats = torch.empty(2, size, dtype=dtype, device=logits.device)
        whole = torch.empty(size, dtype=torch.int32, device=logits.device)
        index = torch.empty(size, dtype=torch.int64, device=logits.device)
        self._flat = [*floats, whole, index, floats.view(-1).view(torch.int64)]

    def __iter__(self) -> Iterator[Block]:
        batch, _, space = self.logits.shape
        for image in range(0, batch, self.images):
            for pixel in range(0, space, self.pixels):
                images = slice(image, min(image + self.images, batch))
                pixels = slice(pixel, min(pixel + self.pixels, space))
                yield Block(images, pixels, self.logits, self._flat)
