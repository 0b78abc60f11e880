"""The forecast of learning curves, against closed forms and worlds whose truth is known."""

import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.optimize import approx_fprime
from scipy.stats import norm

from tune import forecast
from tune.forecast import Epochs, axis_of_columns, conditioned, covariance, encode, fit, imagine

AXES: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-4, 1e-2, log=True),
    "size": CategoricalDistribution([64, 256, 128]),
    "kind": CategoricalDistribution(["adam", "rmsprop", "sgd"]),
    "depth": IntDistribution(1, 5),
}
OWNERS = axis_of_columns(AXES)


def some_epochs(rng: np.random.Generator, curves: int, epochs: int = 9) -> Epochs:
    """All epochs of curves with settings by chance."""
    settings = rng.random((curves, len(OWNERS)))
    times = [forecast.time_of(epoch, epochs) for epoch in range(1, epochs + 1)]
    trials = np.arange(curves, dtype=float)
    return Epochs(np.repeat(settings, epochs, 0), np.tile(times, curves), np.repeat(trials, epochs))


def test_settings_are_encoded_by_their_axes() -> None:
    points: list[dict[str, Any]] = [
        {"rate": 1e-3, "size": 128, "kind": "adam", "depth": 1},
        {"rate": 1e-2, "size": 256, "kind": "sgd", "depth": 4},
    ]
    half = math.sqrt(0.5)
    rows = [[0.5, 0.5, half, 0, 0, 0], [1, 1, 0, 0, half, 0.75]]
    assert encode(points, AXES) == pytest.approx(np.array(rows))
    assert OWNERS == [0, 1, 2, 2, 2, 3]
    assert encode([], AXES).shape == (0, 6)
    assert encode([{}], {}).shape == (1, 0)  # a search without axes


@pytest.mark.parametrize(
    "axis",
    [
        FloatDistribution(2.0, 2.0),
        IntDistribution(1, 1),
        CategoricalDistribution([7]),
        CategoricalDistribution([True, None]),
    ],
)
def test_single_and_odd_values_are_encoded(axis: BaseDistribution) -> None:
    value = getattr(axis, "low", None) or axis.choices[0]  # type: ignore[attr-defined]
    assert np.isfinite(encode([{"a": value}], {"a": axis})).all()


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    seen = some_epochs(rng, 4)
    y = rng.standard_normal(len(seen.times))
    theta = forecast.prior(OWNERS) + 0.3 * rng.standard_normal(len(forecast.prior(OWNERS)))

    def value(theta: Any) -> float:
        return forecast.loss(theta, OWNERS, seen, y)[0]

    found = forecast.loss(theta, OWNERS, seen, y)[1]
    assert found == pytest.approx(approx_fprime(theta, value, 1e-6), rel=1e-3, abs=1e-3)


def test_the_forecast_is_that_of_the_textbook() -> None:
    """Rasmussen and Williams 2006, equations 2.25 and 2.26, by plain inverses."""
    rng = np.random.default_rng(1)
    seen, wanted = some_epochs(rng, 3), some_epochs(rng, 2)
    y, theta = rng.standard_normal(len(seen.times)), forecast.prior(OWNERS)
    found = conditioned(theta, OWNERS, seen, y, mean=2.0, scale=3.0)
    noise = math.exp(2 * theta[-1]) + forecast.LEAST_NOISE**2 + forecast.JITTER
    inverse = np.linalg.inv(covariance(theta, OWNERS, seen, seen).total + noise * np.eye(len(y)))
    cross = covariance(theta, OWNERS, wanted, seen).total
    own = np.diag(covariance(theta, OWNERS, wanted, wanted).total)
    mean, deviation = found.at(wanted)
    assert mean == pytest.approx(2.0 + 3.0 * cross @ inverse @ y)
    assert deviation**2 == pytest.approx(9.0 * (own - np.diag(cross @ inverse @ cross.T)))


def test_the_forecast_is_as_sure_as_it_should_be() -> None:
    """Where curves are as the prior says, some nine in ten ends lie within its 90 % interval, seen
    from the first epochs: 83 %, since one theta, the likeliest, stands for all."""
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(40):
        whole = some_epochs(rng, 8)
        K = covariance(forecast.prior(OWNERS), OWNERS, whole, whole).total
        curves = rng.multivariate_normal(np.zeros(len(K)), K + 1e-9 * np.eye(len(K)))
        noisy = curves + forecast.NOISE * rng.standard_normal(len(K))
        early, last = whole.times < forecast.time_of(4.5, 9), whole.times == 1
        known = fit(Epochs(*(part[early] for part in whole)), np.exp(noisy[early]), OWNERS)
        mean, deviation = known.at(Epochs(*(part[last] for part in whole)))
        inside += list(np.abs(curves[last] - mean) < norm.ppf(0.95) * deviation)
    assert 0.78 < np.mean(inside) < 0.97


def test_it_learns_which_settings_are_good() -> None:
    """From one epoch each of a few settings, whose metric falls along one axis alone."""
    rng = np.random.default_rng(3)
    settings = rng.random((15, len(OWNERS)))
    seen = Epochs(settings, np.full(15, 0.3), np.arange(15.0))
    known = fit(seen, np.exp(-3 * settings[:, 0]), OWNERS)
    wanted = np.full((2, len(OWNERS)), 0.5)
    wanted[:, 0] = 0.1, 0.9
    (bad, good), _ = known.at(Epochs(wanted, np.ones(2), np.array([98.0, 99.0])))
    assert good < bad - 1
    assert known.theta[0] < known.theta[1]  # the length of the axis that matters is short


def test_equal_metrics_are_no_trouble() -> None:
    seen = some_epochs(np.random.default_rng(4), 2)
    mean, deviation = fit(seen, np.full(len(seen.times), 5.0), OWNERS).at(seen)
    assert mean == pytest.approx(math.log(5))
    assert np.isfinite(deviation).all()


def test_the_same_epochs_give_the_same_forecast() -> None:
    """To the last bit, or a resumed search would go another way."""
    rng = np.random.default_rng(5)
    seen = some_epochs(rng, 5)
    metric = rng.uniform(10, 100, len(seen.times))
    one, other = (fit(seen, metric, OWNERS) for _ in range(2))
    assert np.array_equal(one.theta, other.theta)
    assert np.array_equal(one.weights, other.weights)


def test_imagined_epochs_make_sure_and_change_no_mean() -> None:
    rng = np.random.default_rng(6)
    seen, pending = some_epochs(rng, 4), some_epochs(rng, 1)
    pending = pending._replace(trials=pending.trials + 9)
    known = fit(seen, rng.uniform(10, 100, len(seen.times)), OWNERS)
    imagined = imagine(known, pending)
    assert imagined.at(pending)[0] == pytest.approx(known.at(pending)[0], rel=1e-6)
    assert (imagined.at(pending)[1] < 0.8 * known.at(pending)[1]).all()
    nothing = Epochs(*(part[:0] for part in pending))
    assert imagine(known, nothing) is known
