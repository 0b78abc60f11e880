"""Comparison tables. `python -m analysis.tables RUN` prints one and writes it as CSV and Markdown.

Frames are as `analysis.load.load_trials` or `over_lanes` gives them, of one run or several: with
the first, each lane (seed) of a trial counts by its own best epoch, with the second, each trial by
that of the mean over its lanes, which flatters all alike. `mode` is `min` if less of the metric is
better, else `max`.
"""

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis import cli
from analysis.load import (
    RESULTS,
    TEXTS,
    load_trials,
    local,
    over_lanes,
    read_search,
    settings_of,
)
from dcgan.schema import METRIC, STATUSES, TABLE_FILE

SHOWN = ("kid", "sample_coverage", "classifier_score", "digits_covered", "images_per_second")
"""Results of the best epoch that stand beside the metric."""
WIDE = ("kid", "classifier_score", "digits_covered", "images_per_second", "peak_memory_mb")
"""Columns left to the files, so that a terminal need not wrap."""
FORMATS = {
    "kid": "{:.5f}",
    "sample_coverage": "{:.3f}",
    "images_per_second": "{:,.0f}",
    "seconds": "{:.0f}",
}

MOST_LEVELS = 5
"""A numeric factor with more distinct values is cut into bins."""
BINS = 4
RESAMPLES = 2000
LEAST_BEST = 3
"""Fewer best trials show nothing about where the optimum lies."""
END = 0.05
"""Share of a range that counts as its end."""


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings in which the trials of a frame differ, in the order of their columns; a trial's
    are those of its first lane."""
    firsts = frame[frame["lane"] == 0] if "lane" in frame else frame
    return [name for name in settings_of(frame) if firsts[name].nunique(dropna=False) > 1]


def ranking(
    frame: pd.DataFrame,
    settings: Sequence[str] | None = None,
    metric: str = METRIC,
    mode: str = "min",
) -> pd.DataFrame:
    """One row per trial, ranked by its best epoch on the validation metric, mean over its lanes;
    trials without a result last.

    Args:
        frame: as `analysis.load.load_trials` gives it.
        settings: settings, or other columns, to show; default: the settings in which the trials
            differ.
        metric: column to rank by.
        mode: `min` if less of it is better, else `max`.

    Columns: `rank`, `run` if of several, `trial`, `status`, the metric, `best_epoch`, `epochs`
    trained, the settings, other results of the best epoch, `seconds` of training and evaluation,
    `peak_memory_mb` (10^6 bytes), and `error`.
    """
    frame = over_lanes(frame)
    settings = varied(frame) if settings is None else list(settings)
    keys = _keys(frame)
    ordered = frame.sort_values(metric, ascending=mode == "min", kind="stable")
    ranked = ordered.drop_duplicates(keys)  # each best epoch
    trials = ranked.set_index(keys).index
    per_trial = frame.groupby(keys)
    table = pd.DataFrame(
        {
            "rank": pd.Series(range(1, len(ranked) + 1), dtype="Int64").where(
                ranked[metric].notna().to_numpy()
            ),
            **{name: ranked[name].to_numpy() for name in keys},
            "status": ranked["status"].to_numpy(),
            metric: ranked[metric].astype("Float64").to_numpy(),
            "best_epoch": ranked["epoch"].array,
            "epochs": per_trial["epoch"].count().reindex(trials).to_numpy(),
        }
    )
    for name in (*settings, *SHOWN):
        # missing where no trial's settings could be read
        table[name] = ranked[name].array if name in ranked else pd.NA
    seconds = frame["seconds_train"].astype("Float64") + frame["seconds_eval"].astype("Float64")
    table["seconds"] = seconds.groupby([frame[name] for name in keys]).sum().reindex(trials).array
    peak = per_trial["peak_memory_bytes"].max().reindex(trials)
    table["peak_memory_mb"] = (peak.astype("Float64") / 1e6).round().array
    table["error"] = ranked["error"].array
    return table


def rank(frame: pd.DataFrame, search: Mapping[str, Any]) -> pd.DataFrame:
    """The ranking of a search by its first objective; of several, `pareto` tells the trials that no
    other beats in all.

    Args:
        frame: as `load_trials` gives it.
        search: as `read_search` gives it.
    """
    objectives = [(goal["column"], goal["mode"]) for goal in search.get("objectives", [])] or [
        (METRIC, "min")
    ]
    others = [name for name, _ in objectives[1:]]
    table = ranking(frame, [*search.get("axes", varied(frame)), *others], *objectives[0])
    if others:
        table.insert(1, "pareto", pareto(table, objectives))
    return table


def pareto(table: pd.DataFrame, objectives: Sequence[tuple[str, str]]) -> pd.Series:
    """Which rows no other row dominates: is at least as good in every objective and better in one.

    A row that lacks a value is never among them.

    Args:
        table: one row per trial.
        objectives: column and `min` or `max` of each.

    Raises:
        ValueError: another word for the direction.
    """
    if wrong := {mode for _, mode in objectives} - {"min", "max"}:
        raise ValueError(f"an objective's mode is {wrong.pop()!r}; allowed: min, max")
    signs = np.array([1.0 if mode == "min" else -1.0 for _, mode in objectives])
    known = table[[name for name, _ in objectives]].astype("Float64")
    values = signs * known.to_numpy(float, na_value=np.nan)  # (trials, objectives)
    dominated = [
        bool(((values <= row).all(axis=1) & (values < row).any(axis=1)).any()) for row in values
    ]
    return pd.Series(
        ~np.isnan(values).any(axis=1) & ~np.array(dominated, dtype=bool), index=table.index
    )


def compare(
    frame: pd.DataFrame,
    factor: str,
    metric: str = METRIC,
    mode: str = "min",
    *,
    include_stopped: bool = False,
) -> pd.DataFrame:
    """One row per level of a factor: does it matter, and how sure are we?

    Args:
        frame: as `load_trials` gives it, so that each seed of a trial counts, or `over_lanes`.
        factor: a setting, or `run`. A numeric one of more than `MOST_LEVELS` values is cut at its
            quartiles.
        metric: a column of results.
        mode: `min` or `max`.
        include_stopped: take stopped trials into the statistics too, though fewer epochs make them
            look worse.

    Columns: the factor; `trials`, `seeds` that they train in all, and how many trials are
    `finished`, `stopped`, `failed`, `unfinished`; `n` values, one per finished trial and seed;
    their `median`; `cliffs_delta` against all other levels, P(x > other) - P(x < other), -1 to 1
    (Cliff 1993, Psychological Bulletin 114); `mean`, and its `difference` from that of the best
    level, each with `_low` and `_high`: the 95 % percentile interval of the two-stage bootstrap
    (trials, then seeds in each; Davison and Hinkley 1997, section 3.8), missing where n < 2.

    The best level is picked on these same data, which flatters it, and a level that loses many
    trials to the scheduler is judged by the better ones.

    Raises:
        ValueError: no such factor, metric or mode.
    """
    best = _best_epochs(frame, metric, mode)
    keys = _keys(best)
    counts = (
        best["status"].isin(["finished", "stopped"] if include_stopped else ["finished"])
        & best[metric].notna()
    )
    rng = np.random.default_rng(0)  # one stream, so that levels are drawn independently
    rows, draws = [], []
    for level, own in best.groupby(_levels(best, factor), dropna=False, observed=True):
        heads = own.drop_duplicates(keys)
        inside = best.index.isin(own.index)
        values, others = (
            best.loc[counts & part, metric].to_numpy(float) for part in (inside, ~inside)
        )
        row = {factor: level, "trials": len(heads), "seeds": int(heads["lanes"].sum())}
        row |= {status: int((heads["status"] == status).sum()) for status in STATUSES} | {
            "n": len(values)
        }
        middle = {
            name: f(values) if len(values) else math.nan
            for name, f in (("median", np.median), ("mean", np.mean))
        }
        rows.append(row | middle | {"cliffs_delta": cliffs_delta(values, others)})
        samples = best[counts & inside].groupby(keys)[metric]
        draws.append(_bootstrap_means([sample.to_numpy(float) for _, sample in samples], rng))
    table, drawn = pd.DataFrame(rows), np.array(draws)  # (levels, RESAMPLES)
    mean = table.pop("mean").to_numpy()
    first = np.nan_to_num(mean if mode == "min" else -mean, nan=math.inf).argmin()
    for name, value, resampled in (
        ("mean", mean, drawn),
        ("difference", mean - mean[first], drawn - drawn[first]),
    ):
        low, high = np.quantile(resampled, [0.025, 0.975], axis=1)  # NaN where the draws are
        table = table.assign(**{name: value, f"{name}_low": low, f"{name}_high": high})
    return table


def cliffs_delta(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Cliff's delta, P(x > y) - P(x < y); missing where x or y is empty. (n,), (m,)"""
    return float(np.sign(x[:, None] - y).mean()) if x.size and y.size else math.nan


