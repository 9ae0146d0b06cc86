"""ENet as its authors released it for Cityscapes, the network fine-tuned in Sec. 4.4 of the paper.

Paszke et al., "ENet: A deep neural network architecture for real-time semantic segmentation"
(arXiv:1606.02147), in the variant of the Torch7 weights that its authors released
(e-lab/ENet-training). It differs from most ports: biases on the spatial convolutions, one PReLU
slope per channel in the decoder too, a bottleneck a quarter of the *output* width, batch
normalisation with eps 1e-3, and Torch7's dropout convention.

    stage      output (C, H, W) for a 3x512x1024 input
    initial     16, 256, 512   strided convolution beside max-pooling
    stage 1     64, 128, 256   downsampling, 4 regular blocks
    stage 2    128,  64, 128   downsampling, 8 regular / dilated / asymmetric blocks
    stage 3    128,  64, 128   the same 8 blocks again
    stage 4     64, 128, 256   upsampling (unpooling of stage 2's pool), 2 regular blocks
    stage 5     16, 256, 512   upsampling (unpooling of stage 1's pool), 1 regular block
    classifier  classes, 512, 1024

Submodules are registered in the order in which data flows, main branch before skip branch:
`torch7.py` pairs them with the released file by position.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# ---- Layers --------------------------------------------------------------------------------------
#
# The two layers of ENet that PyTorch has only in another form or too slowly.

DropoutConvention = Literal["torch7", "pytorch"]


class BatchShare(NamedTuple):
    """Which images of a batch of ``images`` this process has."""

    images: int
    own: slice


class SpatialDropout(nn.Module):
    """Drops whole channels with probability p, in one of two conventions.

    "torch7": training applies the 0/1 mask as it is, evaluation multiplies by 1 - p.
    "pytorch": training divides by 1 - p, evaluation does nothing.

    With a ``share`` (`share_dropout`) the mask of the whole batch is drawn and its own part
    applied: ranks whose generators are in the same state drop what one process would drop.
    """

    share: BatchShare | None = None

    def __init__(self, p: float, convention: DropoutConvention = "torch7") -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), got {p}")
        if convention not in ("torch7", "pytorch"):
            raise ValueError(
                f"dropout_convention must be 'torch7' or 'pytorch', got {convention!r}"
            )
        self.p = p
        self.convention = convention

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training:
            return x * (1 - self.p) if self.convention == "torch7" else x
        keep = self._draw(x)
        return x * (keep if self.convention == "torch7" else keep / (1 - self.p))

    def _draw(self, x: Tensor) -> Tensor:
        """0 for channels that are dropped, 1 for others: (B, C, 1, 1)."""
        images, own = self.share or BatchShare(len(x), slice(None))
        return x.new_empty(images, x.shape[1], 1, 1).bernoulli_(1 - self.p)[own]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"p={self.p}, convention={self.convention}"


def share_dropout(model: nn.Module, share: BatchShare | None) -> None:
    """Tell every `SpatialDropout` of a model which part of the batches to come is its own."""
    for module in model.modules():
        if isinstance(module, SpatialDropout):
            module.share = share


class ChannelPReLU(nn.PReLU):
    """`nn.PReLU`, same values, with a backward pass twice as fast on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if x.device.type == "cpu" and x.dtype == self.weight.dtype and torch.is_grad_enabled():
            return _VectorisedPReLU.apply(x, self.weight)
        return super().forward(x)


