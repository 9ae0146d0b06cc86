"""``--slurm``: a grid as an array job, one task a run, and how its runs stand."""

from filelock import FileLock

from lovasz_repro.launch.request import Request, cell_command
from lovasz_repro.launch.slurm import SlurmOptions, Task, submit
from lovasz_repro.launch.slurm_queue import slurm_folder, states
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.store import Store


def submit_grid(request: Request, options: SlurmOptions, place: Place) -> str:
    """Submit the runs that are neither done nor with Slurm already; returns what was done.

    Raises:
        UserError: data is missing, or Slurm is missing or refuses.
    """
    folder = slurm_folder(request.results.absolute())
    store = Store(request.results, request.tracking_uri)
    folder.mkdir(parents=True, exist_ok=True)
    tasks, done, there = list[Task](), 0, 0
    after = list[tuple[Task, str]]()  # with the identity of the run that it starts from
    with FileLock(folder / "submit.lock"):  # two commands at once submit nothing twice
        known = states(folder)
        for cell in request.cells:
            identity = find_inputs(cell, place).identity
            if store.finished(cell.experiment, identity):
                done += 1
            elif identity in known and known[identity].state != "gone":
                there += 1
            else:
                name = f"{cell.experiment}/{cell.profile}/{cell.name}"
                task = Task(identity, name, cell_command(request, cell))
                start = find_inputs(cell.start, place).identity if cell.start else None
                if start is None or store.finished(cell.experiment, start):
                    tasks.append(task)
                else:
                    after.append((task, start))
        submitted = submit(tasks, options, folder)
        ids = {key: state.job_id for key, state in known.items()}
        ids |= {task.key: task.job_id for task in submitted}
        for start in dict.fromkeys(start for _, start in after):
            waiting = [task for task, its_start in after if its_start == start]
            submitted += submit(waiting, options.after(ids[start]), folder)
    words = [f"{len(submitted)} runs submitted"]
    if submitted:
        words[0] += f" as job {submitted[0].job_id.partition('_')[0]}"
    words += [f"{there} queued or running"] if there else []
    words += [f"{done} done before"] if done else []
    return f"{', '.join(words)}. lovasz-repro runs shows how they stand; logs are in {folder}/logs."
