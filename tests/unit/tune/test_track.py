"""How tracking is chosen and started, without W&B: what is logged is tested in
tests/unit/analysis/test_tracker.py, and with W&B itself in tests/integration."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import tracker
from tune import track
from tune.track import default_mode, describe, sync_command, tracked, wait_for_end

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_tracking_is_online_where_there_is_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert default_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert default_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert default_mode() == "online"


def test_a_damaged_netrc_holds_no_key(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine\n")
    assert default_mode() == "offline"


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
            raise tracker.UnreachableError("no route to host")

    monkeypatch.setattr(tracker, "Tracker", Unreachable)
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["track", str(tmp_path)])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "tune.track", str(tmp_path)])
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
