"""Runs a plan on Ray: Optuna proposes, a scheduler stops, Ray trains; the study and the trials' folders remember."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray import tune as ray_tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from dcgan import checkpoint
from tune.cluster import answers
from tune.plan import SEARCH_FILE, Plan, folder_name
from tune.progress import Progress, cause_of
from tune.schedulers import make_scheduler
from tune.storage import LOCK, StorageError
from tune.study import STUDY, StudySearch, open_study, take_over_folders
from tune.trainable import ERROR, trainable

MAX_FAILURES = 2  # of one trial without an epoch between them: killed workers, lost nodes
SCRATCH = ".ray"  # what Ray writes of its own accord; nothing is ever read back from it
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
STOP_SECONDS = 8  # an interrupted search that has not ended by then ends hard

# Ray would put them into its workers' runtime environment, which it logs; each machine has its own
class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # rows are written by the trials themselves
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1000000"  # nor is Ray's snapshot of the search ever used


class Stop:
    """Whether this process was asked to stop, and how it is made to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.asked = False
        self.over = threading.Event()
        self.timer = threading.Timer(STOP_SECONDS, self.at_once)
        self.timer.daemon = True

    def ask(self, number: int, frame: types.FrameType | None) -> None:
        """Handles SIGINT and SIGTERM: asks Tune to end `fit`, by SIGUSR1; the second time, or before Ray is up, harder."""
        if self.asked or signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping; what was computed is kept (again: stop at once)", flush=True)
        self.timer.start()
        signal.raise_signal(signal.SIGUSR1)

    def at_once(self) -> None:
        """Ends this process and its Ray node, which may hang. Nothing is lost: every decision is on disk."""
        print(f"\nstopped; go on with: {self.plan.resume_command}", flush=True)
        node: Any = ray._private.worker._global_node
        for infos in node.all_processes.values():
            for info in infos:
                info.process.kill()
        os._exit(130)

    def watch(self) -> None:
        """Stops at once if a part of Ray dies that the driver would wait for without end: of its own node, or the head."""
        node: Any = ray._private.worker._global_node
        while not self.over.wait(1):
            dead = [kind for kind, _ in node.dead_processes() if kind in ("raylet", "gcs_server")]
            if self.plan.address and not answers(ray.get_runtime_context().gcs_address, tries=5):
                dead = ["head"]
            if dead:
                print(f"\nRay's {', '.join(dead)} died: killed, or out of memory?", flush=True)
                self.at_once()


@contextlib.contextmanager
def session(plan: Plan, description: dict[str, Any] | None = None) -> Iterator[Stop]:
    """Ray, and this process as the only driver of a search's folder. A new search's description is written there first.

    Raises:
        OSError: the search is running elsewhere, or Ray cannot start.
    """
    stop = Stop(plan)
    plan.folder.mkdir(exist_ok=True)
    try:
        with FileLock(plan.folder / LOCK, timeout=0):
            plan.store.begin()
            if description:
                checkpoint.replace(plan.folder / SEARCH_FILE, (json.dumps(description, indent=2) + "\n").encode())
                plan.store.put(plan.folder / SEARCH_FILE)
            hush()
            with contextlib.nullcontext() if plan.address else local_ray(plan.slots * plan.cpus), stop_signals(stop):
                yield stop
    except Timeout:
        raise OSError(f"{plan.folder} is in use: the search is running") from None


def run_plan(plan: Plan, stop: Stop) -> None:
    """Runs the plan, or what is left of it, within a `session`.

    Raises:
        OSError: the disk is full or gone; everything up to there is kept.
        ValueError: the study is damaged.
    """
    study = open_study(plan.folder, plan.objectives)
    plan.store.decide(plan.folder / STUDY)  # retries are decisions, too
    if not study.get_trials() and any(plan.folder.glob("trial_*")):
        raise ValueError(
            f"{plan.folder} holds trials, but its study.db none: it is lost; read them by python -m analysis.tables"
        )
    take_over_folders(plan, study)
    searcher = StudySearch(plan, study)
    shutil.rmtree(plan.folder / SCRATCH, ignore_errors=True)
    if searcher.remaining == 0:
        return
    faults = Faults(plan, searcher, stop.plan)
    try:
        tuner(plan, searcher, faults).fit()
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