class _VectorisedPReLU(torch.autograd.Function):
    """PyTorch's own CPU kernel for this gradient is scalar: a quarter of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, slopes)
        return torch.prelu(x, slopes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slopes = ctx.saved_tensors
        where_positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        where_negative = gradient - where_positive
        slopes_gradient = (where_negative * x).sum(dim=(0, 2, 3))
        return where_positive.addcmul_(where_negative, slopes.view(-1, 1, 1)), slopes_gradient


# ---- The network ---------------------------------------------------------------------------------

Activation = Literal["prelu", "relu"]

Prepare = Callable[[Tensor, bool, torch.dtype], Tensor]
"""Images as they are loaded, channels_last, dtype -> what a network takes."""
ENET_STRIDE = 8  # the encoder halves height and width three times


class ENet(nn.Module):
    """ENet for `num_classes` outputs; 364,712 parameters with 20 outputs and the PReLU decoder.

    Arguments:
        num_classes: number of outputs, 20 in the released network (0 = unlabelled).
        decoder: "prelu" as in the released weights, or "relu" as in the published code
            (364,376 parameters with 20 outputs).
        dropout_convention: "torch7" as the released weights need, or "pytorch";
            see `SpatialDropout`.
    """

    def __init__(
        self,
        num_classes: int,
        decoder: Activation = "prelu",
        dropout_convention: DropoutConvention = "torch7",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if decoder not in ("prelu", "relu"):
            raise ValueError(f"decoder must be 'prelu' or 'relu', got {decoder!r}")
        self.num_classes = num_classes
        self.decoder = decoder
        self.dropout_convention = dropout_convention

        def dropout(p: float = 0.1) -> SpatialDropout:
            return SpatialDropout(p, dropout_convention)

        self.initial = InitialBlock(16)
        self.down1 = DownsamplingBlock(16, 64, dropout(0.01))
        self.stage1 = nn.Sequential(*(RegularBlock(64, dropout=dropout(0.01)) for _ in range(4)))
        self.down2 = DownsamplingBlock(64, 128, dropout())
        self.stage2 = context_blocks(128, dropout)
        self.stage3 = context_blocks(128, dropout)
        self.up4 = UpsamplingBlock(128, 64, decoder)
        self.stage4 = nn.Sequential(*(RegularBlock(64, activation=decoder) for _ in range(2)))
        self.up5 = UpsamplingBlock(64, 16, decoder)
        self.stage5 = RegularBlock(16, activation=decoder)
        self.classifier = nn.ConvTranspose2d(16, num_classes, kernel_size=2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of RGB images (B, 3, H, W) in [0, 1], no normalisation.

        Raises ValueError unless H and W are multiples of 8.
        """
        check_images(images)
        x = self.initial(images)  # (B, 16, H/2, W/2)
        x, indices1 = self.down1(x)  # (B, 64, H/4, W/4)
        x = self.stage1(x)
        x, indices2 = self.down2(x)  # (B, 128, H/8, W/8)
        x = self.stage3(self.stage2(x))
        x = self.stage4(self.up4(x, indices2))  # (B, 64, H/4, W/4)
        x = self.stage5(self.up5(x, indices1))  # (B, 16, H/2, W/2)
        return self.classifier(x)  # (B, num_classes, H, W)


def map_classifier(model: ENet, class_mapping: Mapping[int, int | None]) -> ENet:
    """A copy of `model` whose classifier answers for new classes; `model` stays as it is.

    Arguments:
        model: any ENet.
        class_mapping: new class 0..N-1 -> output of `model` that it starts from, or None for
            a newly initialised one (drawn from torch's global generator).

    Returns the network with N outputs, every other weight being a copy, in `model`'s mode.
    Raises ValueError unless the keys are 0..N-1 and the values outputs of `model`.
    """
    count = len(class_mapping)
    if sorted(class_mapping) != list(range(count)) or count == 0:
        raise ValueError(f"class_mapping must have the keys 0..N-1, got {sorted(class_mapping)}")
    for new, old in class_mapping.items():
        if old is not None and not 0 <= old < model.num_classes:
            raise ValueError(f"class {new} cannot start from {old} of {model.num_classes} outputs")
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    fresh = nn.ConvTranspose2d(model.classifier.in_channels, count, kernel_size=2, stride=2)
    for name, values in fresh.state_dict(prefix="classifier.").items():
        tensors[name] = _mapped(values, tensors[name], class_mapping)
    mapped = ENet(count, model.decoder, model.dropout_convention)
    mapped.load_state_dict(tensors, assign=True)
    return mapped.train(model.training)


def _mapped(fresh: Tensor, old: Tensor, class_mapping: Mapping[int, int | None]) -> Tensor:
    """`fresh` (in, N, 2, 2) or (N,) on `old`'s device, mapped classes taken from `old`."""
    result = fresh.to(old)
    axis = 0 if old.ndim == 1 else 1  # a transposed convolution stores inputs first
    for new, source in class_mapping.items():
        if source is not None:
            result.select(axis, new).copy_(old.select(axis, source))
    return result


