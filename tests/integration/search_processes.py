"""Searches in processes of their own, for the tests that watch, interrupt and kill them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = ["--set", "image_size=16", "--set", "generator_width=2", "--set", "discriminator_width=2", "--preset", "demo"]
QUICK = [*TINY, "--confirm", "0"]
LIMIT_SECONDS = 240
STARTED: list[subprocess.Popen[str]] = []


def start(arguments: list[str], home: Path, program: tuple[str, ...] = ("-m", "tune.run")) -> subprocess.Popen[str]:
    """Starts a search in a process group of its own, as a shell does, with an empty home."""
    home.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-u", *program, *arguments],
        cwd=ROOT, env={"WANDB_MODE": "disabled", **os.environ, "HOME": str(home)}, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    STARTED.append(process)
    return process


def run(arguments: list[str], home: Path) -> tuple[int, str]:
    process = start(arguments, home)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, output


def end_all() -> None:
    """Ends what a failed test has left."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the search did not get there in time"
        time.sleep(0.05)


def epochs_by_trial(folder: Path) -> dict[str, list[int]]:
    """Epochs of each trial as they stand in the files, doubled ones and all."""
    return {
        file.parent.name: [json.loads(line)["epoch"] for line in file.read_text().splitlines()]
        for file in folder.glob("trial_*/result.json")
    }


def rows_now(folder: Path) -> int:
    return sum(map(len, epochs_by_trial(folder).values()))
