"""What a new GPU should answer: `python -m dcgan.bench --qualify --out DIR`.

In the order of importance: do the tests that need a GPU pass, how fast is an update by precision,
lanes and way, what does an epoch with its evaluation take, and what a whole run. Each answer, a
cell, is kept in `DIR/qualify.json` as soon as it is there, and a command ends after `--minutes`, so
that short loans of a machine add up: the same command goes on with what is left.
"""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dcgan import precision
from dcgan.bench import WARM_UP, BenchOptions, conditions, ours, seconds, time_loops
from dcgan.config import TrainConfig, replicate
from dcgan.files import write_json
from dcgan.loop import train
from dcgan.ways import WAYS, default_way

LANES = (1, 8)
EPOCHS = 3  # of which the first is not counted: libraries warm up
WHOLE = 25  # epochs
TESTS = Path(__file__).parents[1] / "tests" / "numerical" / "test_gpu.py"
TESTS_SECONDS = 480  # that the tests may take
KERNELS = 12  # of an update, that take longest
SAME = ("device", "versions", "dataset")
"""Of the conditions: what answers in one file have in common."""

Cell = dict[str, Any]
Cells = dict[str, Cell]


def qualify(options: BenchOptions) -> None:
    """Answers what is not answered yet, as long as there is time, and prints the verdict.

    Raises:
        ValueError: the folder holds answers of another machine, or from other versions.
    """
    assert options.out
    device = precision.default_device()
    file = options.out / "qualify.json"
    about = conditions(options, device)
    kept = read(file) if file.is_file() else {"about": about, "cells": {}}
    check_same(kept["about"], about, file)
    cells: Cells = kept["cells"]
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{about['device']}, {about['versions']}, {options.dataset}; answers are in {file}\n")
    begin, longest = time.monotonic(), 0.0
    left = []
    for name, answer in questions(options, device):
        if name in cells:
            continue
        start = time.monotonic()
        if longest and start - begin + longest > 60 * options.minutes:
            left.append(name)
            continue
        cells[name] = answer()
        write_json(file, {"about": kept["about"], "cells": cells})
        taken = time.monotonic() - start
        longest = max(longest, taken)
        print(f"{name}  ({taken:.0f} s)", flush=True)
    print("", *verdict(cells, options), sep="\n")
    if line := record(cells, about):
        print("\nfor the record in README.md:\n" + line)
    if left:
        print(f"\nleft: {', '.join(left)}; the same command goes on with them")


def read(file: Path) -> Cell:
    """The answers that are there; ValueError where the file holds none."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {"about": dict(kept["about"]), "cells": dict(kept["cells"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} holds no answers; remove it, or choose another --out") from None


def check_same(was: Cell, now: Cell, file: Path) -> None:
    """Refuses to mix answers of different machines, versions or data sets."""
    for name in SAME:
        if was[name] != now[name]:
            raise ValueError(
                f"{file} is of {name} {was[name]}, not {now[name]}; choose another folder by --out"
            )


def questions(
    options: BenchOptions, device: torch.device
) -> Iterator[tuple[str, Callable[[], Cell]]]:
    """Name of each cell, and what answers it, most important first."""
    names = options.precisions or precision.usable(device)
    width = options.widths[-1]
    base = TrainConfig(
        dataset=options.dataset, generator_width=width, discriminator_width=width, epochs=EPOCHS
    )
    configs = {name: dataclasses.replace(base, precision=name) for name in names}
    if TESTS.is_file():
        yield "tests", run_tests
    for name, config in configs.items():
        yield f"updates {name}", partial(updates, config, options, device)
    for name, lanes in itertools.product(names, LANES):
        config = dataclasses.replace(configs[name], batch_size=128)
        yield f"epochs {name} {lanes}", partial(run_epochs, config, lanes, options, device)
    for name in names:
        config = dataclasses.replace(configs[name], batch_size=128, epochs=WHOLE)
        yield f"whole {name}", partial(run_epochs, config, 1, options, device)
    for name, (lanes, way) in itertools.product(names, itertools.product(LANES, WAYS)):
        if lanes > 1 or not WAYS[way].apart:
            kept = partial(kernels, replicate(configs[name], lanes), way, options, device)
            yield f"kernels {name} {lanes} {way}", kept


def run_tests() -> Cell:
    """Runs the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=TESTS.parents[2], timeout=TESTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "said": f"not done in {TESTS_SECONDS} s", "failed": []}
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    said = lines[-1] if lines else done.stderr[-500:]
    return {"passed": done.returncode == 0, "said": said, "failed": failed}


def updates(config: TrainConfig, options: BenchOptions, device: torch.device) -> Cell:
    """Images a second of the plain loop, and of ours by number of lanes and way."""
    asked = dataclasses.replace(options, replicas=LANES, ways=options.ways or tuple(WAYS))
    return {"rows": time_loops(config, asked, device)}


