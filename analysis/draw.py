"""Draws the charts of `analysis.figures`: on a page by plotly, for papers by matplotlib. One style
for all.

Categories have the colours of Okabe and Ito (2008, jfly.uni-koeln.de/color), which colour-blind
people tell apart, and markers that differ, too; values have viridis.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.figures import Axis, Chart, Series

if TYPE_CHECKING:  # both are slow to import, so only where something is drawn
    from matplotlib.axes import Axes
    from plotly import graph_objects

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("x", "X"),
    ("cross", "P"),
)
"""Plotly's name and matplotlib's."""
LOOKS = {"finished": 0, "stopped": 4, "failed": 1, "unfinished": 5}
"""Colour and marker of what should look alike in all charts."""
FAINT, DARK, GRID = "#B0B0B0", "#333333", "#E6E6E6"
SCALE = "viridis"
BAND, CLOUD = 0.15, 0.75
"""Opacity of bands, and of points that may lie on each other."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FONT_PX, HEIGHT_PX = 13, 420
SIZE_INCHES, DPI = (8.0, 4.5), 200


def to_plotly(chart: Chart) -> "graph_objects.Figure":
    """An interactive figure; the caption is left to the page."""
    from plotly import graph_objects

    axis = {
        "gridcolor": GRID,
        "linecolor": DARK,
        "showline": True,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }
    figure = graph_objects.Figure()
    figure.update_layout(
        template="none", height=HEIGHT_PX, font={"family": FONT, "size": FONT_PX, "color": DARK}, hovermode="closest",
        title={"text": chart.title, "x": 0, "xref": "paper", "font": {"size": FONT_PX + 3}},
        margin={"l": 70, "r": 30, "t": 50, "b": 60}, barmode="stack" if chart.stacked else "group",
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
    )  # fmt: skip
    if chart.axes:
        figure.add_parcoords(**_parcoords(chart))
        return figure.update_layout(margin={"l": 80, "r": 60, "t": 120, "b": 30})
    figure.update_layout(
        xaxis=axis | _plotly_axis(chart, "x"), yaxis=axis | _plotly_axis(chart, "y")
    )
    for series, look in _looks(chart):
        if series.kind == "line" and series.low and series.high:
            outline = {"x": series.x + series.x[::-1], "y": series.high + series.low[::-1]}
            style = {
                "mode": "lines",
                "line_width": 0,
                "fill": "toself",
                "fillcolor": COLORS[look],
                "opacity": BAND,
            }
            figure.add_scatter(
                **outline, **style, hoverinfo="skip", showlegend=False, legendgroup=series.name
            )
        figure.add_trace(_plotly_trace(chart, series, look))
    return figure


def _plotly_axis(chart: Chart, which: str) -> dict[str, Any]:
    title = {"title": {"text": getattr(chart, which)}}
    if which == _category_axis(chart):
        last = len(chart.categories) - 0.5
        ends = [last, -0.5] if which == "y" else [-0.5, last]  # the first one on top
        return {
            **title,
            "type": "category",
            "categoryorder": "array",
            "categoryarray": chart.categories,
            "range": ends,
        }
    if getattr(chart, f"log_{which}"):  # plotly's own ticks between decades lack the decade
        ticks = _log_ticks(_values(chart, which))
        return {
            **title,
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks],
        }
    return {**title, "type": "linear"}


def _plotly_trace(chart: Chart, series: Series, look: int) -> dict[str, Any]:
    color, which = _color(series, look), _number_axis(chart)
    trace: dict[str, Any] = {
        "name": series.name,
        "x": series.x,
        "y": series.y,
        "legendgroup": series.name,
    }
    trace["showlegend"] = _has_legend(chart) and not series.faint
    if series.hover:
        trace |= {
            "hovertext": series.hover,
            "hovertemplate": "%{hovertext}<br>%{x}, %{y}<extra></extra>",
        }
    if series.low and series.high and series.kind != "line":
        minus, plus = _arms(getattr(series, which), series.low, series.high)
        trace[f"error_{which}"] = {
            "symmetric": False,
            "thickness": 1.5,
            "arrayminus": minus,
            "array": plus,
        }
    if series.kind == "bars":
        return trace | {
            "type": "bar",
            "orientation": "h" if which == "x" else "v",
            "marker": {"color": color},
        }
    opacity = CLOUD if series.kind == "points" else 1
    marker: dict[str, Any] = {
        "color": color,
        "symbol": MARKERS[look][0],
        "size": 3 if series.faint else 8,
        "opacity": opacity,
    }
    if series.color:
        bar = {"title": {"text": chart.color_label, "side": "right"}, "outlinewidth": 0}
        marker |= {"color": series.color, "colorscale": SCALE, "colorbar": bar}
    line = {
        "color": color,
        "width": 1 if series.faint else 2,
        "dash": "dash" if series.reference else "solid",
    }
    line |= {"shape": "hv" if series.kind == "steps" else "linear"}
    mode = (
        "markers"
        if series.kind == "points"
        else "lines"
        if series.faint or series.reference
        else "lines+markers"
    )
    return trace | {"type": "scatter", "mode": mode, "marker": marker, "line": line}


