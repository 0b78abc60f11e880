"""`python -m tune.track RUN`: a search in Weights & Biases, logged from its files.

A process of its own follows the search's folder, so that nothing W&B does, or fails to do, can
reach the search. What it logs is in `analysis.tracker`.
"""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock, Timeout

from dcgan import cli
from dcgan.schema import TRACKER_LOCK_FILE, WANDB_MODES
from dcgan.store import Store, copy_of

if TYPE_CHECKING:
    from tune.plan import Plan
    from tune.stop import Stop

LOG = "wandb.log"
POLL_SECONDS = 3.0
POLL_STORAGE_SECONDS = 15.0
FINISH_SECONDS = 60.0  # that a search waits, at its end, for its runs to be complete


def describe(mode: str, folder: Path) -> str:
    """What is tracked and where to, as a person reads it."""
    if mode == "disabled":
        return "off"
    if mode == "online":
        return "W&B, online"
    return f"W&B, offline: {sync_command(folder)}"


def sync_command(folder: Path) -> str:
    """The command that uploads offline runs, several at a time."""
    return f"wandb sync -n 8 {shlex.quote(str(folder))}/wandb/offline-run-*"


def tracked(location: str) -> Store:
    """A search's folder, or the tracker's own copy of it: the driver writes in another."""
    return copy_of(location, purpose="tracked")


@contextlib.contextmanager
def tracking(plan: "Plan", mode: str, stop: "Stop") -> Iterator[None]:
    """Follows a search in a process of its own, which notices when this one ends."""
    if mode == "disabled":
        yield
        return
    command = [sys.executable, "-m", "tune.track", plan.location, "--wandb", mode, "--follow"]
    with (plan.folder / LOG).open("ab") as log:
        follower = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        from analysis.tracker import RECORD, dashboard_url

        assert follower.stdin
        follower.stdin.close()
        file = plan.folder / LOG
        try:
            failed = follower.wait(1 if stop.asked else FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"W&B is still being written, in the background; see {file}")
        else:
            if failed:
                rest = shlex.join(["python", "-m", "tune.track", plan.location])
                print(f"W&B has not got everything: see {file}; log the rest by: {rest}")
            plan.store.get(RECORD)
            if url := dashboard_url(plan.folder):
                print(f"W&B's dashboard of all runs: {url}")


@contextlib.contextmanager
def only_tracker(store: Store) -> Iterator[None]:
    """Has this process alone log a search: that of a driver which was just interrupted or killed
    may still be at it. A FileNotFoundError if there is no search."""
    from analysis.tracker import require_search

    if not store.is_mirror:  # whose copy is yet to be made
        require_search(store)
    lock = FileLock(store.folder / TRACKER_LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting for another process, which logs this search", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def wait_for_end(stream: IO[str]) -> threading.Event:
    """Set when the search that holds the other end of a stream ends."""
    ended = threading.Event()

    def wait() -> None:
        stream.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def track(store: Store, mode: str, *, follow: bool) -> bool:
    """Logs what is new, again and again until standard input ends if asked to follow, and in the
    end the answer, if there is one; returns whether W&B took it all."""
    from analysis.tracker import Tracker

    tracker = Tracker(store, mode)
    if follow:
        ended = wait_for_end(sys.stdin)
        while not ended.wait(POLL_STORAGE_SECONDS if store.is_mirror else POLL_SECONDS):
            tracker.update(last=False)
    tracker.update(last=True)
    tracker.summarize()
    return not tracker.refused


def main() -> None:
    parser = cli.Parser(
        prog="python -m tune.track",
        description="Log what is new in a search's folder to Weights & Biases.",
    )
    parser.add_argument("run", help="the folder of a search, or its URI (s3://…)")
    mode = "default: online where there is a key, else offline"
    parser.add_argument("--wandb", choices=WANDB_MODES[:2], help=mode)
    # until standard input ends
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from analysis.tracker import RefusedError, wanted_mode, without_other_runs

    with cli.one_line_errors(parser), without_other_runs():
        store = tracked(args.run)
        mode = args.wandb or wanted_mode()
        if mode == "disabled":
            raise ValueError(
                "W&B is switched off here (wandb disabled, or WANDB_MODE); give --wandb"
            )
        try:
            with only_tracker(store):
                complete = track(store, mode, follow=args.follow)
        except RefusedError as error:
            if mode == "offline":
                parser.fail(f"W&B refuses: {error}", code=1)
            offline = sync_command(store.folder)
            print(f"W&B cannot be reached ({error}); going on offline: {offline}", flush=True)
            # in a new process, since this one's service does not take these runs again
            os.execv(sys.executable, [*sys.orig_argv, "--wandb", "offline"])
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
