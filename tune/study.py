"""Optuna's part in a search: proposes settings, and writes each step into the ledger."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState
from ray.tune.search import Searcher

from dcgan.schema import METRIC, OBJECTIVES, STUDY_FILE
from tune.ledger import DIRECTIONS, RETRY_OF, record_epoch, running
from tune.plan import Plan
from tune.searches import Point

# few random trials first, and many candidates for each later one: measured by tune.simulate
# (docs/log.md); the same for any number of trials, so that more can be asked for later
STARTUP_TRIALS = 5
CANDIDATES = 200
REDRAWS = 10  # proposals that were tried before; then chance picks one that was not


class Numbers(dict[str, int]):
    """Optuna's number of each of Ray's trial ids; pickled, as Ray does with every trial, empty."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Numbers, ()


class StudySearch(Searcher):
    """Proposes settings from a study in memory, and writes each step to a ledger, too: the study in
    the search's folder, or None for simulations.

    Trials that the scheduler stopped are recorded as PRUNED with all their intermediate values,
    finished ones as COMPLETE with the objectives of their best epoch, failed ones as FAIL. (Ray's
    OptunaSearch records stopped trials as COMPLETE, with the value of their last epoch.)
    """

    def __init__(self, plan: Plan, ledger: optuna.Study | None) -> None:
        past = ledger.get_trials() if ledger else []
        retries = sum(RETRY_OF in trial.user_attrs for trial in past)
        super().__init__(METRIC, OBJECTIVES[METRIC])
        directions = [DIRECTIONS[OBJECTIVES[name]] for name in plan.objectives]
        self.study = optuna.create_study(directions=directions)
        self.study.add_trials(past)
        for point in self.enqueued(plan, len(past) - retries):
            self.study.enqueue_trial(point)
        self.plan = plan
        self.ledger = ledger
        self.past = {trial.number: trial for trial in past}
        """Trials of earlier sessions as they were when this one began."""
        self.numbers = Numbers()
        self._begun = [trial.number for trial in past if trial.state == TrialState.RUNNING]
        self._tried = [trial.params for trial in past]
        # of `study`; remembers which trials it has seen, so that TPE need not look at all of them
        self._space_so_far = IntersectionSearchSpace(include_pruned=True)
        # of each trial, by Ray's id: its number in memory, where proposals that were tried before
        # have one, too; its epochs in the ledger; and the objectives of its best epoch
        self._in_memory: dict[str, int] = {}
        self._recorded: dict[str, set[int]] = {}
        self._best: dict[str, list[float]] = {}
        self.concurrent: int | None = plan.slots
        """Trials that Ray may have at a time."""
        self.remaining = plan.num_trials + retries - len(past) + len(self._begun)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The complete config of the next trial: one that was interrupted, or a new one."""
        if self._begun:  # the trial will report its epochs again
            return self._go_on(trial_id, self._begun.pop(0))
        number = len(self._tried)
        for attempt in itertools.count():
            self.study.sampler = self._make_sampler(number, attempt)
            trial = self.study.ask()
            config = self.plan.search(trial)
            if trial.params not in self._tried:
                break
            # the same setting and seed would only give the same curve
            self.study.tell(trial, state=TrialState.FAIL)
            if attempt >= REDRAWS:
                self.study.enqueue_trial(self._untried(number))
        self._begin(trial_id, trial)
        return config

    def enqueued(self, plan: Plan, begun: int) -> list[Point]:
        """The plan's first points that come next, after as many trials as have begun."""
        return plan.points[begun:]

    def _go_on(self, trial_id: str, number: int) -> dict[str, Any]:
        """Takes up a trial of an earlier session; returns its complete config."""
        self.numbers[trial_id] = self._in_memory[trial_id] = number
        self._recorded[trial_id] = set(self.past[number].intermediate_values)
        return self.plan.search.complete(self.past[number].params)

    def _begin(self, trial_id: str, trial: optuna.Trial) -> None:
        """Records that a new trial begins."""
        self.numbers[trial_id] = len(self._tried)
        self._in_memory[trial_id] = trial.number
        self._recorded[trial_id] = set()
        self._tried.append(trial.params)
        if self.ledger:
            self.ledger.add_trial(running(trial.params, trial.distributions))
            self._commit()

    def _make_sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        """The sampler of one proposal, whose seed depends on the trial's number and the attempt
        alone, so that no random state need be kept."""
        seeds = np.random.SeedSequence([self.plan.seed, number, attempt])
        seed = int(seeds.generate_state(1)[0])
        if self.plan.sampler != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        tpe = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, n_ei_candidates=CANDIDATES
        )
        tpe._search_space = self._space_so_far  # private: it takes none from outside
        return tpe

    def _untried(self, number: int) -> Point:
        """A setting of a finite space that was not tried yet."""
        points = [point for point in self.plan.search.points() if point not in self._tried]
        return random.Random(number).choice(points)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch. One reported again, after a restart, changes nothing."""
        epoch, values = int(result["epoch"]), [float(result[name]) for name in self.plan.objectives]
        if trial_id not in self._best or values[0] < self._best[trial_id][0]:
            self._best[trial_id] = values
        if epoch not in self._recorded[trial_id]:
            for study, number in self._records(trial_id):
                record_epoch(study, number, epoch, values[0])
            self._recorded[trial_id].add(epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Records how a trial ended. Failures are recorded by `fail`, once their cause is known."""
        if error or result is None:
            return
        if not math.isfinite(result[METRIC]):
            self.fail(trial_id)
            return
        self.on_trial_result(trial_id, result)
        if result["epoch"] >= self.plan.epochs:
            self._end(trial_id, TrialState.COMPLETE, self._best[trial_id])
        else:
            self._end(trial_id, TrialState.PRUNED)

    def fail(self, trial_id: str) -> None:
        """Records that a trial failed."""
        self._end(trial_id, TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing for Ray to keep: the ledger has it all."""
        Path(checkpoint_path).touch()

    def _end(self, trial_id: str, state: TrialState, values: list[float] | None = None) -> None:
        for study, number in self._records(trial_id):
            study.tell(number, values, state)
        self._commit()

    def _commit(self) -> None:
        """Has a decision outlast this machine, where the search does, before it takes effect."""
        if self.ledger:
            self.plan.store.commit(self.plan.folder / STUDY_FILE)

    def _records(self, trial_id: str) -> list[tuple[optuna.Study, int]]:
        """The studies that record a trial, and its number in each: first the ledger, since what is
        not in it did not happen; then memory."""
        memory = (self.study, self._in_memory[trial_id])
        return [(self.ledger, self.numbers[trial_id]), memory] if self.ledger else [memory]
