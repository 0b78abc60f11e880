"""A freeze-thaw search on real Ray: trials pause and go on from their checkpoints, and one that was
killed ends as the undisturbed one."""

import os
import signal
from pathlib import Path

import pytest
from search_processes import QUICK, another_row, at, printed_command, resume, run, start
from search_results import decisions, epochs_by_trial, rows_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("nothing_left_running"),
    pytest.mark.timeout(900),
]
EPOCHS, BUDGET = 3, 13
SEARCH = [
    *("--search", "hparams", "--epochs", str(EPOCHS), "--seed", "3", *QUICK),
    *("--scheduler", "freeze-thaw", "--epochs-in-all", str(BUDGET)),
]


def test_killed_and_interrupted_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Decision for decision and row for row, with one trial at a time."""
    one = [*SEARCH, "--max-concurrent", "1"]
    code, output = run([*one, *at(tmp_path, "whole")], tmp_path / "home")
    assert code == 0, output
    assert f"within {BUDGET} epochs by random" in output
    assert "would likely bring fid from" in output
    whole = tmp_path / "whole"
    trials = decisions(whole)
    lengths = {trial["number"]: len(trial["epochs"]) for trial in trials}
    assert BUDGET - EPOCHS < sum(lengths.values()) <= BUDGET
    for trial in trials:  # as Optuna, tables and reports know such trials
        finished = lengths[trial["number"]] == EPOCHS
        assert trial["state"] == ("COMPLETE" if finished else "PRUNED")
    assert {trial["state"] for trial in trials} == {"COMPLETE", "PRUNED"}
    expected = {f"trial_{number:04d}": list(range(1, n + 1)) for number, n in lengths.items()}
    assert epochs_by_trial(whole) == expected
    assert set(rows_of(whole)["status"]) == {"finished", "stopped"}

    folder = tmp_path / "killed"
    process = start([*one, *at(tmp_path, "killed")], tmp_path / "home")
    for _ in range(4):
        assert another_row(process, folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    process = start(resume(folder), tmp_path / "home")
    for _ in range(4):
        assert another_row(process, folder)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    code, output = run(printed_command(output), tmp_path / "home")
    assert code == 0, output
    assert decisions(folder) == trials
    assert rows_of(folder).equals(rows_of(whole))


def test_two_at_a_time_it_keeps_to_its_budget(tmp_path: Path) -> None:
    code, output = run([*SEARCH, *at(tmp_path)], tmp_path / "home")
    assert code == 0, output
    trials = decisions(tmp_path / "s")
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert "COMPLETE" in {trial["state"] for trial in trials}
    assert sum(len(trial["epochs"]) for trial in trials) <= BUDGET
    assert sum(map(len, epochs_by_trial(tmp_path / "s").values())) <= BUDGET
