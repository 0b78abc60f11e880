"""Reads the folders of searches into one long frame, from the files alone."""

import contextlib
import json
import math
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Sequence
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
FILES = ("search.json", STUDY, "params.json", "result.json", "error.txt")
"""What is read of a search and its trials, besides Ray's `experiment_state-*.json`."""
RAY_COLUMNS = (
    "checkpoint_dir_name", "config", "date", "done", "episodes_total", "experiment_tag", "hostname", "iterations_since_restore",
    "node_ip", "pid", "should_checkpoint", "time_since_restore", "time_this_iter_s", "time_total_s", "timestamp",
    "timesteps_since_restore", "timesteps_total", "training_iteration", "trial_id",
)  # fmt: skip
"""Ray's own, which it may add to every row, and which are left out unsaid."""
INTEGERS = ("epoch", "images_seen", "digits_covered", "peak_memory_bytes", "eval_samples", "eval_seed", "threads")


def load_trials(path: str | Path | Sequence[str | Path], *, per_seed: bool = False) -> pd.DataFrame:
    """One row per trial and epoch, of a search, one of its trials, or a run of `dcgan.train`; or of several of them.

    Columns: `trial` (folder name), `status` (see `STATUSES`), `error` (last line of the error, if it failed), the settings
    of `TrainConfig`, and the columns of `dcgan.schema.COLUMNS` but `by_replica`. A trial without any finished epoch has one
    row, whose `epoch` and results are missing. Rows are sorted by run, trial, seed and epoch; an epoch trained twice, after
    a crash, counts once. Several runs are told apart by a first column `run`: the folder's name, or the path as given where
    two have the same name.

    A damaged row or file is skipped, and a column that is not known left out, with a warning that names it; the rest is
    loaded.

    Args:
        path: the folder, or its URI in a storage that fsspec reaches (`s3://bucket/runs/a`, `gs://…`); or a sequence of them.
        per_seed: one row per trial, seed and epoch instead: what each replica scored, and its own `seed`. Columns that are
            not known by replica, such as times, keep the trial's value.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a sequence is empty, or has a path twice.
        ImportError: fsspec lacks the package for this storage; says which.
        OSError: the storage cannot be reached.
    """
    if isinstance(path, (str, Path)):
        rows = _run_rows(path, per_seed)
    else:
        names = run_names([str(one) for one in path])
        rows = [{"run": name, **row} for name, one in zip(names, path, strict=True) for row in _run_rows(one, per_seed)]
    frame = pd.DataFrame(rows)
    for name in RESULTS:
        if name not in frame:
            frame[name] = pd.NA
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    frame = frame.astype({"collapsed": "boolean", "error": "string"})
    frame = frame.astype({name: "Float64" for name in RESULTS if frame[name].dtype == object})  # all missing
    return frame.sort_values([name for name in ("run", "trial", "seed", "epoch") if name in frame], ignore_index=True)


def run_names(paths: Sequence[str]) -> list[str]:
    """What tells several runs apart: the folders' names, or the paths where two have the same name."""
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"runs are {', '.join(paths) or 'none'}; expected at least one path, and each once")
    names = [Path(path).absolute().name for path in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def _run_rows(path: str | Path, per_seed: bool) -> list[dict[str, Any]]:
    with local(path) as root:
        folders = [root] if is_trial(root) else sorted(folder for folder in root.glob("*/") if is_trial(folder))
        if not folders:
            raise FileNotFoundError(f"no results at {path}: expected the folder of a search, with trials in it, or of a run")
        statuses = read_statuses(root)
        return [row for folder in folders for row in _trial_rows(folder, statuses.get(folder.name), per_seed)]


@contextlib.contextmanager
def local(path: str | Path, *, whole: bool = False) -> Iterator[Path]:
    """The folder itself; of a URI, a temporary copy of the small files that are read here, and, if `whole`, of the confirm
    stage's and of pictures. Warnings name the URI."""
    if "://" not in str(path):
        yield Path(path)
        return
    patterns = (*FILES, "experiment_state-*.json", *(("test.json", "*.png") if whole else ()))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = Path(folder) / Path(str(path)).name
        _fetch(str(path), copy, patterns, 3 if whole else 2)
        yield copy
    for warning in caught:
        warnings.warn(str(warning.message).replace(str(copy), str(path)), warning.category, stacklevel=5)


def _fetch(uri: str, copy: Path, patterns: Sequence[str], depth: int) -> None:
    """Copies the files of these names from a storage."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        storage, root = url_to_fs(uri)
        storage.invalidate_cache()  # of a search that may be running
        there = storage.find(root, maxdepth=depth) if storage.exists(root) else []
        inside = [file for file in there if ".." not in Path(file).parts]  # an object may have any name
        wanted = [file for file in inside if any(Path(file).match(pattern) for pattern in patterns)]
        targets = [copy / Path(file).relative_to(root) for file in wanted]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        if wanted:
            storage.get(wanted, [str(target) for target in targets])  # one call: storages answer many requests at once
    except (ImportError, ValueError):
        raise
    except Exception as error:  # each storage has classes of its own, for want of a network, of rights, of credentials
        raise OSError(f"{uri} cannot be read: {type(error).__name__}: {error}") from error


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
        warnings.warn(f"{path} is damaged or locked and left out: {error!r}", stacklevel=5)
        return {}


def _ray_statuses(root: Path) -> dict[str, str]:
    """From the newest `experiment_state-*.json`, which holds JSON in JSON."""
    for file in sorted(root.glob("experiment_state-*.json"), reverse=True):
        try:
            trials = [json.loads(state) for state, _ in json.loads(file.read_text())["trial_data"]]
            return {trial["relative_logdir"]: RAY_STATUSES.get(trial["status"], "unfinished") for trial in trials}
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file} is damaged and left out: {error!r}", stacklevel=5)
    return {}


def _trial_rows(folder: Path, status: str | None, per_seed: bool) -> list[dict[str, Any]]:
    settings = read_json(folder / "params.json")
    settings.setdefault("seed", math.nan)
    results: dict[int, list[dict[str, Any]]] = {}
    unknown: set[str] = set()
    for number, line in enumerate(_read_lines(folder / "result.json"), start=1):
        try:
            rows, extra = _parse(line, settings)
            results[int(rows[0]["epoch"])] = rows[1:] or rows if per_seed else rows[:1]
            unknown |= extra
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{folder / 'result.json'}, line {number}, is damaged and left out: {error!r}", stacklevel=5)
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(f"{folder / 'result.json'} has columns that are not known and left out: {names}", stacklevel=5)
    error_lines = _read_lines(folder / "error.txt")
    done = bool(results) and max(results) >= settings.get("epochs", float("inf"))
    if status is None:  # no search around it, or one whose word is lost
        status = "failed" if error_lines else "unfinished"
    if done and status != "failed":
        status = "finished"
    reason = error_lines[-1].strip() if status == "failed" and error_lines else None
    head = {"trial": folder.name, "status": status, "error": reason, **settings}
    return [{**head, **row} for rows in results.values() for row in rows] or [head]


def _parse(line: str, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], set[str]]:
    """A line's row of means and, if several seeds trained, the row of each; and the columns not known."""
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
            if name in INTEGERS and row[name] % 1:
                raise ValueError(f"{name} is {row[name]}, and no whole number")
    for number, row in enumerate(rows[1:]):
        row["seed"] = settings["seed"] + number
    return rows, set(means).difference(COLUMNS, RAY_COLUMNS)


def _read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
