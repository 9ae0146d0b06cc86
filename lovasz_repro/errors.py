"""The two ways a command ends badly; each is one line: what is wrong, where, what to do."""


class UserError(Exception):
    """A mistake in what the user gave (option, file, data, config). Exit code 2."""


class RunFailed(Exception):
    """A run that could not go on (loss not finite, disk full). Exit code 1; nothing is lost."""
