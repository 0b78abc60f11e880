"""Comparison tables. `python -m analysis.tables RUN` prints one and writes it as CSV and Markdown."""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import cli
from analysis.load import load_trials, read_search
from dcgan.schema import COLUMNS, METRIC

SHOWN = ("kid", "sample_coverage", "classifier_score", "digits_covered", "images_per_second")
"""Results of the best epoch that stand beside the metric."""
WIDE = ("kid", "classifier_score", "digits_covered", "images_per_second", "peak_memory_mb")
"""Columns left to the files, so that a terminal need not wrap."""
FORMATS = {"kid": "{:.5f}", "sample_coverage": "{:.3f}", "images_per_second": "{:,.0f}", "seconds": "{:.0f}"}


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings in which the trials of a frame differ, in the order of their columns."""
    settings = [name for name in frame.columns if name not in COLUMNS and name not in ("trial", "status", "error")]
    return [name for name in settings if frame[name].nunique(dropna=False) > 1]


def ranking(
    frame: pd.DataFrame, settings: Sequence[str] | None = None, metric: str = METRIC, mode: str = "min"
) -> pd.DataFrame:
    """One row per trial, ranked by its best epoch on the validation metric; trials without a result last.

    Args:
        frame: as `analysis.load.load_trials` gives it.
        settings: settings, or other columns, to show; default: the settings in which the trials differ.
        metric: column to rank by.
        mode: `min` if less of it is better, else `max`.

    Columns: `rank`, `trial`, `status`, the metric, `best_epoch`, `epochs` trained, the settings, other results of the best
    epoch, `seconds` of training and evaluation, `peak_memory_mb` (10^6 bytes), and `error`.
    """
    settings = varied(frame) if settings is None else list(settings)
    ranked = frame.sort_values(metric, ascending=mode == "min", kind="stable").drop_duplicates("trial")  # each best epoch
    per_trial = frame.groupby("trial")
    table = pd.DataFrame(
        {
            "rank": pd.Series(range(1, len(ranked) + 1), dtype="Int64").where(ranked[metric].notna().to_numpy()),
            "trial": ranked["trial"].to_numpy(),
            "status": ranked["status"].to_numpy(),
            metric: ranked[metric].astype("Float64").to_numpy(),
            "best_epoch": ranked["epoch"].array,
            "epochs": per_trial["epoch"].count().reindex(ranked["trial"]).to_numpy(),
        }
    )
    for name in (*settings, *SHOWN):
        table[name] = ranked[name].array if name in ranked else pd.NA  # no trial's settings could be read
    seconds = frame["seconds_train"].astype("Float64") + frame["seconds_eval"].astype("Float64")
    table["seconds"] = seconds.groupby(frame["trial"]).sum().reindex(ranked["trial"]).array
    peak = per_trial["peak_memory_bytes"].max().reindex(ranked["trial"])
    table["peak_memory_mb"] = (peak.astype("Float64") / 1e6).round().array
    table["error"] = ranked["error"].array
    return table


def pareto(table: pd.DataFrame, objectives: Sequence[tuple[str, str]]) -> pd.Series:
    """Which rows no other row dominates: is at least as good in every objective and better in one.

    A row that lacks a value is never among them.

    Args:
        table: one row per trial.
        objectives: column and `min` or `max` of each.

    Raises:
        ValueError: another word for the direction.
    """
    if wrong := {mode for _, mode in objectives} - {"min", "max"}:
        raise ValueError(f"an objective's mode is {wrong.pop()!r}; allowed: min, max")
    signs = np.array([1.0 if mode == "min" else -1.0 for _, mode in objectives])
    known = table[[name for name, _ in objectives]].astype("Float64")
    values = signs * known.to_numpy(float, na_value=np.nan)  # (trials, objectives)
    dominated = [bool(((values <= row).all(axis=1) & (values < row).any(axis=1)).any()) for row in values]
    return pd.Series(~np.isnan(values).any(axis=1) & ~np.array(dominated, dtype=bool), index=table.index)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as short strings; a column of no errors goes."""
    shown = table.drop(columns=[name for name in ("error",) if table[name].isna().all()])
    return pd.DataFrame({name: [_cell(name, value) for value in shown[name]] for name in shown.columns})


def _cell(name: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    if name == "pareto":
        return "yes" if value else ""
    if name in FORMATS:
        return FORMATS[name].format(value)
    if name == METRIC or name == "classifier_score":
        return f"{value:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(folder: Path) -> tuple[pd.DataFrame, str]:
    """Ranks the trials of a search, writes `table.csv` (full precision) and `table.md` beside them, returns both forms.

    With several objectives, `pareto` tells the trials that no other beats in all, each at its best epoch by the first one.
    """
    search = read_search(folder)
    frame = load_trials(folder)
    objectives = [(goal["column"], goal["mode"]) for goal in search.get("objectives", [])] or [(METRIC, "min")]
    names = [name for name, _ in objectives]
    table = ranking(frame, [*search.get("axes", varied(frame)), *names[1:]], *objectives[0])
    if len(objectives) > 1:
        table.insert(1, "pareto", pareto(table, objectives))
    text = as_text(table)
    table.to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(f"{text.to_markdown(index=False, disable_numparse=True)}\n\n{conditions(frame)}\n")
    narrow = text.drop(columns=["epochs", *(name for name in WIDE if name not in names)])
    if "error" in narrow:
        narrow["error"] = [textwrap.shorten(error, 60, placeholder=" …") for error in narrow["error"]]
    narrow["best_epoch"] += (" of " + text["epochs"]).where(text["best_epoch"] != "", "")
    return table, f"{narrow.to_markdown(index=False, tablefmt='simple', disable_numparse=True)}\n\n{conditions(frame)}"


def conditions(frame: pd.DataFrame, seeds: int | None = None) -> str:
    """The protocol under which the numbers hold, and of how many seeds they are (default: the trials' `replicas`)."""
    known = frame.dropna(subset=["fid"])
    if known.empty:
        return "No trial finished an epoch."
    row = known.iloc[0]
    if seeds is None:
        seeds = int(known["replicas"].fillna(1).max()) if "replicas" in known else 1
    mean = f"Mean of {seeds} seeds" if seeds > 1 else "One seed"
    return (
        f"fid over {row['eval_samples']:,} images against the {row['eval_split']} split of {row.get('dataset', '?')}, "
        f"extractor {row['extractor']}; as many real training images get {row['fid_real']:.2f}. "
        f"{mean} a setting; on {row['device']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tables", description="Rank the trials of a search; also writes table.csv and table.md there."
    )
    parser.add_argument("run", type=Path, help="the folder of a search, such as runs/hparams-20261122-193000")
    cli.run(parser, lambda args: write(args.run)[1])


if __name__ == "__main__":
    main()
