"""Which network ``evaluate`` is given: that of a stored run, or a file of weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lovasz_repro.config.names import as_name
from lovasz_repro.errors import UserError

if TYPE_CHECKING:
    from lovasz_repro.store import Store, StoredRun

WEIGHTS = "best.safetensors"
FOLDER, SIZE = "cityscapes", "512x1024"
RUN_ID = re.compile(r"[0-9a-f]{1,32}")


@dataclass(frozen=True)
class Source:
    """A network, and what a run or a snapshot says of how it sees the photographs."""

    name: str
    weights: Path
    run_id: str | None = None
    folder: str = FOLDER
    size: str = SIZE
    upsample: str = "logits"
    voc: bool = False
    """A DeepLab-v2, which is scored on Pascal VOC."""
    params: Mapping[str, str] = field(default_factory=dict)
    """The settings of its run, by dotted key."""

    @property
    def short_id(self) -> str:
        """How a person may call its run."""
        return self.run_id[:8] if self.run_id else "RUN"


@dataclass(frozen=True)
class Request:
    """What ``evaluate`` is asked for, whichever data set it is."""

    source: str
    """As it was given."""
    network: Source
    split: str
    """"train", "val" or "test"."""
    data: Path | None
    folder: str | None
    out: Path | None
    submission: Path | None
    processes: int | None
    device: str
    results: Path
    as_json: bool

    @property
    def root(self) -> Path:
        """The folder of the data set; raises UserError where it is not there."""
        from lovasz_repro.data.locate import data_folder, dataset_folder

        return dataset_folder(data_folder(self.data), self.folder or self.network.folder)

    @property
    def predictions(self) -> Path:
        """The folder of the predictions."""
        return self.out or self.results / "evaluate" / f"{self.network.name}-{self.split}"


def find_source(source: str, results: Path, tracking_uri: str | None) -> Source:
    """The network that a person means.

    Raises:
        UserError: neither a file nor the id of one finished run that has its weights.
    """
    if Path(source).is_file() or not RUN_ID.fullmatch(source):
        return of_file(Path(source))
    from lovasz_repro.store import Store

    store = Store(results, tracking_uri)
    run = store.by_id(source)
    title = f"run {run.run_id} ({run.name})"
    if run.status != "FINISHED":
        raise UserError(f"{title} is {run.status}, not FINISHED: it has no best snapshot yet.")
    params = run.params
    if params.get("data.name") == "voc":
        return of_voc_run(run, title, store)
    if params.get("data.name", FOLDER) != FOLDER:
        raise UserError(f"{title} is of {params['data.name']}; its network has other outputs than "
                        "the 20 for Cityscapes.")  # fmt: skip
    set_folder = params.get("data.folder", "None")
    return Source(
        name=f"{as_name(run.name)}-{run.run_id[:8]}",
        weights=weights_of(run, title, store),
        run_id=run.run_id,
        folder=FOLDER if set_folder == "None" else set_folder,
        size="x".join(re.findall(r"\d+", params.get("data.size", SIZE))),
        upsample=params.get("evaluation.upsample", "logits"),
    )


def of_voc_run(run: "StoredRun", title: str, store: "Store") -> Source:
    """A network of all classes of Pascal VOC, trained on photographs."""
    if run.params.get("data.category", "None") != "None":
        raise UserError(f"{title} tells {run.params['data.category']} from the rest; its scores "
                        "are in `report tables voc-binary-classes`.")  # fmt: skip
    if run.params.get("data.images") == "features":
        raise UserError(f"{title} has seen no photograph, only features drawn from masks.")
    folder = run.params.get("data.folder", "None")
    return Source(
        name=f"{as_name(run.name)}-{run.run_id[:8]}",
        weights=weights_of(run, title, store),
        run_id=run.run_id,
        folder="voc" if folder == "None" else folder,
        voc=True,
        params=run.params,
    )


def of_file(file: Path) -> Source:
    """Weights in a file; a snapshot says which size its network was trained at."""
    from lovasz_repro.models.snapshot import architecture_of

    if architecture_of(file) == "deeplab-v2":
        return Source(file.stem, file, folder="voc", voc=True)
    from lovasz_repro.evaluation.split_predictions import load_cityscapes

    if not file.exists() and not file.suffix and len(file.parts) == 1:
        raise UserError(f"{file}: neither a file of weights nor the id of a run; "
                        "`lovasz-repro runs` lists runs.")  # fmt: skip
    return Source(file.stem, file, size=load_cityscapes(file).notes.get("input_size", SIZE))


def weights_of(run: "StoredRun", title: str, store: "Store") -> Path:
    """The file of a run's best snapshot; raises UserError where it is not in the store."""
    if WEIGHTS not in store.artifact_names(run.run_id):
        stayed = WEIGHTS in run.tags.get("left_out", "")
        why = " (too large to be exported, see `runs export --max-artifact`)" if stayed else ""
        raise UserError(f"{title} has no {WEIGHTS} in this store{why}. Give the file instead.")
    return store.artifact(run.run_id, WEIGHTS)
