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

from dcgan.schema import (
    ADDED_SETTINGS,
    COLUMNS,
    ERROR_FILE,
    LABEL_COLUMNS,
    METRIC,
    MODEL_FOLDER,
    OVER_LANES,
    PARAMS_FILE,
    ROWS_FILE,
    SEARCH_FILE,
    STATUS_OF_STATE,
    STUDY_FILE,
    TEST_FILE,
    WEIGHTS_FILE,
    Row,
    renamed,
    trial_name,
)
from dcgan.store import Mirror

KNOWN = COLUMNS | LABEL_COLUMNS
RESULTS = [name for name in COLUMNS if name != "lane"]
TEXTS = ("eval_split", "extractor", "device")
INTEGERS = (
    "lane",
    "epoch",
    "images_seen",
    "classes_covered",
    "peak_memory_bytes",
    "eval_samples",
    "eval_seed",
    "threads",
)
STD = f"{METRIC}_std"
"""The column that `over_lanes` adds: sample standard deviation of the metric over lanes; 0 with
one."""
PROTOCOL = ["dataset", "image_size", "channels", "eval_split", "eval_samples", "extractor"]
"""Columns that say what a score is a score of: only where all are equal do scores compare."""
SAME = (
    *("epoch", "images_seen", "eval_seed", "eval_samples", "fid_real", "extractor_accuracy"),
    *("threads", *TEXTS),
)
"""Results that all lanes of a trial share."""
NO_SETTINGS = (*KNOWN, STD, "run", "trial", "status", "error")
"""Columns of a frame that no setting is."""
FILES = (SEARCH_FILE, STUDY_FILE, PARAMS_FILE, ROWS_FILE, ERROR_FILE)
"""What is read of a search and its trials."""