def time_to_quality(
    frame: pd.DataFrame, level: float, metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per trial (and lane) until its metric first is `level` or better: `epochs`, and
    `seconds` to train and evaluate, a lane's share of its trial's.

    Both are missing if that never happened; `seconds`, too, if rows of epochs before are.

    Raises:
        ValueError: no such metric or mode.
    """
    best = _best_epochs(frame, metric, mode)
    units = _units(frame)
    frame = frame.sort_values([*units, "epoch"], ignore_index=True)
    train, evaluate = (frame[f"seconds_{what}"].astype("Float64") for what in ("train", "eval"))
    frame["seconds"] = train + evaluate
    by_unit = frame.groupby(units)
    whole = (by_unit.cumcount() + 1 == frame["epoch"]).fillna(False)
    frame["epochs"], frame["seconds"] = frame["epoch"], by_unit["seconds"].cumsum().where(whole)
    good = frame[metric] <= level if mode == "min" else frame[metric] >= level
    reached = frame[good.fillna(False)].drop_duplicates(units)[[*units, "epochs", "seconds"]]
    times = best[[*units, "seed", "status"]].merge(reached, how="left", on=units)
    return times.drop(columns="lane", errors="ignore")


def share_reached(
    frame: pd.DataFrame, level: float, factor: str, metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per level of a factor (see `compare`): how many trials (and seeds) reached a quality,
    and how fast.

    Columns: the factor; `n`; `reached`; `share` of n with `_low`, `_high`, Wilson's 95 % interval
    (Wilson 1927); `undecided`, stopped or unfinished before they reached it, so that the share may
    be too low; median `epochs` and `seconds` of those that did.

    Raises:
        ValueError: no such factor, metric or mode.
    """
    times = time_to_quality(frame, level, metric, mode)
    levels = _levels(_best_epochs(frame, metric, mode), factor)  # rows as those of times
    rows = []
    for value, own in times.groupby(levels, dropna=False, observed=True):
        late = own["epochs"].isna()
        test = stats.binomtest(len(own) - int(late.sum()), len(own))
        ends = test.proportion_ci(method="wilson")
        undecided = int((late & own["status"].isin(["stopped", "unfinished"])).sum())
        row = {
            factor: value,
            "n": len(own),
            "reached": test.k,
            "share": test.statistic,
            "share_low": ends.low,
        }
        row |= {"share_high": ends.high, "undecided": undecided}
        rows.append(row | own[["epochs", "seconds"]].astype("Float64").median().to_dict())
    return pd.DataFrame(rows)


def boundary(
    frame: pd.DataFrame, axes: Mapping[str, Any], metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per axis with an order: do the best settings lie at an end of what was searched, so
    that more may lie beyond?

    The best are the best tenth of the finished trials, and at least `LEAST_BEST`.

    Args:
        frame: as `load_trials` gives it.
        axes: each axis as `search.json` holds it: Optuna's JSON of a distribution. Choices that are
            no numbers, such as `adam` and `rmsprop`, have no ends and are left out, and so are the
            sentences of earlier versions.
        metric: what says which are best.
        mode: `min` or `max`.

    Columns: `axis`; `low` and `high` end; `best`, the best trial's value; `n` best trials; `share`
    of them at one `end`, `low` or `high`, the one where more of them are: within 5 % of the range
    (of its logarithm, if log-uniform), or at the outermost choice; `flag`, whether more than half
    are, missing where n is too small. By chance alone, that is rare on a range and common among two
    or three choices.

    Raises:
        ValueError: no such metric or mode.
    """
    best = _best_epochs(frame, metric, mode)
    best = best[best["status"] == "finished"].dropna(subset=metric)
    keys = _keys(frame)
    ranked = (
        best.groupby(keys)[metric].mean().sort_values(ascending=mode == "min", kind="stable").index
    )
    top = (
        best.drop_duplicates(keys)
        .set_index(keys)
        .loc[ranked[: max(LEAST_BEST, math.ceil(len(ranked) / 10))]]
    )
    rows = []
    for name, axis in axes.items():
        if (ends := _ends(axis)) is None:
            continue
        low, high, low_end, high_end = ends
        values = top[name].astype(float).dropna()
        n = len(values)
        shares = {
            "low": (values <= low_end).sum() / max(n, 1),
            "high": (values >= high_end).sum() / max(n, 1),
        }
        end = max(shares, key=shares.__getitem__)
        row = {
            "axis": name,
            "low": low,
            "high": high,
            "best": next(iter(values), math.nan),
            "n": n,
            "share": shares[end],
        }
        row |= {
            "end": end if shares[end] else pd.NA,
            "flag": shares[end] > 0.5 if n >= LEAST_BEST else pd.NA,
        }
        rows.append(row)
    columns = ["axis", "low", "high", "best", "n", "share", "end", "flag"]
    return pd.DataFrame(rows, columns=columns).astype({"flag": "boolean", "end": "string"})


def _ends(axis: Any) -> tuple[float, float, float, float] | None:
    """Lowest and highest value of an axis, and the bounds up to and from which values lie at its
    ends; None without order."""
    if not isinstance(axis, Mapping):
        return None
    about = axis["attributes"]
    if "choices" in about:
        choices = about["choices"]
        if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in choices):
            return None
        low, high = min(choices), max(choices)
        return (low, high, low, high) if low < high else None
    low, high = about["low"], about["high"]
    if about["log"]:
        return low, high, low ** (1 - END) * high**END, low**END * high ** (1 - END)
    return low, high, low + END * (high - low), high - END * (high - low)


def axis_text(axis: Any) -> str:
    """An axis of `search.json` as a person reads it: `5e-05 to 0.005, log-uniform`, or `64,
    128`."""
    if not isinstance(axis, Mapping):
        return str(axis)  # an earlier version's sentence
    about = axis["attributes"]
    if "choices" in about:
        return ", ".join(map(str, about["choices"]))
    kind = "log-uniform" if about["log"] else "uniform"
    whole = ", whole numbers" if axis["name"] == "IntDistribution" else ""
    return f"{about['low']:g} to {about['high']:g}, {kind}{whole}"


def _keys(frame: pd.DataFrame) -> list[str]:
    """The columns that tell trials apart."""
    return [name for name in ("run", "trial") if name in frame]


def _units(frame: pd.DataFrame) -> list[str]:
    """The columns that tell apart what counts: trials, or their lanes."""
    return [*_keys(frame), "lane"] if "lane" in frame else _keys(frame)


def _best_epochs(frame: pd.DataFrame, metric: str, mode: str) -> pd.DataFrame:
    """The best epoch's row of each trial (and lane), in their order."""
    if metric not in (numbers := [name for name in RESULTS if name not in TEXTS]):
        raise ValueError(f"metric is {metric!r}; allowed: {', '.join(numbers)}")
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {mode!r}; allowed: min, max")
    units = _units(frame)
    ordered = frame.sort_values([*units, "epoch"], ignore_index=True)
    ordered = ordered.sort_values(metric, ascending=mode == "min", kind="stable")
    return ordered.drop_duplicates(units).sort_values(units, ignore_index=True)


def _levels(best: pd.DataFrame, factor: str) -> pd.Series:
    """The level of each row: the factor's value, or, if they are many, its bin's name, with the
    values that lie in it."""
    if factor not in (*settings_of(best), "run") or factor not in best:
        vary = ", ".join(varied(best))
        raise ValueError(
            f"factor is {factor!r}; allowed: a setting, such as those that vary: {vary}"
        )
    values = best[factor]
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MOST_LEVELS:
        return values
    bins = pd.qcut(values, BINS, labels=False, duplicates="drop")
    codes, _ = pd.factorize(bins, sort=True)  # ties may empty a bin
    parts = [values[codes == code] for code in range(max(codes) + 1)]
    names = [
        f"{x.min():.3g} to {x.max():.3g} (bin {i} of {len(parts)}, by quantiles)"
        for i, x in enumerate(parts, start=1)
    ]
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(names), ordered=True), values.index)


