"""The command line: what commands there are, and how a command ends.

torch, mlflow, pandas and matplotlib are imported inside the commands, so that ``--help`` and
shell completion answer at once.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn, TypeGuard

import typer
from typer.main import get_command

from lovasz_repro import __version__
from lovasz_repro.cli.bench import bench_app
from lovasz_repro.cli.data import data_app
from lovasz_repro.cli.evaluate import evaluate
from lovasz_repro.cli.options import (
    RESULTS,
    AsJson,
    Data,
    Results,
    TrackingUri,
    without_types_of_flags,
)
from lovasz_repro.cli.predict import export, predict
from lovasz_repro.cli.report import report_app
from lovasz_repro.cli.run import experiments, run, synthetic
from lovasz_repro.cli.runs import runs_app
from lovasz_repro.cli.weights import weights_app
from lovasz_repro.errors import RunFailed, UserError, one_line
from lovasz_repro.host.output import never_fail_to_encode, say, visible
from lovasz_repro.host.processes import stop_when_orphaned
from lovasz_repro.launch.rank import is_rank, tell

DEBUG = "LOVASZ_REPRO_DEBUG"
MOST_CHARACTERS = 1_000
"""Of an error: room for two long paths and, after them, for what to do."""
PATH_ERRORS = (
    errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
)  # fmt: skip

app = typer.Typer(
    name="lovasz-repro",
    help='Reproduce "The Lovász-Softmax loss" (CVPR 2018): experiments, tables, figures.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        say(f"lovasz-repro {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Options of every command; ``main`` has read ``--debug`` already."""


app.command()(synthetic)
app.command()(experiments)
app.command()(run)
app.command()(evaluate)
app.command()(predict)
app.command()(export)


@app.command("doctor")
def examine_installation(
    data: Data = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """What is installed and found, and what each missing thing is needed for."""
    from lovasz_repro.cli.doctor import examine, print_findings
    from lovasz_repro.data.locate import data_folder

    findings = examine(data_folder(data), results, tracking_uri)
    print_findings(findings, as_json)
    if not all(finding.ok for finding in findings if finding.essential):
        raise typer.Exit(1)


app.add_typer(data_app, name="data", no_args_is_help=True)
app.add_typer(weights_app, name="weights", no_args_is_help=True)
app.add_typer(report_app, name="report")
app.add_typer(runs_app, name="runs")
app.add_typer(bench_app, name="bench", no_args_is_help=True)


def main() -> None:
    """Entry point: turns errors into one line and an exit code.

    0 done, 1 a run failed, 2 a mistake in what was given, 130 / 143 stopped by Ctrl-C / SIGTERM.
    """
    if "--debug" in sys.argv:
        os.environ[DEBUG] = "1"  # also for the processes that this one starts
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if is_rank():  # DistributedDataParallel warns of an option that makes runs repeatable
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    stop_when_orphaned()
    never_fail_to_encode()
    with one_line_errors(bool(os.environ.get(DEBUG))), stopped_by_ctrl_c():
        leave(without_types_of_flags(get_command(app))(standalone_mode=False))


@contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Let every Ctrl-C end the process, unless the shell has it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_here)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop_here(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt; but while a module is imported the end of the process.

    Extension modules (PyTorch's, NumPy's) take an exception in an import for a missing module, and
    the command would go on.
    """
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            tell(KeyboardInterrupt(), describe(KeyboardInterrupt()))
            os._exit(exit_code(KeyboardInterrupt()))
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Print an error in one line, after its traceback with ``debug``, and exit with its code."""
    try:
        yield
    except SystemExit as end:
        if end.code == exit_code(KeyboardInterrupt()):  # the parser has made this of Ctrl-C
            tell(KeyboardInterrupt(), describe(KeyboardInterrupt()))
        leave(end.code)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        if line := describe(error):
            tell(error, line)
        leave(exit_code(error))


def leave(code: int | str | None) -> NoReturn:
    """End this process with an exit code.

    A rank goes at once: threads of its process group may wait for a rank that is gone, and gloo's
    now and then abort a process that ends in order.
    """
    if is_rank():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def describe(error: BaseException) -> str:
    """An error in one line, `MOST_CHARACTERS` at most; being asked to stop is none.

    Only of several mistakes found at once each has a line.
    """
    if isinstance(error, UserError) and len(error.args) > 1:
        return "\n".join(describe(UserError(mistake)) for mistake in error.args)
    if isinstance(error, KeyboardInterrupt):
        return "Stopped."
    text = str(error)
    if hasattr(error, "format_message"):  # of the command line, by typer
        text = f"Error: {error.format_message()}" if text else ""  # else help was asked for
        if type(error).__name__ == "BadOptionUsage":  # a value is missing, or one too many
            text = f"{text.removesuffix('.')}; --help says what it takes."
    elif of_a_path(error):
        text = f"Error: {error.filename}: {error.strerror}."
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output"
        text = f"Error: {where}: {error.strerror}. Make room and give the command again."
    elif isinstance(error, UserError | RunFailed):
        text = f"Error: {text}"
    elif not hasattr(error, "exit_code"):
        text = f"Error: unexpected {type(error).__name__}: {text} (--debug shows where)"
    return one_line(visible(" ".join(text.split())), MOST_CHARACTERS)


def of_a_path(error: BaseException) -> TypeGuard[OSError]:
    """Whether a path was given that cannot be: too long, a pipe in the place of a file, ..."""
    return isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None


def exit_code(error: BaseException) -> int:
    """2 for a user's mistake, 1 for a failure, or what the error itself asks for."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError) or of_a_path(error):
        return 2
    return int(getattr(error, "exit_code", 1))
