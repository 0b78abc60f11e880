"""Comparison tables. `python -m analysis.tables RUN` prints the ranking of a search and writes it
as CSV and Markdown.

Frames are as `analysis.load.load_trials` or `over_lanes` gives them, of one run or several: with
the first, each lane (seed) of a trial counts by its own best epoch, with the second, each trial by
that of the mean over its lanes. `mode` is `min` if less of the metric is better, else `max`.

A trial counts by its best epoch on the validation split, which flatters all trials alike. The best
trial is the best one that trained all its epochs (`best_of`): of a stopped one too little is known.
"""

import argparse
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import cli
from analysis.load import RESULTS, TEXTS, load_trials, local, over_lanes, read_search, settings_of
from analysis.stats import Comparison, compare_blocks, compare_samples
from dcgan.schema import LABEL_COLUMNS, METRIC, RENAMED, STATUSES, TABLE_FILE

SHOWN = ("kid", "sample_coverage", "classifier_score", "classes_covered", "images_per_second")
"""Results of the best epoch that stand beside the metric in a ranking."""
WIDE = ("kid", "classifier_score", "classes_covered", "images_per_second", "peak_memory_mb")
"""Columns left to the files, so that a terminal need not wrap."""
BESIDE = ("sample_coverage", "sharpness", "path_length", "seconds_train", "images_per_second")
"""Results of the best epoch whose means stand beside the metric's in a comparison."""
FORMATS = {
    METRIC: cli.rounded,
    "kid": "{:.5f}".format,
    "sample_coverage": "{:.3f}".format,
    "classifier_score": "{:.2f}".format,
    "label_accuracy": "{:.3f}".format,
    "images_per_second": "{:,.0f}".format,
    "seconds": "{:.0f}".format,
    "peak_memory_mb": "{:,.0f}".format,
    "pareto": lambda value: "yes" if value else "",
}
MOST_LEVELS = 5
"""A numeric factor with more distinct values is cut at its quartiles."""
LEAST_BEST = 3
"""Fewer best trials show nothing about where the optimum lies."""
END = 0.05
"""Share of a range that counts as its end."""
CHANCE = 0.05
"""Probability below which something is no longer put down to chance."""

Goal = tuple[str, str]  # a column, and min or max


