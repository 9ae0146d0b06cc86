"""DeepLab-v2 ResNet-101, single scale: the network of the Pascal VOC experiments (Sec. 4.2, 4.3).

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
and Fully Connected CRFs" (arXiv:1606.00915), as in the Caffe definition that its authors released.
It differs from torchvision's ResNet: the stride of a bottleneck is on its first 1x1 convolution,
the max-pooling rounds up, and batch normalisations are frozen, statistics and affine both.

    stage    blocks  dilation  output (C, H, W) for a 3x321x321 input
    conv1    -       1           64, 161, 161   7x7, stride 2
    maxpool  -       -           64,  81,  81   3x3, stride 2, rounds up
    layer1   3       1          256,  81,  81
    layer2   4       1          512,  41,  41   stride 2 in the first block
    layer3   23      2         1024,  41,  41   the first block too is dilated
    layer4   3       4         2048,  41,  41
    aspp     4       6 to 24   classes, 41, 41  the sum of four 3x3 convolutions

Images are BGR in 0..255 minus the mean pixel (`data/examples.py`). The loss is taken at the
output grid: labels come down to it (`subsample_labels`), logits do not go up. For scores of an
image, `upsample` the logits.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

EXPANSION = 4  # a bottleneck's output channels over its width
ASPP_STD = 0.01  # of the classifier's initial weights; its biases start at 0


class DeepLab(nn.Module):
    """DeepLab-v2; 44,048,532 parameters with the default arguments, 105,344 of them frozen.

    Batch normalisations use their running statistics also after `train()`, and their gamma and
    beta have requires_grad False: Caffe's `use_global_stats` with learning rate 0.

    The classifier starts at N(0, 0.01) and bias 0. The backbone is meant to be loaded; until
    then its convolutions are He-normal over the inputs (Caffe's "msra") and its batch
    normalisations are the identity, so features have the scale of the images.

    Arguments:
        num_classes: number of outputs, 21 for Pascal VOC.
        blocks: bottlenecks in layer1 to layer4.
        width: output channels of the stem; layer1 has 4 times as many, layer4 32 times.
        bn_eps: 1e-5 is Caffe's; ports from TensorFlow have 1e-3.
        dilations: one classifier convolution each.

    Raises ValueError for arguments that make no network.
    """

    def __init__(
        self,
        num_classes: int = 21,
        blocks: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        bn_eps: float = 1e-5,
        dilations: Sequence[int] = (6, 12, 18, 24),
    ) -> None:
        super().__init__()
        if num_classes < 1 or width < 1:
            raise ValueError(
                f"num_classes and width must be at least 1, got {num_classes} and {width}"
            )
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"blocks must be four numbers of at least 1, got {tuple(blocks)}")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be one or more, each >= 1, got {tuple(dilations)}")
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=bn_eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = stage(width, width, blocks[0], bn_eps)
        self.layer2 = stage(4 * width, 2 * width, blocks[1], bn_eps, stride=2)
        self.layer3 = stage(8 * width, 4 * width, blocks[2], bn_eps, dilation=2)
        self.layer4 = stage(16 * width, 8 * width, blocks[3], bn_eps, dilation=4)
        self.aspp = nn.ModuleList(
            nn.Conv2d(32 * width, num_classes, 3, padding=d, dilation=d) for d in dilations
        )
        initialise(self)
        for norm in batch_norms(self):
            norm.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) of images (B, 3, H, W), BGR in 0..255 minus the mean pixel.

        h and w are about an eighth, rounded up: 321 to 41, 513 to 65. Raises ValueError for
        another shape of images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(
                f"DeepLab takes images of shape (B, 3, H, W), got {tuple(images.shape)}"
            )
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, width, H/4, W/4)
        x = self.layer2(self.layer1(x))  # (B, 8 width, H/8, W/8)
        x = self.layer4(self.layer3(x))  # (B, 32 width, H/8, W/8)
        logits = self.aspp[0](x)
        for branch in self.aspp[1:]:
            logits = logits + branch(x)
        return logits

    def train(self, mode: bool = True) -> "DeepLab":
        """Training or evaluation mode; batch normalisations stay in evaluation mode."""
        super().train(mode)
        for norm in batch_norms(self):
            norm.eval()
        return self


def small_deeplab(num_classes: int) -> DeepLab:
    """A shallow and narrow DeepLab for tests and demos, trainable without released weights.

    Its first batch normalisation divides by 100, about the standard deviation of the random
    stem's output on photographs: logits begin of order one.
    """
    model = DeepLab(num_classes, blocks=(1, 1, 2, 1), width=8)
    assert model.bn1.running_var is not None
    model.bn1.running_var.fill_(100.0**2)
    return model


class Bottleneck(nn.Module):
    """ReLU(x + main(x)), main being 1x1, 3x3, 1x1 convolutions with batch normalisation.

    The stride is on the first 1x1 convolution (Caffe) and not on the 3x3 (torchvision). Where the
    shape changes, the skip branch is a 1x1 convolution with batch normalisation.
    """

    def __init__(
        self, in_channels: int, width: int, eps: float, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=eps)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels, eps=eps),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 width, H/stride, W/stride), rounded up."""
        main = self.relu(self.bn1(self.conv1(x)))
        main = self.relu(self.bn2(self.conv2(main)))
        main = self.bn3(self.conv3(main))
        skip = x if self.downsample is None else self.downsample(x)
        return self.relu(main + skip)


def stage(
    in_channels: int, width: int, blocks: int, eps: float, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Bottlenecks of one width, all with the same dilation; the first one has the stride."""
    first = Bottleneck(in_channels, width, eps, stride, dilation)
    rest = (Bottleneck(EXPANSION * width, width, eps, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a model, of every kind that PyTorch has."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def initialise(model: DeepLab) -> None:
    """He-normal backbone convolutions, N(0, 0.01) and 0 for the classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=ASPP_STD)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def parameter_groups(
    model: DeepLab,
    lr_multipliers: tuple[float, float, float] = (1, 10, 20),  # kazuto1011/deeplab-pytorch: main.py
    weight_decay: float = 5e-4,  # the same: configs/voc12.yaml
) -> list[dict[str, Any]]:
    """Groups of a torch.optim optimizer: backbone weights, classifier weights, classifier biases.

    Arguments:
        model: whose trainable parameters are wanted.
        lr_multipliers: of the three groups, in that order.
        weight_decay: of the first two; biases have none.

    Returns:
        dicts with `params`, `lr_multiplier` (for the learning-rate schedule; torch.optim keeps
        it and does not apply it) and `weight_decay`.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = {name: p for name, p in trainable.items() if name.startswith("aspp.")}
    members = (
        [p for name, p in trainable.items() if name not in head],
        [p for name, p in head.items() if name.endswith(".weight")],
        [p for name, p in head.items() if name.endswith(".bias")],
    )
    decays = (weight_decay, weight_decay, 0.0)
    return [
        {"params": params, "lr_multiplier": multiplier, "weight_decay": decay}
        for params, multiplier, decay in zip(members, lr_multipliers, decays, strict=True)
    ]


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) to (B, C, *size): bilinear, corners on corners (Caffe's `Interp`)."""
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=True)


