"""Searches told to W&B, offline, read back with W&B's own reader; and what becomes of a search when W&B does not work."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from search_processes import QUICK, ROOT, TINY, end_all, epochs_by_trial, rows_now, run, start, wait_for
from tensorboardX.proto.event_pb2 import Event

from analysis.load import load_trials
from analysis.tables import ranking
from dcgan.schema import COLUMNS
from tune.track import dashboard, dashboard_url

SEARCH = ["--search", "hparams", "--num-trials", "4", "--epochs", "3", "--wandb", "offline"]
KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


@dataclass
class Run:
    """What W&B knows of one run, from all the folders that were written of it."""

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    """The files in each, by its type."""
    files: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [item["_step"] for item in self.history]


def read_runs(folder: Path) -> dict[str, Run]:
    """Offline runs by the name of their trial."""
    runs: dict[str, Run] = {}
    for written in sorted((folder / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(written)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        (about,) = [record["run"] for record in records if record["type"] == "run"][:1]
        found = runs.setdefault(about["display_name"].partition("/")[2], Run())
        found.about, found.folders = about, [*found.folders, written]
        found.config |= about["config"]["update"]
        for record in records:
            content = record.get(record["type"], {})
            if record["type"] == "run":
                found.tags = content.get("tags", found.tags)
            elif record["type"] == "history":
                found.history.append(content["item"])
            elif record["type"] == "summary":
                found.summary |= content.get("update", {})
            elif record["type"] == "artifact":
                found.artifacts[content["type"]] = {entry["path"] for entry in content["manifest"]["contents"]}
            elif record["type"] == "files":
                found.files += [file["path"] for file in content["files"]]
        assert records[-1]["type"] == "exit", "the run is not complete"
    return runs


def rows_of(trial: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def assert_told_once(folder: Path, *, all_of_it: bool = True) -> None:
    """Each trial's run has each of its epochs once, with its values; or at least the first ones."""
    runs = read_runs(folder)
    trials = {str(trial.relative_to(folder)): trial for trial in (*folder.glob("trial_*"), *folder.glob("confirm/trial_*"))}
    assert runs.keys() - {"summary"} <= trials.keys()
    assert not all_of_it or runs.keys() >= trials.keys()
    for name in runs.keys() - {"summary"}:
        told, rows = runs[name], rows_of(trials[name])
        assert told.steps == [row["epoch"] for row in rows][: None if all_of_it else len(told.steps)]
        for item, row in zip(told.history, rows, strict=all_of_it):
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            assert {name: item[name] for name in numbers} == pytest.approx(numbers)
    assert len({told.about["run_id"] for told in runs.values()}) == len(runs)


