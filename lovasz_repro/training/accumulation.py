"""A batch that passes the network in parts, with the loss and the gradient of the whole batch.

Caffe's ``iter_size`` sums the gradients of losses of parts. The paper's losses are functions of a
whole batch and no such sums. So the parts pass twice: once for the logits of the batch alone, which
are small, and after the loss once more, each part with its own slice of the loss's gradient with
respect to them. What a backward pass needs is kept for one part at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_repro.models.enet import BatchShare, SpatialDropout


def backward(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    parts: int = 1,
) -> Tensor:
    """Add the gradient of the loss of a batch to that of the weights; returns the loss, 0-dim.

    The result does not depend on ``parts``, to rounding, where the network looks at each image on
    its own. `SpatialDropout` drops in a part what it would drop in the whole batch.

    Args:
        network: the network, or a wrapper that averages gradients over ranks: once, however many
            parts this rank and others have.
        forward: calls it, (n, 3, H, W) -> logits (n, C, h, w).
        inputs: this rank's images, (B, 3, H, W).
        loss_of: logits of all of them (B, C, h, w) -> loss, 0-dim.
        parts: how many; with fewer images one part each.
    """
    parts = min(parts, len(inputs))
    if parts <= 1:
        loss = loss_of(forward(inputs))
        loss.backward()
        return loss
    pieces = inputs.tensor_split(parts)
    with drawing_alike(network, inputs, pieces) as in_part:
        with torch.no_grad():
            found = []
            for number, piece in enumerate(pieces):
                in_part(number)
                found.append(forward(piece))
        logits = torch.cat(found).requires_grad_()
        loss = loss_of(logits)
        (gradient,) = torch.autograd.grad(loss, logits)
        for number, (piece, own) in enumerate(
            zip(pieces, gradient.tensor_split(parts), strict=True)
        ):
            in_part(number)
            with nullcontext() if number == parts - 1 else unshared(network):
                forward(piece).backward(own)
    return loss.detach()


@contextmanager
def drawing_alike(
    network: nn.Module, inputs: Tensor, pieces: tuple[Tensor, ...]
) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called before each forward pass, with the number of the part.

    Every pass starts from the random state of now and draws for the whole batch, of which
    `SpatialDropout` takes the part.
    """
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(inputs.device) if inputs.is_cuda else None
    dropouts = [module for module in network.modules() if isinstance(module, SpatialDropout)]
    shares = [module.share for module in dropouts]
    starts = [sum(map(len, pieces[:number])) for number in range(len(pieces))]

    def in_part(number: int) -> None:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, inputs.device)
        for module, share in zip(dropouts, shares, strict=True):
            images, own = share or BatchShare(len(inputs), slice(0, len(inputs)))
            first = own.start + starts[number]
            module.share = BatchShare(images, slice(first, first + len(pieces[number])))

    try:
        yield in_part
    finally:
        for module, share in zip(dropouts, shares, strict=True):
            module.share = share


def unshared(network: nn.Module) -> AbstractContextManager[None]:
    """Within it, gradients stay on the rank."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
