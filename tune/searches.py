"""The named searches. Each is a function that returns a complete specification.

A search varies some settings of `TrainConfig` (its axes) around a base config. Settings that the
original study varied together, such as both learning rates, are tied: one is sampled and the other
follows. An axis is one of Optuna's distributions, of whatever kind.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial

from dcgan.config import TrainConfig

Point = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A budget: how large the nets are and how long and how often they train."""

    name: str
    dataset: str
    width: int  # channels at the baseline's `generator_width` and `discriminator_width`
    epochs: int
    num_trials: int
    confirm: int  # best settings to train again after the search, on `confirm_seeds` fresh seeds
    confirm_seeds: int


DEMO = Preset(
    name="demo", dataset="mnist-mini", width=16, epochs=9, num_trials=15, confirm=1, confirm_seeds=3
)
FULL = Preset(
    name="full", dataset="mnist", width=64, epochs=25, num_trials=32, confirm=3, confirm_seeds=5
)
PRESETS = {preset.name: preset for preset in (DEMO, FULL)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What to vary, and over which values; called with an Optuna trial, a complete config."""

    name: str
    base: TrainConfig  # every setting that is not varied
    axes: Mapping[str, BaseDistribution]  # of each varied setting, by its name in `TrainConfig`
    ties: Mapping[str, str] = field(default_factory=dict)  # what follows a varied one, to that one
    grid: Mapping[str, Sequence[Any]]  # the original study's own values of each axis
    num_trials: int  # configs to try, unless the user or the grid says otherwise
    sampler: str = "tpe"  # the default one: `grid` where the space is a short list

    @property
    def settings(self) -> float:
        """How many different settings there are; infinite where one is continuous."""
        choices = [choices_of(axis) for axis in self.axes.values()]
        return math.prod(math.inf if values is None else len(values) for values in choices)

    def __call__(self, trial: optuna.Trial) -> Point:
        return self.complete({name: suggest(trial, name, axis) for name, axis in self.axes.items()})

    def complete(self, varied: Point) -> Point:
        """All settings of `TrainConfig`: the varied ones, those tied to them, and the base."""
        tied = {name: varied[followed] for name, followed in self.ties.items()}
        return self.base.to_dict() | varied | tied

    def holds(self, point: Point) -> bool:
        """Whether a point lies within the axes."""
        try:
            params = {name: point[name] for name in self.axes}
            create_trial(state=TrialState.RUNNING, params=params, distributions=dict(self.axes))
        except (ValueError, TypeError, KeyError):  # Optuna's of a value that is not contained
            return False
        # Optuna takes a text such as "75" for the number; here it is no value of the axis
        return all(
            axis.to_external_repr(axis.to_internal_repr(params[name])) == params[name]
            for name, axis in self.axes.items()
        )

    def baseline(self) -> Point:
        """The point of the space where the base config lies."""
        return {name: getattr(self.base, name) for name in self.axes}

    def as_grid(self) -> "Search":
        """The same search over the original study's own values alone."""
        axes = {name: CategoricalDistribution(values) for name, values in self.grid.items()}
        return dataclasses.replace(self, axes=axes)

    def within(self, images: int) -> "Search":
        """The same search without the batches that are larger than a training split."""
        axis = self.axes.get("batch_size")
        sizes = [size for size in choices_of(axis) or () if size <= images] if axis else []
        if not isinstance(axis, CategoricalDistribution) or not sizes:
            return self  # which is refused as a config of such a batch is
        grid = {
            name: [value for value in values if name != "batch_size" or value <= images]
            for name, values in self.grid.items()
        }
        axes = {**self.axes, "batch_size": CategoricalDistribution(sizes)}
        return dataclasses.replace(self, axes=axes, grid=grid)

    def points(self) -> list[Point]:
        """Every point of a finite space, in a fixed order; none where an axis is continuous."""
        choices = [choices_of(axis) or () for axis in self.axes.values()]
        return [dict(zip(self.axes, point, strict=True)) for point in itertools.product(*choices)]

    def axes_as_json(self) -> dict[str, Any]:
        """Each axis as Optuna writes it: the name of its kind, and its attributes."""
        return {name: json.loads(distribution_to_json(axis)) for name, axis in self.axes.items()}


def suggest(trial: optuna.Trial, name: str, axis: BaseDistribution) -> Any:
    """A value of an axis, as the trial's sampler proposes it."""
    if isinstance(axis, FloatDistribution):
        return trial.suggest_float(name, axis.low, axis.high, step=axis.step, log=axis.log)
    if isinstance(axis, IntDistribution):
        return trial.suggest_int(name, axis.low, axis.high, step=axis.step, log=axis.log)
    assert isinstance(axis, CategoricalDistribution)
    return trial.suggest_categorical(name, axis.choices)


def choices_of(axis: BaseDistribution) -> Sequence[Any] | None:
    """All values of an axis; None if it is continuous."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices
    if isinstance(axis, IntDistribution):
        return range(axis.low, axis.high + 1, axis.step)
    assert isinstance(axis, FloatDistribution)
    if axis.single():
        return [axis.low]
    if axis.step is None:
        return None
    steps = round((axis.high - axis.low) / axis.step)
    # as Optuna rounds them, so that a proposed value is equal to one of these
    return [min(i * axis.step + axis.low, axis.high) for i in range(steps + 1)]


def describe_axis(axis: BaseDistribution | None) -> str:
    """An axis as a person reads it: `5e-05 to 0.005, log-uniform` or `64, 128, 256`."""
    if axis is None:
        return "nothing"
    if isinstance(axis, CategoricalDistribution):
        return ", ".join(map(str, axis.choices))
    assert isinstance(axis, FloatDistribution | IntDistribution)
    kind = "whole numbers, " if isinstance(axis, IntDistribution) else ""
    kind += "log-uniform" if axis.log else "uniform"
    return f"{axis.low:g} to {axis.high:g}, {kind}"


def baseline(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """The original study's single setting: two stages in each net, Adam at 2e-4, batch 64,
    float32."""
    return Search(name="baseline", base=base, axes={}, grid={}, num_trials=1, sampler="grid")


def hparams(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Learning rate of both nets, batch size and optimizer."""
    return Search(
        name="hparams",
        base=base,
        axes={
            "generator_lr": FloatDistribution(5e-5, 5e-3, log=True),
            "batch_size": CategoricalDistribution([64, 128, 256]),
            "optimizer": CategoricalDistribution(["adam", "rmsprop"]),
        },
        ties={"discriminator_lr": "generator_lr"},
        grid={
            "generator_lr": (1e-4, 3e-4, 5e-4),
            "batch_size": (64, 128),
            "optimizer": ("adam", "rmsprop"),
        },
        num_trials=preset.num_trials,
    )


def architecture(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Depth and width of both nets, and extra convolutions in G."""
    width = preset.width
    widths = sorted({max(1, width // 2), width, 2 * width})
    return Search(
        name="architecture",
        base=base,
        axes={
            "generator_depth": CategoricalDistribution([1, 2, 3]),
            "generator_width": CategoricalDistribution(widths),
            "extra_convs": CategoricalDistribution([0, 1, 2]),
        },
        ties={"discriminator_depth": "generator_depth", "discriminator_width": "generator_width"},
        grid={
            "generator_depth": (2, 3),
            "generator_width": (width, 2 * width),
            "extra_convs": (0, 1),
        },
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


def modern(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """What the ten years after DCGAN added, with both learning rates apart: losses, norms of D,
    gradient penalties, augmentation, the average of G."""
    rates = FloatDistribution(5e-5, 5e-3, log=True)
    return Search(
        name="modern",
        base=base,
        axes={
            "loss": CategoricalDistribution(["non-saturating", "hinge", "relativistic"]),
            "discriminator_norm": CategoricalDistribution(["batch", "spectral", "none"]),
            "penalty": CategoricalDistribution([0.0, 0.1, 1.0]),
            "augment": CategoricalDistribution(["none", "translation"]),
            "generator_lr": rates,
            "discriminator_lr": rates,
            "ema_decay": CategoricalDistribution([0.0, 0.99]),
        },
        grid={
            "loss": ("non-saturating", "hinge", "relativistic"),
            "discriminator_norm": ("batch", "spectral", "none"),
            "penalty": (0.0, 1.0),
        },
        num_trials=preset.num_trials,
    )


SEARCHES: dict[str, Callable[[TrainConfig, Preset, Sequence[str]], Search]] = {
    search.__name__: search
    for search in (baseline, hparams, architecture, precision, joint, modern)
}


def doc_of(search: str) -> str:
    """What the search of a name is for."""
    return " ".join((SEARCHES[search].__doc__ or "").split())


def make_search(
    name: str, preset: Preset, precisions: Sequence[str], settings: Mapping[str, Any]
) -> Search:
    """The named search under a preset, with `settings` of `TrainConfig` fixed by the user.

    Raises:
        ValueError: an unknown setting, a value that is not allowed, or a fixed setting that the
            search varies.
    """
    sizes = {"generator_width": preset.width, "discriminator_width": preset.width}
    chosen = {"dataset": preset.dataset, "epochs": preset.epochs, **sizes, **settings}
    search = SEARCHES[name](TrainConfig.from_dict(chosen), preset, precisions)
    if varied := [key for key in settings if key in search.axes or key in search.ties]:
        raise ValueError(
            f"{', '.join(varied)} cannot be fixed: search {name} varies {', '.join(search.axes)}"
        )
    for axis, values in search.axes.items():
        for value in choices_of(values) or ():
            TrainConfig.from_dict(search.complete(search.baseline() | {axis: value}))  # is allowed
    return search
