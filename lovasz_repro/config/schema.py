"""Experiment files: what may stand in them, and how a cell of their grid is resolved.

``experiments/<name>.yaml`` holds a recipe, its variants (the rows of a table) and its profiles
(how large). ``cells`` merges them into one ``CellConfig`` per variant x batch size x seed: the
whole truth about one run, and what its config hash is taken of. An unknown key, a wrong type or
an impossible value ends in one line that names the file and the key.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lovasz_repro.config.read import (
    ADDED,
    ClassName,
    Name,
    Relative,
    Strict,
    dotted,
    known_name,
    merge,
    override,
    read_yaml,
    validate,
)
from lovasz_repro.config.tables import (
    BINARY_LOSSES,
    DATASET_LINES,
    OWN_SETTINGS,
    check_dataset,
    check_loss,
)
from lovasz_repro.errors import UserError

Scale = Literal["paper", "reduced", "demo"]
LossName = Annotated[str, AfterValidator(check_loss)]
VocCategory = Literal[
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip
Source = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", max_length=200)]
"""A Python callable: package.module:function."""
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Multiplier = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
MOST_RUNS = 10_000  # of a grid
BASIS = "basis"
"""The variant whose runs others start from with model.weights: basis."""


def check_own(section: str, config: BaseModel, dataset: str) -> None:
    """Raise ValueError where a setting of a section is not one that the data set has."""
    for setting, owners in OWN_SETTINGS.items():
        where, _, name = setting.partition(".")
        if where != section or dataset in owners:
            continue
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ValueError(f"{setting} is of the data set {' and '.join(owners)} alone")


class DataConfig(Strict):
    """Which images, and at what size the network sees them."""

    name: Annotated[str, AfterValidator(check_dataset)]
    """Layout of the files and what is scored."""
    folder: Relative | None = None
    """Folder below the data folder; null: the name."""
    classes: Annotated[tuple[ClassName, ...], ADDED] = Field(default=(), max_length=255)
    """Names of the classes by label, of data of your own; where data are checked or run, they are
    found in the folder."""
    size: tuple[Positive, Positive]
    """Height and width of the network's input in training, pixels; images are resized to it, or
    cropped where the data set is one of crops, as voc is."""
    resize: Annotated[bool, ADDED] = False
    """Of data of your own: images are resized to it, not cropped."""
    flip: bool = False
    """Mirror each training image with probability 1/2."""
    equibatch: bool = False
    """Visit every class in turn (paper Sec. 4.3) instead of drawing images at random."""
    crop_with_class: bool = False
    """Where equibatch draws the images of voc: place the crop again, up to 20 times, until it shows
    the class whose turn it is. The paper does not say."""
    train_split: Literal["train_aug", "trainval_aug"] = "train_aug"
    """Images of voc to train on: 10,582, or the 1,449 of validation too, for networks that the test
    server scores."""
    category: str | None = None
    """The class that is told from the rest (Sec. 4.2); null: all classes. Then half of the
    training images of voc contain it on average, and so does half of the validation images."""
    images: Literal["photographs", "features"] = "photographs"
    """Photographs, or noisy evidence of the classes that is drawn from the masks (as Sec. 4.1 does
    for circles), which needs no photograph."""
    noise: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of that evidence; its mean is 1/2 for the pixel's class, else -1/2."""
    augmentation: Annotated[Literal["deeplab", "jaccard-segment", "deeplab-centres"], ADDED] = (
        "deeplab-centres"
    )
    """How images that are cropped are scaled and padded: as DeepLab's authors do for Sec. 4.3; as
    the paper's authors do for Sec. 4.2; or the former with labels of the nearest pixel by its
    centre, where DeepLab's OpenCV rounds down."""

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> "DataConfig":
        if self.equibatch and self.category:
            raise ValueError("with category the batches are balanced: equibatch does not apply")
        if self.category and self.category not in (self.classes or get_args(VocCategory)):
            listed = ", ".join(self.classes or get_args(VocCategory))
            raise ValueError(f"category {self.category!r} is none of the classes: {listed}")
        grid, (height, width) = DATASET_LINES[self.name].grid, self.size
        if self.crops and (height != width or (grid and height % 8 != 1)):
            points = ", 8 n + 1 pixels a side (321 in the paper)" if grid else ""
            raise ValueError(f"size is that of a square crop{points}")
        return self

    @property
    def crops(self) -> bool:
        """Whether networks are trained on crops, of images that differ in size."""
        return DATASET_LINES[self.name].crops and not self.resize


