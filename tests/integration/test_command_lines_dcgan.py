"""The command lines of single runs as a person uses them: bad input, help, runs. In this process,
but for one."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dcgan.average
import dcgan.sample
import dcgan.train
from dcgan.checkpoint import load

ROOT = Path(__file__).parents[2]
TINY = [
    "--dataset=mnist-mini",
    "--image-size=16",
    "--generator-width=2",
    "--discriminator-width=2",
    "--batch-size=1000",
]


def saved_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `result.json`."""
    return [json.loads(line) for line in (run / "result.json").read_text().splitlines()]


def without_cost(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the columns that differ from run to run."""
    return [
        {name: value for name, value in row.items() if not re.search("second|memory", name)}
        for row in rows
    ]


def seeds(run: Path) -> list[int]:
    """The seeds of a run's lanes, from its `params.json`."""
    return [lane["seed"] for lane in json.loads((run / "params.json").read_text())]


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (dcgan.train.main, ["--generator-lr", "--ema-decay", "--precision", "--loss"]),
        (dcgan.train.main, ["--replicas", "threads", "baseline"]),
        (dcgan.sample.main, ["--interpolate", "--last", "checkpoint"]),
        (dcgan.average.main, ["--snapshots-every", "--lengths", "--lane", "--out"]),
    ],
)
def test_help_names_what_matters(main: Any, words: list[str], command: Any) -> None:
    code, output, _ = command(main, "--help")
    assert code == 0
    assert all(word in output for word in words)


def test_a_single_run_writes_everything_and_resumes(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sampled = ["--samples-every", "2"]
    code, output, _ = command(dcgan.train.main, *TINY, "--epochs", "2", "--out", out, *sampled)
    assert code == 0
    assert len(re.findall(r"^epoch [12]/2 .* fid \d+\.\d\d ", output, re.MULTILINE)) == 2
    assert json.loads((out / "params.json").read_text())["generator_width"] == 2
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["best.png", "epoch_002.png"]

    code, _, error = command(dcgan.train.main, *TINY, "--out", out)
    assert code == 2
    assert "already holds a run; go on with it by --resume" in error

    # as if killed between checkpoint and row
    (out / "result.json").write_text((out / "result.json").read_text()[:100])
    code, output, _ = command(dcgan.train.main, "--resume", "--epochs", "3", "--out", out)
    assert code == 0
    rows = saved_rows(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows == load(out)["rows"]

    code, _, error = command(dcgan.train.main, "--resume", "--generator-lr", "0.1", "--out", out)
    assert code == 2
    assert "belongs to another config: generator_lr was 0.0002, is 0.1" in error

    for extra, count in (
        (["--count", "7"], 7),
        (["--interpolate", "5", "--count", "2"], 10),
        (["--last", "--seed", "1"], 64),
    ):
        code, output, _ = command(dcgan.sample.main, out, "--out", tmp_path / "x.png", *extra)
        assert code == 0
        assert f"{count} images of epoch" in output
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_several_lanes_write_a_row_each_and_resume(command: Any, tmp_path: Path) -> None:
    """One epoch and one more are two."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    lanes = ["--replicas", "2", "--seed", "5", "--samples-every", "0"]
    code, output, _ = command(dcgan.train.main, *TINY, *lanes, "--epochs", "1", "--out", out)
    assert code == 0
    assert len(re.findall(r"^epoch 1/1 .* fid \d+\.\d\d ", output, re.MULTILINE)) == 1
    assert "\n1 epoch: " in output
    assert seeds(out) == [5, 6]

    code, _, _ = command(dcgan.train.main, "--resume", "--epochs", "2", "--out", out)
    assert code == 0
    rows = saved_rows(out)
    found = [(row["epoch"], row["lane"]) for row in rows]
    assert found == [(epoch, lane) for epoch in (1, 2) for lane in (0, 1)]
    assert rows == load(out)["rows"]
    command(dcgan.train.main, *TINY, *lanes, "--epochs", "2", "--out", whole)
    assert without_cost(saved_rows(whole)) == without_cost(rows)

    code, _, error = command(dcgan.train.main, "--resume", "--replicas", "3", "--out", out)
    assert code == 2
    assert "belongs to another config: it has 2 lanes, not 3" in error
    assert seeds(out) == [5, 6]


def test_a_replayed_run_repeats_its_rows_whatever_the_number_of_threads(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    common = ["--samples-every", "0", "--out"]
    lanes = ["--epochs", "2", "--replicas", "2"]
    _, output, _ = command(dcgan.train.main, *TINY, *lanes, *common, first)
    assert f"float32 on cpu → {first}\n" in output
    torch.set_num_threads(2)
    code, output, _ = command(dcgan.train.main, "--config", first, *common, again)
    assert code == 0
    assert output.splitlines()[0].endswith(f"on cpu with 1 thread, as {first} had → {again}")
    rows = saved_rows(again)
    assert without_cost(rows) == without_cost(saved_rows(first))
    found = [(row["epoch"], row["lane"], row["threads"]) for row in rows]
    assert found == [(1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1)]

    threads: list[int] = []

    def train(*_: object, **__: object) -> None:
        threads.append(torch.get_num_threads())

    monkeypatch.setattr("dcgan.train.train", train)
    (first / "result.json").write_text('{"threads": 2}')
    _, output, _ = command(dcgan.train.main, "--config", first, *common, other)
    assert f"on cpu with 2 threads, as {first} had" in output
    assert threads == [2]


def test_a_truncated_checkpoint_is_named(command: Any, tmp_path: Path) -> None:
    once = ["--epochs", "1", "--samples-every", "0"]
    command(dcgan.train.main, *TINY, *once, "--out", tmp_path)
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
    diverging = ["--generator-lr", "1e30", "--epochs", "1"]
    code, _, error = command(dcgan.train.main, *TINY, *diverging, "--out", tmp_path)
    assert code == 1
    assert len(error.splitlines()) == 1
    assert "diverged" in error
    assert "diverged" in (tmp_path / "error.txt").read_text()


def test_ctrl_c_on_a_single_run_prints_how_to_go_on(tmp_path: Path) -> None:
    arguments = [*TINY, "--epochs", "500", "--samples-every", "0", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "dcgan.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a background job is started with it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
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
    assert len(load(tmp_path)["rows"]) >= 2
