"""The charts of a search. Each answers a question, and is two functions: one prepares a tidy frame,
one draws it with Altair.

Frames are as `analysis.load.load_trials` gives them, of one search. Colours (Okabe and Ito 2008,
jfly.uni-koeln.de/color) and shapes mean the same in all charts. Every chart has a parameter
`pointed`: the trial of that name is drawn black. The page sets it in all charts of a search at
once, so that a trial that a reader points at lights up everywhere.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
import vl_convert
from pandas.api.types import is_numeric_dtype

from analysis.load import over_lanes
from analysis.tables import (
    Goal,
    best_epochs,
    best_of,
    cell,
    compare,
    goals_of,
    levels_of,
    pareto,
    rank,
    varied,
)
from dcgan.schema import METRIC, STATUSES

BEST, BASELINE, OTHER = "best trial", "baseline", "other trials"
ROLES = {BEST: "#0072B2", BASELINE: "#D55E00", OTHER: "#8C96A0"}
SHAPES = dict(zip(STATUSES, ("circle", "triangle-down", "cross", "square"), strict=True))
MEASURES = {
    "estimate": ("#595959", "diamond"),
    "validation": ("#009E73", "circle"),
    "test": ("#CC79A7", "square"),
}
INK, QUIET, GRID = "#1B1F24", "#59636E", "#E4E8EC"
EQUILIBRIUM = {"generator": math.log(2), "discriminator": 2 * math.log(2)}
"""Non-saturating losses (nats) where D cannot tell real from generated images."""
WIDE, HALF = 940, 500
"""Pixels that a chart of the whole page, and of half of it, has for its plots."""
MOST_PANELS = 6  # side by side
LOW_HIGH = ("low", "high")
POINTED = "datum.trial === pointed"
SECONDS: Goal = ("seconds", "min")
AXIS = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": GRID}
LEGEND = {"orient": "top", "title": None, "labelFontSize": 12, "symbolOpacity": 1}
CONFIG: dict[str, Any] = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    "axis": AXIS,
    "legend": LEGEND | {"symbolStrokeWidth": 2},
    "text": {"fontSize": 12, "color": QUIET},
    "view": {"stroke": None},
}
Chart = alt.TopLevelMixin  # of several layers or plots


class Panel(NamedTuple):
    """What is shown of a setting: see `setting_panels`."""

    name: str
    points: pd.DataFrame
    levels: pd.DataFrame


def charts(
    frame: pd.DataFrame, search: Mapping[str, Any], confirmed: pd.DataFrame | None = None
) -> dict[str, Chart]:
    """All charts that the data allow, by name: `curves`, `settings`, `cost`, `losses`, `confirm`.

    Args:
        frame: as `load_trials` gives it.
        search: as `read_search` gives it; an empty one of a single run.
        confirmed: as `analysis.confirm.summarize` gives it, if there is a confirm stage.
    """
    goal, *others = goals_of(search)
    cost = others[0] if others else SECONDS
    if not frame[goal[0]].notna().any():
        return {}
    role, axes = roles(frame, search), search.get("axes") or varied(frame)
    curves = curve_rows(frame, role, goal)
    found: dict[str, Chart] = {}
    found["curves"] = draw_curves(curves, rung_rows(frame, search.get("rungs", [])), goal)
    if panels := setting_panels(frame, role, goal, axes):
        found["settings"] = draw_settings(panels, goal)
    costs = cost_rows(rank(frame, search), role, goal, cost, axes)
    if len(costs) > 1:
        found["cost"] = draw_cost(costs, goal, cost)
    losses = loss_rows(frame, role)
    if len(losses):
        found["losses"] = draw_losses(losses)
    if confirmed is not None and confirmed["validation"].notna().any():
        found["confirm"] = draw_confirm(confirm_rows(confirmed))
    return found


def specs(
    frame: pd.DataFrame, search: Mapping[str, Any], confirmed: pd.DataFrame | None = None
) -> dict[str, dict[str, Any]]:
    """The Vega-Lite specifications of `charts`, as JSON values. They are not validated, which would
    take seconds; the tests do it."""
    found = charts(frame, search, confirmed)
    return {name: chart.to_dict(validate=False) for name, chart in found.items()}


def roles(frame: pd.DataFrame, search: Mapping[str, Any]) -> dict[str, str]:
    """What each trial is: the best one, the first with the search's base settings, or another."""
    firsts = frame.drop_duplicates("trial")
    found = dict.fromkeys(firsts["trial"], OTHER)
    base = pd.Series(search.get("base", {}), dtype=object)
    base = base[[name for name in base.index if name in frame and name not in ("seed", "epochs")]]
    if len(base):
        same = (firsts[base.index] == base).all(axis=1)
        found |= dict.fromkeys(firsts["trial"][same][:1], BASELINE)
    best = best_of(rank(frame, search))
    if best is not None:
        found[best["trial"]] = BEST
    return found


