"""Searches logged to W&B, offline, read back with W&B's own reader; and what becomes of a search
when W&B does not work."""

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_processes import QUICK, ROOT, TINY, end_all, epochs_by_trial, run, start, wait_for
from tensorboardX.proto.event_pb2 import Event
from wandb_runs import Run, assert_logged_once, epochs_of, follower, wait_for_follower

from analysis.load import load_trials
from analysis.tables import ranking
from analysis.tracker import dashboard, dashboard_url
from dcgan.schema import COLUMNS

KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


class Tracked:
    """A search of two seeds a trial that ended, with its confirm stage, and what W&B knows of
    it."""

    def __init__(self, storage: Path) -> None:
        arguments = ["--search", "hparams", "--num-trials", "4", "--epochs", "3"]
        arguments += ["--replicas", "2", "--confirm", "1", "--confirm-seeds", "1"]
        arguments += ["--wandb", "offline", *TINY, "--storage", str(storage), "--name", "s"]
        self.storage, self.folder = storage, storage / "s"
        self.code, self.output = run(arguments, storage / "home")
        assert self.code == 0, self.output
        self.runs = assert_logged_once(self.folder)
        self.table = ranking(load_trials(self.folder))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return Tracked(tmp_path_factory.mktemp("tracked"))


def events(trial: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of everything in a trial's TensorBoard file (TFRecord: length, its
    check, record, its check)."""
    (file,) = trial.glob("events.out.tfevents.*")
    content, found, at = file.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + length
    return found


def test_a_search_is_logged_whole(tracked: Tracked) -> None:
    folder, runs = tracked.folder, tracked.runs
    assert f"tracking W&B, offline: wandb sync -n 8 {folder}/wandb/offline-run-*" in tracked.output
    assert "W&B has not got everything" not in tracked.output
    assert (folder / "wandb.log").read_text() == ""
    assert len(runs) == 4 + 2 + 1
    assert {logged.about["run_group"] for logged in runs.values()} == {"s"}
    for number in (0, 1):
        assert runs[f"confirm/trial_{number:04d}"].about["job_type"] == "confirm"


def test_each_trial_is_a_run_with_its_settings_best_epoch_and_samples(tracked: Tracked) -> None:
    for name in tracked.table["trial"]:
        logged, trial = tracked.runs[name], tracked.folder / name
        settings = json.loads((trial / "params.json").read_text())
        assert logged.config | {"_wandb": None} == settings[0] | {"replicas": 2, "_wandb": None}
        epochs = epochs_of(trial)
        best = min(epochs, key=lambda row: row["fid"])
        assert logged.summary["best/epoch"] == best["epoch"]
        assert logged.summary["best/fid"] == pytest.approx(best["fid"])
        assert logged.summary["fid"] == pytest.approx(epochs[-1]["fid"])
        assert logged.summary["status"] in ("finished", "stopped")
        assert set(logged.tags) == {"hparams", "trial", logged.summary["status"]}
        for item in logged.history:  # epochs 1, 2 and 3 have samples; they travel as files
            file = logged.folders[0] / "files" / item["samples.path"]
            assert file.read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_what_wandb_has(tracked: Tracked) -> None:
    for name in tracked.table["trial"]:
        found = events(tracked.folder / name)
        history = {item["epoch"]: item for item in tracked.runs[name].history}
        numbers = set(history[1]) & set(COLUMNS)
        assert sorted((step, column) for step, column, _ in found) == sorted(
            (epoch, column) for epoch in history for column in numbers
        )
        for step, column, value in found:
            assert value == pytest.approx(float(history[step][column]), rel=1e-5)


def test_the_search_is_a_run_with_its_answer(tracked: Tracked) -> None:
    summary, table = tracked.runs["summary"], tracked.table
    assert summary.summary["best/trial"] == table["trial"][0]
    assert summary.summary["best/fid"] == pytest.approx(table["fid"][0])
    assert summary.history[0]["best trials.captions"] == list(table["trial"])
    assert summary.artifacts["model"] == {"checkpoint.pt"}
    assert {"table.csv", "best.json", "confirm.md", "report.html"} <= summary.artifacts["answer"]
    assert any(file.startswith("media/plotly/settings") for file in summary.files)
    assert [row["trial"] for row in logged_table(summary)] == list(table["trial"])


def logged_table(summary: Run) -> list[dict[str, Any]]:
    (name,) = (file for file in summary.files if file.startswith("media/table/trials"))
    content = json.loads((summary.folders[0] / "files" / name).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_resuming_a_search_with_nothing_left_logs_nothing_twice(tracked: Tracked) -> None:
    before = times(tracked.folder)
    arguments = ["--resume", "s", "--storage", str(tracked.storage)]
    code, output = run(arguments, tracked.storage / "home")
    assert code == 0, output
    assert times(tracked.folder) == before


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.wandb")}


@pytest.mark.parametrize("victim", ["Ctrl-C", "driver", "tracker"])
def test_each_epoch_is_logged_once_whoever_is_killed(victim: str, tmp_path: Path) -> None:
    arguments = ["--search", "hparams", "--num-trials", "5", "--epochs", "4"]
    arguments += ["--scheduler", "fifo", "--wandb", "offline", *QUICK]
    process = start([*arguments, "--storage", str(tmp_path), "--name", "s"], tmp_path / "home")
    folder = tmp_path / "s"

    def under_way() -> bool:
        rows = sum(map(len, epochs_by_trial(folder).values()))
        return rows >= 6 and (folder / "wandb.json").is_file()

    wait_for(under_way, process)
    tracker = follower(folder)
    assert tracker is not None
    if victim == "tracker":
        os.kill(tracker, signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output  # the search does not notice
        assert sorted(epochs_by_trial(folder).values()) == [[1, 2, 3, 4]] * 5
        command = re.search(r"has not got everything: see .*; log the rest by: (.*)", output)
        assert command, output
        words = shlex.split(command[1])
        subprocess.run([sys.executable, *words[1:], "--wandb", "offline"], cwd=ROOT, check=True)
    else:
        os.killpg(process.pid, signal.SIGINT if victim == "Ctrl-C" else signal.SIGKILL)
        process.communicate(timeout=60)
        wait_for_follower(folder)  # it logs what there is, and ends
        # workers may have ended an epoch later than the tracker
        assert_logged_once(folder, all_of_it=False)
        code, output = run(["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home")
        assert code == 0, output
    assert "summary" in assert_logged_once(folder)


def test_an_unreachable_server_costs_only_the_tracking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    arguments = ["--search", "hparams", "--num-trials", "2", "--epochs", "1", *QUICK]
    arguments += ["--wandb", "online", "--storage", str(tmp_path), "--name", "s"]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    assert "tracking W&B, online" in output
    assert "best: trial_" in output
    wait_for_follower(tmp_path / "s")
    assert "cannot be reached" in (tmp_path / "s" / "wandb.log").read_text()
    assert_logged_once(tmp_path / "s")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_disabled_leaves_no_trace(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--epochs", "1", *QUICK, "--wandb", "disabled"]
    arguments += ["--storage", str(tmp_path), "--name", "s"]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    assert "tracking off" in output
    assert not list((tmp_path / "s").glob("wandb*"))


AXES: dict[str, Any] = {
    "generator_lr": {
        "name": "FloatDistribution",
        "attributes": {"low": 5e-5, "high": 5e-3, "log": True, "step": None},
    },
    "optimizer": {"name": "CategoricalDistribution", "attributes": {"choices": ["adam"]}},
}


def test_the_dashboard_shows_the_searchs_runs_alone_with_samples_and_settings() -> None:
    """What would be sent to a server; there is none to save it to."""
    model = dashboard("somebody", "dcgan-tune", "hparams-1", AXES)._to_model()
    section = json.loads(
        json.dumps(model.model_dump(by_alias=True)["spec"]["section"], default=str)
    )
    (chosen,) = section["runSets"][0]["filters"]["filters"]
    assert (chosen["key"]["name"], chosen["op"], chosen["value"]) == ("group", "=", "hparams-1")
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    of_type: dict[str, list[Any]] = {}
    for panel in panels:
        of_type.setdefault(panel["viewType"], []).append(panel["config"])
    lines = of_type["Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"epoch"}
    assert {name for line in lines for name in line["metrics"]} <= set(COLUMNS)
    assert [browser["mediaKeys"] for browser in of_type["Media Browser"]] == [["samples"]]
    (parallel,) = of_type["Parallel Coordinates Plot"]
    assert [(column["accessor"], column["log"]) for column in parallel["columns"]] == [
        ("config:generator_lr.value", True),
        ("config:optimizer.value", False),
        ("summary:best/fid", None),
    ]


def test_the_dashboards_address_is_known_once_it_is_made(tmp_path: Path) -> None:
    assert dashboard_url(tmp_path) is None
    (tmp_path / "wandb.json").write_text('{"logged": {}}')
    assert dashboard_url(tmp_path) is None
    (tmp_path / "wandb.json").write_text('{"dashboard": "https://example.org/view"}')
    assert dashboard_url(tmp_path) == "https://example.org/view"