def run_epochs(
    config: TrainConfig, lanes: int, options: BenchOptions, device: torch.device
) -> Cell:
    """Trains, with evaluation and checkpoints; the rows, and the seconds of all."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows = train(
            replicate(config, lanes),
            report=lambda row: None,
            checkpoint_dir=folder,
            data_dir=options.data_dir,
            device=device,
        )
        return {"seconds": time.perf_counter() - start, "rows": rows}


def kernels(
    lanes: list[TrainConfig], way: str, options: BenchOptions, device: torch.device
) -> Cell:
    """What an update launches: the number of kernels, and those that take longest."""
    precision.set_up(lanes[0].precision, device)
    groups = ours(lanes, options.data_dir, device, way)
    seconds(groups, 2 * WARM_UP, device)
    cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        seconds(groups, 1, device)
    events = profiler.key_averages()
    times = [
        {
            "kernel": event.key[:100],
            "count": event.count,
            "microseconds": event.self_device_time_total if cuda else event.self_cpu_time_total,
        }
        for event in events
    ]
    times.sort(key=lambda one: one["microseconds"], reverse=True)
    return {"launched": sum(one["count"] for one in times), "longest": times[:KERNELS]}


# The verdict


def verdict(cells: Cells, options: BenchOptions) -> list[str]:
    """A line for each target, with what was measured, and the line for the record."""
    lines = []
    if "tests" in cells:
        lines.append(f"tests that need a GPU: {cells['tests']['said']}")
    for name, wanted in (("float32", 2), ("tf32", 4), ("bfloat16", 5)):
        ratio = best(cells, name, 1, "ratio")
        lines.append(target(f"one lane against the plain loop, {name}", ratio, wanted, "times"))
    ratio = best(cells, "bfloat16", 8, "ratio")
    lines.append(target("eight lanes against the plain loop, bfloat16", ratio, 20, "times"))
    for name, wanted_most in (("bfloat16", 1.8), ("tf32", 2.2)):
        one, eight = (best(cells, name, lanes, "images_per_second") for lanes in LANES)
        longer = 8 * one / eight if one and eight else None
        what = f"eight lanes in so many times the time of one, {name}"
        lines.append(target(what, longer, wanted_most, "times", at_most=True))
    whole = cells.get("whole bfloat16", {}).get("seconds")
    what = f"{WHOLE} epochs of {options.dataset} with evaluation, batch 128, bfloat16"
    lines.append(target(what, whole, 12, "s", at_most=True))
    launched = cells.get("kernels float32 1 grouped", {}).get("launched")
    lines.append(target("kernels of an update, float32", launched, 90, "", at_most=True))
    for name, count in itertools.product(("float32", "tf32", "bfloat16"), LANES):
        lines.append(fastest_way(cells, name, count))
    return [line for line in lines if line]


def record(cells: Cells, about: Cell) -> str:
    """A row of README's record: one lane in bfloat16, and a whole run."""
    rows = cells.get("updates bfloat16", {}).get("rows", [])
    first = max(
        (row for row in rows if row["replicas"] == 1), key=lambda row: row["ratio"], default=None
    )
    whole = cells.get("whole bfloat16", {}).get("seconds")
    if first is None or whole is None:
        return ""
    low, high = first["ratio_spread"]
    return (
        f"| training at width {first['width']} in bfloat16, {first['way']}, against a plain loop "
        f"| {first['images_per_second']:,.0f} images/s, {first['ratio']:.2f} [{low:.2f}, "
        f"{high:.2f}] times | {whole:.0f} s for {WHOLE} epochs of {about['dataset']} "
        f"| {about['device']} | {commit()} |"
    )


def commit() -> str:
    """The commit of this checkout, if it is one."""
    if not shutil.which("git"):
        return ""
    call = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def best(cells: Cells, name: str, lanes: int, column: str) -> float | None:
    """The largest value of a column of the updates in a precision, of all ways."""
    rows = cells.get(f"updates {name}", {}).get("rows", [])
    return max((row[column] for row in rows if row["replicas"] == lanes), default=None)


def target(
    what: str, value: float | None, wanted: float, unit: str, *, at_most: bool = False
) -> str:
    """What was wanted, what was measured, and whether that is enough."""
    wish = f"wanted {'at most' if at_most else 'at least'} {wanted} {unit}".rstrip()
    if value is None:
        return f"not measured  {what}: {wish}"
    met = value <= wanted if at_most else value >= wanted
    return f"{'met' if met else 'NOT MET':<12}  {what}: {value:.3g} {unit}; {wish}"


def fastest_way(cells: Cells, name: str, lanes: int) -> str:
    """The way that trains most images, against the device's own."""
    rows = cells.get(f"updates {name}", {}).get("rows", [])
    speeds = {row["way"]: row["images_per_second"] for row in rows if row["replicas"] == lanes}
    if not speeds:
        return ""
    first = max(speeds, key=lambda way: speeds[way])
    own = default_way(precision.default_device())
    own = own if own in speeds else "grouped"
    against = f"{speeds[first] / speeds[own]:.2f} times {own}" if own in speeds else "alone"
    return f"fastest way, {name}, {lanes} lane{'s' if lanes > 1 else ''}: {first} ({against})"
