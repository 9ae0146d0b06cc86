"""``--gpus N`` and ``--procs N``: one process per rank, started and watched by this one.

The ranks run the command line that the user gave. Where one dies, the others are ended and all of
them start anew, and the run goes on from its last checkpoint.
"""

import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import is_gone, machine
from lovasz_repro.host.output import say
from lovasz_repro.host.processes import (
    Interrupted,
    StopRequest,
    child_environment,
    end_all,
    threads_of,
)
from lovasz_repro.launch.rank import (
    ERROR_FILE,
    MEETING,
    Attempts,
    Failure,
    Rank,
    RankFailed,
    killed_by,
)

# ---- Where ranks find each other -----------------------------------------------------------------
#
# And as few others as can be. On one machine the ranks meet in a file without a name, which their
# launcher made in memory and handed to them; nothing listens for it, and it is gone with the last
# of them. Ranks on several machines meet in a store at the one address that the user (or Slurm)
# named, apart from those of other attempts by a random word. Who reaches that address can disturb a
# run, so the network must be trusted; addresses are all that is exchanged there.
#
# Each machine starts its ranks anew after a failure, and one may notice it seconds before another.
# Machine 0 keeps a store open over all attempts and numbers them; the others join an attempt that
# nobody has joined for them yet. So no machine takes part in an attempt that is over already. Were
# the ranks of two attempts to meet under one word, they would read the addresses of those before.

SILENCE = 5.0  # seconds that rank 0 waits for the others without a word
KNOCK_EVERY = 0.1  # seconds
FOR_MACHINES = timedelta(minutes=5)  # on which the command is not running yet


def meet(rank: Rank) -> Any:
    """The store in which a rank, one of several, finds the others, once it is there.

    None for ranks of the user's own torchrun, which has a store.

    Raises:
        UserError: the address is not one of this machine's that is free.
        RunFailed: the other ranks do not come.
    """
    from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

    from lovasz_repro.training.distributed import RANK_PATIENCE, keep_to_this_machine

    if rank.world_size == rank.local_world_size:
        keep_to_this_machine()
    where = os.environ.get(MEETING, "")
    if rank.by_torch and not where:
        return None
    if where.startswith("/"):
        store: Any = FileStore(where, rank.world_size)
        store.set_timeout(RANK_PATIENCE)
        return store
    address, _, word = where.partition(" ")
    address = address or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    serves = rank.rank == 0 and not rank.by_torch  # srun starts no launcher that would do it
    try:
        store = PrefixStore(word, open_store(address, serves, RANK_PATIENCE))
        store.set(f"here/{rank.rank}", "")
        if rank.rank == 0:
            _wait_for_others(store, rank.world_size, address, RANK_PATIENCE.total_seconds())
    except RuntimeError as error:  # torch's errors of the network
        raise RunFailed(f"the ranks cannot meet at {address}: {error}") from None
    return store


def _wait_for_others(store: Any, size: int, address: str, patience: float) -> None:
    begin, told = time.monotonic(), False
    while missing := [rank for rank in range(size) if not store.check([f"here/{rank}"])]:
        waited = time.monotonic() - begin
        names = f"{len(missing)} of {size} ranks ({', '.join(map(str, missing))})"
        if waited > patience:
            raise RunFailed(f"{names} did not come to {address} within {patience / 60:g} minutes.")
        if waited > SILENCE and not told:
            say(f"waiting at {address} for {names}, for up to {patience / 60:g} minutes", err=True)
            told = True
        time.sleep(KNOCK_EVERY)


