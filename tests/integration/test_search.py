"""Whole searches on real Ray with real digits, in processes of their own: the answer, failures, interruptions."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from search_processes import (
    LIMIT_SECONDS,
    QUICK,
    ROOT,
    TINY,
    end_all,
    epochs_by_trial,
    rows_now,
    run,
    start,
    wait_for,
)

from analysis.load import load_trials
from analysis.tables import ranking
from dcgan import checkpoint
from dcgan.config import TrainConfig
from dcgan.data import source
from dcgan.evaluate import evaluate, load_reference


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


def test_a_search_ends_with_table_best_config_and_samples(tmp_path: Path) -> None:
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "4",
        "--epochs",
        "3",
        *QUICK,
        "--storage",
        str(tmp_path),
        "--name",
        "s",
    ]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    folder = tmp_path / "s"
    frame = load_trials(folder)
    assert frame["trial"].nunique() == 4
    assert set(frame["status"]) <= {"finished", "stopped"}
    assert (frame["generator_lr"] == frame["discriminator_lr"]).all()
    assert (
        frame.query("generator_lr == 2e-4 and batch_size == 64 and optimizer == 'adam'")[
            "trial"
        ].nunique()
        == 1
    )

    table = ranking(frame)
    assert table["fid"].is_monotonic_increasing
    assert all(trial in output for trial in table["trial"])
    assert (
        f"best: {table['trial'][0]}, fid {table['fid'][0]:.2f} at epoch {table['best_epoch'][0]}"
        in output
    )
    best = TrainConfig.from_file(folder / "best.json")
    assert best.to_dict() == json.loads((folder / table["trial"][0] / "params.json").read_text())
    assert (folder / "best.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.csv").is_file()
    assert (folder / "table.md").is_file()
    assert str(folder) in output
    assert (
        len(
            re.findall(r"^trial_\w+ (finished|stopped at epoch \d): best fid", output, re.MULTILINE)
        )
        == 4
    )
    assert "Traceback" not in output

    search = json.loads((folder / "search.json").read_text())
    assert search["protocol"]["eval_samples"] == 2000
    assert search["protocol"]["eval_split"] == "validation"
    assert search["rungs"] == [1]

    code, output = run(arguments, tmp_path / "home")  # the name is taken: nothing is mixed
    assert code == 2
    assert "holds a search; go on with it by --resume s" in output
    code, output = run(
        ["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home"
    )  # and nothing is trained again
    assert code == 0, output
    assert load_trials(folder).equals(frame)


DIVERGING = """
import dataclasses, sys
from pathlib import Path
from optuna.distributions import CategoricalDistribution
from analysis import tables
from tune.plan import Plan
from tune.runner import run_plan, session
from tune.searches import DEMO, make_search

settings = {"image_size": 16, "generator_width": 2, "discriminator_width": 2, "epochs": 2, "batch_size": 500}
rates = (2e-4, 1e30, 1e-3)
search = make_search("baseline", DEMO, ("float32",), settings)
axes = {"generator_lr": CategoricalDistribution(rates)}
search = dataclasses.replace(search, axes=axes, ties={"discriminator_lr": "generator_lr"}, grid={"generator_lr": rates})
folder = Path(sys.argv[1])
plan = Plan(
    search=search, sampler="grid", scheduler="fifo", points=search.grid_points(), num_trials=3, grace_period=1, seed=0,
    data_dir=None, folder=folder, slots=2, cpus=1, gpus=0, confirm=0, confirm_seeds=1,
)
plan.folder.mkdir()
with session(plan) as stop:
    run_plan(plan, stop)
