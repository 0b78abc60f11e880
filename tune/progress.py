"""What a person sees while a search runs: trials, rungs, the best so far and the time left."""

import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune.experiment import Trial

from dcgan.cli import duration
from tune.plan import Plan
from tune.study import StudySearch

QUIET_SECONDS = 15.0  # between two status lines where they cannot overwrite each other
REDRAW_SECONDS = 0.2  # where they can


class Progress(ray_tune.Callback):
    """Prints a line for each ended trial, and a status line that overwrites itself on a terminal."""

    def __init__(self, plan: Plan, searcher: StudySearch) -> None:
        self.plan = plan
        self.ended: dict[str, int] = {}  # epochs of the trials that ended, by name
        self.failed = sum(trial.state == TrialState.FAIL for trial in searcher.past.values())
        self.reached: dict[str, int] = {}  # epoch of each trial, by name
        self.best_of: dict[str, tuple[float, int]] = {}  # metric and epoch of each trial's best epoch
        for number, trial in searcher.past.items():
            name = plan.trial_folder(number).name
            for epoch, value in trial.intermediate_values.items():
                self._note(name, epoch, value)
            if trial.state.is_finished():
                self.ended[name] = trial.last_step or 0
        self.total = len(self.ended) + searcher.remaining
        self.start = self.printed = time.monotonic()
        self.epochs = 0  # new ones since this process began
        self.seconds = 0.0  # that trials spent on them

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.start = self.printed = time.monotonic()

    def _note(self, name: str, epoch: int, value: float) -> None:
        self.reached[name] = max(epoch, self.reached.get(name, 0))
        self.best_of[name] = min((value, epoch), self.best_of.get(name, (math.inf, 0)))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if result["epoch"] > self.reached.get(str(trial), 0):  # else reported again, after a restart
            self.epochs += 1
            self.seconds += result["seconds_train"] + result["seconds_eval"]
        self._note(str(trial), result["epoch"], result[self.plan.search.metric])
        self._status()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        epoch = self.ended[str(trial)] = self.reached[str(trial)]
        value, best = self.best_of[str(trial)]
        verb = "finished" if epoch >= self.plan.epochs else f"stopped at epoch {epoch}"
        self._line(f"{trial} {verb}: best {self.plan.search.metric} {value:.2f} at epoch {best}{self._settings(trial)}")
        self._status()
        forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cause = cause_of(trial)
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]  # some say nothing, such as a bare assert
        self.ended[str(trial)] = self.reached.setdefault(str(trial), 0)
        self.failed += 1
        self._line(f"{trial} failed: {reason}{self._settings(trial)}")
        self._status()
        forget(trial)

    def _settings(self, trial: Trial) -> str:
        values = (f"{name} {format_value(trial.config[name])}" for name in self.plan.search.axes)
        return "  (" + ", ".join(values) + ")" if self.plan.search.axes else ""

    def status(self) -> str:
        """The status line."""
        marks = [*self.plan.rungs, self.plan.epochs]
        rungs = "  ".join(f"{mark}:{sum(epoch >= mark for epoch in self.reached.values())}" for mark in marks)
        value, epoch = min(self.best_of.values(), default=(math.inf, 0))
        parts = [
            f"{duration(time.monotonic() - self.start)}",
            f"trials {len(self.ended)}/{self.total}" + (f", {self.failed} failed" if self.failed else ""),
            f"reached epoch {rungs}",
            f"best {self.plan.search.metric} {value:.2f} (epoch {epoch})" if epoch else "no result yet",
            f"about {duration(self._seconds_left())} left" if self.epochs else "starting",
        ]
        return " · ".join(parts)

    def _seconds_left(self) -> float:
        """Epochs still to train, guessed from the trials that ended, at the pace of the epochs so far."""
        lengths = self.ended.values()
        typical = sum(lengths) / len(lengths) if len(lengths) >= 3 else self.plan.expected_epochs()
        running = [epoch for name, epoch in self.reached.items() if name not in self.ended]
        # a trial already past the typical length is likely a survivor, which trains to the end
        left = sum(typical - epoch if epoch < typical else self.plan.epochs - epoch for epoch in running)
        left += typical * (self.total - len(self.ended) - len(running))
        return float(left * self.seconds / self.epochs / self.plan.concurrent)

    def _status(self) -> None:
        terminal = sys.stdout.isatty()
        if time.monotonic() - self.printed <= (REDRAW_SECONDS if terminal else QUIET_SECONDS):
            return
        self.printed = time.monotonic()
        if terminal:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be overwritten
            print(f"\r\x1b[K{self.status()[:width]}", end="", flush=True)
        else:
            print(self.status(), flush=True)

    def _line(self, text: str) -> None:
        if sys.stdout.isatty():
            text = f"\r\x1b[K{text}"
            self.printed = -math.inf  # the status line is gone
        print(text, flush=True)


def forget(trial: Trial) -> None:
    """Drops the statistics that Ray keeps of every column of an ended trial, some 60 kB, which nobody reads."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()


def cause_of(trial: Trial) -> BaseException:
    """The exception that a trial failed of. (Ray's `get_error` looks where it has not copied it yet.)"""
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause: BaseException = getattr(error, "cause", error)
    return cause


def format_value(value: Any) -> str:
    """A setting in few characters: floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
