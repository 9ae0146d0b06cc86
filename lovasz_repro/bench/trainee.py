"""What ``bench training`` trains: a network on one batch, through the functions of a run."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lovasz_repro.bench.machine import synchronise
from lovasz_repro.bench.samples import Size, regions
from lovasz_repro.bench.trained_networks import ENET, TRAINED, NetworkName
from lovasz_repro.config.schema import LossConfig, LossName, ModelConfig, TrainingConfig
from lovasz_repro.run.build import build_optimizer, spread_model
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import ALONE, Team
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import Objective, build_objective

CLASSES = ENET.classes
VOID = 255
SEED = 0


@dataclass(frozen=True)
class Variant:
    """A way to take the same step."""

    name: str
    processes: int = 1
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    network: NetworkName = "enet"
    loss: LossName = "lovasz_softmax"
    iter_size: int = 1
    """Parts in which the batch passes the network."""


class Timed(NamedTuple):
    """Milliseconds a step, the mean of some."""

    step: float
    loss: float
    """Of the loss, forward and backward; part of the step."""


class First(NamedTuple):
    """What a first step computed."""

    loss: float
    gradient: Any
    """(parameters,) as a numpy array: it may come from another process."""


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
        variant: how it trains.
        size: of the logits of the batch.
        device: where.
        team: the ranks that share the batch; this one trains on its own part of it.
        apart: whether the ranks ignore each other: each trains a network on its own.
    """

    def __init__(
        self,
        variant: Variant,
        size: Size,
        device: torch.device,
        team: Team = ALONE,
        apart: bool = False,
    ) -> None:
        self.device, self.team = device, team
        own, talks_to = team.share(size.batch), ALONE if apart else team
        trained, self.kind = TRAINED[variant.network], NETWORKS[variant.network]
        self.config = TrainingConfig(
            **trained.recipe,
            iterations=10**6,
            batch_size=size.batch,
            iter_size=variant.iter_size,
            precision=variant.precision,
            channels_last=variant.channels_last,
            validate_every=1,
            checkpoint_every=1,
        )
        torch.manual_seed(SEED)
        dtype = torch.float64 if variant.precision == "float64" else None
        model = self.kind.build(size.classes, ModelConfig(name=variant.network))
        trained.ready(model)
        model.to(device, dtype)
        if variant.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = TrainingState(model, build_optimizer(model, self.config, variant.network))
        spread_model(model, self.config, talks_to)
        loss = LossConfig(terms={variant.loss: 1.0})
        self.clock = LossClock(build_objective(loss, VOID, group=talks_to.group), device)
        self.network = talks_to.wrap(model)
        if variant.compiled:
            self.network.compile()
        self.images, self.labels = (part[own] for part in batch(size))
        if device.type == "cuda":
            self.images, self.labels = self.images.pin_memory(), self.labels.pin_memory()

    def first(self) -> First:
        """Take the first step."""
        torch.manual_seed(SEED)
        loss = self._step()
        self.clock.take()
        gradients = [weights.grad for weights in self.state.model.parameters()]
        return First(
            loss, torch.cat([g.flatten() for g in gradients if g is not None]).cpu().numpy()
        )

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
        self.team.largest(0)  # nobody begins before all are there
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
            self.network,
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
