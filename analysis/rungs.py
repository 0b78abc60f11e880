"""Are early epochs a good guide to the last? `python -m analysis.rungs RUN` says when early
stopping may begin.

Curves of configs that all trained to the end are ranked at every epoch, and compared with the final
ranking by Kendall's tau-b, with the interval after Fisher's transformation (Fieller, Hartley and
Pearson 1957, Biometrika 44).
"""

import argparse
import lzma
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analysis import cli
from analysis.load import load_trials, local, read_search, settings_of
from analysis.stats import student_quantile
from dcgan.cli import Parser
from dcgan.schema import METRIC

LEAST_CONFIGS = 10
"""With fewer configs the interval of a rank correlation holds for less than it says."""
LEAST_KENDALL = 0.4
"""Least lower end of tau's interval: 70 % of the pairs of configs stand in their final order by
then."""
MOST_REGRET = 0.05
"""Most loss of final fid, as a share, by keeping the best third."""


def read_curves(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One row per config, seed and epoch: `search`, `config`, `seed`, `epoch`, the metric and more.

    Args:
        paths: folders of searches, whose trials are one config if they differ in `seed` alone, also
            across folders; or tables of curves (.csv.xz).

    Raises:
        FileNotFoundError, ValueError: nothing found, or a damaged table.
    """
    tables, runs = [], []
    for path in paths:
        if str(path).endswith(".csv.xz"):
            tables.append(read_table(Path(path)))
        else:
            runs.append(read_run(path))
    if runs:
        frame = pd.concat(runs, ignore_index=True)
        settings = [name for name in settings_of(frame) if name not in ("seed", "lanes")]
        numbers = frame.groupby(settings, dropna=False).ngroup()
        tables.append(frame.assign(config=numbers.astype(str)))
    return pd.concat(tables, ignore_index=True)


def read_run(run: str | Path) -> pd.DataFrame:
    """The rows of a search's folder."""
    with local(run) as folder:
        name = read_search(folder).get("search", folder.absolute().name)
        return load_trials(folder).assign(search=name)


def read_table(path: Path) -> pd.DataFrame:
    """The curves of a table."""
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
    curves = frame.pivot_table(METRIC, ["config", "seed"], "epoch")
    curves = curves.reindex(index=status.index, columns=range(1, last + 1))
    whole = pd.Series(np.isfinite(curves.to_numpy(float)).all(axis=1), curves.index)
    kept = curves[whole.groupby("config").transform("all")]
    causes = status[~whole].groupby("config").first().value_counts()
    left_out = ", ".join(f"{n} {cause}" for cause, n in causes.items()) or "none"
    count = kept.index.unique("config").size
    if count < LEAST_CONFIGS:
        raise ValueError(
            f"{frame['search'].iat[0]}: {count} configs trained all {last} epochs, but "
            f"{LEAST_CONFIGS} are needed; left out: {left_out}"
        )
    return kept, left_out


def rank_correlation(curves: pd.DataFrame) -> pd.DataFrame:
    """How well each epoch ranks the configs as the last one does.

    Args:
        curves: the minimised metric, config × epoch.

    Columns, by epoch: `kendall` with `_low` and `_high`, its 95 % interval over configs;
    `best_kept`, whether the epoch's best third holds the finally best config; `regret`, the final
    metric of the best config in that third over that of all, minus 1.
    """
    final = curves.iloc[:, -1]
    rows = []
    for epoch in curves:
        tau = float(kendalltau(curves[epoch], final).statistic)
        low, high = kendall_interval(tau, len(curves))
        third = curves[epoch].rank(method="min") <= math.ceil(len(curves) / 3)
        found = float(final[third].min())
        rows.append(
            {
                "kendall": tau,
                "kendall_low": low,
                "kendall_high": high,
                "best_kept": found == final.min(),
                "regret": found / final.min() - 1,
            }
        )
    return pd.DataFrame(rows, index=curves.columns)


def kendall_interval(tau: float, n: int) -> tuple[float, float]:
    """The 95 % interval of Kendall's tau of n pairs: tanh(atanh tau ± t sqrt(.6 / (n - 4))), with
    Student's t of n - 4 degrees and .6 for Fieller's .437, since correlations here are high."""
    half = student_quantile(0.025, n - 4) * math.sqrt(0.6 / (n - 4))
    z = math.atanh(np.clip(tau, -1 + 1e-12, 1 - 1e-12))
    return math.tanh(z - half), math.tanh(z + half)


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
    with one seed. It bounds what an early epoch can say of the configs.

    Args:
        curves: (config, seed) × epoch.
    """
    final = curves.iloc[:, -1].unstack("seed")
    taus = final.corr("kendall", min_periods=LEAST_CONFIGS).to_numpy()
    return float(pd.Series(taus[np.triu_indices(len(taus), k=1)], dtype=float).mean())


def describe(frame: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """The answer for the curves of one search, as text and as data."""
    curves, left_out = whole_curves(frame)
    mean = curves.groupby("config").mean()
    seeds = len(curves) / len(mean)
    table = rank_correlation(mean)
    grace, tau = recommend(table), seed_agreement(curves)
    search = str(frame["search"].iat[0])
    shown = pd.DataFrame(
        {
            "epoch": table.index.astype(str),
            "Kendall's tau": [
                f"{value:.2f} [{low:.2f}, {high:.2f}]"
                for value, low, high in table[["kendall", "kendall_low", "kendall_high"]].to_numpy()
            ],
            "best kept": table["best_kept"].map({True: "yes", False: "no"}),
            "regret": [f"{100 * regret:.1f} %" for regret in table["regret"]],
        }
    )
    lines = [
        f"{search}: {len(mean)} configs, {seeds:.3g} seed{'s' * (seeds > 1)} each (left out: "
        f"{left_out})",
        f"\n{shown.to_markdown(index=False, tablefmt='simple', disable_numparse=True)}\n",
    ]
    if not math.isnan(tau):
        lines.append(
            f"Two seeds agree on the final ranking with tau {tau:.2f}. What an epoch has above "
            f"that it owes to the mean over seeds, or to luck that it shares with the end of its "
            f"runs."
        )
    holds = (
        f"tau's interval lies above {LEAST_KENDALL} and the best third loses at most "
        f"{100 * MOST_REGRET:.0f} % of {METRIC}"
    )
    if grace:
        share = 100 * grace / len(table)
        lines.append(
            f"Grace period: {grace} of {len(table)} epochs ({share:.0f} %). From that epoch on "
            f"{holds}."
        )
    else:
        lines.append(f"These data do not justify early stopping: only at the end {holds}.")
    epochs = cli.records(table.rename_axis("epoch").reset_index())
    return "\n".join(lines), {"search": search, "grace_period": grace, "epochs": epochs}


def main() -> None:
    parser = Parser(
        prog="python -m analysis.rungs",
        description="Are early epochs a good guide to the last? Prints how well each epoch ranks "
        "the configs as the last one does, and from which epoch on early stopping (ASHA's grace "
        "period) is safe.",
    )
    what = (
        "the folder of a search that ran without early stopping, or its URI (s3://…), or a table "
        "of curves (.csv.xz)"
    )
    parser.add_argument("run", nargs="+", help=what)
    cli.run(parser, show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    answers = [describe(part) for _, part in read_curves(args.run).groupby("search")]
    return "\n\n".join(text for text, _ in answers), [data for _, data in answers]


if __name__ == "__main__":
    main()
