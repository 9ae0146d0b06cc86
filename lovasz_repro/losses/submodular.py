"""Is a set function submodular (Definition 1, Eq. 7)? If not, its extension is not convex.

A function of counts is submodular if and only if its gains never grow: one more false negative or
false positive adds at most as much after another one as before it. That is Eq. 7 for the sets
A = S + {x} and B = S + {y}, from which it follows for all sets.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .set_functions import CountFunction, Counts, SetFunction

# Rounding of four float64 values of order one.
ROUNDING_ERROR = 1e-12


def check_submodular(
    set_function: SetFunction, *, max_foreground: int = 8, max_background: int = 8
) -> None:
    """Refuse a set function that is not submodular, with a counterexample.

    Every pair of pixels after every set of mispredictions is tried, for all ground truths of up
    to the given numbers of pixels. A function that passes may still fail at larger numbers.

    Args:
        set_function: the function to try.
        max_foreground: largest number of foreground pixels tried, at least 0.
        max_background: largest number of background pixels tried, at least 0.

    Raises:
        ValueError: the function is not 0 for the empty set, not finite, or not submodular; the
            message gives the ground truth and the two sets of mispredictions that show it.
    """
    counts = _all_counts(max_foreground, max_background)
    possible = counts.false_negatives <= counts.foreground_size
    possible &= counts.false_positives <= counts.pixels - counts.foreground_size
    values = set_function(Counts(*(count.clone() for count in counts))).double()
    values = values.expand(possible.shape).masked_fill(~possible, 0.0)
    empty = (counts.false_negatives + counts.false_positives) == 0
    for wrong, rule in (~values.isfinite(), "must be finite"), ((values != 0) & empty, "must be 0"):
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{set_function} is {values[*at]:g} with {_truth(at)}, {_missed(*at[2:])} "
                f"mispredicted; {rule}"
            )
    for first, second in (((1, 0), (1, 0)), ((0, 1), (0, 1)), ((1, 0), (0, 1))):
        _check_pair(set_function, values, possible, first, second)


def checked(set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor]) -> SetFunction:
    """A set function, or a plain function made one, after :func:`check_submodular`.

    What can be hashed is checked once.
    """
    try:
        return _checked_once(set_function)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
    return _checked(set_function)


def _checked(set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor]) -> SetFunction:
    if not isinstance(set_function, SetFunction):
        set_function = CountFunction(set_function)
    check_submodular(set_function)
    return set_function


_checked_once = functools.lru_cache(maxsize=64)(_checked)


def _all_counts(foreground: int, background: int) -> Counts:
    """Counts over (G, B, fn, fp): every ground truth of G and B pixels and every misprediction."""
    sizes = [foreground + 1, background + 1, foreground + 1, background + 1]
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") for size in sizes]
    size, rest, fn, fp = torch.meshgrid(*axes, indexing="ij")
    return Counts(fn, fp, size, size + rest)


def _check_pair(
    set_function: SetFunction,
    values: Tensor,
    possible: Tensor,
    first: tuple[int, int],
    second: tuple[int, int],
) -> None:
    """Eq. 7 for S + {x} and S + {y}: first and second are what x and y add to (fn, fp)."""
    both = (first[0] + second[0], first[1] + second[1])
    rows, columns = (size - more for size, more in zip(values.shape[2:], both, strict=True))
    if rows <= 0 or columns <= 0:
        return

    def shifted(grid: Tensor, by: tuple[int, int]) -> Tensor:
        return grid[..., by[0] : by[0] + rows, by[1] : by[1] + columns]

    lack = shifted(values, both) + shifted(values, (0, 0))
    lack = lack - shifted(values, first) - shifted(values, second)
    wrong = (lack > ROUNDING_ERROR) & shifted(possible, both)
    if not wrong.any():
        return
    at = wrong.nonzero()[0].tolist()
    fn, fp = at[2:]
    truth = values[at[0], at[1]]
    a, b, union, intersection = (
        truth[fn + by[0], fp + by[1]].item() for by in (first, second, both, (0, 0))
    )
    raise ValueError(
        f"{set_function} is not submodular, so its Lovász extension is not convex: with "
        f"{_truth(at)}, let A mispredict {_missed(fn + first[0], fp + first[1])}, B "
        f"{_missed(fn + second[0], fp + second[1])}, all but one of each in common; then "
        f"f(A) + f(B) = {a:.6g} + {b:.6g} is less than "
        f"f(A or B) + f(A and B) = {union:.6g} + {intersection:.6g} (Eq. 7)"
    )


def _truth(at: list[int]) -> str:
    return f"{at[0]} foreground and {at[1]} background pixels"


def _missed(false_negatives: int, false_positives: int) -> str:
    return f"{false_negatives} foreground and {false_positives} background"