def to_unit_range(
    images: Tensor, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A batch of images (B, 3, H, W), uint8 in [0, 255], as floating point in [0, 1].

    ENet takes RGB / 255 and nothing else (e-lab/ENet-training: train/opts.lua).
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(dtype, memory_format=memory_format) / 255


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is (B, 3, H, W) with H and W multiples of 8."""
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        raise ValueError(f"ENet takes images of shape (B, 3, H, W), got {shape}")
    if shape[2] % ENET_STRIDE or shape[3] % ENET_STRIDE or 0 in shape[2:]:
        raise ValueError(
            f"ENet takes images whose height and width are multiples of {ENET_STRIDE}, "
            f"got {shape[2]}x{shape[3]} (height x width)"
        )


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with Torch7's momentum and the released network's eps."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


def activate(kind: Activation, channels: int) -> nn.Module:
    """PReLU with one slope per channel, or ReLU."""
    return ChannelPReLU(channels) if kind == "prelu" else nn.ReLU()


class InitialBlock(nn.Module):
    """PReLU(BN(concatenation of a strided 3x3 convolution and a 2x2 max-pooling))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels - 3, kernel_size=3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = batch_norm(channels)
        self.activation = activate("prelu", channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, channels, H/2, W/2)."""
        x = torch.cat([self.conv(images), self.pool(images)], dim=1)
        return self.activation(self.norm(x))


def main_branch(
    first: nn.Module, middle: list[nn.Module], out_channels: int, activation: Activation
) -> list[nn.Module]:
    """The bottleneck: `first` to a quarter of the width, `middle` at that width, 1x1 back."""
    width = out_channels // 4
    return [
        first,
        batch_norm(width),
        activate(activation, width),
        *middle,
        batch_norm(width),
        activate(activation, width),
        nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
        batch_norm(out_channels),
    ]


class RegularBlock(nn.Module):
    """Activation(x + main(x)), the main branch having a 3x3, dilated or 1x5-5x1 convolution."""

    def __init__(
        self,
        channels: int,
        *,
        dilation: int = 1,
        asymmetric: bool = False,
        activation: Activation = "prelu",
        dropout: SpatialDropout | None = None,
    ) -> None:
        super().__init__()
        width = channels // 4
        middle: list[nn.Module]
        if asymmetric:
            middle = [
                nn.Conv2d(width, width, kernel_size=(1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(width, width, kernel_size=(5, 1), padding=(2, 0)),
            ]
        else:
            middle = [nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)]
        first = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        layers = main_branch(first, middle, channels, activation)
        self.main = nn.Sequential(*layers, *([dropout] if dropout else []))
        self.activation = activate(activation, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        return self.activation(x + self.main(x))


def context_blocks(channels: int, dropout: Callable[[], SpatialDropout]) -> nn.Sequential:
    """The eight blocks of stages 2 and 3, whose dilation grows to 16."""
    dilations = (1, 2, None, 4, 1, 8, None, 16)  # None: an asymmetric block
    return nn.Sequential(
        *(
            RegularBlock(channels, dropout=dropout(), dilation=d or 1, asymmetric=d is None)
            for d in dilations
        )
    )


class DownsamplingBlock(nn.Module):
    """Halves height and width; its skip branch is a max-pooling padded with zero channels."""

    def __init__(self, in_channels: int, out_channels: int, dropout: SpatialDropout) -> None:
        super().__init__()
        width = out_channels // 4
        first = nn.Conv2d(in_channels, width, kernel_size=2, stride=2, bias=False)
        middle: list[nn.Module] = [nn.Conv2d(width, width, kernel_size=3, padding=1)]
        self.main = nn.Sequential(*main_branch(first, middle, out_channels, "prelu"), dropout)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.activation = activate("prelu", out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in, H, W) to (B, out, H/2, W/2) and the pool's indices (B, in, H/2, W/2)."""
        main = self.main(x)
        pooled, indices = self.pool(x)
        missing = main.shape[1] - pooled.shape[1]
        skip = functional.pad(pooled, (0, 0, 0, 0, 0, missing))
        return self.activation(main + skip), indices


class UpsamplingBlock(nn.Module):
    """Doubles height and width; its skip branch undoes the max-pooling of the encoder."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        width = out_channels // 4
        first = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        middle: list[nn.Module] = [
            nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
        ]
        self.main = nn.Sequential(*main_branch(first, middle, out_channels, activation))
        self.skip = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            batch_norm(out_channels),
        )
        self.unpool = nn.MaxUnpool2d(2)
        self.activation = activate(activation, out_channels)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """(B, in, H, W) and indices (B, out, H, W) to (B, out, 2H, 2W)."""
        return self.activation(self.main(x) + self.unpool(self.skip(x), indices))
