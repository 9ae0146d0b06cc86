"""How the launchers of several machines begin an attempt together.

Each machine starts its ranks anew after a failure, and one may notice it seconds before another.
Machine 0 keeps a store open over all attempts and numbers them; the others join an attempt that
nobody has joined for them yet. So no machine takes part in an attempt that is over already. The
ranks of an attempt meet in the same store under a random word of their own: where they met twice,
they would read the addresses of the ranks before them.
"""

import secrets
import time
from datetime import timedelta
from typing import Any

from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say
from lovasz_repro.launch.meeting import open_store

PATIENCE = timedelta(minutes=5)  # for a machine on which the command is not running yet
LOOK_EVERY = 0.2  # seconds


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
        self._store: Any = open_store(address, True, PATIENCE) if number == 0 else None

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
                time.sleep(LOOK_EVERY)
            except RuntimeError:  # machine 0's launcher has gone; the next one has a new store
                self._store = None

    def _connect(self) -> Any:
        say(f"looking for machine 0 at {self._address}", err=True)
        try:
            return open_store(self._address, False, PATIENCE)
        except RuntimeError:
            minutes = int(PATIENCE.total_seconds() / 60)
            raise UserError(
                f"machine 0 does not answer at {self._address} within {minutes} minutes. Give the"
                " same command there with --node-rank 0."
            ) from None
