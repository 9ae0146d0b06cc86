"""The grid of the binary experiment: what starts from what, and how it is narrowed."""

import pytest

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import config_hash

LOSSES = ("cross-entropy", "hinge", "lovasz-hinge", "soft-iou")


def test_the_papers_grid() -> None:
    """Sec. 4.2: 20 classes, 2 epochs of 10,582 draws in batches of 10, after one basis."""
    basis, *cells = load_experiment("voc-binary").cells("paper")
    assert (basis.variant, basis.data.category, basis.training.iterations) == ("basis", None, 20000)
    assert basis.model.weights == "deeplab-coco"
    assert [(c.data.category, c.variant) for c in cells] == [
        (category, loss) for category in VOC.names[1:] for loss in LOSSES
    ]
    for cell in cells:
        assert cell.start == basis
        assert cell.scale == "paper"
        training = cell.training
        assert (training.iterations, training.lr) == (2118, 5e-4)
        assert training.weight_decay == 0
        assert 2 * 10582 <= training.iterations * training.batch_size < 2 * 10582 + 20


def test_what_the_paper_does_not_say_is_the_authors_own() -> None:
    """bermanmaxim/jaccardSegment trains the binary networks, DeepLab's recipe the basis."""
    basis, *cells = load_experiment("voc-binary").cells("paper")
    assert (basis.data.augmentation, basis.loss.resolution) == ("deeplab", "output")
    for cell in cells:
        assert cell.data.augmentation == "jaccard-segment"
        assert cell.loss.resolution == "output-cells"
        assert cell.training.schedule == "step-one-earlier"
    assert {cell.model.bn_eps for cell in (basis, *cells)} == {1e-3}


def test_narrowing_keeps_the_basis() -> None:
    loaded = load_experiment("voc-binary")
    names = [c.name for c in loaded.cells("demo", variants=["hinge"], categories=["cat"])]
    assert names == ["basis-b10-s0", "hinge-cat-b10-s0"]
    alone = loaded.cells("demo", variants=["hinge"], categories=["cat"], with_basis=False)
    assert [(c.name, c.start) for c in alone] == [("hinge-cat-b10-s0", None)]
    assert [c.name for c in loaded.cells("demo", variants=["basis"])] == ["basis-b10-s0"]


def test_every_seed_has_a_basis_of_its_own() -> None:
    cells = load_experiment("voc-binary").cells(
        "demo", variants=["hinge"], categories=["cat", "person"], seeds=[0, 1]
    )
    assert [c.name for c in cells] == [
        "basis-b10-s0", "hinge-cat-b10-s0", "hinge-person-b10-s0",
        "basis-b10-s1", "hinge-cat-b10-s1", "hinge-person-b10-s1",
    ]  # fmt: skip
    assert cells[4].start == cells[3]


def test_another_basis_is_another_run() -> None:
    loaded = load_experiment("voc-binary")
    first, second = (
        loaded.cells("demo", variants=["hinge"], categories=["cat"], overrides=overrides)[1]
        for overrides in ({}, {"training.power": 0.5})
    )
    assert first.params["training.lr"] == second.params["training.lr"]
    assert config_hash(first.model_dump(mode="json")) != config_hash(second.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.size": [320, 320]}, "8 n \\+ 1 pixels"),
        ({"data.size": [97, 105]}, "square"),
        ({"data.images": "features"}, "go together"),
        ({"data.name": "camvid"}, "data.category is of the data set voc and own alone"),
        ({"loss.terms": {"lovasz_softmax": 1.0}}, "with data.category the losses are"),
        ({"model.weights": "enet-cityscapes"}, "are of enet, not of deeplab-v2-small"),
        ({"model.name": "enet"}, "enet does not train on voc"),
        ({"evaluation.unlabelled": "kept"}, "of the data set cityscapes alone"),
    ],
)
def test_impossible_combinations_are_one_line(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_experiment("voc-binary").cells("demo", variants=["hinge"], overrides=overrides)
    assert "\n" not in str(caught.value)


def test_binary_losses_need_a_category() -> None:
    with pytest.raises(UserError, match=r"hinge needs a data\.category"):
        load_experiment("camvid-enet").cells("demo", overrides={"loss.terms": {"hinge": 1.0}})
    with pytest.raises(UserError, match="camvid-enet has no class 'cat'"):
        load_experiment("camvid-enet").cells("demo", categories=["cat"])
