"""Are early epochs a good guide to the last? `python -m analysis.rungs RUN` tells when early
stopping may begin.

Curves of configs that all trained to the end are ranked at every epoch and compared with the final
ranking: by Kendall's tau-b and Spearman's rho, with percentile intervals of the bootstrap over
configs (Efron and Tibshirani 1993, chapter 13).

Shapes: n configs, B resamples.
"""

import argparse
import lzma
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis import cli
from analysis.load import load_trials, local, read_search, settings_of
from dcgan.schema import METRIC

Array = NDArray[np.float64]

LEAST_CONFIGS = 5
"""Fewer configs have too few pairs: no interval of a rank correlation would mean anything."""
LEAST_KENDALL = 0.4
"""Least lower end of tau's interval: 70 % of the pairs of configs stand in their final order by
then."""
MOST_REGRET = 0.05
"""Most loss of final fid, as a share, by keeping the best third: about what another seed makes."""
RESAMPLES = 1000


def read_curves(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One row per config, seed and epoch: `search`, `config`, `seed`, `epoch`, the metric and more.

    Args:
        paths: folders of searches, in which trials that differ in `seed` alone are one config, or
            tables of curves (.csv.xz).

    Raises:
        FileNotFoundError, ValueError: nothing there, or a damaged table.
    """
    tables = [_read_table(Path(path)) for path in paths if str(path).endswith(".csv.xz")]
    if folders := [path for path in paths if not str(path).endswith(".csv.xz")]:
        run = pd.concat([_read_run(folder) for folder in folders], ignore_index=True)
        settings = [name for name in settings_of(run) if name not in ("seed", "lanes")]
        tables.append(run.assign(config=run.groupby(settings, dropna=False).ngroup().astype(str)))
    return pd.concat(tables, ignore_index=True)


def _read_run(run: str | Path) -> pd.DataFrame:
    with local(run) as folder:
        name = read_search(folder).get("search", folder.absolute().name)
        return load_trials(folder).assign(search=name)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing := {"search", "config", "seed", "epoch", METRIC} - set(table):
        raise ValueError(f"{path} is no table of curves: it lacks {', '.join(sorted(missing))}")
    return table.assign(config=f"{path} " + table["config"].astype(str), status="cut short")


def whole_curves(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The metric, (config, seed) × epoch, of configs that have it at every epoch with all their
    seeds; and who is left out.

    Raises:
        ValueError: fewer than `LEAST_CONFIGS` are left.
    """
    last = int(frame.filter(["epochs", "epoch"]).max().max())
    status = frame.drop_duplicates(["config", "seed"]).set_index(["config", "seed"])["status"]
    curves = frame.pivot_table(METRIC, ["config", "seed"], "epoch").reindex(
        index=status.index, columns=range(1, last + 1)
    )
    whole = pd.Series(np.isfinite(curves.to_numpy(float)).all(axis=1), curves.index)
    kept = curves[whole.groupby("config").transform("all")]
    causes = status[~whole].groupby("config").first().value_counts()
    count, left_out = (
        kept.index.unique("config").size,
        ", ".join(f"{n} {cause}" for cause, n in causes.items()) or "none",
    )
    if count < LEAST_CONFIGS:
        raise ValueError(
            f"{frame['search'].iat[0]}: {count} configs trained all {last} epochs, but {LEAST_CONFIGS} are needed; "
            f"left out: {left_out}"
        )
    return kept, left_out


def kendall(x: Array, y: Array, draws: NDArray[np.int64]) -> Array:
    """Kendall's tau-b of x and y (n,) in each resample of indices (B, n); NaN where one of them is
    constant. (B,)"""
    counts = np.array([np.bincount(draw, minlength=len(x)) for draw in draws])  # (B, n)
    signs_x, signs_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)  # (n, n)
    both, in_x, in_y = (
        ((counts @ pairs) * counts).sum(axis=1)
        for pairs in (signs_x * signs_y, signs_x**2, signs_y**2)
    )
    with np.errstate(invalid="ignore"):
        return np.asarray(both / np.sqrt(in_x * in_y))


def spearman(x: Array, y: Array, draws: NDArray[np.int64]) -> Array:
    """Spearman's rho, as `kendall`."""
    x, y = (
        stats.rankdata(values[draws], axis=1) - (len(values) + 1) / 2 for values in (x, y)
    )  # (B, n)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))