def _parcoords(chart: Chart) -> dict[str, Any]:
    dimensions = [
        {
            "label": axis.label,
            "values": axis.values,
            "range": _ends(axis),
            "tickvals": axis.ticks,
            "ticktext": axis.texts,
        }
        for axis in chart.axes
    ]
    line = {"color": chart.axes[-1].values, "colorscale": SCALE}
    return {
        "line": line,
        "dimensions": dimensions,
        "labelangle": -15,
        "labelfont": {"size": FONT_PX},
    }


def to_png(chart: Chart, path: Path) -> Path:
    """Writes a picture of 1600 × 900 pixels, and returns its path; the caption is left to the
    paper."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {
            "font.size": 10,
            "text.color": DARK,
            "axes.labelcolor": DARK,
            "xtick.color": DARK,
            "ytick.color": DARK,
        }
    ):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.set_title(chart.title, loc="left", fontweight="bold", pad=10)
        axes.spines[["top", "right"]].set_visible(False)
        (_draw_parallel if chart.axes else _draw_series)(chart, axes)
        if _has_legend(chart):
            figure.legend(
                loc="outside lower center", ncols=2 if len(chart.series) == 4 else 3, frameon=False
            )
        figure.savefig(path, dpi=DPI, format="png")
    return path


def _draw_series(chart: Chart, axes: "Axes") -> None:
    axes.set_axisbelow(True)
    axes.grid(color=GRID)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    base = [0.0] * len(chart.series[0].x)  # where stacked bars begin
    for number, (series, look) in enumerate(_looks(chart)):
        x, y, low, high = (
            _floats(chart, values)
            for values in (series.x, series.y, series.low or [], series.high or [])
        )
        style: dict[str, Any] = {
            "color": _color(series, look),
            "label": None if series.faint else series.name,
        }
        if series.kind == "bars":
            base = _draw_bars(chart, axes, x, y, base, number, style)
        elif series.color:
            cloud = axes.scatter(
                x, y, c=_floats(chart, series.color), cmap=SCALE, alpha=CLOUD, label=series.name
            )
            axes.get_figure().colorbar(cloud, ax=axes, label=chart.color_label)  # type: ignore[union-attr]
        elif series.kind == "points":
            if low:
                arms = {
                    f"{_number_axis(chart)}err": _arms(
                        x if _number_axis(chart) == "x" else y, low, high
                    )
                }
                axes.errorbar(x, y, fmt="none", color=style["color"], **arms)  # type: ignore[arg-type]
            size = 1.5 if series.faint else 6
            axes.plot(
                x, y, MARKERS[look][1], markersize=size, markeredgewidth=0, alpha=CLOUD, **style
            )
        else:
            plain = series.faint or series.reference
            style |= {
                "marker": "" if plain else MARKERS[look][1],
                "markersize": 5,
                "linewidth": 0.6 if series.faint else 1.6,
            }
            style["drawstyle"] = "steps-post" if series.kind == "steps" else "default"
            axes.plot(x, y, "--" if series.reference else "-", **style)
            if low:
                axes.fill_between(x, low, high, color=style["color"], alpha=BAND, linewidth=0)
    for which, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which == _category_axis(chart):
            axis.set_ticks(range(len(chart.categories)), chart.categories)
            axes.set(**{f"{which}lim": (-0.5, len(chart.categories) - 0.5)})
        elif getattr(chart, f"log_{which}"):
            axes.set(**{f"{which}scale": "log"})
            ticks = _log_ticks(_values(chart, which))
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
    if _category_axis(chart) == "y":
        axes.invert_yaxis()  # the first one on top


def _draw_bars(
    chart: Chart,
    axes: "Axes",
    x: list[float],
    y: list[float],
    base: list[float],
    number: int,
    style: dict[str, Any],
) -> list[float]:
    """Draws the bars of a series, the `number`th, and returns where the next ones begin, if they
    are stacked."""
    places, lengths = (y, x) if _number_axis(chart) == "x" else (x, y)
    width = 0.8 if chart.stacked else 0.8 / len(chart.series)
    shift = 0 if chart.stacked else (number - (len(chart.series) - 1) / 2) * width
    draw = axes.barh if _number_axis(chart) == "x" else axes.bar
    draw([place + shift for place in places], lengths, width, base, **style)
    return [a + b for a, b in zip(base, lengths, strict=True)] if chart.stacked else base


def _draw_parallel(chart: Chart, axes: "Axes") -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    box = {
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.7,
        "pad": 0.5,
    }  # text stays readable on lines
    places, columns = range(len(chart.axes)), []
    for place, axis in zip(places, chart.axes, strict=True):
        low, high = _ends(axis)
        columns.append([(value - low) / (high - low) for value in axis.values])
        axes.axvline(place, color=DARK, linewidth=1)
        for tick, text in zip(axis.ticks, axis.texts, strict=True):
            axes.text(
                place + 0.03, (tick - low) / (high - low), text, fontsize=8, va="center", bbox=box
            )
    lines = [list(zip(places, row, strict=True)) for row in zip(*columns, strict=True)]
    axes.add_collection(
        LineCollection(lines, colors=colormaps[SCALE](columns[-1]), linewidths=0.8, alpha=CLOUD)
    )
    axes.set_xticks(
        places, [axis.label for axis in chart.axes], rotation=15 if len(places) > 5 else 0
    )
    axes.set(xlim=(-0.3, len(places) - 0.6), ylim=(-0.05, 1.05), yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)


def _looks(chart: Chart) -> list[tuple[Series, int]]:
    """Each series, and the index of its colour and marker."""
    shown = [series.name for series in chart.series if not series.faint]
    return [
        (one, 0 if one.faint else LOOKS.get(one.name, shown.index(one.name)) % len(COLORS))
        for one in chart.series
    ]


def _color(series: Series, look: int) -> str:
    return FAINT if series.faint else DARK if series.reference else COLORS[look]


def _has_legend(chart: Chart) -> bool:
    return sum(not series.faint for series in chart.series) > 1


def _category_axis(chart: Chart) -> str:
    """`x`, `y`, or nothing where both have numbers."""
    return ("x" if isinstance(chart.series[0].x[0], str) else "y") if chart.categories else ""


def _number_axis(chart: Chart) -> str:
    """The axis along which bars and intervals extend."""
    return "x" if _category_axis(chart) == "y" else "y"


def _values(chart: Chart, which: str) -> list[float]:
    """All numbers on an axis, with those of bands and intervals."""
    lists = [getattr(series, which) for series in chart.series]
    lists += [
        ends
        for series in chart.series
        for ends in (series.low, series.high)
        if ends and which == _number_axis(chart)
    ]
    return [value for values in lists for value in values if value is not None]


def _floats(chart: Chart, values: list[Any]) -> list[float]:
    """Positions for matplotlib: a category's index, NaN for a gap."""
    places = {name: float(place) for place, name in enumerate(chart.categories)}
    return [
        math.nan if value is None else places[value] if isinstance(value, str) else value
        for value in values
    ]


def _arms(middle: list[Any], low: list[Any], high: list[Any]) -> tuple[list[Any], list[Any]]:
    """Lengths of error bars, none where an end is missing."""
    minus = [None if a is None or b is None else a - b for a, b in zip(middle, low, strict=True)]
    plus = [None if a is None or b is None else b - a for a, b in zip(middle, high, strict=True)]
    return minus, plus


def _log_ticks(values: list[float]) -> list[float]:
    """Powers of ten, and more if these are few: those next to the values, outside, and all
    between."""
    low, high = min(values), max(values)
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick, after in pairwise(ticks) if after > low][
        : 1 + sum(low < tick < high for tick in ticks) + 1
    ]


def _ends(axis: Axis) -> list[float]:
    """The range of a parallel axis, never empty."""
    marks = axis.values + axis.ticks
    return [min(marks), max(marks)] if min(marks) < max(marks) else [marks[0] - 1, marks[0] + 1]
