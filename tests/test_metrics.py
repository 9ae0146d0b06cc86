"""Metrics against a plain loop over pixels, torchmetrics and scores worked out by hand."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from lovasz_repro.metrics import (
    INTEGERS,
    BatchIoU,
    ConfusionMatrix,
    ImageIoU,
    batch_miou,
    binary_image_iou,
    image_iou,
    image_miou,
    pair_counts,
)

MISSING = math.nan


def plain_iou(predictions, labels, num_classes, ignore_index, absent=MISSING) -> list[float]:
    """IoU of each class by the words of Eq. 3: two sets of pixels, pixel by pixel."""
    scores = []
    for c in range(num_classes):
        intersection = union = 0
        for prediction, label in zip(predictions, labels, strict=True):
            if label == ignore_index:
                continue
            intersection += prediction == c and label == c
            union += prediction == c or label == c
        score = intersection / union if union else absent
        scores.append(MISSING if c == ignore_index else score)
    return scores


def mean_of_defined(scores: list[float]) -> float:
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else MISSING


def same(actual: Tensor, expected) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@st.composite
def batches(draw):
    """(predictions, labels, num_classes, ignore_index) with B images of 0 to 6 pixels."""
    num_classes = draw(st.integers(1, 4))
    ignore_index = draw(st.sampled_from([None, 255, -1, 0, num_classes - 1]))
    shape = draw(st.integers(0, 4)), draw(st.integers(0, 3)), draw(st.integers(1, 2))
    ids = list(range(num_classes))
    labels = ids if ignore_index is None else [*ids, ignore_index]

    def tensor(values: list[int]) -> Tensor:
        size = math.prod(shape)
        drawn = draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))
        return torch.tensor(drawn, dtype=torch.int64).view(shape)

    return tensor(ids), tensor(labels), num_classes, ignore_index


@given(batches())
def test_confusion_matrix_is_the_plain_loop(batch):
    predictions, labels, num_classes, ignore_index = batch
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(predictions, labels)

    pixels = zip(labels.flatten().tolist(), predictions.flatten().tolist(), strict=True)
    pairs = Counter(pair for pair in pixels if pair[0] != ignore_index)
    ids = range(num_classes)
    assert matrix.counts.dtype == torch.int64
    assert matrix.counts.tolist() == [[pairs[label, p] for p in ids] for label in ids]

    flat = predictions.flatten().tolist(), labels.flatten().tolist()
    scores = plain_iou(*flat, num_classes, ignore_index)
    same(matrix.iou(), scores)
    assert matrix.mean_iou() == pytest.approx(mean_of_defined(scores), nan_ok=True)


@given(batches())
def test_image_scores_are_the_plain_loop(batch):
    predictions, labels, num_classes, ignore_index = batch
    expected = [
        plain_iou(p.flatten().tolist(), t.flatten().tolist(), num_classes, ignore_index, absent=1.0)
        for p, t in zip(predictions, labels, strict=True)
    ]
    means = [mean_of_defined(scores) for scores in expected]
    if expected:
        same(image_iou(*batch), expected)
    same(image_miou(*batch), means)

    streamed = ImageIoU(num_classes, ignore_index)
    streamed.update(predictions, labels)
    assert streamed.images == len(labels)
    assert streamed.mean_iou() == pytest.approx(mean_of_defined(means), nan_ok=True)


@given(batches())
def test_batch_miou_averages_the_classes_that_the_labels_contain(batch):
    predictions, labels, num_classes, ignore_index = batch
    flat = predictions.flatten().tolist(), labels.flatten().tolist()
    scores = plain_iou(*flat, num_classes, ignore_index)
    present = [scores[c] for c in range(num_classes) if c in flat[1]]
    same(batch_miou(*batch), mean_of_defined(present))


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_pixels_and_images_does_not_matter(batch, random):
    predictions, labels, num_classes, ignore_index = batch
    pixels = list(range(labels[0].numel() if len(labels) else 0))
    images = list(range(len(labels)))
    random.shuffle(pixels)
    random.shuffle(images)
    if not pixels:
        return
    mixed = [values.flatten(1)[:, pixels][images] for values in (predictions, labels)]
    same(image_miou(*mixed, num_classes, ignore_index), image_miou(*batch)[images])
    same(batch_miou(*mixed, num_classes, ignore_index), batch_miou(*batch))


@pytest.mark.parametrize("ignore_index", [None, 255, 3])
def test_torchmetrics_agrees(ignore_index):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 7, (4, 20, 30), generator=generator)
    predictions = torch.randint(0, 7, (4, 20, 30), generator=generator)
    predictions[predictions == 5] = 6
    labels[labels == 5] = 6  # class 5 is nowhere
    if ignore_index == 255:
        labels[:, :5] = 255
    matrix = ConfusionMatrix(7, ignore_index)
    for part in (slice(0, 1), slice(1, 4)):
        matrix.update(predictions[part], labels[part])

    counts = multiclass_confusion_matrix(predictions, labels, 7, ignore_index=ignore_index)
    assert torch.equal(matrix.counts, counts)
    macro = multiclass_jaccard_index(predictions, labels, 7, "macro", ignore_index)
    assert matrix.mean_iou() == pytest.approx(macro.item(), abs=1e-6)


def test_scores_worked_out_by_hand():
    labels = torch.tensor([[0, 0, 1, 1, 255], [0, 0, 0, 0, 255]])
    predictions = torch.tensor([[0, 1, 1, 1, 2], [0, 0, 0, 2, 1]])
    # image 1: class 0 1/2, class 1 2/3, class 2 is 0/0. image 2: 3/4, 0/0, and 0/1.
    same(image_iou(predictions, labels, 3, 255), [[1 / 2, 2 / 3, 1], [3 / 4, 1, 0]])
    same(image_miou(predictions, labels, 3, 255), [(1 / 2 + 2 / 3 + 1) / 3, (3 / 4 + 1) / 3])
    same(batch_miou(predictions, labels, 3, 255), (4 / 6 + 2 / 3) / 2)
    matrix = ConfusionMatrix(3, ignore_index=255)
    matrix.update(predictions, labels)
    assert matrix.mean_iou() == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)


def test_scores_do_not_depend_on_the_scale_of_an_image():
    """Of the abstract: every pixel four times, as an image of twice the size has it."""
    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 4, (2, 3, 9, 9), generator=generator)
    twice = [one.repeat_interleave(2, 1).repeat_interleave(2, 2) for one in (predictions, labels)]
    same(image_iou(*twice, 4), image_iou(predictions, labels, 4))
    same(batch_miou(*twice, 4), batch_miou(predictions, labels, 4))


@given(batches())
def test_scores_are_between_zero_and_one(batch):
    """Eq. 3."""
    iou = image_iou(*batch)
    scored = iou[~iou.isnan()]  # a class that is ignored has no score
    assert ((scored >= 0) & (scored <= 1)).all()


@pytest.mark.parametrize("side", [1, 3, 10, 30])
def test_missing_an_object_costs_the_same_whatever_its_size(side):
    """Of the abstract: a loss of pixels hardly sees that a small object was missed."""
    labels = torch.zeros(1, 100, 100, dtype=torch.int64)
    labels[0, :side, :side] = 1
    missed, found_half = torch.zeros_like(labels), labels.clone()
    found_half[0, :side, : side // 2] = 0
    same(image_iou(missed, labels, 2)[0, 1], 0.0)
    same(image_iou(found_half, labels, 2)[0, 1], (side - side // 2) / side)
    assert (missed != labels).double().mean() == pytest.approx(side**2 / 1e4)


@pytest.mark.parametrize("side", [10, 40, 90])
def test_a_large_instance_outweighs_a_small_one_in_a_dataset_and_not_per_image(side):
    """Sec. 1: an image each, the large one found and the small one missed."""
    labels = torch.zeros(2, 100, 100, dtype=torch.int64)
    labels[0, :side, :side] = 1
    labels[1, :5, :5] = 1
    predictions = labels.clone()
    predictions[1] = 0
    same(image_iou(predictions, labels, 2)[:, 1].mean(), 0.5)
    matrix = ConfusionMatrix(2)
    matrix.update(predictions, labels)
    assert matrix.iou()[1].item() == pytest.approx(side**2 / (side**2 + 25))


def test_one_wrong_pixel_of_an_absent_class_costs_an_image_and_hardly_a_dataset():
    """The difference that Sec. 3.1 describes."""
    labels = torch.zeros(2, 100, dtype=torch.int64)
    labels[0, :50] = 1
    predictions = labels.clone()
    predictions[1, 0] = 1
    same(image_iou(predictions, labels, 2)[:, 1], [1.0, 0.0])
    matrix = ConfusionMatrix(2)
    matrix.update(predictions, labels)
    assert matrix.iou()[1].item() == pytest.approx(50 / 51)


def test_binary_image_iou_takes_decisions_as_bool():
    labels = torch.tensor([[1, 1, 0, 255], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    decisions = torch.tensor([[True, False, True, True], [False] * 4, [False] * 4])
    same(binary_image_iou(decisions, labels, ignore_index=255), [1 / 3, 1.0, 0.0])
    same(binary_image_iou(decisions, decisions), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [dtype for dtype in INTEGERS if dtype != torch.bool], ids=str)
@pytest.mark.parametrize("ignore_index", [-1, 100, 255, 256, 2**32])
def test_every_integer_type_counts_the_same(dtype, ignore_index):
    """An ignore index that the dtype cannot hold ignores nothing, whatever it would wrap to."""
    labels = torch.tensor([[0, 1, 2], [2, 100, 1]])
    predictions = torch.tensor([[0, 1, 1], [2, 100, 0]])
    matrix = ConfusionMatrix(101, ignore_index)
    matrix.update(predictions.to(dtype), labels.to(dtype))
    assert matrix.counts.sum().item() == (5 if ignore_index == 100 else 6)
    assert matrix.counts[2, 1].item() == 1


def test_unsigned_255_is_not_minus_one():
    labels = torch.tensor([255, 0], dtype=torch.uint8)
    with pytest.raises(ValueError, match="label 255 is out of range for 2 classes"):
        ConfusionMatrix(2, ignore_index=-1).update(torch.zeros_like(labels), labels)


@pytest.mark.parametrize("value", [3, -1, 2**31, 2**32, -(2**33)])
@pytest.mark.parametrize("name", ["label", "prediction"])
def test_a_value_that_is_no_class_is_named_and_counts_nothing(name, value):
    good, bad = torch.tensor([[0, 1]]), torch.tensor([[1, value]])
    predictions, labels = (bad, good) if name == "prediction" else (good, bad)
    matrix = ConfusionMatrix(3, ignore_index=255)
    with pytest.raises(ValueError, match=f"{name} {value} is out of range for 3 classes"):
        matrix.update(predictions, labels)
    assert matrix.counts.sum() == 0


def test_predictions_on_ignored_pixels_are_not_looked_at():
    labels, predictions = torch.tensor([[255, 1]]), torch.tensor([[77, 1]])
    same(image_miou(predictions, labels, 2, 255), [1.0])


def test_ignored_class_has_no_score_and_taking_it_is_a_miss():
    labels, predictions = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1, 0, 1, 2])
    matrix = ConfusionMatrix(3, ignore_index=0)
    matrix.update(predictions, labels)
    same(matrix.iou(), [MISSING, 1 / 3, 0.0])
    assert matrix.mean_iou() == pytest.approx(1 / 6)


def test_nothing_valid():
    labels = torch.full((2, 3), 255)
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    same(image_miou(zeros, labels, 2, 255), [1.0, 1.0])
    same(batch_miou(zeros, labels, 2, 255), MISSING)
    for metric in (ConfusionMatrix(2, 255), ImageIoU(2, 255)):
        metric.update(zeros[:0], labels[:0])
        assert math.isnan(metric.mean_iou())
    assert image_miou(zeros[:0], labels[:0], 2, 255).shape == (0,)
    assert image_iou(zeros[:0], labels[:0], 2, 255).shape == (0, 2)


def test_views_are_counted_and_left_as_they_were():
    labels = torch.randint(0, 3, (5, 4, 3), generator=torch.Generator().manual_seed(0))
    before = labels.clone()
    same(image_miou(labels.permute(2, 1, 0), labels.permute(2, 1, 0), 3, 1), [1.0] * 3)
    assert torch.equal(labels, before)


def test_wrong_input_is_named():
    matrix, zeros = ConfusionMatrix(2), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        matrix.update(zeros, zeros.T)
    with pytest.raises(ValueError, match=r"one device, got meta and cpu"):
        matrix.update(zeros.to("meta"), zeros)
    with pytest.raises(TypeError, match=r"predictions must be integer class ids, got torch.float"):
        matrix.update(zeros.float(), zeros)
    with pytest.raises(ValueError, match="batch dimension"):
        image_miou(zeros[0, 0], zeros[0, 0], 2)
    for build in (ConfusionMatrix, ImageIoU):
        with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
            build(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_as_the_cpu_does():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 5, (3, 40, 50), generator=generator)
    predictions = torch.randint(0, 4, (3, 40, 50), generator=generator)
    on_cpu, on_gpu = ConfusionMatrix(5, 4), ConfusionMatrix(5, 4)
    on_cpu.update(predictions, labels)
    on_gpu.update(predictions.cuda(), labels.cuda())
    assert torch.equal(on_cpu.counts, on_gpu.counts)
    scores = image_miou(predictions.cuda(), labels.cuda(), 5, 4)
    assert scores.is_cuda
    same(scores.cpu(), image_miou(predictions, labels, 5, 4))


def plain_batch_miou(predictions: Tensor, labels: Tensor, num_classes: int, void: int) -> float:
    """Mean IoU of the classes that the labels of a batch contain, pixel by pixel."""
    flat, truth = predictions.flatten().tolist(), labels.flatten().tolist()
    scores = plain_iou(flat, truth, num_classes, void)
    present = [c for c in range(num_classes) if c in truth and c != void]
    return sum(scores[c] for c in present) / len(present)


@pytest.mark.parametrize(("count", "size", "full"), [(12, 4, 3), (11, 4, 2), (3, 10, 1), (5, 1, 5)])
def test_batch_iou_is_the_mean_over_batches_of_a_fixed_shuffle(
    count: int, size: int, full: int
) -> None:
    generator = torch.Generator().manual_seed(count)
    predictions = torch.randint(0, 5, (count, 4, 6), generator=generator)
    labels = torch.randint(0, 5, (count, 4, 6), generator=generator)
    labels[labels == 4] = 255  # class 4 is predicted, never there
    labels[1:3, :2] = 3
    measured = BatchIoU(5, 255)
    for image in range(count):
        measured.update(predictions[image : image + 1], labels[image : image + 1])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    batches = [order[k * size : (k + 1) * size] for k in range(full)]
    expected = [plain_batch_miou(predictions[b], labels[b], 5, 255) for b in batches]
    assert measured.mean_iou(size) == pytest.approx(sum(expected) / full, abs=1e-12)


def test_batch_iou_of_one_batch_is_batch_miou() -> None:
    generator = torch.Generator().manual_seed(5)
    predictions, labels = torch.randint(0, 6, (2, 7, 8, 9), generator=generator)
    labels[:, 0] = 255
    measured = BatchIoU(6, 255)
    measured.update(predictions, labels)
    assert measured.mean_iou(7) == pytest.approx(batch_miou(predictions, labels, 6, 255).item())
    ignoring = BatchIoU(6, 2)
    labels[labels == 255] = 2
    ignoring.update(predictions, labels)
    assert ignoring.mean_iou(7) == pytest.approx(batch_miou(predictions, labels, 6, 2).item())


def test_batch_iou_of_nothing_is_nan_and_batches_need_an_image() -> None:
    measured = BatchIoU(3, 255)
    assert math.isnan(measured.mean_iou(4))
    measured.update(torch.zeros(2, 3, 3).long(), torch.full((2, 3, 3), 255))
    assert math.isnan(measured.mean_iou(2))
    measured.update(torch.zeros(1, 3, 3).long(), torch.zeros(1, 3, 3).long())
    assert measured.mean_iou(1) == 1.0  # batches without a valid pixel have no score
    with pytest.raises(ValueError, match="batch_size 0"):
        measured.mean_iou(0)


def test_counts_that_are_added_are_as_good_as_images() -> None:
    generator = torch.Generator().manual_seed(6)
    predictions, labels = torch.randint(0, 4, (2, 5, 6, 7), generator=generator)
    labels[0] = 255
    counts = pair_counts(predictions, labels, 4, 255)
    for kind in (ConfusionMatrix, ImageIoU):
        by_images, by_counts = kind(4, 255), kind(4, 255)
        by_images.update(predictions, labels)
        by_counts.add(counts)
        torch.testing.assert_close(by_images.iou(), by_counts.iou(), rtol=0, atol=0, equal_nan=True)
    assert counts.sum().item() == (labels != 255).sum().item()
    assert counts[2, 1, 3] == ((labels[2] == 1) & (predictions[2] == 3)).sum()
