"""Runs a plan on Ray: Optuna proposes, a scheduler stops, Ray trains; the ledger and the trials'
folders remember.

Private members of Ray: `class_cache.ENV_VARS_TO_PROPAGATE`, `parameter.RayParams`, a setting of its
workers, and the names of loggers.
"""

import contextlib
import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray import cloudpickle
from ray import tune as ray_tune
from ray._private import parameter
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from dcgan.evaluate import hand_over
from dcgan.files import replace, write_json
from dcgan.schema import (
    ERROR_FILE,
    LOCK_FILE,
    SEARCH_FILE,
    STUDY_FILE,
    TRIALS_PATTERN,
    YARDSTICK_FILE,
    Row,
    trial_name,
)
from dcgan.store import StorageError
from tune.ledger import open_ledger, quiet_optuna, reopen_stopped, take_over_folders
from tune.options import read_record
from tune.plan import Plan
from tune.stop import Stop, stop_signals
from tune.study import StudySearch
from tune.trainable import Task, trainable

MAX_FAILURES = 2  # of one trial without an epoch between them: killed workers, lost nodes
SCRATCH = ".ray"  # what Ray writes of its own accord; nothing is ever read back from it
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
ROOM_BYTES = 1_000_000  # a disk with less is full

# such as tune.progress.Progress
MakeCallback = Callable[[Plan, StudySearch], ray_tune.Callback]


def quiet_ray() -> None:
    """Sets what Ray reads from the environment and keeps to itself: called once by whoever runs
    searches. Trials write their rows themselves, and Ray's snapshots are never read back."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own status gives way to tune.progress
    # of trials that fail as the search ends, each of which is reported
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # workers that start before it is known what for: no trial could use them
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1000000"
    # Ray would log them, with its workers' runtime environment; each machine has its own
    secret = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE -= secret
    # failed trials are reported by tune.progress, and their traceback is kept in error.txt
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune.tune").addFilter(not_about_failed_trials)
    quiet_optuna()


def not_about_failed_trials(record: logging.LogRecord) -> bool:
    """Whether a log record is about something else than failed trials."""
    return "Trials did not complete" not in record.getMessage()


@contextlib.contextmanager
def session(plan: Plan, description: dict[str, Any]) -> Iterator[Stop]:
    """Ray, and this process as the only driver of a search's folder, where it writes the
    description as `search.json` before anything else.

    Raises:
        OSError: the search is running elsewhere, or Ray cannot start.
    """
    stop = Stop(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(plan.folder / LOCK_FILE).acquire(timeout=0)
    except Timeout:
        raise OSError(f"{plan.folder} is in use: the search is running") from None
    with lock:
        plan.store.begin()
        if plan.yardstick:
            hand_over(plan.search.base.dataset, plan.yardstick)
            replace(plan.folder / YARDSTICK_FILE, plan.yardstick)
            plan.store.put(plan.folder / YARDSTICK_FILE)
        if has_more_epochs(plan):
            reopen_stopped(plan)
            plan.store.commit(plan.folder / STUDY_FILE)
        write_json(plan.folder / SEARCH_FILE, description)
        plan.store.put(plan.folder / SEARCH_FILE)
        quiet_ray()
        with running_ray(plan), stop_signals(stop):
            yield stop


def has_more_epochs(plan: Plan) -> bool:
    """Whether a search that ends by its epochs is to train more than when it last started. Its
    trials without a study count, too: then it is refused before its record says so."""
    begun = (plan.folder / STUDY_FILE).is_file() or any(plan.folder.glob(TRIALS_PATTERN))
    if not plan.epochs_in_all or not begun:
        return False
    return plan.epochs_in_all > int(read_record(plan.store)["epochs_in_all"])


def run_plan(plan: Plan, stop: Stop, make_progress: MakeCallback) -> None:
    """Runs the plan, or what is left of it, within a `session`.

    Raises:
        OSError: the disk is full or gone; everything up to there is kept.
        ValueError: the study is damaged.
    """
    study = open_ledger(plan.folder, plan.objectives)
    plan.store.commit(plan.folder / STUDY_FILE)  # retries are decisions, too
    if not study.get_trials() and any(plan.folder.glob(TRIALS_PATTERN)):
        raise ValueError(
            f"{plan.folder} holds trials, but its {STUDY_FILE} none: it is lost; "
            f"read them by python -m analysis.tables"
        )
    take_over_folders(plan, study)
    searcher = plan.scheduler.make_searcher(plan, study)
    shutil.rmtree(plan.folder / SCRATCH, ignore_errors=True)
    if searcher.remaining == 0:
        return
    faults = Faults(plan, searcher, stop.plan)
    try:
        tuner(plan, searcher, [make_progress(plan, searcher), faults]).fit()
    except Exception as error:
        if full := storage_error(error, stop.plan):
            raise full from error
        raise
    finally:
        if stop.asked:
            stop.timer.cancel()
        shutil.rmtree(plan.folder / SCRATCH, ignore_errors=True)
    if faults.storage:
        raise faults.storage
    plan.store.get_small()


def tuner(
    plan: Plan,
    searcher: StudySearch,
    callbacks: list[ray_tune.Callback],
    train: Callable[..., None] = trainable,
) -> ray_tune.Tuner:
    """Ray's tuner for what is left of the plan; a test of the driver replays curves in `train`."""
    # and neither searcher nor plan: Ray pickles `name_trial` with every trial
    numbers = searcher.numbers

    def name_trial(trial: Trial) -> str:
        return trial_name(numbers[trial.trial_id])

    task = Task(
        store=plan.store,
        data_dir=plan.data_dir,
        replicas=plan.replicas,
        gpus=plan.gpus,
        patience=plan.patience,
        keep=plan.keep,
        yardstick=plan.yardstick,
    )
    return ray_tune.Tuner(
        ray_tune.with_resources(partial(train, task=task), plan.request),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=plan.scheduler.make(plan, searcher),
            num_samples=searcher.remaining,
            max_concurrent_trials=searcher.concurrent,
            reuse_actors=True,  # a new worker would spend seconds on importing torch
            trial_name_creator=name_trial,
            trial_dirname_creator=name_trial,
        ),
        run_config=ray_tune.RunConfig(
            name=SCRATCH,
            storage_path=str(plan.folder),
            callbacks=callbacks,
            failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


class Faults(ray_tune.Callback):
    """Records what a failed trial died of; if of the disk, stops the search instead."""

    def __init__(self, plan: Plan, searcher: StudySearch, whole: Plan) -> None:
        self.plan, self.searcher = plan, searcher
        self.whole = whole  # whose command goes on with the plan, which may be its confirm stage
        self.storage: OSError | None = None
        self.reached: dict[str, int] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Row, **info: Any
    ) -> None:
        # progress: earlier failures are forgiven
        if result["epoch"] > self.reached.get(trial.trial_id, 0):
            self.reached[trial.trial_id] = result["epoch"]
            trial.run_metadata.num_failures = 0

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        error = cause_of(trial)
        if full := storage_error(error, self.whole):
            self.storage = full
            signal.raise_signal(signal.SIGUSR1)
            return
        file = self.plan.folder / str(trial) / ERROR_FILE
        self.plan.store.get(f"{trial}/{ERROR_FILE}")
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{error}\n", encoding="utf-8")
            self.plan.store.put(file)
        self.searcher.fail(trial.trial_id)