class ModelConfig(Strict):
    """The network and where its training starts."""

    name: Literal["enet", "deeplab-v2", "deeplab-v2-small", "evidence-net", "callable"]
    """ENet; DeepLab-v2 ResNet-101; the same code narrow and shallow, for demonstrations; a small
    network for data.images=features; or your own."""
    callable: Annotated[Source | None, ADDED] = None
    """What makes your own network, package.module:function; called with the number of classes."""
    decoder: Literal["prelu", "relu"] = "prelu"
    """PReLU as in the released network, or ReLU as in the paper's and e-lab's later code."""
    dropout: Literal["torch7", "pytorch"] = "torch7"
    """Torch7 scales at evaluation, PyTorch during training."""
    weights: Literal["enet-cityscapes", "deeplab-coco", "basis", "file"] | None = None
    """Released weights to start from, those of the same grid's run of the variant basis, or for
    your own network the file that --weights names; null: random initialisation."""
    bn_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of DeepLab's batch normalisations: Caffe's; ports from TensorFlow have 1e-3."""

    @model_validator(mode="after")
    def _weights_are_of_the_network(self) -> "ModelConfig":
        if (self.name == "callable") != (self.callable is not None):
            raise ValueError("name=callable and callable=package.module:function go together")
        if self.weights == "file" and self.name != "callable":
            raise ValueError("weights=file is of name=callable alone")
        if self.weights and self.decoder == "relu":
            raise ValueError("the released weights have a PReLU decoder: set decoder to prelu, "
                             "or weights to null")  # fmt: skip
        fitting = {"enet-cityscapes": "enet", "deeplab-coco": "deeplab-v2"}
        if self.weights in fitting and self.name != fitting[self.weights]:
            raise ValueError(f"the weights {self.weights} are of {fitting[self.weights]}, not of "
                             f"{self.name}")  # fmt: skip
        return self


class LossConfig(Strict):
    """A weighted sum of losses."""

    terms: dict[LossName, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Loss name -> its weight in the sum."""
    class_weights: Literal["none", "enet", "enet-released"] = "none"
    """Weights of the cross-entropy: none, or ENet's 1 / ln(1.02 + share of the class). "enet" has
    none for "unlabelled", whose pixels are left out; in "enet-released" it is a class like others,
    as in the loss of the released network, where it is an output as on cityscapes."""
    classes: Literal["present", "all"] = "present"
    """Classes that Lovász-Softmax averages over (paper Sec. 3.1: those in the batch's labels)."""
    per_image: bool = False
    """Lovász-Softmax per image instead of over the batch; the binary losses always are."""
    resolution: Literal["output", "output-cells", "input"] = "output"
    """Where a network answers on a coarser grid: labels are sampled at its points (DeepLab's
    authors), or at the centres of as many equal cells (the paper's authors in Sec. 4.2), or logits
    are upsampled to the labels."""


