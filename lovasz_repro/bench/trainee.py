"""What ``bench training`` trains: networks, and a step of one through the functions of a run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lovasz_repro.bench.harness import synchronise
from lovasz_repro.bench.yardsticks import Size, regions
from lovasz_repro.config.schema import LossConfig, ModelConfig, TrainingConfig
from lovasz_repro.data.classes import VOID
from lovasz_repro.models.deeplab import Bottleneck, DeepLab
from lovasz_repro.run.build import build_optimizer
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import Objective, build_objective

SEED = 0
NetworkName = Literal["enet", "deeplab-v2", "deeplab-v2-small"]
BRANCH = 0.2
"""Of what each block of an untrained DeepLab adds: with 1 its features would double 33 times."""
STEM_STD = 100.0
"""About that of the random stem's output on photographs."""


# -- networks --------------------------------------------------------------------------------------


class Rhythm(NamedTuple):
    """What is measured by default on a kind of device."""

    size: str
    """BxHxW or BxCxHxW."""
    rounds: int
    steps: int
    """Of each variant in a round."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network and how it is trained in the bench."""

    title: str
    classes: int
    """Where the size names none."""
    rhythms: Mapping[str, Rhythm]
    """Kind of device -> defaults."""
    recipe: Mapping[str, Any]
    """Of ``TrainingConfig``."""
    side: str
    """What the sides of a batch must be."""
    rest: int
    """Their remainder by 8."""
    least_images: int
    bytes_a_pixel: int
    """Of a step in float32, measured; weights not counted."""
    near_loss: float
    """How far the first loss may be from that in float32, in another precision or memory format."""
    optimizer: str
    """As captions name it."""
    ready: Callable[[nn.Module], None]
    """Scales a network that is trained from random weights."""


@torch.no_grad()
def scale_deeplab(model: nn.Module) -> None:
    """Make the logits of an untrained DeepLab of order one, which costs what they cost trained."""
    assert isinstance(model, DeepLab)
    assert model.bn1.running_var is not None
    model.bn1.running_var.fill_(STEM_STD**2)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(BRANCH)


ENET_TRAINED = TrainedNetwork(
    title="ENet",
    classes=11,  # of CamVid
    # CamVid as the smaller profiles see it; Cityscapes at half its size, for which ENet was made.
    rhythms=MappingProxyType(
        {"cpu": Rhythm("4x176x240", 5, 3), "cuda": Rhythm("10x20x512x1024", 20, 10)}
    ),
    recipe=MappingProxyType({"lr": 2.5e-4}),  # of experiments/camvid-enet.yaml
    side="multiples of 8, not both 8",
    rest=0,
    least_images=2,
    bytes_a_pixel=3500,
    near_loss=1e-3,
    optimizer="Adam",
    ready=lambda model: None,
)
DEEPLAB = TrainedNetwork(
    title="DeepLab-v2 ResNet-101",
    classes=21,  # of Pascal VOC
    rhythms=MappingProxyType({"cpu": Rhythm("2x97x97", 3, 1), "cuda": Rhythm("10x321x321", 5, 3)}),
    recipe=MappingProxyType(
        {  # of experiments/voc-multiclass.yaml, but for a rate that leaves a random network alone
            "lr": 1e-6,
            "optimizer": "sgd",
            "weight_decay": 5e-4,
            "batch_norm": "frozen",
        }
    ),
    side="8 n + 1, as 321",
    rest=1,
    least_images=1,
    bytes_a_pixel=12_000,
    near_loss=1e-2,
    optimizer="SGD",
    ready=scale_deeplab,
)
SMALL = replace(
    DEEPLAB,
    title="DeepLab-v2, narrow and shallow",
    rhythms=MappingProxyType({"cpu": Rhythm("10x97x97", 5, 3), "cuda": Rhythm("10x321x321", 5, 3)}),
    side="8 n + 1, as 97",
    bytes_a_pixel=1000,
)
TRAINEES: dict[NetworkName, TrainedNetwork] = {
    "enet": ENET_TRAINED,
    "deeplab-v2": DEEPLAB,
    "deeplab-v2-small": SMALL,
}
"""By the names that experiment files use."""


# -- one step --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepVariant:
    """A way to take the same step."""

    name: str
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False


class Timed(NamedTuple):
    """Milliseconds a step, the mean of some."""

    step: float
    loss: float
    """Of the loss, forward and backward; part of the step."""