def load_trials(path: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """One row per trial, lane and epoch, of a search, one of its trials, or a run of `dcgan.train`;
    or of several of them.

    Columns: `trial` (folder name), `status` (see `dcgan.schema.STATUSES`), `error` (last line of
    the error, if it failed), `lanes` (how many the trial trains side by side), the settings of the
    lane's own `TrainConfig`, the columns of `dcgan.schema.COLUMNS`, and those of `LABEL_COLUMNS` if
    a trial has them. A trial without any
    finished epoch has one row, of its first lane, whose `epoch` and results are missing. Rows are
    sorted by run, trial, lane and epoch; an epoch trained twice, after a crash, counts once.
    Of several runs the first column is `run`: the folder's name, or the path as given where two
    have the same name.

    A damaged row or file is skipped, and a column that is not known left out, with a warning that
    names it; the rest is loaded. Rows of earlier versions, which kept means over replicas and each
    replica's values, become rows of lanes.

    Args:
        path: the folder, or its URI in a storage that fsspec reaches (`s3://bucket/runs/a`,
            `gs://…`); or a sequence of them.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a sequence is empty, or has a path twice; a storage of an unknown kind, or one
            that fsspec lacks the package for: says which.
        OSError: the storage cannot be reached.
    """
    if isinstance(path, (str, Path)):
        rows = _run_rows(path)
    else:
        names = run_names([str(one) for one in path])
        rows = [
            {"run": name, **row}
            for name, one in zip(names, path, strict=True)
            for row in _run_rows(one)
        ]
    frame = _with_added_settings(pd.DataFrame(rows))
    for name in RESULTS:
        if name not in frame:
            frame[name] = pd.NA
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    frame = frame.astype({"collapsed": "boolean", "error": "string"})
    missing = [name for name in RESULTS if frame[name].dtype == object]  # in all rows
    frame = frame.astype(dict.fromkeys(missing, "Float64"))
    order = [name for name in ("run", "trial", "lane", "epoch") if name in frame]
    return frame.sort_values(order, ignore_index=True)


def _with_added_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows, in which those of earlier versions say what later settings were for them."""
    settings = [name for name in settings_of(frame) if name not in ("seed", "lanes")]
    known = frame[settings].notna().any(axis=1)  # where settings could be read at all
    for name, before in ADDED_SETTINGS.items():
        if name in frame:
            frame[name] = frame[name].where(frame[name].notna() | ~known, before)
    return frame


def over_lanes(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial and epoch: what `load_trials` gives, over the lanes of each trial.

    Results are means, but for those that `dcgan.schema.OVER_LANES` takes otherwise; seconds add up.
    Settings, such as `seed`, are those of the first lane, and there is no column `lane`; `fid_std`
    is new. An epoch that lacks the row of a lane is left out. A frame without `lane` is returned as
    it is.
    """
    if "lane" not in frame:
        return frame
    trials = [name for name in ("run", "trial") if name in frame]
    keys = [*trials, "epoch"]
    frame = _whole_epochs(frame.sort_values([*trials, "lane", "epoch"]), trials)
    table = frame.drop_duplicates(keys).drop(columns="lane")
    groups = frame.groupby(keys, dropna=False, sort=False)  # in the order of the table's rows
    for name in {*RESULTS, *(LABEL_COLUMNS.keys() & set(frame))} - set(SAME):
        how = OVER_LANES.get(name, "mean")
        table[name] = groups[name].agg(how, skipna=False).array
    alone = (table["lanes"] == 1) & table[METRIC].notna()
    table[STD] = groups[METRIC].std().array
    table[STD] = table[STD].mask(alone, 0.0)
    return table.sort_values(keys, ignore_index=True)


def _whole_epochs(frame: pd.DataFrame, trials: list[str]) -> pd.DataFrame:
    """The rows of epochs that all lanes have; of a trial without any, a row without results."""
    lanes = frame.groupby([*trials, "epoch"], dropna=False)["lane"].transform("size")
    whole = (lanes == frame["lanes"]) | frame["epoch"].isna()
    if whole.all():
        return frame
    lost = ~whole.groupby([frame[name] for name in trials]).transform("any")
    kept = frame[whole | (lost & ~frame.duplicated(trials))].copy()
    kept[RESULTS] = kept[RESULTS].mask(lost[kept.index])
    return kept


def settings_of(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame that are settings."""
    return [name for name in frame.columns if name not in NO_SETTINGS]


def run_names(paths: Sequence[str]) -> list[str]:
    """What tells several runs apart: the folders' names, or the paths where two have the same
    name."""
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(
            f"runs are {', '.join(paths) or 'none'}; expected at least one path, and each once"
        )
    names = [Path(path).absolute().name for path in paths]
    return [
        name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)
    ]


def _run_rows(path: str | Path) -> list[Row]:
    with local(path) as root:
        folders = [root]
        if not is_trial(root):
            folders = sorted(folder for folder in root.glob("*/") if is_trial(folder))
        if not folders:
            raise FileNotFoundError(
                f"no results at {path}: expected the folder of a search, with trials in it, or of "
                "a run"
            )
        statuses = read_statuses(root)
        return [row for folder in folders for row in _trial_rows(folder, statuses.get(folder.name))]


@contextlib.contextmanager
def local(path: str | Path, *, whole: bool = False) -> Iterator[Path]:
    """The folder itself; of a URI, a temporary copy of the small files that are read here, and, if
    `whole`, of the confirm stage's and of pictures. Warnings name the URI."""
    if "://" not in str(path):
        yield Path(path)
        return
    more = (TEST_FILE, "*.png") if whole else ()
    uri = str(path).rstrip("/")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = Path(folder) / Path(uri).name
        Mirror(copy, uri).get(*FILES, *more, depth=3 if whole else 2)
        yield copy
    for warning in caught:
        message = str(warning.message).replace(str(copy), str(path))
        warnings.warn(message, warning.category, stacklevel=5)


def is_trial(folder: Path) -> bool:
    """Whether a folder is one trial's: it holds its parameters or its results, and is not what
    `dcgan.export` wrote, of which a copy of a storage may have the parameters alone."""
    has_some = (folder / PARAMS_FILE).is_file() or (folder / ROWS_FILE).is_file()
    exported = folder.name == MODEL_FOLDER or (folder / WEIGHTS_FILE).is_file()
    return has_some and not exported


def read_search(folder: Path) -> dict[str, Any]:
    """The search's description as `tune.run` wrote it, or an empty one where there is none (a
    single run)."""
    path = folder / SEARCH_FILE
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one, with a warning, where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path} is missing or damaged and left out: {error!r}", stacklevel=2)
        return {}


def read_statuses(root: Path) -> dict[str, str]:
    """The search's last word on each trial, by folder name; none where there is no study."""
    path = root / STUDY_FILE
    if not path.is_file():
        return {}
    try:
        return study_statuses(path)
    except (sqlite3.Error, ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged or locked and left out: {error!r}", stacklevel=4)
        return {}


def study_statuses(path: Path, timeout_seconds: float = 2) -> dict[str, str]:
    """The status of each trial in Optuna's study, by folder name, as Optuna's own reader would take
    a second to import.

    Raises:
        sqlite3.Error, ValueError, TypeError: the file is damaged, or stays locked.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=timeout_seconds)) as database:
        trials = database.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
    return {
        trial_name(number): STATUS_OF_STATE.get(state, "unfinished") for number, state in trials
    }


def _trial_rows(folder: Path, status: str | None) -> list[Row]:
    lanes = _read_settings(folder / PARAMS_FILE)
    results = _read_results(folder / ROWS_FILE, len(lanes))
    count = len(lanes) or 1 + max((lane for lane, _ in results), default=0)
    epochs = lanes[0].get("epochs", math.inf) if lanes else math.inf
    done = sum(epoch >= epochs for _, epoch in results) >= count
    error_lines = _read_lines(folder / ERROR_FILE)
    if status is None:  # no search around it, or one whose word is lost
        status = "failed" if error_lines else "unfinished"
    if done and status != "failed":
        status = "finished"
    reason = error_lines[-1].strip() if status == "failed" and error_lines else None
    head = {"trial": folder.name, "status": status, "error": reason, "lanes": count}
    settings = [head | {"seed": math.nan} | lane for lane in lanes or [{}] * count]
    rows = [settings[lane] | row for (lane, _), row in results.items()]
    return rows or [settings[0] | {"lane": 0}]


def _read_settings(path: Path) -> list[dict[str, Any]]:
    """The settings of each lane; none, with a warning, where they cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "replicas" in content:
            return _lanes_of_replicas(content)
        lanes = [dict(lane) for lane in (content if isinstance(content, list) else [content])]
        if not lanes:
            raise ValueError("it has no lanes")
        return lanes
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{path} is missing or damaged and left out: {error!r}", stacklevel=6)
        return []


def _read_results(path: Path, lanes: int) -> dict[tuple[int, int], Row]:
    """A trial's rows by lane and epoch; what is damaged or not known is left out with a warning.

    Args:
        path: a file of JSON lines.
        lanes: how many lanes there are; 0 if that is lost.
    """
    results: dict[tuple[int, int], Row] = {}
    unknown: set[str] = set()
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            for row in _parse(line, lanes):
                known = {name: row[name] for name in KNOWN if name in row}
                results[int(row["lane"]), int(row["epoch"])] = known
                unknown |= row.keys() - KNOWN.keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path}, line {number}, is damaged and left out: {error!r}"
            warnings.warn(message, stacklevel=6)
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(f"{path} has columns that are not known and left out: {names}", stacklevel=6)
    return results


def _parse(line: str, lanes: int) -> list[Row]:
    """The row of a line; of an earlier version, the row of each lane.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    row = json.loads(line)
    rows = [row] if "lane" in row else _rows_of_replicas(row, lanes)
    rows = [renamed(row) for row in rows]
    for row in rows:
        row["epoch"] + 0  # it has one, and this is a number, or it is damaged
        for name in RESULTS:
            if name in row and name not in TEXTS:
                row[name] + 0
        for name in INTEGERS:
            if name in row and row[name] % 1:
                raise ValueError(f"{name} is {row[name]}, and no whole number")
        if row["lane"] < 0 or (lanes and row["lane"] >= lanes):
            raise ValueError(f"its lane is {row['lane']}; {lanes} were trained")
    return rows


def _lanes_of_replicas(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each lane, of an earlier version, whose trials trained `replicas` of one
    config: seeds were consecutive, and the loss was always the same."""
    shared = {"loss": "non-saturating"} | settings
    replicas = shared.pop("replicas")
    return [shared | {"seed": settings["seed"] + number} for number in range(replicas)]


def _rows_of_replicas(row: Row, lanes: int) -> list[Row]:
    """The row of each lane, of an earlier version, whose rows held means, and of several replicas
    lists of their own values, `by_replica`."""
    shared = {name: value for name, value in row.items() if name not in ("by_replica", STD)}
    own = row["by_replica"] if "by_replica" in row else {"epoch": [row["epoch"]]}
    rows = [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
    if len(rows) != lanes and (lanes or not rows):
        raise ValueError(f"it is of {len(rows)} replicas; {lanes} were trained")
    for name in shared:
        if OVER_LANES.get(name) == "sum":
            shared[name] /= len(rows)  # it was of all replicas
    return [shared | values | {"lane": lane} for lane, values in enumerate(rows)]


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]
