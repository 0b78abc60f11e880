"""Rank correlations of early epochs against SciPy and closed cases, and the searches and tables
they are computed from."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import rungs
from analysis.rungs import (
    describe,
    kendall,
    rank_correlation,
    read_curves,
    recommend,
    seed_agreement,
    spearman,
    whole_curves,
)
from dcgan.files import read_rows

EPOCHS = range(1, 5)


def random_curves(configs: int, ties: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(configs)
    values = rng.uniform(1, 2, configs)[:, None] + rng.normal(0, 0.3, (configs, 4))
    return pd.DataFrame(np.round(values, 1) if ties else values, columns=EPOCHS)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("configs", [5, 12, 30])
def test_correlations_are_scipys(configs: int, ties: bool) -> None:
    curves = random_curves(configs, ties)
    table = rank_correlation(curves)
    for epoch in EPOCHS:
        assert table.at[epoch, "kendall"] == pytest.approx(
            stats.kendalltau(curves[epoch], curves[4]).statistic, abs=1e-12
        )
        assert table.at[epoch, "spearman"] == pytest.approx(
            stats.spearmanr(curves[epoch], curves[4]).statistic, abs=1e-12
        )


def test_each_resample_is_scipys() -> None:
    curves = random_curves(9, ties=True)
    x, y = curves[1].to_numpy(), curves[4].to_numpy()
    draws = np.random.default_rng(1).integers(9, size=(200, 9))
    expected = [
        (stats.kendalltau(x[i], y[i]).statistic, stats.spearmanr(x[i], y[i]).statistic)
        for i in draws
    ]
    np.testing.assert_allclose(
        np.stack([kendall(x, y, draws), spearman(x, y, draws)], axis=1), expected, atol=1e-12
    )


def test_intervals_are_percentiles_of_the_bootstrap() -> None:
    """SciPy's own bootstrap, other draws: ends agree to the sampling error of 1000 resamples."""
    curves = random_curves(20)
    row = rank_correlation(curves).loc[1]
    for name, function in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr)):
        result = stats.bootstrap(
            (curves[1], curves[4]),
            lambda x, y, function=function: function(x, y).statistic,
            paired=True, vectorized=False, n_resamples=1000, method="percentile",
            rng=np.random.default_rng(5),
        )  # fmt: skip
        low, high = result.confidence_interval
        assert row[f"{name}_low"] == pytest.approx(low, abs=0.06)
        assert row[f"{name}_high"] == pytest.approx(high, abs=0.03)
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_every_config_is_resampled() -> None:
    """The last one alone stands out of order."""
    table = rank_correlation(
        pd.DataFrame({1: [1.0, 2.0, 3.0, 4.0, 0.0], 2: [1.0, 2.0, 3.0, 4.0, 5.0]})
    )
    assert (
        table.at[1, "kendall_low"] < 0 < table.at[1, "kendall"] < table.at[1, "kendall_high"] == 1
    )


def test_order_kept_and_order_reversed() -> None:
    ordered = pd.DataFrame({epoch: np.arange(1.0, 10) * epoch for epoch in EPOCHS})
    table = rank_correlation(ordered)
    assert (table.drop(columns=["best_kept", "regret"]) == 1).all(axis=None)
    assert table["best_kept"].all()
    assert (table["regret"] == 0).all()
    assert recommend(table) == 1
    reversed_ = ordered.assign(**{"1": 0}).drop(columns="1")
    reversed_[[1, 2, 3]] *= -1
    table = rank_correlation(reversed_).loc[[1, 2, 3]]
    assert (table.drop(columns=["best_kept", "regret"]) == -1).all(axis=None)
    assert not table["best_kept"].any()
    assert (
        table["regret"].to_list() == [6.0] * 3
    )  # the best of configs 7, 8 and 9 over config 1, minus 1
    assert recommend(rank_correlation(reversed_)) is None


def test_a_constant_epoch_has_no_correlation() -> None:
    table = rank_correlation(pd.DataFrame({1: [2.0] * 6, 2: np.arange(1.0, 7)}))
    assert table.loc[1, ["kendall", "kendall_low", "spearman"]].isna().all()
    assert table.loc[1, ["best_kept", "regret"]].to_list() == [True, 0.0]  # it drops none
    assert recommend(table) is None


