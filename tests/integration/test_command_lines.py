"""The command lines as a person uses them: bad input, help, single runs. In this process, but for one."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dcgan.sample
import dcgan.train
import tune.run
from dcgan.checkpoint import load

ROOT = Path(__file__).parents[2]
TINY = ["--dataset", "mnist-mini", "--image-size", "16", "--generator-width", "2", "--discriminator-width", "2",
        "--batch-size", "1000"]  # fmt: skip


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


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "hparam"], "invalid choice: 'hparam'"),
        ([], "--search is missing; allowed: baseline, hparams, architecture, precision, joint"),
        (["--search", "hparams", "--serach"], "unrecognized arguments: --serach"),
        (["--search", "hparams", "--set", "lerning_rate=1"], "unknown config key 'lerning_rate'"),
        (["--search", "hparams", "--set", "ema_decay"], "--set is 'ema_decay'; expected KEY=VALUE"),
        (["--search", "baseline", "--set", "generator_lr=0"], "generator_lr is 0; allowed is a finite number above 0"),
        (
            ["--search", "baseline", "--set", "batch_size=9000"],
            "batch_size is 9000; the training split of mnist-mini holds 8000",
        ),
        (["--search", "hparams", "--set", "image_size=30"], "image_size is 30; allowed is a multiple of 4"),
        (
            ["--search", "hparams", "--storage", "{file}"],
            "results cannot be written to {file} (File exists); choose a folder by --storage",
        ),
        (["--search", "hparams", "--storage", "/proc/nowhere"], "results cannot be written to /proc/nowhere (No such file"),
        (["--search", "hparams", "--dataset", "mnist", "--data-dir", "{empty}"], "MNIST is not in {empty}/MNIST/raw"),
        (["--search", "hparams", "--set", "precision=float16"], "precision float16 needs a CUDA GPU"),
        (["--search", "hparams", "--set", "precision=tf32"], "precision tf32 needs a CUDA GPU"),
        (["--resume", "nothing-like-it"], "no search 'nothing-like-it' in"),
        (["--search", "hparams", "--num-trials", "0"], "--num-trials is 0; allowed is at least 1"),
        (["--search", "hparams", "--num-trials", "13", "--sampler", "grid"], "the grid of hparams has 12 settings"),
        (["--search", "hparams", "--epochs", "0"], "--epochs is 0; allowed is at least 1"),
        (["--search", "hparams", "--seed", "-1"], "seed is -1; allowed is"),
        (["--search", "hparams", "--gpus-per-trial", "0"], "--gpus-per-trial is 0; allowed is above 0, up to 1"),
        (["--search", "hparams", "--name", "a/b"], "--name is 'a/b'; allowed is one folder name"),
        (["--search", "hparams", "--name", ".."], "--name is '..'; allowed is one folder name"),
        (["--search", "hparams", "--set", "seed=5"], "--set seed=5: use --seed instead"),
        (["--search", "hparams", "--set", "ema_decay=0.5", "--set", "ema_decay=0.9"], "--set ema_decay stands twice"),
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
    code, _, error = command(tune.run.main, *(argument.format(**places) for argument in arguments), *storage)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert message.format(**places) in error


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generator-lr", "0"], "generator_lr is 0.0; allowed is a finite number above 0"),
        (["--generator-lr", "fast"], "argument --generator-lr: invalid float value: 'fast'"),
        (["--image-size", "30"], "image_size is 30; allowed is a multiple of 4"),
        (["--batch-size", "8001", "--dataset", "mnist-mini"], "batch_size is 8001"),
        (["--precision", "float16", "--dataset", "mnist-mini"], "precision float16 needs a CUDA GPU"),
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate 1"),
        (["--config", "{config}"], "unknown config key 'lr'"),
        (["--config", "{missing}"], "no config at"),
        (["--data-dir", "{missing}"], "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte"),
        (["--resume"], "no config at"),
        (["--samples-every", "-1"], "--samples-every is -1"),
    ],
)
def test_bad_input_to_a_single_run_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, command: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"lr": 0.1}')
    places = {"config": str(tmp_path / "config.json"), "missing": str(tmp_path / "missing")}
    given = [argument.format(**places) for argument in arguments]
    code, _, error = command(dcgan.train.main, "--out", tmp_path / "out", *given)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert message in error


def test_errors_in_a_real_process_show_no_traceback(tmp_path: Path) -> None:
    arguments = ["--search", "baseline", "--set", "generator_lr=0", "--storage", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "tune.run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "python -m tune.run: error: generator_lr is 0; allowed is a finite number above 0, such as 2e-4\n"


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (tune.run.main, ["--search", "--resume", "--dry-run", "architecture", "demo", "report", "Ctrl-C"]),
        (dcgan.train.main, ["--generator-lr", "--ema-decay", "--precision", "--replicas", "threads", "baseline"]),
        (dcgan.sample.main, ["--interpolate", "--last", "checkpoint"]),
    ],
)
def test_help_names_what_matters(main: Any, words: list[str], command: Any) -> None:
    code, output, _ = command(main, "--help")
    assert code == 0
    assert all(word in output for word in words)


@pytest.mark.parametrize("search", ["baseline", "hparams", "architecture", "precision", "joint"])
@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_dry_run_prints_the_plan_and_writes_no_search(search: str, sampler: str, command: Any, tmp_path: Path) -> None:
    arguments = ["--search", search, "--sampler", sampler, "--storage", tmp_path, "--name", "dry", "--dry-run"]
    small = ["--set", "latent_size=8", *(["--epochs", "2"] if search == "joint" else [])]
    code, output, _ = command(tune.run.main, *arguments, *small)
    assert code == 0
    for word in ("search", "preset", "space", "trials", "rungs", "metric", "cost", str(tmp_path / "dry")):
        assert word in output
    assert not list(tmp_path.iterdir())


def test_a_precision_that_is_absurdly_slow_is_warned_of(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured for real in test_precision; here only what is said of it."""
    monkeypatch.setattr("dcgan.precision.cpu_bfloat16_slowdown", lambda: 17.2)
    small = ["--set", "generator_width=1", "--set", "discriminator_width=1", "--set", "image_size=16"]
    arguments = ["--search", "hparams", "--set", "precision=bfloat16", *small, "--storage", tmp_path, "--dry-run"]
    code, output, _ = command(tune.run.main, *arguments)
    assert code == 0
    assert "warning  precision bfloat16 is about 17 times slower than float32 on this CPU" in output