# How far have trials come, and how near are they to real images?


def curve_rows(frame: pd.DataFrame, role: Mapping[str, str], goal: Goal) -> pd.DataFrame:
    """A row a trial and epoch: `trial`, `role`, `epoch`, `value` (the objective, mean over lanes)
    and `floor` (what as many real images get; missing of other columns than fid)."""
    rows = over_lanes(frame).dropna(subset=["epoch", goal[0]])
    rows["role"] = rows["trial"].map(role)
    rows["value"] = rows[goal[0]]
    rows["floor"] = rows["fid_real"] if goal[0] == METRIC else math.nan
    return rows[["trial", "role", "epoch", "value", "floor"]]


def rung_rows(frame: pd.DataFrame, rungs: Sequence[int]) -> pd.DataFrame:
    """A row a rung of the scheduler: its `epoch`, how many trials `reached` it, and how many of
    these `went_on`."""
    epochs = frame.groupby("trial")["epoch"].max().fillna(0)
    rows = [(rung, int((epochs >= rung).sum()), int((epochs > rung).sum())) for rung in rungs]
    return pd.DataFrame(rows, columns=["epoch", "reached", "went_on"])


def draw_curves(rows: pd.DataFrame, rungs: pd.DataFrame, goal: Goal) -> Chart:
    """Learning curves, with the rungs and the floor."""
    floor = rows["floor"].dropna()[:1]
    x, y = epochs(rows), axis(alt.Y, "value", title(goal), pd.concat([rows["value"], floor]))
    faint = 0.7 if rows["trial"].nunique() < 60 else 0.35
    # one path with a gap between trials: hundreds of paths would take a second to draw
    gaps = rows.drop_duplicates("trial")[["trial", "role"]]
    rows = pd.concat([rows.drop(columns="floor"), gaps]).sort_values("trial", kind="stable")
    rows["place"] = range(len(rows))
    chart = alt.Chart(data(rows)).encode(x, y, role_color(rows), alt.Order("place:Q"))
    line = chart.encode(alt.Detail("trial:N"))
    steps = chart.transform_window(
        from_epoch="lag(epoch)", from_value="lag(value)", groupby=["trial"]
    )
    layers = [
        chart.transform_filter(alt.datum.role == OTHER).mark_line(strokeWidth=1, opacity=faint),
        line.transform_filter(alt.datum.role != OTHER).mark_line(strokeWidth=2.5),
        lit(line),
        steps.transform_filter("isValid(datum.value) && isValid(datum.from_value)")
        .mark_rule(strokeWidth=9, opacity=0)  # to point at
        .encode(
            alt.X("from_epoch:Q"),
            alt.X2("epoch:Q"),
            alt.Y("from_value:Q"),
            alt.Y2("value:Q"),
            tips("trial", epoch="epoch", value=goal[0]),
        ),
    ]
    if len(rungs):
        counts = rungs["went_on"].map(str) + " of " + rungs["reached"].map(str) + " went on"
        marks = alt.Chart(data(rungs.assign(text=counts))).encode(x)
        words = marks.mark_text(align="left", baseline="top", dx=4)
        layers.append(marks.mark_rule(strokeDash=[2, 3], color=QUIET))
        layers.append(words.encode(alt.Text("text:N"), y=alt.value(0)))
    layers += level_lines(pd.DataFrame({"value": floor, "text": "real images"}), y)
    return finish(alt.layer(*layers, width=HALF, height=280))


