"""Draws docs/regret.png from what a simulation prints.

python -m tune.simulate --search hparams --seeds 60 --workers 1 --json > regrets.json
python docs/regret.py regrets.json docs/regret.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import altair as alt

METHODS = {"random": "#999999", "tpe": "#2a78b5", "tpe+asha": "#e08214", "freeze-thaw": "#1b7837"}
EPOCHS, REGRET = 160, 1.5  # where the axes end


def draw(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """Median regret against epochs, a line a method, with the intervals of the medians as bands."""
    shown = [row for row in rows if row["method"] in METHODS and row["epochs"] <= EPOCHS]
    x = alt.X(
        "epochs:Q", title="epochs trained, of all trials", scale=alt.Scale(domain=[0, EPOCHS])
    )
    color = alt.Color(
        "method:N",
        sort=[*METHODS],
        scale=alt.Scale(domain=[*METHODS], range=[*METHODS.values()]),
        legend=alt.Legend(symbolOpacity=1),
    )
    scale = alt.Scale(domain=[0, REGRET], clamp=True)
    base = alt.Chart(alt.Data(values=shown)).encode(x=x, color=color)
    low = alt.Y("regret_low:Q", scale=scale, title="regret of what is recommended")
    median = alt.Y("regret_median:Q", scale=scale, axis=alt.Axis(format="%"))
    bands = base.mark_area(opacity=0.18).encode(y=low, y2="regret_high:Q")
    return (bands + base.mark_line().encode(y=median)).properties(width=520, height=260)


if __name__ == "__main__":
    regrets, picture = map(Path, sys.argv[1:])
    draw(json.loads(regrets.read_text())).save(picture, scale_factor=1.5)
