"""A run's session as the ranks of a team share it: the leader has it, the others hear of it.

What the leader cannot do (read a checkpoint, write the journal, save) fails on every rank with the
same error, at the same step, so a run that fails leaves the team in order for the next run.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.stopping import Interrupted, StopRequest
from lovasz_repro.run.session import RunSession
from lovasz_repro.training.distributed import Team
from lovasz_repro.training.loop import TrainingState

STOPPING = "stopping after this step; Ctrl-C again stops at once, back to the last checkpoint"
FAILED = 1000  # what a rank brings to `stop_asked` when its log failed; above any signal


class SharedSession:
    """What ``run_cell`` needs of a session, on every rank; use as a context.

    Args:
        team: the ranks.
        session: the leader's session, None on the others.
        progress: the screen, silent on the others.

    Raises:
        UserError: another process is working on the run.
        RunFailed: the folder cannot be written.
    """

    def __init__(self, team: Team, session: RunSession | None, progress: Progress) -> None:
        self.team, self.progress = team, progress
        self._session = session
        self._stop = StopRequest(lambda: self.line(STOPPING))
        self._failure: RunFailed | None = None

    def __enter__(self) -> "SharedSession":
        self.team.on_leader(self._open)
        self._stop.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._session:
                self._session.__exit__(kind, error, trace)
        finally:
            self._stop.__exit__()  # last: a second signal must not end a rank amid its farewell

    def _open(self) -> None:
        self._leader().__enter__()

    def _leader(self) -> RunSession:
        """The leader's session, its log in order."""
        if self._failure:
            raise self._failure
        assert self._session, "only the leader has a session"
        return self._session

    def resume(self, state: TrainingState, device: torch.device) -> None:
        """Bring ``state`` to the last checkpoint, if there is one, on every rank."""
        checkpoint = self.team.on_leader(lambda: self._leader().last_checkpoint())
        if checkpoint:
            try:
                state.restore(checkpoint)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                where = self._session.folder if self._session else "the run's folder"
                raise RunFailed(
                    f"the last checkpoint in {where} is not of this run's network; move it away "
                    "and run again"
                ) from error
        self.team.on_leader(lambda: self._leader().go_on_from(state.iteration))

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Note metric values; all ranks learn of a failure when they meet next."""
        if self._session:
            try:
                self._session.log(iteration, values)
            except RunFailed as error:
                self._failure = error

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint."""
        self.team.on_leader(lambda: self._leader().save(state))

    def stop_asked(self) -> int:
        """The signal that asked any rank to stop, or 0; the same on every rank.

        Raises:
            RunFailed: the leader cannot write its log.
        """
        number = self.team.largest(FAILED if self._failure else self._stop.number or 0)
        if number == FAILED:
            self.team.on_leader(self._leader)
        return number

    def stop_if_asked(self) -> None:
        """End a stretch without checkpoints at once, where no other rank would wait.

        Raises:
            Interrupted: a signal asked to stop.
        """
        if self._stop.number and self.team.size == 1:
            raise Interrupted(
                self._stop.number, "Stopped while scoring. Run the same command to go on."
            )

    def keep_weights(self, write: Callable[[Path], None]) -> None:
        """Write the run's weights file and give it, and the config, to the stored run.

        Raises:
            RunFailed: the disk refuses.
        """
        self.team.on_leader(lambda: self._leader().keep_weights(write))

    def keep_files(self, folder: str, write: Callable[[Path], list[Path]]) -> None:
        """Write files into a folder of the run and give them to the stored run.

        Raises:
            RunFailed: the disk refuses.
        """
        self.team.on_leader(lambda: self._leader().keep_files(folder, write))

    def line(self, text: str) -> None:
        """A line about this run that stays on the leader's screen."""
        if self._session:
            self._session.line(text)
