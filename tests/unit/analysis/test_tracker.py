"""What is logged to W&B of a search's files, and when: with a recorder in place of W&B, whose own
files are read back in tests/integration."""

import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from analysis import tracker
from analysis.load import load_trials
from analysis.tables import rank
from analysis.tracker import Tracker, finish
from dcgan.schema import COLUMNS
from dcgan.store import Store

TEXTS = {"eval_split": "validation", "extractor": "abc", "device": "cpu"}
NUMBERS = [name for name in COLUMNS if name not in (*TEXTS, "lane")]
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
FIDS = ([30.0, 20.0, 25.0], [40.0], [], [35.0, 32.0])


class Recorder:
    """Stands for a W&B run, of which the server has the steps before one."""

    def __init__(self, kind: str, config: dict[str, Any], starting_step: int = 0) -> None:
        self.kind, self.config, self.starting_step = kind, config, starting_step
        self.steps: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.tags: tuple[str, ...] = ()
        self.finished = False
        self.settings = SimpleNamespace(log_internal=os.devnull)

    def log(self, row: dict[str, Any], step: int) -> None:
        assert not self.finished
        self.steps.append(step)
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


class Runs(dict[str, Recorder]):
    """The runs begun, by name; a run begun again goes on in a new recorder."""

    on_server = 0  # steps

    def begin(self, _: Tracker, name: str, kind: str, config: dict[str, Any]) -> Recorder:
        self[name] = Recorder(kind, config, self.on_server + 1 if self.on_server else 0)
        return self[name]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(Tracker, "begin", lambda *arguments: runs.begin(*arguments))
    monkeypatch.setattr(tracker, "picture", lambda path, caption=None: path.name)
    return runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials: finished, stopped, failed in its first epoch, and running."""
    folder = tmp_path_factory.mktemp("made") / "search"
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"search": "hparams", "axes": {}}))
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}")
    for number, (state, fids) in enumerate(zip(STATES, FIDS, strict=True)):
        study.add_trial(
            create_trial(state=state, value=1.0 if state == TrialState.COMPLETE else None)
        )
        trial = folder / f"trial_{number:04d}"
        trial.mkdir()
        settings = {"generator_lr": 1e-4 * (number + 1), "epochs": 3, "seed": 0}
        (trial / "params.json").write_text(json.dumps(settings))
        write(trial, [row(epoch, fid) for epoch, fid in enumerate(fids, start=1)])
    study.add_trial(create_trial(state=TrialState.WAITING))  # has no folder yet
    return folder


@pytest.fixture
def search(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "search")


def row(epoch: int, fid: float, lane: int = 0) -> dict[str, Any]:
    numbers = dict.fromkeys(NUMBERS, 1)
    return numbers | TEXTS | {"lane": lane, "epoch": epoch, "fid": fid, "collapsed": epoch == 1}


def write(trial: Path, rows: Sequence[dict[str, Any]]) -> None:
    (trial / "result.json").write_text("".join(json.dumps(one) + "\n" for one in rows))


def set_state(search: Path, number: int, state: str) -> None:
    with sqlite3.connect(search / "study.db") as database:
        database.execute("UPDATE trials SET state = ? WHERE number = ?", (state, number))
    database.close()


def logged(search: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((search / "wandb.json").read_text())["logged"]
    return known


def test_offline_a_trial_is_logged_once_it_has_ended(search: Path, runs: Runs) -> None:
    tracker = Tracker(Store(search), "offline")
    tracker.update(last=False)
    assert list(runs) == ["trial_0000", "trial_0001", "trial_0002"]
    first = runs["trial_0000"]
    assert first.steps == [1, 2, 3]
    assert first.config == {"generator_lr": 1e-4, "epochs": 3, "seed": 0, "replicas": 1}
    assert [one["fid"] for one in first.rows] == FIDS[0]
    assert first.rows[0].keys() == {*NUMBERS, "fid_std"}
    assert first.rows[0]["collapsed"] is True
    assert first.summary["best/epoch"] == 2
    assert first.summary["best/fid"] == 20.0
    assert first.tags == ("hparams", "trial", "finished")
    assert runs["trial_0001"].summary["status"] == "stopped"
    assert runs["trial_0002"].steps == []  # failed before its first epoch
    assert runs["trial_0002"].summary == {"status": "failed"}
    assert all(run.finished for run in runs.values())
    assert logged(search)["trial_0000"] == {"epochs": 3, "status": "finished"}


def test_nothing_is_logged_twice_by_this_tracker_or_the_next(search: Path, runs: Runs) -> None:
    tracker = Tracker(Store(search), "offline")
    tracker.update(last=False)
    runs.clear()
    tracker.update(last=False)
    assert not runs
    tracker.update(last=True)  # the search was interrupted: what the running trial has so far
    assert runs["trial_0003"].steps == [1, 2]
    assert runs["trial_0003"].finished
    assert list(runs) == ["trial_0003"]
    runs.clear()
    Tracker(Store(search), "offline").update(last=True)
    assert not runs


def test_a_resumed_trial_goes_on_after_the_epochs_logged_before(search: Path, runs: Runs) -> None:
    Tracker(Store(search), "offline").update(last=True)
    write(search / "trial_0003", [row(epoch, fid) for epoch, fid in enumerate([35, 32, 9], 1)])
    set_state(search, 3, "COMPLETE")
    runs.clear()
    Tracker(Store(search), "offline").update(last=False)
    assert runs["trial_0003"].steps == [3]
    assert runs["trial_0003"].summary["best/fid"] == 9
    assert runs["trial_0003"].summary["status"] == "finished"
    assert list(runs) == ["trial_0003"]


def test_online_running_trials_are_logged_as_they_go(search: Path, runs: Runs) -> None:
    tracker = Tracker(Store(search), "online")
    tracker.update(last=False)
    running = runs["trial_0003"]
    assert running.steps == [1, 2]
    assert not running.finished
    assert running.tags == ("hparams", "trial", "unfinished")
    write(search / "trial_0003", [row(epoch, 9.0) for epoch in (1, 2, 3)])
    tracker.update(last=False)
    assert running.steps == [1, 2, 3]
    set_state(search, 3, "PRUNED")
    tracker.update(last=False)
    assert running.summary["status"] == "stopped"
    assert running.finished
    assert runs["trial_0003"] is running


@pytest.mark.parametrize("on_server", [0, 1, 2])
def test_what_the_server_lacks_of_a_killed_trackers_run_is_logged(
    search: Path, runs: Runs, on_server: int
) -> None:
    Tracker(Store(search), "online").update(last=False)
    killed = json.loads((search / "wandb.json").read_text())
    assert "trial_0003" not in killed["logged"]
    assert killed["open"] == ["trial_0003"]
    runs.clear()
    runs.on_server = on_server
    Tracker(Store(search), "online").update(last=True)
    assert list(runs) == ["trial_0003"]
    assert runs["trial_0003"].steps == [1, 2][on_server:]
    record = json.loads((search / "wandb.json").read_text())
    assert (record["id"], record["open"]) == (killed["id"], [])
    assert logged(search)["trial_0003"] == {"epochs": 2, "status": "unfinished"}


def test_offline_a_run_that_was_left_open_online_is_left_alone(
    search: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """To write its rows again could double them, to leave out those handed over could lose them."""
    Tracker(Store(search), "online").update(last=False)
    runs.clear()
    own = Tracker(Store(search), "offline")
    own.update(last=True)
    assert not runs
    assert own.refused
    line = "begun online, and left to be logged online: trial_0003\n"
    assert capsys.readouterr().out == line
    Tracker(Store(search), "online").update(last=True)
    assert list(runs) == ["trial_0003"]
    assert not Tracker(Store(search), "offline").refused


def test_online_what_was_written_offline_is_not_logged_again(search: Path, runs: Runs) -> None:
    """It is yet to be uploaded."""
    Tracker(Store(search), "offline").update(last=True)
    write(search / "trial_0003", [row(epoch, fid) for epoch, fid in enumerate([35, 32, 9], 1)])
    runs.clear()
    Tracker(Store(search), "online").update(last=False)
    assert runs["trial_0003"].steps == [3]


LINE = {"time": "2026-11-30T05:48:11Z", "level": "ERROR"}
TASK = "DefaultUploadTask{FileKind: 3, Path: /s/wandb/run-1/files/media/images/samples_0.png}"


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ({"level": "ERROR+4", "msg": "filestream: fatal error: 403 Forbidden"}, True),
        ({"msg": "file transfer: upload: failed to upload: status: 403", "task": TASK}, True),
        ({"msg": "PUT http://x/samples_0.png giving up after 5 attempt(s)", "task": TASK}, True),
        ({"msg": "runfiles: CreateRunFiles returned error: 403"}, True),
        ({"msg": "api: HTTP error", "status": 403}, False),  # the errors above say what of
        ({"msg": "PUT http://x/a giving up", "task": TASK.replace("d: 3", "d: 2")}, False),
        ({"level": "INFO", "msg": "filestream: closed"}, False),
        ({"msg": "stream: failed to shut down analytics"}, False),
    ],
)
def test_what_wandb_gave_up_uploading_is_found_in_its_log(
    line: dict[str, Any], lost: bool, tmp_path: Path
) -> None:
    """In lines that it wrote, shortened."""
    log = tmp_path / "debug-internal.log"
    log.write_text(
        '{"level":"INFO","msg":"begun"}\n' + json.dumps(LINE | line, separators=(",", ":"))
    )
    run = Recorder("trial", {})
    run.settings = SimpleNamespace(log_internal=log)
    with pytest.raises(ConnectionError) if lost else nullcontext() as raised:
        finish(run)
    assert not lost or str(raised.value) == line["msg"]
    assert run.finished


def test_at_the_end_runs_are_complete_even_without_news(search: Path, runs: Runs) -> None:
    tracker = Tracker(Store(search), "online")
    tracker.update(last=False)
    assert not runs["trial_0003"].finished
    tracker.update(last=True)
    assert runs["trial_0003"].finished


def test_files_that_did_not_change_are_not_read_again(
    search: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Tracker(Store(search), "offline")
    follower.update(last=False)
    monkeypatch.setattr(tracker, "load_trials", lambda path: pytest.fail(f"{path} is read"))
    follower.update(last=False)


def test_of_several_lanes_the_mean_is_logged(search: Path, runs: Runs) -> None:
    trial = search / "trial_0000"
    lanes = [{"generator_lr": 1e-4, "epochs": 3, "seed": seed} for seed in (5, 6)]
    (trial / "params.json").write_text(json.dumps(lanes))
    write(trial, [row(1, 10.0, 0), row(1, 14.0, 1), row(2, 8.0, 0), row(2, 6.0, 1)])
    Tracker(Store(search), "offline").update(last=False)
    run = runs["trial_0000"]
    assert run.steps == [1, 2]
    assert [one["fid"] for one in run.rows] == [12.0, 7.0]
    assert [one["fid_std"] for one in run.rows] == pytest.approx([8**0.5, 2**0.5])
    assert [one["seconds_train"] for one in run.rows] == [2, 2]
    assert run.config == lanes[0] | {"replicas": 2}
    assert run.summary["best/fid"] == 7.0


def test_pictures_go_with_their_epochs(search: Path, runs: Runs) -> None:
    samples = search / "trial_0000" / "samples"
    samples.mkdir()
    for name in ("epoch_001.png", "epoch_003.png", "best.png"):
        (samples / name).write_bytes(b"x")
    Tracker(Store(search), "offline").update(last=False)
    shown = [one.get("samples") for one in runs["trial_0000"].rows]
    assert shown == ["epoch_001.png", None, "epoch_003.png"]
    assert runs["trial_0000"].summary["best/samples"] == "best.png"


def test_the_confirm_stage_is_logged_too(search: Path, runs: Runs) -> None:
    stage = search / "confirm"
    stage.mkdir()
    shutil.copy(search / "study.db", stage)
    shutil.copytree(search / "trial_0000", stage / "trial_0000")
    Tracker(Store(search), "offline").update(last=False)
    assert runs["confirm/trial_0000"].kind == "confirm"
    assert runs["confirm/trial_0000"].tags == ("hparams", "confirm", "finished")
    assert runs["trial_0000"].kind == "trial"


def test_a_record_of_an_earlier_version_is_gone_on_with(search: Path, runs: Runs) -> None:
    told = {"trial_0000": {"epochs": 2, "status": "unfinished"}}
    record = {"id": "abc", "told": told, "runs": [], "answers": []}
    (search / "wandb.json").write_text(json.dumps(record))
    Tracker(Store(search), "offline").update(last=False)
    assert runs["trial_0000"].steps == [3]
    assert logged(search)["trial_0000"] == {"epochs": 3, "status": "finished"}


def test_what_an_earlier_version_logged_of_the_answer_is_not_logged_again(
    search: Path, runs: Runs
) -> None:
    record = {"id": "abc", "logged": {}, "runs": [], "answers": ["1", "2"], "dashboard": "https://"}
    (search / "wandb.json").write_text(json.dumps(record))
    parts = dict.fromkeys(("table", "model", "answer"), "2") | {"dashboard": "made"}
    own = Tracker(Store(search), "online")
    assert own.parts == parts
    assert own.record["tables"] == 2
    assert "answers" not in own.record


def test_a_run_that_was_killed_as_it_wrote_is_logged_again(search: Path, runs: Runs) -> None:
    for name in ("offline-run-1", "offline-run-2"):
        (search / "wandb" / name).mkdir(parents=True)
    record = {"id": "abc", "logged": {}, "runs": ["offline-run-1"], "answers": []}
    (search / "wandb.json").write_text(json.dumps(record))
    Tracker(Store(search), "offline")
    assert [path.name for path in (search / "wandb").iterdir()] == ["offline-run-1"]


class Killed(BaseException):
    """The tracker's process ends."""


