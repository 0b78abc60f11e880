"""Rankings, comparisons of levels, and ends of ranges: against numbers worked by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial
from scipy import stats

from analysis.load import RESULTS, load_trials
from analysis.stats import mean_interval, welch
from analysis.tables import axis_text, best_of, boundary, compare, pareto, ranking

STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "unfinished": TrialState.RUNNING,
}


def make(
    folder: Path, trials: Sequence[tuple[dict[str, Any], str, Sequence[Any]]], epochs: int = 3
) -> Path:
    """A search's folder of trials: settings, status, and the fid of each epoch, or the list of the
    lanes' fids. A trial's epoch takes 2 s of training, and a quarter of a second more each time of
    evaluation."""
    folder.mkdir()
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}")
    for number, (settings, status, fids) in enumerate(trials):
        path = folder / f"trial_{number:04d}"
        path.mkdir()
        by_lane = [fid if isinstance(fid, list) else [fid] for fid in fids]  # (epochs, lanes)
        lanes = len(by_lane[0]) if by_lane else 1
        known = {"epochs": epochs, "seed": 0} | settings
        params = [known | {"seed": known["seed"] + lane} for lane in range(lanes)]
        (path / "params.json").write_text(json.dumps(params if lanes > 1 else params[0]))
        rows = []
        for epoch, own in enumerate(by_lane, start=1):
            for lane, fid in enumerate(own):
                row: dict[str, Any] = dict.fromkeys(RESULTS, 1.0)
                row |= dict.fromkeys(("eval_split", "extractor", "device"), "x")
                row |= {"lane": lane, "epoch": epoch, "fid": fid}
                row |= {"seconds_train": 2.0 / lanes, "seconds_eval": epoch / 4 / lanes}
                rows.append(row)
        (path / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        value = 1.0 if status == "finished" else None
        study.add_trial(create_trial(state=STATES[status], value=value))
    return folder


def axis(distribution: BaseDistribution) -> dict[str, Any]:
    """An axis as `search.json` holds it."""
    content: dict[str, Any] = json.loads(distribution_to_json(distribution))
    return content


def choices(*values: Any) -> dict[str, Any]:
    return axis(CategoricalDistribution(values))


def curve(best: float) -> list[float]:
    """Three epochs, of which the second is best."""
    return [best + 9, best, best + 5]


ADAM, RMSPROP = {"optimizer": "adam"}, {"optimizer": "rmsprop"}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Best fids: adam 10, 12, 17 (and 90 stopped, 5 failed, 1 unfinished); rmsprop 13, 20."""
    trials = [
        (ADAM, "finished", curve(10.0)), (RMSPROP, "finished", curve(13.0)),
        (ADAM, "finished", curve(12.0)),
        (ADAM, "stopped", [90.0]), (ADAM, "failed", [5.0, 6.0]), (RMSPROP, "finished", curve(20.0)),
        (ADAM, "finished", curve(17.0)), (ADAM, "unfinished", [1.0]),
    ]  # fmt: skip
    return load_trials(make(tmp_path / "run", trials))


def test_of_conditional_nets_what_was_recognised_stands_beside(frame: pd.DataFrame) -> None:
    assert "label_accuracy" not in ranking(frame)
    recognised = frame.assign(label_accuracy=frame["fid"] / 100)
    table = ranking(recognised)
    assert table["label_accuracy"].head(3).to_list() == [0.1, 0.12, 0.13]  # of the best epochs


