"""Batches that have every class against all sets of a few images."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.data.voc import presence_of
from lovasz_repro.evaluation import covering_batches as module
from lovasz_repro.evaluation.covering_batches import covering_batches
from tests.conftest import real_data


@st.composite
def presences(draw: st.DrawFn) -> np.ndarray:
    images, classes = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    cells = st.lists(st.booleans(), min_size=images * classes, max_size=images * classes)
    return np.array(draw(cells)).reshape(images, classes)


@given(presence=presences(), size=st.integers(1, 9), seed=st.integers(0, 2**31 - 1))
def test_batches_have_every_class_exactly_where_some_batch_has(
    presence: np.ndarray, size: int, seed: int
) -> None:
    possible = any(
        presence[list(batch)].any(axis=0).all()
        for batch in itertools.combinations(range(len(presence)), size)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_DRAWS", 2000)  # of at most 70 sets
        if not possible:
            with pytest.raises(ValueError, match="no"):
                covering_batches(presence, 3, size, seed=seed)
            return
        batches = covering_batches(presence, 3, size, seed=seed)
        assert covering_batches(presence, 2, size, seed=seed) == batches[:2]
    for batch in batches:
        assert len(set(batch)) == len(batch) == size
        assert all(type(image) is int and 0 <= image < len(presence) for image in batch)
        assert presence[batch].any(axis=0).all()


def test_every_batch_with_every_class_is_as_likely() -> None:
    presence = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    covering = {
        batch
        for batch in itertools.combinations(range(5), 2)
        if presence[list(batch)].any(axis=0).all()
    }
    assert covering == {(0, 3), (1, 3), (1, 4)}
    drawn = Counter(tuple(sorted(b)) for b in covering_batches(presence, 1200, 2, seed=0))
    assert set(drawn) == covering
    assert all(330 < count < 470 for count in drawn.values())  # 400 +- 4 deviations of 16.3


def test_seeds_and_batches_differ() -> None:
    presence = np.ones((100, 2), dtype=bool)
    drawn = [tuple(b) for seed in range(4) for b in covering_batches(presence, 5, 21, seed=seed)]
    assert len(set(drawn)) == 20


def test_why_there_are_no_batches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    presence = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match=r"batch of 5 different images .* from 4"):
        covering_batches(presence, 1, 5, seed=0)
    with pytest.raises(ValueError, match="batch of 0 different images"):
        covering_batches(presence, 1, 0, seed=0)
    with pytest.raises(ValueError, match="no image contains class 2"):
        covering_batches(presence[:2], 1, 2, seed=0)
    monkeypatch.setattr(module, "MOST_DRAWS", 50)
    with pytest.raises(ValueError, match="none of 50 random batches of 3 images has all 4"):
        covering_batches(presence, 1, 3, seed=0)


def test_the_batches_of_the_paper_on_the_real_validation_set() -> None:
    root: Path = real_data("voc")
    presence = presence_of(root, "val")
    batches = covering_batches(presence, seed=0)
    assert [len(set(batch)) for batch in batches] == [21] * 20
    assert all(presence[batch].any(axis=0).all() for batch in batches)
    assert len({image for batch in batches for image in batch}) > 300  # of 1,449
