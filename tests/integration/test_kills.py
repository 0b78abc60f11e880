"""Whatever is killed or interrupted, and whenever: after `--resume` the search ends as if nothing
had happened, and W&B has each epoch once."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from search_processes import (
    ONE_AT_A_TIME,
    QUICK,
    ROOT,
    another_row,
    at,
    kill,
    parts,
    printed_command,
    resume,
    start,
    wait_for,
)
from search_results import MEASURED, decisions, epochs_by_trial, rows_now, rows_of
from wandb_runs import assert_logged_once, follower, wait_for_follower

from analysis.load import load_trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("nothing_left_running"),
    pytest.mark.timeout(900),
]
TRACKED = {"WANDB_MODE": "offline"}
STOP_SECONDS = 20  # that an interrupted search takes at most: 10 s where nothing else runs


def test_interrupted_and_killed_again_and_again_a_search_ends_as_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Decision for decision and row for row, whichever of its processes dies at whatever moment."""
    folder, home = tmp_path / "s", tmp_path / "home"
    process = start([*ONE_AT_A_TIME, *at(tmp_path)], home, **TRACKED)
    wait_for(lambda: any(folder.glob("trial_*")), process)
    assert rows_now(folder) == 0  # before the first result
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < STOP_SECONDS  # each part of it has a deadline
    assert process.returncode == 130, output
    assert f"go on with: python -m tune.run --resume s --storage {tmp_path}" in output
    assert "error" not in output
    assert "Traceback" not in output

    process = start(printed_command(output), home, **TRACKED)
    wait_for(lambda: all(parts(process.pid).values()), process)  # or `kill` would kill nothing
    assert another_row(process, folder)
    os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts the whole group
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    before = load_trials(folder)
    assert "unfinished" in set(before["status"])

    process = start(printed_command(output), home, **TRACKED)
    rng = random.Random(time.time_ns())  # other moments each time
    for kind in rng.sample(["driver", "raylet", "gcs_server", "worker"], k=4):
        if not another_row(process, folder):
            break
        time.sleep(rng.random() / 3)  # about an epoch
        kill(process.pid, kind)
        if kind != "worker":
            process.communicate(timeout=120)
            process = start(resume(folder), home, **TRACKED)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert decisions(folder) == decisions(undisturbed)
    assert rows_of(folder).equals(rows_of(undisturbed))
    assert_kept(before, folder)
    assert "summary" in assert_logged_once(folder)


def test_two_trials_at_a_time_lose_nothing_whoever_is_killed(tmp_path: Path) -> None:
    """First the node, then everything at once, in the end the process that logs to W&B."""
    folder, home = tmp_path / "s", tmp_path / "home"
    arguments = ["--search", "hparams", "--num-trials", "6", "--epochs", "4", "--seed", "3"]
    process = start([*arguments, *QUICK, *at(tmp_path)], home, **TRACKED)
    assert another_row(process, folder)
    assert another_row(process, folder)
    first = load_trials(folder)
    kill(process.pid, "raylet")
    output, _ = process.communicate(timeout=60)  # the driver is not left waiting for a dead node
    assert "Ray's raylet died" in output
    assert f"go on with: python -m tune.run --resume s --storage {tmp_path}" in output

    process = start(printed_command(output), home, **TRACKED)
    wait_for(lambda: follower(folder) is not None, process)
    assert another_row(process, folder)
    second = load_trials(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_follower(folder)  # it logs what there is, and ends
    # workers may have ended an epoch later than the tracker
    assert_logged_once(folder, all_of_it=False)

    process = start(resume(folder), home, **TRACKED)
    wait_for(lambda: follower(folder) is not None, process)
    assert another_row(process, folder)
    tracker = follower(folder)
    assert tracker is not None
    os.kill(tracker, signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output  # the search does not notice
    trials = decisions(folder)
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    for trial, epochs in epochs_by_trial(folder).items():
        assert epochs == list(range(1, len(epochs) + 1))
        assert epochs == list(trials[int(trial[-4:])]["epochs"])
    assert_kept(first, folder)
    assert_kept(second, folder)

    command = re.search(r"has not got everything: see .*; log the rest by: (.*)", output)
    assert command, output
    words = shlex.split(command[1])
    subprocess.run([sys.executable, *words[1:], "--wandb", "offline"], cwd=ROOT, check=True)
    assert "summary" in assert_logged_once(folder)


def assert_kept(before: pd.DataFrame, folder: Path) -> None:
    """Every row that a search had stands in it unchanged."""
    known = before.dropna(subset=["epoch"])  # a trial that had just begun has no epoch yet
    keys = ["trial", "epoch", "fid", *MEASURED]
    kept = load_trials(folder).merge(known[keys], on=keys)
    assert len(kept) == len(known)
