"""Whatever is killed, and whenever: after `--resume` the search ends as if nothing had happened."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from search_processes import QUICK, end_all, epochs_by_trial, rows_now, run, start

from analysis.load import load_trials

SEARCH = ["--search", "hparams", "--num-trials", "4", "--epochs", "4", "--seed", "3", *QUICK]
ONE_AT_A_TIME = [*SEARCH, "--max-concurrent", "1"]
MEASURED = ("seconds_train", "seconds_eval", "images_per_second", "peak_memory_bytes")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


def processes(driver: int) -> dict[str, list[int]]:
    """Pids of a search's processes by kind: its driver, the parts of its Ray node, and its workers."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(parent), command) for pid, parent, command in (line.split(None, 2) for line in listing.splitlines())]
    family = {driver}
    while more := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= more
    found: dict[str, list[int]] = {"driver": [driver], "raylet": [], "gcs_server": [], "worker": []}
    for pid, _, command in rows:
        if pid in family:
            kind = Path(command.split()[0]).name
            if kind in found:
                found[kind].append(pid)
            elif command.startswith("ray::ImplicitFunc"):  # a trainable
                found["worker"].append(pid)
    return found


def study(folder: Path) -> list[dict[str, Any]]:
    """What Optuna knows of each trial, but for its times."""
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db").get_trials()
    return [
        {"number": t.number, "state": t.state.name, "params": t.params, "values": t.values, "epochs": t.intermediate_values}
        for t in trials
    ]


def rows(folder: Path) -> Any:
    return load_trials(folder).drop(columns=list(MEASURED))


def another_row(process: subprocess.Popen[str], folder: Path) -> bool:
    """Waits for the next row; False if the search ends before."""
    now = rows_now(folder)
    while rows_now(folder) <= now and process.poll() is None:
        time.sleep(0.05)
    return process.poll() is None


def kill(process: subprocess.Popen[str], kind: str) -> None:
    """Kills one of a search's processes of that kind, if there is one at the moment."""
    for pid in processes(process.pid)[kind][:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def resume(folder: Path) -> list[str]:
    return ["--resume", folder.name, "--storage", str(folder.parent)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with one trial at a time that nobody disturbs."""
    base = tmp_path_factory.mktemp("undisturbed")
    code, output = run([*ONE_AT_A_TIME, "--storage", str(base), "--name", "s"], base / "home")
    assert code == 0, output
    return base / "s"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again_a_search_ends_as_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    """Decision for decision and row for row, whichever of its processes dies at whatever moment."""
    rng = random.Random(time.time_ns())  # other moments each time
    folder, home = tmp_path / "s", tmp_path / "home"
    process = start([*ONE_AT_A_TIME, "--storage", str(tmp_path), "--name", "s"], home)
    for kind in rng.sample(["driver", "raylet", "gcs_server", "worker"], k=4):
        if not another_row(process, folder):
            break
        time.sleep(rng.random())
        kill(process, kind)
        if kind != "worker":
            process.communicate(timeout=120)
            process = start(resume(folder), home)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert study(folder) == study(undisturbed)
    assert rows(folder).equals(rows(undisturbed))


def test_two_trials_at_a_time_are_all_there_after_a_kill(tmp_path: Path) -> None:
    folder, home = tmp_path / "s", tmp_path / "home"
    process = start([*SEARCH, "--storage", str(tmp_path), "--name", "s"], home)
    assert another_row(process, folder)
    assert another_row(process, folder)
    before = rows(folder)
    kill(process, "raylet")
    output, _ = process.communicate(timeout=60)  # the driver is not left waiting for a dead node
    assert "Ray's raylet died" in output
    assert f"go on with: python -m tune.run --resume s --storage {tmp_path}" in output
    code, output = run(resume(folder), home)
    assert code == 0, output
    trials = study(folder)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    after = rows(folder)
    for trial, epochs in epochs_by_trial(folder).items():
        assert epochs == list(range(1, len(epochs) + 1))
        assert epochs == list(trials[int(trial[-4:])]["epochs"])
    known = before.dropna(subset=["epoch"]).merge(after, on=["trial", "epoch"], suffixes=("_before", ""))
    assert len(known) == len(before.dropna(subset=["epoch"]))
    assert (known["fid"] == known["fid_before"]).all()


@pytest.mark.timeout(600)
def test_a_trial_whose_worker_always_dies_fails_and_is_retried_when_asked(tmp_path: Path) -> None:
    folder, home = tmp_path / "s", tmp_path / "home"
    process = start(["--search", "baseline", "--epochs", "2", *QUICK, "--storage", str(tmp_path), "--name", "s"], home)
    assert another_row(process, folder)
    while process.poll() is None:  # each new worker, before it finishes the second epoch
        for pid in processes(process.pid)["worker"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    output, _ = process.communicate()
    assert re.search(r"trial_0000 failed: .*died", output), output
    assert set(load_trials(folder)["status"]) == {"failed"}

    code, output = run(resume(folder), home)  # alone, it leaves the failed one as it is
    assert [trial["state"] for trial in study(folder)] == ["FAIL"]
    code, output = run([*resume(folder), "--retry-failed"], home)
    assert code == 0, output
    assert [trial["state"] for trial in study(folder)] == ["FAIL", "COMPLETE"]
    assert epochs_by_trial(folder) == {"trial_0001": [1, 2]}
    code, output = run([*resume(folder), "--retry-failed"], home)
    assert code == 0, output
    assert "retrying 0 failed" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_ends_the_search_with_a_reason_and_costs_nothing(undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], check=True)
    try:
        code, output = run([*ONE_AT_A_TIME, "--storage", str(disk), "--name", "s"], tmp_path / "home")
        assert code == 2, output
        assert re.search(r"error: .*No space left on device; .* go on with: python -m tune.run --resume s", output)
        assert 0 < rows_now(disk / "s") < rows_now(undisturbed)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        code, output = run(resume(disk / "s"), tmp_path / "home")
        assert code == 0, output
        assert study(disk / "s") == study(undisturbed)
        assert rows(disk / "s").equals(rows(undisturbed))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_damaged_checkpoint_is_put_aside_and_its_trial_begins_anew(undisturbed: Path, tmp_path: Path) -> None:
    folder, home = tmp_path / "s", tmp_path / "home"
    process = start([*ONE_AT_A_TIME, "--storage", str(tmp_path), "--name", "s"], home)
    assert another_row(process, folder)
    kill(process, "driver")
    process.communicate()
    saved = folder / "trial_0000" / "checkpoint.pt"
    saved.write_bytes(saved.read_bytes()[:-1000])
    (folder / "trial_0000" / "result.json").write_text('{"epoch": 1, "fi')
    code, output = run(resume(folder), home)
    assert code == 0, output
    assert study(folder) == study(undisturbed)
    assert rows(folder).equals(rows(undisturbed))
