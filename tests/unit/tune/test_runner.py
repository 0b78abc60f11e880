"""The course of a plan, without Ray: the session, what ends a search, what is left of a trial that
fails."""

import contextlib
import errno
import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray._private import parameter
from ray.tune.execution import class_cache

from dcgan.schema import DRIVER_FILE, ERROR_FILE, SEARCH_FILE, STUDY_FILE
from dcgan.store import Mirror, StorageError
from tune import runner as room
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.runner import (
    SCRATCH,
    Faults,
    not_about_failed_trials,
    quiet_ray,
    run_plan,
    running_ray,
    session,
    storage_error,
    tuner,
)
from tune.stop import Stop
from tune.study import StudySearch

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def nothing(*arguments: Any) -> Iterator[None]:
    yield


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that neither starts Ray, nor changes it or the signals."""
    for name in ("running_ray", "stop_signals"):
        monkeypatch.setattr(room, name, nothing)
    monkeypatch.setattr(room, "quiet_ray", lambda: None)


def silent(plan: Plan, searcher: StudySearch) -> ray_tune.Callback:
    """In place of progress: shows nothing."""
    return ray_tune.Callback()


def record_of(plan: Plan) -> Any:
    return json.loads((plan.folder / SEARCH_FILE).read_text())


# The session


@pytest.mark.usefixtures("without_ray")
def test_a_search_has_one_driver_at_a_time(plan: Plan) -> None:
    def enter() -> None:
        with session(plan, {"begun": "again"}):
            pass

    message = f"{plan.folder} is in use: the search is running"
    with session(plan, {"begun": "once"}):
        with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
            enter()
        assert record_of(plan) == {"begun": "once"}
    with session(plan, {"begun": "later"}):
        assert record_of(plan) == {"begun": "later"}


@pytest.mark.usefixtures("without_ray")
def test_the_lock_is_given_up_whatever_happens(plan: Plan) -> None:
    def fail() -> None:
        with session(plan, {}):
            raise RuntimeError("within")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="within"):
            fail()


@pytest.mark.usefixtures("without_ray")
def test_a_search_in_a_storage_is_taken_over_and_its_record_uploaded(
    make_demo_plan: Any, tmp_path: Path
) -> None:
    storage = tmp_path / "storage" / "run"
    storage.mkdir(parents=True)
    plan = make_demo_plan(store=Mirror(tmp_path / "copy", str(storage)))
    (plan.folder / "stale.json").write_text("{}")  # of a search that is no longer in the storage
    with session(plan, {"begun": "once"}):
        assert json.loads((storage / SEARCH_FILE).read_text()) == {"begun": "once"}
        assert str(os.getpid()) in (storage / DRIVER_FILE).read_text()
        assert not (plan.folder / "stale.json").exists()


def test_a_running_ray_is_used_as_it_is(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "init", never)
    monkeypatch.setattr(ray, "shutdown", never)
    with running_ray(plan):
        pass


def test_ray_gets_the_cpus_of_the_plan_and_ends_with_the_session(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And starts neither an autoscaler nor what reads the workers' logs."""
    calls: list[Any] = []
    params = parameter.RayParams

    def init(*where: Any, **options: Any) -> None:
        calls.append((where, options))
        started = parameter.RayParams()
        assert (started.no_monitor, started.include_log_monitor) == (True, False)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    with running_ray(plan):
        ((where, options),) = calls
    assert parameter.RayParams is params
    assert where == ("local",)  # no cluster that happens to run on this machine
    assert options["num_cpus"] == plan.slots == 2
    assert calls[1:] == ["shutdown"]


def test_a_ray_that_cannot_start_says_what_it_needs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no home")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    message = (
        "Ray could not start: no home; it needs a home folder (HOME) and a temporary one it can "
        "write"
    )

    def start() -> None:
        with running_ray(plan):
            pass

    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        start()