def _bootstrap_means(
    samples: Sequence[NDArray[np.float64]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of resamples: trials are drawn, and in each its seeds; missing with fewer than two
    values.

    Args:
        samples: the values of each of m trials, (seeds,).
        rng: the source of the draws.

    Returns:
        (RESAMPLES,).
    """
    sizes = np.array([len(sample) for sample in samples], dtype=int)  # (m,)
    if sizes.sum() < 2:
        return np.full(RESAMPLES, math.nan)
    values = np.zeros((len(sizes), sizes.max()))  # (m, seeds)
    for row, sample in zip(values, samples, strict=True):
        row[: len(sample)] = sample
    trials = rng.integers(len(sizes), size=(RESAMPLES, len(sizes)))
    places = rng.random((*trials.shape, sizes.max())) * sizes[trials][..., None]
    seeds = places.astype(int)  # (B, m, seeds)
    drawn = np.arange(sizes.max()) < sizes[trials][..., None]
    sums = np.where(drawn, values[trials[..., None], seeds], 0).sum(axis=(1, 2))
    return np.asarray(sums / sizes[trials].sum(axis=1))


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as short strings; a column of no errors goes."""
    shown = table.drop(columns=[name for name in ("error",) if table[name].isna().all()])
    return pd.DataFrame(
        {name: [_cell(name, value) for value in shown[name]] for name in shown.columns}
    )


def _cell(name: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    if name == "pareto":
        return "yes" if value else ""
    if name in FORMATS:
        return FORMATS[name].format(value)
    if name == METRIC or name == "classifier_score":
        return f"{value:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(folder: Path) -> tuple[pd.DataFrame, str]:
    """Ranks the trials of a search, writes `table.csv` (full precision) and `table.md` beside them,
    returns both forms."""
    search = read_search(folder)
    frame = over_lanes(load_trials(folder))
    table = rank(frame, search)
    text = as_text(table)
    names = [goal["column"] for goal in search.get("objectives", [])]
    table.to_csv(folder / TABLE_FILE, index=False)
    markdown = text.to_markdown(index=False, disable_numparse=True)
    (folder / "table.md").write_text(f"{markdown}\n\n{conditions(frame)}\n", encoding="utf-8")
    narrow = text.drop(columns=["epochs", *(name for name in WIDE if name not in names)])
    if "error" in narrow:
        narrow["error"] = [
            textwrap.shorten(error, 60, placeholder=" …") for error in narrow["error"]
        ]
    narrow["best_epoch"] += (" of " + text["epochs"]).where(text["best_epoch"] != "", "")
    shown = narrow.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return table, f"{shown}\n\n{conditions(frame)}"


def read_or_write(
    run: str, write: Callable[[Path], tuple[pd.DataFrame, str]], *, whole: bool = False
) -> str:
    """The text of an answer that is written into a search's folder; of a URI it is only read."""
    with local(run, whole=whole) as folder:
        return write(folder)[1]


def conditions(frame: pd.DataFrame, seeds: int | None = None) -> str:
    """The protocol under which the numbers hold, and of how many seeds they are (default: the
    trials' `lanes`)."""
    known = frame.dropna(subset=["fid"])
    if known.empty:
        return "No trial finished an epoch."
    row = known.iloc[0]
    if seeds is None:
        seeds = int(known["lanes"].max())
    mean = f"Mean of {seeds} seeds" if seeds > 1 else "One seed"
    return (
        f"fid over {row['eval_samples']:,} images against the {row['eval_split']} split of "
        f"{row.get('dataset', '?')}, "
        f"extractor {row['extractor']}; as many real training images get {row['fid_real']:.2f}. "
        f"{mean} a setting; on {row['device']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tables",
        description="Rank the trials of a search; also writes table.csv and table.md there.",
    )
    parser.add_argument(
        "run",
        help="the folder of a search, such as runs/hparams-20261122-193000, or its URI (s3://…; "
        "only read)",
    )
    cli.run(parser, lambda args: read_or_write(args.run, write))


if __name__ == "__main__":
    main()
