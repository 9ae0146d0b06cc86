"""What happens to the leader's session happens on every rank, at the same step."""

import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from torch import distributed, nn

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.progress import Progress
from lovasz_repro.run import session as session_module
from lovasz_repro.run.session import Session
from lovasz_repro.store import Store
from lovasz_repro.store.journal import InUse
from lovasz_repro.training.distributed import ALONE, Team
from lovasz_repro.training.loop import TrainingState
from tests.ranks import RankPool


class Fails:
    """What a leader's session has, which fails where it is told to: journal, files and shipper."""

    at = ""
    ended = ""

    def __init__(self, *_: object, **__: object) -> None:
        self._meet("open", InUse("in use"))

    @classmethod
    def _meet(cls, what: str, error: Exception) -> None:
        if cls.at == what:
            raise error

    def log(self, iteration: int, values: dict[str, float]) -> None:
        if iteration == 2:
            self._meet("log", RunFailed("disk full"))

    def sync(self) -> None:
        self._meet("save", RunFailed("no checkpoint"))

    def save(self, iteration: int, content: dict[str, Any]) -> None:
        assert iteration == 40

    def commit(self, iteration: int) -> None:
        assert iteration == 40

    def load_latest(self) -> dict[str, Any] | None:
        state = new_state()
        nn.init.constant_(state.model.weight, 7.0)  # type: ignore[arg-type]
        state.iteration = 40
        return state.to_checkpoint()

    def rewind(self, iteration: int) -> None:
        assert iteration == 40
        self._meet("rewind", RunFailed("disk full"))

    def close(self, status: str = "") -> None:
        if status:  # the stored run's
            signal.raise_signal(signal.SIGTERM)  # another one, while it is being ended
            type(self).ended = status


def new_state() -> TrainingState:
    model = nn.Linear(2, 1)
    return TrainingState(model, torch.optim.Adam(model.parameters()))


def work(rank: int, group: distributed.ProcessGroup, fails: str) -> tuple[str, int, str]:
    """Three steps; the error, the steps done before it, and how the leader's run ended."""
    team = Team(rank, group.size(), group)
    cell = load_experiment("camvid-enet").cells("demo")[0]
    state, done, told = new_state(), 0, "nothing"
    Fails.at, Fails.ended = fails, ""
    with (
        TemporaryDirectory() as folder,
        patch.multiple(session_module, Journal=Fails, Checkpoints=Fails, Shipper=Fails),
    ):
        session = Session(team, cast(Store, None), "id", Path(folder), cell, Progress(), "run")
        try:
            with session:
                session.resume(state)
                assert (state.iteration, state.model.weight[0, 0].item()) == (40, 7.0)
                for step in (1, 2, 3):
                    session.log(step, {"train/loss": 1.0})
                    if fails == "signal" and rank == 1 and step == 2:
                        session._stop.number = 15
                    number = session.stop_asked()
                    if number:
                        return f"signal {number}", done, ""
                    done += 1
                session.save(state)
        except (RunFailed, InUse) as error:
            told = f"{type(error).__name__}: {error}"
    return told, done, Fails.ended


@pytest.mark.parametrize(
    ("fails", "told", "done", "ended"),
    [
        ("nothing", "nothing", 3, "FINISHED"),
        ("open", "InUse: in use", 0, ""),
        ("rewind", "RunFailed: disk full", 0, "FAILED"),
        ("log", "RunFailed: disk full", 1, "FAILED"),
        ("save", "RunFailed: no checkpoint", 3, "FAILED"),
        ("signal", "signal 15", 1, ""),
    ],
)
def test_every_rank_meets_what_the_leader_meets(
    rank_pool: RankPool, fails: str, told: str, done: int, ended: str
) -> None:
    answers = rank_pool.run(work, 3, fails)
    assert [answer[:2] for answer in answers] == [(told, done)] * 3
    assert [answer[2] for answer in answers] == [ended, "", ""]


class Foreign(Fails):
    """Checkpoints of a network with other weights, whole and of right hash."""

    def load_latest(self) -> dict[str, Any] | None:
        model = nn.Linear(5, 3)
        return TrainingState(model, torch.optim.Adam(model.parameters())).to_checkpoint()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    for name in ("Journal", "Checkpoints", "Shipper"):
        monkeypatch.setattr(session_module, name, Fails)
    monkeypatch.setattr(Fails, "at", "")
    cell = load_experiment("camvid-enet").cells("demo")[0]
    return Session(ALONE, cast(Store, None), "id", tmp_path, cell, Progress(), "run")


def test_a_checkpoint_of_another_network_is_told_in_one_line(
    alone: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "Checkpoints", Foreign)
    with pytest.raises(RunFailed, match=f"{alone.folder}.*not of this run's network"), alone:
        alone.resume(new_state())
    assert Fails.ended == "FAILED"


def test_a_request_to_stop_is_told_at_once_and_once(
    alone: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, heard = list[str](), threading.Event()
    monkeypatch.setattr(alone, "line", lambda text: (told.append(text), heard.set()))
    with alone:
        signal.raise_signal(signal.SIGTERM)
        assert heard.wait(10)
        signal.raise_signal(signal.SIGTERM)
        assert alone.stop_asked() == signal.SIGTERM
    assert len(told) == 1
    assert "stopping after this step" in told[0]