def goals_of(search: Mapping[str, Any]) -> list[Goal]:
    """The objectives of a search, as `read_search` gives it; of a single run, the metric."""
    goals = search.get("objectives") or [{"column": METRIC, "mode": "min"}]
    return [(RENAMED.get(goal["column"], goal["column"]), goal["mode"]) for goal in goals]


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings in which the trials of a frame differ, in the order of their columns; a trial's
    are those of its first lane."""
    firsts = frame[frame["lane"] == 0] if "lane" in frame else frame
    return [name for name in settings_of(frame) if firsts[name].nunique(dropna=False) > 1]


def best_epochs(frame: pd.DataFrame, metric: str = METRIC, mode: str = "min") -> pd.DataFrame:
    """The best epoch's row of each trial (and lane), in their order.

    Raises:
        ValueError: no such metric or mode.
    """
    if metric not in (numbers := [name for name in RESULTS if name not in TEXTS]):
        raise ValueError(f"metric is {metric!r}; allowed: {', '.join(numbers)}")
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {mode!r}; allowed: min, max")
    units = trial_keys(frame) + (["lane"] if "lane" in frame else [])
    ordered = frame.sort_values([*units, "epoch"], ignore_index=True)
    ordered = ordered.sort_values(metric, ascending=mode == "min", kind="stable")
    return ordered.drop_duplicates(units).sort_values(units, ignore_index=True)


def trial_keys(frame: pd.DataFrame) -> list[str]:
    """The columns that tell trials apart."""
    return [name for name in ("run", "trial") if name in frame]


def ranking(
    frame: pd.DataFrame,
    settings: Sequence[str] | None = None,
    metric: str = METRIC,
    mode: str = "min",
) -> pd.DataFrame:
    """One row per trial by its best epoch, mean over its lanes: the finished trials, best first,
    then the others.

    Args:
        frame: as `load_trials` or `over_lanes` gives it.
        settings: settings, or other columns, to show; default: the settings in which the trials
            differ.
        metric: column to rank by.
        mode: `min` or `max`.

    Columns: `rank` among the finished trials, `run` if of several, `trial`, `status`, the metric,
    `best_epoch`, `epochs` trained, the settings, other results of the best epoch, `seconds` of
    training and evaluation, `peak_memory_mb` (10^6 bytes), and `error`.
    """
    frame = over_lanes(frame)
    settings = varied(frame) if settings is None else settings
    keys = trial_keys(frame)
    seconds = frame["seconds_train"].astype("Float64") + frame["seconds_eval"].astype("Float64")
    by_trial = frame.assign(seconds=seconds).groupby(keys)
    totals = by_trial.agg(
        trained=("epoch", "count"), seconds=("seconds", "sum"), peak=("peak_memory_bytes", "max")
    )
    table = best_epochs(frame, metric, mode).merge(totals, left_on=keys, right_index=True)
    table["best_epoch"], table["epochs"] = table["epoch"], table["trained"]
    table["peak_memory_mb"] = (table["peak"].astype("Float64") / 1e6).round()
    table[metric] = table[metric].astype("Float64")
    table["later"] = (table["status"] != "finished") | table[metric].isna()
    table = table.sort_values(metric, ascending=mode == "min", kind="stable")
    table = table.sort_values("later", kind="stable", ignore_index=True)
    ranks = pd.Series(range(1, len(table) + 1), dtype="Int64")
    table["rank"] = ranks.mask(table["later"])
    columns = ["rank", *keys, "status", metric, "best_epoch", "epochs", *settings, *SHOWN]
    columns += [name for name in LABEL_COLUMNS if name in table]
    columns += ["seconds", "peak_memory_mb", "error"]
    return table.reindex(columns=list(dict.fromkeys(columns)))


def rank(frame: pd.DataFrame, search: Mapping[str, Any]) -> pd.DataFrame:
    """The ranking of a search by its first objective; of several, `pareto` marks the trials that no
    other beats in all.

    Args:
        frame: as `load_trials` gives it.
        search: as `read_search` gives it.
    """
    goals = goals_of(search)
    others = [column for column, _ in goals[1:]]
    table = ranking(frame, [*search.get("axes", varied(frame)), *others], *goals[0])
    if others:
        table.insert(1, "pareto", pareto(table, goals))
    return table


def best_of(table: pd.DataFrame) -> pd.Series | None:
    """The best trial of a ranking; None where none has finished."""
    return table.iloc[0] if len(table) and pd.notna(table["rank"].iloc[0]) else None


def pareto(table: pd.DataFrame, goals: Sequence[Goal]) -> pd.Series:
    """Which rows no other row dominates: is at least as good in every objective and better in one.
    A row that lacks a value is never among them."""
    signs = np.array([1.0 if mode == "min" else -1.0 for _, mode in goals])
    known = table[[column for column, _ in goals]].astype("Float64")
    values = signs * known.to_numpy(float, na_value=np.nan)  # (trials, objectives)
    free = []
    for row in values:
        dominating = (values <= row).all(axis=1) & (values < row).any(axis=1)
        free.append(not dominating.any() and not np.isnan(row).any())
    return pd.Series(free, index=table.index, dtype=bool)


def compare(
    frame: pd.DataFrame, factor: str, metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per level of a factor: does it matter, and how sure are we?

    Where all levels were tried under the same other settings and seeds (a grid), differences are
    taken within these: the units are seeds, each with its mean over the settings, or, with fewer
    than three seeds, settings. Else units are trials, which differ in other settings, too; then a
    level that lost many trials to the scheduler is compared by its better ones.

    Args:
        frame: as `load_trials` gives it, so that each seed of a trial counts, or `over_lanes`.
        factor: a setting, or `run`. A numeric one of more than `MOST_LEVELS` values is cut at its
            quartiles.
        metric: a column of results.
        mode: `min` or `max`.

    Columns: the factor; how many `trials`, and of them `finished`, `stopped`, `failed` and
    `unfinished`; `n` units; the `mean` of the metric at the best epoch of finished trials, and its
    `difference` from that of the best level, each with `_low` and `_high`, the ends of its interval
    (`analysis.stats`); and the means, over the same trials and epochs, of the columns `BESIDE`.
    `attrs["units"]` says what the units are.

    Raises:
        ValueError: no such factor, metric or mode.
    """
    best = best_epochs(frame, metric, mode)
    best["level"] = levels_of(best, factor)
    rows = best[(best["status"] == "finished") & best[metric].notna()]
    found, used, units = compare_levels(rows, metric, mode)
    table = []
    for level, own in best.groupby("level", dropna=False, observed=True):
        heads = own.drop_duplicates(trial_keys(own))
        row = {factor: level, "trials": len(heads)}
        row |= {status: int((heads["status"] == status).sum()) for status in STATUSES}
        mean, difference = found.get(level, (None, None))
        row["n"] = mean.n if mean else 0
        for name, interval in (("mean", mean), ("difference", difference)):
            row[name] = interval.value if interval else math.nan
            row[f"{name}_low"] = interval.low if interval else math.nan
            row[f"{name}_high"] = interval.high if interval else math.nan
        same = used[used["level"] == level]
        row |= {name: float(same[name].astype("Float64").mean()) for name in BESIDE if len(same)}
        table.append(row)
    result = pd.DataFrame(table)
    result.attrs["units"] = units
    return result