@dataclass
class LossClock:
    """An objective that knows how long it takes, forward and backward.

    A GPU is not made to wait for it: its own clock reads the time when it gets there.
    """

    objective: Objective
    device: torch.device
    marks: list[Any] = field(default_factory=list)
    """Begin, end, begin, end of what was asked since `take`."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (B, C, H, W), which need a gradient, and labels (B, H, W)."""
        self._mark()
        loss = self.objective(logits, labels)
        self._mark()
        loss.register_hook(self._mark)  # its backward begins
        logits.register_hook(self._mark)  # and has arrived at the network
        return loss

    def take(self) -> float:
        """Milliseconds since the last call; nothing may be under way on the device."""
        begins, ends, self.marks = self.marks[::2], self.marks[1::2], []
        pairs = zip(begins, ends, strict=True)
        if self.device.type == "cuda":
            return float(sum(begin.elapsed_time(end) for begin, end in pairs))
        return 1000 * float(sum(end - begin for begin, end in pairs))

    def _mark(self, gradient: Tensor | None = None) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())


class Trainee:
    """A network in training as ``run_cell`` builds it, on the batch of the bench.

    Args:
        network: what is trained.
        variant: how it trains.
        size: of the logits of the batch.
        device: where.
    """

    def __init__(
        self, network: NetworkName, variant: StepVariant, size: Size, device: torch.device
    ) -> None:
        self.device = device
        trained, self.kind = TRAINEES[network], NETWORKS[network]
        self.config = TrainingConfig(
            **trained.recipe,
            iterations=10**6,
            batch_size=size.batch,
            precision=variant.precision,
            channels_last=variant.channels_last,
            validate_every=1,
            checkpoint_every=1,
        )
        torch.manual_seed(SEED)
        model = self.kind.build(size.classes, ModelConfig(name=network))
        trained.ready(model)
        model.to(device)
        if variant.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = TrainingState(model, build_optimizer(model, self.config, network))
        loss = LossConfig(terms={"lovasz_softmax": 1.0})
        self.clock = LossClock(build_objective(loss, VOID), device)
        if variant.compiled:
            model.compile()
        self.images, self.labels = batch(size)
        if device.type == "cuda":
            self.images, self.labels = self.images.pin_memory(), self.labels.pin_memory()

    def first(self) -> float:
        """Take the first step; returns its loss."""
        torch.manual_seed(SEED)
        loss = self._step()
        self.clock.take()
        return loss

    def peak_bytes(self) -> int | None:
        """Memory of a GPU that this training needs, weights and moments included; takes a step.

        None on a CPU.
        """
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._step()
        synchronise(self.device)
        self.clock.take()
        return torch.cuda.max_memory_allocated(self.device) - before + held_bytes(self.state)

    def run(self, steps: int, seed: int) -> Timed:
        """Take some steps; the seed draws which channels are dropped."""
        torch.manual_seed(seed)
        synchronise(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        synchronise(self.device)
        elapsed = 1000 * (time.perf_counter() - began)
        return Timed(elapsed / steps, self.clock.take() / steps)

    def _step(self) -> float:
        loss = training_step(
            self.state,
            self.state.model,
            self.images,
            self.labels,
            self.clock,
            self.config,
            self.config.lr,
            self.device,
            self.kind.prepare,
        )
        self.state.iteration += 1
        return loss


def held_bytes(state: TrainingState) -> int:
    """Of weights, statistics, gradients and the optimiser's moments."""
    model, moments = state.model, state.optimizer.state.values()
    held = [*model.parameters(), *model.buffers()]
    held += [weights.grad for weights in model.parameters() if weights.grad is not None]
    held += [m for of_one in moments for m in of_one.values() if isinstance(m, Tensor)]
    return sum(tensor.nbytes for tensor in held)


def batch(size: Size) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) uint8 and labels (B, H, W) uint8: regions of noisy colours, some void."""
    generator = torch.Generator().manual_seed(SEED)
    labels = regions(size, torch.ones(size.classes), generator)
    colours = torch.randint(192, (size.classes, 3), generator=generator, dtype=torch.uint8)
    images = colours[labels].permute(0, 3, 1, 2).contiguous()
    images += torch.randint(64, images.shape, generator=generator, dtype=torch.uint8)
    labels[:, : size.height // 16] = VOID
    return images, labels.to(torch.uint8)
