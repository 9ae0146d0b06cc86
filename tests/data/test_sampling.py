"""Batches as a function of seed and iteration."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.data.sampling import (
    BalancedBatches,
    Batches,
    Draw,
    EquibatchBatches,
    ShareOfBatches,
    ShuffledBatches,
    mix,
)

sizes = st.integers(1, 40)


def batches(dataset_size: int, batch_size: int, iterations: int, seed: int = 0) -> list[list[Draw]]:
    return list(ShuffledBatches(dataset_size, batch_size, iterations, seed=seed))


@given(dataset_size=sizes, batch_size=st.integers(1, 12), iterations=st.integers(0, 30))
def test_every_image_is_drawn_equally_often(
    dataset_size: int, batch_size: int, iterations: int
) -> None:
    drawn = [d.image for batch in batches(dataset_size, batch_size, iterations) for d in batch]
    epochs = len(drawn) // dataset_size
    for epoch in range(epochs):
        part = drawn[epoch * dataset_size : (epoch + 1) * dataset_size]
        assert sorted(part) == list(range(dataset_size))
    assert all(count <= epochs + 1 for count in Counter(drawn).values())


def sampler(kind: str, size: int, batch_size: int, seed: int, start: int = 0) -> Batches:
    """Nine batches; image k shows class k mod 3, and the category where k is even."""
    images, how = np.arange(size), {"seed": seed, "start": start}
    if kind == "shuffled":
        return ShuffledBatches(size, batch_size, 9, **how)
    if kind == "equibatch":
        return EquibatchBatches(images[:, None] % 3 == np.arange(3), batch_size, 9, **how)
    return BalancedBatches(images % 2 == 0, batch_size, 9, **how)


@pytest.mark.parametrize("kind", ["shuffled", "equibatch", "balanced"])
@given(
    size=st.integers(2, 30),
    batch_size=st.integers(1, 7),
    start=st.integers(0, 9),
    seed=st.integers(0, 2**31 - 1),
)
def test_batches_resume_anywhere_and_are_shared_among_ranks(
    kind: str, size: int, batch_size: int, start: int, seed: int
) -> None:
    whole = list(sampler(kind, size, batch_size, seed))
    late = sampler(kind, size, batch_size, seed, start)
    assert list(late) == whole[start:]
    assert len(late) == 9 - start
    assert [d.position for batch in whole for d in batch] == list(range(9 * batch_size))
    middle = batch_size // 2
    shares = [
        list(ShareOfBatches(sampler(kind, size, batch_size, seed), own))
        for own in (slice(0, middle), slice(middle, None))
    ]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_seeds_and_epochs_shuffle_differently() -> None:
    first, second = batches(50, 50, 2)
    assert [d.image for d in first] != [d.image for d in second]
    assert [d.image for d in first] != [d.image for d in batches(50, 50, 1, seed=1)[0]]


def test_mix_spreads_nearby_seeds() -> None:
    values = {mix(seed, counter) for seed in range(50) for counter in range(50)}
    assert len(values) == 2500
    ones = sum(value & 1 for value in values)
    assert 1100 < ones < 1400  # a fair coin: 1250 +- 3 standard deviations of 25
    assert all(0 <= value < 2**63 for value in values)


@st.composite
def presences(draw: st.DrawFn) -> np.ndarray:
    """Which of a few images contains which of a few classes; some class is somewhere."""
    images, classes = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    cells = draw(
        st.lists(st.booleans(), min_size=images * classes, max_size=images * classes).filter(any)
    )
    return np.array(cells).reshape(images, classes)


@given(presence=presences(), batch_size=st.integers(1, 7), seed=st.integers(0, 2**31 - 1))
def test_equibatch_shows_every_class_in_any_as_many_draws_as_classes(
    presence: np.ndarray, batch_size: int, seed: int
) -> None:
    sampler = EquibatchBatches(presence, batch_size, 40, seed=seed)
    images = [draw.image for batch in sampler for draw in batch]
    occurring = np.flatnonzero(presence.any(axis=0))
    for first in range(len(images) - len(occurring) + 1):
        window = images[first : first + len(occurring)]
        shown = presence[window].any(axis=0)
        assert shown[occurring].all()


@given(presence=presences(), seed=st.integers(0, 2**31 - 1))
def test_equibatch_shows_the_images_of_a_class_equally_often(
    presence: np.ndarray, seed: int
) -> None:
    occurring = int(presence.any(axis=0).sum())
    images = [d.image for batch in EquibatchBatches(presence, 1, 40, seed=seed) for d in batch]
    for place in range(occurring):
        own = images[place::occurring]
        fitting = [c for c in range(presence.shape[1]) if presence[own, c].all()]
        candidates = [np.flatnonzero(presence[:, c]).tolist() for c in fitting]
        assert any(
            set(own) <= set(some)
            and max(own.count(i) for i in some) - min(own.count(i) for i in some) <= 1
            for some in candidates
        )


def test_equibatch_orders_classes_and_images_by_the_seed() -> None:
    presence = np.eye(20, dtype=bool).repeat(5, axis=0)
    orders = {
        tuple(d.image for d in next(iter(EquibatchBatches(presence, 20, 1, seed=s))))
        for s in range(4)
    }
    assert len(orders) == 4
    rounds = list(EquibatchBatches(presence, 100, 2, seed=0))
    assert [d.image for d in rounds[0]] != [d.image for d in rounds[1]]


def test_equibatch_needs_a_class_somewhere() -> None:
    with pytest.raises(ValueError, match="no image contains any class"):
        EquibatchBatches(np.zeros((3, 2), dtype=bool), 2, 1, seed=0)


# -- half with a category, half without ---------------------------------------------------------


def test_balanced_batches_show_a_category_half_of_the_time() -> None:
    positive = np.arange(50) % 10 == 0  # 5 of 50
    drawn = [d.image for batch in BalancedBatches(positive, 10, 400, seed=1) for d in batch]
    seen = Counter(drawn)
    shown = sum(count for image, count in seen.items() if positive[image])
    assert len(drawn) == 4000
    assert abs(shown - 2000) < 4 * 1000**0.5  # 4 standard deviations of 4,000 fair coins
    rates = [[seen[i] for i in range(50) if positive[i] == kind] for kind in (True, False)]
    assert min(rates[0]) > 320  # 400 each on average
    assert max(rates[0]) < 480
    assert min(rates[1]) > 15  # 44 each
    assert max(rates[1]) < 80


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_balanced_batches_need_images_of_both_kinds(positive: list[bool]) -> None:
    with pytest.raises(ValueError, match="with the category"):
        BalancedBatches(np.array(positive, dtype=bool), 2, 3, seed=0)
