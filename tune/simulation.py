"""A search over recorded learning curves, in simulated time.

The very searcher and schedulers that run on Ray are driven by a queue of events: each epoch takes
the seconds that it took when it was recorded. A search of hours takes less than a second, so that
ways of searching are compared over many seeds, and search code is tested at every step. Nothing
trains: a proposed setting gets the curve of the nearest recorded one (cf. Salinas et al. 2022, Syne
Tune).
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from dcgan.schema import METRIC, Row
from tune.curves import Curves
from tune.plan import Plan
from tune.searches import Point
from tune.study import StudySearch
from tune.trainable import check_collapse


@dataclass(eq=False, kw_only=True, slots=True)
class SimulatedTrial:
    """As much of a Ray trial as the schedulers use, and the rows that a real one keeps in its
    folder."""

    trial_id: str
    config: Point
    rows: list[Row]
    reported: int = 0
    status: str = Trial.PENDING
    experiment_tag: str = ""

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a simulated search went."""

    progress: list[tuple[float, int, float]] = field(default_factory=list)
    """After each epoch: seconds since the start, epochs trained so far, and the best metric among
    them."""
    trials: list[SimulatedTrial] = field(default_factory=list)


class Simulation:
    """A search under way. To the schedulers it is Ray's TuneController, whose order of calls it
    keeps."""

    def __init__(
        self, plan: Plan, curves: Curves, workers: int, curve_seed: int, ledger: optuna.Study | None
    ) -> None:
        self.plan, self.curves, self.workers, self.curve_seed = plan, curves, workers, curve_seed
        self.searcher = StudySearch(plan, ledger)
        # its methods want Ray's own types
        self.scheduler: Any = plan.scheduler.make(plan, self.searcher)
        self.outcome = Outcome()
        self.seconds = 0.0
        # the order of pushing decides between equal times
        self.events: list[tuple[float, int, SimulatedTrial]] = []
        self.pushed = 0

    def get_trials(self) -> list[SimulatedTrial]:
        return self.outcome.trials

    def get_live_trials(self) -> list[SimulatedTrial]:
        return [trial for trial in self.outcome.trials if not trial.is_finished()]

    def start_trials(self) -> None:
        """Adds the trials that may be proposed by now, and gives idle workers something to do."""
        remaining = self.searcher.remaining
        while len(self.outcome.trials) < remaining and len(self.get_live_trials()) < self.workers:
            self.add_trial()
        while len(self.events) < self.workers:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                break
            trial.status = Trial.RUNNING
            self.push(trial)

    def add_trial(self) -> None:
        """Adds a trial: a new one, or one that an earlier session left, with the epochs that this
        one reported."""
        trial_id = str(len(self.outcome.trials))
        config = self.searcher.suggest(trial_id)
        begun = self.searcher.past.get(self.searcher.numbers[trial_id])
        known = len(begun.intermediate_values) if begun else 0
        rows = self.curves.nearest(config, self.curve_seed)[:known]
        self.outcome.trials.append(
            SimulatedTrial(trial_id=trial_id, config=config, rows=list(rows))
        )
        self.scheduler.on_trial_add(self, self.outcome.trials[-1])

    def push(self, trial: SimulatedTrial) -> None:
        """Plans a trial's next report: at once if the epoch is trained already, else when it will
        be."""
        seconds, curve = 0.0, self.curves.nearest(trial.config, self.curve_seed)
        if trial.reported == len(trial.rows) and curve:
            # an epoch that diverges takes as long as the last one before
            row = curve[min(len(trial.rows), len(curve) - 1)]
            seconds = row["seconds_train"] + row["seconds_eval"]
        heapq.heappush(self.events, (self.seconds + seconds, self.pushed, trial))
        self.pushed += 1

    def step(self) -> None:
        """Takes the next event: an epoch is reported, or diverges."""
        self.seconds, _, trial = heapq.heappop(self.events)
        if trial.reported == len(trial.rows):
            curve = self.curves.nearest(trial.config, self.curve_seed)
            if trial.reported >= len(curve):  # diverged
                self.fail(trial)
                return
            trial.rows.append(curve[trial.reported])
            self.count(trial.rows[-1])
        trial.reported += 1
        self.report(trial, trial.rows[trial.reported - 1])

    def count(self, row: Row) -> None:
        """Enters a trained epoch in the outcome."""
        epochs, best = self.outcome.progress[-1][1:] if self.outcome.progress else (0, math.inf)
        self.outcome.progress.append((self.seconds, epochs + 1, min(best, row[METRIC])))

    def report(self, trial: SimulatedTrial, row: Row) -> None:
        """Tells scheduler and searcher of an epoch, and does what they decide."""
        decision = self.scheduler.on_trial_result(self, trial, row)
        if decision == TrialScheduler.STOP:
            self.complete(trial, row)
            return
        self.searcher.on_trial_result(trial.trial_id, row)
        self.go_on(trial, row)

    def go_on(self, trial: SimulatedTrial, row: Row) -> None:
        """What `tune.trainable` does after a report: the next epoch, unless there is none or the
        trial is given up."""
        try:
            check_collapse(trial.rows[: trial.reported], self.plan.patience)
        except FloatingPointError:
            self.fail(trial)
            return
        if row["epoch"] >= self.plan.epochs:
            self.complete(trial, row)
        else:
            self.push(trial)

    def complete(self, trial: SimulatedTrial, row: Row) -> None:
        self.scheduler.on_trial_complete(self, trial, row)
        self.searcher.on_trial_complete(trial.trial_id, row)
        trial.status = Trial.TERMINATED

    def fail(self, trial: SimulatedTrial) -> None:
        self.scheduler.on_trial_error(self, trial)
        self.searcher.fail(trial.trial_id)
        trial.status = Trial.ERROR


def simulate(
    plan: Plan,
    curves: Curves,
    workers: int,
    curve_seed: int,
    ledger: optuna.Study | None = None,
    max_events: int | None = None,
    target: float = -math.inf,
) -> Outcome:
    """Runs a plan, or what the ledger leaves of it.

    Args:
        workers: trials that train at the same time.
        curve_seed: the seed whose curves count.
        ledger: the study to record in and to go on from; None keeps everything in memory.
        max_events: epochs reported after which all is dropped, as if the machine had died.
        target: ends once the best metric is no more than this.
    """
    simulation = Simulation(plan, curves, workers, curve_seed, ledger)
    outcome = simulation.outcome
    steps = 0

    def done() -> bool:
        reached = bool(outcome.progress) and outcome.progress[-1][2] <= target
        return reached or steps == max_events

    simulation.start_trials()
    while simulation.events and not done():
        simulation.step()
        simulation.start_trials()
        steps += 1
    waiting = simulation.get_live_trials() and not simulation.events
    assert not waiting, "trials wait for one another for ever"
    return outcome
