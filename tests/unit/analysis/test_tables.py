"""Comparisons of levels, times to a quality, and ends of ranges: against numbers worked by hand and
independent references."""

import itertools
import json
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

from analysis.load import RESULTS, load_trials, over_lanes
from analysis.tables import (
    axis_text,
    boundary,
    cliffs_delta,
    compare,
    ranking,
    share_reached,
    time_to_quality,
)

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


def test_a_comparison_by_hand(frame: pd.DataFrame) -> None:
    """Of the 6 pairs, adam is above in 1 (17 over 13) and below in 5: delta -4/6."""
    table = compare(frame, "optimizer").set_index("optimizer")
    counts = ["trials", "seeds", "finished", "stopped", "failed", "unfinished", "n"]
    assert table.loc["adam", counts].to_list() == [6, 6, 3, 1, 1, 1, 3]
    assert table.loc["rmsprop", counts].to_list() == [2, 2, 2, 0, 0, 0, 2]
    assert table["mean"].to_list() == [13.0, 16.5]
    assert table["median"].to_list() == [12.0, 16.5]
    assert table["difference"].to_list() == [0.0, 3.5]
    assert table["cliffs_delta"].to_numpy() == pytest.approx([-4 / 6, 4 / 6])
    assert table.loc["rmsprop", ["mean_low", "mean_high"]].to_list() == [
        13.0,
        20.0,
    ]  # a quarter of the draws is twice one
    assert table.loc["adam", ["difference_low", "difference_high"]].to_list() == [0.0, 0.0]
    assert compare(frame, "optimizer").equals(compare(frame, "optimizer"))


def test_stopped_trials_enter_only_where_asked(frame: pd.DataFrame) -> None:
    table = compare(frame, "optimizer", include_stopped=True).set_index("optimizer")
    assert table["n"].to_list() == [4, 2]
    assert table["mean"].to_list() == [(10 + 12 + 17 + 90) / 4, 16.5]
    assert table["difference"].to_list() == [32.25 - 16.5, 0.0]
    assert table.at["adam", "stopped"] == 1


def test_more_can_be_better(frame: pd.DataFrame) -> None:
    table = compare(frame, "optimizer", mode="max").set_index(
        "optimizer"
    )  # each trial's largest fid: 9 more than its best
    assert table["mean"].to_list() == [22.0, 25.5]
    assert table["difference"].to_list() == [-3.5, 0.0]


def test_intervals_agree_with_scipy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {"adam": rng.gamma(2, 10, size=25), "rmsprop": 15 + rng.gamma(2, 10, size=12)}
    trials = [
        ({"optimizer": name}, "finished", curve(fid))
        for name, fids in samples.items()
        for fid in fids
    ]
    table = compare(load_trials(make(tmp_path / "run", trials)), "optimizer").set_index("optimizer")
    options = {"n_resamples": 20_000, "method": "percentile", "rng": 1}
    for name, fids in samples.items():
        expected = stats.bootstrap((fids,), np.mean, **options).confidence_interval
        width = expected.high - expected.low
        assert table.loc[name, ["mean_low", "mean_high"]].to_list() == pytest.approx(
            list(expected), abs=0.06 * width
        )
    apart = stats.bootstrap(
        (samples["rmsprop"], samples["adam"]),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        **options,
    ).confidence_interval
    found = table.loc["rmsprop", ["difference_low", "difference_high"]].to_list()
    assert found == pytest.approx(list(apart), abs=0.06 * (apart.high - apart.low))


def test_seeds_of_a_trial_are_drawn_together(tmp_path: Path) -> None:
    """Two trials, far apart, of three seeds that agree: the mean of six values is as uncertain as
    that of two."""
    trials = [
        (ADAM, "finished", [[10.0, 10.1, 9.9]] * 3),
        (ADAM, "finished", [[50.0, 50.1, 49.9]] * 3),
    ]
    run = make(tmp_path / "run", trials)
    by_seed = compare(load_trials(run), "optimizer").iloc[0]
    assert by_seed[["trials", "seeds", "n"]].to_list() == [2, 6, 6]
    assert by_seed["mean"] == pytest.approx(30.0)
    assert by_seed[["mean_low", "mean_high"]].to_list() == pytest.approx([10.0, 50.0], abs=0.2)
    by_trial = compare(over_lanes(load_trials(run)), "optimizer").iloc[0]
    assert by_trial[["trials", "seeds", "n"]].to_list() == [2, 6, 2]


