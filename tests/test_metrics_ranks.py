"""Metrics over ranks: each rank has part of the images, and all get the score of the whole."""

import pytest
import torch
from torch import Tensor, distributed

from lovasz_repro.metrics import BatchIoU, ConfusionMatrix, ImageIoU

IMAGES, CLASSES, VOID = 10, 4, 255


def images() -> tuple[Tensor, Tensor]:
    """Predictions and labels; the last images are void alone."""
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, CLASSES, (IMAGES, 9, 11), generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES, 9, 11), generator=generator)
    labels[:, 0] = VOID
    labels[8:] = VOID
    return predictions, labels


def measured(part: slice) -> tuple[ConfusionMatrix, ImageIoU, BatchIoU]:
    predictions, labels = (number[part] for number in images())
    every = ConfusionMatrix(CLASSES, VOID), ImageIoU(CLASSES, VOID), BatchIoU(CLASSES, VOID)
    for measure in every:
        measure.update(predictions, labels)
    return every


SHARES = [(10,), (5, 5), (0, 10), (4, 3, 3), (3, 3, 2, 2), (3, 5, 2, 0)]


def work(rank: int, group: distributed.ProcessGroup, shares: tuple[int, ...]) -> dict:
    matrix, per_image, batches = measured(slice(sum(shares[:rank]), sum(shares[: rank + 1])))
    total, total_per_image = matrix.over_ranks(group), per_image.over_ranks(group)
    again = matrix.over_ranks(group)  # the part is as it was
    result = {
        "counts": total.counts,
        "again": again.counts,
        "sums": total_per_image.sums,
        "images": total_per_image.images,
        "batches": [batches.over_ranks(group).mean_iou(size) for size in (1, 3, 10)],
    }
    if len(shares) == 1:
        return result
    with pytest.raises(ValueError, match=r"num_classes differs between ranks \(here [45]\)"):
        ConfusionMatrix(CLASSES + (rank == 0)).over_ranks(group)
    with pytest.raises(ValueError, match="ignore_index differs between ranks"):
        ImageIoU(CLASSES, VOID if rank else None).over_ranks(group)
    with pytest.raises(ValueError, match="num_classes differs between ranks"):
        BatchIoU(CLASSES + (rank == 0)).over_ranks(group)
    return result


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_all_ranks_get_the_score_of_the_whole(shares: tuple[int, ...], rank_pool) -> None:
    """Images of each rank; the last two of all are void alone, and a rank may have none."""
    matrix, per_image, batches = measured(slice(None))
    results = rank_pool.run(work, len(shares), shares)
    for found in results:
        assert torch.equal(found["counts"], matrix.counts)
        assert torch.equal(found["again"], matrix.counts)
        assert found["images"] == IMAGES
        assert found["batches"] == [batches.mean_iou(size) for size in (1, 3, 10)]
        assert torch.equal(found["sums"], results[0]["sums"])
        torch.testing.assert_close(found["sums"], per_image.sums, rtol=1e-14, atol=0)
