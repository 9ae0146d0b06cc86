"""Module forms call their functions with the options they were given."""

import subprocess
import sys

import pytest
import torch

from lovasz_repro import losses

MULTICLASS = {
    losses.LovaszSoftmax: (losses.lovasz_softmax, {"classes": "all", "per_image": True}),
    losses.CrossEntropy: (losses.cross_entropy, {}),
}
BINARY = {
    losses.LovaszHinge: losses.lovasz_hinge,
    losses.BinaryCrossEntropy: losses.binary_cross_entropy,
    losses.Hinge: losses.hinge,
    losses.SoftIoU: losses.soft_iou,
}


OVERLAPS = {
    losses.SoftDice: losses.soft_dice,
    losses.SoftJaccard: losses.soft_jaccard,
}


@pytest.mark.parametrize("module", OVERLAPS, ids=lambda m: m.__name__)
def test_soft_overlap_modules(module) -> None:
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    options = {"classes": "all", "per_image": True, "ignore_index": 3}
    assert torch.equal(
        module(**options)(logits, labels), OVERLAPS[module](logits, labels, **options)
    )


@pytest.mark.parametrize("module", MULTICLASS, ids=lambda m: m.__name__)
def test_multiclass_modules(module) -> None:
    function, options = MULTICLASS[module]
    options = options | {"ignore_index": 3, "class_weights": [1.0, 2.0, 0.5, 1.0]}
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    built = module(**options)
    assert torch.equal(built(logits, labels), function(logits, labels, **options))
    assert torch.equal(module()(logits, labels), function(logits, labels))
    assert not built.state_dict()
    assert "ignore_index=3, class_weights=[1.0, 2.0, 0.5, 1.0]" in repr(built)
    assert torch.equal(built.double()(logits, labels), function(logits, labels, **options))


@pytest.mark.parametrize("module", BINARY, ids=lambda m: m.__name__)
def test_binary_modules(module) -> None:
    logits, labels = torch.randn(3, 5, 5), torch.randint(0, 2, (3, 5, 5))
    labels[0, 0] = 255
    for per_image in (True, False):
        built = module(per_image=per_image, ignore_index=255)
        expected = BINARY[module](logits, labels, per_image=per_image, ignore_index=255)
        assert torch.equal(built(logits, labels), expected)
        assert f"per_image={per_image}, ignore_index=255" in repr(built)


def test_pixel_weights_go_with_the_labels() -> None:
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    weight = torch.rand(2, 5, 5)
    softmax = losses.LovaszSoftmax(weight_background=False)(logits, labels, weight)
    assert torch.equal(
        softmax,
        losses.lovasz_softmax(logits, labels, pixel_weight=weight, weight_background=False),
    )
    hinge = losses.LovaszHinge(method="sort")(logits[:, 0], labels == 1, weight)
    assert torch.equal(hinge, losses.lovasz_hinge(logits[:, 0], labels == 1, pixel_weight=weight))


@pytest.mark.parametrize("module", [*MULTICLASS, *BINARY], ids=lambda m: m.__name__)
def test_an_unknown_option_is_refused_at_once(module) -> None:
    with pytest.raises(TypeError, match=f"{module.__name__} has no option reduction"):
        module(reduction="mean")


@pytest.mark.parametrize("module", [losses.LovaszSoftmax, losses.LovaszHinge])
def test_weights_of_pixels_go_with_a_batch(module) -> None:
    with pytest.raises(TypeError, match=r"loss\(logits, labels, pixel_weight\)"):
        module(pixel_weight=torch.ones(2, 5, 5))


def test_weighted_sum_module() -> None:
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    built = losses.WeightedSum([losses.CrossEntropy(), losses.LovaszSoftmax()], [1.0, 0.5])
    expected = losses.cross_entropy(logits, labels) + 0.5 * losses.lovasz_softmax(logits, labels)
    torch.testing.assert_close(built(logits, labels), expected)
    assert "LovaszSoftmax" in repr(built)
    assert "weights=(1.0, 0.5)" in repr(built)
    with pytest.raises(ValueError, match="at least one loss"):
        losses.WeightedSum([])


def test_everything_public_is_exported() -> None:
    assert set(losses.__all__) == {
        name
        for name, item in vars(losses).items()
        if callable(item) and item.__module__.startswith("lovasz_repro.losses.")
    }


def test_imports_nothing_else_of_the_project() -> None:
    code = (
        "import sys, lovasz_repro.losses\n"
        "ours = [m for m in sys.modules if m.split('.')[0] == 'lovasz_repro']\n"
        "print([m for m in ours if not (m + '.').startswith('lovasz_repro.losses.')])\n"
        "heavy = ('mlflow', 'pandas', 'matplotlib', 'numba', 'torch._dynamo')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines() == ["['lovasz_repro']", "[]"]
