"""What happens to the leader's session happens on every rank, at the same step."""

import signal
from typing import Any

import pytest
import torch
from torch import distributed, nn

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.shared_session import SharedSession
from lovasz_repro.store.journal import InUse
from lovasz_repro.training.distributed import Team
from lovasz_repro.training.loop import TrainingState
from tests.ranks import RankPool


class Session:
    """A leader's session that fails where it is told to."""

    def __init__(self, fails: str) -> None:
        self.fails, self.ended = fails, ""

    def _do(self, what: str, error: Exception) -> None:
        if self.fails == what:
            raise error

    def __enter__(self) -> "Session":
        self._do("open", InUse("in use"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.raise_signal(signal.SIGTERM)  # another one, while the stored run is being ended
        self.ended = kind.__name__ if kind else "done"

    def log(self, iteration: int, values: dict[str, float]) -> None:
        if iteration == 2:
            self._do("log", RunFailed("disk full"))

    def save(self, state: TrainingState) -> None:
        self._do("save", RunFailed("no checkpoint"))

    def last_checkpoint(self) -> dict[str, Any] | None:
        model = new_state()
        nn.init.constant_(model.model.weight, 7.0)  # type: ignore[arg-type]
        model.iteration = 40
        return model.to_checkpoint()

    def go_on_from(self, iteration: int) -> None:
        assert iteration == 40
        self._do("rewind", RunFailed("disk full"))


def new_state() -> TrainingState:
    model = nn.Linear(2, 1)
    return TrainingState(model, torch.optim.Adam(model.parameters()))


def work(rank: int, group: distributed.ProcessGroup, fails: str) -> tuple[str, int, str]:
    """Three steps; the error, the steps done before it, and how the leader's session ended."""
    team = Team(rank, group.size(), group)
    session = Session(fails) if team.leads else None
    state, done, told = new_state(), 0, "nothing"
    try:
        with SharedSession(team, session, Progress()) as shared:  # type: ignore[arg-type]
            shared.resume(state, torch.device("cpu"))
            assert (state.iteration, state.model.weight[0, 0].item()) == (40, 7.0)
            for step in (1, 2, 3):
                shared.log(step, {"train/loss": 1.0})
                if fails == "signal" and rank == 1 and step == 2:
                    shared._stop.number = 15
                number = shared.stop_asked()
                if number:
                    return f"signal {number}", done, ""
                done += 1
            shared.save(state)
    except (RunFailed, InUse) as error:
        told = f"{type(error).__name__}: {error}"
    return told, done, session.ended if session else ""


@pytest.mark.parametrize(
    ("fails", "told", "done", "ended"),
    [
        ("nothing", "nothing", 3, "done"),
        ("open", "InUse: in use", 0, ""),
        ("rewind", "RunFailed: disk full", 0, "RunFailed"),
        ("log", "RunFailed: disk full", 1, "RunFailed"),
        ("save", "RunFailed: no checkpoint", 3, "RunFailed"),
        ("signal", "signal 15", 1, ""),
    ],
)
def test_every_rank_meets_what_the_leader_meets(
    rank_pool: RankPool, fails: str, told: str, done: int, ended: str
) -> None:
    answers = rank_pool.run(work, 3, fails)
    assert [answer[:2] for answer in answers] == [(told, done)] * 3
    assert [answer[2] for answer in answers] == [ended, "", ""]