def rank_correlation(curves: pd.DataFrame) -> pd.DataFrame:
    """How well each epoch ranks the configs as the last one does.

    Args:
        curves: the minimised metric, config × epoch.

    Columns, by epoch: `kendall` and `spearman`, each with `_low` and `_high`, the 95 % bootstrap
    interval over configs; `best_kept`, whether the epoch's best third holds the finally best
    config; `regret`, the final metric of the best config in that third over that of all, minus 1.
    """
    count = len(curves)
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    final = curves.iloc[:, -1]
    rows = []
    for epoch in curves:
        values = curves[epoch]
        row = {}
        for name, statistic in (("kendall", kendall), ("spearman", spearman)):
            row[name] = statistic(values.to_numpy(), final.to_numpy(), np.arange(count)[None])[0]
            resampled = pd.Series(statistic(values.to_numpy(), final.to_numpy(), draws))
            row[f"{name}_low"], row[f"{name}_high"] = resampled.quantile([0.025, 0.975])
        found = final[values.rank(method="min") <= math.ceil(count / 3)].min()
        rows.append(
            row | {"best_kept": bool(found == final.min()), "regret": found / final.min() - 1}
        )
    return pd.DataFrame(rows, index=curves.columns)


def recommend(table: pd.DataFrame) -> int | None:
    """The first epoch from which on all are good enough a guide, or None if that is the last alone.

    Args:
        table: as `rank_correlation` gives it.
    """
    good = (table["kendall_low"] >= LEAST_KENDALL) & (table["regret"] <= MOST_REGRET)
    lasting = good[::-1].cummin()[::-1].iloc[:-1]
    epochs = lasting.index[lasting]
    return int(epochs[0]) if len(epochs) else None


def seed_agreement(curves: pd.DataFrame) -> float:
    """Kendall's tau-b between the final rankings by one seed and by another, mean over pairs; NaN
    with one seed.

    It bounds what an early epoch can tell of the configs, as opposed to of these very runs.

    Args:
        curves: (config, seed) × epoch.
    """
    final = curves.iloc[:, -1].unstack("seed")
    taus = final.corr("kendall", min_periods=LEAST_CONFIGS).to_numpy()
    return float(pd.Series(taus[np.triu_indices(len(taus), k=1)], dtype=float).mean())


def describe(frame: pd.DataFrame) -> str:
    """The answer for the curves of one search: the table and the recommended grace period."""
    curves, left_out = whole_curves(frame)
    mean = curves.groupby("config").mean()
    seeds = len(curves) / len(mean)
    table = rank_correlation(mean)
    text = pd.DataFrame({"epoch": table.index.astype(str)}, index=table.index)
    for name in ("kendall", "spearman"):
        columns = [name, f"{name}_low", f"{name}_high"]
        text[name] = [cli.spread(*row) for row in table[columns].itertuples(index=False)]
    text["best kept"] = table["best_kept"].map({True: "yes", False: "no"})
    text["regret"] = [f"{100 * regret:.1f} %" for regret in table["regret"]]
    lines = [
        f"{frame['search'].iat[0]}: {len(mean)} configs, {seeds:.3g} seed{'s' * (seeds > 1)} each (left out: {left_out})",
        f"\n{text.to_markdown(index=False, tablefmt='simple', disable_numparse=True)}\n",
    ]
    if not math.isnan(tau := seed_agreement(curves)):
        lines.append(
            f"Two seeds agree on the final ranking with tau {tau:.2f}. What an epoch has above that it owes to the mean over "
            "seeds, or to luck that it shares with the end of its own runs."
        )
    bounds = f"tau's interval lies above {LEAST_KENDALL} and the best third loses at most {100 * MOST_REGRET:.0f} % of {METRIC}"
    if grace := recommend(table):
        share = 100 * grace / len(table)
        lines.append(
            f"Grace period: {grace} of {len(table)} epochs ({share:.0f} %). From there on {bounds}."
        )
    else:
        lines.append(
            f"Early stopping is not justified by these data: only at the end it holds that {bounds}."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.rungs",
        description="Are early epochs a good guide to the last? Tells how well each epoch ranks the configs as the last one "
        "does, and from which epoch on early stopping (ASHA's grace period) is safe.",
    )
    what = "the folder of a search that ran without early stopping, or its URI (s3://…), or a table of curves (.csv.xz)"
    parser.add_argument("run", nargs="+", help=what)
    cli.run(
        parser,
        lambda args: "\n\n".join(
            describe(part) for _, part in read_curves(args.run).groupby("search")
        ),
    )


if __name__ == "__main__":
    main()
