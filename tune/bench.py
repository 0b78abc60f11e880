"""`python -m tune.bench`: what a search costs beyond training and evaluating.

Runs the demo search with its confirm stage, and two of tiny trials that differ in their number alone, each as a user would.

With `--trials N --workers W` instead: one large search, to see what the driver can take. Its trials replay recorded curves, an
epoch a `--seconds`, on a Ray cluster of several nodes on this machine; the driver, with its study, scheduler and progress, is
the real one. Workers import no PyTorch, so that many fit.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray import tune as ray_tune
from ray.cluster_utils import Cluster

from dcgan import checkpoint, cli
from dcgan.checkpoint import replace, write_rows
from dcgan.memory import peak_bytes
from dcgan.schema import COLUMNS, METRIC, Row
from tune import curves, runner
from tune.plan import SEARCH_FILE, Plan, default_grace_period
from tune.searches import Point
from tune.simulate import make_plan
from tune.study import StudySearch, open_study

TINY = ["--set", "image_size=16", "--set", "generator_width=2", "--set", "discriminator_width=2"]
FEW, MANY = 4, 24  # tiny trials
NODE_CPUS = 8  # of a node of the test cluster
TIMES = "times.txt"  # of a replayed trial: its process, when it began, and when each epoch was reported and the next begun
GO = "go"  # the file that lets the first trials begin, once all workers are there: to start them takes all CPUs
MARKS = (0.1, 0.5, 1.0)  # shares of the trials at which the driver's memory is told
TEMPLATE = dict.fromkeys(set(COLUMNS) - {"by_replica"}, 1) | dict.fromkeys(("eval_split", "extractor", "device"), "replayed")


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds of all slots of a search, from its command to its answer, and those spent in training and evaluation."""
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "tune.run", *arguments, "--preset", "demo"]
        start = time.perf_counter()
        subprocess.run([*command, "--storage", storage, "--name", "bench"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        folder = Path(storage) / "bench"
        slots = json.loads((folder / SEARCH_FILE).read_text())["slots"]
        rows = [json.loads(line) for file in folder.rglob("trial_*/result.json") for line in file.read_text().splitlines()]
    return seconds * slots, sum(row["seconds_train"] + row["seconds_eval"] for row in rows)


def replay(params: Point, *, folder: Path, curve: Callable[[Point, int], list[Row]], seconds: float, **ignored: Any) -> None:
    """A trial that sleeps instead of training, and else does for the driver and for `analysis` what the real one does.

    Pickled by value, so that no worker imports this module and with it PyTorch.
    """
    assert "torch" not in sys.modules
    name = ray_tune.get_context().get_trial_name()
    trial, rng = folder / name, random.Random(name)
    trial.mkdir(parents=True, exist_ok=True)
    off, rows = rng.uniform(0.98, 1.02), []  # no two trials score alike
    with (trial / TIMES).open("w", buffering=1) as times:
        times.write(f"{os.getpid()}\n")
        while not (folder / GO).exists():
            time.sleep(0.1)
        times.write(f"{time.time()}\n")
        replace(trial / "params.json", json.dumps(params).encode())
        for recorded in curve(params, 0):
            time.sleep(seconds * rng.uniform(0.5, 1.5))
            rows.append(TEMPLATE | recorded | {METRIC: recorded[METRIC] * off, "collapsed": bool(recorded["collapsed"])})
            write_rows(trial / "result.json", rows)
            times.write(f"{time.time()}\n")
            ray_tune.report(dict(rows[-1]))  # Ray ends the trial here if the scheduler says so
            times.write(f"{time.time()}\n")


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A Ray cluster of several nodes on this machine, with this process as its driver."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        os.environ["RAY_TMPDIR"] = place  # else searches that start meanwhile would find this cluster, and join it
        logging.getLogger("ray").setLevel(logging.ERROR)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for taken in range(0, workers, NODE_CPUS):
                nodes.add_node(num_cpus=min(NODE_CPUS, workers - taken))
            ray.init(nodes.address, log_to_driver=False, logging_level=logging.ERROR)
            runner.hush()
            yield
        finally:
            ray.shutdown()
            nodes.shutdown()


def resident_bytes() -> int:
    """What this process holds of the machine's memory; at most so far, where the system does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes(torch.device("cpu"))


def rank(folder: Path) -> float:
    """Seconds that a person waits for the ranking of a search."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "analysis.tables", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def many(trials: int, workers: int, seconds: float, folder: Path) -> dict[str, float]:
    """Runs one large search of replayed trials in an empty folder and returns what its driver needed."""
    recorded = curves.Curves(curves.CURVES, "hparams")
    plan = make_plan(recorded.search("hparams"), "tpe+asha", 0, trials, default_grace_period(recorded.epochs), workers)
    plan = dataclasses.replace(plan, folder=folder)
    searcher = StudySearch(plan, open_study(folder, plan.objectives))
    faults = runner.Faults(plan, searcher, plan)
    for module in (curves, checkpoint, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    # of the curves no more than `nearest` reads, since the class would bring its whole module
    of: Any = SimpleNamespace(rows=recorded.rows, settings=recorded.settings)
    curve = partial(curves.Curves.nearest, of)
    tuner = runner.tuner(plan, searcher, faults, partial(replay, curve=curve, seconds=seconds))
    numbers: dict[str, float] = {"trials": trials, "workers": workers}

    clocks: list[tuple[float, float]] = []

    def watch() -> None:
        while len(list(folder.glob(f"trial_*/{TIMES}"))) < min(workers, trials):
            time.sleep(0.1)
        clocks.append((time.perf_counter(), time.process_time()))
        (folder / GO).touch()
        for share in MARKS[:-1]:
            while len(searcher.numbers) < share * trials:
                time.sleep(0.1)
            numbers[f"bytes_at_{share:.0%}"] = resident_bytes()
        numbers["seconds_to_rank_halfway"] = rank(folder)
        numbers["trials_ranked_halfway"] = len((folder / "table.csv").read_text().splitlines()) - 1

    watcher = threading.Thread(target=watch, daemon=True)
    with cluster(workers), (folder / "progress.txt").open("w") as lines, contextlib.redirect_stdout(lines):
        watcher.start()
        tuner.fit()
        wall, busy = time.perf_counter() - clocks[0][0], time.process_time() - clocks[0][1]
        numbers[f"bytes_at_{MARKS[-1]:.0%}"] = resident_bytes()
    watcher.join()
    numbers["seconds_to_rank"] = rank(folder)
    numbers["bytes_per_trial"] = (numbers["bytes_at_100%"] - numbers["bytes_at_10%"]) / (0.9 * trials)
    reports = sum(faults.reached.values())
    return numbers | {"reports": reports, "seconds": wall, "driver_cpu": busy / wall} | waits(plan)


def waits(plan: Plan) -> dict[str, float]:
    """How long workers of a replayed search waited for the driver: after a report, and between two trials; seconds."""
    after: list[tuple[float, float]] = []  # when, and how long
    spans: dict[float, list[tuple[float, float]]] = {}  # of each process: when a trial began and gave its last report
    for number in range(plan.num_trials):
        process, began, *times = map(float, (plan.trial_folder(number) / TIMES).read_text().split())
        after += [(reported, on - reported) for reported, on in zip(times[::2], times[1::2], strict=False)]
        spans.setdefault(process, []).append((began, times[(len(times) - 1) // 2 * 2]))
    waited = [wait for _, wait in sorted(after)]
    tenth = math.ceil(len(waited) / 10)
    between = [
        following - last for trials in map(sorted, spans.values()) for (_, last), (following, _) in itertools.pairwise(trials)
    ]
    return {
        "wait_median": statistics.median(waited),
        "wait_99": percentile(waited, 0.99),
        "wait_first_tenth": statistics.median(waited[:tenth]),
        "wait_last_tenth": statistics.median(waited[-tenth:]),
        "between_median": statistics.median(between),
        "between_99": percentile(between, 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def describe(of: dict[str, float]) -> str:
    """What `many` measured, as a person reads it."""
    memory = ", ".join(f"{of[f'bytes_at_{mark:.0%}'] / 1e6:.0f} MB at {mark:.0%}" for mark in MARKS)
    per_report = of["driver_cpu"] * of["seconds"] / of["reports"]
    wait = {name: f"{value * 1000:.0f} ms" for name, value in of.items() if name.startswith(("wait", "between"))}
    return (
        f"{of['trials']:,.0f} trials, {of['reports']:,.0f} epochs on {of['workers']:.0f} workers: {of['seconds']:.0f} s, "
        f"{of['reports'] / of['seconds']:.1f} reports a second\n"
        f"driver: {of['driver_cpu']:.0%} of a CPU, {per_report * 1000:.1f} ms a report; memory {memory}: "
        f"{of['bytes_per_trial'] / 1000:.0f} kB a trial\n"
        f"from a report until its worker goes on: {wait['wait_median']} (median), {wait['wait_99']} (99th percentile); "
        f"first tenth {wait['wait_first_tenth']}, last tenth {wait['wait_last_tenth']}\n"
        f"from a worker's last report to its next trial: {wait['between_median']} (median), "
        f"{wait['between_99']} (99th percentile)\n"
        f"analysis.tables: {of['seconds_to_rank_halfway']:.1f} s halfway, as it ran, {of['seconds_to_rank']:.1f} s at the end"
    )


def main() -> None:
    parser = cli.Parser(prog="python -m tune.bench", description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=1, metavar="N", help="runs of each; the best counts (default: 1)")
    add("--trials", type=int, metavar="N", help="instead, one search of N replayed trials")
    add("--workers", type=int, default=64, metavar="W", help="replayed trials at a time (default: 64)")
    add("--seconds", type=float, default=1.0, metavar="S", help="of a replayed epoch, on average (default: 1)")
    add("--out", type=Path, metavar="FOLDER", help="keep the replayed search in this new folder, with what was measured")
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, ray {version('ray')}, "
          f"torch {version('torch')}", flush=True)  # fmt: skip
    if args.trials is None:
        small(args.repeats)
        return
    with cli.one_line_errors(parser), contextlib.ExitStack() as stack:
        if args.trials < 10 or args.workers < 1:
            raise ValueError(f"--trials is {args.trials}, --workers {args.workers}; allowed is at least 10 and 1")
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=args.out is None)
        measured = many(args.trials, args.workers, args.seconds, folder.absolute())
        (folder / "bench.json").write_text(json.dumps(measured, indent=2) + "\n")
        print(describe(measured))


def small(repeats: int) -> None:
    """The demo search, and what a further trial costs."""
    total, busy = min((measure(["--search", "hparams"]) for _ in range(repeats)), key=lambda pair: pair[0] - pair[1])
    print(f"demo search: {total:.0f} s of slots, {busy:.0f} s in training and evaluation: {1 - busy / total:.1%} overhead")

    free = {}
    for trials in (FEW, MANY):
        arguments = ["--search", "hparams", "--epochs", "1", "--num-trials", str(trials), "--confirm", "0", *TINY]
        free[trials] = min(total - busy for total, busy in (measure(arguments) for _ in range(repeats)))
    print(f"a further trial: {(free[MANY] - free[FEW]) / (MANY - FEW):.2f} s of a slot before and after its training")


if __name__ == "__main__":
    main()