def test_a_comparison_by_hand(frame: pd.DataFrame) -> None:
    """Each trial had other settings, or the same again, so trials are the units."""
    found = compare(frame, "optimizer")
    assert found.attrs["units"] == "trials"
    table = found.set_index("optimizer")
    counts = ["trials", "finished", "stopped", "failed", "unfinished", "n"]
    assert table.loc["adam", counts].to_list() == [6, 3, 1, 1, 1, 3]
    assert table.loc["rmsprop", counts].to_list() == [2, 2, 0, 0, 0, 2]
    assert table["mean"].to_list() == [13.0, 16.5]
    assert table["difference"].to_list() == [0.0, 3.5]
    ends = table.loc["rmsprop", ["mean_low", "mean_high"]].to_list()
    assert ends == pytest.approx(stats.ttest_1samp([13.0, 20.0], 0).confidence_interval())
    ends = table.loc["rmsprop", ["difference_low", "difference_high"]].to_list()
    assert ends == pytest.approx(welch([13.0, 20.0], [10.0, 12.0, 17.0])[1:3])
    assert table.loc["adam", ["difference_low", "difference_high"]].isna().all()


def test_more_can_be_better(frame: pd.DataFrame) -> None:
    """Each trial's largest fid is 9 more than its best."""
    table = compare(frame, "optimizer", mode="max").set_index("optimizer")
    assert table["mean"].to_list() == [22.0, 25.5]
    assert table["difference"].to_list() == [-3.5, 0.0]


def test_other_columns_are_of_the_trials_best_epoch(tmp_path: Path) -> None:
    """And not each its own best, or least."""
    run = make(tmp_path / "run", [(ADAM, "finished", [9.0, 5.0])], epochs=2)
    path = run / "trial_0000" / "result.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"sample_coverage": 0.0, "sharpness": 0.1}
    rows[1] |= {"sample_coverage": 0.3, "sharpness": 0.9}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = compare(load_trials(run), "optimizer").iloc[0]
    assert row[["mean", "sample_coverage", "sharpness"]].to_list() == [5.0, 0.3, 0.9]


def grid(folder: Path, lanes: int, effect: float) -> pd.DataFrame:
    """Two optimizers at three rates; rates matter more than optimizers, seeds more than both."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 30, lanes)
    trials = []
    for optimizer, own in (("adam", 0.0), ("rmsprop", effect)):
        for rate, shift in ((1e-4, 40.0), (3e-4, 20.0), (5e-4, 0.0)):
            fids = 200 + own + shift + seeds + rng.normal(0, 0.5, lanes)
            settings = {"optimizer": optimizer, "generator_lr": rate, "discriminator_lr": rate}
            trials.append((settings, "finished", [fids.tolist()] * 3))
    return load_trials(make(folder, trials))


def test_a_grid_is_compared_within_its_settings_and_seeds(tmp_path: Path) -> None:
    """By plain pandas: a value a seed, the mean over the rates; then SciPy's paired test."""
    frame = grid(tmp_path / "run", 4, 3.0)
    found = compare(frame, "optimizer")
    assert found.attrs["units"] == "seeds, matched"
    table = found.set_index("optimizer")
    by_seed = frame[frame["epoch"] == 1].pivot_table("fid", "seed", "optimizer", aggfunc="mean")
    test = stats.ttest_rel(by_seed["rmsprop"].astype(float), by_seed["adam"].astype(float))
    ends = table.loc["rmsprop", ["difference_low", "difference_high"]].to_list()
    assert ends == pytest.approx(test.confidence_interval(), rel=1e-4)
    assert ends[0] > 0  # unmatched, the noise of the seeds would hide it
    assert table["n"].to_list() == [4, 4]
    assert table.loc["adam", ["mean", "mean_low", "mean_high"]].to_list() == pytest.approx(
        mean_interval(by_seed["adam"].astype(float))[:3]
    )


def test_a_grid_of_few_seeds_is_compared_by_its_settings(tmp_path: Path) -> None:
    frame = grid(tmp_path / "run", 1, 3.0)
    found = compare(frame, "optimizer")
    assert found.attrs["units"] == "settings, matched"
    assert found["n"].to_list() == [3, 3]
    by_rate = frame[frame["epoch"] == 1].pivot(
        index="generator_lr", columns="optimizer", values="fid"
    )
    test = stats.ttest_rel(by_rate["rmsprop"].astype(float), by_rate["adam"].astype(float))
    ends = found.iloc[1][["difference_low", "difference_high"]].to_list()
    assert ends == pytest.approx(list(test.confidence_interval()), rel=1e-4)


