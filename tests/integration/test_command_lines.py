"""`python -m tune.run` as a person uses it: bad input, help, dry runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tune.run
from tune.searches import SEARCHES

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "hparam"], "invalid choice: 'hparam'"),
        ([], "--search is missing; allowed: baseline, hparams, architecture, precision, joint"),
        (["--search", "hparams", "--serach"], "unrecognized arguments: --serach"),
        (["--search", "hparams", "--set", "lerning_rate=1"], "unknown config key 'lerning_rate'"),
        (["--search", "hparams", "--set", "ema_decay"], "--set is 'ema_decay'; expected KEY=VALUE"),
        (
            ["--search", "baseline", "--set", "generator_lr=0"],
            "generator_lr is 0; allowed is a finite number above 0",
        ),
        (
            ["--search", "baseline", "--set", "batch_size=9000"],
            "batch_size is 9000; the training split of mnist-mini holds 8000",
        ),
        (
            ["--search", "hparams", "--set", "image_size=30"],
            "image_size is 30; allowed is a multiple of 4",
        ),
        (
            ["--search", "hparams", "--storage", "{file}"],
            "results cannot be written to {file} (File exists); choose a folder by --storage",
        ),
        (
            ["--search", "hparams", "--storage", "/proc/nowhere"],
            "results cannot be written to /proc/nowhere (No such file",
        ),
        (
            ["--search", "hparams", "--dataset", "mnist", "--data-dir", "{empty}"],
            "MNIST is not in {empty}/MNIST/raw",
        ),
        (
            ["--search", "hparams", "--set", "precision=float16"],
            "precision float16 needs a CUDA GPU",
        ),
        (["--search", "hparams", "--set", "precision=tf32"], "precision tf32 needs a CUDA GPU"),
        (["--resume", "nothing-like-it"], "no search 'nothing-like-it' in"),
        (["--search", "hparams", "--num-trials", "0"], "--num-trials is 0; allowed is at least 1"),
        (
            ["--search", "hparams", "--num-trials", "13", "--sampler", "grid"],
            "the grid of hparams has 12 settings",
        ),
        (["--search", "hparams", "--epochs", "0"], "--epochs is 0; allowed is at least 1"),
        (["--search", "hparams", "--seed", "-1"], "seed is -1; allowed is"),
        (
            ["--search", "hparams", "--gpus-per-trial", "0"],
            "--gpus-per-trial is 0; allowed is above 0, up to 1",
        ),
        (["--search", "hparams", "--name", "a/b"], "--name is 'a/b'; allowed is one folder name"),
        (["--search", "hparams", "--name", ".."], "--name is '..'; allowed is one folder name"),
        (["--search", "hparams", "--set", "seed=5"], "--set seed=5: use --seed instead"),
        (
            ["--search", "hparams", "--set", "ema_decay=0.5", "--set", "ema_decay=0.9"],
            "--set ema_decay stands twice",
        ),
        (["--resume", "x", "--epochs", "50"], "--epochs cannot go with --resume"),
        (["--resume", "a/b"], "--resume is 'a/b'; allowed is one folder name"),
    ],
)
def test_bad_input_to_a_search_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, command: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    places = {"file": str(tmp_path / "file"), "empty": str(tmp_path / "empty")}
    storage = [] if "--storage" in arguments else ["--storage", tmp_path / "runs"]
    code, _, error = command(
        tune.run.main, *(argument.format(**places) for argument in arguments), *storage
    )
    assert code == 2
    assert len(error.splitlines()) == 1
    assert message.format(**places) in error


def test_errors_in_a_real_process_show_no_traceback(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--set", "generator_lr=0", "--storage", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tune.run", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    message = "generator_lr is 0; allowed is a finite number above 0, such as 2e-4"
    assert done.stderr == f"python -m tune.run: error: {message}\n"


def test_help_names_what_matters(command: Any) -> None:
    code, output, _ = command(tune.run.main, "--help")
    assert code == 0
    for word in ("--search", "--resume", "--dry-run", "architecture", "demo", "full", "Ctrl-C"):
        assert word in output


@pytest.mark.parametrize(
    ("search", "sampler"),
    [
        *((search, "tpe") for search in SEARCHES),
        ("hparams", "grid"),
        ("joint", "grid"),
    ],
)
def test_a_dry_run_prints_the_plan_and_writes_no_search(
    search: str, sampler: str, command: Any, tmp_path: Path
) -> None:
    arguments = [
        "--search",
        search,
        "--sampler",
        sampler,
        "--storage",
        tmp_path,
        "--name",
        "dry",
        "--dry-run",
    ]
    small = ["--set", "latent_size=8", *(["--epochs", "2"] if search == "joint" else [])]
    code, output, _ = command(tune.run.main, *arguments, *small)
    assert code == 0
    for word in (
        "search",
        "preset",
        "space",
        "trials",
        "rungs",
        "metric",
        "cost",
        str(tmp_path / "dry"),
    ):
        assert word in output
    assert not list(tmp_path.iterdir())


def test_a_precision_that_is_absurdly_slow_is_warned_of(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured for real in test_precision; here only what is said of it."""
    monkeypatch.setattr("dcgan.precision.cpu_bfloat16_slowdown", lambda: 17.2)
    small = [
        "--set",
        "generator_width=1",
        "--set",
        "discriminator_width=1",
        "--set",
        "image_size=16",
    ]
    arguments = [
        "--search",
        "hparams",
        "--set",
        "precision=bfloat16",
        *small,
        "--storage",
        tmp_path,
        "--dry-run",
    ]
    code, output, _ = command(tune.run.main, *arguments)
    assert code == 0
    assert "warning  precision bfloat16 is about 17 times slower than float32 on this CPU" in output