def compare_levels(
    rows: pd.DataFrame, metric: str, mode: str
) -> tuple[dict[Any, Comparison], pd.DataFrame, str]:
    """The comparison of each level, the rows that it rests on, and what its units are."""
    if rows.empty:
        return {}, rows, "trials"
    by_cell, cells = matched(rows, metric)
    if by_cell is None:
        trials = rows.groupby(["level", *trial_keys(rows)], observed=True)[metric].mean()
        samples = {level: trials[level] for level in trials.index.unique("level")}
        found = compare_samples(list(samples.values()), most=mode == "max")
        return dict(zip(samples, found, strict=True)), rows, "trials"
    used = rows[cells.isin(by_cell.index.unique("cell"))]
    seeds, cells_used = (by_cell.index.unique(name).size for name in ("seed", "cell"))
    unit = "seed" if seeds >= min(3, cells_used) else "cell"
    found = compare_blocks(by_cell.groupby(unit).mean(), most=mode == "max")
    names = {"seed": "seeds, matched", "cell": "settings, matched"}
    return dict(zip(by_cell.columns, found, strict=True)), used, names[unit]


def matched(rows: pd.DataFrame, metric: str) -> tuple[pd.DataFrame | None, pd.Series]:
    """The metric by cell (all settings but the factor) and seed, and by level; and the cell of each
    row. Only cells that have every level with every seed are in it; None if these are not even half
    of the rows, as where a sampler proposed the settings."""
    settings = [name for name in settings_of(rows) if name not in ("seed", "lanes", "level")]
    of_level = rows.groupby("level", observed=True)
    # what the level alone decides, such as a rate tied to it, is no other setting
    others = [name for name in settings if of_level[name].nunique(dropna=False).max() > 1]
    cells = pd.Series(0, index=rows.index)
    if others:
        cells = rows.groupby(others, dropna=False).ngroup()
    if rows["level"].nunique() < 2:
        return None, cells
    table = rows.assign(cell=cells).pivot_table(
        metric, index=["cell", "seed"], columns="level", observed=True
    )
    table = table.dropna().astype(float)
    seeds = table.index.unique("seed").size
    whole = table[table.groupby("cell")[table.columns[0]].transform("size") == seeds]
    return (whole if 2 * whole.size >= len(rows) else None), cells


def levels_of(best: pd.DataFrame, factor: str) -> pd.Series:
    """The level of each row: the factor's value, or, if they are many, the range of its quartile.

    Raises:
        ValueError: no such factor.
    """
    if factor not in (*settings_of(best), "run") or factor not in best:
        raise ValueError(
            f"factor is {factor!r}; allowed: a setting, such as those that vary: "
            f"{', '.join(varied(best))}"
        )
    values = best[factor]
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MOST_LEVELS:
        return values
    bins = pd.qcut(values, 4, labels=False, duplicates="drop")
    names = values.groupby(bins).agg(lambda own: f"{own.min():.3g} to {own.max():.3g}")
    return bins.map(names).astype(pd.CategoricalDtype(names.drop_duplicates(), ordered=True))


