"""Charts: their numbers against values worked by hand, and that both ways of drawing show these
numbers."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from PIL import Image

from analysis import figures
from analysis.draw import to_plotly, to_png
from analysis.figures import Axis, Chart, Series, charts
from analysis.load import RESULTS, load_trials, over_lanes
from analysis.tables import compare

ADAM, RMSPROP = (
    {"optimizer": "adam", "generator_lr": 1e-4},
    {"optimizer": "rmsprop", "generator_lr": 2e-3},
)


def make(folder: Path, trials: Sequence[tuple[dict[str, Any], str, Sequence[float]]]) -> Path:
    """A search's folder: settings, status, and the fid of each epoch, of which the n-th takes n
    seconds (a quarter to evaluate) and reads a peak of 100 n MB; the rest is 1."""
    folder.mkdir()
    for number, (settings, status, fids) in enumerate(trials):
        path = folder / f"trial_{number:04d}"
        path.mkdir()
        (path / "params.json").write_text(json.dumps({"epochs": 3, "seed": 0} | settings))
        if status == "failed":
            (path / "error.txt").write_text("FloatingPointError: diverged\n")
        rows = []
        for epoch, fid in enumerate(fids, start=1):
            row: dict[str, Any] = dict.fromkeys(RESULTS, 1.0)
            row |= dict.fromkeys(("eval_split", "extractor", "device"), "x")
            row |= {"lane": 0, "epoch": epoch, "fid": fid, "fid_real": 0.25}
            row |= {"seconds_train": 0.75 * epoch, "seconds_eval": 0.25 * epoch}
            rows.append(row | {"peak_memory_bytes": int(1e8) * epoch})
        (path / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def load_means(run: Path) -> pd.DataFrame:
    return over_lanes(load_trials(run))


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Six trials, by rank: 0 (9), 2 (10), 4 (12), 1 (13), 5 (20), 3 (90); and 6, which failed
    before its first epoch."""
    trials = [
        (ADAM, "finished", [30.0, 20.0, 9.0]), (RMSPROP, "finished", [40.0, 13.0, 14.0]),
        (ADAM, "finished", [25.0, 10.0, 11.0]),
        (RMSPROP, "stopped", [90.0]), (ADAM, "unfinished", [35.0, 12.0]),
        (RMSPROP, "finished", [50.0, 22.0, 20.0]),
        (RMSPROP, "failed", []),
    ]  # fmt: skip
    frame = load_means(make(tmp_path / "run", trials))
    stopped = frame["trial"] == "trial_0003"  # a study would say so
    return frame.assign(status=frame["status"].mask(stopped, "stopped"))