def test_a_setting_that_follows_the_factor_is_no_other_setting(tmp_path: Path) -> None:
    """The discriminator's rate is tied to the generator's."""
    found = compare(grid(tmp_path / "run", 4, 3.0), "generator_lr")
    assert found.attrs["units"] == "seeds, matched"
    assert found["trials"].to_list() == [2, 2, 2]


def test_a_cell_that_failed_is_left_out_of_all_levels(tmp_path: Path) -> None:
    frame = grid(tmp_path / "run", 4, 3.0)
    failed = (frame["optimizer"] == "adam") & (frame["generator_lr"] == 1e-4)
    frame.loc[failed, "status"] = "failed"
    table = compare(frame, "optimizer").set_index("optimizer")
    rest = frame[(frame["generator_lr"] > 2e-4) & (frame["epoch"] == 1)]
    means = rest.groupby("optimizer")["fid"].mean()
    assert table["mean"].to_dict() == pytest.approx(means.to_dict())
    assert table["failed"].to_list() == [1, 0]


def test_lanes_of_a_trial_are_no_units_where_settings_do_not_match(tmp_path: Path) -> None:
    """Two trials, far apart, of three seeds that agree: there are two values, not six."""
    trials = [
        ({"generator_lr": 1e-4}, "finished", [[10.0, 10.1, 9.9]] * 3),
        ({"generator_lr": 2e-4} | RMSPROP, "finished", [[50.0, 50.1, 49.9]] * 3),
        ({"generator_lr": 3e-4} | RMSPROP, "finished", [[70.0, 70.1, 69.9]] * 3),
    ]
    frame = load_trials(
        make(tmp_path / "run", [(ADAM | trials[0][0], *trials[0][1:]), *trials[1:]])
    )
    row = compare(frame, "optimizer").iloc[1]
    assert row[["trials", "n"]].to_list() == [2, 2]
    ends = row[["mean_low", "mean_high"]].to_list()
    assert ends == pytest.approx(list(mean_interval([50.0, 70.0])[1:3]))


def test_one_value_has_no_interval_and_none_no_mean(tmp_path: Path) -> None:
    trials = [
        (ADAM, "finished", curve(10.0)),
        (RMSPROP, "failed", []),
        ({"optimizer": "sgd"}, "stopped", [4.0]),
    ]
    table = compare(load_trials(make(tmp_path / "run", trials)), "optimizer").set_index("optimizer")
    assert table["n"].to_list() == [1, 0, 0]
    assert table.at["adam", "mean"] == 10
    assert table[["mean_low", "mean_high", "difference_low"]].isna().all(axis=None)
    assert table["mean"].isna().to_list() == [False, True, True]


def test_a_search_without_a_finished_trial_compares_nothing(tmp_path: Path) -> None:
    trials = [(ADAM, "stopped", [4.0]), (RMSPROP, "failed", [])]
    table = compare(load_trials(make(tmp_path / "run", trials)), "optimizer")
    assert table["n"].to_list() == [0, 0]
    assert table[["mean", "difference"]].isna().all(axis=None)


def test_a_numeric_factor_of_many_values_is_cut_at_its_quartiles(tmp_path: Path) -> None:
    rates = [0.001 * (i + 1) for i in range(8)]
    trials = [
        ({"generator_lr": rate, "batch_size": 64 * (1 + i % 5)}, "finished", curve(i))
        for i, rate in enumerate(rates)
    ]
    frame = load_trials(make(tmp_path / "run", trials))
    table = compare(frame, "generator_lr")
    assert table["generator_lr"].to_list() == [
        "0.001 to 0.002", "0.003 to 0.004",
        "0.005 to 0.006", "0.007 to 0.008",
    ]  # fmt: skip
    assert table["mean"].to_list() == [0.5, 2.5, 4.5, 6.5]
    assert compare(frame, "batch_size")["batch_size"].to_list() == [64, 128, 192, 256, 320]