def test_seeds_of_one_trial_have_an_interval_of_their_own(tmp_path: Path) -> None:
    """And each seed counts by its own best epoch: 10, 19, 30."""
    run = make(
        tmp_path / "run",
        [(ADAM, "finished", [[10.0, 20.0, 40.0], [11.0, 19.0, 30.0], [12.0, 20.0, 31.0]])],
    )
    row = compare(load_trials(run), "optimizer").iloc[0]
    assert row["mean"] == pytest.approx(59 / 3)
    # all 27 resamples
    expected = [np.mean(draw) for draw in itertools.product([10, 19, 30], repeat=3)]
    assert row[["mean_low", "mean_high"]].to_list() == list(
        np.quantile(expected, [0.025, 0.975], method="inverted_cdf")
    )
    assert np.isnan(row["cliffs_delta"])


def test_two_stages_agree_with_a_loop(tmp_path: Path) -> None:
    fids = [[3.0, 9.0], [30.0, 20.0], [14.0, 19.0], [11.0, 12.0], [25.0, 5.0]]
    run = make(tmp_path / "run", [(ADAM, "finished", [seeds] * 3) for seeds in fids])
    row = compare(load_trials(run), "optimizer").iloc[0]
    rng = np.random.default_rng(5)
    means = [
        np.mean([rng.choice(fids[i], 2) for i in rng.integers(5, size=5)]) for _ in range(5000)
    ]
    assert row[["mean_low", "mean_high"]].to_list() == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.6
    )


def test_one_value_has_no_interval_and_none_no_mean(tmp_path: Path) -> None:
    trials = [
        (ADAM, "finished", curve(10.0)),
        (RMSPROP, "failed", []),
        ({"optimizer": "sgd"}, "stopped", [4.0]),
    ]
    table = compare(load_trials(make(tmp_path / "run", trials)), "optimizer").set_index("optimizer")
    assert table["n"].to_list() == [1, 0, 0]
    assert table.at["adam", "mean"] == 10
    assert table[["mean_low", "mean_high", "difference_low", "cliffs_delta"]].isna().all(axis=None)
    assert table["mean"].isna().to_list() == [False, True, True]


def test_a_numeric_factor_of_many_values_is_cut_at_its_quartiles(tmp_path: Path) -> None:
    rates = [0.001 * (i + 1) for i in range(8)]
    trials = [
        ({"generator_lr": rate, "batch_size": 64 * (1 + i % 5)}, "finished", curve(i))
        for i, rate in enumerate(rates)
    ]
    frame = load_trials(make(tmp_path / "run", trials))
    table = compare(frame, "generator_lr")
    assert table["generator_lr"].to_list() == [
        "0.001 to 0.002 (bin 1 of 4, by quantiles)", "0.003 to 0.004 (bin 2 of 4, by quantiles)",
        "0.005 to 0.006 (bin 3 of 4, by quantiles)", "0.007 to 0.008 (bin 4 of 4, by quantiles)",
    ]  # fmt: skip
    assert table["mean"].to_list() == [0.5, 2.5, 4.5, 6.5]
    assert table["cliffs_delta"].to_numpy() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert compare(frame, "batch_size")["batch_size"].to_list() == [64, 128, 192, 256, 320]


def test_ties_leave_fewer_bins_and_none_is_empty(tmp_path: Path) -> None:
    """The quartiles are 3, 3 and 3.75: nothing lies above 3 and up to 3.75."""
    trials = [
        ({"generator_lr": rate}, "finished", curve(1.0)) for rate in (1, 2, *[3] * 8, 4, 5, 6, 7)
    ]
    table = compare(load_trials(make(tmp_path / "run", trials)), "generator_lr")
    assert table[["generator_lr", "trials"]].to_numpy().tolist() == [
        ["1 to 3 (bin 1 of 2, by quantiles)", 10], ["4 to 7 (bin 2 of 2, by quantiles)", 4],
    ]  # fmt: skip


def test_trials_whose_settings_are_lost_are_a_level_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", curve(1.0)), (ADAM, "finished", curve(2.0))])
    (run / "trial_0001" / "params.json").unlink()
    with pytest.warns(UserWarning, match=r"trial_0001/params.json is missing"):
        table = compare(load_trials(run), "optimizer")
    assert table["optimizer"].isna().to_list() == [False, True]
    assert table[["trials", "seeds"]].to_numpy().tolist() == [[1, 1], [1, 1]]


def test_runs_can_be_compared(tmp_path: Path) -> None:
    one = make(tmp_path / "one", [(ADAM, "finished", curve(1.0)), (ADAM, "finished", curve(3.0))])
    two = make(
        tmp_path / "two",
        [(ADAM, "finished", curve(2.0)), (ADAM, "finished", curve(6.0)), (ADAM, "stopped", [9.0])],
    )
    frame = load_trials([one, two])
    table = compare(frame, "run")
    assert table[["run", "trials", "n", "mean"]].to_numpy().tolist() == [
        ["one", 2, 2, 2.0],
        ["two", 3, 2, 4.0],
    ]
    assert compare(frame, "optimizer")["trials"].to_list() == [5]
    assert len(time_to_quality(frame, 2.0).dropna()) == 2
    assert boundary(frame, {"seed": choices(0, 1)})["n"].to_list() == [3]


