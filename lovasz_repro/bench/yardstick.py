"""What the losses are measured against: Algorithm 1 as it is usually written down.

A Python loop over classes or images, float32, a sort, differences of neighbouring Jaccard losses,
and autograd for everything around them. Neither fast nor precise, and not for training.
"""

import torch
from torch import Tensor


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
