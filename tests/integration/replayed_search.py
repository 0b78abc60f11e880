"""One large search, to see what the driver can take: `replayed_search.py FOLDER TRIALS WORKERS
SECONDS`.

Its trials replay recorded curves, an epoch a SECONDS, on a Ray cluster of several nodes on this
machine. The driver, with its study, scheduler and progress, is the real one. Workers import no
PyTorch, so that many fit. What was measured is written to FOLDER/measured.json.
"""

import contextlib
import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray_nodes import ray_nodes

import tune.curves
import tune.trainable
from dcgan.files import write_json, write_rows
from dcgan.schema import COLUMNS, METRIC, PARAMS_FILE, ROWS_FILE, TABLE_FILE, TRIALS_PATTERN, Row
from dcgan.store import Store
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.progress import Progress
from tune.runner import Faults, quiet_ray, tuner
from tune.schedulers import default_grace_period
from tune.searches import Point
from tune.simulate import make_plan
from tune.study import StudySearch
from tune.trainable import Task

NODE_CPUS = 8  # of a node of the cluster
EVENTS_FILE = "events.json"  # of a trial: JSON lines, what its worker did and when
GO = "go"  # the file that lets the first trials begin, once all workers are up
MARKS = (0.1, 0.5)  # shares of the trials at which the driver is measured, besides the end
TEXTS = ("eval_split", "extractor", "device")
TEMPLATE: Row = dict.fromkeys(COLUMNS, 1) | dict.fromkeys(TEXTS, "replayed") | {"lane": 0}


def replay(
    params: Point, *, task: Task, curve: Callable[[Point, int], list[Row]], seconds: float
) -> None:
    """A trial that sleeps instead of training, and else does for the driver and for `analysis` what
    the real one does."""
    assert "torch" not in sys.modules
    name = ray_tune.get_context().get_trial_name()
    trial, rng = task.store.trial(name).folder, random.Random(name)
    scale = rng.uniform(0.98, 1.02)  # no two trials score alike
    rows: list[Row] = []
    with (trial / EVENTS_FILE).open("w", buffering=1) as events:

        def note(event: str) -> None:
            record = {"event": event, "time": time.time(), "process": os.getpid()}
            events.write(json.dumps(record) + "\n")

        note("up")
        while not (task.store.folder / GO).exists():
            time.sleep(0.1)
        note("began")
        write_json(trial / PARAMS_FILE, params)
        for recorded in curve(params, 0):
            time.sleep(seconds * rng.uniform(0.5, 1.5))
            scored = {METRIC: recorded[METRIC] * scale, "collapsed": bool(recorded["collapsed"])}
            rows.append(TEMPLATE | recorded | scored)
            write_rows(trial / ROWS_FILE, rows)
            note("reported")
            ray_tune.report(dict(rows[-1]))  # Ray ends the trial here if the scheduler says so
            note("went on")


def large_plan(curves: tune.curves.Curves, trials: int, workers: int, folder: Path) -> Plan:
    """The plan of the large search."""
    grace_period = default_grace_period(curves.epochs)
    search = curves.search("hparams")
    plan = make_plan(search, "tpe+asha", 0, trials, grace_period, workers)
    return dataclasses.replace(plan, store=Store(folder))


class Watch(threading.Thread):
    """Lets the search begin once its workers are up, and measures it as it runs."""

    def __init__(self, plan: Plan, searcher: StudySearch, faults: Faults) -> None:
        super().__init__(daemon=True)
        self.plan, self.searcher, self.faults = plan, searcher, faults
        self.measured: dict[str, float] = {}
        self.began = self.began_busy = 0.0

    def run(self) -> None:
        folder = self.plan.folder
        while len(list(folder.glob(f"{TRIALS_PATTERN}/{EVENTS_FILE}"))) < self.plan.concurrent:
            time.sleep(0.1)
        self.began, self.began_busy = time.perf_counter(), time.process_time()
        (folder / GO).touch()
        for share in MARKS:
            while len(self.searcher.numbers) < share * self.plan.num_trials:
                time.sleep(0.1)
            self.mark(f"{share:.0%}")
        self.measured["seconds_to_rank_halfway"] = rank(folder)
        lines = (folder / TABLE_FILE).read_text().splitlines()
        self.measured["trials_ranked_halfway"] = len(lines) - 1

    def mark(self, when: str) -> None:
        """Measures the driver up to now."""
        self.measured[f"bytes_at_{when}"] = resident_bytes()
        self.measured[f"busy_seconds_at_{when}"] = time.process_time() - self.began_busy
        self.measured[f"reports_at_{when}"] = sum(self.faults.reached.values())

    def end(self) -> None:
        """Measures what can be measured at the end."""
        self.measured["seconds"] = time.perf_counter() - self.began
        self.mark("100%")
        self.join()


def resident_bytes() -> int:
    """What this process holds of the machine's memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rank(folder: Path) -> float:
    """Seconds that a person waits for the ranking of a search."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "analysis.tables", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def recorded(
    curves: Any, nearest: Callable[[Any, Point, int], int], config: Point, seed: int
) -> list[Row]:
    """`Curves.nearest`, of what a worker has of the curves, and of a function that is handed over:
    by the name of its module a worker would import PyTorch."""
    rows: list[Row] = curves.rows[nearest(curves, config, seed), seed]
    return rows


def run_large(trials: int, workers: int, seconds: float, folder: Path) -> dict[str, float]:
    """Runs a large search in an empty folder and returns what its driver needed."""
    quiet_ray()
    curves = tune.curves.Curves(tune.curves.CURVES, "hparams")
    plan = large_plan(curves, trials, workers, folder)
    searcher = StudySearch(plan, open_ledger(folder, plan.objectives))
    faults = Faults(plan, searcher, plan)
    # a worker that imported these would import PyTorch or Optuna, and of the curves no more is sent
    # than `recorded` reads
    for module in (tune.curves, tune.trainable):
        cloudpickle.register_pickle_by_value(module)
    known: Any = SimpleNamespace(rows=curves.rows, settings=curves.settings)
    nearest = tune.curves.Curves.nearest_setting
    train = partial(replay, curve=partial(recorded, known, nearest), seconds=seconds)
    watch = Watch(plan, searcher, faults)
    full, rest = divmod(workers, NODE_CPUS)
    sizes = [0, *[NODE_CPUS] * full, *([rest] if rest else [])]  # the head trains nothing
    nodes = [{"num_cpus": size} for size in sizes]
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        address, _ = stack.enter_context(ray_nodes(Path(home), *nodes))
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        watch.start()
        with (folder / "progress.txt").open("w") as lines, contextlib.redirect_stdout(lines):
            tuner(plan, searcher, [Progress(plan, searcher), faults], train).fit()
        watch.end()
        ray.shutdown()
    return watch.measured | {"seconds_to_rank": rank(folder)}


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    write_json(
        Path(place) / "measured.json",
        run_large(int(numbers[0]), int(numbers[1]), float(numbers[2]), Path(place)),
    )
