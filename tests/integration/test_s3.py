"""Searches whose storage is an object store: a real S3-compatible server on loopback."""

import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, SECRET, s3
from search_processes import ONE_AT_A_TIME, QUICK, at, end_all, run, start, wait_for
from search_results import decisions, rows_of, rows_stored

import analysis.claims
import analysis.confirm
import analysis.report
import analysis.tables
import tune.run
from analysis.load import load_trials
from analysis.tables import ranking
from dcgan.schema import SEARCH_FILE
from dcgan.store import Mirror
from tune.options import Options
from tune.plan import make_plan
from tune.site import survey

STORAGE = f"s3://{BUCKET}/runs"


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
    Mirror(folder, f"{STORAGE}/{name}").get()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_survives_the_loss_of_its_machine_and_is_read_from_its_uri(
    undisturbed: Path,
    tmp_path: Path,
    command: Any,
    monkeypatch: pytest.MonkeyPatch,
    one_ray: None,
) -> None:
    """kill -9 of the driver, and its disk is gone; from another machine the search ends as an
    undisturbed one on a disk, is confirmed and tracked."""
    lost, other, began, uri = tmp_path / "lost", tmp_path / "other", time.time(), f"{STORAGE}/s"
    process = start([*ONE_AT_A_TIME, *at(STORAGE)], lost)
    rows = random.Random(time.time_ns()).randint(1, 6)  # another moment each time
    wait_for(lambda: rows_stored(f"{STORAGE}/s") >= rows, process)
    process.kill()
    process.communicate()
    shutil.rmtree(lost)
    resume = ["--resume", "s", "--storage", STORAGE, "--wandb", "offline"]
    resume += ["--confirm", "1", "--confirm-seeds", "2"]
    code, output = run(resume, other)
    assert code == 0, output
    assert f"everything is in {uri}:" in output
    assert "is confirmed at" in output

    copy = fetched("s", tmp_path / "copy")
    assert decisions(copy) == decisions(undisturbed)
    assert rows_of(uri).equals(rows_of(undisturbed))
    files = {file.name for file in copy.iterdir()}
    assert {"best.png", "best.json", "report.html", "table.csv", "search.json"} <= files
    confirmed = len(list(copy.glob("confirm/trial_*/test.json")))
    assert confirmed in (2, 4)  # the best, which may be the baseline, on two seeds
    assert len(list(copy.glob("wandb/offline-run-*"))) == 4 + confirmed + 1
    (sync,) = re.findall(r"wandb sync -n 8 (\S+)/wandb/offline-run-\*", output)
    assert len(list(Path(sync).glob("wandb/offline-run-*"))) == 4 + confirmed + 1
    for folder in (copy, other, Path("/tmp/ray")):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_mtime >= began:
                assert SECRET.encode() not in file.read_bytes(), file

    for module in (analysis.tables, analysis.confirm, analysis.claims):
        code, printed, error = command(module.main, uri)
        assert code == 0, error
        assert printed.strip()
    code, _, error = command(analysis.report.main, uri, "--out", tmp_path / "report")
    assert code == 0, error
    assert (tmp_path / "report" / "report.md").is_file()

    ended = ranking(load_trials(uri)).query("status == 'finished'")
    later = Options(
        search="hparams", preset="demo", points_from=uri, storage=STORAGE, name="d", estimate=False
    )
    point = make_plan(later, survey(later)).points[1]
    best = ended[ended["trial"] != "trial_0000"].iloc[0]  # but for the baseline, which is first
    assert point == {name: best[name] for name in point}

    monkeypatch.setenv("HOME", str(other))
    code, output, error = command(tune.run.main, *resume, "--no-report")  # nothing is left to do
    assert code == 0, output + error
    assert "confirming on fresh seeds: " in output
    assert decisions(fetched("s", tmp_path / "again")) == decisions(copy)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            "--storage s3://no-such-bucket/runs",
            r"s3://no-such-bucket/runs/\S+ cannot be written from \S+: FileNotFoundError: .*bucket",
        ),
        (
            f"--storage {STORAGE}",
            rf"{STORAGE}/taken holds a search; go on with it by --resume taken, or choose another "
            rf"--name",
        ),
        (
            f"--storage {STORAGE}-of-none --resume x",
            rf"no search 'x' in {STORAGE}-of-none; there: none",
        ),
        (f"--storage {STORAGE} --resume x", rf"no search 'x' in {STORAGE}; there: .*taken"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    arguments: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / SEARCH_FILE).touch()
    Mirror(tmp_path, f"{STORAGE}/taken").put(tmp_path / SEARCH_FILE)
    new = [] if "--resume" in arguments else ["--search", "hparams", *QUICK, "--name", "taken"]
    code, output, error = command(tune.run.main, *new, *arguments.split())
    assert code == 2
    assert re.search(f"error: {reason}", error), error
    assert len((output + error).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storage_that_is_gone_ends_the_search_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        arguments = ["--search", "baseline", "--epochs", "90", *QUICK, *at(STORAGE, "g")]
        process = start(arguments, tmp_path / "home")
        wait_for(lambda: rows_stored(f"{STORAGE}/g") > 0, process)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    reason = (
        rf"error: {STORAGE}/g\S* cannot be (read|written) from .*; what is in the storage is kept; "
        rf"go on with: python -m"
    )
    assert re.search(reason, output.splitlines()[-1]), output
    assert "Traceback" not in output
