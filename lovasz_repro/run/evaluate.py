"""``evaluate``: a network scored on a whole split, its predictions, a submission to a test server.

``find_network`` says which network is meant, that of a stored run or a file of weights;
``EVALUATORS`` has, for each data set that there is a test server for, what does the work under bars
and returns what came out. ``cli/evaluate.py`` prints it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from lovasz_repro.config.read import as_name, read_stored, validate
from lovasz_repro.config.schema import (
    BatchesConfig,
    CrfConfig,
    DataConfig,
    EvaluationConfig,
    MultiScaleConfig,
)
from lovasz_repro.data import cityscapes, voc
from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.classes import VOC, VOID
from lovasz_repro.data.datasets import dataset
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.locate import data_folder, dataset_folder
from lovasz_repro.data.voc_training import whole_images
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import (
    CityscapesScores,
    official_scores,
    official_script,
    score_files,
)
from lovasz_repro.evaluation.crf import check_installed
from lovasz_repro.evaluation.expected_iou import BatchScores, check_rankseg, score_batch
from lovasz_repro.evaluation.photographs import parse_size
from lovasz_repro.evaluation.predictor import MultiScale, Predictor, Upsample
from lovasz_repro.evaluation.regimes import Compared, compare_crfs, open_folder, score_regimes
from lovasz_repro.evaluation.scoring import SegmentationScoring, evaluate
from lovasz_repro.evaluation.split import (
    Unlabelled,
    is_complete,
    load_cityscapes,
    predict_split,
    prediction_files,
)
from lovasz_repro.evaluation.submission import (
    CITYSCAPES_SERVER,
    VOC_SERVER,
    check_predictions,
    write_predictions,
    write_tar,
    write_zip,
)
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.processes import cores
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.provenance import fingerprint_files
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import load_deeplab_weights, metadata_of
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.run.regimes import PROBABILITIES, drawn_batches, in_order, temperature_beside
from lovasz_repro.run.trained import find_weights, title_of_run
from lovasz_repro.store import StoredRun

SIZE = "512x1024"
ARCHIVES = {"cityscapes": (".zip",), "voc": (".tar.gz", ".tgz")}
LISTS = {"train": "train_aug", "val": "val", "test": "test"}
"""What VOC calls the splits."""
MOST_SCORING, MOST_REFINING = 8, 16  # processes, unless the user says how many
SCORED_EACH, REFINED_EACH = 20, 8  # images


# -- which network ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, and what its run or its file says of how it sees the photographs."""

    name: str
    weights: Path
    dataset: Literal["cityscapes", "voc"]
    """That it is scored on."""
    folder: str
    """Of the data set, below the data folder."""
    size: str = SIZE
    """That an ENet sees."""
    run_id: str | None = None
    train_split: str = "trainval_aug"
    precision: str = "float32"
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def short_id(self) -> str:
        """How a person may call its run."""
        return self.run_id[:8] if self.run_id else "RUN"


def find_network(source: str, results: Path, tracking_uri: str | None) -> Network:
    """The network that a person means.

    Raises:
        UserError: neither a file nor the id of one finished run that has its weights; or a network
            that is not scored here.
    """
    file, run = find_weights(source, results, tracking_uri)
    if run:
        return _of_run(run, file)
    about = metadata_of(file)
    if "category" in about:
        raise UserError(f"weights {file}: they tell {about['category'][:60]} from the rest; "
                        "`predict` uses them.")  # fmt: skip
    if about.get("architecture") == "deeplab-v2":
        own = EvaluationConfig(least_side=MultiScaleConfig().least_side)
        return Network(file.stem, file, "voc", "voc", evaluation=own)
    size = load_cityscapes(file).notes.get("input_size", SIZE)
    return Network(file.stem, file, "cityscapes", "cityscapes", size)


