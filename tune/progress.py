"""What a person sees while a search runs: trials, rungs, the best so far and the time left."""

import math
import sys
import time
from typing import Any

from optuna.trial import TrialState
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from tqdm import tqdm

from dcgan.cli import duration, short
from dcgan.schema import METRIC, Row
from tune.plan import Plan
from tune.runner import cause_of
from tune.study import StudySearch

QUIET_SECONDS = 15.0  # between two status lines where they cannot overwrite each other
REDRAW_SECONDS = 0.2  # where they can


class Progress(ray_tune.Callback):
    """Prints a line for each ended trial, and a status line that a terminal overwrites."""

    def __init__(self, plan: Plan, searcher: StudySearch) -> None:
        self.plan = plan
        self.ended: dict[str, int] = {}  # epochs of the trials that ended, by name
        past = searcher.past.values()
        self.failed = sum(trial.state == TrialState.FAIL for trial in past)
        self.reached: dict[str, int] = {}  # epoch of each trial, by name
        # metric and epoch of each trial's best epoch, by name
        self.best_of: dict[str, tuple[float, int]] = {}
        for number, trial in searcher.past.items():
            name = plan.trial_folder(number).name
            for epoch, value in trial.intermediate_values.items():
                self._note(name, epoch, value)
            if trial.state.is_finished():
                self.ended[name] = trial.last_step or 0
        self.total = len(self.ended) + searcher.remaining
        self.epochs = 0  # new ones since this process began
        self.seconds = 0.0  # that trials spent on them
        self.start = self.printed = time.monotonic()
        self.bar: tqdm[Any] | None = None  # the status line, on a terminal

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.start = self.printed = time.monotonic()
        if sys.stdout.isatty():
            self.bar = tqdm(bar_format="{desc}", file=sys.stdout, leave=False, dynamic_ncols=True)
            self.bar.set_description_str(self.status())  # the first epoch takes a while

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Row, **info: Any
    ) -> None:
        # an epoch that is not new is reported again, after a restart
        if result["epoch"] > self.reached.get(str(trial), 0):
            self.epochs += 1
            self.seconds += result["seconds_train"] + result["seconds_eval"]
        self._note(str(trial), result["epoch"], result[METRIC])
        self._show_status()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        epoch = self.ended[str(trial)] = self.reached[str(trial)]
        value, best = self.best_of[str(trial)]
        verb = "finished" if epoch >= self.plan.epochs else f"stopped at epoch {epoch}"
        self._end(trial, f"{verb}: best {METRIC} {value:.2f} at epoch {best}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        cause = cause_of(trial)
        # some say nothing, such as a bare assert
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
        self.ended[str(trial)] = self.reached.setdefault(str(trial), 0)
        self.failed += 1
        self._end(trial, f"failed: {reason}")

    def status(self) -> str:
        """The status line."""
        trials = f"trials {len(self.ended)}/{self.total}"
        if self.plan.epochs_in_all:
            spent = f"epochs {sum(self.reached.values())}/{self.plan.epochs_in_all}"
            trials = f"trials {len(self.reached)}, {spent}"
        if self.failed:
            trials += f", {self.failed} failed"
        marks, epochs = [*self.plan.rungs, self.plan.epochs], self.reached.values()
        counts = [f"{mark}:{sum(epoch >= mark for epoch in epochs)}" for mark in marks]
        reached = f"reached epoch {'  '.join(counts)}"
        best, left = "no result yet", "starting"
        if self.best_of:
            value, epoch = min(self.best_of.values())
            best = f"best {METRIC} {value:.2f} (epoch {epoch})"
        if self.epochs:
            left = f"about {duration(self._seconds_left())} left"
        return " · ".join([duration(time.monotonic() - self.start), trials, reached, best, left])

    def _note(self, name: str, epoch: int, value: float) -> None:
        self.reached[name] = max(epoch, self.reached.get(name, 0))
        self.best_of[name] = min((value, epoch), self.best_of.get(name, (math.inf, 0)))

    def _seconds_left(self) -> float:
        """The epochs to train, guessed from the trials that ended, at the pace so far."""
        pace = self.seconds / self.epochs / self.plan.concurrent
        if self.plan.epochs_in_all:
            return max(0, self.plan.epochs_in_all - sum(self.reached.values())) * pace
        lengths = self.ended.values()
        typical = self.plan.expected_epochs()
        if len(lengths) >= 3:
            typical = sum(lengths) / len(lengths)
        running = [epoch for name, epoch in self.reached.items() if name not in self.ended]
        left = typical * (self.total - len(self.ended) - len(running))
        for epoch in running:
            # a trial already past the typical length is likely a survivor, which trains to the end
            left += typical - epoch if epoch < typical else self.plan.epochs - epoch
        return left * pace

    def _end(self, trial: Trial, how: str) -> None:
        """Prints how a trial ended, with its settings."""
        names = self.plan.search.axes
        settings = ", ".join(f"{name} {short(trial.config[name])}" for name in names)
        tqdm.write(f"{trial} {how}" + (f"  ({settings})" if settings else ""))
        sys.stdout.flush()
        self._show_status()
        # statistics that Ray keeps of every column, some 60 kB a trial, which nobody reads
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    def _show_status(self) -> None:
        pause = QUIET_SECONDS if self.bar is None else REDRAW_SECONDS
        if time.monotonic() - self.printed <= pause:
            return
        self.printed = time.monotonic()
        if self.bar is None:
            print(self.status(), flush=True)
        else:
            self.bar.set_description_str(self.status())
