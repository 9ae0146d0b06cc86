"""``--help`` of every command: what a flag takes, and what holds where an option is not given."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from lovasz_repro.cli import app
from lovasz_repro.cli.options import without_types_of_flags

OBVIOUS = {"--set", "--sbatch", "--crf-set", "--scales", "--fusion", "--least-side", "--rdzv",
           "--submission", "--root", "--url", "--experiment", "--run", "--without"}  # fmt: skip
"""Where nothing is changed, written or narrowed; or whose default the option above them says."""


def every_command(command: Any, context: typer.Context) -> Iterator[tuple[Any, typer.Context]]:
    yield command, context
    for name, found in getattr(command, "commands", {}).items():
        yield from every_command(found, typer.Context(found, context, info_name=name))


def commands() -> list[Any]:
    root = without_types_of_flags(get_command(app))
    return list(every_command(root, typer.Context(root, **root.context_settings)))


@pytest.mark.parametrize(("command", "context"), commands(), ids=lambda x: getattr(x, "name", ""))
def test_help(command, context, capsys):
    print(command.get_help(context))
    shown = capsys.readouterr().out
    assert "<bool>" not in shown
    assert "--help" in shown
    assert "-h " in shown
    for option in command.params:
        if option.param_type_name == "option" and not option.is_flag and not option.required:
            told = option.default not in (None, "", [], ()) or "efault" in option.help
            assert told or OBVIOUS & set(option.opts), f"{command.name} {option.opts}: no default"