def open_store(address: str, serves: bool, patience: timedelta) -> Any:
    """torch's store at HOST:PORT, which this process serves or uses.

    torch itself would listen on every interface of this machine; this listens on one address.

    Raises:
        UserError: the address is no HOST:PORT, or not one of this machine's that is free.
        RuntimeError: nobody serves it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, separator, digits = address.rpartition(":")
    if not separator or not host or not digits.isdigit():
        raise UserError(f"{address}: expected HOST:PORT.")
    host, port = host.strip("[]"), int(digits)
    listener = _listen(host, port) if serves else None
    return TCPStore(
        host,
        port,
        is_master=serves,
        timeout=patience,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener else None,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        number = str(place[0])
        if host not in (number, "localhost") and ipaddress.ip_address(number).is_loopback:
            raise UserError(
                f"{host} is {number} on this machine, where no other reaches it: give an address"
                " in numbers (--rdzv, or MASTER_ADDR with srun)."
            )
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise UserError(
            f"{host}:{port}: not an address to listen at ({error.strerror or error})."
        ) from None


class Machines:
    """This machine among the others.

    Args:
        address: HOST:PORT of machine 0.
        number: of this machine, from 0.

    Raises:
        UserError: the address is not one of machine 0's that is free.
    """

    def __init__(self, address: str, number: int) -> None:
        self._address, self._number = address, number
        self._store: Any = open_store(address, True, FOR_MACHINES) if number == 0 else None

    def next_attempt(self) -> str:
        """Where the ranks of the attempt meet that begins now: HOST:PORT and their word.

        Raises:
            UserError: machine 0 does not answer within five minutes.
        """
        if self._number == 0:
            word = secrets.token_hex(16)
            attempt = self._store.add("attempts", 1)
            self._store.set(f"word/{attempt}", word)
            return f"{self._address} {word}"
        while True:
            try:
                self._store = self._store or self._connect()
                attempt = self._store.add("attempts", 0)
                if attempt and self._store.add(f"joined/{attempt}/{self._number}", 1) == 1:
                    return f"{self._address} {self._store.get(f'word/{attempt}').decode()}"
                time.sleep(KNOCK_EVERY)
            except RuntimeError:  # machine 0's launcher has gone; the next one has a new store
                self._store = None

    def _connect(self) -> Any:
        say(f"looking for machine 0 at {self._address}", err=True)
        try:
            return open_store(self._address, False, FOR_MACHINES)
        except RuntimeError:
            minutes = int(FOR_MACHINES.total_seconds() / 60)
            raise UserError(
                f"machine 0 does not answer at {self._address} within {minutes} minutes. Give the"
                " same command there with --node-rank 0."
            ) from None


# ---- Ranks, started and watched ------------------------------------------------------------------

ASK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Launch:
    """How many processes on how many machines."""

    per_node: int
    """Processes on this machine."""
    nodes: int = 1
    node_rank: int = 0
    """Number of this machine; rank 0, which writes, is on machine 0."""
    rendezvous: str = ""
    """HOST:PORT of machine 0, where there are several."""
    max_restarts: int = 3
    """Attempts in a row without a new checkpoint after which it ends."""


def launch(plan: Launch, logs: Path, progress_mark: Callable[[], object]) -> None:
    """Run this command line on every rank, again where a rank is lost, until it is done.

    Args:
        plan: how many ranks.
        logs: folder for what ranks other than 0 print.
        progress_mark: changes whenever a checkpoint was written.

    Raises:
        Interrupted: a signal asked for it.
        RankFailed: a rank ended with an error, or died too often.
        UserError: machines do not find each other.
    """
    for old in logs.parent.glob(f"{machine()}-*"):
        if is_gone(machine(), int(old.name.rpartition("-")[2]), old):
            shutil.rmtree(old, ignore_errors=True)
    machines = Machines(plan.rendezvous, plan.node_rank) if plan.nodes > 1 else None
    if plan.node_rank:
        progress_mark = object  # machine 0 decides when it has been too often
    attempts = Attempts(plan.max_restarts, progress_mark)
    while (failure := _attempt(plan, logs, machines)) is not None:
        if failure.kind == "stopped":
            raise Interrupted(failure.exit_code - 128, failure.message)
        if failure.kind in ("user", "failed"):
            raise RankFailed(failure.exit_code, failure.message)
        wait = attempts.next_wait(failure)
        say(f"rank {failure.rank}: {failure.message}; all ranks start again", err=True)
        time.sleep(wait)
    shutil.rmtree(logs, ignore_errors=True)


def _attempt(plan: Launch, logs: Path, machines: Machines | None) -> Failure | None:
    """Start the ranks of this machine and wait for them; None when every one is done.

    Raises:
        Interrupted: a signal asked for it; the ranks have saved.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.json"):
            old.unlink()
    except OSError as error:
        raise UserError(f"{logs}: cannot be written ({error.strerror}).") from None
    with _meeting(machines) as where, StopRequest() as stop:
        ranks = dict[int, subprocess.Popen[bytes]]()
        try:
            for local_rank in range(plan.per_node):
                rank = plan.node_rank * plan.per_node + local_rank
                ranks[rank] = _start(plan, rank, local_rank, logs, where)
            failed = list[int]()
            while not stop.number and any(process.poll() is None for process in ranks.values()):
                time.sleep(ASK_EVERY)
                if failed:  # with those, by now, that it took along, or that did it
                    break
                failed = [rank for rank, process in ranks.items() if process.poll()]
            failed = [rank for rank, process in ranks.items() if process.poll()]
        finally:
            end_all(list(ranks.values()), stop.number or signal.SIGTERM)
        if stop.number:
            told = _ended(0, 0, logs).message if 0 in ranks else ""
            raise Interrupted(stop.number, told or "Stopped. Run the same command to go on.")
    if not failed:
        return None
    return first_cause(_ended(rank, ranks[rank].returncode, logs) for rank in failed)


