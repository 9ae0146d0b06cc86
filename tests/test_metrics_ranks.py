"""Metrics over ranks: each rank has part of the images, and all get the score of the whole."""

import datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from lovasz_repro.metrics import ConfusionMatrix, ImageIoU

IMAGES, CLASSES, VOID = 10, 4, 255


def images() -> tuple[Tensor, Tensor]:
    """Predictions and labels; the last images are void alone."""
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, CLASSES, (IMAGES, 9, 11), generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES, 9, 11), generator=generator)
    labels[:, 0] = VOID
    labels[8:] = VOID
    return predictions, labels


def measured(part: slice) -> tuple[ConfusionMatrix, ImageIoU]:
    predictions, labels = (number[part] for number in images())
    matrix, per_image = ConfusionMatrix(CLASSES, VOID), ImageIoU(CLASSES, VOID)
    matrix.update(predictions, labels)
    per_image.update(predictions, labels)
    return matrix, per_image


def work(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=120),
    )
    group = distributed.group.WORLD
    shares = (
        [3, 5, 2, 0] if size == 4 else [IMAGES // size + (i < IMAGES % size) for i in range(size)]
    )
    matrix, per_image = measured(slice(sum(shares[:rank]), sum(shares[: rank + 1])))
    total, total_per_image = matrix.over_ranks(group), per_image.over_ranks(group)
    again = matrix.over_ranks(group)  # the part is as it was
    with pytest.raises(ValueError, match=r"num_classes differs between ranks \(here [45]\)"):
        ConfusionMatrix(CLASSES + (rank == 0)).over_ranks(group)
    with pytest.raises(ValueError, match="ignore_index differs between ranks"):
        ImageIoU(CLASSES, VOID if rank else None).over_ranks(group)
    torch.save(
        {
            "counts": total.counts,
            "again": again.counts,
            "sums": total_per_image.sums,
            "images": total_per_image.images,
        },
        Path(folder, f"{rank}.pt"),
    )
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_ranks_get_the_score_of_the_whole(size: int, tmp_path: Path) -> None:
    """10 images over 3 ranks as 4 + 3 + 3; over 4 as 3 + 5 + 2 + 0, the third void alone."""
    torch.multiprocessing.spawn(work, (size, str(tmp_path)), nprocs=size)
    matrix, per_image = measured(slice(None))
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["counts"], matrix.counts)
        assert torch.equal(found["again"], matrix.counts)
        assert found["images"] == IMAGES
        torch.testing.assert_close(found["sums"], per_image.sums, rtol=1e-14, atol=0)