def subsample_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (..., H, W) at the grid (..., *size), corners on corners; a view, ids never blend.

    Caffe's `Interp` shrinks labels so. For a crop of 321 it is `labels[::8, ::8]` at 41 and
    `labels[::16, ::16]` at 21.

    Raises ValueError where the grid does not land on pixels.
    """
    steps = [_step(full, few) for full, few in zip(labels.shape[-2:], size, strict=True)]
    return labels[..., :: steps[0], :: steps[1]]


def _step(full: int, few: int) -> int:
    """Pixels between neighbours of `few` points that span `full` pixels; one point is pixel 0."""
    if few == 1 and full >= 1:
        return full
    if not 1 <= few <= full or (full - 1) % (few - 1):
        raise ValueError(
            f"{few} points do not land on the pixels of {full}: the size minus 1 must be a "
            "multiple of the points minus 1, as 321 is for 41. Take a crop of 8 n + 1 pixels"
        )
    return (full - 1) // (few - 1)


# ---- In its place where evidence is drawn --------------------------------------------------------


class EvidenceNet(nn.Module):
    """One 3x3 convolution, a linear classifier: a point is judged by the evidence around it.

    It answers on the grid on which it is given evidence, DeepLab's output grid. The convex losses
    are convex in its weights.

    Arguments:
        num_classes: channels of the evidence and of the logits, 21 for Pascal VOC.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(num_classes, num_classes, kernel_size=3, padding=1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Evidence (B, num_classes, h, w), float, to logits (B, num_classes, h, w)."""
        logits: Tensor = self.classifier(evidence)
        return logits
