"""Released weights that the experiments start from: who publishes them, and where.

Each entry says only what is known: a size or checksum that nobody published is None. Weights of
DeepLab come as Caffe or PyTorch files and are converted once (`weights convert`); the Torch7 file
of ENet is read as it is.
"""

from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.data.locate import DEEPLAB_COCO, ENET_WEIGHT_NAMES


@dataclass(frozen=True)
class Released:
    """A file of weights that its authors published.

    Attributes:
        name: as in `model.weights` of an experiment.
        what: which network, trained on what.
        experiments: those that start from it.
        page: where its authors write about it.
        url: its address, which has been stable for years.
        file: name below <data>/weights/ that `weights fetch` gives it.
        used: names below <data>/weights/ that experiments read, the first being ours.
        licence: its terms, "not stated" where its authors do not say.
        size: bytes of the file at `url`.
        sha256: of the file at `url`: 64 hex digits, or the first of them.
        member: the file to take out of `file`, where that is an archive.
        elsewhere: other files that hold the same weights and can be converted.
        purpose: what it is for, where no experiment starts from it.
    """

    name: str
    what: str
    experiments: tuple[str, ...]
    page: str
    url: str
    file: str
    used: tuple[str, ...]
    licence: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None
    elsewhere: str = ""
    purpose: str = ""

    def find_used(self, weights: Path) -> Path | None:
        """The file that experiments read, below the folder of weights."""
        return next((weights / name for name in self.used if (weights / name).is_file()), None)

    def steps(self, weights: Path, fetched: Path) -> list[list[str]]:
        """The commands, as words, that turn what was fetched into the file that is read."""
        used = weights / self.used[0]
        if fetched.name in self.used:
            return []
        unpack = []
        if self.member and fetched.suffix == ".zip":
            unpack = [["unzip", "-n", "-j", str(fetched), self.member, "-d", str(weights)]]
            fetched = weights / self.member
        return [*unpack, ["lovasz-repro", "weights", "convert", str(fetched), str(used)]]


RELEASED = {
    entry.name: entry
    for entry in (
        Released(
            name="enet-cityscapes",
            what="ENet (364,712 parameters), trained on Cityscapes by its authors",
            experiments=("cityscapes-enet", "camvid-enet", "camvid-as-cityscapes"),
            page="https://github.com/e-lab/ENet-training/releases/tag/v1.cs",
            url="https://github.com/e-lab/ENet-training/releases/download/v1.cs/model-cityscapes.net",
            file=ENET_WEIGHT_NAMES[0],
            used=ENET_WEIGHT_NAMES,
            licence="CC BY-NC 4.0",
            size=3_230_016,
            sha256="8dc0a04a47109b4d526e6dcaef9e60d4ebb90c853dd5fd5bafc882bb68299ecb",
        ),
        Released(
            name="deeplab-coco",
            what="DeepLab-v2 ResNet-101, pre-trained on COCO by its authors; in an archive of "
            "more than 1 GB",
            experiments=("voc-binary", "voc-multiclass"),
            page="http://liangchiehchen.com/projects/DeepLabv2_resnet.html",
            url="http://liangchiehchen.com/projects/released/deeplab_aspp_resnet101/prototxt_and_model.zip",
            file="prototxt_and_model.zip",
            used=(DEEPLAB_COCO,),
            licence="not stated",
            member="init.caffemodel",
            elsewhere="MS_DeepLab_resnet_pretrained_COCO_init.pth (of isht7/pytorch-deeplab-resnet)"
            " or deeplabv1_resnet101-coco.pth (of kazuto1011/deeplab-pytorch)",
        ),
        Released(
            name="resnet101-imagenet",
            what="ResNet-101, trained on ImageNet by torchvision: for `run --weights` where "
            "deeplab-coco cannot be had; the paper starts from COCO",
            experiments=(),
            page="https://docs.pytorch.org/vision/stable/models.html",
            url="https://download.pytorch.org/models/resnet101-63fe2227.pth",
            file="resnet101-63fe2227.pth",
            used=("resnet101-imagenet.safetensors",),
            licence="not stated (torchvision itself: BSD 3-Clause)",
            purpose="in place of deeplab-coco",
            sha256="63fe2227",  # its name holds the first digits
        ),
    )
}  # fmt: skip
"""Every entry by its name."""
