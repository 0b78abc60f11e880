"""A search killed at every one of its durable writes: before it, in the middle of it, and after it.

The searcher, the scheduler, the study, and each trial's folder with its order of writes are the
real ones; what trains is replaced by recorded curves, in simulated time. What a kill leaves on a
real disk, of real processes, is in tests/integration/test_kills.py.
"""

import contextlib
import dataclasses
import heapq
import itertools
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from dcgan import files
from dcgan.config import TrainConfig
from dcgan.files import read_rows
from dcgan.schema import (
    CHECKPOINT_FILE,
    ERROR_FILE,
    PARAMS_FILE,
    ROWS_FILE,
    STUDY_FILE,
    Row,
    trial_name,
)
from dcgan.store import Mirror, Store
from tune import trainable
from tune.curves import Curves, write_curves
from tune.ledger import open_ledger, quiet_optuna
from tune.plan import Plan
from tune.simulate import make_plan
from tune.simulation import SimulatedTrial, Simulation
from tune.trainable import Task, TrialFolder

EPOCHS, TRIALS, SEEDS = 6, 4, 9
METHODS = ("random", "random+asha", "tpe+asha")
LEDGER_WRITES = ("create_new_trial", "set_trial_intermediate_value", "set_trial_state_values")
UNWATCHED = files.replace
POINTS: Counter[str] = Counter()


@dataclass
class Left:
    """What a kill leaves: the files, and the study."""

    point: str  # which write, and whether the kill was after it or in its middle
    files: dict[Path, bytes]
    trials: list[FrozenTrial]


class Disk:
    """Takes the durable writes of a session, and remembers what a kill at each of them leaves.

    A kill before a write leaves what one after the write before it does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study: optuna.Study | None = None
        self.watched = False
        self.left: list[Left] = []

    def write(self, name: str, write: Callable[[], Any], torn: tuple[Path, bytes] | None) -> Any:
        """A write, of which a kill in its middle leaves this file, or nothing."""
        if not self.watched:
            return write()
        if torn:
            before = self.left[-1] if self.left else Left("", {}, [])
            files = before.files | {torn[0].relative_to(self.folder): torn[1]}
            self.left.append(Left(f"in {name}", files, before.trials))
        result = write()
        assert self.study
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        now = {path.relative_to(self.folder): path.read_bytes() for path in paths}
        self.left.append(Left(f"after {name}", now, self.study.get_trials()))
        return result

    def restore(self, left: Left) -> optuna.Study:
        """Makes the files what a kill left; returns the study."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path, content in left.files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        study = optuna.create_study(storage=InMemoryStorage())
        study.add_trials(left.trials)
        return study


