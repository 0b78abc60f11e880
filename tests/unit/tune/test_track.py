"""How tracking is chosen and started, without W&B: what is logged is tested in
tests/unit/analysis/test_tracker.py, and with W&B itself in tests/integration."""

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import tracker
from tune import track
from tune.track import describe, sync_command, tracked, wait_for_end

ROOT = Path(__file__).parents[3]


KEY = "f00d" * 10


FORKS = """
import json, os, sys
import wandb
from analysis.tracker import wanted_mode

for line in sys.stdin:
    cwd, variables = json.loads(line)
    if os.fork() == 0:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(variables)
        print(wanted_mode(), flush=True)
        os._exit(0)
    os.wait()
    print("end", flush=True)
"""
"""Finds the mode of each environment in a process of its own, which has imported W&B as it starts
and not asked it anything: to import it takes seconds."""


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FORKS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        yield process


@pytest.fixture
def mode_in(forks: Any) -> Callable[..., tuple[str, str]]:
    """The mode of a new process of a person with a home, and what else was printed."""

    def mode_of(home: Path, cwd: Path | None = None, **variables: str) -> tuple[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        environment = own | {"HOME": str(home)} | variables
        forks.stdin.write(json.dumps([str(cwd or home), environment]) + "\n")
        forks.stdin.flush()
        said = list(itertools.takewhile(lambda line: line != "end\n", forks.stdout))
        return said[-1].strip(), "".join(said[:-1]).strip()

    return mode_of


def wandb(home: Path, command: str) -> None:
    """W&B's own command, in a folder."""
    words = [sys.executable, "-m", "wandb", command]
    subprocess.run(words, cwd=home, env={**os.environ, "HOME": str(home)}, check=True)


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "run"}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "offline"),
    ],
)
def test_tracking_is_as_much_online_as_wandb_itself(
    variables: dict[str, str], mode: str, tmp_path: Path, mode_in: Any
) -> None:
    assert mode_in(tmp_path, **variables) == (mode, "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WANDB_MODE", "nonsense"), ("WANDB_API_KEY", "short"), ("WANDB_PROJECT", "a/b")),
        *(("WANDB_INIT_TIMEOUT", "abc"), ("WANDB_BASE_URL", "no url")),
    ],
)
def test_what_wandb_refuses_of_its_settings_is_a_line(
    name: str, value: str, tmp_path: Path, mode_in: Any
) -> None:
    mode, said = mode_in(tmp_path, **{"WANDB_API_KEY": KEY, name: value})
    assert mode == "offline"
    assert said.startswith("W&B refuses its settings, so runs stay offline: ")
    assert said.count("\n") == 0


def test_a_key_is_one_of_the_server_that_is_asked(tmp_path: Path, mode_in: Any) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    netrc.chmod(0o600)
    assert mode_in(tmp_path)[0] == "online"
    assert mode_in(tmp_path, WANDB_BASE_URL="https://wandb.example.org")[0] == "offline"
    netrc.write_text("machine\n")
    assert mode_in(tmp_path)[0] == "offline"


def test_wandb_switched_off_in_a_folder_is_off_there(tmp_path: Path, mode_in: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for command, mode in (("offline", "offline"), ("disabled", "disabled"), ("online", "online")):
        wandb(tmp_path, command)
        assert mode_in(tmp_path, WANDB_API_KEY=KEY)[0] == mode
        assert mode_in(tmp_path, elsewhere, WANDB_API_KEY=KEY)[0] == "online"


def test_the_command_to_upload_can_be_pasted() -> None:
    assert sync_command(Path("/runs/a b")) == "wandb sync -n 8 '/runs/a b'/wandb/offline-run-*"
    assert describe("offline", Path("/r")) == "W&B, offline: wandb sync -n 8 /r/wandb/offline-run-*"
    assert describe("online", Path("/r")) == "W&B, online"
    assert describe("disabled", Path("/r")) == "off"


def test_of_a_storage_the_tracker_has_a_copy_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tracked(str(tmp_path)).folder == tmp_path
    copy = tracked("s3://bucket/runs/a")
    assert copy.location == "s3://bucket/runs/a"
    assert copy.is_mirror
    assert "tracked" in copy.folder.parts


def test_where_wandb_cannot_be_reached_a_new_process_goes_on_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    class Unreachable:
        def __init__(self, *_: Any) -> None:
            raise tracker.RefusedError("no route to host")

    monkeypatch.setattr(tracker, "Tracker", Unreachable)
    (tmp_path / "search.json").write_text("{}")
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["track", str(tmp_path), "--wandb", "online"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "tune.track", str(tmp_path)])
    with pytest.raises(UnboundLocalError):  # execv does not return
        track.main()
    assert started == [["python", "-m", "tune.track", str(tmp_path), "--wandb", "offline"]]
    out = capsys.readouterr().out
    assert out.startswith("W&B cannot be reached (no route to host); going on offline: wandb sync")


def test_what_is_no_search_takes_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["track", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        track.main()
    error = capsys.readouterr().err
    assert error.startswith(f"python -m tune.track: error: no search at {tmp_path}")
    assert error.count("\n") == 1


def test_the_end_of_the_search_is_the_end_of_the_stream() -> None:
    assert wait_for_end(io.StringIO("")).wait(5)


def test_the_driver_needs_no_wandb_to_start_it() -> None:
    check = "import sys, tune.track; assert not {'wandb', 'pandas', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_the_follower_needs_neither_ray_nor_torch() -> None:
    check = (
        "import sys, tune.track, analysis.tracker; assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
