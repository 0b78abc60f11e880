"""A forecast of learning curves: a Gaussian process over settings and the logarithm of the epoch,
on the logarithm of the metric (Swersky et al. 2014, Freeze-thaw Bayesian optimization, arXiv
1406.3896).

All functions are pure. Shapes: N observed epochs, M epochs to forecast, A axes of the search, C
columns that encode a setting (one for a number, one a choice for words).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from tune.searches import Point

Array = NDArray[np.float64]

AMPLITUDES = (0.7, 0.7, 0.4, 0.2)
"""Typical sizes, in standard deviations of the metric's logarithm, of what a forecast adds up: a
curve that all settings share, a level of each setting, how its curve differs in shape, and what a
trial has of its own, such as its seed."""
LENGTH, TIME_LENGTH, NOISE = 0.3, 0.5, 0.1  # typical ones, of the whole range; of an epoch's metric
SPREAD = 0.5  # standard deviation of the logarithm of each, as the prior has it
LEAST_NOISE = 0.03  # below it a forecast grows too sure of itself
ROUNDS = 12  # of the optimizer
JITTER = 1e-6


class Epochs(NamedTuple):
    """Epochs of trials: observed ones, or those to forecast."""

    settings: Array  # (N, C), as `encode` makes them
    times: Array  # (N,), as `time_of` makes them
    trials: Array  # (N,), a number for each trial

    def join(self, other: "Epochs") -> "Epochs":
        """These epochs and others."""
        return Epochs(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def time_of(epoch: float, epochs: int) -> float:
    """An epoch as the forecast sees it: 0 before the first, 1 at the last."""
    return math.log1p(epoch) / math.log1p(epochs)


def encode(points: Iterable[Point], axes: Mapping[str, BaseDistribution]) -> Array:
    """Settings as numbers (N, C): numbers from 0 to 1 along their axis, words one-hot, at a
    distance of 1."""
    columns = [[x for name, axis in axes.items() for x in _encoded(axis, p[name])] for p in points]
    return np.array(columns, dtype=float).reshape(len(columns), len(axis_of_columns(axes)))


def axis_of_columns(axes: Mapping[str, BaseDistribution]) -> list[int]:
    """The number of the axis that each column of `encode` belongs to."""
    sizes = [len(_choices(axis)) if _is_words(axis) else 1 for axis in axes.values()]
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def _choices(axis: BaseDistribution) -> Sequence[object]:
    assert isinstance(axis, CategoricalDistribution)
    return axis.choices


def _is_words(axis: BaseDistribution) -> bool:
    """Whether an axis has choices that are in no order."""
    if not isinstance(axis, CategoricalDistribution):
        return False
    return any(isinstance(value, bool | str) or value is None for value in axis.choices)


def _encoded(axis: BaseDistribution, value: float) -> list[float]:
    """The columns of one value."""
    if _is_words(axis):
        return [math.sqrt(0.5) * (choice == value) for choice in _choices(axis)]
    if isinstance(axis, CategoricalDistribution):  # numbers, such as 64, 128, 256: by their rank
        ordered = sorted(axis.choices)  # type: ignore[type-var]
        return [ordered.index(value) / max(1, len(ordered) - 1)]
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high = axis.low, axis.high
    if low == high:
        return [0.0]
    if axis.log:
        return [math.log(value / low) / math.log(high / low)]
    return [(value - low) / (high - low)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What is known of all curves."""

    seen: Epochs
    weights: Array  # (N,), K^-1 y
    factor: Array  # (N, N), the lower Cholesky factor of K
    theta: Array
    owners: list[int]  # the axis of each column
    mean: float
    scale: float

    def at(self, wanted: Epochs) -> tuple[Array, Array]:
        """Mean and standard deviation (M,) of the metric's logarithm at the wanted epochs, without
        an epoch's own noise."""
        cross = covariance(self.theta, self.owners, wanted, self.seen).total  # (M, N)
        known = solve_triangular(self.factor, cross.T, lower=True)  # (N, M)
        amplitudes = np.exp(2 * self.theta[_amplitudes(self.owners)])
        left = np.maximum(amplitudes.sum() - (known**2).sum(0), 1e-9)
        return self.mean + self.scale * (cross @ self.weights), self.scale * np.sqrt(left)


class Covariance(NamedTuple):
    """The parts of a covariance matrix (N, M), of which derivatives are made."""

    parts: tuple[Array, Array, Array, Array]  # what all share, level, shape, what is a trial's own
    by_axis: list[Array]  # squared distances along each axis, in lengths
    in_time: Array  # squared distances in time, in lengths
    kernel_of_time: Array
    same: Array  # 1 where both are of the same trial

    @property
    def total(self) -> Array:
        return sum(self.parts[1:], self.parts[0])


