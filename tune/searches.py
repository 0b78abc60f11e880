"""The named searches. Each is a function that returns a complete specification.

A search varies some settings of `TrainConfig` (its axes) around a base config. Settings that the report varied together,
such as both learning rates, are tied: one is sampled and the other follows.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from dcgan.config import TrainConfig
from dcgan.loop import RATES
from dcgan.schema import METRIC

Point = dict[str, Any]

OBJECTIVES = {
    **dict.fromkeys((METRIC, "kid", "digit_kl", "seconds_train", "seconds_eval", "peak_memory_bytes"), "min"),
    **dict.fromkeys(("sample_precision", "sample_recall", "sample_density", "sample_coverage"), "max"),
    **dict.fromkeys(("classifier_score", "digits_covered", "images_per_second"), "max"),
}
"""Columns that a search can optimise, and which way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A budget: how large the nets are and how long and how often they train."""

    name: str
    dataset: str
    width: int
    """Channels at the baseline's `generator_width` and `discriminator_width`."""
    epochs: int
    num_trials: int
    confirm: int
    """Best settings to train again after the search, on `confirm_seeds` fresh seeds."""
    confirm_seeds: int


DEMO = Preset(name="demo", dataset="mnist-mini", width=16, epochs=9, num_trials=18, confirm=1, confirm_seeds=2)
REPORT = Preset(name="report", dataset="mnist", width=64, epochs=25, num_trials=32, confirm=3, confirm_seeds=5)
PRESETS = {preset.name: preset for preset in (DEMO, REPORT)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What to vary, over which values, and what to call best. Called with an Optuna trial, it gives a complete config.

    Ray's `OptunaSearch` takes it as a define-by-run space: what is suggested and what is returned make up the config.
    """

    name: str
    base: TrainConfig
    """Every setting that is not varied."""
    axes: Mapping[str, BaseDistribution]
    """Distribution of each varied setting, by its name in `TrainConfig`."""
    ties: Mapping[str, str] = field(default_factory=dict)
    """Settings that follow a varied one: name to the name followed."""
    grid: Mapping[str, Sequence[Any]]
    """The report's own values of each axis, for `--sampler grid`."""
    num_trials: int
    """Configs to try, unless the user or the grid says otherwise."""
    sampler: str = "tpe"
    """The default sampler: `grid` where the space is a short list."""
    metric: str = METRIC
    mode: str = "min"

    @property
    def rates(self) -> dict[str, FloatDistribution]:
        """The learning rates among the axes."""
        return {name: axis for name, axis in self.axes.items() if name in RATES and isinstance(axis, FloatDistribution)}

    @property
    def settings(self) -> float:
        """How many different settings there are; infinite where one is continuous."""
        sizes = [len(a.choices) if isinstance(a, CategoricalDistribution) else math.inf for a in self.axes.values()]
        return math.prod(sizes)

    def __call__(self, trial: optuna.Trial) -> Point:
        varied = {name: _suggest(trial, name, distribution) for name, distribution in self.axes.items()}
        return self.complete(varied)

    def complete(self, varied: Point) -> Point:
        """All settings of `TrainConfig`: the varied ones, those tied to them, and the base."""
        return self.base.to_dict() | varied | self.tied(varied)

    def tied(self, varied: Point) -> Point:
        """The settings that follow the varied ones."""
        return {name: varied[followed] for name, followed in self.ties.items()}

    def holds(self, point: Point) -> bool:
        """Whether a point lies within the ranges of the axes."""
        return all(_holds(axis, point[name]) for name, axis in self.axes.items())

    def baseline(self) -> Point:
        """The point of the space where the base config lies."""
        return {name: getattr(self.base, name) for name in self.axes}

    def grid_points(self) -> list[Point]:
        """Every combination of the grid's values, in a fixed order."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _holds(axis: BaseDistribution, value: Any) -> bool:
    if isinstance(axis, FloatDistribution):
        return bool(axis.low <= value <= axis.high)
    assert isinstance(axis, CategoricalDistribution)
    return value in axis.choices


LEARNING_RATE = {"generator_lr": FloatDistribution(5e-5, 5e-3, log=True)}
TIED_RATES = {"discriminator_lr": "generator_lr"}
OPTIMIZER = {"optimizer": CategoricalDistribution(["adam", "rmsprop"])}
TIED_SIZES = {"discriminator_depth": "generator_depth", "discriminator_width": "generator_width"}


def baseline(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """The report's single setting: two stages in each net, Adam at 2e-4, batch 64, float32."""
    return Search(name="baseline", base=base, axes={}, grid={}, num_trials=1, sampler="grid")


def hparams(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Learning rate of both nets, batch size and optimizer."""
    return Search(
        name="hparams",
        base=base,
        axes={**LEARNING_RATE, "batch_size": CategoricalDistribution([64, 128, 256]), **OPTIMIZER},
        ties=TIED_RATES,
        grid={"generator_lr": (1e-4, 3e-4, 5e-4), "batch_size": (64, 128), "optimizer": ("adam", "rmsprop")},
        num_trials=preset.num_trials,
    )


def architecture(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Depth and width of both nets, and extra convolutions in G."""
    width = preset.width
    return Search(
        name="architecture",
        base=base,
        axes={
            "generator_depth": CategoricalDistribution([1, 2, 3]),
            "generator_width": CategoricalDistribution(sorted({max(1, width // 2), width, 2 * width})),
            "extra_convs": CategoricalDistribution([0, 1, 2]),
        },
        ties=TIED_SIZES,
        grid={"generator_depth": (2, 3), "generator_width": (width, 2 * width), "extra_convs": (0, 1)},
        num_trials=preset.num_trials,
    )


def precision(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Numeric precision, as far as the device can do it at a sensible speed."""
    return Search(
        name="precision",
        base=base,
        axes={"precision": CategoricalDistribution(list(precisions))},
        grid={"precision": tuple(precisions)},
        num_trials=len(precisions),
        sampler="grid",
    )


def joint(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Hyperparameters, architecture and precision together."""
    parts = [search(base, preset, precisions) for search in (hparams, architecture, precision)]
    return Search(
        name="joint",
        base=base,
        axes={name: values for part in parts for name, values in part.axes.items()},
        ties={name: followed for part in parts for name, followed in part.ties.items()},
        grid={name: values for part in parts for name, values in part.grid.items()},
        num_trials=2 * preset.num_trials,
    )


SEARCHES: dict[str, Callable[[TrainConfig, Preset, Sequence[str]], Search]] = {
    search.__name__: search for search in (baseline, hparams, architecture, precision, joint)
}


def make_search(name: str, preset: Preset, precisions: Sequence[str], settings: Mapping[str, Any]) -> Search:
    """The named search under a preset, with `settings` of `TrainConfig` fixed by the user.

    Raises:
        ValueError: unknown search or setting, a value that is not allowed, or a fixed setting that the search varies.
    """
    if name not in SEARCHES:
        raise ValueError(f"search is {name!r}; allowed: {', '.join(SEARCHES)}")
    sizes = {"generator_width": preset.width, "discriminator_width": preset.width}
    chosen = {"dataset": preset.dataset, "epochs": preset.epochs, **sizes, **settings}
    search = SEARCHES[name](TrainConfig.from_dict(chosen), preset, precisions)
    if varied := [key for key in settings if key in search.axes or key in search.ties]:
        raise ValueError(f"{', '.join(varied)} cannot be fixed: search {name} varies {', '.join(search.axes)}")
    for name, axis in search.axes.items():
        for choice in getattr(axis, "choices", ()):
            TrainConfig.from_dict(search.complete(search.baseline() | {name: choice}))  # each is allowed
    return search