@contextmanager
def _meeting(machines: Machines | None) -> Iterator[str]:
    """Where the ranks of an attempt meet, as ``meet`` reads it."""
    if machines:
        yield machines.next_attempt()
        return
    file = os.memfd_create("ranks")
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _start(
    plan: Launch, rank: int, local_rank: int, logs: Path, where: str
) -> "subprocess.Popen[bytes]":
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(plan.per_node * plan.nodes),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.per_node),
        MEETING: where,
        ERROR_FILE: str(_error_file(logs, rank)),
    }
    environment |= child_environment() | threads_of(plan.per_node)
    with open(_log(logs, rank), "ab") if rank else nullcontext() as log:  # rank 0 has the terminal
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "lovasz_repro.cli", *sys.argv[1:]],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            pass_fds=[int(Path(where).name)] if where.startswith("/") else [],
            start_new_session=True,  # Ctrl-C is ours to hand on, once
        )


def _ended(rank: int, exit_code: int, logs: Path) -> Failure:
    """What a rank left to tell of its end."""
    log = _log(logs, rank) if rank else None
    try:
        told = json.loads(_error_file(logs, rank).read_text())["message"]
        more = told["extraInfo"]
        moment, kind = float(more["timestamp"]), str(more["kind"])
        message = str(told["message"]).removeprefix("Error: ")
        return Failure(rank, exit_code, moment, message, kind, log)
    except (OSError, ValueError, KeyError, TypeError):  # it had no time to
        return Failure(rank, exit_code, time.time(), log=log)


def first_cause(ranks: Iterable[Failure]) -> Failure:
    """Of the ranks that failed, the one that the others followed."""
    order = {"user": 0, "failed": 0, "stopped": 1, "died": 2, "unexpected": 2, "lost": 3}
    causes = []
    for ended in ranks:
        message, kind = ended.message, ended.kind
        if kind == "unexpected" and ended.log:
            message += f" (see {ended.log})"
        elif not message and ended.exit_code < 0:
            message = killed_by(ended.exit_code)
            if ended.exit_code == -signal.SIGTERM:  # the launcher ends the others so
                kind = "lost"
        elif not message:
            message = f"ended with exit code {ended.exit_code}"
        causes.append(replace(ended, message=message, kind=kind))
    return min(causes, key=lambda cause: (order[cause.kind], cause.moment, cause.rank))


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.log"


def _error_file(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.json"
