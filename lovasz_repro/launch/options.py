"""Options of ``run`` that fit together, and those of Slurm as ``slurm.py`` takes them."""

import re
from collections.abc import Mapping, Sequence

from lovasz_repro.errors import UserError
from lovasz_repro.launch.request import Request
from lovasz_repro.launch.slurm import SlurmOptions

DAY = 24 * 60  # minutes


def check_options(request: Request, slurm: bool, cluster: Mapping[str, object]) -> None:
    """Make sure that devices and cluster are asked for without contradiction.

    Raises:
        UserError: which options exclude each other.
    """
    if request.procs and request.gpus:
        raise UserError("give --gpus or --procs, not both.")
    if request.gpus and request.device == "cpu":
        raise UserError("--gpus and --device cpu exclude each other; on CPUs: --procs.")
    if request.procs and request.device.startswith("cuda"):
        raise UserError(f"--procs and --device {request.device} exclude each other; use --gpus.")
    needless = [f"--{name}" for name, value in cluster.items() if value]
    if needless and not slurm:
        raise UserError(f"{needless[0]} is for --slurm.")


def slurm_options(
    request: Request,
    partition: str | None,
    time: str | None,
    cpus: int | None,
    at_once: int | None,
    sbatch: Sequence[str] | None,
) -> SlurmOptions:
    """Slurm's options, from the command line's.

    Raises:
        UserError: a time that is none.
    """
    extra = dict(option.removeprefix("--").partition("=")[::2] for option in sbatch or ())
    return SlurmOptions(
        partition=partition,
        time_minutes=minutes(time) if time else DAY,
        gpus=request.gpus or 0,
        nodes=request.nodes,
        cpus=cpus or request.procs,
        at_once=at_once,
        extra=extra,
    )


def minutes(text: str) -> int:
    """Slurm's times in minutes, rounded up: "90", "1:30:00", "2-12", "2-12:30", "2-12:30:00".

    One difference: "H:MM" is hours and minutes, where Slurm reads minutes and seconds.

    Raises:
        UserError: another form.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", text)
    if not match:
        raise UserError(f"--time {text}: expected [D-]H:MM[:SS], or minutes.")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[3] is None:
        return first
    return days * DAY + first * 60 + second + (third > 0)
