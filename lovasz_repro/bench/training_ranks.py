"""The processes of ``bench training`` that share a batch: started once, asked again and again."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lovasz_repro.bench.samples import Size
from lovasz_repro.bench.trainee import First, Timed, Trainee, Variant
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.processes import end_with_parent
from lovasz_repro.training.distributed import join_team, keep_to_this_machine

CPU = torch.device("cpu")
GRACE = 0.5  # seconds that the other ranks have to tell their side of a failure
FAREWELL = 20.0  # seconds that ranks have to leave


class Ranks:
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

    def __enter__(self) -> "Ranks":
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

    def run(self, steps: int, seed: int) -> tuple[Timed, float]:
        """Time a few steps, together and then apart.

        Returns:
            The step of the slowest rank with the loss of the mean rank, and what talking to each
            other takes: the difference in the rest of the step between together and apart.
        """
        answers = self._ask("run", steps, seed)
        count = len(answers)
        rests = [
            sum(timed.step - timed.loss for timed in way) for way in zip(*answers, strict=True)
        ]
        together = [timed for timed, _ in answers]
        step, loss = max(t.step for t in together), sum(t.loss for t in together) / count
        return Timed(step, loss), (rests[0] - rests[1]) / count

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
                patience = patience if done else GRACE
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
    keep_to_this_machine()
    variant = Variant(f"{ranks} processes", ranks)
    try:
        with join_team(rank, ranks, CPU, FileStore(meeting, ranks)) as team:
            together = Trainee(variant, size, CPU, team)
            apart = Trainee(variant, size, CPU, team, apart=True)
            exact = replace(variant, precision="float64")
            while (request := pipe.recv()) is not None:
                name, *arguments = request
                if name == "first":
                    loss = together.first().loss
                    pipe.send((True, (loss, Trainee(exact, size, CPU, team).first())))
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
