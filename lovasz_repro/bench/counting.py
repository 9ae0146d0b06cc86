"""What the counts of a confusion matrix cost, beside those of torchmetrics.

Labels come in regions, with void between them; a tenth of the predictions is wrong. Both count the
same tensors, and must give the same numbers before anything is timed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lovasz_repro.bench import harness
from lovasz_repro.bench.yardsticks import VOID_LABEL, Size, parse_size, regions
from lovasz_repro.errors import RunFailed, UserError, install
from lovasz_repro.metrics import ConfusionMatrix

# A photograph of Pascal VOC, a batch of its crops, a scene of Cityscapes.
COUNTING_SIZES = ("1x21x375x500", "10x21x321x321", "1x19x1024x2048")
COUNTING_ROUNDS = {"cpu": 5, "cuda": 30}
VOID_SHARE, WRONG_SHARE = 0.05, 0.1
OUR_MATRIX, THEIR_MATRIX = "ConfusionMatrix.update", "torchmetrics"
UNCHECKED = f"{THEIR_MATRIX}, unchecked"
CAPTION = (
    "Predictions int64, labels uint8 with {void:.0%} void, to counts on the CPU. Times as fast: "
    "the time of torchmetrics {version} (multiclass_confusion_matrix; unchecked: "
    "validate_args=False; ours always checks) divided by that of the row in the same round; median "
    "(quartiles) over the rounds ({rounds})."
)


def run_bench(
    size: Sequence[str] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    seed: int,
    advance: harness.Advance = harness.QUIET,
) -> harness.Report:
    """Measure; defaults are for what is None.

    Raises:
        UserError: a size of another form, more classes than labels can name, or torchmetrics is
            not installed.
        RunFailed: the counts differ.
    """
    sizes = sizes_of(size)
    try:
        import torchmetrics
        import torchmetrics.functional.classification
    except ImportError:
        raise UserError(
            "bench metrics compares with torchmetrics, which is not installed. "
            f"Run: {install('dev')}"
        ) from None
    torch.set_num_threads(threads or torch.get_num_threads())
    rounds = rounds or COUNTING_ROUNDS[device.type]
    advance.expect(len(sizes) * rounds * 3)
    cases = []
    for chosen in sizes:
        sample = make_sample(chosen, seed, device)
        rows = _compare(ways(chosen, torchmetrics, *sample), chosen, device, rounds, advance)
        cases.append({"size": chosen, "rows": rows})
    machine, version = harness.this_machine(device), torchmetrics.__version__
    found = {"torchmetrics_version": version, "cases": cases, "rounds": rounds, "seed": seed}
    return harness.Report(machine, found, [page(machine, found)])


def sizes_of(given: Sequence[str] | None) -> list[Size]:
    """Images, classes, height and width of what is counted.

    Raises:
        UserError: another form, or more classes than labels can name.
    """
    sizes = [parse_size(text) for text in given or COUNTING_SIZES]
    for size in sizes:
        if size.classes > VOID_LABEL:
            raise UserError(
                f"size {size}: {VOID_LABEL} is void; give at most {VOID_LABEL} classes."
            )
    return sizes


def page(machine: harness.Machine, found: harness.Row) -> harness.Page:
    """One table of all sizes."""
    columns: list[harness.Column] = [
        ("counting", lambda row: f"{row['size']}: {row['name']}"),
        ("ms", harness.median("times_ms")),
        ("times as fast as\ntorchmetrics", harness.quartiles("speedup")),
        ("times as fast as\nit unchecked", harness.quartiles("speedup_unchecked")),
    ]
    return harness.Page(
        f"Counting predictions, {machine.device}, torch {machine.torch_version}",
        columns,
        {"": [{"size": case["size"], **row} for case in found["cases"] for row in case["rows"]]},
        machine.load,
        ("All ways gave the same counts.",),
        CAPTION.format(
            void=VOID_SHARE, version=found["torchmetrics_version"], rounds=found["rounds"]
        ),
    )


def make_sample(size: Size, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Predictions (B, H, W) int64 and labels (B, H, W) uint8, 255 = void, on a device."""
    generator = torch.Generator().manual_seed(seed)
    labels = regions(size, torch.ones(size.classes), generator)
    other = torch.randint(size.classes, labels.shape, generator=generator)
    wrong = torch.rand(labels.shape, generator=generator) < WRONG_SHARE
    predictions = torch.where(wrong, other, labels)
    labels[torch.rand(labels.shape, generator=generator) < VOID_SHARE] = VOID_LABEL
    return predictions.to(device), labels.to(device, torch.uint8)


def ways(
    size: Size, torchmetrics: Any, predictions: Tensor, labels: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name: each gives the counts (C, C) on the CPU."""

    def ours() -> Tensor:
        matrix = ConfusionMatrix(size.classes, VOID_LABEL)
        matrix.update(predictions, labels)
        return matrix.counts

    def theirs(checked: bool) -> Tensor:
        counts: Tensor = torchmetrics.functional.classification.multiclass_confusion_matrix(
            predictions, labels, size.classes, ignore_index=VOID_LABEL, validate_args=checked
        )
        return counts.cpu()

    return {OUR_MATRIX: ours, THEIR_MATRIX: partial(theirs, True),
            UNCHECKED: partial(theirs, False)}  # fmt: skip


def check_same_counts(name: str, counts: Tensor, ours: Tensor) -> None:
    """Raise RunFailed where a count differs from ours."""
    if not torch.equal(counts.long(), ours):
        off = int((counts.long() - ours).abs().sum())
        raise RunFailed(f"{name}: {off} pixels are counted otherwise. Nothing is reported.")


def _compare(
    compared: dict[str, Callable[[], Tensor]],
    size: Size,
    device: torch.device,
    rounds: int,
    advance: harness.Advance,
) -> list[harness.Row]:
    counts = {name: count() for name, count in compared.items()}  # the first is slower
    for name, of_one in counts.items():
        check_same_counts(name, of_one, counts[OUR_MATRIX])
    timed = {
        name: lambda _, count=count: harness.milliseconds(count, device)
        for name, count in compared.items()
    }
    times = harness.in_turn(timed, rounds, lambda name: advance(f"{name}, {size}"))
    return [
        {
            "name": name,
            "times_ms": own,
            "speedup": harness.ratio(times[THEIR_MATRIX], own),
            "speedup_unchecked": harness.ratio(times[UNCHECKED], own),
        }
        for name, own in times.items()
    ]
