"""`python -m tune.run` as a person uses it: bad input, help, dry runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tune.run
from tune.searches import SEARCHES

ROOT = Path(__file__).parents[2]


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
