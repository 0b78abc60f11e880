"""A search over recorded learning curves, in simulated time.

The very searcher and schedulers that run on Ray are driven by a queue of events: each epoch takes
the seconds that it took when it was recorded. A search of hours takes less than a second, so that
ways of searching are compared over many seeds, and search code is tested at every step. Nothing
trains: a proposed setting gets the curve of the nearest recorded one (cf. Salinas et al. 2022, Syne
Tune).
"""

import heapq
import math
from dataclasses import dataclass
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
    """As much of a Ray trial as the schedulers use, and its learning curve."""

    trial_id: str
    config: Point
    curve: list[Row]  # shorter than the search's epochs where it diverged
    setting: int = 0  # the number of the recorded setting whose curve that is
    trained: int = 0  # epochs that a real trial would have in its folder
    reported: int = 0
    status: str = Trial.PENDING
    experiment_tag: str = ""

    @property
    def rows(self) -> list[Row]:
        """The trained epochs."""
        return self.curve[: self.trained]

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class Simulation:
    """A search under way, with the curves of one seed. To the schedulers it is Ray's
    TuneController, whose order of calls it keeps."""

    def __init__(
        self, plan: Plan, curves: Curves, curve_seed: int, ledger: optuna.Study | None
    ) -> None:
        self.plan, self.curves, self.curve_seed = plan, curves, curve_seed
        self.searcher: StudySearch = plan.scheduler.make_searcher(plan, ledger)
        # its methods want Ray's own types
        self.scheduler: Any = plan.scheduler.make(plan, self.searcher)
        self.trials: list[SimulatedTrial] = []
        self.progress: list[tuple[float, int, float]] = []
        """After each trained epoch: seconds since the start, epochs, and the best metric so far."""
        self.recommended: list[int] = []
        """After each trained epoch: the recorded setting of the trial with that metric."""
        self.seconds = 0.0
        # when a trial reports next; the order of pushing decides between equal times
        self.events: list[tuple[float, int, SimulatedTrial]] = []
        self.pushed = 0

    @property
    def best(self) -> float:
        """The best metric so far."""
        return self.progress[-1][2] if self.progress else math.inf

    def get_trials(self) -> list[SimulatedTrial]:
        return self.trials

    def get_live_trials(self) -> list[SimulatedTrial]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def start_trials(self) -> None:
        """Adds the trials that may be proposed by now, and gives idle workers something to do."""
        self.add_trials()
        while len(self.events) < self.plan.slots:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                break
            thawed = trial.status == Trial.PAUSED
            trial.status = Trial.RUNNING
            if thawed and is_collapsed(trial.rows, self.plan):
                self.fail(trial)
            else:
                self.push(trial)
            self.add_trials()

    def add_trials(self) -> None:
        """Adds the trials that may be proposed by now."""
        while len(self.trials) < self.searcher.remaining:
            busy = [trial for trial in self.get_live_trials() if trial.status != Trial.PAUSED]
            if len(busy) >= self.plan.slots or not self.add_trial():
                break

    def add_trial(self) -> bool:
        """Adds a new trial, or one of an earlier session, with the epochs that it had reported; or
        none, if the searcher wants none now."""
        trial_id = str(len(self.trials))
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return False
        begun = self.searcher.past.get(self.searcher.numbers[trial_id])
        setting = self.curves.nearest_setting(config, self.curve_seed)
        trial = SimulatedTrial(
            trial_id=trial_id,
            config=config,
            curve=self.curves.rows[setting, self.curve_seed],
            setting=setting,
            trained=len(begun.intermediate_values) if begun else 0,
        )
        self.trials.append(trial)
        self.scheduler.on_trial_add(self, trial)
        return True

    def push(self, trial: SimulatedTrial) -> None:
        """Plans a trial's next report: at once if the epoch is trained, else when it will be."""
        seconds = 0.0
        if trial.reported == trial.trained and trial.curve:
            # an epoch that diverges takes as long as the last one before
            row = trial.curve[min(trial.trained, len(trial.curve) - 1)]
            seconds = row["seconds_train"] + row["seconds_eval"]
        heapq.heappush(self.events, (self.seconds + seconds, self.pushed, trial))
        self.pushed += 1

    def step(self) -> None:
        """Takes the next event: an epoch is reported, or diverges."""
        self.seconds, _, trial = heapq.heappop(self.events)
        if trial.reported == trial.trained:
            if trial.trained >= len(trial.curve):
                self.fail(trial)
                return
            metric = trial.curve[trial.trained][METRIC]
            epochs = len(self.progress) + 1
            known = self.recommended[-1] if self.recommended else trial.setting
            self.recommended.append(trial.setting if metric < self.best else known)
            self.progress.append((self.seconds, epochs, min(self.best, metric)))
            trial.trained += 1
        trial.reported += 1
        self.report(trial, trial.rows[trial.reported - 1])

    def report(self, trial: SimulatedTrial, row: Row) -> None:
        """Has the scheduler decide on an epoch; a trial that goes on does what `tune.trainable`
        does: trains the next epoch, unless that was the last or the trial is given up."""
        decision = self.scheduler.on_trial_result(self, trial, row)
        if decision == TrialScheduler.STOP:
            self.complete(trial, row)
            return
        self.searcher.on_trial_result(trial.trial_id, row)
        if decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
        elif is_collapsed(trial.rows[: trial.reported], self.plan):
            self.fail(trial)
        elif row["epoch"] >= self.plan.epochs:
            self.complete(trial, row)
        else:
            self.push(trial)

    def stop_trial(self, trial: SimulatedTrial) -> None:
        """Ends a paused trial, as Ray does when its scheduler asks for that."""
        self.scheduler.on_trial_remove(self, trial)
        self.searcher.on_trial_complete(trial.trial_id)
        trial.status = Trial.TERMINATED

    def complete(self, trial: SimulatedTrial, row: Row) -> None:
        self.scheduler.on_trial_complete(self, trial, row)
        self.searcher.on_trial_complete(trial.trial_id, row)
        trial.status = Trial.TERMINATED

    def fail(self, trial: SimulatedTrial) -> None:
        self.scheduler.on_trial_error(self, trial)
        self.searcher.fail(trial.trial_id)
        trial.status = Trial.ERROR


def is_collapsed(rows: list[Row], plan: Plan) -> bool:
    """Whether a trial gives up after these epochs, as `tune.trainable` does."""
    try:
        check_collapse(rows, plan.patience)
    except FloatingPointError:
        return True
    return False


def simulate(
    plan: Plan,
    curves: Curves,
    curve_seed: int,
    ledger: optuna.Study | None = None,
    max_events: int | None = None,
    target: float = -math.inf,
    least_epochs: int = 0,
) -> Simulation:
    """Runs a plan, or what the ledger leaves of it.

    Args:
        ledger: the study to record in and to go on from; None keeps everything in memory.
        max_events: epochs reported after which all is dropped, as if the machine had died.
        target: ends once the best metric is no more than this,
        least_epochs: and that many epochs were trained.
    """
    simulation = Simulation(plan, curves, curve_seed, ledger)
    simulation.start_trials()
    steps = 0
    while simulation.events and steps != max_events:
        if simulation.best <= target and len(simulation.progress) >= least_epochs:
            break
        simulation.step()
        simulation.start_trials()
        steps += 1
    waiting = simulation.get_live_trials() and not simulation.events
    assert not waiting, "trials wait for one another for ever"
    return simulation
