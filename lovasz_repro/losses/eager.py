"""Losses inside a compiled model: torch.compile runs them as they are."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile out of a function that reads label counts on the host.

    Traced, it would be compiled anew for the counts of every batch. ``torch.compiler.disable``
    does the same, but as a decorator it imports the compiler with the losses, which takes longer
    than any of them; here it is imported where something is being compiled.
    """
    disabled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    return call
