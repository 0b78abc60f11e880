"""Charts: their frames against numbers worked by hand, and that what is drawn is these frames."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image

from analysis import charts
from analysis.charts import BASELINE, BEST, OTHER
from analysis.load import RESULTS, TEXTS
from analysis.tables import compare, rank

ADAM = {"optimizer": "adam", "generator_lr": 1e-4}
RMSPROP = {"optimizer": "rmsprop", "generator_lr": 2e-3}
FID = ("fid", "min")
SECONDS = ("seconds", "min")
AXES = {"optimizer": "adam, rmsprop", "generator_lr": "0.0001, 0.002"}

Trial = tuple[dict[str, Any], str, Sequence[Any]]


def frame_of(trials: Sequence[Trial]) -> pd.DataFrame:
    """Trials as `load_trials` gives them: settings, status, and the fid of each epoch, or the list
    of the lanes' fids. The n-th trial takes n s of training an epoch, and none of evaluation."""
    rows = []
    for number, (settings, status, fids) in enumerate(trials):
        head = {"trial": f"trial_{number:04d}", "status": status, "error": None}
        by_lane = [fid if isinstance(fid, list) else [fid] for fid in fids] or [[math.nan]]
        for epoch, own in enumerate(by_lane, start=1):
            for lane, fid in enumerate(own):
                row = head | {"lanes": len(own), "seed": lane, "epochs": 3} | settings
                row |= dict.fromkeys(RESULTS, 1.0) | dict.fromkeys(TEXTS, "x")
                row |= {"lane": lane, "epoch": epoch if fids else None, "fid": fid}
                row |= {"seconds_train": (number + 1) / len(own), "seconds_eval": 0.0}
                row |= {"fid_real": 0.25, "generator_loss": 2.0, "discriminator_loss": 1.0}
                rows.append(row)
    return pd.DataFrame(rows).astype({"epoch": "Int64", "lane": "Int64"})


@pytest.fixture
def frame() -> pd.DataFrame:
    """A baseline, the best, and one of each other status."""
    return frame_of(
        [
            (ADAM, "finished", [30.0, 20.0, 25.0]),
            (RMSPROP, "finished", [40.0, 10.0, 12.0]),
            (ADAM, "stopped", [9.0]),
            (RMSPROP, "failed", []),
            (RMSPROP, "unfinished", [50.0, 45.0]),
        ]
    )


SEARCH = {"base": ADAM | {"seed": 7, "epochs": 9, "unknown": 1}, "axes": AXES, "rungs": [1, 2]}
SUMMARY = pd.DataFrame(
    {
        "rank": [1, None],
        "trial": ["trial_0001", "trial_0000"],
        "baseline": [False, True],
        "estimate": [10.0, math.nan],
        "validation": [11.0, 21.0],
        "validation_low": [9.0, 19.0],
        "validation_high": [13.0, 23.0],
        "validation_n": [3, 3],
        "test": [12.0, 22.0],
        "test_low": [10.0, math.nan],
        "test_high": [14.0, math.nan],
        "test_n": [3, 1],
    }
)


def test_the_best_is_a_finished_trial_and_the_baseline_has_the_base_settings(
    frame: pd.DataFrame,
) -> None:
    expected = dict.fromkeys(frame["trial"], OTHER) | {"trial_0000": BASELINE, "trial_0001": BEST}
    assert charts.roles(frame, SEARCH) == expected
    assert set(charts.roles(frame, {}).values()) == {BEST, OTHER}
    assert charts.roles(frame, SEARCH | {"base": RMSPROP})["trial_0001"] == BEST
    alone = charts.roles(frame[frame["status"] != "finished"], SEARCH)
    assert set(alone.values()) == {BASELINE, OTHER}  # stopped, but still the baseline


