"""Verdicts on the original study's claims: effects worked by hand, intervals of scipy, and what
must not decide."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from analysis.claims import as_text, judge, main
from dcgan.schema import COLUMNS

SETTINGS = {
    "dataset": "mnist", "generator_depth": 2, "discriminator_depth": 2, "generator_width": 64,
    "discriminator_width": 64,
    "extra_convs": 0, "optimizer": "adam", "generator_lr": 2e-4, "discriminator_lr": 2e-4,
    "batch_size": 64, "epochs": 4,
    "precision": "float32",
}  # fmt: skip
DEEP = {"generator_depth": 3, "discriminator_depth": 3}
WIDE = {"generator_width": 128, "discriminator_width": 128}
SLOW, FAST, TUNED = (
    {"generator_lr": rate, "discriminator_lr": rate} for rate in (1e-4, 5e-4, 3e-4)
)
BIG, RMSPROP, BF16, FP16 = (
    {"batch_size": 128},
    {"optimizer": "rmsprop"},
    {"precision": "bfloat16"},
    {"precision": "float16"},
)
RESULTS: dict[str, Any] = {
    "generator_loss": 1.0, "fid": 20.0, "sample_coverage": 0.5, "confident_share": 0.9,
    "collapsed": False, "sharpness": 0.8,
    "path_length": 10.0, "seconds_train": 2.0, "peak_memory_bytes": 1000,
    "eval_split": "validation", "eval_samples": 10,
    "extractor": "x", "device": "cuda", "threads": 1,
}  # fmt: skip
NUMBERS = {
    "first": 0, "late loss": 1, "late sharpness": 2, "deeper": 3, "wider": 4, "extra": 5,
    "detail": 6, "slower": 7, "larger stable": 8, "larger spread": 9, "falling": 10, "smooth": 11,
    "batch stable": 12, "batch spread": 13, "rmsprop stable": 14, "rmsprop noisy": 15,
    "best": 16, "time": 17, "memory": 18, "quality": 19,
}  # fmt: skip


def trial(
    settings: dict[str, Any] | None = None,
    *,
    status: str = "finished",
    first: int = 0,
    **results: Any,
) -> pd.DataFrame:
    """A trial's rows. Results are a number, one a seed (m, 1), one an epoch (epochs,), or of both
    (m, epochs)."""
    known = SETTINGS | (settings or {})
    shapes = [np.shape(value) for value in results.values()]
    seeds, epochs = np.broadcast_shapes((1, known["epochs"]), *shapes)
    values = {
        name: np.broadcast_to(value, (seeds, epochs)) for name, value in (RESULTS | results).items()
    }
    rows = [
        {
            "status": status,
            "error": None,
            **known,
            "lanes": seeds,
            "seed": first + seed,
            "epoch": epoch + 1,
        }
        | {"images_seen": 60_000 * (epoch + 1)}
        | {name: value[seed, epoch] for name, value in values.items()}
        for seed in range(seeds)
        for epoch in range(epochs)
    ]
    return pd.DataFrame(rows)


def by_seed(values: ArrayLike) -> Any:
    return np.array(values, dtype=float)[:, None]  # (m, 1)


def study(*trials: pd.DataFrame, run: str = "run") -> pd.DataFrame:
    return pd.concat(
        [one.assign(run=run, trial=f"trial_{i:04d}") for i, one in enumerate(trials)],
        ignore_index=True,
    )


def ask(frame: pd.DataFrame, name: str) -> pd.Series:
    return judge(frame).iloc[NUMBERS[name]]


def ends(values: ArrayLike) -> list[float]:
    """Mean and 95 % interval of scipy."""
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return [float(np.mean(values)), interval.low, interval.high]


def found(row: pd.Series) -> list[float]:
    return [float(row[name]) for name in ("effect", "low", "high")]


def test_all_claims_are_always_there() -> None:
    table = judge(study(trial()))
    columns = [
        "part",
        "claim",
        "measured",
        "expected",
        "effect",
        "low",
        "high",
        "unit",
        "n",
        "of",
        "verdict",
        "remark",
    ]
    assert table.columns.to_list() == columns
    assert table["part"].value_counts(sort=False).to_dict() == {
        "baseline": 3, "architecture": 8, "hyperparameters": 6, "precision": 3,
    }  # fmt: skip
    assert table["expected"].to_list()[:4] == [
        "12 epochs to 18 epochs",
        "below 20 %",
        "above 10 %",
        "below 0 log units",
    ]
    assert table["expected"].iloc[17] == "-40 % to -20 %"
    assert (table["verdict"] == "undecided").all()  # one seed
    assert table["remark"].str.contains("python -m tune.run|train longer").all()


def test_a_ratio_agrees_with_scipy_and_is_decided_by_its_interval() -> None:
    base, same, worse, unclear = (
        [20, 22, 25, 21],
        [20.2, 21.9, 25.5, 21.1],
        [30, 34, 36, 33],
        [20, 25, 24, 27],
    )
    for fids, verdict in ((same, "supported"), (worse, "contradicted"), (unclear, "undecided")):
        row = ask(study(trial(fid=by_seed(base)), trial(BF16, fid=by_seed(fids))), "quality")
        expected = 100 * np.expm1(ends(np.log(fids) - np.log(base)))
        assert found(row) == pytest.approx(expected)
        assert row[["n", "of", "unit", "verdict"]].to_list() == [4, "seeds", "%", verdict]
        assert ("crosses" in row["remark"]) == (verdict == "undecided")


def test_a_difference_agrees_with_scipy() -> None:
    """|ln sharpness| goes from 0.2 to about 0.1, once from below and once from above 1."""
    blurs = np.array([0.1, 0.12, 0.09])
    base = trial(sharpness=by_seed(np.exp([-0.2, -0.2, -0.2])))
    row = ask(study(base, trial(DEEP, sharpness=by_seed(np.exp(blurs * [1, -1, 1])))), "deeper")
    assert found(row) == pytest.approx(ends(blurs - 0.2))
    assert row["verdict"] == "supported"
    noisy = trial(DEEP, sharpness=by_seed(np.exp([0.5, 0.6, 0.55])))
    assert ask(study(base, noisy), "deeper")["verdict"] == "contradicted"


def test_measures_are_of_the_best_epoch() -> None:
    fid, other = [9.0, 3.0, 5.0, 4.0], [[9.0, 3.0, 5.0, 4.0], [3.0, 9.0, 5.0, 4.0]]
    frame = study(
        trial(fid=[fid, fid], sample_coverage=[0.1, 0.2, 0.9, 0.9]),
        trial(WIDE, fid=other, sample_coverage=[0.4, 0.3, 0.0, 0.0]),
    )
    assert found(ask(frame, "detail")) == pytest.approx(ends([10.0, 20.0]))  # points


def test_pairs_are_pooled_by_seed() -> None:
    """Deeper by 1 and 3 points, wider by 2 and 6, an extra conv by 6 and 6: the means by seed are 3
    and 5."""
    frame = study(
        trial(sample_coverage=by_seed([0.5, 0.5])),
        trial(DEEP, sample_coverage=by_seed([0.51, 0.53])),
        trial(WIDE, sample_coverage=by_seed([0.52, 0.56])),
        trial({"extra_convs": 1}, sample_coverage=by_seed([0.56, 0.56])),
    )
    row = ask(frame, "detail")
    assert found(row) == pytest.approx(ends([3, 5]))
    assert row["n"] == 2


@pytest.mark.parametrize(
    "other",
    [BIG, {"epochs": 5}, {"dataset": "mnist-mini"}, {"beta1": 0.9}, {"discriminator_lr": 1e-3}],
)
def test_settings_that_differ_in_more_are_no_pair(other: dict[str, Any]) -> None:
    frame = study(
        trial({"beta1": 0.5}, fid=by_seed([20, 21])),
        trial({"beta1": 0.5} | BF16 | other, fid=by_seed([20, 21])),
    )
    row = ask(frame, "quality")
    assert row[["n", "verdict"]].to_list() == [0, "undecided"]
    assert "too few seeds to compare; to decide it: python -m tune.run" in row["remark"]


def test_scores_of_another_protocol_are_no_pair() -> None:
    fids = by_seed([20, 21])
    assert ask(study(trial(fid=fids), trial(BF16, fid=fids, eval_samples=99)), "quality")["n"] == 0
    assert ask(study(trial(fid=fids), trial(BF16, fid=fids, device="cpu")), "quality")["n"] == 2
    assert ask(study(trial(fid=fids), trial(BF16, fid=fids, device="cpu")), "time")["n"] == 0


def test_nets_must_change_together() -> None:
    sharp = by_seed([0.9, 0.91])
    lopsided = [
        trial({"generator_depth": g, "discriminator_depth": d}, sharpness=by_seed([0.1, 0.1]))
        for g, d in ((3, 2), (3, 4))
    ]
    assert ask(study(trial(sharpness=sharp), *lopsided), "deeper")["n"] == 0
    row = ask(study(trial(sharpness=sharp), trial(DEEP, sharpness=sharp), *lopsided), "deeper")
    assert row[["effect", "n"]].to_list() == [0, 2]


def test_only_finished_trials_count() -> None:
    for status in ("stopped", "failed", "unfinished"):
        frame = study(
            trial(fid=by_seed([20, 21])), trial(BF16, status=status, fid=by_seed([20, 21]))
        )
        assert ask(frame, "quality")["n"] == 0


def test_a_setting_and_seed_in_several_runs_counts_once() -> None:
    base, other = trial(fid=by_seed([20, 22, 24])), trial(BF16, fid=by_seed([21, 22, 26]))
    once = judge(study(base, other))
    again = pd.concat([study(base, other), study(base, run="b"), study(base, trial(BIG), run="c")])
    row = ask(again, "quality")
    assert row["n"] == 3
    assert found(row) == pytest.approx(found(once.iloc[NUMBERS["quality"]]))
    assert found(ask(again, "late loss")) == pytest.approx(found(once.iloc[NUMBERS["late loss"]]))


def test_seeds_of_several_runs_come_together() -> None:
    fids = [20.0, 21.0, 23.0, 26.0]
    parts = [
        study(
            trial(fid=by_seed([20, 20]), first=first),
            trial(BF16, fid=by_seed(fids[first : first + 2]), first=first),
            run=str(first),
        )
        for first in (0, 2)
    ]
    row = ask(pd.concat(parts), "quality")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log(np.array(fids) / 20))))


def test_pairs_that_lack_a_seed_are_left_out_and_named() -> None:
    """The second pair, at batch 128, has one seed alone: else it would pull seed 0 up."""
    frame = study(
        trial(fid=by_seed([20, 20, 20])),
        trial(BF16, fid=by_seed([20, 21, 22])),
        trial(BIG),
        trial(BIG | BF16, fid=[90.0] * 4),
    )
    row = ask(frame, "quality")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log([1, 1.05, 1.1]))))
    assert "1 of 2 matches left out, which lack some of the seeds" in row["remark"]


def test_late_epochs_are_the_last_third_and_at_least_three() -> None:
    """Of 4 epochs the last 3: sd 1 of mean 10, and 2 of 10. Of 12 the last 4."""
    losses = [[99.0, 9.0, 10.0, 11.0], [99.0, 8.0, 10.0, 12.0]]
    row = ask(study(trial(generator_loss=losses)), "late loss")
    assert found(row) == pytest.approx(ends([10.0, 20.0]))
    long = [[99.0] * 8 + [9.0, 9.0, 11.0, 11.0]] * 2
    row = ask(study(trial({"epochs": 12}, generator_loss=long)), "late loss")
    assert row["effect"] == pytest.approx(10 * np.std([-1, -1, 1, 1], ddof=1))
    assert row["verdict"] == "supported"
    assert np.isnan(
        ask(study(trial({"epochs": 2}, generator_loss=by_seed([1, 2]))), "late loss")["effect"]
    )


@pytest.mark.parametrize(("spread", "verdict"), [(1.0, "contradicted"), (3.0, "supported")])
def test_sharpness_varies(spread: float, verdict: str) -> None:
    sharpness = 10 + spread * np.array([[5, -1, 0, 1], [5, 1, -1, 0]])
    row = ask(study(trial(sharpness=sharpness)), "late sharpness")
    assert row[["effect", "verdict"]].to_list() == [pytest.approx(10 * spread), verdict]


def test_the_baseline_has_the_most_common_width() -> None:
    small, odd = ({"generator_width": width, "discriminator_width": width} for width in (16, 8))
    uneven = [[1.0, 1.0, 5.0, 9.0]] * 2
    first = study(trial(small), trial(odd, generator_loss=uneven))
    frame = pd.concat(
        [
            first,
            study(trial(small), trial(small, first=1), trial(BIG, generator_loss=uneven), run="b"),
        ]
    )
    row = ask(frame, "late loss")
    assert row[["effect", "n"]].to_list() == [0.0, 2]


def confident(*firsts: int, epochs: int = 25) -> pd.DataFrame:
    """Seeds that are confident from an epoch on; 0: never."""
    shares = [
        [0.9 if first and epoch >= first else 0.5 for epoch in range(1, epochs + 1)]
        for first in firsts
    ]
    return study(trial({"epochs": epochs}, confident_share=shares))


def test_first_confident_epoch() -> None:
    row = ask(confident(14, 15, 16), "first")
    assert found(row) == pytest.approx(ends([14, 15, 16]))
    assert row[["unit", "n", "verdict"]].to_list() == ["epochs", 3, "supported"]
    assert ask(confident(12, 12), "first")["verdict"] == "supported"  # the ends count in
    assert ask(confident(4, 5, 6), "first")["verdict"] == "contradicted"
    assert ask(confident(10, 18), "first")["verdict"] == "undecided"


def test_epochs_are_counted_in_images() -> None:
    frame = confident(2, 2, epochs=3)
    assert ask(frame.assign(images_seen=frame["images_seen"] * 7), "first")["effect"] == 14


def test_a_seed_that_is_never_confident_is_not_left_out() -> None:
    row = ask(confident(14, 15, 0, epochs=25), "first")
    assert found(row) == pytest.approx(ends([14, 15, 25]))
    assert ask(confident(0, 0, epochs=25), "first")["verdict"] == "contradicted"
    row = ask(confident(14, 15, 0, epochs=16), "first")
    assert row["verdict"] == "undecided"
    assert (
        "1 of 3 seeds do not get there and end too early to tell; to decide it, train longer"
        in row["remark"]
    )


def test_one_blob_is_no_digit() -> None:
    frame = confident(1, 1)
    assert ask(frame, "first")["effect"] == 1
    assert ask(frame.assign(collapsed=frame["epoch"] < 15), "first")["effect"] == 15


def test_steadiness_of_the_fall() -> None:
    """Of 3 steps, the baseline's loss falls in 1 and 2, the deeper net's in 3 and 3: more by 2/3
    and 1/3."""
    base, deep = [[3.0, 2.0, 4.0, 5.0], [3.0, 2.0, 1.0, 5.0]], [4.0, 3.0, 2.0, 1.0]
    row = ask(
        study(trial(generator_loss=base), trial(DEEP, generator_loss=[deep, deep])), "falling"
    )
    assert found(row) == pytest.approx(ends([200 / 3, 100 / 3]))


def test_no_change_is_neither_more_nor_less() -> None:
    frame = study(trial(fid=by_seed([1, 2])), trial(DEEP, fid=by_seed([1, 2])))
    for name in ("falling", "deeper", "detail"):
        assert ask(frame, name)[["effect", "low", "high", "verdict"]].to_list() == [
            0,
            0,
            0,
            "contradicted",
        ]


def test_spread_over_seeds_is_by_pair_of_settings() -> None:
    """Standard deviations 1 and 2 become 2 and 8: by 2 and 4."""
    sd = np.array([-1.0, 0.0, 1.0])
    frame = study(
        trial(fid=by_seed(20 + sd)), trial(BIG, fid=by_seed(20 + 2 * sd)),
        trial(RMSPROP, fid=by_seed(30 + 2 * sd)), trial(RMSPROP | BIG, fid=by_seed(30 + 8 * sd)),
        trial(FAST), trial(FAST | BIG),
    )  # fmt: skip
    row = ask(frame, "batch spread")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log([2, 4]))))
    assert row[["n", "of"]].to_list() == [2, "settings"]


@pytest.mark.parametrize(
    ("paths", "verdict"), [([8.0, 8.1], "supported"), ([12.0, 12.1], "contradicted")]
)
def test_a_lower_rate_is_smoother(paths: list[float], verdict: str) -> None:
    others = [
        trial({"generator_lr": rate, "discriminator_lr": rate}, path_length=by_seed([99, 99]))
        for rate in (5e-5, 3e-4, 1e-3)
    ]
    frame = study(
        trial(SLOW, path_length=by_seed(paths)), *others, trial(FAST, path_length=by_seed([10, 10]))
    )
    row = ask(frame, "smooth")
    assert row["verdict"] == verdict
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log(np.array(paths) / 10))))
    lone = ask(
        study(trial(SLOW, path_length=by_seed(paths)), trial(TUNED, path_length=by_seed([10, 10]))),
        "smooth",
    )
    assert found(lone) == pytest.approx(found(row))  # the lowest against the highest


def test_rmsprop_is_unstable_and_its_failures_are_told() -> None:
    steady, wild = [1.0, 1.0, 1.1, 1.2], [1.0, 1.0, 2.0, 3.0]
    frame = study(
        trial(generator_loss=[steady, steady]),
        trial(RMSPROP, generator_loss=[wild, wild], sharpness=by_seed([1.6, 1.6])),
        trial(RMSPROP | BIG, status="failed"),
    )  # fmt: skip
    row = ask(frame, "rmsprop stable")
    assert row[["effect", "verdict"]].to_list() == [pytest.approx(900.0), "supported"]
    assert "adam: 0 of 1 trials failed; rmsprop: 1 of 2 trials failed" in row["remark"]
    assert ask(frame, "rmsprop noisy")[["effect", "verdict"]].to_list() == [
        pytest.approx(100.0),
        "supported",
    ]


def test_the_best_settings_are_picked_on_the_other_seeds() -> None:
    """Inside, 2e-4 has 10, 30 and 20, 3e-4 has 28, 12, 21; outside 20, 22, 24 at batch 64.

    Left out seed 0: means 25 and 16.5, so 3e-4's 28; seed 1: 15 and 24.5, so 2e-4's 30; seed 2: 20
    each, so the first's 20.
    """
    frame = study(
        trial(BIG, fid=by_seed([10, 30, 20])), trial(BIG | TUNED, fid=by_seed([28, 12, 21])),
        trial(fid=by_seed([20, 22, 24])),
        trial(RMSPROP, fid=by_seed([50, 50, 50])), trial({"epochs": 9}, fid=by_seed([1, 1, 1])),
    )  # fmt: skip
    row = ask(frame, "best")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log([28 / 20, 30 / 22, 20 / 24]))))


@pytest.mark.parametrize(
    ("fids", "verdict"), [([10, 11, 12], "supported"), ([30, 33, 36], "contradicted")]
)
def test_best_settings(fids: list[float], verdict: str) -> None:
    frame = study(trial(BIG, fid=by_seed(fids)), trial(fid=by_seed([20, 22, 24])))
    assert ask(frame, "best")["verdict"] == verdict
    assert ask(study(trial(BIG), trial()), "best")["n"] == 0  # one seed cannot pick on others


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.7, "supported"), (0.95, "contradicted"), (0.5, "contradicted")]
)
def test_time_is_by_epoch_without_the_first(share: float, verdict: str) -> None:
    base, other = np.array([50, 2.0, 2.1, 2.2]), np.array([1, 2.0, 2.12, 2.18]) * share
    frame = study(
        trial(seconds_train=base, fid=by_seed([1, 2])),
        trial(BF16, seconds_train=other, fid=by_seed([1, 2])),
    )
    row = ask(frame, "time")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log(other[1:] / base[1:]))))
    assert row[["n", "of", "verdict", "remark"]].to_list() == [3, "epochs", verdict, "on cuda"]


def test_costs_of_more_replicas_are_no_pair() -> None:
    assert (
        ask(study(trial(fid=by_seed([1, 2])), trial(BF16, seconds_train=[1.0, 1, 1, 1])), "time")[
            "n"
        ]
        == 0
    )


def test_costs_are_compared_within_a_run() -> None:
    """The second run, of the baseline and a deeper net, had a busy machine, and says nothing of
    bfloat16."""
    calm = study(trial(), trial(BF16, seconds_train=[9, 1.4, 1.3, 1.4]))
    busy = study(trial(seconds_train=[9.0] * 4), trial(DEEP, seconds_train=[9.9] * 4), run="busy")
    for frame in (
        pd.concat([calm, busy]),
        pd.concat([busy, calm]).assign(run=lambda rows: rows["run"].replace("busy", "a")),
    ):
        assert found(ask(frame, "time")) == pytest.approx(found(ask(calm, "time")))
        assert ask(frame, "slower")["effect"] == pytest.approx(10)


def test_memory_is_by_pair_and_of_one_pair_by_repetition() -> None:
    less = trial(BF16, peak_memory_bytes=[400, 500, 500, 600])
    row = ask(study(trial(), less), "memory")
    assert row[["n", "of", "verdict"]].to_list() == [1, "settings", "undecided"]
    assert row["effect"] == pytest.approx(-40)
    twice = ask(pd.concat([study(trial(), less), study(trial(), less, run="b")]), "memory")
    assert twice[["n", "of", "verdict"]].to_list() == [2, "trials", "supported"]
    big = ask(
        study(trial(), less, trial(BIG), trial(BIG | BF16, peak_memory_bytes=[700] * 4)), "memory"
    )
    assert found(big) == pytest.approx(100 * np.expm1(ends(np.log([0.6, 0.7]))))
    assert big[["n", "of"]].to_list() == [2, "settings"]


def test_slower_is_by_median_epoch() -> None:
    frame = study(
        trial(), trial(DEEP, seconds_train=[90, 2.2, 2.4, 9]),
        trial(WIDE, seconds_train=[90, 2.4, 2.6, 9]),
    )  # fmt: skip
    row = ask(frame, "slower")
    assert found(row) == pytest.approx(100 * np.expm1(ends(np.log([1.2, 1.3]))))
    assert row[["n", "of"]].to_list() == [2, "settings"]


def test_float16_stands_in_where_there_is_no_bfloat16() -> None:
    fids = by_seed([20, 21])
    both = study(trial(fid=fids), trial(FP16, fid=fids * 2), trial(BF16, fid=fids))
    assert ask(both, "quality")[["effect", "measured"]].to_list() == [
        0,
        "best fid, bfloat16 against float32",
    ]
    alone = study(
        trial(fid=fids), trial(FP16, fid=fids * 2), trial(BF16, fid=fids, status="failed")
    )
    assert ask(alone, "quality")["measured"] == "best fid, float16 against float32"
    assert ask(alone, "quality")["effect"] == pytest.approx(100)


def broken() -> list[pd.DataFrame]:
    whole = study(trial(fid=by_seed([20, 21])), trial(BF16, fid=by_seed([20, 22])))
    lost = whole.copy()
    lost.loc[lost["trial"] == "trial_0001", [*SETTINGS, "seed"]] = np.nan
    nothing = whole.drop(columns=[name for name in COLUMNS if name in whole]).drop_duplicates(
        "trial"
    )
    missing = whole.astype({"collapsed": "boolean"}).assign(
        fid=pd.array([pd.NA] * len(whole), "Float64")
    )
    return [
        pd.DataFrame(), whole.iloc[:0], whole.iloc[:1], nothing, missing, lost,
        whole.drop(columns="run"),
        whole.assign(status="failed", epoch=None), whole.drop(columns=list(SETTINGS)),
        whole.assign(sharpness=-1.0),
        whole.assign(generator_loss=0.0, seconds_train=0.0, peak_memory_bytes=0),
        whole.drop(columns=["device", "threads"]),
    ]  # fmt: skip


@pytest.mark.parametrize("frame", broken())
def test_whatever_is_left_is_judged(frame: pd.DataFrame) -> None:
    table = judge(frame)
    assert len(table) == len(NUMBERS)
    assert set(table["verdict"]) <= {"supported", "contradicted", "undecided"}
    assert (table.loc[table["n"] < 2, "verdict"] == "undecided").all()
    assert as_text(table).count("\n") > 2 * len(NUMBERS)


def test_the_order_of_a_frame_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    kinds = [a | b for a in ({}, BIG, BF16, RMSPROP) for b in (SLOW, FAST, TUNED, DEEP)]
    trials = [
        trial(
            kind,
            **{name: rng.uniform(1, 2, (3, 4)) for name in ("fid", "generator_loss", "sharpness")},
        )
        for kind in kinds
    ]
    frame = study(*trials)
    pd.testing.assert_frame_equal(judge(frame.sample(frac=1, random_state=1)), judge(frame))


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = study(trial(fid=by_seed([20, 21])), trial(BF16, fid=by_seed([20, 21])))
    monkeypatch.setattr("analysis.claims.load_trials", lambda runs: frame)
    monkeypatch.setattr(sys, "argv", ["claims", str(tmp_path)])
    main()
    out = capsys.readouterr().out.splitlines()
    assert next(line for line in out if line.startswith("20 ")).split()[-3:] == [
        "2",
        "seeds",
        "supported",
    ]
    assert any(line.startswith("20. best fid") for line in out)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["claims", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no results at" in capsys.readouterr().err
