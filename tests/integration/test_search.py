"""Whole searches on real Ray with real digits, in processes of their own: the answer, failures, interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.load import load_trials
from analysis.tables import ranking
from dcgan.config import TrainConfig

ROOT = Path(__file__).parents[2]
TINY = ["--set", "image_size=16", "--set", "generator_width=2", "--set", "discriminator_width=2", "--preset", "demo"]
LIMIT_SECONDS = 240
STARTED: list[subprocess.Popen[str]] = []


def start(arguments: list[str], home: Path) -> subprocess.Popen[str]:
    """Starts a search in a process group of its own, as a shell does, with an empty home."""
    home.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tune.run", *arguments],
        cwd=ROOT, env={**os.environ, "HOME": str(home)}, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    STARTED.append(process)
    return process


def run(arguments: list[str], home: Path) -> tuple[int, str]:
    process = start(arguments, home)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, output


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends what a failed test has left."""
    yield
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
        time.sleep(0.1)


def epochs_by_trial(folder: Path) -> dict[str, list[int]]:
    """Epochs of each trial as they stand in Ray's own files, doubled ones and all."""
    return {
        file.parent.name: [json.loads(line)["epoch"] for line in file.read_text().splitlines()]
        for file in folder.glob("trial_*/result.json")
    }


def rows_now(folder: Path) -> int:
    return sum(map(len, epochs_by_trial(folder).values()))


