"""Charts of a search as plain data: what `analysis.draw` draws, in numbers that a test can check.

Frames are as `analysis.load.over_lanes` gives them, of one search. `mode` is `min`
if less of the metric is better, else `max`. A function gives None where the data do not allow its
chart. Numbers are rounded to 5 significant digits, more than an eye can tell apart and half the
size of a page; None is a gap.
"""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.importance import importance
from analysis.load import STD, over_lanes
from analysis.tables import MOST_LEVELS, compare, pareto, ranking, varied
from dcgan.schema import METRIC, STATUSES, STUDY_FILE

BEST = 5
"""Trials that stand out among the learning curves."""
COSTS = {
    "seconds": ("time", "training and evaluation of a trial, all seeds (s)"),
    "peak_memory_mb": ("memory", "peak memory of a trial (MB, 10^6 bytes)"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one kind, name and look; lists have equal lengths."""

    name: str
    x: list[Any]
    y: list[Any]
    """Numbers, or category strings on one of both axes."""
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    """Ends of a line's band, or of error bars along the axis that has numbers."""
    kind: str = "line"
    """`line`, `points`, `bars` or `steps`."""
    faint: bool = False
    """Background: grey, thin, not in the legend."""
    reference: bool = False
    """A level to compare with: dark, dashed, without markers."""
    hover: list[str] | None = None
    color: list[float | None] | None = None
    """Values on a colour scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One of parallel coordinates: a value per trial on its own scale, and what to write where on
    it."""

    label: str
    values: list[float]
    ticks: list[float]
    texts: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart in numbers: series on two axes, or parallel `axes`, of which the last gives the
    colour."""

    name: str
    """File stem."""
    title: str
    caption: str
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    series: list[Series] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    """In order, left to right or top to bottom, if one axis has categories."""
    stacked: bool = False
    color_label: str = ""
    axes: list[Axis] = field(default_factory=list)


def charts(
    frame: pd.DataFrame,
    run: Path | None = None,
    search: dict[str, Any] | None = None,
    metric: str = METRIC,
) -> list[Chart]:
    """All charts that the data allow, in the order in which they should be read.

    Args:
        frame: as `load_trials(run)` gives it.
        run: the search's folder, for its study and its confirm stage.
        search: `read_search(run)`: the metric's mode, the axes and the base settings.
        metric: a column of results.
    """
    frame, search = over_lanes(frame), search or {}
    goals = {goal["column"]: goal["mode"] for goal in search.get("objectives", [])} or {
        METRIC: "min"
    }
    mode = goals.get(metric, "min")
    differing = varied(frame)
    settings = [name for name in search.get("axes") or differing if name in differing]
    found = [
        learning_curves(frame, metric, mode),
        metric_against_time(frame, metric, mode),
        losses(frame, metric, mode, search.get("base")),
        parallel_coordinates(frame, settings, metric, mode),
        _read_importances(run, metric) if run and metric in goals else None,
        *(factor_comparison(compare(frame, name, metric, mode), metric, mode) for name in settings),
        *slices(frame, settings, metric, mode),
        *(pareto_front(frame, cost, settings, metric, mode) for cost in COSTS),
        rung_survival(frame),
        _read_confirmation(run) if run and metric == METRIC else None,
    ]
    return [chart for chart in found if chart]


def learning_curves(frame: pd.DataFrame, metric: str = METRIC, mode: str = "min") -> Chart | None:
    """The metric against the epoch: the best trials in colours, all others behind them."""
    known = frame.dropna(subset=["epoch", metric])
    if known.empty:
        return None
    ranked = ranking(frame, [], metric, mode).dropna(subset=metric)["trial"]
    log = _spread(known[metric])
    series = _background(known[~known["trial"].isin(ranked[:BEST])], known["epoch"], metric)
    for rank, trial in enumerate(ranked[:BEST], start=1):
        own = known[known["trial"] == trial]
        band = _band(own, metric, log)
        series.append(
            Series(
                name=f"{rank}: {trial}", x=_numbers(own["epoch"]), y=_numbers(own[metric]), **band
            )
        )
    caption = f"{_label(metric, mode)} after each epoch; {len(ranked)} of {frame['trial'].nunique()} trials have results."
    if len(ranked) > BEST:
        caption += f" In colours the best {BEST}, by rank; grey: all others."
    if any(one.low for one in series):
        caption += f" Bands: ± one sample standard deviation over {known['lanes'].max()} seeds."
    if metric == METRIC and known["fid_real"].notna().any():
        level = known["fid_real"].dropna().iloc[0]
        ends = _numbers([known["epoch"].min(), known["epoch"].max()])
        series.append(
            Series(name="real images", x=ends, y=_numbers([level, level]), reference=True)
        )
        log = log and level > 0
        caption += f" Dashed: what as many real images get ({level:.3g}), the floor."
    return Chart(
        name="learning_curves", title="Learning curves", caption=caption, x="epoch", y=_label(metric, mode), log_y=log,
        series=series,
    )  # fmt: skip


def _band(own: pd.DataFrame, metric: str, log: bool) -> dict[str, Any]:
    spread = own[STD].astype("Float64").fillna(0)
    if metric != METRIC or not (spread > 0).any():
        return {}
    low = own[metric] - spread
    if log:
        low = low.clip(lower=own[metric] / 10)  # a logarithmic axis has no room for 0 and below
    return {"low": _numbers(low), "high": _numbers(own[metric] + spread)}


def _background(rows: pd.DataFrame, x: pd.Series, metric: str) -> list[Series]:
    """All curves in one series, with a gap between trials: hundreds of series would be slow."""
    if rows.empty:
        return []
    gap = pd.DataFrame({"trial": rows["trial"].unique()})
    parts = pd.concat(
        [rows[["trial"]].assign(x=x.astype("Float64"), y=rows[metric].astype("Float64")), gap]
    )
    parts = parts.sort_values("trial", kind="stable")  # the gap comes after its trial's rows
    return [
        Series(
            name="others",
            x=_numbers(parts["x"]),
            y=_numbers(parts["y"]),
            faint=True,
            hover=parts["trial"].to_list(),
        )
    ]


def metric_against_time(
    frame: pd.DataFrame, metric: str = METRIC, mode: str = "min"
) -> Chart | None:
    """Every epoch of every trial, and the best of all, against the seconds that its trial took
    until then."""
    ordered = frame.sort_values(["trial", "epoch"], ignore_index=True)
    by_trial = ordered.groupby("trial")
    seconds = ordered["seconds_train"].astype("Float64") + ordered["seconds_eval"].astype("Float64")
    whole = (by_trial.cumcount() + 1 == ordered["epoch"]).fillna(
        False
    )  # else rows before are lost, and their seconds
    ordered["spent"] = seconds.groupby(ordered["trial"]).cumsum().where(whole)
    known = ordered.dropna(subset=["spent", metric]).sort_values("spent", kind="stable")
    if known.empty:
        return None
    best = known[metric].cummin() if mode == "min" else known[metric].cummax()
    steps = pd.DataFrame({"x": known["spent"], "y": best})
    steps = pd.concat([steps.drop_duplicates("y"), steps.iloc[-1:]])  # and on to the end
    points = Series(
        name="epochs of all trials", x=_numbers(known["spent"]), y=_numbers(known[metric]), kind="points", faint=True,
        hover=[f"{trial}, epoch {epoch}" for trial, epoch in zip(known["trial"], known["epoch"], strict=True)],
    )  # fmt: skip
    line = Series(name="best so far", x=_numbers(steps["x"]), y=_numbers(steps["y"]), kind="steps")
    return Chart(
        name="metric_against_time", title="Quality against time", x=COSTS["seconds"][1], y=_label(metric, mode),
        caption=f"Grey: each epoch of {known['trial'].nunique()} trials, at the seconds that its trial took until then. "
        "Line: the best that any trial had reached in that time.",
        log_x=_wide(known["spent"]), log_y=_spread(known[metric]), series=[points, line],
    )  # fmt: skip


def losses(
    frame: pd.DataFrame,
    metric: str = METRIC,
    mode: str = "min",
    base: Mapping[str, Any] | None = None,
) -> Chart | None:
    """Losses of the best trial, and of the first one with the search's base settings, if there is
    one."""
    ranked = ranking(frame, [], metric, mode).dropna(subset=metric)["trial"]
    if ranked.empty:
        return None
    names = {ranked.iloc[0]: "best"}
    if baseline := _baseline(frame, base or {}):
        names[baseline] = "best, baseline" if baseline in names else "baseline"
    known = {trial: frame[frame["trial"] == trial].dropna(subset="epoch") for trial in names}
    series = [
        Series(
            name=f"{net}, {names[trial]} ({trial})",
            x=_numbers(own["epoch"]),
            y=_numbers(own[f"{net}_loss"]),
        )
        for trial, own in known.items()
        for net in ("generator", "discriminator")
    ]
    return Chart(
        name="losses", title="Losses", x="epoch", y="loss (nats)", series=series,
        caption="Means over the epoch's batches. A discriminator that cannot tell real from generated images has a loss of "
        "2 ln 2 = 1.39 nats, and the generator then one of ln 2 = 0.69.",
    )  # fmt: skip


def _baseline(frame: pd.DataFrame, base: Mapping[str, Any]) -> str | None:
    names = [name for name in base if name in frame and name not in ("seed", "epochs")]
    trials = frame.dropna(subset="epoch").drop_duplicates("trial")
    same = [
        row["trial"]
        for row in trials.to_dict("records")
        if names and all(row[name] == base[name] for name in names)
    ]
    return same[0] if same else None


def parallel_coordinates(
    frame: pd.DataFrame, settings: Sequence[str], metric: str = METRIC, mode: str = "min"
) -> Chart | None:
    """One line per trial with a result, through its settings to its metric; the best trial last, so
    on top."""
    table = ranking(frame, settings, metric, mode).dropna(subset=[metric, *settings])[::-1]
    if len(table) < 2 or not settings:
        return None
    axes = [_axis(name, table[name]) for name in settings] + [
        _axis(metric, table[metric].astype(float), levels=0)
    ]
    return Chart(
        name="parallel_coordinates", title="Settings and quality", x="", y="", axes=axes, color_label=metric,
        caption=f"One line per trial (n = {len(table)}), through its settings to its {_label(metric, mode)} on the right, "
        "which also gives the colour. Stopped trials count by the epochs they had.",
    )  # fmt: skip


def _axis(label: str, values: pd.Series, levels: int = MOST_LEVELS) -> Axis:
    if names := _categories(values, levels):
        ticks = list(map(float, range(len(names))))
        return Axis(
            label=label,
            values=[float(names.index(text)) for text in map(_text, values)],
            ticks=ticks,
            texts=names,
        )
    log = _wide(values)
    low, high = (math.log10(end) if log else float(end) for end in (values.min(), values.max()))
    marks = [float(f"{10**mark if log else mark:.2g}") for mark in np.linspace(low, high, 5)]
    scaled, ticks = (
        _numbers(np.log10(part) if log else part)
        for part in (values.to_numpy(float), np.array(marks))
    )
    return Axis(label=label, values=scaled, ticks=ticks, texts=[f"{mark:g}" for mark in marks])


def importances(table: pd.DataFrame) -> Chart | None:
    """How much each setting mattered; of `analysis.importance.importance`'s table."""
    names = {"ped_anova": "PED-ANOVA", "fanova": "fANOVA"}
    known = [name for name in names if table[name].notna().any()]
    if not known:
        return None
    settings = table["setting"].to_list()
    return Chart(
        name="importances", title="Which settings mattered", x="importance (share, adds up to 1)", y="", categories=settings,
        caption=f"Of {table['n'].iloc[0]} finished trials. PED-ANOVA: how much the best tenth's values of a setting differ "
        "from all; fANOVA: its share of the variance of the metric.",
        series=[Series(name=names[name], x=_numbers(table[name]), y=settings, kind="bars") for name in known],
    )  # fmt: skip


def factor_comparison(table: pd.DataFrame, metric: str = METRIC, mode: str = "min") -> Chart | None:
    """Mean and interval of each level of a factor; of `analysis.tables.compare`'s table."""
    if table["n"].gt(0).sum() < 2:
        return None
    factor = str(table.columns[0])
    names = [re.sub(r" \(bin .*\)", "", _text(level)) for level in table[factor]]
    labels = [f"{name} (n = {n})" for name, n in zip(names, table["n"], strict=True)]
    return Chart(
        name=f"factor_{factor}", title=f"Does {factor} matter?", x=f"mean of best {_label(metric, mode)}", y="",
        caption="Means over finished trials, each by its best epoch, with 95 % bootstrap intervals; n: trials; many "
        "values are cut at their quartiles.",
        categories=labels, series=[_interval(table, "mean", "mean", labels)],
    )  # fmt: skip


def _interval(table: pd.DataFrame, column: str, name: str, labels: list[str]) -> Series:
    middle, low, high = (_numbers(table[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return Series(name=name, x=middle, y=labels, low=low, high=high, kind="points")


def slices(
    frame: pd.DataFrame, settings: Sequence[str], metric: str = METRIC, mode: str = "min"
) -> list[Chart]:
    """The best metric of each trial against each setting in which those with a result differ, one
    chart a setting."""
    table = ranking(frame, settings, metric, mode).dropna(subset=metric)
    return [
        _slice(known, name, metric, mode)
        for name in settings
        if (known := table.dropna(subset=name))[name].nunique() > 1
    ]


def _slice(table: pd.DataFrame, name: str, metric: str, mode: str) -> Chart:
    categories = _categories(table[name])
    by_status = {status: own for status in STATUSES if len(own := table[table["status"] == status])}
    series = [
        Series(
            name=status, x=[_text(x) for x in own[name]] if categories else _numbers(own[name]), y=_numbers(own[metric]),
            kind="points", hover=own["trial"].to_list(),
        )
        for status, own in by_status.items()
    ]  # fmt: skip
    return Chart(
        name=f"slice_{name}", title=f"Quality against {name}", x=name, y=_label(metric, mode), categories=categories,
        caption=f"Best epoch of each trial (n = {len(table)}). Stopped trials had fewer epochs, so they look worse.",
        log_x=not categories and _wide(table[name]), log_y=_spread(table[metric]), series=series,
    )  # fmt: skip


def pareto_front(
    frame: pd.DataFrame,
    x: str = "seconds",
    settings: Sequence[str] = (),
    metric: str = METRIC,
    mode: str = "min",
) -> Chart | None:
    """The best metric of each trial against its cost, `seconds` or `peak_memory_mb`, and the trials
    that none dominates."""
    table = (
        ranking(frame, settings, metric, mode)
        .dropna(subset=[metric, x])
        .sort_values(x, kind="stable")
    )
    if len(table) < 2:
        return None
    front = table[pareto(table, [(metric, mode), (x, "min")])]
    points = Series(
        name="trials", x=_numbers(table[x]), y=_numbers(table[metric]), kind="points", hover=_describe(table, settings),
        color=_numbers(table["epochs"]) if table["epochs"].nunique() > 1 else None,
    )  # fmt: skip
    line = Series(
        name="Pareto front",
        x=_numbers(front[x]),
        y=_numbers(front[metric]),
        kind="steps",
        hover=_describe(front, settings),
    )
    what, label = COSTS[x]
    return Chart(
        name=f"pareto_{what}", title=f"Quality against {what}", x=label, y=_label(metric, mode), color_label="epochs trained",
        caption=f"Best epoch of each trial (n = {len(table)}). On the front lie the {len(front)} trials that no other beats in "
        f"both {metric} and {what}.",
        log_x=_wide(table[x]), log_y=_spread(table[metric]), series=[points, line],
    )  # fmt: skip


def rung_survival(frame: pd.DataFrame) -> Chart | None:
    """How many trials trained each epoch, by how they ended; left out where all finished, as there
    is nothing to see."""
    heads = frame.drop_duplicates("trial").set_index("trial")
    if len(heads) < 2 or (heads["status"] == "finished").all():
        return None
    reached = frame.groupby("trial")["epoch"].max().fillna(0).reindex(heads.index)
    epochs = list(range(int(reached.max()) + 1))
    series = [
        Series(
            name=status, x=epochs, y=[int((own >= epoch).sum()) for epoch in epochs], kind="bars"
        )
        for status in STATUSES
        if len(own := reached[heads["status"] == status])
    ]
    counts = ", ".join(f"{one.y[0]} {one.name}" for one in series)
    return Chart(
        name="rung_survival", title="How far trials got", x="epochs trained", y="trials", stacked=True, series=series,
        caption=f"Trials that trained at least so many epochs, by how they ended: of {len(heads)}, {counts}.",
    )  # fmt: skip


def confirmation(summary: pd.DataFrame) -> Chart | None:
    """The search's estimate and the confirmed mean of each candidate; of
    `analysis.confirm.summarize`'s table."""
    if summary["validation"].isna().all():
        return None
    names = [
        f"{row['trial']}{' (baseline)' if row['baseline'] and row['trial'] != 'baseline' else ''} (n = {row['validation_n']})"
        for row in summary.to_dict("records")
    ]
    return Chart(
        name="confirmation", title="Did the best hold?", x=_label(f"validation {METRIC}", "min"), y="", categories=names,
        caption="The search's estimate, the best of many and so flattered, and the mean of runs with n fresh seeds with its "
        "95 % t interval.",
        series=[
            _interval(summary, "validation", "confirmed mean", names),
            Series(name="estimate of the search", x=_numbers(summary["estimate"]), y=names, kind="points"),
        ],
    )  # fmt: skip


def _read_importances(run: Path, metric: str) -> Chart | None:
    try:
        return importances(importance(run, metric)) if (run / STUDY_FILE).is_file() else None
    except ValueError as error:
        warnings.warn(f"the chart of importances is left out: {error}", stacklevel=3)
        return None


def _read_confirmation(run: Path) -> Chart | None:
    path = run / "confirm.csv"
    try:
        return confirmation(pd.read_csv(path)) if path.is_file() else None
    except (ValueError, KeyError) as error:
        warnings.warn(f"{path} is damaged and left out: {error!r}", stacklevel=3)
        return None


def _numbers(values: Iterable[Any]) -> list[Any]:
    """Floats of 5 significant digits, None where missing or not finite."""
    floats = pd.Series(values).astype("Float64").to_numpy(float, na_value=math.nan)
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in floats]


def _label(metric: str, mode: str) -> str:
    return f"{metric} ({'lower' if mode == 'min' else 'higher'} is better)"


def _wide(values: pd.Series) -> bool:
    """Whether numbers span more than a decade, so that a logarithmic axis is due."""
    return bool(values.min() > 0 and values.max() > 10 * values.min())


def _spread(values: pd.Series) -> bool:
    """Whether numbers of which ratios matter differ by more than a factor of two: below, a straight
    axis reads easier."""
    return bool(values.min() > 0 and values.max() > 2 * values.min())


def _text(value: object) -> str:
    return (
        f"{value:g}"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else str(value)
    )


def _categories(values: pd.Series, levels: int = MOST_LEVELS) -> list[str]:
    """Names of all values in order, if they are no numbers or few; else empty."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > levels:
        return []
    return [
        _text(value)
        for value in sorted(values.dropna().unique().tolist(), key=None if numeric else str)
    ]


def _describe(table: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """Of each trial, what a pointer over it shows."""
    return [
        "<br>".join(
            [
                f"{row['trial']}, {row['status']}",
                *(f"{name}: {_text(row[name])}" for name in settings),
            ]
        )
        for row in table.to_dict("records")
    ]
