"""The driver under many trials, by `python -m tune.bench --trials`: nothing is lost, and nothing grows that should not.

The full size is 2,000 trials on 64 workers, which takes about six minutes on two cores, two of them to start the workers:

    python -m tune.bench --trials 2000 --workers 64 --out /tmp/many
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from analysis.load import load_trials
from tune.study import open_study

ROOT = Path(__file__).parents[2]
TRIALS, WORKERS = 400, 16
EPOCHS = 12  # of a recorded curve


@pytest.mark.slow
def test_a_large_search_is_complete_and_its_driver_keeps_pace(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    size = ["--trials", str(TRIALS), "--workers", str(WORKERS), "--seconds", "0.3"]
    command = [sys.executable, "-m", "tune.bench", *size, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads((folder / "bench.json").read_text())

    trials = open_study(folder).get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    frame = load_trials(folder)
    assert (
        len(frame) == measured["reports"] == sum(len(trial.intermediate_values) for trial in trials)
    )
    for trial in trials:  # the ledger knows each epoch that the folders hold
        rows = frame[frame["trial"] == f"trial_{trial.number:04d}"]
        assert dict(zip(rows["epoch"], rows["fid"], strict=True)) == trial.intermediate_values
        assert (trial.state == TrialState.COMPLETE) == (len(rows) == EPOCHS)

    assert (
        WORKERS < measured["trials_ranked_halfway"] < TRIALS
    )  # the analysis read the search as it ran
    assert measured["bytes_per_trial"] < 250_000
    assert measured["wait_last_tenth"] < 3 * measured["wait_first_tenth"] + 0.02
