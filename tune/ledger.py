"""The ledger of a search: Optuna's study in `study.db`, one transaction a decision.

It holds what was proposed, what every epoch scored, and how each trial ended. Ray's own snapshots
come ten seconds apart and leave the scheduler out; this is written before a decision takes effect,
so that a search killed at any moment is rebuilt from it and from the trials' folders.
"""

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dcgan.files import replace
from dcgan.schema import ERROR_FILE, OBJECTIVES, PARAMS_FILE, STUDY_FILE
from dcgan.store import StorageError
from tune.searches import Point, Search

if TYPE_CHECKING:
    from tune.plan import Plan

DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
LOCKED_SECONDS = 120.0  # that another program may hold the study's file
RETRY_OF = "retry_of"  # the number of the failed trial that this one repeats


def open_ledger(folder: Path, objectives: tuple[str, ...] = ()) -> optuna.Study:
    """The study in a search's folder, or a new one of these objectives.

    Raises:
        FileNotFoundError: it is missing, and no objectives are given.
        StorageError: another program holds the file.
        ValueError: the file is damaged.
    """
    path = folder / STUDY_FILE
    if not objectives and not path.is_file():
        raise FileNotFoundError(f"no study at {path}")
    try:
        # connected to by its path, since a URL gives meaning to some letters of folder names
        connect = partial(sqlite3.connect, path, timeout=1, factory=Patient)
        storage = RDBStorage("sqlite://", engine_kwargs={"creator": connect})
        if objectives:
            study = optuna.create_study(
                study_name="search",
                storage=storage,
                directions=[DIRECTIONS[OBJECTIVES[name]] for name in objectives],
                load_if_exists=True,
            )
        else:
            study = optuna.load_study(study_name=None, storage=storage)
        study.get_trials()  # damage shows on reading
        return study
    except StorageError:
        raise
    except Exception as error:  # SQLAlchemy's, by way of Optuna, of many classes
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(
            f"{path} is damaged ({reason}); "
            f"its trials can still be read by python -m analysis.tables"
        ) from error


class Patient(sqlite3.Connection):
    """A connection that waits for whoever holds the file, such as a reader that has not fetched all
    rows, and says so."""

    def __init__(self, path: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self.path = path

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or PatientCursor)

    def commit(self) -> None:
        self.wait(super().commit)

    def wait(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls until the file is free; a StorageError after `LOCKED_SECONDS`."""
        begin, said = time.monotonic(), False
        while True:
            try:
                return call(*args)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                waited = time.monotonic() - begin
                if waited > LOCKED_SECONDS:
                    held = f"is held by another program since {waited:.0f} s"
                    raise StorageError(f"{self.path} {held}; close that first") from error
            if not said:
                print(f"\n{self.path} is held by another program; waiting for it", flush=True)
                said = True


class PatientCursor(sqlite3.Cursor):
    """The cursor of a `Patient` connection."""

    connection: Patient

    def execute(self, *args: Any) -> Any:
        return self.connection.wait(super().execute, *args)

    def executemany(self, *args: Any) -> Any:
        return self.connection.wait(super().executemany, *args)


def quiet_optuna() -> None:
    """Keeps Optuna from announcing each study and trial: called once by whoever runs searches."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def running(params: Point, distributions: Any, **attributes: Any) -> FrozenTrial:
    """A trial as it begins, to be added to a study in one transaction."""
    return create_trial(
        state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
    )


def record_epoch(study: optuna.Study, number: int, epoch: int, value: float) -> None:
    """Records what an epoch of a running trial scored.

    By way of the storage, a private member of the study: `optuna.Trial.report` refuses studies of
    several objectives, and a Trial is to be had only from the process that asked for it.
    """
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.set_trial_intermediate_value(trial_id, epoch, value)


def retry_failed(plan: "Plan") -> int:
    """Begins each failed trial anew, from its last checkpoint; returns their number.

    The study keeps the failure; the new trial takes over the folder, so that tables show each
    setting once.
    """
    study = open_ledger(plan.folder)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    failures = study.get_trials(states=[TrialState.FAIL])
    failed = [trial for trial in failures if trial.number not in retried]
    for trial in failed:
        study.add_trial(running(trial.params, trial.distributions, **{RETRY_OF: trial.number}))
    return len(failed)


def reopen_stopped(plan: "Plan") -> None:
    """Has trials that were stopped run again: those that a freeze-thaw search left frozen when it
    ended, if it is to train more epochs.

    Optuna lets no trial that has ended change, so a copy of its file is changed, which keeps all
    else that stands in it, and takes the place of the old one in one step.

    Raises:
        FileNotFoundError, ValueError: the study is missing or damaged.
    """
    open_ledger(plan.folder)
    file = plan.folder / STUDY_FILE
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / STUDY_FILE
        shutil.copy(file, copy)
        with contextlib.closing(sqlite3.connect(copy)) as study, study:
            study.execute(
                "DELETE FROM trial_values WHERE trial_id IN "
                "(SELECT trial_id FROM trials WHERE state = 'PRUNED')"
            )
            study.execute(
                "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL "
                "WHERE state = 'PRUNED'"
            )
        replace(file, copy.read_bytes())


def take_over_folders(plan: "Plan", study: optuna.Study) -> None:
    """Gives each retry the folder of the trial that it repeats, if it does not have it yet."""
    store = plan.store
    for trial in study.get_trials():
        if RETRY_OF not in trial.user_attrs:
            continue
        old = plan.trial_folder(trial.user_attrs[RETRY_OF])
        new = plan.trial_folder(trial.number)
        if not old.is_dir():
            continue
        store.get(f"{old.name}/*")  # the checkpoint, too
        # into a storage the settings are put last, so without them the rest may be missing
        taken = (new / PARAMS_FILE if store.is_mirror else new).exists()
        if not taken:
            shutil.rmtree(new, ignore_errors=True)
            (old / ERROR_FILE).unlink(missing_ok=True)
            old.rename(new)
            store.put(*(path for path in new.rglob("*") if path.name != PARAMS_FILE))
            store.put(new / PARAMS_FILE)
        store.remove(old.name)


def best_points(folder: Path, search: Search, count: int) -> list[Point]:
    """Settings of the best finished trials of an earlier search; axes that it did not vary stay at
    the baseline.

    Raises:
        FileNotFoundError, ValueError: the study is missing, damaged, or has no finished trial
            within this search's ranges.
    """
    trials = open_ledger(folder).get_trials(states=[TrialState.COMPLETE])
    fitting: list[Point] = []
    for trial in sorted(trials, key=lambda trial: trial.values[0]):
        shared = {name: trial.params[name] for name in search.axes if name in trial.params}
        point = search.baseline() | shared
        if point not in [search.baseline(), *fitting] and search.holds(point):
            fitting.append(point)
    if not fitting:
        raise ValueError(
            f"--points-from {folder}: no finished trial there lies within the ranges of "
            f"{', '.join(search.axes)}"
        )
    return fitting[:count]
