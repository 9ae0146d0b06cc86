"""Where the ranks of a run find each other, and as few others as can be.

On one machine the ranks meet in a file without a name, which their launcher made in memory and
handed to them; nothing listens for it, and it is gone with the last of them. Ranks on several
machines meet in a store at the one address that the user (or Slurm) named, apart from those of
other attempts by a random word. Who reaches that address can disturb a run, so the network must
be trusted; addresses are all that is exchanged there.

Each machine starts its ranks anew after a failure, and one may notice it seconds before another.
Machine 0 keeps a store open over all attempts and numbers them; the others join an attempt that
nobody has joined for them yet. So no machine takes part in an attempt that is over already. Were
the ranks of two attempts to meet under one word, they would read the addresses of those before.
"""

import ipaddress
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import say
from lovasz_repro.launch.rank import MEETING, Rank

SILENCE = 5.0  # seconds that rank 0 waits for the others without a word
KNOCK_EVERY = 0.1  # seconds
FOR_MACHINES = timedelta(minutes=5)  # on which the command is not running yet


def meet(rank: Rank) -> Any:
    """The store in which a rank finds the others, once it is there.

    None where there are no others, and for ranks of the user's own torchrun, which has a store.

    Raises:
        UserError: the address is not one of this machine's that is free.
        RunFailed: the other ranks do not come.
    """
    from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

    from lovasz_repro.training.distributed import RANK_PATIENCE, keep_to_this_machine

    if rank.world_size == rank.local_world_size:
        keep_to_this_machine()
    where = os.environ.get(MEETING, "")
    if rank.world_size == 1 or (rank.by_torch and not where):
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