def test_learning_curves_are_means_over_lanes() -> None:
    lanes = frame_of([(ADAM, "finished", [[10.0, 14.0], [8.0, 9.0]]), (ADAM, "failed", [])])
    rows = charts.curve_rows(lanes, charts.roles(lanes, {}), FID)
    assert rows["value"].to_list() == [12.0, 8.5]
    assert rows["epoch"].to_list() == [1, 2]
    assert set(rows["role"]) == {BEST}
    assert set(rows["floor"]) == {0.25}
    other = charts.curve_rows(lanes, charts.roles(lanes, {}), ("kid", "min"))
    assert other["floor"].isna().all()


def test_rungs_count_who_reached_them_and_who_went_on(frame: pd.DataFrame) -> None:
    table = charts.rung_rows(frame, [1, 2])
    assert table.to_numpy().tolist() == [[1, 4, 3], [2, 3, 2]]
    assert charts.rung_rows(frame, []).empty


def test_settings_have_the_points_that_the_means_are_of() -> None:
    rates, lanes = [1e-4, 1e-4, 2e-3, 2e-3], [[9.0, 8.0], [11.0, 6.0]]
    trials = [({"generator_lr": rate}, "finished", lanes) for rate in rates]
    trials.append(({"generator_lr": 2e-3}, "stopped", [[3.0, 3.0]]))
    frame = frame_of(trials)
    (panel,) = charts.setting_panels(
        frame, charts.roles(frame, {}), FID, ["generator_lr", "batch_size"]
    )
    assert panel.name == "generator_lr"
    finished = panel.points[panel.points["status"] == "finished"]
    assert sorted(finished["value"]) == [6.0] * 4 + [9.0] * 4  # each lane at its own best epoch
    assert len(panel.points) == 10
    assert panel.points["x"].isna().all()
    table = compare(frame, "generator_lr")
    assert panel.levels["level"].to_list() == ["0.0001", "0.002"]
    assert panel.levels["mean"].to_list() == table["mean"].to_list() == [7.5, 7.5]
    means = finished.groupby("level")["value"].mean()
    assert panel.levels["level"].map(means).to_list() == [7.5, 7.5]


def test_many_numbers_are_drawn_where_they_lie_with_the_ranges_of_the_levels() -> None:
    """A trial without a result is in no point, but in the quartiles of the comparison."""
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    trials: list[Trial] = [({"rate": rate}, "finished", [10 * rate]) for rate in rates]
    trials += [({"rate": 9.0 + number}, "failed", []) for number in range(4)]
    frame = frame_of(trials)
    (panel,) = charts.setting_panels(frame, charts.roles(frame, {}), FID, ["rate"])
    assert panel.points["x"].to_list() == [
        2.0,
        3.0,
        4.0,
        5.0,
        6.0,
        7.0,
        8.0,
        1.0,
    ]  # the best on top
    assert panel.levels["level"].to_list() == ["1 to 3", "4 to 6", "7 to 9", "10 to 12"]
    known = panel.levels[:3]
    assert known[["low_x", "high_x"]].to_numpy().tolist() == [[1, 3], [4, 6], [7, 8]]
    assert known["mean"].to_list() == [20.0, 50.0, 75.0]
    assert set(panel.points["level"]) == set(known["level"])


def test_levels_are_never_named_alike() -> None:
    assert charts.level_names(pd.Series([0.00012345, 0.1])).to_list() == ["0.000123", "0.1"]
    close = charts.level_names(pd.Series([0.00012345, 0.00012346]))
    assert close.to_list() == ["0.00012345", "0.00012346"]


def test_the_front_is_of_finished_trials(frame: pd.DataFrame) -> None:
    role = charts.roles(frame, SEARCH)
    rows = charts.cost_rows(rank(frame, SEARCH), role, FID, SECONDS, AXES)
    by_trial = rows.set_index("trial")
    assert by_trial["cost"].to_dict() == {
        "trial_0000": 3.0,
        "trial_0001": 6.0,
        "trial_0002": 3.0,
        "trial_0004": 10.0,
    }
    assert by_trial["value"].to_dict()["trial_0001"] == 10.0
    assert set(by_trial.index[by_trial["front"]]) == {"trial_0000", "trial_0001"}
    assert by_trial["settings"]["trial_0001"] == "optimizer rmsprop, generator_lr 0.002"


