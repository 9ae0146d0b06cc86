"""Batch normalisation over the images of all ranks: training on N ranks is training on one.

Ioffe and Szegedy, "Batch Normalization" (arXiv:1502.03167), Alg. 1, whose mini-batch is the batch
of all ranks. Their shares need not have the same size. PyTorch's `nn.SyncBatchNorm` does this on
GPUs only; the layers here do it on the CPU. A training step costs two collectives a layer: forward,
every rank's count, mean and centred sum of squares, combined in float64 by the parallel formula of
Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
variances", 1979); backward, the sums over pixels of the gradient, plain and times the output.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lovasz_repro.losses.ranks import Ranks


class RanksBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` of the batch of all ranks of a group, for the CPU.

    Output, gradients and running statistics are those of `nn.BatchNorm2d` on one device that has
    all images. A rank has its own images' part of the gradients of weight and bias:
    DistributedDataParallel puts them together. It need not broadcast buffers: running statistics
    have the same bits on every rank. Statistics of bfloat16 and float16 images are float32, and
    a mean far above the standard deviation costs them no accuracy. Has no second derivative.

    Arguments:
        num_features: C of inputs (B, C, H, W).
        group: the ranks; None is this process alone.
        options: the other arguments of `nn.BatchNorm2d`.

    Raises:
        ValueError: a group that this process does not belong to.
    """

    def __init__(
        self, num_features: int, *, group: distributed.ProcessGroup | None, **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        self.ranks = Ranks(group)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and dtype; B, and what follows C, may differ between ranks.

        In training every rank must call it, with or without gradients, also with an empty share.
        In evaluation nobody communicates, as in PyTorch: ranks may evaluate as much as they like.

        Raises ValueError, on every rank, where all together have less than 2 values per channel.
        """
        if not self.training or self.ranks.alone:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps, self.ranks)
        if self.running_mean is not None:
            self._track(mean, variance)
        return y

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics; every rank has the same bits and keeps the same bits."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the plain average of all batches
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


@dataclass(frozen=True)
class _Moments:
    """What statistics are made of; counts are the same for all channels, the rest is (C,)."""

    count: int
    mean: Tensor
    squares: Tensor
    """Sum of the squares of what is left after subtracting the mean."""

    def of_all(self, ranks: Ranks) -> "_Moments":
        """The moments of all ranks' values together, the same bits on every rank."""
        own = torch.cat([self.mean.new_tensor([self.count]), self.mean, self.squares])
        parts = [torch.empty_like(own) for _ in range(ranks.size)]
        distributed.all_gather(parts, own, ranks.group)
        channels = len(self.mean)
        counts, means, squares = torch.stack(parts).split([1, channels, channels], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        # Chan et al.: within the ranks, and between them
        total = squares.sum(0) + (counts * (means - mean).square()).sum(0)
        return _Moments(int(count), mean, total)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the moments of all ranks.

    Also returns mean and unbiased variance (C,), float64. Between the passes it keeps x and
    vectors of C elements.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, centre, own = _centre(x)
        total = own.of_all(ranks)
        if total.count < 2:
            raise ValueError(
                "Expected more than 1 value per channel when training, "
                f"got {total.count} from {ranks.size} ranks together"
            )
        mean, variance = total.mean, total.squares / total.count
        scale = (variance + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = (centre - mean) * scale
        if bias is not None:
            shift = shift + bias
        y.mul_(_channels(scale, y)).add_(_channels(shift, y))
        ctx.save_for_backward(x, weight, mean.to(y.dtype), variance.to(y.dtype))
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.eps, ctx.ranks, ctx.count = eps, ranks, total.count
        unbiased = total.squares / (total.count - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return y.to(x.dtype), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        # The losses multiply the gradient by the number of ranks (losses/ranks.py). All that
        # follows is linear in it, so the factor passes through, for the average to take off.
        x, weight, mean, variance = ctx.saved_tensors
        plain, with_output = _sums(gradient, x, mean, variance, ctx.eps)
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = with_output.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            bias_gradient = plain.to(ctx.bias_dtype)
        if ctx.needs_input_grad[0]:
            sums = ctx.ranks.sum_(torch.stack([plain, with_output]).double())
            scale = (variance + ctx.eps).rsqrt()
            if weight is not None:
                scale = scale * weight
            # scale * (gradient - its mean - normalised x * mean of their product)
            shift, slope = (-scale * sums / ctx.count).to(mean.dtype)
            x_gradient = functional.batch_norm(
                x.to(mean.dtype), mean, variance, slope, shift, training=False, eps=ctx.eps
            )
            x_gradient.addcmul_(gradient, _channels(scale, x_gradient))
            x_gradient = x_gradient.to(x.dtype)
        return x_gradient, weight_gradient, bias_gradient, None, None


def _centre(x: Tensor) -> tuple[Tensor, Tensor, _Moments]:
    """x minus a centre (C,) that is nearly its mean, the centre, and x's moments.

    The first is a new tensor, at least float32; the others are float64. What the mean lost to
    rounding in float32, the second pass finds.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    count = x.numel() // x.shape[1]
    some = max(count, 1)
    centre = x.sum([dim for dim in range(x.ndim) if dim != 1], dtype=dtype) / some
    centred = x - _channels(centre, x)
    still = (torch.zeros_like(centre), torch.ones_like(centre))
    left, squares = (sums.double() for sums in _sums(centred, centred, *still, eps=0.0))
    off = left / some
    centre = centre.double()
    return centred, centre, _Moments(count, centre + off, squares - left * off)


def _sums(
    gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Sums (C,) over pixels of the gradient, and of the gradient times the normalised x.

    PyTorch's kernel reads both tensors once; asking for no gradient of x makes it stop there.
    """
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    _, with_output, plain = torch.ops.aten.native_batch_norm_backward(
        gradient, x, None, mean, variance, None, None, False, eps, [False, True, True]
    )
    return plain, with_output


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as it broadcasts over x (B, C, ...), and float32 unless x is more."""
    vector = vector.to(torch.promote_types(x.dtype, torch.float32))
    return vector.view(-1, *[1] * (x.ndim - 2))


def synchronise_batch_norm(model: nn.Module, group: distributed.ProcessGroup | None) -> nn.Module:
    """Make every batch normalisation of a model one over the images of all ranks, in place.

    Parameters and buffers stay the same objects: an optimizer made before still steps them, and
    the names in `state_dict` do not change. With one rank, or no group, nothing happens.

    Layers on the CPU become `RanksBatchNorm2d` and keep their hooks. Layers on CUDA
    become `nn.SyncBatchNorm` and lose them. That one gathers mean, 1 / sqrt(variance + eps) and
    count of each rank, and weights by count both there and in the gradient: uneven shares are as
    exact as float32 is (counts up to 2^24 a rank; see torch/nn/modules/_functions.py), and so are
    empty ones in float32. Under autocast an empty share would gather another dtype than the rest
    do. The variance goes through 1 / sqrt(variance + eps) and back, which loses what lies far
    below eps.

    Returns:
        The model, or the layer that takes its place where the model itself is such a layer.

    Raises:
        ValueError: a layer of another kind (lazy, a subclass, on another device), by its name;
            then no layer has changed.
    """
    ranks = Ranks(group)
    if ranks.alone:
        return model
    if isinstance(model, _BatchNorm):
        return _synchronised("model", model, model, ranks)
    replacements = [
        (parent, name, _synchronised(f"{path}.{name}".strip("."), child, model, ranks))
        for path, parent in model.named_modules()
        for name, child in parent._modules.items()
        if isinstance(child, _BatchNorm)
    ]
    for parent, name, layer in replacements:
        parent.add_module(name, layer)
    return model


def _synchronised(name: str, layer: _BatchNorm, model: nn.Module, ranks: Ranks) -> nn.Module:
    """The layer over all ranks that has the parameters and buffers of this one."""
    if type(layer) is not nn.BatchNorm2d:
        raise ValueError(f"{name}: cannot synchronise a {type(layer).__name__} over ranks")
    tensors = chain(layer.parameters(), layer.buffers(), model.parameters())
    device = next((tensor.device.type for tensor in tensors), "cpu")
    if device == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(layer, ranks.group)
    if device != "cpu":
        raise ValueError(f"{name}: cannot synchronise a layer over ranks on {device!r}")
    # As nn.Module copies itself for DataParallel: the same tensors, flags and hooks.
    copy = RanksBatchNorm2d.__new__(RanksBatchNorm2d)
    copy.__dict__ = layer.__dict__ | {"ranks": ranks}
    return copy
