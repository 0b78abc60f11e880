"""Optuna's study as the record of a search: what was proposed, what every epoch scored, how each trial ended.

Ray's own snapshots come ten seconds apart and leave the scheduler out. Here every decision is one transaction in
`study.db` before it takes effect, so that a search killed at any moment is rebuilt from it and from the trials' folders.
"""

import itertools
import json
import math
import random
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch

from dcgan.loop import RATES
from tune.plan import Plan
from tune.searches import OBJECTIVES, Point, Search

NAME = "search"  # of the study in its storage
STUDY = "study.db"
PARAMS = "params.json"
RETRY_OF = "retry_of"  # the number of the failed trial that this one repeats
REDRAWS = 10  # proposals that were tried before; then chance picks one that was not


def open_study(folder: Path, objectives: tuple[str, ...] = ()) -> optuna.Study:
    """The study in a search's folder; a new one of these objectives where there is none yet.

    Raises:
        FileNotFoundError: there is none, and no objectives are given for a new one.
        ValueError: the file is damaged.
    """
    path = folder / STUDY
    if not objectives and not path.is_file():
        raise FileNotFoundError(f"no study at {path}")
    try:
        # connected to by its path, since a URL gives meaning to some letters of folder names
        storage = RDBStorage("sqlite://", engine_kwargs={"creator": partial(sqlite3.connect, path)})
        if objectives:
            minimize, maximize = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
            directions = [maximize if OBJECTIVES[name] == "max" else minimize for name in objectives]
            study = optuna.create_study(study_name=NAME, storage=storage, directions=directions, load_if_exists=True)
        else:
            study = optuna.load_study(study_name=None, storage=storage)
        study.get_trials()  # damage shows on reading
        return study
    except Exception as error:  # SQLAlchemy's, by way of Optuna, of many classes
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(f"{path} is damaged ({reason}); its trials can still be read by python -m analysis.tables") from error