def test_losses_are_of_the_best_and_the_baseline(frame: pd.DataFrame) -> None:
    rows = charts.loss_rows(frame, charts.roles(frame, SEARCH))
    assert len(rows) == 2 * (3 + 3)
    assert set(rows["role"]) == {BEST, BASELINE}
    by_net = rows.groupby("net")
    assert by_net["value"].first().to_dict() == {"generator": 2.0, "discriminator": 1.0}
    balance = by_net["balance"].first()
    assert balance["discriminator"] == pytest.approx(1.386, abs=1e-3)
    assert balance["generator"] == pytest.approx(0.693, abs=1e-3)
    hinge = charts.loss_rows(frame.assign(loss="hinge"), charts.roles(frame, SEARCH))
    assert hinge["balance"].isna().all()


def test_the_confirm_stage_shows_each_measure_that_is_known() -> None:
    rows = charts.confirm_rows(SUMMARY)
    assert set(rows["candidate"]) == {"trial_0001", "trial_0000 (baseline)"}
    assert rows.groupby("measure").size().to_dict() == {
        "estimate": 1,
        "validation": 2,
        "test": 2,
    }
    (test,) = rows[(rows["measure"] == "test") & (rows["trial"] == "trial_0001")].to_dict("records")
    assert [test[name] for name in ("value", "low", "high", "n")] == [12.0, 10.0, 14.0, 3]


def parts(spec: Any, key: str) -> Iterator[Any]:
    """All that a specification holds under a key, at any depth."""
    if isinstance(spec, dict):
        if key in spec:
            yield spec[key]
        spec = list(spec.values())
    if isinstance(spec, list):
        for part in spec:
            yield from parts(part, key)


def drawn(spec: dict[str, Any]) -> list[pd.DataFrame]:
    """The data that a specification holds."""
    texts = [values for values in parts(spec, "values") if isinstance(values, str)]
    texts += [text for held in parts(spec, "datasets") for text in held.values()]
    return [pd.read_csv(io.StringIO(text)) for text in texts]


def test_every_chart_is_valid_holds_its_rows_and_names_its_axes(frame: pd.DataFrame) -> None:
    found = charts.charts(frame, SEARCH, SUMMARY)
    assert list(found) == ["curves", "settings", "cost", "losses", "confirm"]
    assert charts.specs(frame, SEARCH, SUMMARY) == {
        name: chart.to_dict()  # validates
        for name, chart in found.items()
    }
    role = charts.roles(frame, SEARCH)
    rows = {
        "curves": charts.curve_rows(frame, role, FID),
        "cost": charts.cost_rows(rank(frame, SEARCH), role, FID, SECONDS, AXES),
        "losses": charts.loss_rows(frame, role),
        "confirm": charts.confirm_rows(SUMMARY),
        "settings": charts.setting_panels(frame, role, FID, AXES)[0].points,
    }
    for name, chart in found.items():
        spec = chart.to_dict()
        tables = drawn(spec)
        values = {tuple(row) for table in tables for row in table.filter(["value"]).to_numpy()}
        assert {(value,) for value in rows[name]["value"]} <= values, name
        assert spec["params"] == [{"name": "pointed", "value": ""}]
        axes = [axis for axes in parts(vl_convert.vegalite_to_vega(spec), "axes") for axis in axes]
        shown = [axis for axis in axes if axis.get("labels", True)]
        assert shown
        assert all(axis.get("title") for axis in shown), name


