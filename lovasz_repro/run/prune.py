"""``runs prune``: the work folders of finished runs, of which the store has all that counts.

A folder holds checkpoints, the journal, and copies of the weights and pictures that the run stored.
A run that is done before is skipped without its folder, and one that starts from its weights takes
them out of the store.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import remove_left_over, unfinished
from lovasz_repro.run.inputs import START, WEIGHTS
from lovasz_repro.store import Store, StoredRun, is_stale
from lovasz_repro.store.journal import JOURNAL, committed_end, lock_of, shipped_offsets

IN_WORK = "another process is at work on it"


@dataclass(frozen=True)
class WorkFolder:
    """Where a run worked."""

    path: Path
    run: StoredRun | None
    """None where this store does not have it."""
    kept: str | None
    """Why it has to stay, or None."""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.lstat().st_size for file in self.path.rglob("*") if not file.is_dir())


def work_folders(results: Path, store: Store) -> list[WorkFolder]:
    """The work folders of all runs; what an earlier `remove` left half is gone."""
    for profile in results.glob("work/*/*"):
        remove_left_over(profile)
    runs = store.runs()
    known = {run.run_id: run for run in runs}
    starting = {run.tags.get("weights_fingerprint", "") for run in runs
                if run.status == "RUNNING" and not is_stale(run)}  # fmt: skip
    folders = []
    for journal in sorted(results.glob(f"work/*/*/[!.]*/{JOURNAL}")):
        if journal.parent.is_symlink():
            continue
        run = next((known[at] for at in shipped_offsets(journal) if at in known), None)
        kept = _reason_to_stay(journal, run, store)
        if run and START + run.identity in starting:
            kept = kept or "a run in work starts from its weights"
        folders.append(WorkFolder(journal.parent, run, kept))
    return folders


def _reason_to_stay(journal: Path, run: StoredRun | None, store: Store) -> str | None:
    if run is None:
        return "not in this store"
    if run.status != "FINISHED":
        return "not finished"
    try:
        with lock_of(journal):
            if shipped_offsets(journal)[run.run_id] < committed_end(journal):
                return "not all of it is in the store (`run` sends the rest)"
    except Timeout:
        return IN_WORK
    except (OSError, UserError):
        return "its journal cannot be read"
    if WEIGHTS not in store.artifact_names(run.run_id):
        return "its weights are not in the store"
    return None


def remove(folder: WorkFolder) -> None:
    """Delete the folder of a run that need not stay.

    Raises:
        RunFailed: the disk refuses, or another process has begun to work on it.
    """
    try:
        with lock_of(folder.path / JOURNAL), unfinished(folder.path) as place:
            os.replace(folder.path, place)  # a run that begins now finds no half of it
            shutil.rmtree(place)
    except Timeout:
        raise RunFailed(f"{folder.path}: {IN_WORK}") from None
    except OSError as error:
        raise RunFailed(f"{folder.path}: not deleted ({error.strerror or error})") from error
