"""What a worker of a freeze-thaw search does next: which frozen trial goes on, or which new setting
begins, by a forecast of all curves so far (Swersky et al. 2014, arXiv 1406.3896; the rule of choice
is that of Rakotoarison et al. 2024, arXiv 2404.16795). All functions are pure.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm
from threadpoolctl import ThreadpoolController

from dcgan.schema import METRIC
from tune.forecast import Epochs, Forecast, axis_of_columns, encode, fit, imagine, time_of
from tune.ledger import RETRY_OF
from tune.plan import Plan
from tune.searches import Point, choices_of

STEPS = 12  # of a trial from its beginning to its end, at most
STARTS = 6  # settings that train a step before anything is forecast
CANDIDATES = 100  # new settings that a decision considers
GAIN = (-1.5, 0.3)
"""By how much the best is to be beaten: a random power of ten between these, in standard deviations
of the metric's logarithm."""
MOST_SEEN = 400  # epochs that a forecast is made of; a decision then takes some tenths of a second
LIBRARIES = ThreadpoolController()  # that are loaded by now and have threads


@dataclass(slots=True)
class Curve:
    """What is known of a trial."""

    point: Point
    values: dict[int, float] = field(default_factory=dict)  # the metric of each epoch
    over: bool = False  # finished, failed or stopped
    failed: bool = False

    @property
    def trained(self) -> int:
        """Epochs so far."""
        return len(self.values)

    @property
    def best(self) -> float:
        """The best metric; of a failed trial none counts."""
        return math.inf if self.failed else min(self.values.values(), default=math.inf)


Trials = Mapping[int, Curve]
"""The curve of each trial, by its number in the ledger."""


def curves_of(trials: Sequence[FrozenTrial]) -> dict[int, Curve]:
    """The curves in a ledger. Of a failed trial that was begun anew the later one counts."""
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return {
        trial.number: Curve(
            point=trial.params,
            values=dict(trial.intermediate_values),
            over=trial.state.is_finished(),
            failed=trial.state == TrialState.FAIL,
        )
        for trial in trials
        if trial.number not in retried
    }


def step_of(epochs: int) -> int:
    """Epochs that a trial trains before the next decision."""
    return max(1, round(epochs / STEPS))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps products of matrices to one thread. For such small ones more cost far more than they
    bring, above all beside trials that train, and round as the number of cores has it."""
    with LIBRARIES.limit(limits=1, user_api="blas"):
        yield


def forecast_of(curves: Trials, axes: Mapping[str, BaseDistribution], epochs: int) -> Forecast:
    """The forecast from all epochs so far. A failed trial counts as if its last epoch were as bad
    as the worst that was seen, so that settings like it are avoided."""
    every = math.ceil(sum(curve.trained for curve in curves.values()) / MOST_SEEN)
    worst = max(value for curve in curves.values() for value in curve.values.values())
    rows: list[tuple[int, float, float]] = []  # trial, epoch, metric
    for number, curve in sorted(curves.items()):
        for epoch, value in sorted(curve.values.items()):
            if epoch % every == 0 or epoch == curve.trained:
                rows.append((number, epoch, value))
        if curve.failed:
            rows.append((number, epochs, worst))
    seen = epochs_of(curves, [row[:2] for row in rows], axes, epochs)
    return fit(seen, np.array([value for *_, value in rows]), axis_of_columns(axes))


def epochs_of(
    curves: Trials,
    wanted: Sequence[tuple[int, float]],
    axes: Mapping[str, BaseDistribution],
    epochs: int,
) -> Epochs:
    """Epochs of trials, given by number, as the forecast takes them."""
    return Epochs(
        encode([curves[number].point for number, _ in wanted], axes),
        np.array([time_of(epoch, epochs) for _, epoch in wanted]),
        np.array([number for number, _ in wanted], dtype=float),
    )


def draw(axes: Mapping[str, BaseDistribution], rng: np.random.Generator) -> Point:
    """A setting by chance."""
    point: Point = {}
    for name, axis in axes.items():
        choices = choices_of(axis)
        if choices is not None:
            point[name] = choices[int(rng.integers(len(choices)))]
            continue
        assert isinstance(axis, FloatDistribution)
        low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
        value = float(rng.uniform(low, high))
        point[name] = min(max(math.exp(value) if axis.log else value, axis.low), axis.high)
    return point


@one_thread()
def choose(
    curves: Trials,
    frozen: Sequence[int],
    training: Mapping[int, int],
    new: Sequence[Point],
    axes: Mapping[str, BaseDistribution],
    epochs: int,
    rng: np.random.Generator,
) -> int | Point | None:
    """The number of the frozen trial that goes on, or the new setting that begins; None where none
    may.

    Each is asked how likely it is, after a random number of further epochs, to beat the best by a
    random gain. Trials that train are imagined to score, at the epoch that they train to
    (`training`), what is expected of them.
    """
    if not frozen and not new:
        return None
    if new and (len(curves) < STARTS or not any(curve.values for curve in curves.values())):
        return new[0]
    forecast = forecast_of(curves, axes, epochs)
    forecast = imagine(forecast, epochs_of(curves, sorted(training.items()), axes, epochs))
    further = int(rng.integers(1, epochs + 1))
    gain = forecast.scale * 10 ** rng.uniform(*GAIN)
    goal = math.log(min(curve.best for curve in curves.values())) - gain
    ends = [(number, min(epochs, curves[number].trained + further)) for number in frozen]
    first = max(curves) + 1
    fresh = {first + i: Curve(point) for i, point in enumerate(new)}
    ends += [(number, min(epochs, further)) for number in fresh]
    mean, deviation = forecast.at(epochs_of(dict(curves) | fresh, ends, axes, epochs))
    likeliest = ends[int(np.argmax((goal - mean) / deviation))][0]
    return fresh[likeliest].point if likeliest in fresh else likeliest


@one_thread()
def outlook(plan: Plan, trials: Sequence[FrozenTrial]) -> str:
    """What more epochs would likely bring: the expected improvement (Jones et al. 1998, equation
    15, of the metric's logarithm) of the most promising trial, trained to its end."""
    curves, axes, epochs = curves_of(trials), plan.search.axes, plan.epochs
    best = min((curve.best for curve in curves.values()), default=math.inf)
    if best == math.inf:
        return ""
    rng = np.random.default_rng([plan.seed, len(curves)])
    ends = [number for number, one in curves.items() if not one.failed and one.trained < epochs]
    fresh = {max(curves) + 1 + i: Curve(draw(axes, rng)) for i in range(CANDIDATES)}
    ends += fresh
    wanted = epochs_of(curves | fresh, [(number, epochs) for number in ends], axes, epochs)
    mean, deviation = forecast_of(curves, axes, epochs).at(wanted)
    sure = (math.log(best) - mean) / deviation
    gain = deviation * (sure * norm.cdf(sure) + norm.pdf(sure))
    top = int(np.argmax(gain))
    number = ends[top]
    who = "a new setting" if number in fresh else plan.trial_folder(number).name
    lacks = epochs if number in fresh else epochs - curves[number].trained
    assert plan.epochs_in_all
    return (
        f"more: {lacks} further epochs, of {who}, would likely bring {METRIC} from {best:.3g} to "
        f"about {best * math.exp(-gain[top]):.3g} ({norm.cdf(sure[top]):.0%} likely to be better):"
        f"\n  {plan.resume_command} --epochs-in-all {plan.epochs_in_all + lacks}"
    )