def cause_of(trial: Trial) -> BaseException:
    """The exception that a trial failed of. (Ray's `get_error` looks elsewhere, too early.)"""
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause: BaseException = getattr(error, "cause", error)
    return cause


def storage_error(error: BaseException | None, plan: Plan) -> OSError | None:
    """The error to show if this one, or its cause, is the disk's or storage's, or if it is full."""
    seen = error
    while seen is not None:
        if isinstance(seen, StorageError):
            kept = "what is in the storage is kept"
            return OSError(f"{seen}; {kept}; go on with: {plan.resume_command}")
        if isinstance(seen, OSError) and seen.errno in STORAGE_ERRORS:
            break
        seen = seen.__cause__ or seen.__context__
    if seen is None and shutil.disk_usage(plan.folder).free > ROOM_BYTES:
        return None
    reason = seen.strerror if isinstance(seen, OSError) else os.strerror(errno.ENOSPC)
    return OSError(
        f"{plan.folder}: {reason}; what was computed is kept: make room, "
        f"and go on with: {plan.resume_command}"
    )


@contextlib.contextmanager
def running_ray(plan: Plan) -> Iterator[None]:
    """Ray on as many CPUs as the plan uses, or the Ray that runs already, as a cluster's does."""
    if ray.is_initialized():
        yield
        return
    try:
        # in workers, modules of the current folder would come before all others
        with contextlib.chdir(Path(__file__).parents[1]):
            start_ray(plan.slots)
    except OSError as error:
        needs = "it needs a home folder (HOME) and a temporary one it can write"
        raise OSError(f"Ray could not start: {error}; {needs}") from error
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(cpus: int, **options: Any) -> None:
    """Starts Ray on this machine, without what takes seconds to start and serves nobody here: who
    starts further machines, and who hands the workers' output to the driver. Further options are
    those of `ray.init`."""
    module: Any = parameter  # private: `ray.init` has no way to ask for it
    whole = module.RayParams
    module.RayParams = partial(whole, no_monitor=True, include_log_monitor=False)
    try:
        ray.init(
            "local",  # else it joins a cluster that happens to run on this machine
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    finally:
        module.RayParams = whole