def pixels(spec: dict[str, Any]) -> Any:
    with Image.open(io.BytesIO(charts.png_of(spec))) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def test_the_trial_that_is_pointed_at_is_drawn_black_in_all_charts_of_trials(
    frame: pd.DataFrame,
) -> None:
    """The best: all but the confirm stage have it."""
    found = charts.specs(frame, SEARCH)
    for name, spec in found.items():
        plain = pixels(spec)
        spec["params"][0]["value"] = "trial_0001"
        lit = pixels(spec)
        changed = (plain != lit).any(axis=2)
        assert changed.sum() > 50, name
        assert (lit[changed].max(axis=1) < 100).sum() > 20, name
        assert (plain[:3] == 255).all(), name  # a white ground


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([(ADAM, "failed", [])], []),
        ([(ADAM, "finished", [3.0, 2.0])], ["curves", "losses"]),
        ([(ADAM, "unfinished", [3.0])], ["curves"]),
        ([(ADAM, "finished", [5.0]), (ADAM, "stopped", [5.0])], ["curves", "cost", "losses"]),
        (
            [(ADAM, "stopped", [5.0]), (RMSPROP, "unfinished", [4.0])],
            ["curves", "cost"],
        ),
        (
            [(ADAM, "finished", [0.0, -1.0]), (RMSPROP, "finished", [2.0])],
            ["curves", "settings", "cost", "losses"],
        ),
    ],
    ids=["failed", "one", "running", "alike", "none-finished", "negative"],
)
def test_what_the_data_do_not_allow_is_left_out(trials: list[Trial], expected: list[str]) -> None:
    frame = frame_of(trials)
    found = charts.charts(frame, {"axes": AXES})
    assert list(found) == expected
    for chart in found.values():
        content = json.dumps(chart.to_dict(), allow_nan=False)
        charts.png_of(json.loads(content))


def test_a_trial_without_its_settings_is_drawn_where_it_can_be(frame: pd.DataFrame) -> None:
    lost = frame.assign(optimizer=frame["optimizer"].mask(frame["trial"] == "trial_0000"))
    found = charts.charts(lost, SEARCH)
    assert "settings" in found
    for chart in found.values():
        charts.png_of(chart.to_dict())


def test_objectives_set_the_axes_and_their_sense(frame: pd.DataFrame) -> None:
    goals = [
        {"column": "sample_coverage", "mode": "max"},
        {"column": "images_per_second", "mode": "max"},
    ]
    frame["sample_coverage"] = np.linspace(0.1, 0.9, len(frame))
    frame["images_per_second"] = np.linspace(900.0, 100.0, len(frame))
    search = SEARCH | {"objectives": goals}
    found = charts.charts(frame, search)
    text = json.dumps(found["cost"].to_dict())
    assert "sample_coverage (higher is better)" in text
    assert "images_per_second (higher is better)" in text
    assert "step-before" in text
    role = charts.roles(frame, search)
    rows = charts.cost_rows(
        rank(frame, search), role, *[(g["column"], g["mode"]) for g in goals], []
    )
    front = rows.loc[rows["front"], "trial"]
    assert set(front) == {"trial_0000", "trial_0001"}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.26, 140.0, [0.3, 1, 3, 10, 30, 100]),
        (5.0, 60.0, [5, 10, 20, 50]),
        (10.0, 22.0, [10, 15, 20]),
        (1e-4, 1e-3, [1e-4, 2e-4, 5e-4, 1e-3]),
    ],
)
def test_logarithmic_axes_have_round_ticks(low: float, high: float, expected: list[float]) -> None:
    assert charts.log_ticks(low, high) == pytest.approx(expected)


def test_numbers_keep_five_digits_and_gaps_stay_empty() -> None:
    rows = pd.DataFrame({"trial": ["a", 'b"<script>,'], "value": [1 / 3, math.nan]})
    held = charts.data(rows).to_dict()
    assert held["values"] == 'trial,value\na,0.33333\n"b""<script>,",\n'
    assert held["format"]["parse"] == {"trial": "string", "value": "number"}


def test_five_hundred_trials_fit_into_a_page() -> None:
    rng = np.random.default_rng(0)
    settings = [
        {"generator_lr": 10 ** rng.uniform(-4, -2), "batch_size": int(rng.choice([64, 128]))}
        for _ in range(500)
    ]
    trials = [(own, "finished", list(rng.gamma(2, 10, 25))) for own in settings]
    found = charts.specs(frame_of(trials), {"axes": dict.fromkeys(settings[0], "")})
    assert sum(len(json.dumps(spec)) for spec in found.values()) < 900_000
