"""What a person sees while a search runs: trials, rungs, the best so far and the time left."""

import shutil
import sys
import time
from typing import Any

from ray import tune as ray_tune
from ray.tune.experiment import Trial

from dcgan.cli import duration
from tune.plan import Plan

QUIET_SECONDS = 15.0  # between two status lines where they cannot overwrite each other


class Progress(ray_tune.Callback):
    """Prints a line for each ended trial, and a status line that overwrites itself on a terminal."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.best: dict[str, Any] = {}  # trial, epoch and metric of the best epoch so far
        self.best_of: dict[str, dict[str, Any]] = {}  # the same for each trial
        self.start = self.printed = time.monotonic()
        self.epochs = 0  # reported since this process began
        self.seconds = 0.0  # that trials spent on them

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.start = self.printed = time.monotonic()
        self.epochs, self.seconds = 0, 0.0

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "best_of": self.best_of}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.best_of = state["best"], state["best_of"]

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        metric = self.plan.search.metric
        entry = {"trial": trial.trial_id, "epoch": result["epoch"], metric: result[metric]}
        for best in (self.best, self.best_of.setdefault(trial.trial_id, {})):
            if not best or entry[metric] < best[metric]:
                best.update(entry)
        self.epochs += 1
        self.seconds += result["seconds_train"] + result["seconds_eval"]
        self._status(trials)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        epoch = trial.last_result["epoch"]
        best = self.best_of[trial.trial_id]
        verb = "finished" if epoch >= self.plan.epochs else f"stopped at epoch {epoch}"
        metric = self.plan.search.metric
        self._line(f"{trial} {verb}: best {metric} {best[metric]:.2f} at epoch {best['epoch']}{self._settings(trial)}")
        self._status(trials)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = trial.get_error()
        reason = str(getattr(error, "cause", None) or error or "unknown error").strip().splitlines()[-1]
        self._line(f"{trial} failed: {reason}{self._settings(trial)}")
        self._status(trials)

    def _settings(self, trial: Trial) -> str:
        values = (f"{name} {format_value(trial.config[name])}" for name in self.plan.search.axes)
        return "  (" + ", ".join(values) + ")" if self.plan.search.axes else ""

    def status(self, trials: list[Trial]) -> str:
        """The status line."""
        ended = sum(t.status in (Trial.TERMINATED, Trial.ERROR) for t in trials)
        failed = sum(t.status == Trial.ERROR for t in trials)
        reached = [(t.last_result or {}).get("epoch", 0) for t in trials]
        marks = [*self.plan.rungs, self.plan.epochs]
        rungs = "  ".join(f"{mark}:{sum(epoch >= mark for epoch in reached)}" for mark in marks)
        metric = self.plan.search.metric
        best = f"best {metric} {self.best[metric]:.2f} (epoch {self.best['epoch']})" if self.best else "no result yet"
        elapsed = time.monotonic() - self.start
        parts = [
            f"{duration(elapsed)}",
            f"trials {ended}/{self.plan.num_trials}" + (f", {failed} failed" if failed else ""),
            f"reached epoch {rungs}",
            best,
            f"about {duration(self._seconds_left(trials))} left" if self.epochs else "starting",
        ]
        return " · ".join(parts)

    def _seconds_left(self, trials: list[Trial]) -> float:
        """Epochs still to train, guessed from the trials that ended, at the pace of the epochs so far."""
        lengths = [(t.last_result or {}).get("epoch", 0) for t in trials if t.is_finished()]
        typical = sum(lengths) / len(lengths) if len(lengths) >= 3 else self.plan.expected_epochs()
        running = [(t.last_result or {}).get("epoch", 0) for t in trials if not t.is_finished()]
        # a trial already past the typical length is likely a survivor, which trains to the end
        left = sum(typical - epoch if epoch < typical else self.plan.epochs - epoch for epoch in running)
        left += typical * (self.plan.num_trials - len(trials))
        return float(left * self.seconds / self.epochs / self.plan.slots)

    def _status(self, trials: list[Trial]) -> None:
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be overwritten
            print(f"\r\x1b[K{self.status(trials)[:width]}", end="", flush=True)
        elif time.monotonic() - self.printed > QUIET_SECONDS:
            self.printed = time.monotonic()
            print(self.status(trials), flush=True)

    def _line(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)


def format_value(value: Any) -> str:
    """A setting in few characters: floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