@pytest.mark.parametrize("function", [compare, lambda frame, name: share_reached(frame, 1.0, name)])
@pytest.mark.parametrize("factor", ["nonsense", "fid", "trial", "status"])
def test_a_factor_must_be_a_setting(function: Any, factor: str, frame: pd.DataFrame) -> None:
    with pytest.raises(
        ValueError,
        match=f"factor is '{factor}'; allowed: a setting, such as those that vary: optimizer",
    ):
        function(frame, factor)


@pytest.mark.parametrize(
    "function",
    [
        lambda frame, *goal: compare(frame, "optimizer", *goal),
        lambda frame, *goal: time_to_quality(frame, 1.0, *goal),
        lambda frame, *goal: share_reached(frame, 1.0, "optimizer", *goal),
        lambda frame, *goal: boundary(frame, {}, *goal),
    ],
)
def test_metric_and_mode_are_checked(function: Any, frame: pd.DataFrame) -> None:
    for wrong in ("loss", "device", "optimizer"):
        with pytest.raises(ValueError, match=f"metric is '{wrong}'; allowed: epoch, .*fid, kid"):
            function(frame, wrong)
    with pytest.raises(ValueError, match="mode is 'minimize'; allowed: min, max"):
        function(frame, "fid", "minimize")


def test_cliffs_delta_agrees_with_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = (rng.integers(6, size=rng.integers(1, 9)).astype(float) for _ in range(2))
        pairs = list(itertools.product(x, y))
        expected = (sum(a > b for a, b in pairs) - sum(a < b for a, b in pairs)) / len(pairs)
        assert cliffs_delta(x, y) == pytest.approx(expected)
        assert cliffs_delta(y, x) == pytest.approx(-expected)
        u = stats.mannwhitneyu(x, y).statistic  # delta = 2 U / (m n) - 1
        assert cliffs_delta(x, y) == pytest.approx(2 * u / len(pairs) - 1)


def test_times_by_hand(frame: pd.DataFrame) -> None:
    """An epoch takes 2 s of training and a quarter of a second more each time of evaluation."""
    table = time_to_quality(frame, 15.0).set_index("trial")
    assert table["epochs"].fillna(0).to_list() == [2, 2, 2, 0, 1, 0, 0, 1]
    assert table["seconds"].fillna(0).to_list() == [4.75, 4.75, 4.75, 0, 2.25, 0, 0, 2.25]
    assert table["status"].to_list()[3:5] == ["stopped", "failed"]
    assert (
        time_to_quality(frame, 19.0)["epochs"].iloc[0] == 1
    )  # the first epoch, not the best; a fid of 19 itself is enough
    assert (
        time_to_quality(frame, 21.5, mode="max")["epochs"].notna().sum() == 4
    )  # 13 + 9, 17 + 9, 20 + 9 and 90


def test_times_grow_as_the_level_falls(frame: pd.DataFrame) -> None:
    levels = [100.0, 25.0, 18.0, 12.0, 6.0, 0.0]
    epochs = [
        time_to_quality(frame, level)["epochs"].astype(float).fillna(np.inf).to_numpy()
        for level in levels
    ]
    assert all((later >= before).all() for before, later in itertools.pairwise(epochs))
    assert np.isinf(epochs[-1]).all()


def test_seconds_are_missing_where_a_row_before_is(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [(ADAM, "finished", curve(10.0))] * 2)
    path = run / "trial_0001" / "result.json"
    path.write_text(path.read_text().split("\n", 1)[1])
    table = time_to_quality(load_trials(run), 10.0)
    assert table["epochs"].to_list() == [2, 2]
    assert table["seconds"].fillna(0).to_list() == [4.75, 0]


def test_each_seed_has_its_time(tmp_path: Path) -> None:
    """Each of two lanes bears half of its trial's."""
    run = make(
        tmp_path / "run", [({"seed": 7}, "finished", [[30.0, 12.0], [9.0, 13.0], [8.0, 14.0]])]
    )
    frame = load_trials(run)
    for table in (time_to_quality(frame, 12.0), time_to_quality(frame.sort_values("fid"), 12.0)):
        assert table[["seed", "epochs", "seconds"]].to_numpy().tolist() == [
            [7, 2, 2.375],
            [8, 1, 1.125],
        ]
    (run / "trial_0000" / "params.json").unlink()
    with pytest.warns(UserWarning, match="params.json is missing"):
        lost = load_trials(run)  # the seeds are not known, but apart
    assert time_to_quality(lost, 12.0)["seconds"].to_list() == [2.375, 1.125]
    over = time_to_quality(over_lanes(frame), 11.0)
    assert over[["seed", "epochs", "seconds"]].to_numpy().tolist() == [[7, 2, 4.75]]


