"""Statistics: against SciPy and closed cases, and by simulation of how often they are right."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis.stats import (
    compare_blocks,
    compare_samples,
    holm,
    mean_interval,
    student_quantile,
    tail_probability,
    welch,
)

WORLDS = 500
SIZES = (2, 3, 5, 10)
LEAST_COVERAGE = 0.93
MOST_FALSE = 0.07


def worlds(seed: int) -> list[np.random.Generator]:
    return np.random.default_rng(seed).spawn(WORLDS)


def test_intervals_are_students() -> None:
    """By hand: 2, 4, 6, 8 have mean 5 and standard error sqrt(20/3)/2; t(0.975, 3) is 3.182446 in
    every table."""
    half = 3.1824463 * np.sqrt(20 / 3) / 2
    values = pd.Series([2.0, 4.0, np.nan, 6.0, 8.0])
    assert mean_interval(values) == pytest.approx((5.0, 5 - half, 5 + half, 4))
    some = [1.0, 7.0, 8.0, 8.5, 3.0]
    expected = scipy_stats.ttest_1samp(some, 0)
    assert mean_interval(some)[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert mean_interval(some, family=5)[1:3] == pytest.approx(
        tuple(expected.confidence_interval(0.99))
    )
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0, 3.0, 2)


def test_few_values_have_no_interval() -> None:
    nothing = (math.nan, math.nan)
    assert mean_interval([3.0]) == pytest.approx((3.0, *nothing, 1), nan_ok=True)
    assert mean_interval([math.nan]) == pytest.approx((math.nan, *nothing, 0), nan_ok=True)
    assert welch([1.0, 2.0], [5.0]) == pytest.approx((-3.5, *nothing, 1), nan_ok=True)
    assert welch([], []) == pytest.approx((math.nan, *nothing, 0), nan_ok=True)
    assert not mean_interval([3.0]).excludes(0)


def test_differences_are_welchs() -> None:
    x, y = [1.0, 5.0, 7.0], [10.0, 11.0, 30.0, 14.0]
    expected = scipy_stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert welch(x, y)[1:3] == pytest.approx(tuple(expected))


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 11, 400, 10_000])
@pytest.mark.parametrize("tail", [1e-9, 2.5e-4, 0.0125, 0.025, 0.4])
def test_quantiles_are_scipys(tail: float, freedom: float) -> None:
    assert student_quantile(tail, freedom) == pytest.approx(
        scipy_stats.t.isf(tail, freedom), rel=1e-9
    )


def test_tails_are_scipys() -> None:
    x = [1.0, 5.0, 7.0, 2.0]
    for threshold in (-1.0, 3.0, 9.0):
        expected = scipy_stats.ttest_1samp(x, threshold, alternative="greater").pvalue
        assert tail_probability(x, threshold) == pytest.approx(expected)
    assert math.isnan(tail_probability([1.0], 0))
    assert tail_probability([1.0, 1.0], 0) == 0
    assert tail_probability([1.0, 1.0], 2) == 1


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .2 times 4, 3, 2, 1, and never below the one before."""
    found = holm([0.2, 0.01, math.nan, 0.03, 0.02])
    assert found == pytest.approx([0.2, 0.04, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([]).size == 0


def test_two_matched_levels_have_the_paired_t_interval() -> None:
    x, y = np.array([1.0, 2.0, 9.0, 4.0]), np.array([2.0, 2.5, 12.0, 4.5])
    found = compare_blocks(pd.DataFrame({"a": x, "b": y}))
    assert found[0].difference[:1] == (0.0,)
    assert math.isnan(found[0].difference.low)
    expected = scipy_stats.ttest_rel(y, x).confidence_interval(0.95)
    assert found[1].difference[1:3] == pytest.approx(tuple(expected), rel=1e-4)
    assert found[0].mean == mean_interval(x)


def test_unmatched_levels_of_two_have_welchs_interval() -> None:
    x, y = [1.0, 2.0, 9.0, 4.0], [2.0, 2.5, 12.0]
    found = compare_samples([y, x])
    assert found[1].mean == mean_interval(x)
    assert found[1].difference.value == 0
    assert math.isnan(found[1].difference.low)
    assert found[0].difference == welch(y, x)
    most = compare_samples([y, x], most=True)
    assert most[1].difference == welch(x, y)


def test_a_level_of_one_value_or_none_has_no_difference_interval() -> None:
    found = compare_samples([[1.0, 2.0], [5.0], []])
    assert found[1].difference.value == 3.5
    assert math.isnan(found[1].difference.low)
    assert math.isnan(found[2].mean.value)
    assert found[2].mean.n == 0


@pytest.mark.parametrize("n", SIZES)
def test_means_are_covered(n: int) -> None:
    covered = [not mean_interval(rng.normal(3, 2, n)).excludes(3) for rng in worlds(n)]
    assert np.mean(covered) >= LEAST_COVERAGE


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("n", SIZES)
def test_differences_from_the_best_are_covered_where_levels_differ(n: int, levels: int) -> None:
    """Samples of unequal variances around true means 0, 1, 2, 3."""
    truth = np.arange(levels, dtype=float)
    covered = []
    for rng in worlds(10 + n):
        samples = [rng.normal(mean, 1 + mean, n) for mean in truth]
        found = compare_samples(samples)
        best = int(np.argmin([one.mean.value for one in found]))
        covered += [
            not one.difference.excludes(truth[number] - truth[best])
            for number, one in enumerate(found)
            if number != best
        ]
    assert np.mean(covered) >= LEAST_COVERAGE


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("n", SIZES)
def test_tables_of_equal_levels_seldom_show_a_difference(n: int, levels: int) -> None:
    """Matched ones, whose rows differ much, and unmatched ones."""
    samples, blocks = [], []
    for rng in worlds(100 + n + levels):
        alone = compare_samples(list(rng.normal(size=(levels, n))))
        table = pd.DataFrame(rng.normal(size=(n, levels)) + rng.normal(0, 9, (n, 1)))
        samples.append(any(one.difference.excludes(0) for one in alone))
        blocks.append(any(one.difference.excludes(0) for one in compare_blocks(table)))
    assert np.mean(samples) <= MOST_FALSE
    assert np.mean(blocks) <= MOST_FALSE
