"""What ``evaluate`` of a DeepLab-v2 works on: photographs, network, settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lovasz_repro.config.schema import MultiScaleConfig
from lovasz_repro.errors import UserError
from lovasz_repro.run.evaluate_source import Request
from lovasz_repro.run.evaluate_voc_settings import VocOptions, VocSettings

if TYPE_CHECKING:
    import torch

    from lovasz_repro.data.check import TreeNote
    from lovasz_repro.data.voc import VocImage
    from lovasz_repro.evaluation.multiscale import MultiScale
    from lovasz_repro.models.deeplab import DeepLab

LISTS = {"train": "train_aug", "val": "val", "test": "test"}
"""What VOC calls the splits."""
SINGLE_SCALE = MultiScaleConfig(scales=[1.0], least_side=1)
"""The photograph as it is; of it the probabilities are files, too, where no mask is to be had."""
MOST_PROCESSES, IMAGES_EACH = 16, 8  # unless the user says how many


@dataclass(frozen=True)
class Job:
    """Everything that is there before anything is computed."""

    request: Request
    settings: VocSettings
    root: Path
    note: "TreeNote | None"
    images: "Sequence[VocImage]"
    """Those that are predicted."""
    all_images: "Sequence[VocImage]"
    """Of the split."""
    model: "DeepLab"
    device: "torch.device"

    @property
    def split(self) -> str:
        """As the command has it."""
        return self.request.split

    @cached_property
    def processes(self) -> int:
        """That write and refine."""
        from lovasz_repro.host.processes import cores

        several = min(cores(), MOST_PROCESSES, 1 + len(self.images) // IMAGES_EACH)
        return self.request.processes or several

    @cached_property
    def predictor(self) -> "MultiScale":
        """At the scales that are asked for."""
        from lovasz_repro.evaluation.multiscale import MultiScale
        from lovasz_repro.run.networks import NETWORKS

        kind = NETWORKS["deeplab-v2"]
        precision = self.request.network.params.get("training.precision", "float32")
        scales = self.settings.multi_scale or SINGLE_SCALE
        return MultiScale(self.model, kind, self.device, precision, multi_scale=scales)

    @cached_property
    def folder(self) -> Path:
        """Of the probabilities; a run of the same network keeps its own there, too."""
        from lovasz_repro.evaluation.voc_probabilities import open_folder
        from lovasz_repro.host.provenance import fingerprint_files
        from lovasz_repro.run.regimes import PROBABILITIES

        work = self.request.results / "work"
        photographs = [image.image for image in self.all_images]
        try:
            data = fingerprint_files(photographs, self.root, work / "fingerprints.json")
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror or error}.") from error
        return open_folder(work / PROBABILITIES, self.predictor, data)


def open_job(request: Request, options: VocOptions, settings: VocSettings) -> Job:
    """Find the photographs and load the network.

    Raises:
        UserError: data or network are missing or wrong, or part of a test set cannot be submitted.
    """
    from lovasz_repro.data.check import read_note
    from lovasz_repro.data.voc import SPLIT_SIZES, list_images
    from lovasz_repro.evaluation.voc_score import load_voc_network
    from lovasz_repro.host.device import choose_device

    model = load_voc_network(request.network.weights)
    root = request.root
    note = read_note(root)
    images = list_images(root, LISTS[request.split])
    if request.submission and not note and len(images) != SPLIT_SIZES["test"]:
        raise UserError(f"{root}: {len(images):,} photographs in test, VOC 2012 has "
                        f"{SPLIT_SIZES['test']:,}. The test server takes no part of a "
                        "split.")  # fmt: skip
    device = choose_device(request.device)
    return Job(
        request, settings, root, note, images[: options.images], images, model.to(device), device
    )


def remarks(job: Job) -> Iterator[str]:
    """What a person should know before hours of prediction."""
    from lovasz_repro.data.voc import SPLIT_SIZES

    expected = SPLIT_SIZES[LISTS[job.split]]
    if job.note:
        what = f"{job.root} holds {job.note.content} in the layout of Pascal VOC"
        if job.request.submission:
            yield f"{what}: the test server takes no such submission."
    elif len(job.all_images) != expected:
        yield (f"{job.root}: {len(job.all_images):,} photographs in {LISTS[job.split]}, VOC 2012 "
               f"has {expected:,}: this is not the whole split.")  # fmt: skip
    trained_on = job.request.network.params.get("data.train_split", "trainval_aug")
    if job.split == "test" and trained_on != "trainval_aug":
        yield (f"the network was trained on {trained_on}; those that the paper sends to the test "
               "server also on the validation images (profile trainval).")  # fmt: skip