SETTINGS = ["optimizer", "generator_lr"]
AXIS = {"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}


def by_name(chart: Chart | None) -> dict[str, Series]:
    assert chart is not None
    return {series.name: series for series in chart.series}


def test_learning_curves_by_hand(frame: pd.DataFrame) -> None:
    chart = figures.learning_curves(frame)
    assert chart is not None
    shown = by_name(chart)
    assert list(shown) == [
        "others", "1: trial_0000", "2: trial_0002", "3: trial_0004", "4: trial_0001",
        "5: trial_0005", "real images",
    ]  # fmt: skip
    assert (shown["1: trial_0000"].x, shown["1: trial_0000"].y) == ([1, 2, 3], [30, 20, 9])
    assert shown["1: trial_0000"].low is None
    assert (shown["others"].x, shown["others"].y, shown["others"].faint) == (
        [1, None],
        [90, None],
        True,
    )
    assert (shown["real images"].x, shown["real images"].y) == ([1, 3], [0.25, 0.25])
    assert shown["real images"].reference
    assert chart.log_y
    assert "6 of 7 trials have results" in chart.caption
    assert "grey" in chart.caption


def test_one_series_holds_all_others_with_gaps_between(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run",
        [(ADAM, "finished", [float(i + 3), float(i + 2), float(i + 1)]) for i in range(7)],
    )
    others = by_name(figures.learning_curves(load_means(run)))["others"]
    assert others.x == [1, 2, 3, None] * 2
    assert others.y == [8, 7, 6, None, 9, 8, 7, None]
    assert others.hover == ["trial_0005"] * 4 + ["trial_0006"] * 4


def test_the_band_is_one_standard_deviation_over_seeds(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", [30.0, 20.0, 5.0])])
    frame = load_means(run).assign(fid_std=8.0, lanes=3)
    curve = by_name(figures.learning_curves(frame))["1: trial_0000"]
    assert curve.high == [38, 28, 13]
    assert curve.low == [22, 12, 0.5]  # 5 - 8 has no place on a logarithmic axis: a tenth of 5
    assert (
        by_name(figures.learning_curves(frame, "kid"))["1: trial_0000"].low is None
    )  # fid_std is of fid alone


def test_a_metric_may_be_negative_or_better_when_larger(frame: pd.DataFrame) -> None:
    frame["kid"] = frame["fid"] - 30
    chart = figures.learning_curves(frame, "kid", "max")
    assert chart is not None
    assert not chart.log_y
    assert next(series.name for series in chart.series if not series.faint) == "1: trial_0003"
    assert "higher is better" in chart.y
    front = by_name(figures.pareto_front(frame, "seconds", [], "kid", "max"))["Pareto front"]
    assert (front.x, front.y) == ([1], [60])


def test_quality_against_time_by_hand(frame: pd.DataFrame) -> None:
    """Epochs end 1, 3 and 6 s after a trial's begin."""
    chart = figures.metric_against_time(frame)
    shown = by_name(chart)
    epochs = shown["epochs of all trials"]
    assert sorted(zip(epochs.x, epochs.y, strict=True)) == [
        (1, 25), (1, 30), (1, 35), (1, 40), (1, 50), (1, 90), (3, 10), (3, 12), (3, 13), (3, 20),
        (3, 22), (6, 9), (6, 11),
        (6, 14), (6, 20),
    ]  # fmt: skip
    line = shown["best so far"]
    assert line.kind == "steps"
    ends = dict(zip(line.x, line.y, strict=True))  # the last one at each time
    assert ends == {1: 25, 3: 10, 6: 9}
    assert line.y == sorted(line.y, reverse=True)


def test_seconds_are_not_known_where_a_row_before_is_lost(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", [30.0, 20.0, 9.0])])
    path = run / "trial_0000" / "result.json"
    path.write_text(path.read_text().split("\n", 1)[1])
    assert figures.metric_against_time(load_means(run)) is None


def test_losses_of_the_best_and_the_baseline(frame: pd.DataFrame) -> None:
    frame["generator_loss"] = frame["fid"] / 10
    base = {**RMSPROP, "epochs": 99, "seed": 7, "not_a_column": 1}
    shown = by_name(figures.losses(frame, base=base))
    assert list(shown) == [
        "generator, best (trial_0000)", "discriminator, best (trial_0000)",
        "generator, baseline (trial_0001)", "discriminator, baseline (trial_0001)",
    ]  # fmt: skip
    assert shown["generator, baseline (trial_0001)"].y == [4, 1.3, 1.4]
    assert len(by_name(figures.losses(frame, base={**RMSPROP, "generator_lr": 5.0}))) == 2
    assert len(by_name(figures.losses(frame))) == 2
    assert (
        next(iter(by_name(figures.losses(frame, base=ADAM))))
        == "generator, best, baseline (trial_0000)"
    )


def test_parallel_coordinates_by_hand(frame: pd.DataFrame) -> None:
    chart = figures.parallel_coordinates(frame, SETTINGS)
    assert chart is not None
    optimizer, lr, fid = chart.axes
    assert [axis.label for axis in chart.axes] == ["optimizer", "generator_lr", "fid"]
    assert (optimizer.texts, optimizer.ticks) == (["adam", "rmsprop"], [0, 1])
    assert (lr.texts, lr.ticks) == (["0.0001", "0.002"], [0, 1])
    assert (
        optimizer.values == lr.values == [1, 1, 1, 0, 0, 0]
    )  # worst first, so that the best lies on top
    assert fid.values == pytest.approx([90, 20, 13, 12, 10, 9])
    assert figures.parallel_coordinates(frame, []) is None


def test_numeric_axes_are_logarithmic_from_a_decade_on() -> None:
    axis = figures._axis("lr", pd.Series([1e-4, 1e-3, 1e-2, 2e-3, 3e-3, 4e-3]))
    assert axis.values[:3] == [-4, -3, -2]
    assert axis.texts == ["0.0001", "0.00032", "0.001", "0.0032", "0.01"]
    assert axis.ticks == pytest.approx(np.log10([0.0001, 0.00032, 0.001, 0.0032, 0.01]), abs=1e-4)
    straight = figures._axis("beta1", pd.Series([0.0, 0.1, 0.2, 0.3, 0.4, 1.0]))
    assert straight.values == [0, 0.1, 0.2, 0.3, 0.4, 1]
    assert straight.ticks == [0, 0.25, 0.5, 0.75, 1]
    assert not figures._wide(pd.Series([1.0, 10.0]))
    assert figures._wide(pd.Series([1.0, 10.1]))
    assert not figures._wide(pd.Series([0.0, 10.1]))
    assert not figures._spread(pd.Series([1.0, 2.0]))
    assert figures._spread(pd.Series([1.0, 2.1]))
    assert not figures._spread(pd.Series([-1.0, 2.1]))


def test_importances_as_in_their_table() -> None:
    table = pd.DataFrame(
        {"setting": ["lr", "beta1"], "ped_anova": [0.7, 0.3], "fanova": math.nan, "n": 20}
    )
    chart = figures.importances(table)
    assert chart is not None
    assert [(series.name, series.x, series.y) for series in chart.series] == [
        ("PED-ANOVA", [0.7, 0.3], ["lr", "beta1"])
    ]
    assert chart.categories == ["lr", "beta1"]
    assert "20 finished" in chart.caption
    assert figures.importances(table.assign(ped_anova=math.nan)) is None
    assert figures.importances(table.head(0)) is None


def test_a_factor_as_in_its_table(frame: pd.DataFrame) -> None:
    chart = figures.factor_comparison(compare(frame, "optimizer"))
    assert chart is not None
    (series,) = chart.series
    assert series.y == chart.categories == ["adam (n = 2)", "rmsprop (n = 2)"]
    assert series.x == [9.5, 16.5]
    assert (series.low, series.high) == ([9, 13], [10, 20])
    finished = frame[(frame["optimizer"] == "adam") | (frame["status"] != "finished")]
    assert (
        figures.factor_comparison(compare(finished, "optimizer")) is None
    )  # one level alone has results


def test_slices_by_hand(frame: pd.DataFrame) -> None:
    optimizer, _ = figures.slices(frame, SETTINGS)
    assert optimizer.categories == ["adam", "rmsprop"]
    shown = by_name(optimizer)
    assert list(shown) == ["finished", "stopped", "unfinished"]
    assert list(zip(shown["finished"].x, shown["finished"].y, strict=True)) == [
        ("adam", 9), ("adam", 10), ("rmsprop", 13), ("rmsprop", 20),
    ]  # fmt: skip
    assert (shown["stopped"].x, shown["stopped"].y, shown["stopped"].hover) == (
        ["rmsprop"],
        [90],
        ["trial_0003"],
    )
    frame["generator_lr"] = [10.0**-k for k in frame["trial"].str[-1].astype(int)]
    (lr,) = figures.slices(frame, ["generator_lr"])
    assert lr.log_x
    assert not lr.categories
    assert by_name(lr)["stopped"].x == [0.001]


def test_the_front_by_hand(frame: pd.DataFrame) -> None:
    """A trial of 3 epochs takes 6 s and 300 MB, of 2 epochs 3 s, of one 1 s."""
    chart = figures.pareto_front(frame, "seconds", SETTINGS)
    assert chart is not None
    trials, front = chart.series
    assert (front.x, front.y, front.kind) == ([1, 3, 6], [90, 12, 9], "steps")
    assert trials.x == [1, 3, 6, 6, 6, 6]
    assert trials.color == [1, 2, 3, 3, 3, 3]
    assert front.hover is not None
    assert front.hover[1] == "trial_0004, unfinished<br>optimizer: adam<br>generator_lr: 0.0001"
    alike = figures.pareto_front(frame[frame["status"] == "finished"])
    assert by_name(alike)["trials"].color is None  # a scale of one value says nothing
    memory = figures.pareto_front(frame, "peak_memory_mb")
    assert by_name(memory)["Pareto front"].x == [100, 200, 300]


def test_survival_by_hand(frame: pd.DataFrame) -> None:
    chart = figures.rung_survival(frame)
    assert chart is not None
    assert chart.stacked
    assert {series.name: (series.x, series.y) for series in chart.series} == {
        "finished": ([0, 1, 2, 3], [4, 4, 4, 4]),
        "stopped": ([0, 1, 2, 3], [1, 1, 0, 0]),
        "failed": ([0, 1, 2, 3], [1, 0, 0, 0]),
        "unfinished": ([0, 1, 2, 3], [1, 1, 1, 0]),
    }
    assert "of 7, 4 finished, 1 stopped, 1 failed, 1 unfinished" in chart.caption
    assert figures.rung_survival(frame[frame["status"] == "finished"]) is None


SUMMARY = pd.DataFrame(
    {
        "trial": ["trial_0003", "trial_0007", "baseline"], "baseline": [False, True, True],
        "estimate": [11.0, 14.0, math.nan],
        "validation": [13.0, 16.0, 27.0], "validation_low": [12.0, 15.0, math.nan],
        "validation_high": [14.0, 17.0, math.nan],
        "validation_n": [3, 3, 1],
    }
)  # fmt: skip


def test_confirmation_as_in_its_table() -> None:
    chart = figures.confirmation(SUMMARY)
    assert chart is not None
    shown = by_name(chart)
    assert chart.categories == [
        "trial_0003 (n = 3)",
        "trial_0007 (baseline) (n = 3)",
        "baseline (n = 1)",
    ]
    assert shown["confirmed mean"].x == [13, 16, 27]
    assert shown["confirmed mean"].low == [12, 15, None]
    assert shown["confirmed mean"].high == [14, 17, None]
    assert shown["estimate of the search"].x == [11, 14, None]
    assert figures.confirmation(SUMMARY.assign(validation=math.nan)) is None


def test_what_a_folder_holds_besides_enters(frame: pd.DataFrame, tmp_path: Path) -> None:
    run = tmp_path / "run"
    search = {"axes": {"generator_lr": AXIS}, "objectives": [{"column": "fid", "mode": "min"}]}
    names = {chart.name for chart in charts(frame, run, search)}
    assert {"slice_generator_lr", "factor_generator_lr"} <= names
    assert not {"slice_optimizer", "importances", "confirmation"} & names
    study = optuna.create_study(storage=f"sqlite:///{run / 'study.db'}")
    for k in range(20):
        distribution = {"generator_lr": FloatDistribution(0, 20)}
        study.add_trial(
            create_trial(
                value=float(k), params={"generator_lr": float(k)}, distributions=distribution
            )
        )
    SUMMARY.to_csv(run / "confirm.csv")
    assert {"importances", "confirmation"} <= {chart.name for chart in charts(frame, run, search)}
    (run / "confirm.csv").write_text("nonsense\n1\n")
    (run / "study.db").write_text("nonsense")
    with (
        pytest.warns(UserWarning, match=r"confirm\.csv is damaged"),
        pytest.warns(UserWarning, match="importances is left out: .*damaged"),
    ):
        charts(frame, run, search)


def test_the_mode_is_the_searchs(frame: pd.DataFrame) -> None:
    found = charts(frame, search={"objectives": [{"column": "fid", "mode": "max"}]})
    assert "1: trial_0003" in by_name(found[0])


def test_numbers_have_five_digits_and_gaps() -> None:
    assert figures._numbers([1 / 3, 123456.7, math.nan, None, math.inf, 3]) == [
        0.33333,
        123460,
        None,
        None,
        None,
        3,
    ]
    assert figures._numbers(pd.Series([1, pd.NA], dtype="Int64")) == [1, None]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (
            [(ADAM, "finished", [3.0, 2.0, 1.0])],
            {"learning_curves", "metric_against_time", "losses"},
        ),
        ([(ADAM, "unfinished", [3.0])], {"learning_curves", "metric_against_time", "losses"}),
        ([(ADAM, "failed", [])], set()),
        ([(ADAM, "failed", []), (RMSPROP, "unfinished", [])], {"rung_survival"}),
    ],
)
def test_what_the_data_do_not_allow_is_left_out(
    trials: Any, expected: set[str], tmp_path: Path
) -> None:
    found = charts(load_trials(make(tmp_path / "run", trials)))
    assert {chart.name for chart in found} == expected
    for chart in found:
        to_plotly(chart).to_json()
        to_png(chart, tmp_path / "x.png")


def test_a_trial_without_its_settings_is_drawn_where_it_can_be(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "run" / "trial_0001" / "params.json").unlink()
    with pytest.warns(UserWarning, match="params.json is missing"):
        lost = load_trials(tmp_path / "run")
    found = {
        chart.name: chart for chart in charts(lost, search={"axes": dict.fromkeys(SETTINGS, AXIS)})
    }
    assert len(found["parallel_coordinates"].axes[0].values) == 5
    for chart in found.values():
        to_plotly(chart).to_json()
        to_png(chart, tmp_path / "x.png")


def every_chart(frame: pd.DataFrame) -> list[Chart]:
    table = pd.DataFrame(
        {"setting": ["lr", "beta1"], "ped_anova": [0.7, 0.3], "fanova": [0.6, 0.4], "n": 20}
    )
    frame["fid_std"] = 1.0
    more = [figures.importances(table), figures.confirmation(SUMMARY)]
    return charts(frame, search={"base": RMSPROP}) + [chart for chart in more if chart]


def test_plotly_shows_the_numbers(frame: pd.DataFrame) -> None:
    found = every_chart(frame)
    assert len(found) == 13
    for chart in found:
        data = json.loads(to_plotly(chart).to_json())["data"]
        for series in chart.series:
            (trace,) = (trace for trace in data if trace.get("name") == series.name)
            assert (trace["x"], trace["y"]) == (series.x, series.y), chart.name
            assert trace["showlegend"] <= (not series.faint)
            if series.low and series.high and series.kind == "points":
                error = trace["error_x"]
                ends = zip(
                    series.x,
                    error["arrayminus"],
                    error["array"],
                    series.low,
                    series.high,
                    strict=True,
                )
                assert all(
                    x - a == pytest.approx(low) and x + b == pytest.approx(high)
                    for x, a, b, low, high in ends
                    if low
                )
        bands = [
            series
            for series in chart.series
            if series.kind == "line" and series.low and series.high
        ]
        drawn = [trace["y"] for trace in data if trace.get("fill") == "toself"]
        assert drawn == [
            series.high + series.low[::-1] for series in bands if series.high and series.low
        ]
        if chart.axes:
            assert [d["values"] for d in data[0]["dimensions"]] == [
                axis.values for axis in chart.axes
            ]
            assert data[0]["line"]["color"] == chart.axes[-1].values


def test_pictures_show_the_numbers(frame: pd.DataFrame, tmp_path: Path) -> None:
    for chart in every_chart(frame):
        with Image.open(to_png(chart, tmp_path / f"{chart.name}.png")) as image:
            assert image.size == (1600, 900)
            pixels = np.asarray(image.convert("RGB"), dtype=int)
        assert (pixels[:5] == 255).all(axis=2).mean() > 0.9, chart.name  # a white ground
        coloured = (np.ptp(pixels, axis=2) > 60).mean()
        assert 1e-4 < coloured < 0.6, chart.name


def test_statuses_look_alike_in_all_charts(frame: pd.DataFrame) -> None:
    looks: dict[str, set[str]] = {}
    for chart in charts(frame):
        for trace in to_plotly(chart).data:
            if trace.name in ("finished", "stopped", "failed", "unfinished"):
                looks.setdefault(trace.name, set()).add(trace.marker.color)
    assert all(len(colors) == 1 for colors in looks.values())
    assert len(set.union(*looks.values())) == 4


@pytest.mark.parametrize(
    "values", [[3.0, 40.0], [0.26, 140.0], [1e-5, 1e4], [5.0, 5.0], [10.0, 100.0], [6.0, 7.0]]
)
def test_logarithmic_axes_have_ticks_on_both_sides(values: list[float]) -> None:
    chart = Chart(
        name="x",
        title="",
        caption="",
        x="",
        y="",
        log_y=True,
        series=[Series(name="a", x=[1, 2], y=values)],
    )
    ticks = to_plotly(chart).layout.yaxis.tickvals
    assert min(ticks) <= values[0]
    assert max(ticks) >= values[1]
    assert 2 <= len(ticks) <= 11
    assert sum(tick >= values[1] for tick in ticks) == 1 or values[0] == values[1]


def test_the_first_category_is_on_top_or_at_the_left(frame: pd.DataFrame) -> None:
    across, down = (
        figures.slices(frame, ["optimizer"])[0],
        figures.factor_comparison(compare(frame, "optimizer")),
    )
    assert down is not None
    assert to_plotly(across).layout.xaxis.range == (-0.5, 1.5)
    assert to_plotly(down).layout.yaxis.range == (1.5, -0.5)
    assert to_plotly(across).layout.xaxis.type == "category"  # else 0.1 and 0.5 would be numbers


def test_an_axis_of_one_value_has_a_range(tmp_path: Path) -> None:
    axis = Axis(label="fid", values=[2.0, 2.0], ticks=[2.0], texts=["2"])
    chart = Chart(name="x", title="", caption="", x="", y="", axes=[axis, axis])
    assert to_plotly(chart).data[0].dimensions[0].range == (1, 3)
    to_png(chart, tmp_path / "x.png")


def test_five_hundred_trials_are_quick() -> None:
    rng = np.random.default_rng(0)
    trials, epochs = np.repeat(np.arange(500), 25), np.tile(np.arange(1, 26), 500)
    frame = pd.DataFrame(dict.fromkeys(RESULTS, 1.0), index=range(12_500)).assign(
        trial=[f"trial_{trial:04d}" for trial in trials], status="finished", error=pd.NA, seed=0,
        epoch=epochs,
        fid_std=1.0, lanes=2,
        fid=rng.gamma(2, 10, 12_500) + 100 / epochs,
        generator_lr=10 ** rng.uniform(-4, -2, 500)[trials],
        beta1=rng.uniform(size=500)[trials], batch_size=rng.choice([64, 128], 500)[trials],
        device="cpu",
    )  # fmt: skip
    start = time.process_time()
    found = charts(frame.astype({"epoch": "Int64"}))
    size = sum(len(to_plotly(chart).to_json()) for chart in found)
    assert len(found) == 12
    assert time.process_time() - start < 6
    assert size < 1_500_000


def test_nothing_slow_is_imported_until_something_is_drawn() -> None:
    unwanted = {"plotly", "matplotlib", "torch", "ray"}
    check = f"import sys, analysis.draw; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[3], check=True)


def test_pyplot_is_never_used(frame: pd.DataFrame, tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    to_png(charts(frame)[0], tmp_path / "x.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