@pytest.fixture
def disk(shared_memory: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Takes all that a trial writes; images and TensorBoard's file are left out."""
    quiet_optuna()
    disk, replace = Disk(shared_memory / "search"), files.replace

    def watched(path: Path, content: bytes) -> None:
        if not path.is_relative_to(disk.folder):  # a copy on a machine
            replace(path, content)
            return
        torn = path.with_suffix(".999.tmp"), content[: len(content) // 2]
        disk.write(path.name, lambda: replace(path, content), torn)

    monkeypatch.setattr(files, "replace", watched)
    monkeypatch.setattr(trainable, "replace", watched)
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(trainable.checkpoint, "load", lambda path: json.loads(path.read_bytes()))
    monkeypatch.setattr("tensorboardX.SummaryWriter", lambda *_, **__: Unwritten())
    monkeypatch.setattr(trainable.ray_tune, "report", lambda row: None)
    monkeypatch.setattr(TrialFolder, "save_samples", lambda self: None)
    return disk


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder in memory: only what is written counts here, not when it reaches a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


class Unwritten:
    """A TensorBoard file that nobody reads."""

    def add_scalar(self, *args: Any) -> None:
        """Nothing."""

    flush = close = add_scalar


class Session(Simulation):
    """A session of a search whose trials have folders, which are the truth as in `trainable`."""

    def __init__(self, plan: Plan, curves: Curves, seed: int, study: optuna.Study) -> None:
        self.task = Task(
            store=plan.store, data_dir=None, replicas=1, gpus=0, patience=plan.patience, keep=()
        )
        self.folders: dict[str, TrialFolder] = {}
        self.random = random.Random(seed)
        super().__init__(plan, curves, 0, study)

    def add_trial(self) -> bool:
        if not super().add_trial():
            return False
        trial = self.trials[-1]
        name = self.plan.trial_folder(self.searcher.numbers[trial.trial_id]).name
        lanes = [TrainConfig.from_dict(trial.config)]
        folder = TrialFolder(self.plan.store.trial(name), lanes, self.task)
        self.folders[trial.trial_id] = folder
        trial.trained = len(folder.rows)
        return True

    def step(self) -> None:
        """The next event: an epoch is trained and written, or the driver hears of it, somewhat
        later; or the trial fails."""
        self.seconds, _, trial = heapq.heappop(self.events)
        folder = self.folders[trial.trial_id]
        if trial.reported < trial.trained:
            trial.reported += 1
            self.report(trial, trial.rows[trial.reported - 1])
        elif (folder.folder / ERROR_FILE).exists():
            self.fail(trial)
        elif trial.trained >= len(trial.curve):
            self.fail(trial, "diverged")
        else:
            row = trial.curve[trial.trained] | {"lane": 0}
            rows = json.dumps({"rows": [*folder.rows, row]})
            files.replace(folder.folder / CHECKPOINT_FILE, rows.encode())
            with contextlib.suppress(FloatingPointError):  # of a collapse, as in `report`
                folder.report(row)
            trial.trained += 1
            delay = self.random.random()
            heapq.heappush(self.events, (self.seconds + delay, self.pushed, trial))
            self.pushed += 1

    def fail(self, trial: SimulatedTrial, why: str = "collapsed") -> None:
        store = self.folders[trial.trial_id].store
        if not (store.folder / ERROR_FILE).exists():
            trainable.replace(store.folder / ERROR_FILE, f"{why}\n".encode())
            store.put()
        super().fail(trial)


def go_on(plan: Plan, curves: Curves, seed: int, study: optuna.Study) -> None:
    """Runs what is left of a search."""
    session = Session(plan, curves, seed, study)
    session.start_trials()
    while session.events:
        session.step()
        session.start_trials()


def durable(disk: Disk) -> optuna.Study:
    """A study whose transactions are writes of the disk: SQLite undoes one that is torn."""
    study = optuna.create_study(storage=InMemoryStorage())
    for name in LEDGER_WRITES:
        write = getattr(study._storage, name)

        def watched(*args: Any, write: Any = write, name: str = name, **names: Any) -> Any:
            return disk.write(name, lambda: write(*args, **names), None)

        setattr(study._storage, name, watched)
    return study


def recording(seed: int) -> Iterator[Row]:
    """Curves that fall and cross, diverge or collapse, as the seed will."""
    rng = random.Random(seed)
    settings = itertools.product((1e-4, 3e-4, 1e-3, 3e-3), (64, 128), ("adam", "rmsprop"))
    for lr, batch, optimizer in settings:
        setting = {"generator_lr": lr, "batch_size": batch, "optimizer": optimizer}
        level, kind = rng.uniform(5, 50), rng.choice(["falls", "falls", "collapses", "diverges"])
        for epoch in range(1, EPOCHS + 1):
            head = {"search": "hparams", "settings": setting, "seed": 0, "epoch": epoch}
            if kind == "diverges" and epoch == 3:
                yield head | {"error": "not finite"}
                break
            ill = kind == "collapses" and epoch > 1
            fid = 100.0 if ill else level + 30 / epoch + rng.random()
            times = {"seconds_train": rng.uniform(0.5, 1.5), "seconds_eval": 0.1}
            yield head | times | {"fid": fid, "collapsed": ill}


def story(study: optuna.Study, folder: Path) -> list[Any]:
    """All that is known of each trial in the end, but for times."""
    return [
        (t.number, t.params, t.intermediate_values, t.state, t.values, known_of(folder, t.number))
        for t in study.get_trials()
    ]


def known_of(folder: Path, number: int) -> tuple[Any, ...]:
    """Rows and error of a trial; a file that is left unfinished counts."""
    trial = folder / trial_name(number)
    error = trial / ERROR_FILE
    assert not list(trial.glob("*.tmp"))
    return read_rows(trial / ROWS_FILE), error.read_text() if error.exists() else ""


@dataclass
class World:
    """A search that nobody disturbs, and the means to go on from where a kill left it."""

    plan: Plan
    curves: Curves
    seed: int
    disk: Disk

    def undisturbed(self) -> list[Any]:
        """The end of a search that is not killed; the disk then knows what kills would leave."""
        shutil.rmtree(self.plan.folder, ignore_errors=True)
        self.disk.study, self.disk.left, self.disk.watched = durable(self.disk), [], True
        go_on(self.plan, self.curves, self.seed, self.disk.study)
        self.disk.watched = False
        return story(self.disk.study, self.plan.folder)

    def from_there(self, left: Left) -> list[Any]:
        """The end of a search that goes on after a kill."""
        study = self.disk.restore(left)
        go_on(self.plan, self.curves, self.seed, study)
        return story(study, self.plan.folder)


def worlds(disk: Disk, method: str, workers: int) -> Iterator[World]:
    """Searches over other curves, by other seeds; counts their points."""
    for seed in range(SEEDS):
        file = disk.folder.with_name("curves.csv.xz")
        write_curves(recording(seed), file)
        curves = Curves(file, "hparams")
        plan = make_plan(curves.search("hparams"), method, seed, TRIALS, 2, workers)
        plan = dataclasses.replace(plan, store=Store(disk.folder))
        yield World(plan, curves, seed, disk)
        writes = sum(left.point.startswith("after") for left in disk.left)
        POINTS[f"{method}, {workers} at a time"] += writes * len(("before", "in", "after"))


@pytest.mark.parametrize("method", METHODS)
def test_one_trial_at_a_time_ends_as_if_nothing_had_happened(method: str, disk: Disk) -> None:
    for world in worlds(disk, method, 1):
        whole = world.undisturbed()
        points = {left.point for left in disk.left}
        for name in (CHECKPOINT_FILE, ROWS_FILE, PARAMS_FILE):
            assert {f"in {name}", f"after {name}"} <= points
        assert {f"after {name}" for name in LEDGER_WRITES} <= points
        for number, left in enumerate(disk.left):
            assert world.from_there(left) == whole, (world.seed, number, left.point)


def test_a_freeze_thaw_search_ends_as_if_nothing_had_happened(disk: Disk) -> None:
    """Its decisions take longer, so that fewer kills are tried: one in five, of one search."""
    (world,) = itertools.islice(worlds(disk, "freeze-thaw", 1), 1)
    whole = world.undisturbed()
    for number, left in list(enumerate(disk.left))[::5]:
        assert world.from_there(left) == whole, (number, left.point)


@pytest.mark.parametrize("method", METHODS)
def test_two_trials_at_a_time_keep_what_was_known(method: str, disk: Disk) -> None:
    """Settings, epochs and ends that the study holds stay, and every trial comes to its end, with
    its curve's rows, each once. By chance and without early stopping all is as undisturbed."""
    for world in worlds(disk, method, 2):
        whole = world.undisturbed()
        for number, left in enumerate(disk.left):
            case, now = (world.seed, number, left.point), world.from_there(left)
            assert len(now) == TRIALS, case
            for before, after in zip(left.trials, now, strict=False):
                _, params, values, state, *_ = after
                assert before.params == params, case
                assert before.intermediate_values.items() <= values.items(), case
                assert before.state in (state, TrialState.RUNNING), case
            for _, params, values, state, _, (rows, _) in now:
                assert state.is_finished(), case
                curve = world.curves.nearest(world.plan.search.complete(params), 0)
                fids = [row["fid"] for row in curve[: len(rows)]]
                assert [row["fid"] for row in rows] == fids, case
                # the last row may be of an epoch that a decision made anew leaves out
                assert values == dict(enumerate(fids[: len(values)], start=1)), case
                assert len(rows) - len(values) in (0, 1), case
            if method == "random":
                assert now == whole, case


def on_a_new_machine(world: World) -> list[Any]:
    """Goes on with a search in a storage that machines mount, on one that has nothing of it."""
    machine = Path(tempfile.mkdtemp(dir=world.disk.folder.parent))
    os.chdir(machine)  # where trials have their copies
    store = Mirror(machine / "copy", str(world.disk.folder))
    store.folder.mkdir()
    store.begin()
    ledger = open_ledger(store.folder, ("fid",))
    store.commit(store.folder / STUDY_FILE)
    go_on(dataclasses.replace(world.plan, store=store), world.curves, world.seed, ledger)
    store.put()
    for unfinished in world.disk.folder.rglob("*.tmp"):
        unfinished.unlink()
    return story(ledger, world.disk.folder)


def test_machines_that_are_lost_at_any_upload_cost_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a machine is gone, but for what it has uploaded: the study, rows, checkpoints, why a
    trial failed."""
    monkeypatch.chdir(disk.folder.parent)
    monkeypatch.setattr("dcgan.store.replace", files.replace)  # uploads are the writes here
    for module in (files, trainable):
        monkeypatch.setattr(module, "replace", UNWATCHED)
    monkeypatch.setattr(trainable.time, "monotonic", lambda: 0.0)  # each epoch is uploaded
    (world,) = itertools.islice(worlds(disk, "random+asha", 1), 1, 2)
    disk.study, disk.watched = optuna.create_study(), True
    whole = on_a_new_machine(world)
    disk.watched = False
    points = {left.point for left in disk.left}
    uploads = (STUDY_FILE, CHECKPOINT_FILE, ROWS_FILE, ERROR_FILE)
    assert {f"{when} {name}" for when in ("in", "after") for name in uploads} <= points
    for number, left in enumerate(disk.left):
        disk.restore(left)
        assert on_a_new_machine(world) == whole, (number, left.point)


def test_the_points_are_many() -> None:
    """Counted by the tests above, which run before."""
    if len(POINTS) < 2 * len(METHODS):
        pytest.skip("needs the other tests of this file")
    print(dict(POINTS))
    assert sum(POINTS.values()) >= 10_000