def events(trial: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of everything in a trial's TensorBoard file (TFRecord: length, its check, record, its check)."""
    (file,) = trial.glob("events.out.tfevents.*")
    content, found, at = file.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + length
    return found


def test_a_search_is_told_whole(tmp_path: Path) -> None:
    arguments = [*SEARCH, *TINY, "--confirm", "1", "--confirm-seeds", "1", "--storage", str(tmp_path), "--name", "s"]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    folder = tmp_path / "s"
    assert f"tracking W&B, offline: wandb sync -n 8 {folder}/wandb/offline-run-*" in output
    assert "W&B was not told" not in output
    assert (folder / "wandb.log").read_text() == ""
    assert_told_once(folder)

    runs, table = read_runs(folder), ranking(load_trials(folder))
    assert len(runs) == 4 + 2 + 1
    assert {told.about["run_group"] for told in runs.values()} == {"s"}
    for name in table["trial"]:
        told, rows = runs[name], rows_of(folder / name)
        assert told.config | {"_wandb": None} == json.loads((folder / name / "params.json").read_text()) | {"_wandb": None}
        best = min(rows, key=lambda row: row["fid"])
        assert told.summary["best/epoch"] == best["epoch"]
        assert told.summary["best/fid"] == pytest.approx(best["fid"])
        assert told.summary["fid"] == pytest.approx(rows[-1]["fid"])
        assert told.summary["status"] in ("finished", "stopped")
        assert set(told.tags) == {"hparams", "trial", told.summary["status"]}
        for item in told.history:  # epochs 1, 2 and 3 have samples; they travel as files
            path = item["samples.path"]
            assert (told.folders[0] / "files" / path).read_bytes().startswith(b"\x89PNG")
        assert not any("samples" in row for row in rows)
        expected = [(row["epoch"], column) for row in rows for column, value in row.items() if isinstance(value, int | float)]
        assert [(step, column) for step, column, _ in events(folder / name)] == expected
    assert [runs[f"confirm/trial_{i:04d}"].about["job_type"] for i in (0, 1)] == ["confirm", "confirm"]

    summary = runs["summary"]
    assert summary.summary["best/trial"] == table["trial"][0]
    assert summary.summary["best/fid"] == pytest.approx(table["fid"][0])
    assert summary.history[0]["best trials.captions"] == list(table["trial"])
    assert summary.artifacts["model"] == {"checkpoint.pt"}
    assert {"table.csv", "best.json", "confirm.md", "report.html"} <= summary.artifacts["answer"]
    assert any(file.startswith("media/plotly/settings") for file in summary.files)
    (trials,) = (file for file in summary.files if file.startswith("media/table/trials"))
    content = json.loads((summary.folders[0] / "files" / trials).read_text())
    assert [row[content["columns"].index("trial")] for row in content["data"]] == list(table["trial"])

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wandb")}
    code, output = run(["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home")
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wandb")} == before  # nothing is told twice


@pytest.mark.parametrize("victim", ["Ctrl-C", "driver", "tracker"])
def test_each_epoch_is_told_once_whoever_is_killed(victim: str, tmp_path: Path) -> None:
    arguments = ["--search", "hparams", "--num-trials", "5", "--epochs", "4", "--scheduler", "fifo", "--wandb", "offline"]
    process = start([*arguments, *QUICK, "--storage", str(tmp_path), "--name", "s"], tmp_path / "home")
    folder = tmp_path / "s"
    wait_for(lambda: rows_now(folder) >= 6 and (folder / "wandb.json").is_file(), process)
    tracker = follower(folder)
    if victim == "tracker":
        os.kill(tracker, signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output  # the search does not notice
        assert sorted(epochs_by_trial(folder).values()) == [[1, 2, 3, 4]] * 5
        command = re.search(r"W&B was not told all: see .*; tell it by: python (-m tune.track .*)", output)
        assert command, output
        subprocess.run([sys.executable, *command[1].split(), "--wandb", "offline"], cwd=ROOT, check=True)
    else:
        if victim == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{tracker}").exists():  # it tells what there is, and ends
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert_told_once(folder, all_of_it=False)  # workers may have ended an epoch later than the tracker
        code, output = run(["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home")
        assert code == 0, output
    assert_told_once(folder)
    assert "summary" in read_runs(folder)


def follower(folder: Path) -> int:
    """The process that follows a search."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"tune.track" in words and str(folder).encode() in words:
            return int(entry.parent.name)
    raise AssertionError("nothing follows the search")


def test_an_unreachable_server_costs_only_the_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    arguments = ["--search", "hparams", "--num-trials", "2", "--epochs", "1", "--wandb", "online", *QUICK]
    code, output = run([*arguments, "--storage", str(tmp_path), "--name", "s"], tmp_path / "home")
    assert code == 0, output
    assert "tracking W&B, online" in output
    assert "best: trial_" in output
    wait_for_tracker(tmp_path / "s")
    assert "cannot be reached" in (tmp_path / "s" / "wandb.log").read_text()
    assert_told_once(tmp_path / "s")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def wait_for_tracker(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            follower(folder)
        except AssertionError:
            return
        time.sleep(0.2)


def test_disabled_leaves_no_trace(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--epochs", "1", *QUICK, "--wandb", "disabled"]
    code, output = run([*arguments, "--storage", str(tmp_path), "--name", "s"], tmp_path / "home")
    assert code == 0, output
    assert "tracking off" in output
    assert not list((tmp_path / "s").glob("wandb*"))


def test_the_dashboard_shows_the_searchs_runs_alone_with_samples_and_settings() -> None:
    """What would be sent to a server; there is none here to save it to."""
    axes = {"generator_lr": "5e-05 to 0.005, log-uniform", "optimizer": "adam, rmsprop"}
    view = dashboard("somebody", "dcgan-tune", "hparams-1", axes)._to_model().model_dump(by_alias=True)
    section = json.loads(json.dumps(view["spec"]["section"], default=str))
    (chosen,) = section["runSets"][0]["filters"]["filters"]
    assert (chosen["key"]["name"], chosen["op"], chosen["value"]) == ("group", "=", "hparams-1")
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"epoch"}
    assert {name for line in lines for name in line["metrics"]} <= set(COLUMNS)
    assert [panel["config"]["mediaKeys"] for panel in panels if panel["viewType"] == "Media Browser"] == [["samples"]]
    (parallel,) = (panel["config"]["columns"] for panel in panels if panel["viewType"] == "Parallel Coordinates Plot")
    assert [(column["accessor"], column["log"]) for column in parallel] == [
        ("config:generator_lr.value", True),
        ("config:optimizer.value", False),
        ("summary:best/fid", None),
    ]


def test_the_dashboards_address_is_known_once_it_is_made(tmp_path: Path) -> None:
    assert dashboard_url(tmp_path) is None
    (tmp_path / "wandb.json").write_text('{"told": {}}')
    assert dashboard_url(tmp_path) is None
    (tmp_path / "wandb.json").write_text('{"dashboard": "https://example.org/view"}')
    assert dashboard_url(tmp_path) == "https://example.org/view"