class Writes:
    """The durable writes of offline tracking, in order: a run's folder as it begins, its content as
    it ends, and the record. One of them is the last, before or after it."""

    def __init__(self, search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.search, self.count, self.at, self.after = search, 0, -1, False
        record = tracker.write_json
        monkeypatch.setattr(tracker, "write_json", lambda *told: self.write(lambda: record(*told)))
        monkeypatch.setattr(Tracker, "begin", lambda *given: self.begin(*given))
        monkeypatch.setattr(tracker, "picture", lambda path, caption=None: path.name)

    def write(self, write: Callable[[], Any]) -> None:
        self.count += 1
        if self.count - 1 != self.at:
            write()
            return
        if self.after:
            write()
        raise Killed

    def begin(self, own: Tracker, name: str, kind: str, config: dict[str, Any]) -> Recorder:
        taken = len(list((self.search / "wandb").glob("*")))
        folder = self.search / "wandb" / f"offline-run-{self.count}-{taken}"
        run = Recorder(kind, config)
        self.write(lambda: folder.mkdir(parents=True))
        own.record["runs"].append(folder.name)

        def finish() -> None:
            lines = [[name, step] for step in run.steps]
            self.write(lambda: (folder / "run.wandb").write_text(json.dumps(lines)))

        run.finish = finish  # type: ignore[method-assign]
        return run

    def kept(self) -> list[list[Any]]:
        """Name and step of all that would be uploaded."""
        files = (self.search / "wandb").glob("*/run.wandb")
        return sorted(line for file in files for line in json.loads(file.read_text()))


def test_killed_at_any_write_each_step_is_kept_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(shutil.copytree(made, tmp_path / "whole"), monkeypatch)
    Tracker(Store(writes.search), "offline").update(last=True)
    whole, count = writes.kept(), writes.count
    steps = [
        [f"trial_{n:04d}", epoch + 1] for n, fids in enumerate(FIDS) for epoch in range(len(fids))
    ]
    assert whole == steps
    assert count == 1 + 3 * len(FIDS)
    for at, after in itertools.product(range(count), (False, True)):
        writes.search = shutil.copytree(made, tmp_path / f"{at} {after}")
        writes.count, writes.at, writes.after = 0, at, after
        with pytest.raises(Killed):
            Tracker(Store(writes.search), "offline").update(last=True)
        writes.at = -1
        Tracker(Store(writes.search), "offline").update(last=True)
        assert writes.kept() == whole, (at, after)


def test_a_study_that_cannot_be_read_is_an_error(search: Path, runs: Runs) -> None:
    (search / "study.db").write_text("no database")
    with pytest.raises(sqlite3.DatabaseError, match="file is not a database"):
        Tracker(Store(search), "offline").update(last=False)


def test_the_searchs_own_run_shows_its_settings_as_a_picture(search: Path) -> None:
    about = {"search": "hparams", "axes": {"generator_lr": "0.0001 to 0.0004"}}
    (search / "search.json").write_text(json.dumps(about))
    table = rank(load_trials(search), about)
    shown = Tracker(Store(search), "offline").charts(table, table[:1].to_dict("records"))
    assert list(shown) == ["trials", "best trials", "settings"]  # too few for importances
    assert shown["settings"].image.size > (300, 300)
    assert shown["trials"].columns == list(table)
