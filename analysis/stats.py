"""Statistics of few values: intervals, differences, comparisons with the best, and adjustment.

Every interval is of 95 %, and holds for normal data of independent units: with trials as units for
further trials, with seeds as units for further seeds of the same settings. Fewer than two units
give no interval. tests/unit/analysis/test_stats.py simulates how often each covers the truth, and
how often a table of equal levels shows a difference.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

LEVEL = 0.95
Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with the ends of its interval, NaN where there is none."""

    value: float
    low: float
    high: float
    n: int
    """Units that it is estimated from."""

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside the interval; False where there is none."""
        return self.low > value or self.high < value


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def student_quantile(tail: float, freedom: Any) -> Any:
    """What Student's t with these degrees of freedom exceeds with a probability. Where scipy.stats
    has it, it takes forty times as long, and half a second to import."""
    return -special.stdtrit(freedom, tail)


def known(values: ArrayLike) -> Array:
    """The values that are not missing, as floats."""
    x = np.asarray(values, dtype=np.float64)
    return x[~np.isnan(x)]


def standard_error(x: Array) -> float:
    """Of the mean of two values or more."""
    return float(x.std(ddof=1)) / math.sqrt(len(x))


def mean_interval(values: ArrayLike, family: int = 1) -> Interval:
    """Mean and Student's t interval. Of paired differences it is the paired t interval.

    Args:
        values: (n,); missing ones are left out.
        family: how many such intervals have to cover at once (Bonferroni).
    """
    x = known(values)
    if len(x) == 0:
        return NOTHING
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    tail = (1 - LEVEL) / 2 / family
    half = float(student_quantile(tail, len(x) - 1)) * standard_error(x)
    return Interval(mean, mean - half, mean + half, len(x))


def tail_probability(values: ArrayLike, threshold: float) -> float:
    """P of a mean at least as far above the threshold, if the true mean were the threshold (the
    one-sided t test); NaN with fewer than two values."""
    x = known(values)
    if len(x) < 2:
        return math.nan
    error = standard_error(x)
    if error == 0:
        return 0.5 if x.mean() == threshold else float(x.mean() < threshold)
    return float(special.stdtr(len(x) - 1, (threshold - x.mean()) / error))


def holm(p_values: ArrayLike) -> Array:
    """P-values adjusted so that those below .05 are all right in 95 % of cases (Holm 1979). Missing
    ones stay missing, and are no part of the family. (m,)"""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is sorted last
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


class Comparison(NamedTuple):
    """A level of a factor, and how it differs from the best level."""

    mean: Interval
    difference: Interval
    """From the best level, with an interval that holds for all levels of the table at once; its n
    is that of the level."""


def welch(x: ArrayLike, y: ArrayLike, family: int = 1) -> Interval:
    """The difference of the means of two independent samples, x - y, which need not have equal
    variances (Welch 1947).

    Args:
        x: (n,).
        y: (m,).
        family: how many such intervals have to cover at once (Bonferroni).
    """
    a, b = known(x), known(y)
    difference = (float(a.mean()) if len(a) else math.nan) - (
        float(b.mean()) if len(b) else math.nan
    )
    n = min(len(a), len(b))
    if n < 2:
        return Interval(difference, math.nan, math.nan, n)
    errors = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    error = math.sqrt(errors.sum())
    if error == 0:
        return Interval(difference, difference, difference, n)
    freedom = error**4 / (errors**2 / (len(a) - 1, len(b) - 1)).sum()  # Satterthwaite
    half = float(student_quantile((1 - LEVEL) / 2 / family, freedom)) * error
    return Interval(difference, difference - half, difference + half, n)


def compare_samples(samples: Sequence[ArrayLike], *, most: bool = False) -> list[Comparison]:
    """Compares independent samples with the best one, which has the lowest mean (`most`: highest).

    Differences have Welch's intervals for all pairs at once, so also for those with whichever
    sample turns out best. A sample of one value has none.
    """
    means = [mean_interval(sample) for sample in samples]
    best = best_of(means, most)
    pairs = math.comb(sum(mean.n > 1 for mean in means), 2)
    differences = [welch(sample, samples[best], max(pairs, 1)) for sample in samples]
    return comparisons(means, best, differences)


def compare_blocks(table: pd.DataFrame, *, most: bool = False) -> list[Comparison]:
    """Compares the columns of a whole table with the best one; its rows are the units.

    Rows share what makes them differ (a seed, the other settings), so differences are taken within
    them: Tukey's intervals for all pairs at once in randomised blocks; of two columns, the paired t
    interval.

    Args:
        table: (units, levels), nothing missing.
    """
    x = table.to_numpy(float)
    units, levels = x.shape
    means = [mean_interval(column) for column in x.T]
    best = best_of(means, most)
    half = math.nan
    if units > 1 and levels > 1:
        residuals = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
        freedom = (units - 1) * (levels - 1)
        half = tukey_quantile(levels, freedom) * math.sqrt((residuals**2).sum() / freedom / units)
    differences = []
    for mean in means:
        value = mean.value - means[best].value
        differences.append(Interval(value, value - half, value + half, units))
    return comparisons(means, best, differences)


@functools.cache
def tukey_quantile(levels: int, freedom: int) -> float:
    """The studentized range that is exceeded in 5 %; scipy takes a tenth of a second for it."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(LEVEL, levels, freedom))


def best_of(means: Sequence[Interval], most: bool) -> int:
    """Index of the lowest mean, or of the highest."""
    values = np.array([-mean.value if most else mean.value for mean in means])
    return int(np.where(np.isnan(values), np.inf, values).argmin())


def comparisons(
    means: Sequence[Interval], best: int, differences: Sequence[Interval]
) -> list[Comparison]:
    """Each level's mean and difference; the best level's own difference is 0, without interval."""
    rows = list(map(Comparison, means, differences))
    rows[best] = Comparison(means[best], Interval(0.0, math.nan, math.nan, means[best].n))
    return rows
