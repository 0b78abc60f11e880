"""A freeze-thaw search on real Ray: trials pause and go on from their checkpoints, and one that was
killed ends as the undisturbed one."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, s3
from search_processes import QUICK, at, parts, printed_command, run, start, wait_for
from search_results import decisions, epochs_by_trial, rows_of, rows_stored
from wandb_runs import assert_logged_once

from dcgan.store import Mirror

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("nothing_left_running"),
    pytest.mark.timeout(900),
]
EPOCHS, BUDGET = 3, 11
SEARCH = [
    *("--search", "hparams", "--epochs", str(EPOCHS), "--seed", "3", *QUICK),
    *("--scheduler", "freeze-thaw", "--epochs-in-all", str(BUDGET)),
]


def test_killed_and_interrupted_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search_in_process: Callable[..., Any]
) -> None:
    """Decision for decision and row for row, with one trial at a time of two seeds each: on a disk,
    and in an object store, tracked, once with the loss of the machine."""
    asked = {"search": "hparams", "epochs": EPOCHS, "seed": 3, "replicas": 2}
    asked |= {"scheduler": "freeze-thaw", "epochs_in_all": BUDGET}
    undisturbed = search_in_process(**asked)
    assert undisturbed.code == 0, undisturbed.output
    assert f"within {BUDGET} epochs by random" in undisturbed.output
    assert "would likely bring fid from" in undisturbed.output
    whole = undisturbed.folder
    trials = decisions(whole)
    lengths = {trial["number"]: len(trial["epochs"]) for trial in trials}
    assert BUDGET - EPOCHS < sum(lengths.values()) <= BUDGET
    for trial in trials:  # as Optuna, tables and reports know such trials
        finished = lengths[trial["number"]] == EPOCHS
        assert trial["state"] == ("COMPLETE" if finished else "PRUNED")
    assert {trial["state"] for trial in trials} == {"COMPLETE", "PRUNED"}
    expected = {
        f"trial_{number:04d}": sorted([*range(1, n + 1)] * 2) for number, n in lengths.items()
    }
    assert epochs_by_trial(whole) == expected
    assert set(rows_of(whole)["status"]) == {"finished", "stopped"}

    with s3() as server:
        for name, value in server.items():
            monkeypatch.setenv(name, value)
        one = [*SEARCH, "--max-concurrent", "1", "--replicas", "2"]
        storage, copy = f"s3://{BUCKET}/runs", tmp_path / "copy"
        tracked = ["--wandb", "offline"]
        process = start([*one, *tracked, *at(storage)], tmp_path / "lost")
        wait_for(lambda: rows_stored(f"{storage}/s") >= 6, process)
        tracker = parts(process.pid)["tracker"]
        for pid in (*tracker, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(tmp_path / "lost")
        again = ["--resume", "s", "--storage", storage, *tracked]
        process = start(again, tmp_path / "other")
        wait_for(lambda: rows_stored(f"{storage}/s") >= 12, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        code, output = run([*printed_command(output), *tracked], tmp_path / "other")
        assert code == 0, output
        copy.mkdir()
        Mirror(copy, f"{storage}/s").get()
    assert decisions(copy) == trials
    assert rows_of(copy).equals(rows_of(whole))
    assert "summary" in assert_logged_once(copy)


def test_two_at_a_time_it_keeps_to_its_budget_and_goes_on_with_more(
    tmp_path: Path, search_in_process: Callable[..., Any]
) -> None:
    """By the command that it prints in the end; what was frozen is thawed."""
    folder = tmp_path / "s"
    code, output = run([*SEARCH, *at(tmp_path)], tmp_path / "home", WANDB_MODE="offline")
    assert code == 0, output
    assert_kept_to(BUDGET, folder)
    before = rows_of(folder)
    (more,) = re.findall(r"--resume s --storage \S+ --epochs-in-all (\d+)$", output, re.MULTILINE)
    ended = search_in_process(resume="s", epochs_in_all=int(more), wandb="offline")
    assert ended.code == 0, ended.output
    assert f"more     {int(more) - BUDGET} more epochs than before" in ended.output
    assert_kept_to(int(more), folder)
    rows = rows_of(folder)
    assert len(rows) > len(before)
    keys = ["trial", "epoch", "fid"]
    assert len(rows.merge(before[keys], on=keys)) == len(before)
    assert "summary" in assert_logged_once(folder)
    with pytest.raises(ValueError, match=rf"s was to train {more}, and may only train more"):
        search_in_process(resume="s", epochs_in_all=BUDGET)


def assert_kept_to(budget: int, folder: Path) -> None:
    """The epochs of an ended search are within its budget, and one trial has finished."""
    trials = decisions(folder)
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert "COMPLETE" in {trial["state"] for trial in trials}
    assert sum(len(trial["epochs"]) for trial in trials) <= budget
    assert sum(map(len, epochs_by_trial(folder).values())) <= budget
