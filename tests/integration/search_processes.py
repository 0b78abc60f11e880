"""Searches in processes of their own, for the tests that watch, interrupt and kill them."""

import atexit
import contextlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import few_digits  # noqa: F401 - registers a data set
import pytest
from search_results import rows_now

ROOT = Path(__file__).parents[2]
SMALL = {"image_size": 16, "generator_width": 2, "discriminator_width": 2}
TINY = ["--preset", "demo", *(f"--set={name}={value}" for name, value in SMALL.items())]
QUICK = [*TINY, "--confirm", "0", "--no-report", "--no-estimate", "--dataset", "few-digits"]
"""Of a search of which neither confirm stage nor page nor cost is looked at."""
ONE_AT_A_TIME = [
    *("--search", "hparams", "--num-trials", "4", "--epochs", "4", "--seed", "3", *QUICK),
    *("--max-concurrent", "1"),
]
"""A search that repeats exactly: each of its decisions depends on all before."""
BY_CHANCE = [
    *("--search", "hparams", "--num-trials", "5", "--epochs", "4", *QUICK),
    *("--sampler", "random", "--scheduler", "fifo"),
]
"""A search whose rows are the same on one machine and on several."""
LIMIT_SECONDS = 400
SEARCH = ["-c", "import few_digits; from tune.run import main; main()"]
"""What Python runs: `-m tune.run`, but that it knows the data set of few digits, on which an epoch
takes a third of the time."""
FEW_DIGITS = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "numerical")]),
    "RAY_RUNTIME_ENV_HOOK": "few_digits.for_workers",
}
"""Variables by which that driver, and its workers, find the data set."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "search_processes",
        *(f"tune.{name}" for name in ("run", "site", "answer", "confirm", "track")),
    ]
)
"""Drivers are forked from a process that has imported what they need: to import it would take each
longer than its trials. Those of the README's search, of jobs on a cluster, of commands in the docs,
and of test_environments are started as people start them."""


class Driver:
    """A search in a process of its own, to be used as a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        descriptor, self.output = tempfile.mkstemp(dir=Path(environment["HOME"]).parent)
        os.close(descriptor)
        self.process = FORKS.Process(target=drive, args=(arguments, environment, self.output))
        with pytest.MonkeyPatch.context() as patch:  # for the process that forks them
            path = [str(Path(__file__).parent), FEW_DIGITS["PYTHONPATH"]]
            patch.setenv("PYTHONPATH", os.pathsep.join(path))
            self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a search", timeout or 0)
        return Path(self.output).read_text(encoding="utf-8"), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def drive(arguments: Sequence[str], environment: dict[str, str], output: str) -> None:
    """Makes a forked process what a shell starts, in a group of its own, and runs the search."""
    from tune.run import main

    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.argv = ["tune.run", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which a fork leaves out


STARTED: list[Driver] = []


def start(arguments: Sequence[str], home: Path, **variables: str) -> Driver:
    """Starts a search in a process group of its own, as a shell does, with an empty home."""
    home.mkdir(exist_ok=True)
    environment = {"WANDB_MODE": "disabled", **os.environ, "HOME": str(home), **variables}
    driver = Driver(arguments, {**environment, **FEW_DIGITS})
    STARTED.append(driver)
    return driver


def run(arguments: Sequence[str], home: Path, **variables: str) -> tuple[int, str]:
    """Exit code and output of a whole search."""
    process = start(arguments, home, **variables)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode is not None
    return process.returncode, output


def at(storage: Path | str, name: str = "s") -> list[str]:
    """The arguments that say where a search is kept."""
    return ["--storage", str(storage), "--name", name]


def end_all() -> None:
    """Ends what a failed test has left."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def resume(folder: Path) -> list[str]:
    """The arguments that go on with the search of a folder."""
    return ["--resume", folder.name, "--storage", str(folder.parent)]


def printed_command(output: str) -> list[str]:
    """The arguments of the command that an interrupted search printed."""
    (line,) = [line for line in output.splitlines() if "go on with: " in line]
    words = shlex.split(line.partition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "tune.run"]
    return words[3:]


def wait_for(condition: Callable[[], bool], process: Driver | subprocess.Popen[str]) -> None:
    """Waits until a condition holds while a search runs."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the search did not get that far in time"
        time.sleep(0.1)


def another_row(process: Driver, folder: Path) -> bool:
    """Waits for the next row; False if the search ends before."""
    now = rows_now(folder)
    while rows_now(folder) <= now and process.poll() is None:
        time.sleep(0.05)
    return process.poll() is None


def parts(driver: int) -> dict[str, list[int]]:
    """Pids of a search's processes by kind: its driver, the parts of its Ray node, its workers, and
    what logs it to W&B."""
    command = ["ps", "-ww", "-eo", "pid=,ppid=,args="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listing.splitlines()]
    family = {driver}
    while more := {int(p) for p, parent, _ in processes if int(parent) in family} - family:
        family |= more
    found: dict[str, list[int]] = {"driver": [driver]}
    found |= {kind: [] for kind in ("raylet", "gcs_server", "worker", "tracker")}
    for pid, _, program in processes:
        kind = Path(program.split()[0]).name
        if int(pid) not in family:
            continue
        if kind in found:
            found[kind].append(int(pid))
        elif " tune.track " in program:
            found["tracker"].append(int(pid))
        elif program.startswith("ray::ImplicitFunc"):  # a trainable
            found["worker"].append(int(pid))
    return found


def kill(driver: int, kind: str) -> None:
    """Kills one of a search's processes of a kind, if there is one at the moment."""
    for pid in parts(driver)[kind][:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
