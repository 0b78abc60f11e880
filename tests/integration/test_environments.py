"""Real commands in what a user's environment may be: files and variables of other programs, odd
names, locales, terminals and locks."""

import contextlib
import hashlib
import html
import json
import os
import pty
import re
import shlex
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from search_processes import FEW_DIGITS, ONE_AT_A_TIME, SEARCH, SMALL, at, resume, wait_for
from search_results import rows_now

import analysis.claims
import analysis.report
import analysis.tables
import tune.run
from analysis.load import load_trials
from dcgan import yardstick
from dcgan.data import load_mini, load_split
from dcgan.evaluate import load_reference
from dcgan.schema import REPORT_FILE, SEARCH_FILE, STUDY_FILE, TABLE_FILE, YARDSTICK_FILE
from dcgan.yardstick import load_yardstick

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left_running")]
NAME = "it's lr=1e-3 (2) & <b>"
OTHERS = ("analysis", "dcgan", "ray", "torch", "optuna", "random", "queue", "pandas", "wandb")
"""Modules of a user's own, beside which commands are started."""
ODD = {
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # ASCII
    **{"MPLBACKEND": "module://nonsense", "RAY_ADDRESS": "local", "WANDB_RUN_ID": "other"},
    **{"WANDB_SWEEP_ID": "s", "WANDB_MODE": "dryrun", "COLUMNS": "0", "PYTHONWARNINGS": "ignore"},
}
TINY = [f"--set={name}={value}" for name, value in SMALL.items()]


def python(words: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed project, started in a process, in a folder of the user's."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "HOME": str(cwd / "home"), **variables},
        capture_output=True,
        text=True,
        encoding="ascii",
        timeout=400,
    )