@pytest.mark.parametrize(("count", "third"), [(5, 2), (6, 2), (7, 3)])
def test_the_best_third_is_rounded_up(count: int, third: int) -> None:
    """The finally best config is at place `third` at the first epoch, and one below at the
    second."""
    final = np.arange(1.0, count + 1)
    first, second = final.copy(), final.copy()
    first[0], second[0] = third + 0.5, third + 1.5
    table = rank_correlation(pd.DataFrame({1: first, 2: second, 3: final}))
    assert table["best_kept"].to_list() == [True, False, True]
    assert table["regret"].to_list() == [0, 1, 0]


@pytest.mark.parametrize(
    ("low", "regret", "epoch"),
    [
        ([0.5, 0.6, 0.7, 1.0], [0.0, 0.0, 0.0, 0.0], 1),
        ([0.5, 0.39, 0.4, 1.0], [0.0, 0.0, 0.0, 0.0], 3),
        ([0.5, 0.6, 0.7, 1.0], [0.0, 0.06, 0.05, 0.0], 3),
        ([0.5, 0.6, 0.3, 1.0], [0.0, 0.0, 0.0, 0.0], None),
        ([0.5, 0.6, np.nan, 1.0], [0.0, 0.0, 0.0, 0.0], None),
    ],
)
def test_recommended_is_the_first_epoch_from_which_all_are_good(
    low: list[float], regret: list[float], epoch: int | None
) -> None:
    assert recommend(pd.DataFrame({"kendall_low": low, "regret": regret}, index=EPOCHS)) == epoch


