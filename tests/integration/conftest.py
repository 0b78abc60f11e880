"""Fixtures of the integration tests: command lines in this process, and searches that several tests
look at.

Ray, and what imports it, is imported where it is needed: tests of `dcgan` run where it is not.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a main function with arguments; returns exit code, output and error output."""

    def run(main: Any, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port in place of MNIST's servers."""
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])


@pytest.fixture
def nothing_left_running() -> Iterator[None]:
    """Ends the searches in processes of their own that a failed test has left."""
    from search_processes import end_all

    yield
    end_all()


# Searches that have ended, each run once, whichever of xdist's workers first needs it


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder that is filled once and then shared by all workers of a test run."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, filled = shared / name, shared / f"{name}.filled"
    with FileLock(shared / f"{name}.lock"):
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A search with one trial at a time that nobody disturbs, by `ONE_AT_A_TIME`."""
    from search_processes import ONE_AT_A_TIME

    return once(tmp_path_factory, "undisturbed", search_once(request, ONE_AT_A_TIME)) / "s"


@pytest.fixture(scope="session")
def undisturbed_by_chance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A search that nobody disturbs, whose trials do not depend on each other, by `BY_CHANCE`."""
    from search_processes import BY_CHANCE

    return once(tmp_path_factory, "by_chance", search_once(request, BY_CHANCE)) / "s"


def search_once(request: pytest.FixtureRequest, arguments: list[str]) -> Callable[[Path], None]:
    """Fills a folder with a whole search, named `s`, in this process."""

    def fill(folder: Path) -> None:
        from search_processes import at

        from tune.options import from_flags, make_parser
        from tune.run import run

        request.getfixturevalue("one_ray")
        words = [*arguments, *at(folder), "--wandb", "disabled"]
        assert run(from_flags(make_parser(), words)) == 0

    return fill


README_LESS = [
    *("--width", "8", "--set", "image_size=16", "--num-trials", "7", "--confirm-seeds", "2")
]
"""What makes the README's search a third as long: else it takes a third of these tests' time."""


@dataclass(frozen=True)
class WheelSearch:
    """The README's search, run from the built wheel in an environment of its own, that ended."""

    home: Path
    """Where it was started: an empty home."""
    wheel: Path
    python: Path
    output: str
    seconds: float

    @property
    def folder(self) -> Path:
        """Of the search."""
        (folder,) = (self.home / "runs").glob("hparams-*")
        return folder

    def run(self, *arguments: object, cwd: Path) -> str:
        """Runs Python of the environment away from the source; returns the output."""
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=cwd,
            env=clean_environment(self.home),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def readme_search(tmp_path_factory: pytest.TempPathFactory) -> WheelSearch:
    """The command of the README's first screen, in an empty home: W&B is offline there."""
    folder = once(tmp_path_factory, "readme", run_readme)
    (wheel,) = folder.glob("*.whl")
    return WheelSearch(
        home=folder / "home",
        wheel=wheel,
        python=folder / "venv" / "bin" / "python",
        output=(folder / "output.txt").read_text(),
        seconds=float((folder / "seconds.txt").read_text()),
    )


def run_readme(folder: Path) -> None:
    """Builds the wheel, installs it into a new environment, and runs the README's search, with
    `README_LESS`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # all else comes from the environment that runs the tests, but for what its own .pth files name
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    home = folder / "home"
    home.mkdir()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"&& \.venv/bin/python (-m tune\.run .*)$", readme, re.MULTILINE)
    begin = time.perf_counter()
    done = subprocess.run(
        [python, "-u", *shlex.split(words), *README_LESS],
        cwd=home,
        env=clean_environment(home),
        text=True,
        timeout=2400,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    (folder / "seconds.txt").write_text(str(time.perf_counter() - begin))
    assert done.returncode == 0, done.stdout
    (folder / "output.txt").write_text(done.stdout)


def clean_environment(home: Path) -> dict[str, str]:
    """Variables of a person who has set none of Python, W&B or Ray."""
    own = ("PYTHON", "WANDB", "RAY_", "COVERAGE")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | {"HOME": str(home)}


# Searches in this process


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """Ray on one CPU, which all searches in this process use: `tune.run` takes one that runs. To
    start a worker costs more than its trials here, and xdist uses the other CPU. Its workers know
    the data set of few digits."""
    import few_digits
    import ray

    from tune.runner import quiet_ray, start_ray

    before = dict(os.environ)
    quiet_ray()
    start_ray(1, runtime_env=few_digits.for_workers(None))
    # where a person has a token for Ray, Ray asks for it in each process that inherits this: those
    # of other tests have another home
    os.environ.clear()
    os.environ.update(before)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Ended:
    """A search that ended in this process."""

    folder: Path
    code: int
    output: str


@pytest.fixture
def search_in_process(one_ray: None, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a tiny search named `s` on the running Ray, from options to exit code: of few digits,
    unless another data set is asked for."""
    import few_digits  # noqa: F401 - registers a data set
    from search_processes import SMALL

    from tune.options import Options
    from tune.run import run

    usual: dict[str, Any] = {
        "preset": "demo",
        "dataset": "few-digits",
        "set": tuple(f"{name}={value}" for name, value in SMALL.items()),
        "confirm": 0,
        "wandb": "disabled",
        "max_concurrent": 1,
    }

    def search(**asked: Any) -> Ended:
        storage = Path(asked.pop("storage", tmp_path))
        options = {"report": False, "estimate": False, "storage": str(storage), **asked}
        if "resume" not in asked:
            options = usual | {"name": "s"} | options
        folder = storage / (options.get("resume") or options["name"])
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = run(Options(**options))
        return Ended(folder, code, output.getvalue())

    return search
