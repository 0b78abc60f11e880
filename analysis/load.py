"""Reads a search's folder into one long frame, from the files alone."""

import contextlib
import json
import math
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from dcgan.schema import COLUMNS

STATUSES = ("finished", "stopped", "failed", "unfinished")
"""`finished` trained all its epochs, `stopped` was ended early by the scheduler, `failed` ended in an error,
`unfinished` was still to train when the files were written (a running or interrupted search)."""

STUDY = "study.db"
STATE_STATUSES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}  # Optuna's; all others are unfinished
RAY_STATUSES = {"TERMINATED": "stopped", "ERROR": "failed"}
RESULTS = [name for name in COLUMNS if name != "by_replica"]
TEXTS = ("eval_split", "extractor", "device")
INTEGERS = ("epoch", "images_seen", "digits_covered", "peak_memory_bytes", "eval_samples", "eval_seed", "threads")


def load_trials(path: str | Path, *, per_seed: bool = False) -> pd.DataFrame:
    """One row per trial and epoch, of a search, one of its trials, or a run of `dcgan.train`.

    Columns: `trial` (folder name), `status` (see `STATUSES`), `error` (last line of the error, if it failed), the settings
    of `TrainConfig`, and the columns of `dcgan.schema.COLUMNS` but `by_replica`. A trial without any finished epoch has one
    row, whose `epoch` and results are missing. Rows are sorted by trial, seed and epoch; an epoch trained twice, after a
    crash, counts once.

    A damaged row or file is skipped with a warning that names it; the rest is loaded.

    Args:
        path: the folder.
        per_seed: one row per trial, seed and epoch instead: what each replica scored, and its own `seed`. Columns that are
            not known by replica, such as times, keep the trial's value.

    Raises:
        FileNotFoundError: the path holds no results.
    """
    root = Path(path)
    folders = [root] if is_trial(root) else sorted(folder for folder in root.glob("*/") if is_trial(folder))
    if not folders:
        raise FileNotFoundError(f"no results at {root}: expected the folder of a search, with trials in it, or of a run")
    statuses = read_statuses(root)
    rows = [row for folder in folders for row in _trial_rows(folder, statuses.get(folder.name), per_seed)]
    frame = pd.DataFrame(rows)
    for name in RESULTS:
        if name not in frame:
            frame[name] = pd.NA
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    frame = frame.astype({"collapsed": "boolean", "error": "string"})
    frame = frame.astype({name: "Float64" for name in RESULTS if frame[name].dtype == object})  # all missing
    return frame.sort_values(["trial", "seed", "epoch"], ignore_index=True)


def is_trial(folder: Path) -> bool:
    """Whether a folder is one trial's: it holds its parameters or its results."""
    return (folder / "params.json").is_file() or (folder / "result.json").is_file()


def read_search(folder: Path) -> dict[str, Any]:
    """The search's description as `tune.run` wrote it, or an empty one where there is none (a single run)."""
    path = folder / "search.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one, with a warning, where there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path} is missing or damaged and left out: {error!r}", stacklevel=2)
        return {}


def read_statuses(root: Path) -> dict[str, str]:
    """The search's last word on each trial, by folder name: from `study.db`, or Ray's files where there is none."""
    return _study_statuses(root / STUDY) if (root / STUDY).is_file() else _ray_statuses(root)


def _study_statuses(path: Path) -> dict[str, str]:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            trials = database.execute("SELECT number, state FROM trials").fetchall()
        return {f"trial_{number:04d}": STATE_STATUSES.get(state, "unfinished") for number, state in trials}
    except (sqlite3.Error, ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged or locked and left out: {error!r}", stacklevel=4)
        return {}


def _ray_statuses(root: Path) -> dict[str, str]:
    """From the newest `experiment_state-*.json`, which holds JSON in JSON."""
    for file in sorted(root.glob("experiment_state-*.json"), reverse=True):
        try:
            trials = [json.loads(state) for state, _ in json.loads(file.read_text())["trial_data"]]
            return {trial["relative_logdir"]: RAY_STATUSES.get(trial["status"], "unfinished") for trial in trials}
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file} is damaged and left out: {error!r}", stacklevel=4)
    return {}


def _trial_rows(folder: Path, status: str | None, per_seed: bool) -> list[dict[str, Any]]:
    settings = read_json(folder / "params.json")
    settings.setdefault("seed", math.nan)
    results: dict[int, list[dict[str, Any]]] = {}
    for number, line in enumerate(_read_lines(folder / "result.json"), start=1):
        try:
            rows = _parse(line, settings)
            results[int(rows[0]["epoch"])] = rows[1:] or rows if per_seed else rows[:1]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{folder / 'result.json'}, line {number}, is damaged and left out: {error!r}", stacklevel=4)
    error_lines = _read_lines(folder / "error.txt")
    done = bool(results) and max(results) >= settings.get("epochs", float("inf"))
    if status is None:  # no search around it, or one whose word is lost
        status = "failed" if error_lines else "unfinished"
    if done and status != "failed":
        status = "finished"
    reason = error_lines[-1].strip() if status == "failed" and error_lines else None
    head = {"trial": folder.name, "status": status, "error": reason, **settings}
    return [{**head, **row} for rows in results.values() for row in rows] or [head]


def _parse(line: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A line's row of means and, if several seeds trained, the row of each."""
    means = json.loads(line)
    parts = [means]
    if "by_replica" in means:
        own = means["by_replica"]
        parts += [means | dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
    replicas = len(parts) - 1 or 1
    if replicas != settings.get("replicas", replicas):
        raise ValueError(f"it is of {replicas} replicas; {settings['replicas']} were trained")
    rows = [{name: part[name] for name in RESULTS if name in part} for part in parts]
    for row in rows:
        for name in set(row) - set(TEXTS):
            row[name] + 0  # a number, or a TypeError
    for number, row in enumerate(rows[1:]):
        row["seed"] = settings["seed"] + number
    return rows


def _read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
