"""`python -m tune.bench`: what a search costs beyond training and evaluating.

Runs the demo search with its confirm stage, and two of tiny trials that differ in their number alone, each as a user would.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from dcgan import cli
from tune.plan import SEARCH_FILE

TINY = ["--set", "image_size=16", "--set", "generator_width=2", "--set", "discriminator_width=2"]
FEW, MANY = 4, 24  # tiny trials


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


def main() -> None:
    parser = cli.Parser(prog="python -m tune.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each; the best counts (default: 1)")
    repeats = parser.parse_args().repeats
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, ray {version('ray')}, "
          f"torch {version('torch')}")  # fmt: skip

    total, busy = min((measure(["--search", "hparams"]) for _ in range(repeats)), key=lambda pair: pair[0] - pair[1])
    print(f"demo search: {total:.0f} s of slots, {busy:.0f} s in training and evaluation: {1 - busy / total:.1%} overhead")

    free = {}
    for trials in (FEW, MANY):
        arguments = ["--search", "hparams", "--epochs", "1", "--num-trials", str(trials), "--confirm", "0", *TINY]
        free[trials] = min(total - busy for total, busy in (measure(arguments) for _ in range(repeats)))
    print(f"a further trial: {(free[MANY] - free[FEW]) / (MANY - FEW):.2f} s of a slot before and after its training")


if __name__ == "__main__":
    main()
