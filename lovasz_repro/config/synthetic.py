"""What may stand in experiments/synthetic.yaml (Sec. 4.1, Fig. 3)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from lovasz_repro.config.read import Strict, override, read_yaml, validate
from lovasz_repro.config.schema import About, Scale, experiment_file

MOST_STEPS = 10_000
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]


class CirclesConfig(Strict):
    """The images of one seed."""

    images: Annotated[int, Field(ge=1)]
    """N, the number of images."""
    size: Annotated[int, Field(ge=2)]
    """Height and width of an image, pixels."""
    radius: tuple[Annotated[FiniteFloat, Field(ge=1)], PositiveFloat]
    """Smallest and largest radius of the circles, pixels; drawn uniformly."""
    mean: FiniteFloat
    """Mean of the feature in the foreground; in the background it is -mean."""
    noise: PositiveFloat
    """Standard deviation of the feature."""

    @model_validator(mode="after")
    def _circles_fit(self) -> "CirclesConfig":
        smallest, largest = self.radius
        if smallest > largest:
            raise ValueError(f"radius goes from {smallest:g} down to {largest:g}: swap the two")
        if largest > self.size / 2:
            raise ValueError(
                f"a circle of radius {largest:g} does not fit an image of size {self.size}: "
                f"at most {self.size / 2:g}"
            )
        return self


class SearchConfig(Strict):
    """The exhaustive search over the bias b."""

    bias: tuple[FiniteFloat, FiniteFloat]
    """Smallest and largest bias."""
    step: PositiveFloat
    """Step of the first grid, which covers the whole range."""
    resolution: PositiveFloat
    """The grid is refined tenfold around its best point until its step is no larger than this."""
    curve_step: PositiveFloat
    """Step of the curves of Fig. 3b."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "SearchConfig":
        low, high = self.bias
        if low >= high:
            raise ValueError(f"bias must go from low to high, not from {low:g} to {high:g}")
        for name in ("step", "curve_step"):
            steps = (high - low) / getattr(self, name)
            if not 1 <= steps <= MOST_STEPS:
                raise ValueError(
                    f"{name} must divide the range of biases, {high - low:g}, "
                    f"into 1 to {MOST_STEPS} steps, not {steps:.4g}"
                )
        return self


class SweepConfig(Strict):
    """Other images for the same search: every radius with every noise, each a run of its own."""

    seeds: Annotated[int, Field(ge=1)]
    bias: tuple[FiniteFloat, FiniteFloat]
    curve_step: PositiveFloat
    radius: Annotated[list[tuple[float, float]], Field(min_length=1)]
    noise: Annotated[list[float], Field(min_length=1)]


class SyntheticConfig(About):
    """The synthetic experiment."""

    experiment: Literal["synthetic"]
    kind: Literal["synthetic"]
    seeds: Annotated[int, Field(ge=1, le=100_000)]
    """Independent repetitions, with seeds 0, 1, ..."""
    circles: CirclesConfig
    search: SearchConfig
    sweep: SweepConfig | None = None
    profile: Literal["paper", "sweep"] = "paper"
    """What a run is stored as; it changes no number."""

    def cells(self) -> "list[SyntheticConfig]":
        """A config for each radius and noise of the sweep.

        Raises:
            UserError: images that cannot be drawn; one line.
        """
        if self.sweep is None:
            return []
        content = self.model_dump(mode="json", exclude={"sweep"})
        content |= {"seeds": self.sweep.seeds, "profile": "sweep"}
        content["search"] |= {"bias": self.sweep.bias, "curve_step": self.sweep.curve_step}
        return [
            validate(
                SyntheticConfig,
                content | {"circles": content["circles"] | {"radius": radius, "noise": noise}},
                "a cell of the sweep",
            )
            for noise in self.sweep.noise
            for radius in self.sweep.radius
        ]

    @property
    def images(self) -> str:
        """What is drawn, where a sweep has several."""
        return f"radius {self.circles.radius}, noise {self.circles.noise}"

    def recipe(self) -> dict[str, Any]:
        """What decides the result: seeds, images and search; nested, of plain values."""
        return self.model_dump(mode="json", include={"seeds", "circles", "search"})

    @property
    def scale(self) -> Scale:
        """ "paper" with the paper's images (10 of 50x50, features N(+-1/2, 1)), else "reduced".

        So is a sweep, which draws fewer of them.
        """
        circles = self.circles
        if self.profile == "sweep":
            return "reduced"
        given = (circles.images, circles.size, circles.mean, circles.noise)
        return "paper" if given == (10, 50, 0.5, 1.0) else "reduced"


def load_synthetic(
    name_or_path: str = "synthetic", overrides: Mapping[str, Any] | None = None
) -> SyntheticConfig:
    """Read and check the experiment file.

    Args:
        name_or_path: `synthetic`, or a path to a YAML file of this kind.
        overrides: dotted key -> value, for example `{"circles.images": 20}`.

    Raises:
        UserError: not readable, unknown key, wrong type or impossible value; one line.
    """
    path = experiment_file(name_or_path)
    content = override(read_yaml(path), overrides or {})
    return validate(SyntheticConfig, content, path.name)
