"""What W&B knows of a search, read from its offline files by W&B's own reader, and the process that
writes them."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from wandb.util import get_core_path

from dcgan.files import read_rows
from dcgan.schema import CONFIRM_FOLDER, ROWS_FILE, TRIALS_PATTERN

LIMIT_SECONDS = 120


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


def inspect(written: Path) -> list[dict[str, Any]]:
    """The records of an offline run's folder, in order, as `wandb leet inspect` prints them: by the
    program that this starts, which is there in a tenth of the time."""
    (file,) = written.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    command += ["--run-file", str(file), str(written.parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def read_runs(folder: Path) -> dict[str, Run]:
    """Offline runs by the name of their trial."""
    runs: dict[str, Run] = {}
    folders = sorted((folder / "wandb").glob("offline-run-*"))
    with ThreadPoolExecutor(2) as pool:
        inspected = list(pool.map(inspect, folders))
    for written, records in zip(folders, inspected, strict=True):
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
                entries = content["manifest"]["contents"]
                found.artifacts[content["type"]] = {entry["path"] for entry in entries}
            elif record["type"] == "files":
                found.files += [file["path"] for file in content["files"]]
        types = [record["type"] for record in records]
        assert "exit" in types, f"the run is not complete: {types}"
        # what describes the machine is gathered meanwhile, and may come after
        assert set(types[types.index("exit") :]) <= {"exit", "environment"}, types
    return runs


def epochs_of(trial: Path) -> list[dict[str, Any]]:
    """Numbers of each epoch of a trial as they stand in its files: of a single lane all, of several
    lanes some means and a sum."""
    by_epoch: dict[int, list[dict[str, Any]]] = {}
    for row in read_rows(trial / ROWS_FILE):
        by_epoch.setdefault(row["epoch"], []).append(row)
    return [numbers_of(lanes) for lanes in by_epoch.values()]


def numbers_of(lanes: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = lanes
    if not others:
        numbers = {name: value for name, value in first.items() if isinstance(value, int | float)}
        del numbers["lane"]
        return numbers
    means = {name: fmean(row[name] for row in lanes) for name in ("fid", "kid", "generator_loss")}
    seconds = sum(row["seconds_train"] for row in lanes)
    deviation = stdev(row["fid"] for row in lanes)
    return {"epoch": first["epoch"], **means, "seconds_train": seconds, "fid_std": deviation}


def assert_logged_once(folder: Path, *, all_of_it: bool = True) -> dict[str, Run]:
    """Each trial's run has each of its epochs once, with its values; or at least the first ones."""
    runs = read_runs(folder)
    stages = (folder, folder / CONFIRM_FOLDER)
    trials = {
        str(trial.relative_to(folder)): trial
        for stage in stages
        for trial in stage.glob(TRIALS_PATTERN)
    }
    assert runs.keys() - {"summary"} <= trials.keys()
    assert not all_of_it or runs.keys() >= trials.keys()
    for name in runs.keys() - {"summary"}:
        run, epochs = runs[name], epochs_of(trials[name])
        expected = [epoch["epoch"] for epoch in epochs]
        assert run.steps == (expected if all_of_it else expected[: len(run.steps)])
        for item, epoch in zip(run.history, epochs, strict=all_of_it):
            assert {key: item[key] for key in epoch} == pytest.approx(epoch)
    assert len({run.about["run_id"] for run in runs.values()}) == len(runs)
    return runs


def follower(folder: Path) -> int | None:
    """The process that follows a search, if there is one."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"tune.track" in words and str(folder).encode() in words:
            return int(entry.parent.name)
    return None


def wait_for_follower(folder: Path) -> None:
    """Waits until nothing follows the search any more."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while follower(folder) is not None:
        assert time.monotonic() < deadline, "the tracker has not ended in time"
        time.sleep(0.2)