def _amplitudes(owners: list[int]) -> slice:
    """Where theta keeps the amplitudes, after a length for each axis; then come the length in time
    and the noise. All are logarithms."""
    axes = max(owners, default=-1) + 1
    return slice(axes, axes + len(AMPLITUDES))


def covariance(theta: Array, owners: list[int], a: Epochs, b: Epochs) -> Covariance:
    """The covariance of the metric's logarithm between epochs."""
    amplitudes = np.exp(2 * theta[_amplitudes(owners)])
    by_axis = [np.zeros((len(a.times), len(b.times))) for _ in range(_amplitudes(owners).start)]
    for column, axis in enumerate(owners):
        difference = a.settings[:, column, None] - b.settings[None, :, column]
        by_axis[axis] += (difference / math.exp(theta[axis])) ** 2
    in_time = ((a.times[:, None] - b.times[None]) / math.exp(theta[-2])) ** 2
    of_time = np.exp(-0.5 * in_time)
    of_setting = np.exp(-0.5 * sum(by_axis, np.zeros_like(in_time)))
    same = (a.trials[:, None] == b.trials[None]).astype(float)
    parts = (
        amplitudes[0] * of_time,
        amplitudes[1] * of_setting,
        amplitudes[2] * of_setting * of_time,
        amplitudes[3] * same * (0.5 + 0.5 * of_time),
    )
    return Covariance(parts, by_axis, in_time, of_time, same)


def prior(owners: list[int]) -> Array:
    """The typical theta."""
    axes = _amplitudes(owners).start
    return np.log([LENGTH] * axes + [*AMPLITUDES, TIME_LENGTH, NOISE])


def loss(theta: Array, owners: list[int], seen: Epochs, y: Array) -> tuple[float, Array]:
    """The negative logarithm of the posterior density of theta, up to a constant, and its gradient
    (Rasmussen and Williams 2006, equation 5.9)."""
    found = covariance(theta, owners, seen, seen)
    noise = math.exp(2 * theta[-1])
    K = found.total + (noise + LEAST_NOISE**2 + JITTER) * np.eye(len(y))
    factor, lower = cho_factor(K, lower=True)
    weights = cho_solve((factor, lower), y)
    away = (theta - prior(owners)) / SPREAD
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
    W = cho_solve((factor, lower), np.eye(len(y))) - np.outer(weights, weights)
    shared, level, shape, own = found.parts
    of_settings = level + shape
    in_time = shared + shape + own - _own_constant(found)
    slopes = [of_settings * squared for squared in found.by_axis]
    slopes += [2 * part for part in found.parts]
    slopes += [in_time * found.in_time]
    gradient = [0.5 * (W * slope).sum() for slope in slopes] + [noise * np.trace(W)]
    return float(value), np.array(gradient) + away / SPREAD


def _own_constant(found: Covariance) -> Array:
    """Of what is a trial's own, the half that does not depend on the time."""
    own = found.parts[3]
    return own / (1 + found.kernel_of_time)


def fit(seen: Epochs, metric: Array, owners: list[int]) -> Forecast:
    """The forecast from observed values (N,) of the metric; depends on nothing else."""
    logs = np.log(np.maximum(metric, 1e-12))
    mean, scale = float(logs.mean()), float(logs.std()) or 1.0
    y = (logs - mean) / scale
    start = prior(owners)
    bounds = [(value - 3 * SPREAD, value + 3 * SPREAD) for value in start]
    found = minimize(
        loss,
        start,
        (owners, seen, y),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": ROUNDS},
    )
    return conditioned(found.x, owners, seen, y, mean, scale)


def conditioned(
    theta: Array, owners: list[int], seen: Epochs, y: Array, mean: float, scale: float
) -> Forecast:
    """The forecast of a given theta from standardised values (N,)."""
    noise = math.exp(2 * theta[-1]) + LEAST_NOISE**2 + JITTER
    K = covariance(theta, owners, seen, seen).total + noise * np.eye(len(y))
    factor = cholesky(K, lower=True)
    weights = cho_solve((factor, True), y)
    return Forecast(
        seen=seen,
        weights=weights,
        factor=factor,
        theta=theta,
        owners=owners,
        mean=mean,
        scale=scale,
    )


def imagine(forecast: Forecast, pending: Epochs) -> Forecast:
    """The forecast once pending epochs have scored what is expected of them."""
    if not len(pending.times):
        return forecast
    expected = (forecast.at(pending)[0] - forecast.mean) / forecast.scale
    known = forecast.factor @ (forecast.factor.T @ forecast.weights)  # y
    seen, y = forecast.seen.join(pending), np.concatenate([known, expected])
    return conditioned(forecast.theta, forecast.owners, seen, y, forecast.mean, forecast.scale)