def tuner(plan: Plan, searcher: StudySearch, faults: "Faults", train: Callable[..., None] = trainable) -> ray_tune.Tuner:
    """Ray's tuner for what is left of the plan. (`train`: the benchmark of the driver replays trials.)"""

    numbers = searcher.numbers  # and neither searcher nor plan: Ray pickles `trial_name` with every trial

    def trial_name(trial: Trial) -> str:
        return folder_name(numbers[trial.trial_id])

    bound = partial(
        train,
        folder=plan.folder,
        uri=plan.location if plan.store.uri else "",
        data_dir=plan.data_dir,
        cpus=plan.cpus,
        gpus=plan.gpus,
        gpu_gib=plan.gpu_gib,
        patience=plan.patience,
        keep=plan.keep,
        pbt=plan.scheduler == "pbt",
    )
    return ray_tune.Tuner(
        ray_tune.with_resources(bound, plan.request),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(plan, searcher, partial(transfer, plan)),
            num_samples=searcher.remaining,
            max_concurrent_trials=searcher.remaining if plan.scheduler == "pbt" else plan.slots,
            reuse_actors=True,  # a new worker would spend seconds on importing torch
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=SCRATCH,
            storage_path=str(plan.folder),
            callbacks=[Progress(plan, searcher), faults],
            failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


def transfer(plan: Plan, donor: int, receiver: int) -> None:
    """Puts the donor's checkpoint and rows in the place of the receiver's."""
    plan.store.get(f"{plan.trial_folder(donor).name}/{checkpoint.NAME}")
    content = checkpoint.load(plan.trial_folder(donor))
    checkpoint.save(content, plan.trial_folder(receiver))
    checkpoint.write_rows(plan.trial_folder(receiver) / "result.json", content["history"])
    plan.store.put(plan.trial_folder(receiver))


class Faults(ray_tune.Callback):
    """Tells what a failed trial died of: its own fault, which is recorded, or the disk's, which stops the search."""

    def __init__(self, plan: Plan, searcher: StudySearch, whole: Plan) -> None:
        self.plan, self.searcher = plan, searcher
        self.whole = whole  # the plan whose command goes on with this one, which may be its confirm stage
        self.storage: OSError | None = None
        self.reached: dict[str, int] = {}

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if result["epoch"] > self.reached.get(trial.trial_id, 0):  # progress: earlier failures are forgiven
            self.reached[trial.trial_id] = result["epoch"]
            trial.run_metadata.num_failures = 0

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = cause_of(trial)
        if full := storage_error(error, self.whole):
            self.storage = full
            signal.raise_signal(signal.SIGUSR1)
            return
        file = self.plan.folder / str(trial) / ERROR
        self.plan.store.get(f"{trial}/{ERROR}")
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{error}\n")
            self.plan.store.put(file)
        self.searcher.fail(trial.trial_id)


def storage_error(error: BaseException | None, plan: Plan) -> OSError | None:
    """An error to show if this one came from a disk that is full or gone, or from the storage: it or what caused it says so,
    or the disk is."""
    seen = error
    while seen is not None:
        if isinstance(seen, StorageError):
            return OSError(f"{seen}; what is in the storage is kept; go on with: {plan.resume_command}")
        if isinstance(seen, OSError) and seen.errno in STORAGE_ERRORS:
            break
        seen = seen.__cause__ or seen.__context__
    if seen is None and shutil.disk_usage(plan.folder).free > 1_000_000:
        return None
    reason = seen.strerror if isinstance(seen, OSError) else os.strerror(errno.ENOSPC)
    return OSError(f"{plan.folder}: {reason}; what was computed is kept: make room, and go on with: {plan.resume_command}")


@contextlib.contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Ray on so many CPUs of this machine."""
    try:
        ray.init(
            "local",  # else it joins a cluster that happens to run here
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        raise OSError(
            f"Ray could not start: {error}; it needs a home folder (HOME) and a temporary one it can write"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def hush() -> None:
    """Turns off what Tune says of failed trials: they are told by tune.progress, and their traceback is kept in error.txt."""
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune.tune").addFilter(lambda record: "Trials did not complete" not in record.getMessage())


@contextlib.contextmanager
def stop_signals(stop: Stop) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end `Tuner.fit` early but cleanly. (Ray's own handler swallows later ones; SIGTERM aborts.)"""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    signal.signal(signal.SIGINT, stop.ask)
    signal.signal(signal.SIGTERM, stop.ask)
    threading.Thread(target=stop.watch, daemon=True).start()
    try:
        yield
    finally:
        stop.over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