def level_lines(levels: pd.DataFrame, y: alt.Y) -> list[alt.Chart]:
    """A dashed line across a chart at each `value`, and its `text`."""
    chart = alt.Chart(data(levels)).encode(y)
    line = chart.mark_rule(strokeDash=[6, 4], color=INK)
    words = chart.mark_text(align="right", baseline="bottom", dx=-2, dy=-2)
    return [line, words.encode(alt.Text("text:N"), x=alt.value("width"))] if len(levels) else []


# Which settings matter?


def setting_panels(
    frame: pd.DataFrame, role: Mapping[str, str], goal: Goal, settings: Iterable[str]
) -> list[Panel]:
    """For each of the settings that varies, its points and its levels; none before a trial has
    finished, by which levels are compared.

    Points: a row a trial and lane, by its own best epoch: `trial`, `status`, `role`, `value` (the
    objective), `level` (as text) and `x` (the number; missing where each number is a level).
    Levels: the table of `tables.compare`, with `level`, and `low_x` and `high_x`, between which the
    numbers of a level lie.
    """
    best = best_epochs(frame, *goal)
    best = best.sort_values("trial", key=lambda trials: trials.map(role) != OTHER, kind="stable")
    known = best[best[goal[0]].notna()]
    panels = []
    for name in settings if (known["status"] == "finished").any() else ():
        if name not in known or known[name].nunique() < 2:
            continue
        level = levels_of(best, name)  # of all trials, as in the comparison
        many = level.nunique() < best[name].nunique()
        levels = compare(frame, name, *goal)
        levels["level"] = level_names(levels[name])
        names = dict(zip(levels[name], levels["level"], strict=True))
        points = known[["trial", "status"]].assign(
            role=known["trial"].map(role),
            value=known[goal[0]],
            level=level[known.index].map(names),
            x=known[name].astype(float) if many else math.nan,
        )
        ends = points.groupby("level")["x"].agg(["min", "max"])
        levels["low_x"] = levels["level"].map(ends["min"])
        levels["high_x"] = levels["level"].map(ends["max"])
        panels.append(Panel(name, points, levels))
    return panels


