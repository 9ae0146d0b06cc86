"""How the launchers of several machines begin an attempt together.

Each machine starts its ranks anew after a failure, and one may notice it seconds before another.
Machine 0 keeps a store open over all attempts and numbers them; the others join an attempt that
nobody has joined for them yet. So no machine takes part in an attempt that is over already. Each
attempt has a port of its own: ranks that met in one store twice would read the addresses of the
ranks before them.
"""

import socket
import time
from datetime import timedelta
from typing import Any

from lovasz_repro.errors import UserError

PATIENCE = timedelta(minutes=5)  # for a machine on which the command is not running yet
LOOK_EVERY = 0.2  # seconds


class Machines:
    """This machine among the others.

    Args:
        address: HOST:PORT of machine 0.
        number: of this machine, from 0.

    Raises:
        UserError: the address is no HOST:PORT, or not one of machine 0's that is free.
    """

    def __init__(self, address: str, number: int) -> None:
        host, separator, port = address.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise UserError(f"--rdzv {address}: expected HOST:PORT.")
        self._host, self._port, self._number = host, int(port), number
        self._store: Any = self._connect() if number == 0 else None

    def next_attempt(self) -> str:
        """HOST:PORT at which the ranks of the attempt meet that begins now.

        Raises:
            UserError: machine 0 does not answer within five minutes.
        """
        if self._number == 0:
            with socket.socket() as free:
                free.bind(("", 0))
                port = free.getsockname()[1]
            attempt = self._store.add("attempts", 1)
            self._store.set(f"port/{attempt}", str(port))
            return f"{self._host}:{port}"
        while True:
            try:
                self._store = self._store or self._connect()
                attempt = self._store.add("attempts", 0)
                if attempt and self._store.add(f"joined/{attempt}/{self._number}", 1) == 1:
                    return f"{self._host}:{self._store.get(f'port/{attempt}').decode()}"
                time.sleep(LOOK_EVERY)
            except RuntimeError:  # machine 0's launcher has gone; the next one has a new store
                self._store = None

    def _connect(self) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        try:
            return TCPStore(
                self._host,
                self._port,
                is_master=self._number == 0,
                timeout=PATIENCE,
                wait_for_workers=False,
            )
        except (RuntimeError, OSError) as error:
            where = f"{self._host}:{self._port}"
            if self._number == 0:
                raise UserError(f"--rdzv {where}: not an address to listen at ({error}).") from None
            minutes = int(PATIENCE.total_seconds() / 60)
            raise UserError(
                f"machine 0 does not answer at {where} within {minutes} minutes. Give the same "
                "command there with --node-rank 0."
            ) from None