def test_ties_leave_fewer_bins_and_none_is_empty(tmp_path: Path) -> None:
    """The quartiles are 3, 3 and 3.75: nothing lies above 3 and up to 3.75."""
    trials = [
        ({"generator_lr": rate}, "finished", curve(1.0)) for rate in (1, 2, *[3] * 8, 4, 5, 6, 7)
    ]
    table = compare(load_trials(make(tmp_path / "run", trials)), "generator_lr")
    assert table[["generator_lr", "trials"]].to_numpy().tolist() == [
        ["1 to 3", 10], ["4 to 7", 4],
    ]  # fmt: skip


def test_trials_whose_settings_are_lost_are_a_level_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", curve(1.0)), (ADAM, "finished", curve(2.0))])
    (run / "trial_0001" / "params.json").unlink()
    with pytest.warns(UserWarning, match=r"trial_0001/params.json is missing"):
        table = compare(load_trials(run), "optimizer")
    assert table["optimizer"].isna().to_list() == [False, True]
    assert table["trials"].to_list() == [1, 1]


def test_runs_can_be_compared(tmp_path: Path) -> None:
    again = ADAM | {"seed": 1}
    one = make(tmp_path / "one", [(ADAM, "finished", curve(1.0)), (again, "finished", curve(3.0))])
    trials = [(ADAM, "finished", curve(2.0)), (again, "finished", curve(6.0))]
    two = make(tmp_path / "two", [*trials, (ADAM, "stopped", [9.0])])
    frame = load_trials([one, two])
    table = compare(frame, "run")
    assert table[["run", "trials", "n", "mean"]].to_numpy().tolist() == [
        ["one", 2, 2, 2.0],
        ["two", 3, 2, 4.0],
    ]
    assert compare(frame, "optimizer")["trials"].to_list() == [5]
    assert boundary(frame, {"seed": choices(0, 1)})["n"].to_list() == [3]


@pytest.mark.parametrize("factor", ["nonsense", "fid", "trial", "status"])
def test_a_factor_must_be_a_setting(factor: str, frame: pd.DataFrame) -> None:
    message = f"factor is '{factor}'; allowed: a setting, such as those that vary: optimizer"
    with pytest.raises(ValueError, match=message):
        compare(frame, factor)


@pytest.mark.parametrize(
    "function",
    [
        lambda frame, *goal: compare(frame, "optimizer", *goal),
        lambda frame, *goal: boundary(frame, {}, *goal),
        lambda frame, *goal: ranking(frame, None, *goal),
    ],
)
def test_metric_and_mode_are_checked(function: Any, frame: pd.DataFrame) -> None:
    for wrong in ("loss", "device", "optimizer"):
        with pytest.raises(ValueError, match=f"metric is '{wrong}'; allowed: epoch, .*fid, kid"):
            function(frame, wrong)
    with pytest.raises(ValueError, match="mode is 'minimize'; allowed: min, max"):
        function(frame, "fid", "minimize")


def test_the_best_is_the_best_that_finished(frame: pd.DataFrame) -> None:
    """A failed trial scored 5, an unfinished one 1."""
    table = ranking(frame)
    assert table["fid"].to_list() == [10.0, 12.0, 13.0, 17.0, 20.0, 1.0, 5.0, 90.0]
    assert table["rank"].to_list()[:5] == [1, 2, 3, 4, 5]
    assert table["rank"].isna().to_list()[5:] == [True] * 3
    assert table["trial"].tolist()[:2] == ["trial_0000", "trial_0002"]
    assert table["seconds"].tolist()[0] == 6 + 0.25 + 0.5 + 0.75
    assert table["best_epoch"].tolist()[0] == 2
    best = best_of(table)
    assert best is not None
    assert best["trial"] == "trial_0000"
    assert best_of(ranking(frame[frame["status"] != "finished"])) is None


