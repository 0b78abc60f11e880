"""Freeze-thaw search on Ray: after each step of a trial its worker goes on with whichever trial,
running, frozen or new, is likeliest to end best (`tune.choice`).

A decision depends on what the ledger holds, on the seed and on which trials are training, so that a
search that is resumed decides as one that nobody disturbed. A frozen trial is, to the ledger, one
that is running; those that are frozen when the search ends are stopped.
"""

import math
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dcgan.schema import METRIC
from tune.choice import CANDIDATES, STARTS, Curve, choose, curves_of, draw, step_of
from tune.plan import Plan
from tune.searches import Point
from tune.study import StudySearch

PROPOSALS = 5  # candidates that Optuna's TPE proposes, where that is the sampler


class FreezeThawSearch(StudySearch):
    """Proposes new settings and says which frozen trial goes on."""

    def __init__(self, plan: Plan, ledger: optuna.Study | None) -> None:
        super().__init__(plan, ledger)
        self.concurrent = None  # frozen trials would count
        assert plan.epochs_in_all
        self.budget = plan.epochs_in_all
        self.curves = curves_of(list(self.past.values()))
        self.training: dict[int, int] = {}
        """The epoch that each trial trains to before the next decision, by number."""
        self.ids: dict[int, str] = {}
        """Ray's id of each trial that has one in this session, by number."""
        self._choice: int | Point | None = None
        # at most: those that are frozen, new ones of an epoch each, and one that asks in vain
        most = len(self._frozen()) + max(0, self.left) + 1
        self.remaining = 0 if self.is_over() and not self._frozen() else most

    @property
    def left(self) -> int:
        """Epochs that nobody trains yet. A failed trial trained one that it could not report."""
        spent = sum(curve.trained + curve.failed for curve in self.curves.values())
        pending = [end - self.curves[n].trained for n, end in self.training.items()]
        return self.budget - spent - sum(max(0, epochs) for epochs in pending)

    def enqueued(self, plan: Plan, begun: int) -> list[Point]:
        """None: `suggest` names them."""
        return []

    def next_choice(self) -> int | Point | None:
        """What a free worker does next, which stands until it is begun: goes on with the trial of a
        number, or begins a new setting."""
        if self._choice is None and len(self.training) < self.plan.slots:
            self._choice = self._choose()
        return self._choice

    def is_over(self) -> bool:
        """Whether nothing trains, and nothing will."""
        return not self.training and self.next_choice() is None

    def _frozen(self) -> list[int]:
        return [n for n, curve in self.curves.items() if not curve.over and n not in self.training]

    def _choose(self) -> int | Point | None:
        plan, step = self.plan, step_of(self.plan.epochs)
        frozen = self._frozen()
        for number in frozen:  # only the ledger has yet to know that it has finished
            if self.curves[number].trained >= plan.epochs:
                return number
        if self.left <= 0:
            return None
        for number in frozen:  # decided before: it had begun the step
            if self.curves[number].trained % step or not self.curves[number].values:
                return number
        # the answer is to be of a whole run: what the best one lacks is kept for it, and the last
        # epochs go to what they can finish
        able = [number for number in self.curves if self.lacks(number) <= self.left]
        best = min(able, key=lambda number: self.curves[number].best, default=None)
        if best is not None and self.lacks(best) > self.left - step:
            return best if best in frozen else None
        rng = np.random.default_rng([plan.seed, self.budget - self.left, len(self.curves)])
        new = self._new_points(rng) if self.left >= plan.epochs else []
        frozen = [number for number in frozen if number in able]
        axes = plan.search.axes
        return choose(self.curves, frozen, self.training, new, axes, plan.epochs, rng)

    def lacks(self, number: int) -> int:
        """Epochs between what a trial has, or trains now, and its end; 0 if it has ended."""
        curve = self.curves[number]
        trained = max(curve.trained, self.training.get(number, 0))
        return 0 if curve.over else self.plan.epochs - trained

    def _new_points(self, rng: np.random.Generator) -> list[Point]:
        """Settings that may begin: the plan's next first point, or some by chance."""
        for point in self.plan.points:
            if point not in self._tried:
                return [point]
        axes = self.plan.search.axes
        drawn = [draw(axes, rng) for _ in range(CANDIDATES)]
        if self.plan.sampler == "tpe":
            drawn += self._proposed(int(rng.integers(2**31)))
        return [point for point in drawn if point not in self._tried]

    def _proposed(self, seed: int) -> list[Point]:
        """Settings that Optuna's TPE proposes, to which frozen trials are pruned ones."""
        axes = dict(self.plan.search.axes)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTS)
        study = optuna.create_study(sampler=sampler)
        for curve in self.curves.values():
            if curve.values and not curve.failed:
                study.add_trial(
                    optuna.create_trial(
                        state=TrialState.PRUNED,
                        value=curve.best,
                        params=curve.point,
                        distributions=axes,
                        intermediate_values=curve.values,
                    )
                )
        return [study.ask(axes).params for _ in range(PROPOSALS)]

    def begin(self, number: int) -> None:
        """Has a trial train its next step."""
        self._choice = None
        trained = self.curves[number].trained
        step = step_of(self.plan.epochs) - trained % step_of(self.plan.epochs)
        self.training[number] = min(trained + step, self.plan.epochs, trained + self.left)

    def suggest(self, trial_id: str) -> Any:
        """The config of the chosen trial, if it is new to Ray. Ends the search when it is over."""
        if self.is_over():
            self.stop_frozen()
            return Searcher.FINISHED
        choice = self.next_choice()
        if choice is None:
            return None
        if isinstance(choice, int):
            if choice in self.ids:  # the scheduler thaws it
                return None
            config, number = self._go_on(trial_id, choice), choice
        else:
            self.study.enqueue_trial(choice)
            trial = self.study.ask()
            config = self.plan.search(trial)
            number = len(self._tried)
            self.curves[number] = Curve(trial.params)
            self._begin(trial_id, trial)
        self.ids[number] = trial_id
        self.begin(number)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        super().on_trial_result(trial_id, result)
        self.curves[self.numbers[trial_id]].values[int(result["epoch"])] = float(result[METRIC])

    def freezes(self, number: int) -> bool:
        """Whether a trial that has reported an epoch is frozen for now."""
        if self.curves[number].trained < self.training.get(number, 0):
            return False
        self.training.pop(number, None)
        if self.next_choice() != number:
            return True
        self.begin(number)
        return False

    def _end(self, trial_id: str, state: TrialState, values: list[float] | None = None) -> None:
        super()._end(trial_id, state, values)
        number = self.numbers[trial_id]
        self.curves[number].over = True
        self.curves[number].failed = state == TrialState.FAIL
        self.training.pop(number, None)

    def stop_frozen(self) -> None:
        """Ends the trials that are left frozen."""
        for number in self._frozen():
            trial_id = self.ids.get(number, f"frozen {number}")
            if number not in self.ids:
                self._go_on(trial_id, number)
            self._end(trial_id, TrialState.PRUNED)


class Thawing(FIFOScheduler):
    """Ray's side: freezes by PAUSE, and thaws what the searcher chooses."""

    def __init__(self, searcher: FreezeThawSearch) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not math.isfinite(result[METRIC]) or result["epoch"] >= self.searcher.plan.epochs:
            return str(TrialScheduler.STOP)
        number = self.searcher.numbers[trial.trial_id]
        self.searcher.on_trial_result(trial.trial_id, result)  # the decision is made with it
        freezes = self.searcher.freezes(number)
        return str(TrialScheduler.PAUSE if freezes else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trials: list[Trial] = tune_controller.get_trials()
        for trial in trials:
            if trial.status == Trial.PENDING:
                return trial
        paused = {
            self.searcher.numbers[trial.trial_id]: trial
            for trial in trials
            if trial.status == Trial.PAUSED
        }
        if self.searcher.is_over():
            self.searcher.stop_frozen()  # with those that Ray does not know
            for trial in paused.values():
                tune_controller.stop_trial(trial)
            return None
        choice = self.searcher.next_choice()
        if not isinstance(choice, int) or choice not in paused:  # Ray may yet have to pause it
            return None
        self.searcher.begin(choice)
        return paused[choice]
