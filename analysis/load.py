"""Reads a search's folder into one long frame, from the files alone."""

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from dcgan.schema import COLUMNS

STATUSES = ("finished", "stopped", "failed", "unfinished")
"""`finished` trained all its epochs, `stopped` was ended early by the scheduler, `failed` ended in an error,
`unfinished` was still to train when the files were written (a running or interrupted search)."""

STATE_STATUSES = {"TERMINATED": "stopped", "ERROR": "failed"}  # Ray's; all others are unfinished
TEXTS = ("eval_split", "extractor", "device")
INTEGERS = ("epoch", "images_seen", "digits_covered", "peak_memory_bytes", "eval_samples", "eval_seed")


def load_trials(path: str | Path) -> pd.DataFrame:
    """One row per trial and epoch, of a search, one of its trials, or a run of `dcgan.train`.

    Columns: `trial` (folder name), `status` (see `STATUSES`), `error` (last line of the error, if it failed), the settings
    of `TrainConfig`, and the columns of `dcgan.schema.COLUMNS`. A trial without any finished epoch has one row, whose
    `epoch` and results are missing. Rows are sorted by trial and epoch; an epoch trained twice, after a crash, counts once.

    A damaged row or file is skipped with a warning that names it; the rest is loaded.

    Raises:
        FileNotFoundError: the path holds no results.
    """
    root = Path(path)
    folders = [root] if is_trial(root) else sorted(folder for folder in root.glob("*/") if is_trial(folder))
    if not folders:
        raise FileNotFoundError(f"no results at {root}: expected the folder of a search, with trials in it, or of a run")
    statuses = read_statuses(root)
    rows = [row for folder in folders for row in _trial_rows(folder, statuses.get(folder.name))]
    frame = pd.DataFrame(rows)
    for name in COLUMNS:
        if name not in frame:
            frame[name] = pd.NA
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    frame = frame.astype({"collapsed": "boolean", "error": "string"})
    frame = frame.astype({name: "Float64" for name in COLUMNS if frame[name].dtype == object})  # all missing
    return frame.sort_values(["trial", "epoch"], ignore_index=True)


def is_trial(folder: Path) -> bool:
    """Whether a folder is one trial's: it holds its parameters or its results."""
    return (folder / "params.json").is_file() or (folder / "result.json").is_file()


def read_search(folder: Path) -> dict[str, Any]:
    """The search's description as `tune.run` wrote it, or an empty one where there is none (a single run)."""
    path = folder / "search.json"
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged and left out: {error!r}", stacklevel=2)
        return {}


def read_statuses(root: Path) -> dict[str, str]:
    """Ray's last word on each trial, by folder name: the newest `experiment_state-*.json`, which holds JSON in JSON."""
    files = sorted(root.glob("experiment_state-*.json"))
    for file in reversed(files):
        try:
            trials = [json.loads(state) for state, _ in json.loads(file.read_text())["trial_data"]]
            return {trial["relative_logdir"]: trial["status"] for trial in trials}
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file} is damaged and left out: {error!r}", stacklevel=3)
    return {}


def _trial_rows(folder: Path, ray_status: str | None) -> list[dict[str, Any]]:
    settings = _read_json(folder / "params.json")
    results: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(_read_lines(folder / "result.json"), start=1):
        try:
            row = {name: value for name, value in json.loads(line).items() if name in COLUMNS}
            for name in set(row) - set(TEXTS):
                row[name] + 0  # a number, or a TypeError
            results[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{folder / 'result.json'}, line {number}, is damaged and left out: {error!r}", stacklevel=4)
    error_lines = _read_lines(folder / "error.txt")
    done = bool(results) and max(results) >= settings.get("epochs", float("inf"))
    status = STATE_STATUSES.get(ray_status or "", "unfinished")
    if ray_status is None and error_lines:  # no search around it, or one that was killed before it wrote its state
        status = "failed"
    if done and status != "failed":
        status = "finished"
    reason = error_lines[-1].strip() if status == "failed" and error_lines else None
    head = {"trial": folder.name, "status": status, "error": reason, **settings}
    return [{**head, **result} for result in results.values()] or [head]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path} is missing or damaged, so its settings are left out: {error!r}", stacklevel=5)
        return {}


def _read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