def boundary(
    frame: pd.DataFrame, axes: Mapping[str, Any], metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per axis with an order: do the best settings lie at an end of what was searched, so
    that better ones may lie beyond?

    The best are the best tenth of the finished trials, and at least `LEAST_BEST`.

    Args:
        frame: as `load_trials` gives it.
        axes: each axis as `search.json` holds it. Choices that are no numbers have no ends and are
            left out, and so are the sentences of earlier versions.
        metric: what says which are best.
        mode: `min` or `max`.

    Columns: `axis`; `low` and `high` end; `n` best trials; `share` of them at one `end`, `low` or
    `high`, where more of them are: within 5 % of the range (of its logarithm, if log-uniform), or
    at the outermost choice; `p`, the probability of so many if the best were drawn from all
    finished trials by chance (hypergeometric), times the ends of all axes; `flag`, whether more
    than half are at the end, and p is below `CHANCE`.

    Raises:
        ValueError: no such metric or mode.
    """
    from scipy.stats import hypergeom  # only here: a search need not wait for it to begin

    best = best_epochs(over_lanes(frame), metric, mode)
    finished = best[best["status"] == "finished"].dropna(subset=metric)
    finished = finished.sort_values(metric, ascending=mode == "min", kind="stable")
    top = max(LEAST_BEST, math.ceil(len(finished) / 10))
    ends = {name: found for name, axis in axes.items() if (found := ends_of(axis))}
    rows = []
    for name, (low, high, low_end, high_end) in ends.items():
        values = finished[name].astype(float).dropna()
        n = len(values[:top])
        shares = {"low": values <= low_end, "high": values >= high_end}
        counts = {end: int(inside[:top].sum()) for end, inside in shares.items()}
        end = max(counts, key=lambda one: counts[one])
        chance = hypergeom.sf(counts[end] - 1, len(values), int(shares[end].sum()), n)
        p = min(1.0, float(chance) * 2 * len(ends)) if n else 1.0
        share = counts[end] / n if n else 0.0
        flag = n >= LEAST_BEST and share > 0.5 and p < CHANCE
        rows.append((name, low, high, n, share, end if counts[end] else pd.NA, p, flag))
    columns = ["axis", "low", "high", "n", "share", "end", "p", "flag"]
    return pd.DataFrame(rows, columns=columns).astype({"flag": bool, "end": "string"})


def ends_of(axis: Any) -> tuple[float, float, float, float] | None:
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


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as short strings; a column of no errors goes."""
    shown = table.drop(columns=[name for name in ("error",) if table[name].isna().all()])
    return pd.DataFrame({str(name): [cell(str(name), x) for x in shown[name]] for name in shown})


def cell(name: str, value: Any) -> str:
    """A value of a column in few characters."""
    if pd.isna(value):
        return ""
    if name in FORMATS:
        return FORMATS[name](value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(folder: Path) -> tuple[pd.DataFrame, str]:
    """Ranks the trials of a search, writes `table.csv` (full precision) and `table.md` beside them,
    returns the table and its text for a terminal."""
    search = read_search(folder)
    frame = over_lanes(load_trials(folder))
    table = rank(frame, search)
    text = as_text(table)
    cli.keep(folder / TABLE_FILE, table.to_csv(index=False))
    markdown = text.to_markdown(index=False, disable_numparse=True)
    cli.keep(folder / "table.md", f"{markdown}\n\n{conditions(frame)}\n")
    goals = [column for column, _ in goals_of(search)]
    narrow = text.drop(columns=["epochs", *(name for name in WIDE if name not in goals)])
    if "error" in narrow:
        errors = [textwrap.shorten(error, 60, placeholder=" …") for error in narrow["error"]]
        narrow["error"] = errors
    narrow["best_epoch"] += (" of " + text["epochs"]).where(text["best_epoch"] != "", "")
    shown = narrow.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return table, f"{shown}\n\n{conditions(frame)}"


def conditions(frame: pd.DataFrame, seeds: int | None = None) -> str:
    """The protocol under which the numbers hold, and of how many seeds they are (default: the
    trials' `lanes`)."""
    known = frame.dropna(subset=[METRIC])
    if known.empty:
        return "No trial finished an epoch."
    row = known.iloc[0]
    if seeds is None:
        seeds = int(known["lanes"].max())
    mean = f"Mean of {seeds} seeds" if seeds > 1 else "One seed"
    return (
        f"{METRIC} over {row['eval_samples']:,} images against the {row['eval_split']} split of "
        f"{row.get('dataset', '?')}, extractor {row['extractor']}; as many real training images "
        f"get {row['fid_real']:.2f}. {mean} a setting; on {row['device']}."
    )


def main() -> None:
    text = "Rank the trials of a search; also writes table.csv and table.md there."
    cli.run_on_search("tables", text, show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    with local(args.run) as folder:
        table, text = write(folder)
    return text, cli.records(table)


if __name__ == "__main__":
    main()
