"""Rank correlations of early epochs against SciPy and closed cases, and the searches and tables
they are computed from."""

import itertools
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import rungs
from analysis.rungs import (
    kendall_interval,
    rank_correlation,
    read_curves,
    recommend,
    seed_agreement,
    whole_curves,
)

EPOCHS = range(1, 5)
WORLDS = 1000


def describe(frame: pd.DataFrame) -> str:
    return rungs.describe(frame)[0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("configs", [10, 30])
def test_correlations_are_scipys(configs: int, ties: bool) -> None:
    rng = np.random.default_rng(configs)
    values = rng.uniform(1, 2, configs)[:, None] + rng.normal(0, 0.3, (configs, 4))
    curves = pd.DataFrame(np.round(values, 1) if ties else values, columns=EPOCHS)
    table = rank_correlation(curves)
    for epoch in EPOCHS:
        expected = stats.kendalltau(curves[epoch], curves[4]).statistic
        assert table.at[epoch, "kendall"] == pytest.approx(expected, abs=1e-12)
    assert (table["kendall_low"] <= table["kendall"]).all()
    assert (table["kendall"] <= table["kendall_high"] + 1e-9).all()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("n", [10, 20])
def test_intervals_cover_the_true_correlation(n: int, correlation: float) -> None:
    """Of bivariate normal pairs Kendall's tau is 2/pi asin(r)."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(WORLDS, n))
    y = correlation * x + math.sqrt(1 - correlation**2) * rng.normal(size=(WORLDS, n))
    i, j = np.triu_indices(n, k=1)
    taus = (np.sign(x[:, i] - x[:, j]) * np.sign(y[:, i] - y[:, j])).mean(axis=1)  # (worlds,)
    truth = 2 / math.pi * math.asin(correlation)
    ends = np.array([kendall_interval(tau, n) for tau in taus])
    assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() >= 0.93


def test_an_interval_by_hand() -> None:
    """atanh(.5) is .5493; t(.975, 6) is 2.4469 in every table, and sqrt(.6 / 6) is .3162."""
    assert kendall_interval(0.5, 10) == pytest.approx((np.tanh(-0.2245), np.tanh(1.3231)), abs=1e-4)
    assert kendall_interval(1.0, 10) == pytest.approx((1, 1))
    assert kendall_interval(-0.5, 10)[0] == pytest.approx(-np.tanh(1.3231), abs=1e-4)


def test_order_kept_and_order_reversed() -> None:
    ordered = pd.DataFrame({epoch: np.arange(1.0, 13) * epoch for epoch in EPOCHS})
    table = rank_correlation(ordered)
    assert table[["kendall", "kendall_high"]].to_numpy() == pytest.approx(1)
    assert table["best_kept"].all()
    assert (table["regret"] == 0).all()
    assert recommend(table) == 1
    turned = ordered.copy()
    turned[[1, 2, 3]] *= -1
    table = rank_correlation(turned)
    assert table.loc[:3, "kendall"].to_list() == pytest.approx([-1] * 3)
    assert not table.loc[:3, "best_kept"].any()
    assert table.loc[:3, "regret"].to_list() == [8.0] * 3  # config 9, the best of 9 to 12, over 1
    assert recommend(table) is None


def test_a_constant_epoch_has_no_correlation() -> None:
    table = rank_correlation(pd.DataFrame({1: [2.0] * 10, 2: np.arange(1.0, 11)}))
    assert table.loc[1, ["kendall", "kendall_low", "kendall_high"]].isna().all()
    assert table.loc[1, ["best_kept", "regret"]].to_list() == [True, 0.0]  # it drops none
    assert recommend(table) is None


@pytest.mark.parametrize(("count", "third"), [(10, 4), (11, 4), (12, 4), (13, 5)])
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


def long(seeds: int = 3, configs: int = 13) -> pd.DataFrame:
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
            {"generator_lr": float(own["generator_lr"].iat[0]), "epochs": 4, "seed": seed}
            for seed, own in part.groupby("seed")
        ]
        (trial / "params.json").write_text(json.dumps(lanes))
        rows = part.assign(lane=part.groupby("seed").ngroup(), eval_split="validation")
        rows[["lane", "epoch", "fid", "eval_split"]].to_json(
            trial / "result.json", orient="records", lines=True, double_precision=15
        )
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "curves.csv.xz", long())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", long())


def test_a_search_and_a_table_of_its_curves_give_the_same_answer(table: Path, run: Path) -> None:
    texts = [describe(read_curves([path])) for path in (table, run)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("hparams: 13 configs, 3 seeds each (left out: none)")


def test_the_mean_over_seeds_is_ranked(table: Path) -> None:
    curves, _ = whole_curves(read_curves([table]))
    expected = long().groupby(["config", "epoch"])["fid"].mean().unstack()
    found = curves.groupby("config").mean().rename(lambda name: int(name.split()[-1]))
    pd.testing.assert_frame_equal(found.sort_index(), expected, check_index_type=False)
    tau = stats.kendalltau(expected[2], expected[4]).statistic
    assert f"\n2        {tau:.2f} [" in describe(read_curves([table]))


def test_trials_that_differ_in_seed_alone_are_one_config_also_across_searches(
    tmp_path: Path, run: Path
) -> None:
    parts = [
        write_run(tmp_path / name, long()[long()["seed"].isin(seeds)])
        for name, seeds in (("a", [0, 1]), ("b", [2]))
    ]
    assert describe(read_curves(parts)) == describe(read_curves([run]))


def test_two_tables_do_not_mix_their_configs(tmp_path: Path, table: Path) -> None:
    again = write_table(tmp_path / "again.csv.xz", long())
    assert describe(read_curves([table, again])).startswith("hparams: 26 configs, 3 seeds each")


def test_seed_agreement_is_the_mean_over_pairs_of_seeds(tmp_path: Path, table: Path) -> None:
    curves, _ = whole_curves(read_curves([table]))
    final = long().query("epoch == 4").pivot(index="config", columns="seed", values="fid")
    taus = [stats.kendalltau(final[a], final[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert seed_agreement(curves) == pytest.approx(np.mean(taus))
    assert len(set(taus)) == 3
    sentence = f"Two seeds agree on the final ranking with tau {np.mean(taus):.2f}."
    assert sentence in describe(read_curves([table]))
    one = read_curves([write_table(tmp_path / "one.csv.xz", long(seeds=1))])
    assert np.isnan(seed_agreement(whole_curves(one)[0]))
    assert "Two seeds" not in describe(one)


def test_a_config_counts_if_all_its_seeds_trained_to_the_end(run: Path) -> None:
    """Config 1 failed in epoch 3, 2 in its first, 3 lacks a row in the middle, of 4 one value is
    infinite."""
    for config, kept in ((1, [1, 2]), (2, []), (3, [1, 3, 4])):
        path = run / f"trial_{config:04d}" / "result.json"
        lines = path.read_text().splitlines()
        rows = [line for line in lines if json.loads(line)["epoch"] in kept]
        path.write_text("\n".join(rows))
        if config < 3:
            (path.parent / "error.txt").write_text("FloatingPointError\n")
    frame = read_curves([run])
    curves, left_out = whole_curves(frame)
    assert curves.index.unique("config").size == 10
    assert left_out == "2 failed, 1 finished"
    one = (frame["trial"] == "trial_0004") & (frame["epoch"] == 1) & (frame["seed"] == 2)
    frame.loc[one, "fid"] = np.inf
    message = r"hparams: 9 configs trained all 4 epochs, .* left out: 2 failed, 2 finished"
    with pytest.raises(ValueError, match=message):
        describe(frame)


def test_a_search_still_running_has_no_last_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", long().query("epoch < 4"))
    (run / "search.json").unlink()
    message = "run: 0 configs trained all 4 epochs, but 10 are needed; left out: 13 unfinished"
    with pytest.raises(ValueError, match=message):
        describe(read_curves([run]))


def test_trials_without_settings_are_left_out(run: Path) -> None:
    (run / "trial_0000" / "params.json").write_text("{")
    with pytest.warns(UserWarning, match=r"params\.json is missing or damaged"):
        text = describe(read_curves([run]))
    assert text.startswith("hparams: 12 configs, 3 seeds each (left out: 1 unfinished)")


def test_searches_are_answered_one_by_one(
    tmp_path: Path, run: Path, printed: Callable[..., str]
) -> None:
    frame = pd.concat([long(), long().assign(search="architecture")])
    out = printed(rungs.main, write_table(tmp_path / "curves.csv.xz", frame), run)
    assert out.startswith("architecture: 13 configs, 3 seeds each")
    assert "\n\nhparams: 26 configs, 3 seeds each" in out


def test_json_holds_the_numbers_that_are_printed(table: Path, printed: Callable[..., str]) -> None:
    text = printed(rungs.main, table)
    (data,) = json.loads(printed(rungs.main, table, "--json"))
    assert data["search"] == "hparams"
    assert f"Grace period: {data['grace_period']} of 4 epochs" in text
    for row, line in zip(data["epochs"], text.splitlines()[4:8], strict=True):
        ends = f"[{row['kendall_low']:.2f}, {row['kendall_high']:.2f}]"
        kept = "yes" if row["best_kept"] else "no"
        shown = f"{row['epoch']} {row['kendall']:.2f} {ends} {kept} {100 * row['regret']:.1f} %"
        assert line.split() == shown.split()


def test_the_grace_period_is_also_given_as_a_share() -> None:
    fids = long()["config"] + long()["epoch"] / 9 + 1.0
    frame = long().assign(status="finished", fid=fids)
    assert "Grace period: 1 of 4 epochs (25 %)." in describe(frame)
    turned = frame.assign(fid=fids.mask(frame["epoch"] < 4, 99 - fids))
    assert "These data do not justify early stopping" in describe(turned)


XZ = lzma.compress(long().to_csv(index=False).encode())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "no results at"),
        ("a.csv.xz", None, "No such file"),
        ("a.csv.xz", b"no xz", "a.csv.xz is damaged"),
        ("a.csv.xz", XZ[:-40], "a.csv.xz is damaged"),
        (
            "a.csv.xz",
            long().drop(columns=["config", "fid"]),
            "table of curves: it lacks config, fid",
        ),
        ("a.csv.xz", long(configs=9), "9 configs trained all 4 epochs, but 10 are needed"),
    ],
)
def test_errors_take_one_line_and_exit_2(
    name: str,
    content: bytes | pd.DataFrame | None,
    message: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    if isinstance(content, pd.DataFrame):
        write_table(tmp_path / name, content)
    elif content:
        (tmp_path / name).write_bytes(content)
    error = refused(rungs.main, tmp_path / name)
    assert error.startswith("python -m analysis.rungs: error: ")
    assert message in error