def test_a_search_beside_modules_and_variables_of_others(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for name in OTHERS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the user')")
    words = ["-m", "tune.run", "--search", "hparams", "--preset", "demo", *TINY, "--no-estimate"]
    words += ["--num-trials", "2", "--epochs", "1", "--confirm", "0", "--name", NAME]
    done = python(words, tmp_path, **ODD)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    folder = tmp_path / "runs" / NAME
    page = (folder / REPORT_FILE).read_text(encoding="utf-8")
    assert "</html>" in page
    assert html.escape(NAME).replace("&#x27;", "&#39;") in page
    printed = re.findall(r"(?:: |^)((?:wandb|python -m) .*)$", done.stdout, re.MULTILINE)
    assert len(printed) == 2
    for line in printed:
        (word,) = [word for word in shlex.split(line) if NAME in word]
        assert word.startswith(str(folder))
    again = python(["-m", "analysis.report", str(folder)], tmp_path / "home", **ODD)
    assert again.returncode == 0, again.stderr
    (tmp_path / "dcgan.py").unlink()  # which Python itself takes for the package
    train = ["-m", "dcgan.train", "--dataset", "mnist-mini", "--epochs", "1"]
    train += [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = python(train, tmp_path, **ODD)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a folder read-only")
def test_a_search_that_may_only_be_read_is_read(
    undisturbed: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    subprocess.run(["mount", "--bind", undisturbed, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        not_written = f"{folder}/table.csv is not written: Read-only file system\n"
        for module, said in ((analysis.tables, not_written), (analysis.claims, "")):
            code, output, error = command(module.main, folder)
            assert code == 0, error
            assert said in error
            assert output.strip()
        done = python(["-m", "analysis.report", str(folder)], tmp_path, **ODD)
        assert done.returncode == 2
        assert "The best trial is trial_000" in done.stdout
        said = f"no report is written to {folder} (Read-only file system); name another folder"
        assert said in done.stderr
        code, _, error = command(analysis.report.main, folder, "--out", "page")
        assert code == 0, error
        assert (tmp_path / "page" / REPORT_FILE).is_file()
        code, _, error = command(tune.run.main, *resume(folder))
        assert code == 2
        assert "Read-only file system" in error
        assert error.count("\n") == 1
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_nobody_reads_what_is_printed(undisturbed: Path, tmp_path: Path) -> None:
    tables = shlex.join([sys.executable, "-m", "analysis.tables", str(undisturbed)])
    for ending in ("| head -n 1", ">&-", ">&- 2>&-", "> /dev/full", "<&- >&- 2>&-"):
        shell = ["bash", "-c", f"set -o pipefail; {tables} {ending}"]
        done = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), ending


def test_a_terminal_that_closes_and_a_study_that_another_program_holds(tmp_path: Path) -> None:
    """Neither ends a search; the terminal shows that it waits."""
    folder, (ours, theirs) = tmp_path / "s", pty.openpty()
    search = subprocess.Popen(
        [sys.executable, *SEARCH, *ONE_AT_A_TIME, *at(tmp_path)],
        env={**os.environ, **FEW_DIGITS, "WANDB_MODE": "disabled", "HOME": str(tmp_path)},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 1000):
                shown.extend(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_for(lambda: rows_now(folder) >= 1, search)
    other = sqlite3.connect(folder / STUDY_FILE, timeout=20, isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN EXCLUSIVE")
        wait_for(lambda: b"is held by another program; waiting for it" in shown, search)
        time.sleep(8)
        assert search.poll() is None
    wait_for(lambda: rows_now(folder) >= 3, search)
    os.close(ours)
    assert search.wait(300) == 0
    assert len(pd.read_csv(folder / TABLE_FILE)) == 4


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TMPDIR": "/tmp/" + "long/" * 20}, "the environment's TMPDIR is /tmp/long/"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, "the environment's RAY_ADDRESS is http://"),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, "nothing answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_work_is_refused_with_where_it_came_from(
    variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    begin = time.monotonic()
    done = python(["-m", "tune.run", "--search", "hparams", *at(tmp_path)], tmp_path, **variables)
    assert time.monotonic() - begin < 30
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_where_data_lie_is_a_matter_of_each_command(
    tmp_path: Path,
    search_in_process: Callable[..., Any],
    command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search whose data are moved goes on, by the flag or the variable; its record names no
    folder. (The package's digits, which need no folder: full MNIST cannot be had here.)"""
    old, new = tmp_path / "old", tmp_path / "new"
    begun = search_in_process(search="baseline", epochs=1, data_dir=old)
    assert begun.code == 0, begun.output
    record = (begun.folder / SEARCH_FILE).read_text()
    assert str(old) not in record
    for flags, variables in ((["--data-dir", new], {}), ([], {"DCGAN_DATA_DIR": str(new)})):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        words = [*resume(begun.folder), "--no-report", *flags]
        code, output, error = command(tune.run.main, *words)
        assert code == 0, error
        assert "everything is in" in output
        assert (begun.folder / SEARCH_FILE).read_text() == record


def test_a_moved_folder_of_pictures_goes_on_with_its_own_yardstick(
    tmp_path: Path, search_in_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers and later sessions train none; other pictures, or a lost yardstick, are refused."""
    for bound in ("LEAST_UPDATES", "MOST_UPDATES"):  # in this process: a worker's takes minutes
        monkeypatch.setattr(f"dcgan.recipe.{bound}", 20)
    monkeypatch.setenv("DCGAN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(yardstick, "HANDED", {})
    own = tmp_path / "own"
    images, labels = load_mini("train", tmp_path)
    for number, (image, label) in enumerate(zip(images[:600], labels[:600].tolist(), strict=True)):
        (own / f"digit {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(own / f"digit {label}" / f"{number}.png")
    asked = {"search": "hparams", "epochs": 1, "sampler": "random", "dataset": f"folder:{own}"}
    begun = search_in_process(num_trials=2, **asked)
    assert begun.code == 0, begun.output
    kept = begun.folder / YARDSTICK_FILE
    extractor = hashlib.sha256(kept.read_bytes()).hexdigest()[:12]

    moved = tmp_path / "elsewhere" / "own"
    moved.parent.mkdir()
    own.rename(moved)
    monkeypatch.setattr(yardstick, "HANDED", {})
    monkeypatch.setattr(yardstick, "fit", lambda *given, **named: pytest.fail("it is trained"))
    for cache in (load_split, load_reference, load_yardstick):
        cache.cache_clear()
    went_on = search_in_process(resume="s", num_trials=3, data_dir=moved.parent)
    assert went_on.code == 0, went_on.output
    frame = load_trials(begun.folder)
    assert set(frame["extractor"]) == {extractor}
    assert set(frame["status"]) == {"finished"}
    assert len(frame) == 3

    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"yardstick\.safetensors is missing or damaged, and new"):
        search_in_process(resume="s", num_trials=4, data_dir=moved.parent)
    kept.write_bytes(whole)
    first = next(moved.rglob("*.png"))
    Image.fromarray(255 - images[0].numpy()).save(first)
    load_split.cache_clear()
    with pytest.raises(ValueError, match=r"has other pictures than when it began"):
        search_in_process(resume="s", num_trials=4, data_dir=moved.parent)
    assert load_trials(begun.folder).equals(frame)


def test_more_trials_go_on_with_the_same_study(search_in_process: Callable[..., Any]) -> None:
    asked = {"search": "hparams", "epochs": 4, "seed": 3}
    begun = search_in_process(num_trials=4, **asked)
    assert begun.code == 0, begun.output
    before = json.loads((begun.folder / SEARCH_FILE).read_text())
    went_on = search_in_process(resume="s", num_trials=6)
    assert went_on.code == 0, went_on.output
    said = "more     2 more trials than before, as if they had been asked for at once"
    assert said in went_on.output
    at_once = search_in_process(name="once", num_trials=6, **asked)
    assert at_once.code == 0, at_once.output
    names = ["trial", "status", "fid", "best_epoch", "generator_lr", "batch_size", "optimizer"]
    tables = [pd.read_csv(ended.folder / TABLE_FILE)[names] for ended in (went_on, at_once)]
    pd.testing.assert_frame_equal(*tables)
    now = json.loads((went_on.folder / SEARCH_FILE).read_text())
    assert now == before | {"num_trials": 6, "options": before["options"] | {"num_trials": 6}}
    with pytest.raises(ValueError, match=r"^--num-trials is 5; "):
        search_in_process(resume="s", num_trials=5)
