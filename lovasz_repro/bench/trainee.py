"""What ``bench training`` trains: networks, and a step of one through the functions of a run.

Alone, or on several processes that are started once and asked again and again.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lovasz_repro.bench.harness import synchronise
from lovasz_repro.bench.yardsticks import VOID_LABEL, Size, regions
from lovasz_repro.config.schema import LossConfig, LossName, ModelConfig, TrainingConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.processes import end_with_parent
from lovasz_repro.models.deeplab import Bottleneck, DeepLab
from lovasz_repro.run.build import build_optimizer, spread_model
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import ALONE, Team, join_team, keep_to_this_machine
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import Objective, build_objective

SEED = 0
CPU = torch.device("cpu")
CLOSING_SECONDS = 0.5  # seconds that the other ranks have to tell their side of a failure
FAREWELL = 20.0  # seconds that ranks have to leave
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
    compares_processes: bool = False
    compares_losses: bool = False
    """Cross-entropy, and a batch in two parts, in rows of their own."""


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
    compares_processes=True,
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
    compares_losses=True,
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
    communication: float | None = None
    """What gradient averaging and batch normalisation over ranks take; None: one process."""


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
        variant: StepVariant,
        size: Size,
        device: torch.device,
        team: Team = ALONE,
        apart: bool = False,
    ) -> None:
        self.device, self.team = device, team
        own, talks_to = team.share(size.batch), ALONE if apart else team
        trained, self.kind = TRAINEES[variant.network], NETWORKS[variant.network]
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
        self.clock = LossClock(build_objective(loss, VOID_LABEL, group=talks_to.group), device)
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
    labels[:, : size.height // 16] = VOID_LABEL
    return images, labels.to(torch.uint8)


# -- several processes -----------------------------------------------------------------------------


class TrainingRanks:
    """Processes that train together, on the CPU, and stay until the end; use as a context.

    Args:
        count: how many.
        size: of the logits of the batch that they share.
        threads: of all of them together.

    Raises:
        RunFailed: a rank failed or died; none is left behind.
    """

    def __init__(self, count: int, size: Size, threads: int) -> None:
        self.threads = threads // count
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._start(count, size)

    def __enter__(self) -> "TrainingRanks":
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._tell(None)
            for process in self._processes:
                process.join(FAREWELL)
        self._end()

    def first(self) -> tuple[float, First]:
        """The loss of the first step, and that step in float64, as rank 0 sees them."""
        answer: tuple[float, First] = self._ask("first")[0]
        return answer

    def run(self, steps: int, seed: int) -> Timed:
        """Time a few steps, together and then apart.

        Returns:
            The step of the slowest rank with the loss of the mean rank, and what talking to each
            other takes: the difference in the rest of the step between together and apart.
        """
        answers = self._ask("run", steps, seed)
        ranks = len(answers)
        together, apart = (
            sum(timed.step - timed.loss for timed in way) for way in zip(*answers, strict=True)
        )
        slowest = max(timed.step for timed, _ in answers)
        loss = sum(timed.loss for timed, _ in answers) / ranks
        return Timed(slowest, loss, (together - apart) / ranks)

    def _start(self, count: int, size: Size) -> None:
        context = get_context("spawn")
        self._meeting = os.fdopen(os.memfd_create("ranks"))  # where the ranks find each other
        meeting = f"/proc/{os.getpid()}/fd/{self._meeting.fileno()}"
        try:
            with _deaf_children():
                for rank in range(count):
                    ours, theirs = context.Pipe()
                    arguments = (rank, count, meeting, self.threads, size, theirs)
                    process = context.Process(target=_serve, args=arguments, daemon=True)
                    self._pipes.append(ours)
                    process.start()
                    self._processes.append(process)
                    theirs.close()
        except BaseException:
            self._end()
            raise

    def _ask(self, *request: Any) -> list[Any]:
        """What every rank answers."""
        self._tell(request)
        answers: dict[int, Any] = {}
        failures: list[str] = []
        deaths: list[str] = []
        waiting = dict(enumerate(self._pipes))
        patience: float | None = None
        while waiting and (ready := wait(list(waiting.values()), patience)):
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                try:
                    done, answer = waiting.pop(rank).recv()
                except (EOFError, OSError):
                    deaths.append(f"rank {rank} of {len(self._pipes)} died.")
                    done = False
                else:
                    if done:
                        answers[rank] = answer
                    else:
                        failures.append(f"rank {rank} of {len(self._pipes)}: {answer}")
                patience = patience if done else CLOSING_SECONDS
        if deaths or failures:  # what a death leads to is not its cause
            raise RunFailed((deaths + failures)[0])
        return [answers[rank] for rank in range(len(self._pipes))]

    def _tell(self, request: Any) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # a rank that is gone will not answer either
                pipe.send(request)

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        self._meeting.close()


def _serve(rank: int, ranks: int, meeting: str, threads: int, size: Size, pipe: Connection) -> None:
    """The life of a rank: requests in, answers out, until there are no more."""
    end_with_parent()  # also while it waits for ranks that were never started
    torch.set_num_threads(threads)
    device = choose_device("cpu")
    keep_to_this_machine()
    variant = StepVariant(f"{ranks} processes", ranks)
    try:
        # Held open here: FileStore would wait, with the GIL, for the file of a parent that is gone.
        place = os.open(meeting, os.O_RDWR)
        store = FileStore(f"/proc/self/fd/{place}", ranks)
        with join_team(rank, ranks, device, store) as team:
            together = Trainee(variant, size, device, team)
            apart = Trainee(variant, size, device, team, apart=True)
            exact = replace(variant, precision="float64")
            while (request := pipe.recv()) is not None:
                name, *arguments = request
                if name == "first":
                    loss = together.first().loss
                    pipe.send((True, (loss, Trainee(exact, size, device, team).first())))
                else:
                    pipe.send((True, (together.run(*arguments), apart.run(*arguments))))
    except (EOFError, ConnectionError):  # whoever asks is gone
        os._exit(1)
    except Exception as error:
        with suppress(OSError):
            pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())}"))
        os._exit(1)
    os._exit(0)  # threads of gloo now and then abort a process that ends in order


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, which goes to all of a terminal: they are told."""
    # On the CPU a team asks DistributedDataParallel for something that it warns of.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    heard: list[int] = []
    resource_tracker.ensure_running()  # would unblock SIGINT later, when it starts
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if heard:
        signal.raise_signal(signal.SIGINT)