def _of_run(run: StoredRun, weights: Path) -> Network:
    title = title_of_run(run)
    data = read_stored(DataConfig, run.params, "data", title)
    scored_on = dataset(data.name).evaluation
    if scored_on is None:
        raise UserError(f"{title} is of {data.name}; evaluate scores networks for Pascal VOC and "
                        "Cityscapes. `runs show` has the scores it ended with.")  # fmt: skip
    if data.category:
        raise UserError(f"{title} tells {data.category} from the rest; its scores "
                        "are in `report tables voc-binary-classes`.")  # fmt: skip
    if data.images == "features":
        raise UserError(f"{title} has seen no photograph, only features drawn from masks.")
    return Network(
        name=f"{as_name(run.name)}-{run.run_id[:8]}",
        weights=weights,
        dataset=scored_on,
        folder=data.folder or data.name,
        size="x".join(map(str, data.size)),
        run_id=run.run_id,
        train_split=data.train_split,
        precision=run.params.get("training.precision", "float32"),
        evaluation=read_stored(EvaluationConfig, run.params, "evaluation", title),
    )


def load_voc_network(path: Path) -> DeepLab:
    """The DeepLab-v2 in one of our files, of any depth and width, in evaluation mode.

    Raises:
        UserError: no such file, another network, or other outputs than VOC's 21 classes.
    """
    weights = load_deeplab_weights(path)
    if weights.num_classes != len(VOC):
        outputs = weights.num_classes or "no"
        raise UserError(f"weights {path}: {outputs} outputs; VOC has {len(VOC)} classes. A network "
                        "without a classifier has to be trained first.")  # fmt: skip
    return weights.build().eval()


