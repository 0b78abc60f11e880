"""Searches whose storage is an object store: a real S3-compatible server on loopback."""

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from object_store import BUCKET, SECRET, s3
from search_processes import QUICK, ROOT, TINY, end_all, run, start

from analysis.load import load_trials
from tune.storage import Store

STORAGE = f"s3://{BUCKET}/runs"
SEARCH = [
    "--search",
    "hparams",
    "--num-trials",
    "4",
    "--epochs",
    "4",
    "--seed",
    "3",
    *QUICK,
    "--max-concurrent",
    "1",
]
MEASURED = ["seconds_train", "seconds_eval", "images_per_second", "peak_memory_bytes"]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with s3() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
        end_all()


def fetched(name: str, folder: Path) -> Path:
    """A copy of all that the storage has of a search."""
    folder.mkdir()
    Store(folder, f"{STORAGE}/{name}").get()
    return folder


def decisions(folder: Path) -> list[dict[str, Any]]:
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db").get_trials()
    return [
        {
            "state": t.state.name,
            "params": t.params,
            "values": t.values,
            "epochs": t.intermediate_values,
        }
        for t in trials
    ]


def rows_in_storage(name: str) -> int:
    try:
        return int(load_trials(f"{STORAGE}/{name}")["epoch"].count())
    except FileNotFoundError:
        return 0


def test_a_search_survives_the_loss_of_its_machine(tmp_path: Path) -> None:
    """kill -9 of the driver, and its disk is gone; from another machine the search ends as an undisturbed one on a disk."""
    code, output = run(
        [*SEARCH, "--storage", str(tmp_path), "--name", "undisturbed"], tmp_path / "home"
    )
    assert code == 0, output

    lost, other = tmp_path / "lost", tmp_path / "other"
    process = start([*SEARCH, "--storage", STORAGE, "--name", "s"], lost)
    rows, deadline = (
        random.Random(time.time_ns()).randint(1, 6),
        time.monotonic() + 200,
    )  # another moment each time
    while rows_in_storage("s") < rows:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    shutil.rmtree(lost)
    code, output = run(["--resume", "s", "--storage", STORAGE], other)
    assert code == 0, output
    assert f"everything is in {STORAGE}/s:" in output

    copy, undisturbed = fetched("s", tmp_path / "copy"), tmp_path / "undisturbed"
    assert decisions(copy) == decisions(undisturbed)
    there = load_trials(f"{STORAGE}/s")
    assert there.drop(columns=MEASURED).equals(load_trials(undisturbed).drop(columns=MEASURED))
    assert {"best.png", "best.json", "report.html", "table.csv", "search.json"} <= {
        file.name for file in copy.iterdir()
    }

    code, output = run(["--resume", "s", "--storage", STORAGE], other)  # nothing is left to do
    assert code == 0, output
    assert decisions(fetched("s", tmp_path / "again")) == decisions(copy)


def test_a_search_is_confirmed_tracked_and_read_from_its_uri(tmp_path: Path) -> None:
    home, began = tmp_path / "home", time.time()
    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "3",
        "--epochs",
        "2",
        *TINY,
        "--confirm",
        "1",
        "--confirm-seeds",
        "2",
    ]
    process = start([*arguments, "--storage", STORAGE, "--name", "c", "--wandb", "offline"], home)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "is confirmed at" in output
    uri = f"{STORAGE}/c"
    copy = fetched("c", tmp_path / "copy")
    assert len(list(copy.glob("confirm/trial_*/test.json"))) == 4
    assert len(list(copy.glob("wandb/offline-run-*"))) == 3 + 4 + 1
    (sync,) = re.findall(r"wandb sync -n 8 (\S+)/wandb/offline-run-\*", output)
    assert len(list(Path(sync).glob("wandb/offline-run-*"))) == 3 + 4 + 1

    for command in (
        ["tables", uri],
        ["confirm", uri],
        ["claims", uri],
        ["report", uri, "--out", str(tmp_path / "report")],
    ):
        module = [sys.executable, "-m", f"analysis.{command[0]}"]
        told = subprocess.run([*module, *command[1:]], cwd=ROOT, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        assert told.stdout.strip()
    assert (tmp_path / "report" / "report.md").is_file()

    arguments = [
        "--search",
        "hparams",
        "--num-trials",
        "2",
        "--epochs",
        "1",
        *QUICK,
        "--points-from",
        uri,
    ]
    code, output = run([*arguments, "--storage", STORAGE, "--name", "d"], home)
    assert code == 0, output
    best = load_trials(uri).query("status == 'finished'").sort_values("fid").iloc[0]
    assert best["generator_lr"] in set(load_trials(f"{STORAGE}/d")["generator_lr"])

    for folder in (copy, home, Path("/tmp/ray")):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_mtime >= began:
                assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            "--storage s3://no-such-bucket/runs",
            r"s3://no-such-bucket/runs/\S+ cannot be written from \S+: FileNotFoundError: .*bucket",
        ),
        (
            f"--storage {STORAGE}",
            rf"{STORAGE}/taken holds a search; go on with it by --resume taken, or choose another --name",
        ),
        (
            f"--storage {STORAGE}-of-none --resume x",
            rf"no search 'x' in {STORAGE}-of-none; there: none",
        ),
        (f"--storage {STORAGE} --resume x", rf"no search 'x' in {STORAGE}; there: .*taken"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    arguments: str, reason: str, tmp_path: Path
) -> None:
    taken = Store(tmp_path, f"{STORAGE}/taken")
    (tmp_path / "search.json").touch()
    taken.put()
    new = [] if "--resume" in arguments else ["--search", "hparams", *QUICK, "--name", "taken"]
    code, output = run([*new, *arguments.split()], tmp_path / "home")
    assert code == 2
    assert re.search(f"error: {reason}", output), output
    assert len(output.splitlines()) == 1


@pytest.mark.slow
def test_a_storage_that_is_gone_ends_the_search_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        arguments = [
            "--search",
            "baseline",
            "--epochs",
            "90",
            *QUICK,
            "--storage",
            STORAGE,
            "--name",
            "g",
        ]
        process = start(arguments, tmp_path / "home")
        folder, deadline = tmp_path / "copy", time.monotonic() + 120
        while not list(fetched("g", folder).glob("trial_0000/result.json")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            shutil.rmtree(folder)
            time.sleep(0.5)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    reason = rf"error: {STORAGE}/g\S* cannot be (read|written) from .*; what is in the storage is kept; go on with: python -m"
    assert re.search(reason, output.splitlines()[-1]), output
    assert "Traceback" not in output
