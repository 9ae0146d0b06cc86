"""Batches as a function of seed and iteration."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.data.sampling import Draw, ShuffledBatches, mix

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


@given(
    dataset_size=sizes,
    batch_size=st.integers(1, 12),
    start=st.integers(0, 20),
    seed=st.integers(0, 2**31 - 1),
)
def test_starting_late_gives_the_same_batches(
    dataset_size: int, batch_size: int, start: int, seed: int
) -> None:
    whole = batches(dataset_size, batch_size, 20, seed=seed)
    late = ShuffledBatches(dataset_size, batch_size, 20, seed=seed, start=start)
    assert list(late) == whole[start:]
    assert len(late) == len(whole[start:])


def test_positions_count_every_draw() -> None:
    positions = [draw.position for batch in batches(7, 3, 5) for draw in batch]
    assert positions == list(range(15))


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