def test_a_single_run_writes_everything_and_resumes(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output, _ = command(dcgan.train.main, *TINY, "--epochs", "2", "--out", out, "--samples-every", "2")
    assert code == 0
    assert len(re.findall(r"^epoch [12]/2 .* fid \d+\.\d\d ", output, re.MULTILINE)) == 2
    assert json.loads((out / "params.json").read_text())["generator_width"] == 2
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["best.png", "epoch_002.png"]

    code, _, error = command(dcgan.train.main, *TINY, "--out", out)
    assert code == 2
    assert "already holds a run; go on with it by --resume" in error

    (out / "result.json").write_text((out / "result.json").read_text()[:100])  # killed between checkpoint and row
    code, output, _ = command(dcgan.train.main, "--resume", "--epochs", "3", "--out", out)
    assert code == 0
    rows = [json.loads(line) for line in (out / "result.json").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows == load(out)["history"]

    code, _, error = command(dcgan.train.main, "--resume", "--generator-lr", "0.1", "--out", out)
    assert code == 2
    assert "belongs to another config: generator_lr was 0.0002, is 0.1" in error

    for extra, count in ((["--count", "7"], 7), (["--interpolate", "5", "--count", "2"], 10), (["--last", "--seed", "1"], 64)):
        code, output, _ = command(dcgan.sample.main, out, "--out", tmp_path / "x.png", *extra)
        assert code == 0
        assert f"{count} images of epoch" in output
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_replayed_run_repeats_its_rows_whatever_the_number_of_threads(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "result.json").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not re.search("seconds|second$|memory", k)} for line in lines]

    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    common = ["--samples-every", "0", "--out"]
    _, output, _ = command(dcgan.train.main, *TINY, "--epochs", "2", "--replicas", "2", *common, first)
    assert f"float32 on cpu → {first}\n" in output
    torch.set_num_threads(2)
    code, output, _ = command(dcgan.train.main, "--config", first, *common, again)
    assert code == 0
    assert output.splitlines()[0].endswith(f"on cpu with 1 thread, as {first} had → {again}")
    assert rows(again) == rows(first)
    assert [(row["epoch"], row["threads"], len(row["by_replica"]["fid"])) for row in rows(again)] == [(1, 1, 2), (2, 1, 2)]

    threads: list[int] = []
    monkeypatch.setattr("dcgan.train.train", lambda *_, **__: threads.append(torch.get_num_threads()))
    (first / "result.json").write_text('{"threads": 2}')
    _, output, _ = command(dcgan.train.main, "--config", first, *common, other)
    assert f"on cpu with 2 threads, as {first} had" in output
    assert threads == [2]


def test_a_truncated_checkpoint_is_named(command: Any, tmp_path: Path) -> None:
    command(dcgan.train.main, *TINY, "--epochs", "1", "--out", tmp_path, "--samples-every", "0")
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    for main, arguments in (
        (dcgan.train.main, ["--resume", "--epochs", "2", "--out", tmp_path]),
        (dcgan.sample.main, [tmp_path, "--out", tmp_path / "x.png"]),
    ):
        code, _, error = command(main, *arguments)
        assert code == 2
        assert len(error.splitlines()) == 1
        assert f"{tmp_path / 'checkpoint.pt'} is damaged" in error


def test_a_diverged_run_fails_with_one_line(command: Any, tmp_path: Path) -> None:
    code, _, error = command(dcgan.train.main, *TINY, "--generator-lr", "1e30", "--epochs", "1", "--out", tmp_path)
    assert code == 1
    assert len(error.splitlines()) == 1
    assert "diverged" in error
    assert "diverged" in (tmp_path / "error.txt").read_text()


def test_ctrl_c_on_a_single_run_prints_how_to_go_on(tmp_path: Path) -> None:
    arguments = [*TINY, "--epochs", "500", "--samples-every", "0", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "dcgan.train", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is started with it ignored
    ) as run:  # fmt: skip
        try:
            assert run.stdout is not None
            next(line for line in run.stdout if line.startswith("epoch   2/500"))
            run.send_signal(signal.SIGINT)
            _, error = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130
    assert f"go on with: python -m dcgan.train --resume --out {tmp_path}" in error
    assert "Traceback" not in error
    assert len(load(tmp_path)["history"]) >= 2