# -- what is asked for --------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What is asked for, whichever data set it is."""

    source: str
    """As it was given."""
    network: Network
    split: Literal["train", "val", "test"]
    data: Path | None
    folder: str | None
    out: Path | None
    submission: Path | None
    processes: int | None
    device: str
    results: Path

    @property
    def root(self) -> Path:
        """The folder of the data set; raises UserError where it is not there."""
        return dataset_folder(data_folder(self.data), self.folder or self.network.folder)

    @property
    def predictions(self) -> Path:
        """The folder of the predictions."""
        return self.out or self.results / "evaluate" / f"{self.network.name}-{self.split}"

    def processes_for(self, images: int, each: int, most: int) -> int:
        """As many as the user says, else by cores and images."""
        return self.processes or min(cores(), most, 1 + images // each)

    def check_archive(self) -> None:
        """Raise UserError for a submission that its server would not take by split or name."""
        endings, archive = ARCHIVES[self.network.dataset], self.submission
        if archive and self.split != "test":
            raise UserError("--submission is of the test photographs: add --split test.")
        if archive and (archive.is_dir() or not archive.name.endswith(endings)):
            raise UserError(f"--submission {archive}: name a {endings[0]} file.")

    def remarks(
        self, root: Path, note: TreeNote | None, found: int, expected: int, whole: str
    ) -> Iterator[str]:
        """What a person should know of the photographs before hours of prediction.

        Raises:
            UserError: a part of a test set cannot be submitted.
        """
        if note is None and found != expected:
            split = LISTS[self.split] if self.network.dataset == "voc" else self.split
            count = f"{root}: {found:,} photographs in {split}, {whole} has {expected:,}"
            if self.submission:
                raise UserError(f"{count}. The test server takes no part of a split.")
            yield f"{count}: this is not the whole split."


@dataclass(frozen=True)
class CityscapesOptions:
    """Options that are of Cityscapes alone, as they were given."""

    size: str | None = None
    """HEIGHTxWIDTH that the network sees; None: the network's."""
    upsample: Upsample | None = None
    unlabelled: Unlabelled | None = None
    """None: the run's, else "dropped"."""
    official: bool = False
    """Score with the official script too."""


@dataclass(frozen=True)
class VocOptions:
    """Options that are of Pascal VOC alone, as they were given."""

    multi_scale: bool = False
    scales: Sequence[float] | None = None
    fusion: str | None = None
    least_side: int | None = None
    crf: bool = False
    crf_set: Mapping[str, Sequence[float | str]] | None = None
    """Several values are compared."""
    images: int | None = None
    batches: tuple[int, int] | None = None
    """Score the decision rules, too, on so many batches of so many images."""
    rankseg: bool = False


def given(options: CityscapesOptions | VocOptions) -> list[str]:
    """What options that were given are called on the command line."""
    return [f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value]


# -- Cityscapes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnCityscapes:
    """What came out of an ENet on Cityscapes."""

    images: int
    out: Path
    scores: CityscapesScores | None
    """None: the annotations are not public."""
    official: CityscapesScores | None


def evaluate_cityscapes(
    request: Request, options: CityscapesOptions, progress: Progress
) -> OnCityscapes:
    """Predict a split, score it where its annotations are there, and pack a submission.

    Raises:
        UserError: what was asked for cannot be, or data or network are missing or wrong.
    """
    network, split, root, out = request.network, request.split, request.root, request.predictions
    annotated = split != "test" or "test" in dataset("cityscapes").scored_splits(root)
    frames = cityscapes.list_frames(root, split, labelled=annotated)
    if options.official and not annotated:
        raise UserError(f"{root}: no annotations of {split} that --official could score with.")
    if options.official:
        official_script()
    request.check_archive()
    note = read_note(root)
    expected = cityscapes.CITYSCAPES_SIZES[split]
    for remark in request.remarks(root, note, len(frames), expected, "Cityscapes"):
        progress.line(remark)
    size = parse_size(options.size or network.size)
    before = sum(map(is_complete, prediction_files(frames, out)))
    with progress.task(f"predicting {split}", len(frames), before) as bar:
        files = predict_split(
            network.weights, frames, out, split=split, data=note.content if note else "cityscapes",
            size=size, upsample=options.upsample or network.evaluation.upsample,
            unlabelled=options.unlabelled or network.evaluation.unlabelled,
            device=request.device, advance=bar.advance,
        )  # fmt: skip
    scores = theirs = None
    if annotated:
        processes = request.processes_for(len(frames), SCORED_EACH, MOST_SCORING)
        with progress.task("scoring", len(frames)) as bar:
            scores = score_files(files, frames, processes=processes, advance=bar.advance)
    if options.official:
        progress.line(f"the official script is scoring {len(frames)} images (some 0.4 s each)")
        theirs = official_scores(files, frames)
    if request.submission:
        photographs = [frame.image for frame in frames]
        with progress.task("checking", len(frames)) as bar:
            check_predictions(CITYSCAPES_SERVER, files, photographs, bar.advance)
        write_zip(files, request.submission)
    return OnCityscapes(len(frames), out, scores, theirs)


# -- Pascal VOC ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocSettings:
    """How photographs are predicted."""

    multi_scale: MultiScaleConfig | None
    """None: single-scale."""
    crfs: tuple[CrfConfig, ...]
    """Parameters of the CRF; several are compared."""
    least_side: int | None = None
    """Of photographs at one scale."""


@dataclass(frozen=True)
class OnVoc:
    """What came out of a DeepLab-v2 on VOC."""

    root: Path
    settings: VocSettings
    images: int
    images_of_split: int
    probabilities: Path | None
    """The folder where they are kept, if they are."""
    scorings: dict[str, SegmentationScoring]
    """Of "single_scale", and where asked for "multi_scale" and "crf"; none of the test set."""
    batches: list[BatchScores]
    """Of each batch, where asked for."""
    batch_size: int
    """Images in each."""
    temperature: float | None
    """Of the calibrated probabilities of the batches; None where no image is left to fit it on."""
    compared: list[Compared]
    """What each set of parameters of the CRF reaches, the best first, where there are several."""


def settings_of(options: VocOptions, own: EvaluationConfig) -> VocSettings:
    """What is asked for; a run's own settings are the defaults, else those of the paper.

    Raises:
        UserError: a value that cannot be.
    """
    least_side = options.least_side or own.least_side
    fused = {"scales": options.scales, "fusion": options.fusion}
    grid = options.crf_set or {}
    with_crf = options.crf or bool(grid)
    if not (options.multi_scale or any(fused.values()) or with_crf):
        return VocSettings(None, (), least_side)
    asked = {k: v for k, v in (fused | {"least_side": options.least_side}).items() if v is not None}
    content = (own.multi_scale or MultiScaleConfig()).model_dump() | asked
    multi_scale = validate(MultiScaleConfig, content, "--scales, --fusion, --least-side")
    crfs = [
        validate(CrfConfig, (own.crf or CrfConfig()).model_dump() | dict(chosen), "--crf-set")
        for chosen in product(*([(name, value) for value in grid[name]] for name in grid))
        if with_crf
    ]
    crfs = list(dict.fromkeys(crfs))  # 3 and 3.0 are one value
    return VocSettings(multi_scale, tuple(crfs), least_side)


def check_voc(request: Request, options: VocOptions, settings: VocSettings) -> None:
    """Raise UserError for options that contradict each other."""
    test = request.split == "test"
    request.check_archive()
    if request.submission and options.images:
        raise UserError("--submission is of all test photographs: leave out --images.")
    if test and len(settings.crfs) > 1:
        raise UserError("--crf-set with several values compares them on labelled photographs, "
                        "which test has not: --split val.")  # fmt: skip
    if request.out and not test:
        raise UserError("--out is for the predictions of --split test; on VOC others are scored "
                        "and not kept.")  # fmt: skip
    if request.processes and not test and not settings.multi_scale:
        raise UserError("--processes work on several scales and the CRF: add --multi-scale or "
                        "--crf.")  # fmt: skip
    if options.batches and request.split != "val":
        raise UserError("--batches are of validation images: --split val.")
    if options.batches and (options.images or len(settings.crfs) > 1):
        raise UserError("--batches are of all validation images, by one network: leave out "
                        "--images and several values of --crf-set.")  # fmt: skip
    if options.rankseg and not options.batches:
        raise UserError("--rankseg decides on batches: add --batches.")
    if options.rankseg:
        check_rankseg()
    if settings.crfs:
        check_installed()


def evaluate_voc(request: Request, options: VocOptions, progress: Progress) -> OnVoc:
    """Score the network on a labelled split, or predict the test set.

    Raises:
        UserError: what was asked for cannot be, or data or network are missing or wrong.
        RunFailed: the disk refuses, or a process died.
    """
    device = choose_device(request.device)
    network, split = request.network, request.split
    settings = settings_of(options, network.evaluation)
    check_voc(request, options, settings)
    model, root = load_voc_network(network.weights), request.root
    every = voc.list_images(root, LISTS[split])
    images, expected = every[: options.images], voc.VOC_SIZES[LISTS[split]]
    drawn = list[list[int]]()
    if options.batches:
        wanted = BatchesConfig(count=options.batches[0], size=options.batches[1])
        drawn = drawn_batches(root, wanted, "Give other numbers: --batches COUNTxIMAGES.")
    for remark in request.remarks(root, read_note(root), len(every), expected, "Pascal VOC 2012"):
        progress.line(remark)
    if split == "test" and network.train_split != "trainval_aug":
        progress.line(f"the network was trained on {network.train_split}; those that the paper "
                      "sends to the test server also on the validation images (profile "
                      "trainval).")  # fmt: skip
    # At one scale, too, what is predicted of photographs without masks is probabilities in files
    one_scale = MultiScaleConfig(scales=[1.0], least_side=settings.least_side or 1)
    kind, scales = NETWORKS["deeplab-v2"], settings.multi_scale or one_scale
    fused = MultiScale(model.to(device), kind, device, network.precision, multi_scale=scales)
    scorings, compared = dict[str, SegmentationScoring](), list[Compared]()
    if split != "test" and len(settings.crfs) < 2:
        single = Predictor(model, kind.on_canvas(settings.least_side), device)
        batches, counts = DataLoader(whole_images(images)), SegmentationScoring(VOC.names, VOID)
        with progress.task(f"single-scale on {LISTS[split]}", len(images)) as bar:
            scorings = {"single_scale": evaluate(single, batches, counts, advance=bar.advance)}
    scored, temperature = list[BatchScores](), None
    if drawn:
        single = Predictor(model, kind.on_canvas(settings.least_side), device)
        scored, temperature = _score_batches(single, images, drawn, options.rankseg, progress)
    folder = None
    if split == "test" or settings.multi_scale:
        folder = _probabilities(request, root, every, fused)
        work = _FromFiles(request, images, folder, fused, settings.crfs, progress)
        if split == "test":
            work.predict_test()
        elif len(settings.crfs) > 1:
            scorings, compared = work.search()
        else:
            scorings |= work.score(settings.crfs)
    return OnVoc(
        root, settings, len(images), len(every), folder, scorings, scored,
        options.batches[1] if options.batches else 0, temperature, compared,
    )  # fmt: skip


def _score_batches(
    predictor: Predictor,
    images: Sequence[ImagePair],
    batches: Sequence[Sequence[int]],
    rankseg: bool,
    progress: Progress,
) -> tuple[list[BatchScores], float | None]:
    """The scores of the batches that a run scores, and the temperature of the calibrated rule."""
    photographs = whole_images(images)
    temperature = temperature_beside(predictor, photographs, batches, VOID, progress)
    with progress.task("scoring batches", len(batches)) as bar:
        return [
            score_batch(
                predictor, in_order(predictor, photographs, [batch]), VOID, temperature,
                rankseg=rankseg,
            )
            for batch in bar.over(batches)
        ], temperature  # fmt: skip


def _probabilities(
    request: Request, root: Path, images: Sequence[ImagePair], fused: MultiScale
) -> Path:
    """The folder of the probabilities; a run of the same network keeps its own there, too."""
    work = request.results / "work"
    try:
        photographs = [image.image for image in images]
        data = fingerprint_files(photographs, root, work / "fingerprints.json")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror or error}.") from error
    return open_folder(work / PROBABILITIES, fused, data)


