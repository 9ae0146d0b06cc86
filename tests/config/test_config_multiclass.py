"""The multiclass VOC experiment: the recipe of Sec. 4.3, its profiles, and what is refused."""

import pytest

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.errors import UserError

EXPERIMENT = load_experiment("voc-multiclass")
ROWS = ["x-loss", "x-loss-equibatch", "x-loss-equibatch-30k",
        "lovasz", "lovasz-equibatch", "lovasz-equibatch-30k"]  # fmt: skip


def cells(profile: str = "paper", **grid: object) -> dict[str, CellConfig]:
    return {cell.name: cell for cell in EXPERIMENT.cells(profile, **grid)}  # type: ignore[arg-type]


def test_the_paper_profile_has_the_recipe_of_section_4_3() -> None:
    grid = cells()
    assert [cell.variant for cell in grid.values()] == [
        *ROWS,
        "lovasz-all-classes",
        "lovasz-per-image",
    ]
    for cell in grid.values():
        training = cell.training
        assert cell.scale == "paper"
        assert (training.batch_size, training.lr, training.power) == (10, 2.5e-4, 0.9)
        assert (training.optimizer, training.weight_decay) == ("sgd", 5e-4)
        assert training.lr_multipliers == (1, 10, 20)
        assert training.iterations == (30000 if "30k" in cell.variant else 20000)
        assert cell.data.size == (321, 321)
        assert cell.data.flip
        assert cell.data.equibatch == ("equibatch" in cell.variant)
        assert list(cell.loss.terms) == [
            "cross_entropy" if cell.variant.startswith("x-loss") else "lovasz_softmax"
        ]
        assert cell.evaluation.multi_scale
        assert cell.evaluation.multi_scale.scales == [1.0, 0.75, 0.5]
        assert cell.evaluation.multi_scale.fusion == "probabilities"
        crf = cell.evaluation.crf
        assert crf
        assert (crf.iterations, crf.smoothness_weight, crf.smoothness_xy) == (10, 3, 1)
        assert (crf.bilateral_weight, crf.bilateral_xy, crf.bilateral_rgb) == (4, 67, 3)
        assert cell.evaluation.batches
        assert (cell.evaluation.batches.count, cell.evaluation.batches.size) == (20, 21)


@pytest.mark.parametrize("end", ["", "-equibatch", "-equibatch-30k"])
def test_only_the_loss_is_swapped(end: str) -> None:
    """Sec. 4.3, of each pair of Table 2."""
    of = {cell.variant: cell for cell in cells().values()}
    ours, theirs = (
        of[start + end].model_dump(exclude={"variant", "loss"}) for start in ("lovasz", "x-loss")
    )
    assert ours == theirs
    assert of["lovasz" + end].loss != of["x-loss" + end].loss


def test_lovasz_softmax_is_over_the_present_classes_of_the_batch_but_where_the_name_says() -> None:
    chosen = {
        cell.variant: (cell.loss.classes, cell.loss.per_image)
        for cell in cells("features", batch_sizes=[10], seeds=[0]).values()
        if "lovasz_softmax" in cell.loss.terms
    }
    assert chosen == {
        "lovasz": ("present", False),
        "lovasz-equibatch": ("present", False),
        "lovasz-all-classes": ("all", False),
        "lovasz-per-image": ("all", True),
        "lovasz-per-image-present": ("present", True),
    }


def test_the_trainval_profile_trains_on_validation_images_and_scores_nothing_on_them() -> None:
    for cell in cells("trainval").values():
        assert cell.scale == "paper"
        assert cell.data.train_split == "trainval_aug"
        evaluation = cell.evaluation
        assert evaluation.snapshot == "last"
        assert (evaluation.multi_scale, evaluation.crf, evaluation.batches) == (None, None, None)
    assert [cell.variant for cell in cells("trainval").values()] == [
        "x-loss",
        "x-loss-equibatch",
        "lovasz-equibatch-30k",
    ]


def test_every_run_of_features_starts_from_one_basis_network_per_seed() -> None:
    grid = cells("features")
    bases = [cell for cell in grid.values() if cell.variant == "basis"]
    assert [(cell.seed, cell.training.batch_size) for cell in bases] == [(0, 10), (1, 10)]
    for cell in grid.values():
        if cell.variant != "basis":
            assert cell.start == bases[cell.seed]
    sizes = [cell.training.batch_size for cell in grid.values() if cell.variant == "lovasz"]
    assert sizes == [2, 2, 5, 5, 10, 10, 20, 20]


def test_a_profile_keeps_to_its_variants_unless_others_are_named() -> None:
    assert "lovasz-per-image-present-b10-s0" not in cells()
    assert list(cells(variants=["lovasz-per-image-present"])) == ["lovasz-per-image-present-b10-s0"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"training.iter_size": 11}, "iter_size 11 leaves parts of a batch of 10 empty"),
        ({"training.iter_size": 2, "training.batch_norm": "train"}, "set batch_norm to frozen"),
        ({"evaluation.multi_scale": None}, "crf refines multi_scale predictions"),
        ({"evaluation.multi_scale.scales": [0.3]}, "multiple of 0.125"),
        ({"evaluation.multi_scale.scales": []}, "at least 1 item"),
        ({"evaluation.crf.bilateral_rgb": 0}, "greater than 0"),
        ({"evaluation.crf.bilateral": 3}, "unknown key evaluation.crf.bilateral"),
        ({"evaluation.snapshot": "best", "data.train_split": "trainval_aug"}, "snapshot to last"),
        ({"data.train_split": "train"}, "train_aug"),
        ({"data.category": "cat"}, "with data.category the losses are"),
        (
            {"model.name": "callable", "model.callable": "mine:net", "model.weights": None},
            "evaluation.multi_scale and evaluation.crf are of DeepLab-v2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    overrides: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError) as error:
        cells(overrides=overrides)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"data.equibatch": True}, "batches are balanced"),
        ({"evaluation.batches.count": 5}, "evaluation.batches is of all classes"),
        ({"evaluation.multi_scale.least_side": 97}, "evaluation.multi_scale is of all classes"),
    ],
)
def test_one_category_has_no_multiclass_evaluation(
    overrides: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        load_experiment("voc-binary").cells(
            "paper", variants=["hinge"], categories=["cat"], overrides=overrides
        )
