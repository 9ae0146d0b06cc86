"""How DeepLab is fed and how its answers come back to the pixels they are about."""

import pytest
import torch

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.examples import MEAN_BGR, to_caffe
from lovasz_repro.models.deeplab import small_deeplab
from lovasz_repro.run.networks import NETWORKS, caffe_on_the_grid, from_the_grid


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (9, 17), (10, 33), (37, 50)])
def test_an_answer_is_about_the_pixel_it_was_given_for(size: tuple[int, int]) -> None:
    """A network that answers with the row and column of every 8th pixel, upsampled, is exact."""
    images = torch.zeros(1, 3, *size, dtype=torch.uint8)
    padded = caffe_on_the_grid(images, False, torch.float32)
    assert all(side % 8 == 1 for side in padded.shape[-2:])
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in padded.shape[-2:])
    logits = torch.stack(torch.meshgrid(rows[::8], columns[::8], indexing="ij"))[None]
    found = from_the_grid(logits, size)
    assert found.shape[-2:] == size
    wanted = torch.stack(torch.meshgrid(rows[: size[0]], columns[: size[1]], indexing="ij"))
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-4)


def test_deeplab_sees_bgr_without_the_mean_and_the_mean_beyond_the_edge() -> None:
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 11)
    seen = caffe_on_the_grid(images, False, torch.float32)
    assert seen.shape == (1, 3, 9, 17)
    expected = torch.tensor([30.0, 20, 10]) - torch.tensor(MEAN_BGR)
    torch.testing.assert_close(seen[0, :, 4, 10], expected)
    assert torch.equal(seen[..., 11:], torch.zeros(1, 3, 9, 6))


def test_one_scale_sees_the_canvas_of_several() -> None:
    """DeepLab's test: every photograph continued to 513x513, larger ones to 8 n + 1."""
    voc = load_experiment("voc-multiclass")
    [cell] = voc.cells("paper", variants=["lovasz"])
    assert cell.evaluation.multi_scale is not None
    side = cell.evaluation.least_side
    assert side == cell.evaluation.multi_scale.least_side == 513
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (1, 3, 37, 520), generator=generator, dtype=torch.uint8)
    kind = NETWORKS["deeplab-v2"]
    seen = kind.on_canvas(side).prepare(images, False, torch.float32)
    assert seen.shape == (1, 3, 513, 521)
    assert torch.equal(seen[..., :37, :520], to_caffe(images))
    assert not seen[..., 37:, :].any()
    before = {"evaluation.least_side": None}
    [cell] = voc.cells("paper", variants=["lovasz"], overrides=before)
    assert kind.on_canvas(cell.evaluation.least_side) is kind


def test_the_grid_of_a_padded_image_is_the_networks() -> None:
    images = torch.zeros(1, 3, 37, 50, dtype=torch.uint8)
    model = small_deeplab(4).eval()
    with torch.inference_mode():
        logits = model(caffe_on_the_grid(images, False, torch.float32))
    assert logits.shape == (1, 4, 6, 8)
    assert from_the_grid(logits, (37, 50)).shape == (1, 4, 37, 50)


def test_the_papers_groups_of_the_binary_experiment() -> None:
    """A tenth of the rate for the backbone, no decay (jaccardSegment); the basis as DeepLab."""
    basis, cell, *_ = load_experiment("voc-binary").cells("paper")
    model = small_deeplab(21)
    groups = list(NETWORKS["deeplab-v2"].groups(model, cell.training))
    assert [(g["lr_multiplier"], g["weight_decay"]) for g in groups] == [(0.1, 0), (1, 0), (1, 0)]
    groups = list(NETWORKS["deeplab-v2"].groups(model, basis.training))
    assert [(g["lr_multiplier"], g["weight_decay"]) for g in groups] == [
        (1, 5e-4),
        (10, 5e-4),
        (20, 0),
    ]
