"""What a search has come to, as its files say: to hold two searches against each other."""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.load import load_trials
from dcgan.files import read_rows
from dcgan.schema import ROWS_FILE, TRIALS_PATTERN
from dcgan.store import file_system

MEASURED = [
    "seconds_train",
    "seconds_eval",
    "seconds_checkpoint",
    "images_per_second",
    "peak_memory_bytes",
]
"""Columns that differ whenever a search is repeated."""


def rows_of(search: Path | str) -> pd.DataFrame:
    """All rows of a search, but for what is measured."""
    return load_trials(search).drop(columns=MEASURED)


def decisions(folder: Path) -> list[dict[str, Any]]:
    """What Optuna knows of each trial, but for its times, in a file of its own as other programs
    read it."""
    import optuna

    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "values": trial.values,
            "epochs": trial.intermediate_values,
        }
        for trial in study.get_trials()
    ]


def epochs_by_trial(folder: Path) -> dict[str, list[int]]:
    """Epochs of each trial as they stand in the files, doubled ones and all."""
    return {
        file.parent.name: [row["epoch"] for row in read_rows(file)]
        for file in folder.glob(f"{TRIALS_PATTERN}/{ROWS_FILE}")
    }


def rows_now(folder: Path) -> int:
    """Rows in the files of a search."""
    return sum(map(len, epochs_by_trial(folder).values()))


def rows_stored(search: str) -> int:
    """Rows that a storage has of a search, given by its URI, by now. Asked again and again, it
    fetches no more than it counts."""
    fs, root = file_system(search)
    fs.invalidate_cache()
    files = fs.glob(f"{root}/{TRIALS_PATTERN}/{ROWS_FILE}")
    return sum(fs.cat_file(file).count(b"\n") for file in files)