class TrainingConfig(Strict):
    """Optimiser, schedule and rhythm."""

    iterations: Positive
    """Optimiser steps; max_iter of Eq. 16."""
    batch_size: Positive
    """Images per step."""
    iter_size: Positive = 1
    """Parts in which the batch passes the network, where it does not fit the memory at once; the
    loss stays that of the whole batch, for one more forward pass."""
    lr: Annotated[float, Field(gt=0)]
    """Base learning rate of Eq. 16."""
    power: Annotated[float, Field(ge=0)] = 0.9
    """Exponent of Eq. 16."""
    schedule: Literal["poly", "step", "step-one-earlier"] = "poly"
    """Eq. 16; or lr in the first half of the training and a fifth of it in the second, or from the
    last step of the first half on (the paper's authors in Sec. 4.2)."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """SGD has momentum 0.9."""
    lr_multipliers: tuple[Multiplier, Multiplier, Multiplier] = (1.0, 10.0, 20.0)
    """Of DeepLab's backbone, its classifier's weights and its classifier's biases."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 added to the gradient, as in Adam's original form; DeepLab's biases have none."""
    batch_norm: Literal["train", "per-rank", "frozen"] = "train"
    """Statistics of the whole batch, of each rank's share of it (another objective for each number
    of ranks), or the running statistics of the starting weights."""
    dropout: Literal["train", "off"] = "train"
    """Drop as in the network's first training, or never."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """bfloat16: autocast around the network; the loss stays in float32. float64: everything in
    double precision, to compare machines and numbers of ranks."""
    channels_last: bool = False
    """Memory format of images and network."""
    validate_every: Positive
    """Iterations between validations; the last iteration is always validated."""
    checkpoint_every: Positive
    """Iterations between checkpoints."""

    @model_validator(mode="after")
    def _batch_statistics_see_the_batch(self) -> "TrainingConfig":
        if self.batch_norm != "frozen" and self.batch_size < 2:
            raise ValueError("batch_size 1 leaves batch normalisation no batch: set batch_norm "
                             "to frozen, or batch_size to 2 or more")  # fmt: skip
        if self.iter_size > self.batch_size:
            raise ValueError(f"iter_size {self.iter_size} leaves parts of a batch of "
                             f"{self.batch_size} empty")  # fmt: skip
        if self.iter_size > 1 and self.batch_norm != "frozen":
            raise ValueError("iter_size above 1 would normalise each part of a batch on its own: "
                             "set batch_norm to frozen")  # fmt: skip
        return self


class MultiScaleConfig(Strict):
    """Predictions fused over several scales of an image (Sec. 4.3, facts of DeepLab's authors)."""

    scales: list[Annotated[float, Field(gt=0, le=4, multiple_of=0.125)]] = Field(
        default=[1.0, 0.75, 0.5], min_length=1
    )
    """Multiples of 1/8."""
    fusion: Literal["probabilities", "max-logits"] = "probabilities"
    """The mean of the probabilities (the paper), or the largest logits (DeepLab's authors)."""
    least_side: Positive = 513
    """Pixels to which smaller images are continued, as DeepLab's authors do."""


class CrfConfig(Strict):
    """The dense CRF on top of it; defaults are those of DeepLab-v2 on ResNet-101."""

    iterations: Positive = 10
    """Of mean-field inference."""
    smoothness_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """Energy of the kernel of distance alone ("POS_W")."""
    smoothness_xy: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Standard deviation in pixels ("POS_XY_STD")."""
    bilateral_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """Energy of the kernel of distance and colour ("BI_W")."""
    bilateral_xy: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 67.0
    """Standard deviation in pixels ("BI_XY_STD")."""
    bilateral_rgb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    """Standard deviation in each of R, G and B, of 0..255 ("BI_RGB_STD")."""
    normalization: Literal["after", "symmetric"] = "after"
    """Kernels sum to 1 at the pixel that listens, as DeepLab's library has it ("after"), or are
    divided by the roots of the sums at both pixels, pydensecrf's default ("symmetric")."""


class BatchesConfig(Strict):
    """Random validation batches in which every class is represented (Sec. 4.3, prior work)."""

    count: Positive = 20
    size: Positive = 21
    """Images in each."""
    rankseg: Annotated[bool, ADDED] = False
    """Score them by the decision rule of the package rankseg, too (extra rankseg)."""


class EvaluationConfig(Strict):
    """How predictions are made and kept."""

    snapshot: Literal["best", "last"] = "best"
    """Which weights are scored on the test split and kept: the best on val, or the last."""
    upsample: Literal["logits", "predictions"] = "logits"
    """What is brought to the labels' size where the network sees a smaller one: logits
    (bilinear), or the predicted classes (nearest)."""
    unlabelled: Annotated[Literal["dropped", "kept"], ADDED] = "dropped"
    """Whether "unlabelled", an output of the released network, is an answer that the network may
    give; on a labelled pixel it is a miss."""
    least_side: Annotated[Positive | None, ADDED] = None
    """Pixels to which smaller photographs are continued at one scale, as multi_scale.least_side has
    it for several; null: to the next 8 n + 1."""
    examples: Annotated[int, Field(ge=0)] = 0
    """Crops that are stored in which the network differs most from what it was before training;
    on voc whole masks, of images that are the same for all runs."""
    multi_scale: MultiScaleConfig | None = None
    """Scores after training also with this; null: not."""
    crf: CrfConfig | None = None
    """And with this on top; null: not."""
    batches: BatchesConfig | None = None
    """Scores after training also single batches, by the arg max and by the decision rule of highest
    mean E[I]/E[U]; null: not."""

    @model_validator(mode="after")
    def _crf_refines_fused_predictions(self) -> "EvaluationConfig":
        if self.crf and not self.multi_scale:
            raise ValueError("crf refines multi_scale predictions: set multi_scale too (to "
                             "{scales: [1.0]} for one scale)")  # fmt: skip
        return self


class CellConfig(Strict):
    """One run, resolved: everything that decides its result except the data's content."""

    experiment: Name
    profile: Name
    scale: Scale
    variant: Name
    seed: Seed
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    start: "CellConfig | None" = None
    """The run whose weights it starts from, where model.weights is basis."""

    @model_validator(mode="after")
    def _one_logit_or_all(self) -> "CellConfig":
        for section in ("data", "evaluation"):
            check_own(section, getattr(self, section), self.data.name)
        binary = [name for name in self.loss.terms if name in BINARY_LOSSES]
        if self.data.category and len(binary) < len(self.loss.terms):
            raise ValueError(f"with data.category the losses are {', '.join(BINARY_LOSSES)}")
        if binary and not self.data.category and len(self.data.classes) != 2:
            raise ValueError(f"{binary[0]} needs a data.category, or data of two classes")
        if self.data.images == "features" and self.data.augmentation == "jaccard-segment":
            raise ValueError("data.augmentation=jaccard-segment is of photographs")
        if (self.data.images == "features") != (self.model.name == "evidence-net"):
            raise ValueError("data.images=features and model.name=evidence-net go together")
        if DATASET_LINES[self.data.name].grid and self.model.name == "enet":
            raise ValueError(f"enet does not train on {self.data.name}")
        if self.data.crops and self.model.name.startswith("deeplab") and self.data.size[0] % 8 != 1:
            raise ValueError("the sides of data.size must be 8 n + 1 pixels for "
                             f"{self.model.name}, not {self.data.size[0]}")  # fmt: skip
        if self.model.name == "enet" and any(side % 8 for side in self.data.size):
            raise ValueError("the sides of data.size must be multiples of 8 for enet, not "
                             "{}x{}".format(*self.data.size))  # fmt: skip
        return self

    @model_validator(mode="after")
    def _evaluation_fits(self) -> "CellConfig":
        wanted, category = self.evaluation, self.data.category
        if wanted.multi_scale and (category or self.data.images == "features"):
            raise ValueError("evaluation.multi_scale is of all classes, on photographs")
        if wanted.multi_scale and not self.model.name.startswith("deeplab"):
            raise ValueError("evaluation.multi_scale and evaluation.crf are of DeepLab-v2: set "
                             f"both to null for {self.model.name}")  # fmt: skip
        if wanted.least_side and self.data.images == "features":
            raise ValueError("evaluation.least_side is of photographs")
        if wanted.batches and category:
            raise ValueError("evaluation.batches is of all classes")
        if self.data.train_split == "trainval_aug" and wanted.snapshot == "best":
            raise ValueError("with data.train_split=trainval_aug no image is left to choose the "
                             "best snapshot by: set evaluation.snapshot to last")  # fmt: skip
        return self

    @property
    def name(self) -> str:
        """Short name of the run, unique within an experiment and profile."""
        category = f"-{self.data.category}" if self.data.category else ""
        return f"{self.variant}{category}-b{self.training.batch_size}-s{self.seed}"

    @property
    def params(self) -> dict[str, str]:
        """The config by dotted key, as the store has it; without that of the run it starts from."""
        return dotted(self.model_dump(mode="json", exclude={"start"}))


class Variant(BaseModel):
    """A row of the grid: what it changes in the recipe; checked when a cell is resolved."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    batch_sizes: list[Positive] | None = None
    """Those of the grid's batch sizes that it runs with; null: all."""
    categories: list[VocCategory] | None = None
    """Those of the grid's categories that it runs with; null: all; empty: on all classes."""
    classes: Literal["two", "more"] | None = None
    """Of data of your own with how many classes it runs unless it is asked for; null: any."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the recipe's iterations, how many it takes: where one run starts from another, both
    together train as long as the others."""

    @property
    def changes(self) -> dict[str, Any]:
        """What it lays over the recipe."""
        return dict(self.model_extra or {})


class Profile(Strict):
    """A size of the experiment: overrides of the recipe, never other code."""

    scale: Scale
    """What its numbers may be compared with; only "paper" runs enter a paper table."""
    about: str
    """One line: how large, on what, how long."""
    seeds: list[Seed] | None = None
    batch_sizes: list[Positive] | None = None
    categories: list[VocCategory] | None = None
    only: list[Name] | None = None
    """Variants that it runs unless some are asked for; null: all."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    variants: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Overrides of single variants, over those of the recipe."""


class About(Strict):
    """What an experiment file says of itself."""

    title: str
    section: str
    """Where in the paper it stands."""
    claim: str
    """What it is meant to show."""
    cost: str
    """What it takes to run."""


class ExperimentConfig(About):
    """An experiment file of kind ``training``."""

    experiment: Name
    kind: Literal["training"]
    seeds: list[Seed] = Field(min_length=1)
    batch_sizes: list[Positive] = Field(min_length=1)
    categories: list[VocCategory] = Field(default_factory=list)
    """The grid's classes that are told from the rest, one run each; empty: no such axis."""
    recipe: dict[str, Any]
    variants: dict[Name, Variant] = Field(min_length=1)
    profiles: dict[Name, Profile] = Field(min_length=1)

    def cells(
        self,
        profile: str = "paper",
        *,
        variants: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        batch_sizes: Sequence[int] | None = None,
        overrides: Mapping[str, Any] | None = None,
        with_basis: bool = True,
    ) -> list[CellConfig]:
        """Resolve the grid: batch sizes outermost, then seeds, categories and variants.

        A run that starts from the variant basis comes after that, which is part of the grid also
        where ``variants`` leaves it out.

        Args:
            profile: name of a profile of this experiment.
            variants, categories, seeds, batch_sizes: narrow or replace the grid; None takes the
                file's.
            overrides: dotted key -> value, applied to the recipe last. A paper-scale run with
                overrides is no longer the paper's recipe: its scale becomes "reduced".
            with_basis: train basis networks; otherwise a file is in their place.

        Raises:
            UserError: unknown profile, variant or key; wrong type; impossible value.
        """
        chosen = self.profiles[known_name(profile, self.profiles, "profile", self.experiment)]
        for variant in variants or ():
            known_name(variant, self.variants, "variant", self.experiment)
        for category in categories or ():
            known_name(category, self.categories, "class", self.experiment)
        classes: list[Any] = [*(categories or chosen.categories or self.categories)] or [None]
        sizes = batch_sizes or chosen.batch_sizes or self.batch_sizes
        draws, rows = seeds or chosen.seeds or self.seeds, variants or chosen.only or self.fitting
        if (runs := len(sizes) * len(draws) * len(classes) * len(rows)) > MOST_RUNS:
            raise UserError(f"{self.experiment}: a grid of {runs:,} runs; at most {MOST_RUNS:,}.")
        grid = [
            (batch_size, seed, category, variant)
            for batch_size in sizes
            for seed in draws
            for category in classes
            for variant in rows
            if batch_sizes or batch_size in (self.variants[variant].batch_sizes or [batch_size])
            if category in (self.variants[variant].categories or [category])
            if with_basis or variant != BASIS
        ]
        if not grid:
            raise UserError(
                f"{self.experiment}: profile {profile} has none of the batch sizes that "
                f"{', '.join(variants or self.variants)} runs with. Name one with --batch-size."
            )
        cells: dict[str, CellConfig] = {}
        for batch_size, seed, category, variant in grid:
            cell = self._cell(variant, profile, batch_size, seed, category, overrides or {})
            if cell.model.weights == BASIS and with_basis:
                own = self.variants[BASIS].batch_sizes or [batch_size]
                one_size = batch_size if batch_size in own else own[0]
                basis = self._cell(BASIS, profile, one_size, seed, category, overrides or {})
                cell = cell.model_copy(update={"start": basis})
                cells[basis.model_dump_json()] = basis
            cells[cell.model_dump_json()] = cell
        self._check_losses_differ(cells.values(), overrides or {})
        return list(cells.values())

    def _check_losses_differ(
        self, cells: Iterable[CellConfig], overrides: Mapping[str, Any]
    ) -> None:
        """Raise UserError where a loss that is set for all makes one run of several variants."""
        names: dict[str, list[str]] = {}
        for cell in cells:
            same = cell.model_copy(update={"variant": ""}).model_dump_json()
            names.setdefault(same, []).append(cell.variant)
        alike = next((found for found in names.values() if len(found) > 1), None)
        if alike and any(key.partition(".")[0] == "loss" for key in overrides):
            raise UserError(f"{self.experiment}: with this --set of the loss, {', '.join(alike)} "
                            "are the same run: choose one with --variant.")  # fmt: skip

    @property
    def fitting(self) -> list[str]:
        """The variants for as many classes as the recipe names."""
        other = "more" if len(self.recipe.get("data", {}).get("classes", ())) == 2 else "two"
        return [name for name, own in self.variants.items() if own.classes != other]

    def _cell(
        self,
        variant: str,
        profile: str,
        batch_size: int,
        seed: int,
        category: str | None,
        overrides: Mapping[str, Any],
    ) -> CellConfig:
        """One cell of the grid, without the run that it starts from."""
        own, size = self.variants[variant], self.profiles[profile]
        changes = [own.changes, size.recipe, size.variants.get(variant, {})]
        changes.append({"training": {"batch_size": batch_size}})
        if category and own.categories != []:
            changes.append({"data": {"category": category}})
        resolved = override(reduce(merge, changes, self.recipe), overrides)
        if own.share < 1:
            steps = math.ceil(own.share * resolved.get("training", {}).get("iterations", 1))
            resolved = merge(resolved, {"training": {"iterations": steps}})
        scale = "reduced" if overrides and size.scale == "paper" else size.scale
        place = {"experiment": self.experiment, "profile": profile, "scale": scale}
        resolved |= place | {"variant": variant, "seed": seed}
        return validate(CellConfig, resolved, f"{self.experiment} ({variant})")

    @model_validator(mode="after")
    def _variants_that_profiles_name_exist(self) -> "ExperimentConfig":
        for name, profile in self.profiles.items():
            for variant in [*profile.variants, *(profile.only or [])]:
                if variant not in self.variants:
                    raise ValueError(f"profile {name} names the variant {variant}, which there is "
                                     "not")  # fmt: skip
        return self


def experiments_folder() -> Path:
    """Folder with the experiment files: inside an installed wheel, or beside a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def experiment_names() -> list[str]:
    """Names of the experiments that come with the tool."""
    files = sorted(experiments_folder().glob("*.yaml"))
    return [file.stem for file in files if "\nexperiment: " in f"\n{file.read_text('utf-8')}"]


def experiment_file(name_or_path: str) -> Path:
    """The file of an experiment, given by name or as a path to a YAML file.

    Raises:
        UserError: there is none of this name; says which there are.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    known_name(name_or_path, experiment_names(), "experiment", "lovasz-repro")
    return experiments_folder() / f"{name_or_path}.yaml"


def load_experiment(name_or_path: str) -> ExperimentConfig:
    """Read and check an experiment file of kind ``training``."""
    path = experiment_file(name_or_path)
    return validate(ExperimentConfig, read_yaml(path), path.name)