print(tables.write(plan.folder)[1])
"""


def test_a_trial_that_diverges_shows_as_failed_and_the_others_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIVERGING, str(tmp_path / "run")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
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


def test_a_trial_that_runs_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    """A map of 8000 x 1024 x 32 x 32 floats, 34 GB, is more than this machine has, or it takes a while to find out."""
    settings = {"image_size": 64, "batch_size": 8000, "discriminator_width": 1024}
    settings |= dict.fromkeys(("generator_depth", "discriminator_depth", "generator_width"), 1)
    fixed = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    arguments = [
        "--search",
        "baseline",
        "--epochs",
        "1",
        "--preset",
        "demo",
        *fixed,
        "--storage",
        str(tmp_path),
        "--name",
        "s",
    ]
    code, output = run(arguments, tmp_path / "home")
    assert code == 1, output
    text = (tmp_path / "s" / "trial_0000" / "error.txt").read_text()
    assert re.match(
        r"out of memory on cpu with batch_size 8000, .*: make one of them smaller.*tried to allocate \d+ bytes$",
        text,
    )
    assert f"trial_0000 failed: {text}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_search_stops_cleanly_and_is_resumed_by_the_printed_command(
    how: str, tmp_path: Path
) -> None:
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "3",
        "--epochs",
        "4",
        *QUICK,
        "--storage",
        str(tmp_path),
        "--name",
        "i",
    ]
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
    kept = after.merge(
        before[["trial", "epoch", "fid"]], on=["trial", "epoch"], suffixes=("", "_before")
    )
    assert len(kept) == len(before)
    assert (kept["fid"] == kept["fid_before"]).all()


def test_an_interruption_before_the_first_result_prints_how_to_go_on(tmp_path: Path) -> None:
    """The first epoch of a large net takes longer than this."""
    wide = ["--set", "generator_width=64", "--set", "discriminator_width=64"]
    arguments = [
        "--search",
        "baseline",
        "--preset",
        "demo",
        *wide,
        "--storage",
        str(tmp_path),
        "--name",
        "e",
    ]
    process = start(arguments, tmp_path / "home")
    wait_for(lambda: any((tmp_path / "e").glob("trial_*")), process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (
        time.monotonic() - asked < 20
    )  # 10 s where nothing else runs: each part of it has a deadline
    assert process.returncode == 130, output
    assert f"go on with: python -m tune.run --resume e --storage {tmp_path}" in output
    assert "error" not in output


def test_each_trial_trains_several_seeds_and_their_mean_counts(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--epochs", "2", "--replicas", "2", "--seed", "5", *QUICK]
    code, output = run([*arguments, "--storage", str(tmp_path), "--name", "r"], tmp_path / "home")
    assert code == 0, output
    mean, by_seed = load_trials(tmp_path / "r"), load_trials(tmp_path / "r", per_seed=True)
    assert by_seed["seed"].to_list() == [5, 5, 6, 6]
    for _, row in mean.iterrows():
        values = by_seed.query("epoch == @row.epoch")["fid"]
        assert row["fid"] == pytest.approx(values.mean())
        assert row["fid_std"] == pytest.approx(values.std(ddof=1))
    (trial,) = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/r/study.db").trials
    assert trial.value == mean["fid"].min()


def test_several_objectives_give_a_pareto_set(tmp_path: Path) -> None:
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "4",
        "--epochs",
        "2",
        "--objectives",
        "fid,seconds_train,peak_memory_bytes",
    ]
    code, output = run(
        [*arguments, *QUICK, "--storage", str(tmp_path), "--name", "o"], tmp_path / "home"
    )
    assert code == 0, output
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/o/study.db")
    assert len(study.directions) == 3
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE"
    ] * 4  # nothing is stopped early
    frame = load_trials(tmp_path / "o")
    for trial in study.trials:
        rows = frame[frame["trial"] == f"trial_{trial.number:04d}"]
        best = rows.loc[rows["fid"].idxmin()]
        assert trial.values == [best["fid"], best["seconds_train"], best["peak_memory_bytes"]]
    shown = re.findall(r"^\d+ +yes +(trial_\d+)", output, re.MULTILINE)
    assert set(shown) == {f"trial_{trial.number:04d}" for trial in study.best_trials}


def test_population_based_training_hands_on_weights_and_changes_rates(tmp_path: Path) -> None:
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "4",
        "--epochs",
        "6",
        "--scheduler",
        "pbt",
        "--grace-period",
        "2",
    ]
    arguments += ["--sampler", "random", *QUICK, "--storage", str(tmp_path), "--name", "p"]
    code, output = run(arguments, tmp_path / "home")
    assert code == 0, output
    folder = tmp_path / "p"
    frame = load_trials(folder)
    assert set(frame["status"]) == {"finished"}
    for trial, epochs in epochs_by_trial(folder).items():
        assert epochs == [1, 2, 3, 4, 5, 6], trial
    fids = {trial: rows.set_index("epoch")["fid"] for trial, rows in frame.groupby("trial")}
    pairs = [(a, b) for a in fids for b in fids if a < b and fids[a][2] == fids[b][2]]
    assert pairs  # one took over the other's history with its weights
    changed = 0
    for trial, rows in frame.groupby("trial"):
        content = checkpoint.load(folder / str(trial))
        rate = json.loads((folder / str(trial) / "params.json").read_text())["generator_lr"]
        assert content["config"]["generator_lr"] == content["config"]["discriminator_lr"] == rate
        for name in ("generator_optimizer", "discriminator_optimizer"):
            assert (
                content["states"][0][name]["param_groups"][0]["lr"] == rate
            )  # applied, not only written
        assert set(rows["generator_lr"]) == {rate}
        proposed = study_params(folder)[str(trial)]["generator_lr"]
        changed += rate != proposed
    assert changed


def study_params(folder: Path) -> dict[str, dict[str, Any]]:
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db").trials
    return {f"trial_{trial.number:04d}": trial.params for trial in trials}


def test_a_search_begins_with_the_best_of_an_earlier_one_and_ends_with_the_best_confirmed(
    tmp_path: Path,
) -> None:
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "3",
        "--epochs",
        "2",
        "--scheduler",
        "fifo",
        "--storage",
        str(tmp_path),
    ]
    code, output = run([*arguments, *QUICK, "--name", "first"], tmp_path / "home")
    assert code == 0, output
    best = ranking(load_trials(tmp_path / "first")).iloc[0]
    again = [
        "--points-from",
        str(tmp_path / "first"),
        "--confirm",
        "1",
        "--confirm-seeds",
        "2",
        "--name",
        "second",
    ]
    code, output = run([*arguments, *TINY, *again], tmp_path / "home")
    assert code == 0, output
    assert (
        study_params(tmp_path / "second")["trial_0001"]
        == study_params(tmp_path / "first")[best["trial"]]
    )

    confirmed = load_trials(tmp_path / "second" / "confirm")
    assert confirmed["trial"].nunique() == 4  # the best and the baseline, on two seeds each
    assert set(confirmed["seed"]) == {1, 2}
    for folder in (tmp_path / "second" / "confirm").glob("trial_*"):
        generator, config, epoch = checkpoint.load_generator(folder)
        told = json.loads((folder / "test.json").read_text())
        assert told.pop("epoch") == epoch
        reference = load_reference(source(config, None, torch.device("cpu")), "test")
        assert told == pytest.approx(evaluate(generator, config, reference))
    assert "is confirmed at" in output
    assert (tmp_path / "second" / "confirm.csv").is_file()

    code, output = run(
        ["--resume", "second", "--storage", str(tmp_path)], tmp_path / "home"
    )  # nothing is trained again
    assert code == 0, output
    assert load_trials(tmp_path / "second" / "confirm").equals(confirmed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readmes_main_job(tmp_path: Path) -> None:
    """The command of the README's first screen, whole."""
    process = start(
        ["--search", "hparams", "--preset", "demo", "--storage", str(tmp_path)], tmp_path / "home"
    )
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    (folder,) = tmp_path.glob("hparams-*")
    table = ranking(load_trials(folder))
    assert len(table) == 18
    assert table["fid"][0] < 25  # noise is above 150, real training digits 0.3
    assert f"everything is in {folder}" in output
    assert re.search(
        r"^\d.* · trials \d+/18 · reached epoch 2:\d+  6:\d+  9:\d+ · best fid .* left$",
        output,
        re.MULTILINE,
    )

    assert (folder / "report.html").is_file()
    (command,) = re.findall(r"python -m (analysis\.report .*)$", output, re.MULTILINE)
    subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    report = (folder / "report.md").read_text()
    assert f"fid {table['fid'][0]:.2f}" in report
    assert "18 of 18 trials" in report
    assert all(
        (folder / file).stat().st_size > 1000
        for file in re.findall(r"\]\((figures/[^)]+)\)", report)
    )
    assert {
        f"{folder.name}-{name}.png" for name in ("real", "interpolation", "learning_curves")
    } <= {path.name for path in (folder / "figures").iterdir()}