def test_shares_by_hand(frame: pd.DataFrame) -> None:
    table = share_reached(frame, 12.5, "optimizer").set_index("optimizer")
    assert table["n"].to_list() == [6, 2]
    assert table["reached"].to_list() == [4, 0]
    assert table["undecided"].to_list() == [1, 0]
    assert table["epochs"].fillna(0).to_list() == [1.5, 0]
    assert table["seconds"].fillna(0).to_list() == [3.5, 0]
    assert share_reached(frame, 0.5, "optimizer")["undecided"].to_list() == [
        2,
        0,
    ]  # the stopped one and the unfinished one
    z, p, n = stats.norm.ppf(0.975), 4 / 6, 6
    middle, half = (
        p + z**2 / (2 * n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )  # Wilson's formula
    ends = np.array([middle - half, middle + half]) / (1 + z**2 / n)
    assert table.loc["adam", ["share", "share_low", "share_high"]].to_list() == pytest.approx(
        [p, *ends]
    )


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
    assert table["best"].to_list() == [lr, beta1, batch_size]
    assert table["end"].astype(object).where(table["end"].notna(), None).to_list() == ends
    assert table["flag"].to_list() == [end is not None for end in ends]
    assert table["share"].to_list() == [float(end is not None) for end in ends]


@pytest.mark.parametrize(
    ("depth", "log", "end"),
    [(1, False, "low"), (2, False, None), (5, True, "high"), (3, True, None)],
)
def test_ends_of_whole_numbers(depth: int, log: bool, end: str | None, tmp_path: Path) -> None:
    trials = [({"generator_depth": depth}, "finished", curve(1.0))] * 3
    axes = {"generator_depth": axis(IntDistribution(1, 5, log=log))}
    row = boundary(load_trials(make(tmp_path / "run", trials)), axes).iloc[0]
    assert row[["low", "high", "best", "share"]].to_list() == [1, 5, depth, float(end is not None)]
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
    """Of 40 finished trials the best 4: three at 64, the very best at 128; the stopped ones, better
    still, do not count."""
    sizes = [128, 64, 64, 64] + [256] * 36
    trials = [({"batch_size": size}, "finished", curve(float(i))) for i, size in enumerate(sizes)]
    trials += [({"batch_size": 256}, "stopped", [-1.0])] * 5
    frame = load_trials(make(tmp_path / "run", trials))
    row = boundary(frame, {"batch_size": SIZES}).iloc[0]
    assert row[["best", "n", "share", "end", "flag"]].to_list() == [128, 4, 0.75, "low", True]
    assert boundary(frame, {"batch_size": SIZES}, mode="max").iloc[0]["end"] == "high"
    assert not boundary(frame.query("fid < 11"), {"batch_size": SIZES}).empty


def test_half_at_an_end_is_not_flagged(tmp_path: Path) -> None:
    trials = [
        ({"batch_size": size}, "finished", curve(float(i)))
        for i, size in enumerate([64, 64, 128, 128] + [256] * 36)
    ]
    axes = {"batch_size": choices(256, 64, 128)}
    row = boundary(load_trials(make(tmp_path / "run", trials)), axes).iloc[0]
    assert row[["share", "end", "flag"]].to_list() == [0.5, "low", False]


def test_replicas_count_by_their_mean(tmp_path: Path) -> None:
    """The luckiest seed belongs to the setting that is worst on average."""
    fids = {64: [1.0, 99.0], 128: [10.0, 10.0]}
    trials = [({"batch_size": size}, "finished", [fids[size]] * 3) for size in (64, 128, 128, 128)]
    row = boundary(load_trials(make(tmp_path / "run", trials)), {"batch_size": SIZES}).iloc[0]
    assert row[["best", "share"]].to_list() == [128, 0]


def test_too_few_finished_trials_flag_nothing(tmp_path: Path) -> None:
    frame = load_trials(make(tmp_path / "run", [({"batch_size": 64}, "finished", curve(1.0))] * 2))
    row = boundary(frame, {"batch_size": SIZES}).iloc[0]
    assert row["n"] == 2
    assert pd.isna(row["flag"])
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
    assert table.columns.to_list() == ["axis", "low", "high", "best", "n", "share", "end", "flag"]


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
        lambda one: time_to_quality(one, 20.0),
        lambda one: share_reached(one, 20.0, "batch_size"),
        lambda one: boundary(one, axes),
    ):
        pd.testing.assert_frame_equal(table(shuffled), table(frame))
