"""How a loss is called: its options by name, outside torch.compile, torch.func and tracing."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "ignore": "ignore_index",
    "class_weight": "class_weights",
    "weight": "class_weights",
}
"""Options by the names that they have in other libraries."""
HOST = "it reads the counts of the labels on the host"


def eager(
    function: Callable[P, R], in_graph: Callable[..., bool] = lambda *_, **__: False
) -> Callable[P, R]:
    """Keep torch.compile out of a function that reads label counts on the host.

    But for calls of which ``in_graph`` says that they do not.

    Traced, it would be compiled anew for the counts of every batch. ``torch.compiler.disable``
    does the same, but as a decorator it imports the compiler with the losses, which takes longer
    than any of them; here it is imported where something is being compiled. What cannot leave the
    graph for the host, such as ``torch.jit.trace`` and ``torch.func.vmap``, is refused.
    """
    known = frozenset(inspect.signature(function).parameters)
    disabled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not known.issuperset(kwargs):
            refuse_unknown(function.__name__, function, kwargs)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise RuntimeError(f"{function.__name__} cannot be traced: {HOST}; trace the network")
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if not torch._C._are_functorch_transforms_active():
                raise
            raise RuntimeError(
                f"{function.__name__} does not work in this transform of torch.func: {HOST}, and "
                "its gradient is for backward() and torch.autograd.grad"
            ) from error

    @functools.wraps(function)
    def outside_the_graph(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if not torch.compiler.is_compiling():
            return call(*args, **kwargs)
        if in_graph(*args, **kwargs):
            return function(*args, **kwargs)
        if disabled is None:
            disabled = _not_in_a_fullgraph(call)
        return disabled(*args, **kwargs)

    return outside_the_graph


def _not_in_a_fullgraph(function: Callable[P, R]) -> Callable[P, R]:
    """Run eagerly in compiled code; with ``fullgraph=True`` PyTorch refuses, citing these lines."""
    reason = f"{HOST}: compile the network alone, or not with fullgraph=True"
    try:
        return torch.compiler.disable(function, reason=reason)
    except TypeError:  # PyTorch before 2.8 takes no reason
        return torch.compiler.disable(function)


def refuse_unknown(called: str, function: Callable[..., object], options: Iterable[str]) -> None:
    """Refuse options that a loss, or its module, does not have.

    Raises:
        TypeError: naming the option, and the one of that meaning or all there are.
    """
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known:
            there = [item for item in known if item not in ("logits", "labels")]
            hint = f"it has {', '.join(there)}"
            if ELSEWHERE.get(name) in known:
                hint = f"here it is {ELSEWHERE[name]}"
            raise TypeError(f"{called} has no option {name}; {hint}")
