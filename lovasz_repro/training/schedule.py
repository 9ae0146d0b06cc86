"""Learning rate as a function of the iteration."""


def poly(base: float, iteration: int, iterations: int, power: float = 0.9) -> float:
    """``base * (1 - iteration / iterations) ** power``: Eq. 16, "poly".

    Args:
        base: learning rate of iteration 0.
        iteration: k, steps already taken, 0 <= k <= iterations.
        iterations: max_iter.
        power: 0.9 in the paper.

    Raises:
        ValueError: iteration outside [0, iterations], or no iterations.
    """
    if not 0 <= iteration <= iterations or iterations < 1:
        raise ValueError(f"iteration {iteration} is outside the schedule [0, {iterations}]")
    return base * (1 - iteration / iterations) ** power


def step(base: float, iteration: int, iterations: int) -> float:
    """``base`` in the first half, a fifth of it in the second (Sec. 4.2).

    Args:
        base: learning rate of the first half.
        iteration: steps already taken, 0 <= iteration <= iterations.
        iterations: of the whole training.

    Raises:
        ValueError: iteration outside [0, iterations], or no iterations.
    """
    if not 0 <= iteration <= iterations or iterations < 1:
        raise ValueError(f"iteration {iteration} is outside the schedule [0, {iterations}]")
    return base if 2 * iteration < iterations else base / 5