@dataclass(frozen=True)
class _FromFiles:
    """What is computed from files of probabilities; those that are not there are predicted."""

    request: Request
    images: Sequence[ImagePair]
    folder: Path
    fused: MultiScale
    crfs: Sequence[CrfConfig]
    progress: Progress

    def score(self, crfs: Sequence[CrfConfig]) -> dict[str, SegmentationScoring]:
        """The scorings of "multi_scale" and, with parameters, of "crf"."""
        crf = next(iter(crfs), None)
        with self._bars(crf) as how:
            return score_regimes(self.fused, self.images, self.folder, crf, **how)

    def search(self) -> tuple[dict[str, SegmentationScoring], list[Compared]]:
        """The scoring without the CRF, and what each set of its parameters reaches."""
        without, total = self.score(()), len(self.crfs) * len(self.images)
        with self.progress.task(f"the CRF with {len(self.crfs)} settings", total) as bar:
            return without, compare_crfs(
                self.images, self.folder, self.crfs, processes=self._processes, refined=bar.advance
            )

    def predict_test(self) -> None:
        """Write the label files, and pack them where that is asked for."""
        crf, out = next(iter(self.crfs), None), self.request.predictions
        with self._bars(crf) as how:
            files = write_predictions(self.fused, self.images, self.folder, crf, out, **how)
        if self.request.submission:
            photographs = [image.image for image in self.images]
            with self.progress.task("checking", len(files)) as bar:
                check_predictions(VOC_SERVER, files, photographs, bar.advance)
            write_tar(files, self.request.submission)

    @property
    def _processes(self) -> int:
        return self.request.processes_for(len(self.images), REFINED_EACH, MOST_REFINING)

    @contextmanager
    def _bars(self, crf: CrfConfig | None) -> Iterator[dict[str, Any]]:
        """How to predict and refine: with so many processes, under a bar each."""
        count, scales = len(self.images), len(self.fused.multi_scale.scales)
        scaled = f"at {scales} scales" if scales > 1 else "at one scale"
        split, task = LISTS[self.request.split], self.progress.task
        with task(f"predicting {split} {scaled}", count) as bar:
            how = {"processes": self._processes, "predicted": bar.advance}
            if crf:
                with task("refining by the CRF", count) as refining:
                    yield how | {"refined": refining.advance}
            else:
                yield how


Evaluator = Callable[[Request, Any, Progress], OnCityscapes | OnVoc]
EVALUATORS: dict[str, Evaluator] = {"cityscapes": evaluate_cityscapes, "voc": evaluate_voc}
"""By data set."""
