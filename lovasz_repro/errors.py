"""The two ways a command ends badly; each is one line: what is wrong, where, what to do."""


class UserError(Exception):
    """A mistake in what the user gave (option, file, data, config). Exit code 2.

    Several mistakes found at once are an argument, and a line, each.
    """

    def __str__(self) -> str:
        return " ".join(str(mistake) for mistake in self.args)


class RunFailed(Exception):
    """A run that could not go on (loss not finite, disk full). Exit code 1; nothing is lost."""


def install(extra: str = "") -> str:
    """The command, given in the repository, that installs the tool, or an optional part of it."""
    what = f"'.[{extra}]'" if extra else "."
    return f"pip install -c constraints.txt {what}"


def one_line(text: str, most: int) -> str:
    """``text`` in one line of at most ``most`` characters; what is left out is its middle."""
    line = " ".join(text.split())
    kept = (most - 5) // 2
    return line if len(line) <= most else f"{line[:kept]} ... {line[-kept:]}"