def test_a_front_holds_what_nothing_dominates() -> None:
    table = pd.DataFrame(
        {"fid": [1.0, 2.0, 3.0, 1.0, math.nan], "seconds": [9.0, 5.0, 6.0, 9.0, 1.0]}
    )
    goals = [("fid", "min"), ("seconds", "min")]
    assert pareto(table, goals).to_list() == [True, True, False, True, False]
    goals = [("fid", "min"), ("seconds", "max")]
    assert pareto(table, goals).to_list() == [True, False, False, True, False]


SIZES = choices(64, 128, 256)
AXES = {
    "generator_lr": axis(FloatDistribution(5e-5, 5e-3, log=True)),
    "beta1": axis(FloatDistribution(0, 1)),
    "batch_size": SIZES,
    "optimizer": choices("adam", "rmsprop"),
}
LR_LOW, LR_HIGH = (5e-5 * 100**share for share in (0.05, 0.95))


@pytest.mark.parametrize(
    ("lr", "beta1", "batch_size", "ends"),
    [
        (5e-5, 0.0, 64, ["low", "low", "low"]),
        (5e-3, 1.0, 256, ["high", "high", "high"]),
        (LR_LOW * 0.999, 0.0499, 128, ["low", "low", None]),
        (LR_LOW * 1.001, 0.0501, 128, [None, None, None]),
        (LR_HIGH * 1.001, 0.9501, 128, ["high", "high", None]),
        (LR_HIGH * 0.999, 0.9499, 128, [None, None, None]),
    ],
)
def test_ends_of_ranges(
    lr: float, beta1: float, batch_size: int, ends: list[str | None], tmp_path: Path
) -> None:
    settings = {"generator_lr": lr, "beta1": beta1, "batch_size": batch_size, "optimizer": "adam"}
    table = boundary(
        load_trials(make(tmp_path / "run", [(settings, "finished", curve(1.0))] * 3)), AXES
    )
    assert table["axis"].to_list() == ["generator_lr", "beta1", "batch_size"]
    assert table[["low", "high"]].to_numpy().tolist() == [[5e-5, 5e-3], [0, 1], [64, 256]]
    assert table["end"].astype(object).where(table["end"].notna(), None).to_list() == ends
    assert table["share"].to_list() == [float(end is not None) for end in ends]
    assert not table["flag"].any()  # all trials lie there, not the best alone


@pytest.mark.parametrize(
    ("depth", "log", "end"),
    [(1, False, "low"), (2, False, None), (5, True, "high"), (3, True, None)],
)
def test_ends_of_whole_numbers(depth: int, log: bool, end: str | None, tmp_path: Path) -> None:
    trials = [({"generator_depth": depth}, "finished", curve(1.0))] * 3
    axes = {"generator_depth": axis(IntDistribution(1, 5, log=log))}
    row = boundary(load_trials(make(tmp_path / "run", trials)), axes).iloc[0]
    assert row[["low", "high", "share"]].to_list() == [1, 5, float(end is not None)]
    assert (row["end"] == end) if end else pd.isna(row["end"])


def test_axes_are_shown_as_a_person_reads_them() -> None:
    assert [axis_text(one) for one in AXES.values()] == [
        "5e-05 to 0.005, log-uniform",
        "0 to 1, uniform",
        "64, 128, 256",
        "adam, rmsprop",
    ]
    assert axis_text(axis(IntDistribution(1, 5))) == "1 to 5, uniform, whole numbers"
    assert axis_text("64, 128") == "64, 128"  # of an earlier version


