"""Runs a plan on Ray: Optuna proposes, ASHA stops, Ray trains and keeps what was computed."""

import contextlib
import logging
import os
import signal
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from tune.plan import REDUCTION_FACTOR, Plan, make_sampler
from tune.progress import Progress
from tune.trainable import trainable

MAX_FAILURES = 2  # of one trial, by a killed worker or a lost node; it goes on from its last checkpoint


def trial_name(trial: Trial) -> str:
    """The name of a trial and of its folder."""
    return f"trial_{trial.trial_id}"


def run_plan(plan: Plan) -> bool:
    """Runs the plan, or goes on with it where its folder holds an interrupted search. Returns whether it was interrupted.

    Raises:
        OSError: the search is running elsewhere, or its files cannot be written or read.
    """
    lock = FileLock(plan.folder / ".lock", timeout=0)
    try:
        with lock, local_ray(), stop_signals() as stopped:
            tuner(plan).fit()
    except Timeout:
        raise OSError(f"{plan.folder} is in use: the search is running") from None
    return bool(stopped)


def tuner(plan: Plan) -> ray_tune.Tuner:
    """Ray's tuner for the plan: restored where there is something to restore, else new."""
    bound = partial(trainable, data_dir=plan.data_dir, cpus=plan.cpus)
    demanding = ray_tune.with_resources(bound, {"cpu": plan.cpus, "gpu": plan.gpus})
    if restorable(plan.folder):
        return ray_tune.Tuner.restore(str(plan.folder), demanding, resume_unfinished=True)
    searcher = OptunaSearch(
        plan.search,
        metric=plan.search.metric,
        mode=plan.search.mode,
        sampler=make_sampler(plan),
        points_to_evaluate=plan.first_points,
    )
    asha = ASHAScheduler(
        time_attr="epoch",
        metric=plan.search.metric,
        mode=plan.search.mode,
        max_t=plan.epochs,
        grace_period=plan.grace_period,
        reduction_factor=REDUCTION_FACTOR,
    )
    return ray_tune.Tuner(
        demanding,
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=asha if plan.rungs else FIFOScheduler(),
            num_samples=plan.num_trials,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,  # a new worker would spend seconds on importing torch
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=plan.folder.name,
            storage_path=str(plan.folder.parent),
            callbacks=[Progress(plan), Rungs(asha)],
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=1),
            failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


class Rungs(ray_tune.Callback):
    """Carries ASHA's rungs over a restart: Ray saves the state of callbacks, but not that of the scheduler."""

    def __init__(self, scheduler: ASHAScheduler) -> None:
        self.scheduler = scheduler  # restored together with this callback, as one object

    def get_state(self) -> dict[str, Any]:
        return {"rungs": [bracket._rungs for bracket in self.scheduler._brackets]}

    def set_state(self, state: dict[str, Any]) -> None:
        for bracket, rungs in zip(self.scheduler._brackets, state["rungs"], strict=True):
            bracket._rungs = rungs


def restorable(folder: Path) -> bool:
    """Whether Ray has written enough of a search to restore it; one killed before that starts anew."""
    return ray_tune.Tuner.can_restore(str(folder)) and any(folder.glob("experiment_state-*.json"))


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Ray on this machine (or the cluster that RAY_ADDRESS names), with its own chatter off."""
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:
        raise OSError(
            f"Ray could not start: {error}; it needs a home folder (HOME) and a temporary one it can write"
        ) from error
    # A failed trial is told by tune.progress, and its traceback kept in error.txt.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune.tune").addFilter(lambda record: "Trials did not complete" not in record.getMessage())
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Makes Ctrl-C and SIGTERM end `Tuner.fit` early but cleanly; yields the list of signals that came.

    Ray's own handler swallows later ones, and SIGTERM would abort. SIGUSR1 is how Tune is asked to stop: it saves the
    search while its trials still count as running, so that they go on when it is restored. A second signal stops hard.
    """
    stopped: list[int] = []

    def stop(number: int, frame: types.FrameType | None) -> None:
        if stopped or signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            raise KeyboardInterrupt
        stopped.append(number)
        print("\nstopping; what was computed is being saved (again: stop at once)", flush=True)
        signal.raise_signal(signal.SIGUSR1)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