def test_ray_is_kept_quiet_and_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"RAY_AIR_NEW_OUTPUT": "1"}  # what a person has set stays
    monkeypatch.setattr(os, "environ", mine)
    passed_on = {"AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "OTHER"}
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", passed_on)
    logger = logging.getLogger("ray.tune.tune")
    monkeypatch.setattr(logger, "filters", [])
    for _ in range(2):  # as often as searches run
        quiet_ray()
    assert {"OTHER"} == class_cache.ENV_VARS_TO_PROPAGATE
    assert mine == {
        "RAY_AIR_NEW_OUTPUT": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        "RAY_prestart_worker_first_driver": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    }
    assert logger.filters == [not_about_failed_trials]
    for text, kept in {"Trials did not complete: [a]": False, "other": True}.items():
        record = logging.LogRecord("name", logging.ERROR, "path", 1, text, None, None)
        assert not_about_failed_trials(record) == kept


# The run


class Fit:
    """In place of Ray's tuner: what `fit` does is given."""

    def __init__(self, plan: Plan, monkeypatch: pytest.MonkeyPatch, fit: Any) -> None:
        self.callbacks: list[Any] = []
        scratch = plan.folder / SCRATCH

        def make(plan: Plan, searcher: StudySearch, callbacks: list[Any]) -> Any:
            assert not scratch.exists()  # of an earlier session
            self.callbacks = callbacks

            def run() -> None:
                scratch.mkdir()
                fit(*callbacks)

            return SimpleNamespace(fit=run)

        monkeypatch.setattr(room, "tuner", make)


def test_rays_own_files_are_removed_before_and_after(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan.folder / SCRATCH / "old").mkdir(parents=True)
    shown = SimpleNamespace()
    fit = Fit(plan, monkeypatch, lambda *callbacks: None)
    run_plan(plan, Stop(plan), lambda plan, searcher: shown)  # type: ignore[arg-type, return-value]
    progress, faults = fit.callbacks
    assert progress is shown
    assert isinstance(faults, Faults)
    assert not (plan.folder / SCRATCH).exists()


def test_nothing_is_started_when_nothing_is_left(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = StudySearch(plan, open_ledger(plan.folder, plan.objectives))
    for name in ("a", "b", "c"):
        searcher.suggest(name)
        searcher.on_trial_complete(name, {"epoch": plan.epochs, "fid": 9.0})
    monkeypatch.setattr(room, "tuner", None)
    run_plan(plan, Stop(plan), silent)


def test_trials_without_their_study_are_not_trained_over(plan: Plan) -> None:
    plan.trial_folder(0).mkdir()
    message = f"{plan.folder} holds trials, but its {STUDY_FILE} none: it is lost; read them by"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run_plan(plan, Stop(plan), silent)


def test_a_full_disk_ends_the_run_with_the_command_of_the_whole_search(
    plan: Plan, make_demo_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_demo_plan(store=plan.store.inside("confirm"))

    def fit(progress: Any, faults: Faults) -> None:
        raise RuntimeError("Ray says something") from FULL

    Fit(stage, monkeypatch, fit)
    message = (
        f"{plan.folder}: No space left on device; what was computed is kept: make room, and go on "
        f"with: {plan.resume_command}"
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        run_plan(stage, Stop(plan), silent)
    assert not (stage.folder / SCRATCH).exists()


def test_an_error_that_is_not_the_disks_stays_as_it_is(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(progress: Any, faults: Faults) -> None:
        raise RuntimeError("Ray says something")

    Fit(plan, monkeypatch, fit)
    with pytest.raises(RuntimeError, match="Ray says something"):
        run_plan(plan, Stop(plan), silent)


def test_a_search_that_is_asked_to_stop_is_not_ended_harder_once_its_trials_have(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(plan)

    def fit(progress: Any, faults: Faults) -> None:
        stop.asked = True
        stop.timer.start()

    Fit(plan, monkeypatch, fit)
    run_plan(plan, stop, silent)
    stop.timer.join(5)
    assert not stop.timer.is_alive()


def test_what_names_a_trial_carries_no_search(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray pickles it with every trial."""
    monkeypatch.setattr("ray.tune.Tuner", lambda trainable, **options: options)
    searcher = StudySearch(plan, open_ledger(plan.folder, plan.objectives))
    for number in range(3):
        searcher.suggest(f"trial {number}")
    options: Any = tuner(plan, searcher, [])
    config = options["tune_config"]
    trial = SimpleNamespace(trial_id="trial 2")
    assert config.trial_name_creator(trial) == config.trial_dirname_creator(trial) == "trial_0002"
    pickled = cloudpickle.dumps(config.trial_name_creator)
    assert b"trial 2" not in pickled
    assert len(pickled) < 2000


# Trials that fail


class FakeTrial:
    """What Ray hands to a callback, as far as it is used."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        self.trial_id = "a"
        self.run_metadata = SimpleNamespace(num_failures=0)
        self.pickled_error_file = folder / "error.pkl"
        self.pickled_error_file.write_bytes(cloudpickle.dumps(error))

    def __str__(self) -> str:
        return "trial_0000"


@pytest.fixture
def faults(plan: Plan) -> Faults:
    """Of a search whose first trial runs."""
    searcher = StudySearch(plan, open_ledger(plan.folder, plan.objectives))
    searcher.suggest("a")
    return Faults(plan, searcher, plan)


def states(plan: Plan) -> list[str]:
    return [trial.state.name for trial in open_ledger(plan.folder).get_trials()]


def test_failures_are_forgiven_once_a_trial_gets_further(faults: Faults, tmp_path: Path) -> None:
    trial: Any = FakeTrial(tmp_path)
    left = []
    for epoch in (1, 1, 2, 1, 2, 3):  # goes back with each worker that is killed
        trial.run_metadata.num_failures += 1
        faults.on_trial_result(0, [], trial, {"epoch": epoch})
        left.append(trial.run_metadata.num_failures)
    assert left == [0, 1, 0, 1, 2, 0]


def test_what_a_trial_failed_of_is_kept_and_recorded(
    faults: Faults, plan: Plan, tmp_path: Path
) -> None:
    trial: Any = FakeTrial(tmp_path, RuntimeError("its worker died"))
    faults.on_trial_error(0, [], trial)
    assert (plan.trial_folder(0) / ERROR_FILE).read_text() == "its worker died\n"
    assert states(plan) == ["FAIL"]
    assert faults.storage is None


def test_what_a_trial_wrote_of_its_failure_stays(
    faults: Faults, plan: Plan, tmp_path: Path
) -> None:
    plan.trial_folder(0).mkdir()
    (plan.trial_folder(0) / ERROR_FILE).write_text("diverged in epoch 1\n")
    trial: Any = FakeTrial(tmp_path, RuntimeError("of Ray"))
    faults.on_trial_error(0, [], trial)
    assert (plan.trial_folder(0) / ERROR_FILE).read_text() == "diverged in epoch 1\n"
    assert states(plan) == ["FAIL"]


@pytest.mark.parametrize("error", [FULL, StorageError("s3://bucket cannot be written")])
def test_a_trial_that_the_storage_failed_goes_on_later(
    error: OSError, faults: Faults, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", asked.append)
    trial: Any = FakeTrial(tmp_path, error)
    faults.on_trial_error(0, [], trial)
    assert asked == [signal.SIGUSR1]  # Tune ends
    assert plan.resume_command in str(faults.storage)
    assert states(plan) == ["RUNNING"]
    assert not (plan.trial_folder(0) / ERROR_FILE).exists()

    Fit(plan, monkeypatch, lambda progress, one: one.on_trial_error(0, [], trial))
    with pytest.raises(OSError, match=re.escape(str(faults.storage))):
        run_plan(plan, Stop(plan), silent)


# Errors of disk and storage


def caused(error: BaseException, cause: BaseException | None, by: str = "__cause__") -> Any:
    """An error that comes from another."""
    setattr(error, by, cause)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (caused(RuntimeError("of Ray"), FULL), "No space left on device"),
        (caused(RuntimeError("of Ray"), FULL, "__context__"), "No space left on device"),
        (caused(ValueError(), caused(KeyError(), FULL)), "No space left on device"),
    ],
)
def test_an_error_of_the_disk_is_shown_as_such(
    error: BaseException, reason: str, plan: Plan
) -> None:
    assert str(storage_error(error, plan)) == (
        f"{plan.folder}: {reason}; what was computed is kept: make room, and go on with: "
        f"{plan.resume_command}"
    )


@pytest.mark.parametrize("wrap", [False, True])
def test_an_error_of_the_storage_is_shown_as_such(wrap: bool, plan: Plan) -> None:
    error: BaseException = StorageError("s3://bucket cannot be read")
    if wrap:
        error = caused(RuntimeError("of Ray"), error)
    assert str(storage_error(error, plan)) == (
        "s3://bucket cannot be read; what is in the storage is kept; go on with: "
        f"{plan.resume_command}"
    )


@pytest.mark.parametrize(
    "error", [None, RuntimeError("of Ray"), FileNotFoundError(errno.ENOENT, "No such file")]
)
@pytest.mark.parametrize("free", [10**9, 10**5])
def test_another_error_is_the_disks_only_if_that_is_full(
    error: BaseException | None, free: int, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    shown = storage_error(error, plan)
    if free > 10**6:
        assert shown is None
    else:
        assert f"{plan.folder}: No space left on device" in str(shown)