def long(seeds: int = 3, configs: int = 8) -> pd.DataFrame:
    """Curves as in a recorded table, of seeds whose noise grows with the seed."""
    rng = np.random.default_rng(2)
    quality = rng.uniform(5, 20, configs)
    return pd.DataFrame(
        {
            "search": "hparams",
            "config": config,
            "seed": seed,
            "generator_lr": 1e-4 * config,
            "epoch": epoch,
            "fid": quality[config] * (1 + 2 / epoch) + rng.normal(0, seed + 0.1),
        }
        for config, seed, epoch in itertools.product(range(configs), range(seeds), EPOCHS)
    )


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def write_run(folder: Path, frame: pd.DataFrame) -> Path:
    """The same curves as a search's folder, with seeds as lanes."""
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"search": "hparams"}))
    for config, part in frame.groupby("config"):
        trial = folder / f"trial_{config:04d}"
        trial.mkdir()
        lanes = [
            {"generator_lr": 1e-4 * float(config), "epochs": 4, "seed": int(seed)}  # type: ignore[arg-type]
            for seed in part["seed"].unique()
        ]
        (trial / "params.json").write_text(json.dumps(lanes))
        lines: list[dict[str, Any]] = []
        for epoch, fids in part.groupby("epoch")["fid"]:
            for lane, fid in enumerate(fids):
                known = {"lane": lane, "epoch": epoch, "fid": fid}
                lines.append(known | {"eval_split": "validation"})
        (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_search_and_a_table_of_its_curves_give_the_same_answer(tmp_path: Path) -> None:
    table, run = (
        write_table(tmp_path / "curves.csv.xz", long()),
        write_run(tmp_path / "run", long()),
    )
    texts = [describe(read_curves([path])) for path in (table, run)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("hparams: 8 configs, 3 seeds each (left out: none)")


def test_the_mean_over_seeds_is_ranked(tmp_path: Path) -> None:
    curves, _ = whole_curves(read_curves([write_table(tmp_path / "curves.csv.xz", long())]))
    expected = long().groupby(["config", "epoch"])["fid"].mean().unstack()
    np.testing.assert_allclose(curves.groupby("config").mean(), expected)
    tau = rank_correlation(curves.groupby("config").mean()).at[2, "kendall"]
    assert f"\n2        {tau:.2f} [" in describe(read_curves([tmp_path / "curves.csv.xz"]))


def test_trials_that_differ_in_seed_alone_are_one_config_also_across_searches(
    tmp_path: Path,
) -> None:
    parts = [
        write_run(tmp_path / name, long()[long()["seed"].isin(seeds)])
        for name, seeds in (("a", [0, 1]), ("b", [2]))
    ]
    together = write_run(tmp_path / "run", long())
    assert describe(read_curves(parts)) == describe(read_curves([together]))


def test_two_tables_do_not_mix_their_configs(tmp_path: Path) -> None:
    paths = [write_table(tmp_path / f"{name}.csv.xz", long()) for name in "ab"]
    assert describe(read_curves(paths)).startswith("hparams: 16 configs, 3 seeds each")


def test_seed_agreement_is_the_mean_over_pairs_of_seeds(tmp_path: Path) -> None:
    path = write_table(tmp_path / "curves.csv.xz", long())
    curves, _ = whole_curves(read_curves([path]))
    final = long().query("epoch == 4").pivot(index="config", columns="seed", values="fid")
    taus = [stats.kendalltau(final[a], final[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert seed_agreement(curves) == pytest.approx(np.mean(taus))
    assert len(set(taus)) == 3
    assert f"Two seeds agree on the final ranking with tau {np.mean(taus):.2f}." in describe(
        read_curves([path])
    )
    one = write_table(tmp_path / "one.csv.xz", long(seeds=1))
    assert np.isnan(seed_agreement(whole_curves(read_curves([one]))[0]))
    assert "Two seeds" not in describe(read_curves([one]))


def test_a_config_counts_if_all_its_seeds_trained_to_the_end(tmp_path: Path) -> None:
    """Config 1 failed in epoch 3, 2 in its first, 3 lacks a row in the middle, of 4 one value is
    infinite."""
    run = write_run(tmp_path / "run", long())
    for config, kept in ((1, [1, 2]), (2, []), (3, [1, 3, 4])):
        path = run / f"trial_{config:04d}" / "result.json"
        rows = [row for row in read_rows(path) if row["epoch"] in kept]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if config < 3:
            (path.parent / "error.txt").write_text("FloatingPointError\n")
    frame = read_curves([run])
    curves, left_out = whole_curves(frame)
    assert curves.index.unique("config").size == 5
    assert left_out == "2 failed, 1 finished"
    frame.loc[
        (frame["trial"] == "trial_0004") & (frame["epoch"] == 1) & (frame["seed"] == 2), "fid"
    ] = np.inf
    with pytest.raises(
        ValueError,
        match=r"hparams: 4 configs trained all 4 epochs, .* left out: 2 failed, 2 finished",
    ):
        describe(frame)


def test_a_search_still_running_has_no_last_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", long().query("epoch < 4"))
    (run / "search.json").unlink()
    with pytest.raises(
        ValueError,
        match="run: 0 configs trained all 4 epochs, but 5 are needed; left out: 8 unfinished",
    ):
        describe(read_curves([run]))


def test_searches_are_answered_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.concat([long(), long().assign(search="architecture")])
    path = write_table(tmp_path / "curves.csv.xz", frame)
    run = write_run(tmp_path / "run", long())
    monkeypatch.setattr(sys, "argv", ["rungs", str(path), str(run)])
    rungs.main()
    out = capsys.readouterr().out
    assert out.startswith("architecture: 8 configs, 3 seeds each")
    assert "\n\nhparams: 16 configs, 3 seeds each" in out


def test_the_grace_period_is_also_given_as_a_share() -> None:
    frame = long().assign(
        status="finished", fid=lambda table: table["config"] + table["epoch"] / 9 + 1.0
    )
    assert "Grace period: 1 of 4 epochs (25 %)." in describe(frame)
    turned = frame.assign(
        fid=lambda table: np.where(table["epoch"] < 4, 99 - table["fid"], table["fid"])
    )
    assert "Early stopping is not justified by these data" in describe(turned)


def test_trials_without_settings_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", long())
    (run / "trial_0000" / "params.json").write_text("{")
    with pytest.warns(UserWarning, match=r"params\.json is missing or damaged"):
        assert describe(read_curves([run])).startswith(
            "hparams: 7 configs, 3 seeds each (left out: 1 unfinished)"
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "no results at"),
        ("a.csv.xz", None, "No such file"),
        ("a.csv.xz", b"no xz", "a.csv.xz is damaged"),
        ("a.csv.xz", "short", "a.csv.xz is damaged"),
        ("a.csv.xz", "lacks", "is no table of curves: it lacks config, fid"),
        (
            "a.csv.xz",
            "few",
            "hparams: 4 configs trained all 4 epochs, but 5 are needed; left out: none",
        ),
    ],
)
def test_errors_take_one_line_and_exit_2(
    name: str,
    content: object,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content == "lacks":
        write_table(path, long().drop(columns=["config", "fid"]))
    elif content == "few":
        write_table(path, long(configs=4))
    elif content == "short":
        write_table(path, long())
        path.write_bytes(path.read_bytes()[:-40])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["rungs", str(path)])
    with pytest.raises(SystemExit, match="2"):
        rungs.main()
    error = capsys.readouterr().err
    assert error.startswith("python -m analysis.rungs: error: ")
    assert message in error
    assert error.count("\n") == 1
