"""The training loop, all of it visible: step, log, validate, keep the best, checkpoint."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_repro.config.schema import TrainingConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.models.enet import BatchShare, Prepare, SpatialDropout, to_unit_range
from lovasz_repro.training.objective import Objective

SPEED = "train/images_per_second"
"""The metric of how fast a run trains: loading included, validation and checkpoints not."""
Batch = tuple[torch.Tensor, torch.Tensor]
Values = dict[str, float]


@dataclass
class TrainingState:
    """Everything that changes while a run trains; what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    iteration: int = 0
    """Optimiser steps taken."""
    best_score: float = -1.0
    """Highest validation score of any snapshot so far."""
    best_iteration: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def to_checkpoint(self) -> dict[str, Any]:
        """A dict of tensors and numbers that ``torch.load(weights_only=True)`` accepts."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "best_score": self.best_score,
            "best_iteration": self.best_iteration,
            "best_weights": self.best_weights,
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the checkpoint was written: weights, moments, counters, random state."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.iteration = checkpoint["iteration"]
        self.best_score = checkpoint["best_score"]
        self.best_iteration = checkpoint["best_iteration"]
        self.best_weights = checkpoint["best_weights"]
        torch.set_rng_state(checkpoint["rng_cpu"].cpu())
        if torch.cuda.is_available() and checkpoint["rng_cuda"] is not None:
            torch.cuda.set_rng_state(checkpoint["rng_cuda"].cpu())

    def load_best(self) -> None:
        """Give the model the weights of its best snapshot."""
        self.model.load_state_dict(self.best_weights)


def train(
    state: TrainingState,
    batches: Iterable[Batch],
    objective: Objective,
    config: TrainingConfig,
    device: torch.device,
    *,
    network: nn.Module | None = None,
    prepare: Prepare = to_unit_range,
    choose: str | None = "val/dataset_miou",
    validate: Callable[[], Values],
    log: Callable[[int, Values], None],
    save: Callable[[TrainingState], None],
    stop_asked: Callable[[], int],
) -> None:
    """Train ``state.model`` from ``state.iteration`` to ``config.iterations``.

    Every rank of a team calls this with its share of each batch, and reaches the same weights.

    Args:
        state: changed in place.
        batches: images (B, 3, H, W) uint8 and labels (B, H, W), beginning with the batch of
            ``state.iteration``.
        objective: the loss of a batch, from logits and labels.
        config: schedule, precision, rhythm of validation and checkpoints.
        device: where the model is.
        network: what is called in training; by default ``state.model``, or a wrapper around it
            that averages gradients over ranks.
        prepare: by default RGB in [0, 1].
        choose: the score of ``validate`` that the best snapshot has the highest of; None: the last
            snapshot is the best.
        validate: scores of the model as it is.
        log: takes (iteration, values).
        save: writes a checkpoint of the state.
        stop_asked: asked after every step for the signal that wants an end, or 0.

    Raises:
        RunFailed: the loss is not finite, or a checkpoint cannot be written.
        Interrupted: a signal asked to stop; the checkpoint is written.
    """
    if state.iteration == 0:
        log(0, validate())
    rate = StepRate()
    for images, labels in batches:
        lr = learning_rate(config, state.iteration)
        loss = training_step(
            state, network or state.model, images, labels, objective, config, lr, device, prepare
        )
        state.iteration += 1
        rate.end(config.batch_size)
        log(state.iteration, {"train/loss": loss, "train/lr": lr})
        if _due(state.iteration, config.validate_every, config.iterations):
            scores = validate()
            log(state.iteration, scores)
            keep_best(state, scores[choose] if choose else float(state.iteration))
        stop = stop_asked()
        if stop or _due(state.iteration, config.checkpoint_every, config.iterations):
            log(state.iteration, rate.take())
            save(state)
        if stop and state.iteration < config.iterations:
            where = f"Stopped at iteration {state.iteration} of {config.iterations}, saved."
            raise Interrupted(stop, f"{where} Run the same command to go on.")
        rate.begin()


def training_step(
    state: TrainingState,
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    config: TrainingConfig,
    lr: float,
    device: torch.device,
    prepare: Prepare = to_unit_range,
) -> float:
    """One optimiser step on one batch; returns the loss before it.

    Raises:
        RunFailed: the loss is not finite; the weights are left as they were.
    """
    state.model.train()
    if config.batch_norm == "frozen":
        freeze_batch_norm(state.model)
    if config.dropout == "off":
        stop_dropout(state.model)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1.0)
    dtype = next(state.model.parameters()).dtype
    inputs = prepare(images.to(device, non_blocking=True), config.channels_last, dtype)
    labels = labels.to(device, non_blocking=True).long()
    half = config.precision == "bfloat16"

    def forward(part: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits: torch.Tensor = network(part)  # (B, C, H, W)
        return logits.float() if half else logits

    state.optimizer.zero_grad(set_to_none=True)
    loss = backward(
        network, forward, inputs, lambda logits: objective(logits, labels), config.iter_size
    )
    value = loss.item()  # after backward: a GPU is kept busy while the CPU waits here
    if value != value or abs(value) == float("inf"):
        raise RunFailed(
            f"The loss is {value} at iteration {state.iteration + 1}. The last checkpoint is "
            "intact. Try a lower training.lr, or training.precision=float32."
        )
    state.optimizer.step()
    return value


def learning_rate(config: TrainingConfig, iteration: int) -> float:
    """Of the step after ``iteration`` steps, before any multiplier of a group.

    "poly" is Eq. 16, lr * (1 - iteration / iterations) ** power; "step" is lr in the first half and
    a fifth of it in the second (Sec. 4.2); "step-one-earlier" a fifth in the last step of the first
    half too, since the authors' code counts steps from 1 (bermanmaxim/jaccardSegment:
    train_pytorch.py).
    """
    done = iteration / config.iterations
    if config.schedule == "step":
        return config.lr if done < 0.5 else config.lr / 5
    if config.schedule == "step-one-earlier":
        return config.lr if iteration + 1 < config.iterations // 2 else config.lr / 5
    return float(config.lr * (1 - done) ** config.power)


class StepRate:
    """Times steps from `begin` to `end`; the first is left out, it starts loaders and kernels."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0
        self._first = True
        self.begin()

    def begin(self) -> None:
        """The work of a step begins, loading of its batch included."""
        self._began = time.perf_counter()

    def end(self, images: int) -> None:
        """A step over ``images`` images is done."""
        if not self._first:
            self._images += images
            self._seconds += time.perf_counter() - self._began
        self._first = False

    def take(self) -> dict[str, float]:
        """`SPEED` since the last call; nothing where no step was timed."""
        images, seconds, self._images, self._seconds = self._images, self._seconds, 0, 0.0
        return {SPEED: images / seconds} if seconds else {}


def keep_best(state: TrainingState, score: float) -> None:
    """Remember the weights if ``score`` is higher than that of every snapshot before."""
    if score > state.best_score:
        state.best_score, state.best_iteration = score, state.iteration
        weights = state.model.state_dict()
        state.best_weights = {name: value.detach().clone() for name, value in weights.items()}


def freeze_batch_norm(model: nn.Module) -> None:
    """Use running statistics in every batch normalisation, and leave them as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def stop_dropout(model: nn.Module) -> None:
    """Let every dropout do what it does in evaluation."""
    for module in model.modules():
        if isinstance(module, SpatialDropout | nn.modules.dropout._DropoutNd):
            module.eval()


def _due(iteration: int, every: int, last: int) -> bool:
    return iteration % every == 0 or iteration == last


# ---- A batch that passes the network in parts ----------------------------------------------------
#
# With the loss and the gradient of the whole batch.
#
# Caffe's ``iter_size`` sums the gradients of losses of parts. The paper's losses are functions of a
# whole batch and no such sums. So the parts pass twice: once for the logits of the batch alone,
# which are small, and after the loss once more, each part with its own slice of the loss's gradient
# with respect to them. What a backward pass needs is kept for one part at a time.


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
