"""The README's search as W&B, offline, knows it, read back with W&B's own reader. What becomes of
tracking when a search is killed, or W&B cannot be reached, is in test_kills.py and
test_variants.py."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from search_processes import wait_for
from tensorboardX.proto.event_pb2 import Event
from wandb_runs import Run, assert_logged_once, epochs_of

from analysis.load import load_trials, read_search
from analysis.tables import ranking
from analysis.tracker import dashboard, dashboard_url
from dcgan.files import read_rows
from dcgan.schema import COLUMNS

ROOT = Path(__file__).parents[2]
# the first test that needs the search runs it
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


@dataclass(frozen=True)
class Tracked:
    """A search that ended, with its confirm stage, and what W&B knows of it."""

    folder: Path
    output: str
    runs: dict[str, Run]
    table: pd.DataFrame


@pytest.fixture(scope="module")
def tracked(readme_search: Any) -> Tracked:
    folder = readme_search.folder
    runs = assert_logged_once(folder)
    return Tracked(folder, readme_search.output, runs, ranking(load_trials(folder)))


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
    confirm = read_search(folder / "confirm")
    confirmed = len(confirm["candidates"]) * len(confirm["seeds"])
    assert len(runs) == len(tracked.table) + confirmed + 1
    assert {logged.about["run_group"] for logged in runs.values()} == {folder.name}
    for number in range(confirmed):
        assert runs[f"confirm/trial_{number:04d}"].about["job_type"] == "confirm"


def test_each_trial_is_a_run_with_its_settings_best_epoch_and_samples(tracked: Tracked) -> None:
    for name in tracked.table["trial"]:
        logged, trial = tracked.runs[name], tracked.folder / name
        settings = json.loads((trial / "params.json").read_text())
        assert logged.config | {"_wandb": None} == settings | {"replicas": 1, "_wandb": None}
        epochs = epochs_of(trial)
        best = min(epochs, key=lambda row: row["fid"])
        assert logged.summary["best/epoch"] == best["epoch"]
        assert logged.summary["best/fid"] == pytest.approx(best["fid"])
        assert logged.summary["fid"] == pytest.approx(epochs[-1]["fid"])
        assert set(logged.tags) == {"hparams", "trial", logged.summary["status"]}
        shown = [item for item in logged.history if "samples.path" in item]
        assert [item["epoch"] for item in shown][:3] == [1, 2, 3][: len(epochs)]
        assert len(shown) == len(list(trial.glob("samples/epoch_*.png")))
        for item in shown:  # they travel as files
            file = logged.folders[0] / "files" / item["samples.path"]
            assert file.read_bytes().startswith(b"\x89PNG")
    statuses = {tracked.runs[name].summary["status"] for name in tracked.table["trial"]}
    assert statuses == set(tracked.table["status"])


def test_tensorboard_has_each_number_of_each_epoch_once(tracked: Tracked) -> None:
    for name in tracked.table["trial"]:
        expected = [
            (row["epoch"], column, value)
            for row in read_rows(tracked.folder / name / "result.json")
            for column, value in row.items()
            if isinstance(value, int | float) and column != "lane"
        ]
        found = events(tracked.folder / name)
        assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
        values = [float(entry[2]) for entry in expected]
        assert [entry[2] for entry in found] == pytest.approx(values, rel=1e-6)


def test_the_search_is_a_run_with_its_answer(tracked: Tracked) -> None:
    summary, table = tracked.runs["summary"], tracked.table
    assert summary.summary["best/trial"] == table["trial"][0]
    assert summary.summary["best/fid"] == pytest.approx(table["fid"][0])
    finished = table.dropna(subset="rank")
    assert summary.history[0]["best trials.captions"] == list(finished["trial"][:5])
    exported = {"generator.safetensors", "params.json", "README.md"}
    assert summary.artifacts["model"] == {"checkpoint.pt", *exported}
    answer = {"table.csv", "best.json", "confirm.md", "report.html", "answer.json"}
    assert answer <= summary.artifacts["answer"]
    assert any(file.startswith("media/images/settings") for file in summary.files)
    assert [row["trial"] for row in logged_table(summary)] == list(table["trial"])


def logged_table(summary: Run) -> list[dict[str, Any]]:
    (name,) = (file for file in summary.files if file.startswith("media/table/trials"))
    content = json.loads((summary.folders[0] / "files" / name).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_nothing_is_logged_twice(tracked: Tracked, tmp_path: Path) -> None:
    """Whoever calls the tracker again."""
    folder = shutil.copytree(tracked.folder, tmp_path / tracked.folder.name)
    before = content(folder)
    command = [sys.executable, "-m", "tune.track", folder, "--wandb", "offline"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert content(folder) == before


def test_of_several_that_log_a_search_one_waits(undisturbed: Path, tmp_path: Path) -> None:
    """As where a search is interrupted and resumed at once."""
    folder = shutil.copytree(undisturbed, tmp_path / "s")
    command = [sys.executable, "-m", "tune.track", folder, "--wandb", "offline"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*command, "--follow"], cwd=ROOT, **pipes)
    wait_for((folder / "wandb.json").is_file, first)
    second = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert second.stdout
    line = second.stdout.readline()
    assert line == "waiting for another process, which logs this search\n"
    assert first.communicate(timeout=200)[0] == ""  # which ends its input
    assert second.communicate(timeout=200)[0] == ""
    assert (first.returncode, second.returncode) == (0, 0)
    assert "summary" in assert_logged_once(folder)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.wandb")}


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