def draw_settings(panels: Sequence[Panel], goal: Goal) -> Chart:
    """Small multiples, a column a setting: above, its points and the means of its levels; below,
    how much the means differ from the best one. Both with intervals."""
    across = min(len(panels), MOST_PANELS)
    size = {"width": min(WIDE // across - 30, 330)}
    values = pd.concat([panel.points["value"] for panel in panels])
    differences = pd.concat([panel.levels["difference"] for panel in panels]).dropna()
    ends = pd.concat([panel.levels[f"difference_{end}"] for panel in panels for end in LOW_HIGH])
    most = 2 * differences.abs().max()  # wider intervals would hide the differences
    around = pd.concat([differences, ends.clip(-most, most)]).dropna()
    plots = []
    for row in range(0, len(panels), across):
        upper, lower = [], []
        for panel in panels[row : row + across]:
            first = panel is panels[row]
            y = axis(alt.Y, "value", title(goal) if first else "", values, labels=first)
            layers = [*draw_points(panel, y, goal), *draw_levels(panel, "mean", y, values)]
            upper.append(alt.layer(*layers, **size, height=190))
            y = axis(alt.Y, "value", "from the best" if first else "", around, labels=first)
            zero = level_lines(pd.DataFrame({"value": [0.0], "text": [""]}), y)[:1]
            layers = [*zero, *draw_levels(panel, "difference", y, around)]
            lower.append(alt.layer(*layers, **size, height=90))
        plots += upper + (lower if len(around) else [])
    figure = alt.concat(*plots, columns=across, spacing=12)
    return finish(figure.resolve_scale(color="shared", shape="shared", xOffset="independent"))


def draw_points(panel: Panel, y: alt.Y, goal: Goal) -> list[alt.Chart]:
    """The trials (and lanes) of a setting."""
    rows = panel.points.assign(shift=[number * 0.618 % 1 for number in range(len(panel.points))])
    chart = alt.Chart(data(rows)).encode(y, tips("trial", "status", "level", value=goal[0]))
    if rows["x"].notna().any():
        return points(chart.encode(axis(alt.X, "x", panel.name, rows["x"])), rows)
    shift = alt.XOffset("shift:Q", scale=alt.Scale(domain=[-0.5, 1.5]))
    return points(chart.encode(level_axis(panel), shift), rows)


def draw_levels(panel: Panel, name: str, y: alt.Y, shown: pd.Series) -> list[alt.Chart]:
    """The means of a setting's levels, or their differences, with intervals, as far as these lie
    within the values shown."""
    low, high = (panel.levels[f"{name}_{end}"] for end in LOW_HIGH)
    inside = [end.clip(shown.min(), shown.max()) for end in (low, high)]
    rows = panel.levels[["level", "n", "low_x", "high_x"]].assign(
        value=panel.levels[name], low=low, high=high, low_y=inside[0], high_y=inside[1]
    )
    rows = rows.dropna(subset="value")
    chart = alt.Chart(data(rows)).encode(
        y, tips("level", value=name, low="low", high="high", n="n")
    )
    interval = chart.transform_filter("isValid(datum.low)")
    interval = interval.encode(alt.Y("low_y:Q"), alt.Y2("high_y:Q"))
    if rows["low_x"].notna().any():
        x = axis(alt.X, "low_x", panel.name, panel.points["x"]), alt.X2("high_x:Q")
        band = interval.mark_rect(color=INK, opacity=0.18).encode(*x)
        return [band, chart.mark_rule(strokeWidth=2.5, color=INK).encode(*x)]
    line = interval.mark_rule(strokeWidth=1.5, color=INK)
    mean = chart.mark_point(shape="diamond", filled=True, size=70, color=INK, opacity=1)
    return [part.encode(level_axis(panel)) for part in (line, mean)]


def level_axis(panel: Panel) -> alt.X:
    """The axis of a setting whose levels are few."""
    bands = alt.Scale(type="band", padding=0, domain=list(panel.levels["level"]))
    return alt.X("level:N", title=panel.name, scale=bands, axis=alt.Axis(labelAngle=0))


# What does quality cost?


def cost_rows(
    table: pd.DataFrame, role: Mapping[str, str], goal: Goal, cost: Goal, axes: Iterable[str]
) -> pd.DataFrame:
    """A row a trial with a result, of a ranking: `trial`, `status`, `role`, its `settings` as text,
    `value` (the objective), `cost`, and `front`: it finished, and no other that did beats it in
    both."""
    shown = [name for name in axes if name in table]
    finished = table[table["status"] == "finished"]
    front = pareto(finished, [goal, cost]).reindex(table.index, fill_value=False)
    rows = table[["trial", "status"]].assign(
        role=table["trial"].map(role),
        settings=[
            ", ".join(f"{name} {cell(name, row[name])}" for name in shown)
            for row in table.to_dict("records")
        ],
        value=table[goal[0]],
        cost=table[cost[0]],
        front=front,
    )
    return rows.dropna().sort_values("cost", kind="stable")


def draw_cost(rows: pd.DataFrame, goal: Goal, cost: Goal) -> Chart:
    """Quality against cost, with the front."""
    y = axis(alt.Y, "value", title(goal), rows["value"])
    took = "training and evaluation of a trial, all its seeds (s)"
    x = axis(alt.X, "cost", took if cost == SECONDS else title(cost), rows["cost"])
    front = alt.Chart(data(rows[rows["front"]])).encode(x, y)
    steps: Any = "step-after" if cost[1] == "min" else "step-before"
    line = front.mark_line(interpolate=steps, color=QUIET, strokeDash=[4, 3])
    chart = alt.Chart(data(rows)).encode(
        x, y, tips("trial", "status", "settings", value=goal[0], cost=cost[0])
    )
    return finish(alt.layer(line, *points(chart, rows), width=HALF, height=280))


# How do the losses of the best trial behave?


def loss_rows(frame: pd.DataFrame, role: Mapping[str, str]) -> pd.DataFrame:
    """A row an epoch of G and of D, of the best trial and of the baseline: `trial`, `role`, `net`,
    `epoch`, `value`, and `balance` (see `EQUILIBRIUM`; missing of other losses)."""
    rows = over_lanes(frame).dropna(subset="epoch")
    rows["role"] = rows["trial"].map(role)
    rows = rows[rows["role"] != OTHER]
    known = "loss" not in rows or (rows["loss"] == "non-saturating").all()
    nets = [
        rows[["trial", "role", "epoch"]].assign(
            net=net, value=rows[f"{net}_loss"], balance=level if known else math.nan
        )
        for net, level in EQUILIBRIUM.items()
    ]
    return pd.concat(nets, ignore_index=True).dropna(subset="value")


def draw_losses(rows: pd.DataFrame) -> Chart:
    """The losses, G's beside D's."""
    plots = []
    for net, own in rows.groupby("net", sort=False):
        balance = own["balance"].dropna()[:1]
        x = epochs(own)
        y = alt.Y("value:Q", title=f"loss of the {net} (nats)", scale=alt.Scale(zero=False))
        chart = alt.Chart(data(own)).encode(x, y, role_color(own), tips("trial", value="loss"))
        layers = [
            chart.mark_line(strokeWidth=2.5),
            lit(chart),
            *level_lines(pd.DataFrame({"value": balance, "text": "balance"}), y),
        ]
        plots.append(alt.layer(*layers, width=HALF // 2 - 45, height=260))
    return finish(alt.hconcat(*plots, spacing=14).resolve_scale(color="shared"))


# Did the best hold?


def confirm_rows(summary: pd.DataFrame) -> pd.DataFrame:
    """A row a candidate and measure, of the table of `confirm.summarize`: `trial`, `candidate` (as
    text), `measure` (the search's `estimate`, means on `validation` and on `test`), `value`, `low`,
    `high`, `n`."""
    baseline = summary["baseline"] & (summary["trial"] != "baseline")
    names = summary["trial"] + baseline.map({True: " (baseline)", False: ""})
    tables = []
    for measure in MEASURES:
        columns = {f"{measure}{end}": end[1:] or "value" for end in ("", "_low", "_high", "_n")}
        values = summary.reindex(columns=list(columns)).rename(columns=columns)
        values.insert(0, "trial", summary["trial"])
        tables.append(values.assign(candidate=names, measure=measure))
    return pd.concat(tables, ignore_index=True).dropna(subset="value")


def draw_confirm(rows: pd.DataFrame) -> Chart:
    """Estimates and confirmed means, with intervals."""
    measures, looks = list(MEASURES), list(MEASURES.values())
    colors = alt.Scale(domain=measures, range=[color for color, _ in looks])
    shapes = alt.Scale(domain=measures, range=[shape for _, shape in looks])
    chart = alt.Chart(data(rows)).encode(
        alt.Y("candidate:N", title="candidate", sort=None),
        alt.YOffset("measure:N", sort=measures),
        alt.Color("measure:N", scale=colors),
        tips("candidate", "measure", value="value", low="low", high="high", n="n"),
    )
    x = alt.X("value:Q", title=f"{METRIC} (lower is better)", scale=alt.Scale(zero=False))
    point = chart.mark_point(filled=True, size=70, opacity=1)
    known = chart.transform_filter("isValid(datum.low)")
    line = known.mark_rule(strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q"))
    layers = [line, point.encode(x, alt.Shape("measure:N", scale=shapes))]
    return finish(alt.layer(*layers, width=HALF - 90, height=60 * rows["candidate"].nunique()))


# What all charts share


def data(rows: pd.DataFrame) -> alt.InlineData:
    """A frame as a chart holds it: as CSV, a third of the size of JSON, with 5 digits, more than an
    eye can tell apart."""
    kinds = {
        str(name): "number" if is_numeric_dtype(rows[name]) else "string" for name in rows.columns
    }
    values = rows.to_csv(index=False, float_format="%.5g")
    return alt.InlineData(values=values, format=alt.CsvDataFormat(type="csv", parse=kinds))


def tips(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """What is shown of a mark that is pointed at; numbers under their titles."""
    texts = [alt.Tooltip(f"{field}:N") for field in fields]
    numbers = [
        alt.Tooltip(f"{field}:Q", title=title, format=".4~g") for field, title in titles.items()
    ]
    return texts + numbers


def points(chart: alt.Chart, rows: pd.DataFrame) -> list[alt.Chart]:
    """Trials as points, colour by role and shape by status, and on top the one pointed at."""
    known = [status for status in STATUSES if (rows["status"] == status).any()]
    scale = alt.Scale(domain=known, range=[SHAPES[status] for status in known])
    shape = alt.Shape("status:N", scale=scale, legend=alt.Legend() if len(known) > 1 else None)
    marks = chart.mark_point(size=36, filled=True, opacity=0.75).encode(role_color(rows), shape)
    ring = chart.transform_filter(POINTED).mark_point(size=110, strokeWidth=2.5, color=INK)
    return [marks, ring.encode(shape)]


def lit(chart: alt.Chart) -> Any:
    """The line of the trial that is pointed at."""
    line = chart.transform_filter(POINTED).mark_line(strokeWidth=3)
    return line.encode(alt.ColorValue(INK))


def role_color(rows: pd.DataFrame) -> alt.Color:
    """Colour by role, of the roles that there are."""
    known = [role for role in ROLES if (rows["role"] == role).any()]
    return alt.Color("role:N", scale=alt.Scale(domain=known, range=[ROLES[role] for role in known]))


def axis(channel: Any, field: str, name: str, values: pd.Series, *, labels: bool = True) -> Any:
    """A channel of numbers on an axis that holds all the values: logarithmic if they are positive
    and differ by more than a factor of two."""
    low, high = float(values.min()), float(values.max())
    scale = alt.Scale(domain=[low, high], nice=True)
    style: dict[str, Any] = {"labels": labels, "grid": channel is alt.Y}
    if channel is alt.Y:
        style["minExtent"] = 36 if labels else 0  # so that charts above each other are in line
    if low > 0 and high > 2 * low:
        scale = alt.Scale(type="log", domain=[low / 1.08, high * 1.08], nice=False)
        style |= {"values": log_ticks(low, high), "format": "~g"}
    return channel(f"{field}:Q", title=name, scale=scale, axis=alt.Axis(**style))


def epochs(rows: pd.DataFrame) -> alt.X:
    """The axis of whole epochs."""
    last = int(rows["epoch"].max())
    step = math.ceil(last / 12)
    style = alt.Axis(values=list(range(step, last + 1, step)), format="d", grid=False)
    scale = alt.Scale(domain=[int(rows["epoch"].min()), last], nice=False)
    return alt.X("epoch:Q", title="epoch", scale=scale, axis=style)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high: the more, the narrower the range."""
    steps = (1, 3) if high > 30 * low else (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def title(goal: Goal) -> str:
    """The title of an objective's axis."""
    name, mode = goal
    return f"{name} ({'lower' if mode == 'min' else 'higher'} is better)"


def level_names(levels: pd.Series) -> pd.Series:
    """The levels of a setting, in few characters each but no two alike."""
    short = levels.map(lambda value: cell("level", value)).astype(str)
    return short if short.nunique() == levels.nunique() else levels.astype(str)


def finish(chart: Any) -> Chart:
    """A whole chart, with the parameter and the style that all have."""
    chart.params = [alt.param(name="pointed", value="").param]
    chart.config = CONFIG
    whole: Chart = chart
    return whole


def png_of(spec: dict[str, Any]) -> bytes:
    """A picture of a specification, of twice as many pixels as on the page."""
    return bytes(vl_convert.vegalite_to_png(spec, scale=2))