def test_the_best_tenth_of_the_finished_trials_counts(tmp_path: Path) -> None:
    """Of 40 finished trials the best 4: three of the four at 64, the very best at 128; the stopped
    ones, better still, do not count. Chance: 1 - (C(36,4) + 4 C(36,3) + 6 C(36,2)) / C(40,4), for
    two ends of one axis."""
    sizes = [128, 64, 64, 64] + [256] * 35 + [64]
    trials = [({"batch_size": size}, "finished", curve(float(i))) for i, size in enumerate(sizes)]
    trials += [({"batch_size": 256}, "stopped", [-1.0])] * 5
    frame = load_trials(make(tmp_path / "run", trials))
    row = boundary(frame, {"batch_size": SIZES}).iloc[0]
    assert row[["n", "share", "end", "flag"]].to_list() == [4, 0.75, "low", True]
    ways = math.comb(36, 4) + 4 * math.comb(36, 3) + 6 * math.comb(36, 2)
    assert row["p"] == pytest.approx(2 * (1 - ways / math.comb(40, 4)))
    assert boundary(frame, {"batch_size": SIZES}, mode="max").iloc[0]["end"] == "high"


def test_half_at_an_end_is_not_flagged(tmp_path: Path) -> None:
    trials = [
        ({"batch_size": size}, "finished", curve(float(i)))
        for i, size in enumerate([64, 64, 128, 128] + [256] * 36)
    ]
    axes = {"batch_size": choices(256, 64, 128)}
    row = boundary(load_trials(make(tmp_path / "run", trials)), axes).iloc[0]
    assert row[["share", "end", "flag"]].to_list() == [0.5, "low", False]


@pytest.mark.parametrize("count", [2, 3])
def test_noise_is_seldom_flagged(count: int) -> None:
    """Settings that do not matter, of axes of two or three choices and a range."""
    rng = np.random.default_rng(count)
    sizes = [64, 128, 256][:count]
    axes = {"batch_size": choices(*sizes), "beta1": axis(FloatDistribution(0, 1))}
    flagged = []
    for _ in range(200):
        frame = pd.DataFrame(
            {
                "trial": [f"t{i}" for i in range(18)],
                "lanes": 1,
                "epoch": 1,
                "status": "finished",
                "batch_size": rng.choice(sizes, 18),
                "beta1": rng.random(18),
                "fid": rng.random(18),
            }
        )
        flagged.append(boundary(frame, axes)["flag"].any())
    assert np.mean(flagged) <= 0.07


def test_too_few_finished_trials_flag_nothing(tmp_path: Path) -> None:
    frame = load_trials(make(tmp_path / "run", [({"batch_size": 64}, "finished", curve(1.0))] * 2))
    row = boundary(frame, {"batch_size": SIZES}).iloc[0]
    assert row[["n", "flag"]].to_list() == [2, False]
    none = load_trials(make(tmp_path / "none", [({"batch_size": 64}, "stopped", [1.0])]))
    assert boundary(none, {"batch_size": SIZES}).iloc[0]["n"] == 0


@pytest.mark.parametrize(
    "without",
    [
        choices("adam", "rmsprop"),
        choices(64),
        choices(64, "adam"),
        choices(True, False),
        choices(None, 64),
        "64, 128, 256",  # of an earlier version
        "5e-05 to 0.005, log-uniform",
    ],
)
def test_axes_without_an_order_are_left_out(without: object, frame: pd.DataFrame) -> None:
    table = boundary(frame, {"optimizer": without})
    assert table.empty
    assert table.columns.to_list() == ["axis", "low", "high", "n", "share", "end", "p", "flag"]


def test_a_ranking_shows_each_trial_once_by_the_mean_over_lanes(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", [[10.0, 12.0]] * 3)])
    table = ranking(load_trials(run))
    assert table[["trial", "fid", "epochs"]].to_numpy().tolist() == [["trial_0000", 11.0, 3]]


def test_the_order_of_a_frame_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    trials = [
        ({"batch_size": 64 * (1 + i % 3)}, "finished", rng.uniform(1, 50, (3, 2)).tolist())
        for i in range(9)
    ]
    frame = load_trials(make(tmp_path / "run", trials))
    shuffled = frame.sample(frac=1, random_state=0)
    axes = {"batch_size": choices(64, 128, 192)}
    for table in (
        lambda one: compare(one, "batch_size"),
        ranking,
        lambda one: boundary(one, axes),
    ):
        pd.testing.assert_frame_equal(table(shuffled), table(frame))