def test_a_search_ends_with_table_best_config_and_samples(tmp_path: Path) -> None:
    arguments = ["--search", "hparams", "--num-trials", "4", "--epochs", "3", *TINY, "--storage", str(tmp_path), "--name", "s"]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    folder = tmp_path / "s"
    frame = load_trials(folder)
    assert frame["trial"].nunique() == 4
    assert set(frame["status"]) <= {"finished", "stopped"}
    assert (frame["generator_lr"] == frame["discriminator_lr"]).all()
    assert frame.query("generator_lr == 2e-4 and batch_size == 64 and optimizer == 'adam'")["trial"].nunique() == 1

    table = ranking(frame)
    assert table["fid"].is_monotonic_increasing
    assert all(trial in output for trial in table["trial"])
    assert f"best: {table['trial'][0]}, fid {table['fid'][0]:.2f} at epoch {table['best_epoch'][0]}" in output
    best = TrainConfig.from_file(folder / "best.json")
    assert best.to_dict() == json.loads((folder / table["trial"][0] / "params.json").read_text())
    assert (folder / "best.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.csv").is_file()
    assert (folder / "table.md").is_file()
    assert str(folder) in output
    assert len(re.findall(r"^trial_\w+ (finished|stopped at epoch \d): best fid", output, re.MULTILINE)) == 4
    assert "Traceback" not in output

    search = json.loads((folder / "search.json").read_text())
    assert search["protocol"]["eval_samples"] == 2000
    assert search["protocol"]["eval_split"] == "validation"
    assert search["rungs"] == [1]

    code, output = run(arguments, tmp_path / "home")  # the name is taken: nothing is mixed
    assert code == 2
    assert "holds a search; go on with it by --resume s" in output
    code, output = run(["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home")  # and nothing is trained again
    assert code == 0, output
    assert load_trials(folder).equals(frame)


DIVERGING = """
import dataclasses, sys
from pathlib import Path
from optuna.distributions import CategoricalDistribution
from analysis import tables
from tune.plan import Plan
from tune.runner import run_plan
from tune.searches import DEMO, make_search

settings = {"image_size": 16, "generator_width": 2, "discriminator_width": 2, "epochs": 2, "batch_size": 500}
rates = (2e-4, 1e30, 1e-3)
search = make_search("baseline", DEMO, ("float32",), settings)
axes = {"generator_lr": CategoricalDistribution(rates)}
search = dataclasses.replace(search, axes=axes, ties={"discriminator_lr": "generator_lr"}, grid={"generator_lr": rates})
folder = Path(sys.argv[1])
plan = Plan(search=search, sampler="grid", num_trials=3, seed=0, data_dir=None, folder=folder, slots=2, cpus=1, gpus=0)
plan.folder.mkdir()
run_plan(plan)
print(tables.write(plan.folder)[1])
"""


def test_a_trial_that_diverges_shows_as_failed_and_the_others_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIVERGING, str(tmp_path / "run")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr
    table = ranking(load_trials(tmp_path / "run"))
    failed = table.query("status == 'failed'")
    assert failed["generator_lr"].to_list() == [1e30]
    assert "diverged" in failed["error"].item()
    assert failed["epochs"].item() == 0
    others = table.query("status != 'failed'")
    assert sorted(others["generator_lr"]) == [2e-4, 1e-3]
    assert others["fid"].notna().all()
    assert re.search(r"trial_\w+ failed: .*diverged in epoch 1", done.stdout)
    assert re.search(r"trial_\w+ +failed .*1e\+30.*diverged", done.stdout)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_search_stops_cleanly_and_is_resumed_by_the_printed_command(how: str, tmp_path: Path) -> None:
    arguments = ["--search", "hparams", "--num-trials", "3", "--epochs", "4", *TINY, "--storage", str(tmp_path), "--name", "i"]
    folder, home = tmp_path / "i", tmp_path / "home"
    process = start(arguments, home)
    wait_for(lambda: rows_now(folder) >= 2, process)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts the whole group
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    before = load_trials(folder)
    assert "unfinished" in set(before["status"])
    command = re.search(r"go on with: python -m tune\.run (.*)", output)
    assert command, output

    code, output = run(command[1].split(), home)
    assert code == 0, output
    after = load_trials(folder)
    assert after["trial"].nunique() == 3
    assert "unfinished" not in set(after["status"])
    for trial, epochs in epochs_by_trial(folder).items():
        assert epochs == list(range(1, len(epochs) + 1)), trial
    before = before.dropna(subset=["epoch"])  # a trial that had just begun has no epoch yet
    kept = after.merge(before[["trial", "epoch", "fid"]], on=["trial", "epoch"], suffixes=("", "_before"))
    assert len(kept) == len(before)
    assert (kept["fid"] == kept["fid_before"]).all()


RUNGS = """
import glob, pickle, sys
from pathlib import Path
from tune.plan import Plan
from tune.runner import run_plan
from tune.searches import DEMO, make_search

settings = {"image_size": 16, "generator_width": 2, "discriminator_width": 2, "epochs": 2}
search, folder = make_search("hparams", DEMO, ("float32",), settings), Path(sys.argv[1])
plan = Plan(search=search, sampler="tpe", num_trials=3, seed=0, data_dir=None, folder=folder, slots=2, cpus=1, gpus=0)

def rungs():
    states = pickle.loads(Path(max(glob.glob(f"{folder}/callback-states-*.pkl"))).read_bytes())
    (found,) = [state["rungs"] for state in states.values() if state and "rungs" in state]
    return found

run_plan(plan)
before = rungs()
assert [len(recorded) for milestone, recorded in before[0] if milestone == 1] == [3], before
run_plan(plan)  # restores the search, finds nothing to do, and saves the state of the restored scheduler
assert len(glob.glob(f"{folder}/callback-states-*.pkl")) == 2
assert rungs() == before, (before, rungs())
print("kept")
"""


def test_ashas_rungs_survive_a_restart(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNGS, str(tmp_path / "run")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.stdout.rstrip().endswith("kept"), done.stderr


def test_an_interruption_before_the_first_result_prints_how_to_go_on(tmp_path: Path) -> None:
    """The first epoch of a large net takes longer than this."""
    wide = ["--set", "generator_width=64", "--set", "discriminator_width=64"]
    arguments = ["--search", "baseline", "--preset", "demo", *wide, "--storage", str(tmp_path), "--name", "e"]
    process = start(arguments, tmp_path / "home")
    wait_for(lambda: any((tmp_path / "e").glob("trial_*")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"go on with: python -m tune.run --resume e --storage {tmp_path}" in output
    assert "error" not in output


def test_a_killed_worker_costs_no_trial_and_no_finished_epoch(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--epochs", "5", *TINY, "--storage", str(tmp_path), "--name", "k"]
    process = start(arguments, tmp_path / "home")
    wait_for(lambda: rows_now(tmp_path / "k") >= 2, process)
    (result,) = (tmp_path / "k").glob("trial_*/result.json")
    os.kill(json.loads(result.read_text().splitlines()[-1])["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, output
    frame = load_trials(tmp_path / "k")
    assert frame["epoch"].to_list() == [1, 2, 3, 4, 5]
    assert set(frame["status"]) == {"finished"}


def test_one_trial_at_a_time_repeats_exactly(tmp_path: Path) -> None:
    """Same proposals, same results, same decisions."""
    tables = []
    for name in "ab":
        arguments = ["--search", "hparams", "--num-trials", "4", "--epochs", "2", "--max-concurrent", "1", "--seed", "7",
                     *TINY, "--storage", str(tmp_path), "--name", name]  # fmt: skip
        code, output = run(arguments, tmp_path / "home")
        assert code == 0, output
        tables.append(ranking(load_trials(tmp_path / name), settings=["generator_lr", "batch_size", "optimizer", "seed"]))
    a, b = (t[["fid", "kid", "status", "epochs", "generator_lr", "batch_size", "optimizer", "seed"]] for t in tables)
    assert a.equals(b)
    assert set(a["seed"]) == {7}
    assert len(a) == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readmes_main_job(tmp_path: Path) -> None:
    """The command of the README's first screen, whole."""
    process = start(["--search", "hparams", "--preset", "demo", "--storage", str(tmp_path)], tmp_path / "home")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    (folder,) = tmp_path.glob("hparams-*")
    table = ranking(load_trials(folder))
    assert len(table) == 10
    assert table["fid"][0] < 25  # noise is above 150, real training digits 0.3
    assert f"everything is in {folder}" in output
    assert re.search(r"^\d.* · trials \d+/10 · reached epoch 2:\d+  6:\d+  9:\d+ · best fid .* left$", output, re.MULTILINE)
