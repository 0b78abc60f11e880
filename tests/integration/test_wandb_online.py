"""A search in W&B, online: at a server in this process that speaks W&B's protocol, whose client and
service are the real ones. What is written offline is in test_tracking.py."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from search_processes import ONE_AT_A_TIME, at, start, wait_for
from search_results import rows_now
from wandb_server import KEY, RunOnServer, Server

from dcgan.files import read_rows
from dcgan.schema import CHECKPOINT_FILE, ROWS_FILE, STUDY_FILE, TABLE_FILE, TRIALS_PATTERN

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left_running")]
PARTS = {"run_table", "model", "answer"}
REFUSED = ("UpsertView2", "CreateArtifact")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A search that ended, and was not tracked, under a name that no artifact may have."""
    return Path(shutil.copytree(undisturbed, tmp_path / f"lr=1e-3 v1+ema, exp (2) it's {'x' * 90}"))


def variables(server: Server) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return own | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}


def track(folder: Path, server: Server, **more: str) -> tuple[int, str]:
    """Exit code and output of `tune.track`."""
    done = subprocess.run(
        [sys.executable, "-m", "tune.track", folder],
        cwd=ROOT,
        env=variables(server) | {"HOME": str(folder.parent)} | more,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stdout


def by_trial(server: Server) -> dict[str, RunOnServer]:
    """The server's runs by the name of their trial."""
    return {run.values["displayName"].rpartition("/")[2]: run for run in server.runs.values()}


def assert_whole(server: Server, folder: Path, parts: Collection[str] = PARTS) -> None:
    """Each epoch of each trial arrived once, with its numbers, images and settings, and so did the
    answer's parts."""
    assert server.unknown == []
    runs = by_trial(server)
    trials = sorted(folder.glob(TRIALS_PATTERN))
    assert sorted(runs) == ["summary", *(trial.name for trial in trials)]
    for trial in trials:
        run, rows = runs[trial.name], read_rows(trial / ROWS_FILE)
        assert [row["_step"] for row in run.history] == [row["epoch"] for row in rows]
        assert [row["fid"] for row in run.history] == [row["fid"] for row in rows]
        for row in run.history:
            drawn = trial / "samples" / f"epoch_{row['epoch']:03d}.png"
            if drawn.is_file():
                assert run.files[row["samples"]["path"]] == drawn.read_bytes()
        settings = json.loads((trial / "params.json").read_text())
        assert run.config == settings | {"replicas": 1}
        assert run.summary["best/fid"] == min(row["fid"] for row in rows)
        assert run.values["groupName"] == folder.name[:128]
        assert run.ended
    kinds = [one["artifactTypeName"] for one in server.artifacts.values()]
    assert sorted(kinds) == sorted(parts)
    assert [row["_step"] for row in runs["summary"].history] == [0]
    assert {one["state"] for one in server.artifacts.values()} == {"COMMITTED"}
    uploaded = {path.partition("/")[2]: content for path, content in server.blobs.items()}
    assert uploaded[TABLE_FILE] == (folder / TABLE_FILE).read_bytes()
    best = max(
        folder.glob(f"*/{CHECKPOINT_FILE}"), key=lambda p: p.read_bytes() == uploaded[p.name]
    )
    assert uploaded[CHECKPOINT_FILE] == best.read_bytes()
    assert len(server.views) == 1


def test_all_arrives_once_and_a_second_time_nothing(server: Server, folder: Path) -> None:
    left_over = {
        **{"WANDB_RUN_ID": "other", "WANDB_SWEEP_ID": "s1", "WANDB_NAME": "n", "WANDB_TAGS": "a,b"},
        **{"WANDB_RESUME": "must", "WANDB_RUN_GROUP": "g", "WANDB_FORK_FROM": "x?_step=1"},
        **{"WANDB_NOTES": "of another job", "WANDB_DIR": str(folder.parent / "elsewhere")},
    }
    assert track(folder, server, **left_over) == (0, "")
    assert_whole(server, folder)
    assert not any(
        run.values.get("sweep") or run.values.get("notes") for run in by_trial(server).values()
    )
    before = server.requests.copy()
    assert track(folder, server) == (0, "")
    assert server.requests - before == {}
    kept = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def test_a_refused_part_is_a_line_and_made_up_for_later(server: Server, folder: Path) -> None:
    """Rows, a picture, artifacts and the dashboard; W&B itself prints of the first two, and goes on
    as if it had them."""
    parts = ("trial_0001/file_stream", "trial_0002/media/images/samples_1", *REFUSED)
    server.refuse = lambda what: 403 if any(part in what for part in parts) else 0
    code, output = track(folder, server)
    assert code == 1
    lines = [line.removeprefix("W&B did not take ") for line in output.splitlines()]
    assert [line.partition(": ")[0] for line in lines] == [
        *("trial_0001", "trial_0002"),
        *("the search's model", "the search's answer", "the search's dashboard"),
    ]
    server.refuse = lambda what: 0
    assert track(folder, server) == (0, "")
    # of the table the run has the file, if not the artifact, which W&B makes without being asked
    assert_whole(server, folder, PARTS - {"run_table"})
    assert track(folder, server) == (0, "")


def test_a_busy_server_is_asked_again(server: Server, folder: Path) -> None:
    asked: Counter[str] = Counter()

    def refuse(what: str) -> int:
        """Each kind of request twice."""
        kind = "/".join(what.split("/")[:2])
        asked[kind] += 1
        return {1: 429, 2: 500}.get(asked[kind], 0)

    server.refuse = refuse
    code, output = track(folder, server)
    assert (code, output) == (0, "")
    assert_whole(server, folder)


def test_what_was_on_its_way_when_the_tracker_was_killed_is_logged_again(
    server: Server, folder: Path
) -> None:
    """Its service had it, and is killed too, as where the machine is lost."""
    set_state(folder, "RUNNING")
    server.refuse = lambda what: 503 if what.endswith("file_stream") else 0
    follower = subprocess.Popen(
        [sys.executable, "-m", "tune.track", folder, "--follow"],
        cwd=ROOT,
        env=variables(server) | {"HOME": str(folder.parent)},
        stdin=subprocess.PIPE,
    )
    wait_for(lambda: any("trial_0000/file_stream" in what for what in server.requests), follower)
    time.sleep(1)  # until it has done what it can
    service = child_of(follower.pid)
    follower.kill()
    follower.communicate()
    os.kill(service, signal.SIGKILL)
    server.refuse = lambda what: 0
    set_state(folder, "COMPLETE")
    assert track(folder, server) == (0, "")
    assert_whole(server, folder)


def set_state(folder: Path, state: str) -> None:
    """Changes the state of a search's first trial, which Optuna does not allow once it has
    ended."""
    with contextlib.closing(sqlite3.connect(folder / STUDY_FILE)) as study, study:
        study.execute("UPDATE trials SET state = ? WHERE number = 0", [state])


def child_of(pid: int) -> int:
    """The pid of W&B's service that a tracker has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "wandb-core"], capture_output=True, text=True, check=True
    )
    (service,) = found.stdout.split()
    return int(service)


def test_a_search_killed_and_a_server_that_goes_away(server: Server, tmp_path: Path) -> None:
    """Driver and tracker are killed as the server is gone; both go on when it is there again."""
    folder = tmp_path / "s"
    online = variables(server) | {"WANDB_MODE": "online"}
    # on few digits it would end before W&B has an epoch, and of more trials no more is asked
    slow = ["--dataset", "mnist-mini", "--num-trials", "2"]
    search = start([*ONE_AT_A_TIME, *slow, *at(tmp_path)], tmp_path / "home", **online)
    wait_for(lambda: any(run.history for run in server.runs.values()), search)
    port = server.close()
    now = rows_now(folder)
    wait_for(lambda: rows_now(folder) > now, search)
    followers = subprocess.run(
        ["pgrep", "-f", f"tune.track {folder}"], capture_output=True, text=True, check=True
    ).stdout.split()
    listing = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True)
    assert KEY not in listing.stdout
    for pid in (*followers, search.pid):
        os.kill(int(pid), signal.SIGKILL)
    search.communicate()
    server.open(port)
    again = start(["--resume", "s", "--storage", str(tmp_path)], tmp_path / "home", **online)
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output
    deadline = time.monotonic() + 60
    while "summary" not in by_trial(server) or not by_trial(server)["summary"].ended:
        assert time.monotonic() < deadline, (folder / "wandb.log").read_text()
        time.sleep(0.5)
    assert_whole(server, folder)
