"""What a search costs beyond training, and its driver under many trials: nothing is lost, and
nothing grows that should not. Measurements are printed (`pytest -s`).

The full size is 2,000 trials on 64 workers, which takes about six minutes on two cores, two of them
to start the workers:

    DCGAN_TRIALS=2000 DCGAN_WORKERS=64 pytest -s -m slow tests/integration/test_driver.py
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from replayed_search import EVENTS_FILE
from search_processes import FEW_DIGITS

from analysis.load import load_trials
from dcgan.files import read_rows
from dcgan.schema import trial_name
from tune.ledger import open_ledger

ROOT = Path(__file__).parents[2]
TRIALS = int(os.environ.get("DCGAN_TRIALS", "150"))
WORKERS = int(os.environ.get("DCGAN_WORKERS", "8"))
EPOCH_SECONDS = 0.3
EPOCHS = 12  # of a recorded curve
FEW, MANY = 2, 10  # tiny trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the driver's memory from /proc")
def test_a_large_search_is_complete_and_its_driver_keeps_pace(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    script = Path(__file__).with_name("replayed_search.py")
    subprocess.run(
        [sys.executable, script, folder, *map(str, (TRIALS, WORKERS, EPOCH_SECONDS))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": FEW_DIGITS["PYTHONPATH"]},
        check=True,
    )
    trials = open_ledger(folder).get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    frame = load_trials(folder)
    measured = json.loads((folder / "measured.json").read_text())
    known = sum(len(trial.intermediate_values) for trial in trials)
    assert len(frame) == measured["reports_at_100%"] == known
    for trial in trials:  # the ledger knows each epoch that the folders hold
        rows = frame[frame["trial"] == trial_name(trial.number)]
        assert dict(zip(rows["epoch"], rows["fid"], strict=True)) == trial.intermediate_values
        assert (trial.state == TrialState.COMPLETE) == (len(rows) == EPOCHS)

    # the analysis read the search as it ran
    assert WORKERS < measured["trials_ranked_halfway"] < TRIALS
    grown = measured["bytes_at_100%"] - measured["bytes_at_10%"]
    bytes_per_trial = grown / (0.9 * TRIALS)
    waits, between = waits_of(folder)
    tenth = len(waits) // 10
    first, last = statistics.median(waits[:tenth]), statistics.median(waits[-tenth:])
    early, late = busy_per_report(measured, "10%", "50%"), busy_per_report(measured, "50%", "100%")
    print_large(measured, bytes_per_trial)
    print(f"  from 10 to 50 % of the trials {early * 1000:.1f} ms, then {late * 1000:.1f} ms")
    print(f"from a report until its worker goes on: {milliseconds(waits)}")
    print(f"  median of the first tenth {first * 1000:.0f} ms, of the last {last * 1000:.0f} ms")
    print(f"from a worker's last report to its next trial: {milliseconds(between)}")
    assert bytes_per_trial < 250_000
    assert late < 3 * early  # of processors, since how long workers wait depends on other tests


def busy_per_report(measured: dict[str, float], begin: str, end: str) -> float:
    """Seconds of a CPU that the driver takes for a report, between two shares of the trials."""
    busy, reports = (
        measured[f"{name}_at_{end}"] - measured[f"{name}_at_{begin}"]
        for name in ("busy_seconds", "reports")
    )
    return busy / reports


def waits_of(folder: Path) -> tuple[list[float], list[float]]:
    """How long workers waited for the driver, in the order of time: after a report, and between two
    trials; seconds."""
    waits: list[tuple[float, float]] = []  # when, and how long
    spans: dict[int, list[tuple[float, float]]] = {}  # of each process: its trials' begin and end
    for file in folder.glob(f"trial_*/{EVENTS_FILE}"):
        events = read_rows(file)
        for event, following in itertools.pairwise(events):
            if (event["event"], following["event"]) == ("reported", "went on"):
                waits.append((event["time"], following["time"] - event["time"]))
        began = next(event["time"] for event in events if event["event"] == "began")
        last = max(event["time"] for event in events if event["event"] == "reported")
        spans.setdefault(events[0]["process"], []).append((began, last))
    between = [
        following - last
        for trials in spans.values()
        for (_, last), (following, _) in itertools.pairwise(sorted(trials))
    ]
    return [wait for _, wait in sorted(waits)], between


def print_large(measured: dict[str, float], bytes_per_trial: float) -> None:
    """What the driver needed, as a person reads it."""
    seconds, reports = measured["seconds"], measured["reports_at_100%"]
    busy = measured["busy_seconds_at_100%"]
    print(f"\n{TRIALS} trials, {reports:.0f} epochs on {WORKERS} workers: {seconds:.0f} s")
    print(f"{reports / seconds:.1f} reports a second, each {busy / reports * 1000:.1f} ms of CPU")
    print(f"driver: {busy / seconds:.0%} of a CPU, {bytes_per_trial / 1000:.0f} kB a trial")
    halfway, end = measured["seconds_to_rank_halfway"], measured["seconds_to_rank"]
    print(f"analysis.tables: {halfway:.1f} s halfway, as it ran, {end:.1f} s at the end")


def milliseconds(values: list[float]) -> str:
    median, most = np.percentile(values, [50, 99])
    return f"median {median * 1000:.0f} ms, 99th percentile {most * 1000:.0f} ms"


def test_a_further_trial_costs_little_beyond_its_training(
    search_in_process: Callable[..., Any],
) -> None:
    """Of a slot, before and after its training."""
    free = {}
    for trials in (FEW, MANY):
        begin = time.perf_counter()
        ended = search_in_process(search="hparams", name=f"of{trials}", num_trials=trials, epochs=1)
        seconds = time.perf_counter() - begin
        assert ended.code == 0, ended.output
        slots = json.loads((ended.folder / "search.json").read_text())["slots"]
        frame = load_trials(ended.folder)
        free[trials] = seconds * slots - frame["seconds_train"].sum() - frame["seconds_eval"].sum()
    further = (free[MANY] - free[FEW]) / (MANY - FEW)
    print(f"\na further trial: {further:.2f} s of a slot before and after its training")
    assert further < 5