def make_sampler(
    plan: Plan, number: int, attempt: int = 0, space: IntersectionSearchSpace | None = None
) -> optuna.samplers.BaseSampler:
    """The sampler of one proposal. Its seed depends on the trial's number alone, so no random state need be kept.

    `space` remembers which trials it has seen, so that TPE need not look at all of them for each proposal.
    """
    seed = int(np.random.SeedSequence([plan.seed, number, attempt]).generate_state(1)[0])
    if plan.sampler == "tpe":
        # few random trials first, and many candidates for each later one: measured by tune.simulate (docs/log.md)
        startup = min(5, max(1, plan.num_trials // 3))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, n_ei_candidates=200)
        sampler._search_space = space or sampler._search_space
        return sampler
    return optuna.samplers.RandomSampler(seed=seed)


class Numbers(dict[str, int]):
    """Optuna's number of each of Ray's trial ids. Pickled it is empty: Ray pickles what names trials with every trial."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Numbers, ()


class StudySearch(OptunaSearch):
    """Ray's OptunaSearch that knows fidelity, and writes each step to a ledger: the study in the search's folder.

    Trials that the scheduler stopped are told as PRUNED with all their intermediate values, finished ones as COMPLETE
    with the objectives of their best epoch, failed ones as FAIL.

    Args:
        plan: what to propose.
        ledger: the study to record in and to go on from; None keeps everything in memory, for simulations.
    """

    def __init__(self, plan: Plan, ledger: optuna.Study | None) -> None:
        past = ledger.get_trials() if ledger else []
        retries = sum(RETRY_OF in trial.user_attrs for trial in past)
        several = len(plan.objectives) > 1
        super().__init__(
            plan.search,
            metric=list(plan.objectives) if several else plan.objectives[0],
            mode=[OBJECTIVES[name] for name in plan.objectives] if several else OBJECTIVES[plan.objectives[0]],
            sampler=make_sampler(plan, 0),
        )
        in_memory: Any = self._ot_study  # made by the base class
        self.study: optuna.Study = in_memory
        self.study.add_trials(past)
        for point in plan.points[len(past) - retries :]:
            self.study.enqueue_trial(point)
        self.plan = plan
        self.ledger = ledger
        self.past = {trial.number: trial for trial in past}
        """Trials of earlier sessions as they were when this one began."""
        self.numbers = Numbers()
        self._begun = [trial.number for trial in past if trial.state == TrialState.RUNNING]
        self._tried = [trial.params for trial in past]
        self._known_space = IntersectionSearchSpace(include_pruned=True)  # of `study`
        self._best: dict[str, dict[str, Any]] = {}  # the row of each trial's best epoch
        self.remaining = plan.num_trials + retries - len(past) + len(self._begun)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The complete config of the next trial: one that was interrupted, or a new one."""
        if self._begun:
            number = self._begun.pop(0)
            self.numbers[trial_id] = number
            known = self.past[number].intermediate_values
            if known and len(self.plan.objectives) == 1:
                epoch = min(known, key=lambda epoch: known[epoch])
                self._best[trial_id] = {"epoch": epoch, self.plan.search.metric: known[epoch]}
            self._ot_trials[trial_id] = optuna.Trial(self.study, self.study.trials[number]._trial_id)
            return self._config(number)
        number = self.numbers[trial_id] = len(self._tried)
        for attempt in itertools.count():
            self.study.sampler = make_sampler(self.plan, number, attempt, self._known_space)
            config: dict[str, Any] = super().suggest(trial_id) or {}
            params = self._ot_trials[trial_id].params
            if params not in self._tried:  # the same setting and seed would only give the same curve
                break
            self.study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
            if attempt >= REDRAWS:
                self.study.enqueue_trial(self._untried(number))
        self._tried.append(params)
        if self.ledger:
            self.ledger.add_trial(running(params, self._ot_trials[trial_id].distributions))
            self._keep()
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch. One reported again, after a restart, changes nothing."""
        epoch, metric = int(result["epoch"]), float(result[self.plan.search.metric])
        best = self._best.get(trial_id)
        if best is None or metric < best[self.plan.search.metric]:
            self._best[trial_id] = {name: result[name] for name in ("epoch", *self.plan.objectives)}
        # memory knows what the ledger holds, which would take long to read
        if epoch not in self.study._storage.get_trial(self._ot_trials[trial_id]._trial_id).intermediate_values:
            for study, number in self._records(trial_id):
                storage = study._storage
                found = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
                storage.set_trial_intermediate_value(found, epoch, metric)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended. Failures are told by `fail`, once their cause is known."""
        if error or result is None:
            return
        if not math.isfinite(result[self.plan.search.metric]):
            self.fail(trial_id)
            return
        self.on_trial_result(trial_id, result)
        if result["epoch"] >= self.plan.epochs:
            values = [float(self._best[trial_id][name]) for name in self.plan.objectives]
            self._tell(trial_id, TrialState.COMPLETE, values)
        else:
            self._tell(trial_id, TrialState.PRUNED)

    def fail(self, trial_id: str) -> None:
        """Tells Optuna that a trial failed."""
        self._tell(trial_id, TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing for Ray to keep: the ledger has it all."""
        Path(checkpoint_path).touch()

    def _config(self, number: int) -> dict[str, Any]:
        """The config with which an interrupted trial goes on: as proposed, but for rates that PBT has changed since."""
        config = self.plan.search.complete(self.past[number].params)
        changed = self.plan.trial_folder(number) / PARAMS
        if self.plan.scheduler == "pbt" and changed.is_file():
            config |= {name: value for name, value in json.loads(changed.read_text()).items() if name in RATES}
        return config

    def _untried(self, number: int) -> Point:
        """A setting of a finite space that was not tried yet."""
        axes = self.plan.search.axes
        values = itertools.product(*(axis.choices for axis in axes.values() if isinstance(axis, CategoricalDistribution)))
        points = [dict(zip(axes, point, strict=True)) for point in values]
        return random.Random(number).choice([point for point in points if point not in self._tried])

    def _tell(self, trial_id: str, state: TrialState, values: list[float] | None = None) -> None:
        for study, number in self._records(trial_id):
            study.tell(number, values, state)
        self._keep()

    def _keep(self) -> None:
        """Has a decision outlast this machine, where the search does, before it takes effect."""
        if self.ledger:
            self.plan.store.decide(self.plan.folder / STUDY)

    def _records(self, trial_id: str) -> list[tuple[optuna.Study, int]]:
        """The trial's number in the ledger, first, since what is not there did not happen, and in memory."""
        memory = (self.study, self._ot_trials[trial_id].number)
        return [(self.ledger, self.numbers[trial_id]), memory] if self.ledger else [memory]


def running(params: dict[str, Any], distributions: Any, **attributes: Any) -> FrozenTrial:
    """A trial as it begins, to be added to a study in one transaction."""
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes)


def retry_failed(plan: Plan) -> int:
    """Begins each failed trial anew, under a new number, from its last checkpoint; returns how many.

    The study keeps the failure; the folder is taken over, so that tables show each setting once.
    """
    study = open_study(plan.folder)
    trials = study.get_trials()
    known = {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in known]
    for trial in failed:
        study.add_trial(running(trial.params, trial.distributions, **{RETRY_OF: trial.number}))
    return len(failed)


def take_over_folders(plan: Plan, study: optuna.Study) -> None:
    """Gives each retry the folder of the trial that it repeats, if it does not have it yet."""
    for trial in study.get_trials():
        old, new = plan.trial_folder(trial.user_attrs.get(RETRY_OF, trial.number)), plan.trial_folder(trial.number)
        if RETRY_OF not in trial.user_attrs or not old.is_dir():
            continue
        inside = plan.folder.relative_to(plan.store.folder) if plan.store.uri else Path()
        plan.store.get(f"{inside / old.name}/*")  # the checkpoint, too
        if not (new / PARAMS if plan.store.uri else new).exists():  # the last that is put into a storage
            shutil.rmtree(new, ignore_errors=True)
            (old / "error.txt").unlink(missing_ok=True)
            old.rename(new)
            plan.store.put(*(path for path in new.rglob("*") if path.name != PARAMS))
            plan.store.put(new / PARAMS)
        plan.store.remove(str(inside / old.name))


def best_points(folder: Path, search: Search, count: int) -> list[Point]:
    """Settings of the best finished trials of an earlier search; axes that it did not vary stay at the baseline.

    Raises:
        FileNotFoundError, ValueError: no study there, a damaged one, or no finished trial within this search's ranges.
    """
    trials = open_study(folder).get_trials(states=[TrialState.COMPLETE])
    ranked = sorted(trials, key=lambda trial: trial.values[0])
    shared = [{name: trial.params[name] for name in search.axes if name in trial.params} for trial in ranked]
    fitting: list[Point] = []
    for params in shared:
        point = search.baseline() | params
        if point not in [search.baseline(), *fitting] and search.holds(point):
            fitting.append(point)
    if not fitting:
        raise ValueError(f"--points-from {folder}: no finished trial there lies within the ranges of {', '.join(search.axes)}")
    return fitting[:count]
