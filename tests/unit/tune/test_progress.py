"""What a person sees while a search runs: lines of ended trials, and the status line."""

import contextlib
import fcntl
import io
import os
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from tune import progress as room
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.progress import QUIET_SECONDS, REDRAW_SECONDS, Progress
from tune.study import StudySearch

SETTINGS = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}
SHOWN = "  (generator_lr 0.0002, batch_size 64, optimizer adam)"
COLUMNS = 60  # of a narrow terminal


class FakeTrial:
    """What Ray hands to a callback, as far as it is used."""

    def __init__(self, name: str, error: BaseException | None = None, folder: Path = Path()):
        self.name = name
        self.config = SETTINGS
        self.run_metadata = SimpleNamespace(metric_analysis={"fid": 1}, metric_n_steps={"fid": 1})
        if error:
            self.pickled_error_file = folder / f"{name}.pkl"
            self.pickled_error_file.write_bytes(cloudpickle.dumps(error))

    def __str__(self) -> str:
        return self.name


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=clock))
    return clock


def begin(plan: Plan) -> Progress:
    """The callback of a session that goes on with what the study holds."""
    progress = Progress(plan, StudySearch(plan, open_ledger(plan.folder, plan.objectives)))
    progress.setup()
    return progress


def report(progress: Progress, name: str, epoch: int, fid: float, seconds: float = 2.0) -> None:
    """An epoch of a trial, of so many seconds."""
    row = {"epoch": epoch, "fid": fid, "seconds_train": seconds - 0.5, "seconds_eval": 0.5}
    trial: Any = FakeTrial(name)
    progress.on_trial_result(0, [], trial, row)


def complete(progress: Progress, name: str) -> None:
    trial: Any = FakeTrial(name)
    progress.on_trial_complete(0, [], trial)


# Lines of ended trials


def test_an_ended_trial_is_told_with_its_best_epoch_and_settings(
    plan: Plan, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = begin(plan)
    for epoch, fid in enumerate((50.0, 30.25, 40.0), 1):
        report(progress, "trial_0000", epoch, fid)
    complete(progress, "trial_0000")
    for epoch in range(1, 10):
        report(progress, "trial_0001", epoch, 10.0 - epoch)
    complete(progress, "trial_0001")
    assert capsys.readouterr().out.splitlines() == [
        f"trial_0000 stopped at epoch 3: best fid 30.25 at epoch 2{SHOWN}",
        f"trial_0001 finished: best fid 1.00 at epoch 9{SHOWN}",
    ]


def test_a_setting_of_a_search_that_varies_nothing_is_not_shown(
    make_demo_plan: Any, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = begin(make_demo_plan("--search baseline"))
    report(progress, "trial_0000", 9, 3.0)
    complete(progress, "trial_0000")
    assert capsys.readouterr().out == "trial_0000 finished: best fid 3.00 at epoch 9\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FloatingPointError("diverged in epoch 3"), "diverged in epoch 3"),
        (RuntimeError("a traceback\n  of lines\nthe cause"), "the cause"),
        (AssertionError(), "AssertionError"),  # some say nothing, such as a bare assert
        (SimpleNamespace(cause=ValueError("the true cause")), "the true cause"),
    ],
)
def test_a_failed_trial_is_told_by_the_last_line_of_its_error(
    error: Any,
    reason: str,
    plan: Plan,
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = begin(plan)
    report(progress, "trial_0000", 1, 30.0)
    progress.on_trial_error(0, [], FakeTrial("trial_0000", error, tmp_path))  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"trial_0000 failed: {reason}{SHOWN}\n"
    assert "trials 1/3, 1 failed" in progress.status()


def test_rays_statistics_of_an_ended_trial_are_dropped(
    plan: Plan, clock: Clock, tmp_path: Path
) -> None:
    progress = begin(plan)
    report(progress, "trial_0000", 1, 30.0)
    ended: Any = FakeTrial("trial_0000")
    failed: Any = FakeTrial("trial_0001", AssertionError(), tmp_path)
    progress.on_trial_complete(0, [], ended)
    progress.on_trial_error(0, [], failed)
    for trial in (ended, failed):
        assert not trial.run_metadata.metric_analysis
        assert not trial.run_metadata.metric_n_steps


# The status line


def test_the_status_line_says_how_far_the_search_is(plan: Plan, clock: Clock) -> None:
    progress = begin(plan)
    assert progress.status() == (
        "0 s · trials 0/3 · reached epoch 2:0  6:0  9:0 · no result yet · starting"
    )
    clock.now += 65
    report(progress, "trial_0000", 1, 50.0)
    report(progress, "trial_0001", 1, 70.0)
    report(progress, "trial_0000", 2, 40.0)
    complete(progress, "trial_0001")
    status = progress.status()
    assert status.startswith(
        "1 min 5 s · trials 1/3 · reached epoch 2:1  6:0  9:0 · best fid 40.00 (epoch 2) · about "
    )
    assert status.endswith(" left")


def test_the_time_left_is_that_of_the_epochs_left_at_the_pace_so_far(
    plan: Plan, clock: Clock
) -> None:
    """Three trials ended after 2 epochs on average; of those that run, one is past that and trains
    to the end, and one is at its first epoch."""
    progress = begin(plan)
    progress.total = 7
    for name, epochs in {"a": 1, "b": 2, "c": 3, "d": 4, "e": 1}.items():
        for epoch in range(1, epochs + 1):
            report(progress, name, epoch, 30.0, seconds=4.0)
        if name in "abc":
            complete(progress, name)
    left = (9 - 4) + (2 - 1) + 2 * 2  # of d, of e, and of two that have not begun
    assert plan.concurrent == 2
    assert progress.status().endswith(f"about {left * 4 // 2} s left")


def test_epochs_of_earlier_sessions_count_and_cost_nothing(plan: Plan, clock: Clock) -> None:
    study = open_ledger(plan.folder, plan.objectives)
    searcher = StudySearch(plan, study)
    for name in ("a", "b", "c"):
        searcher.suggest(name)
    for epoch in range(1, 9):
        searcher.on_trial_result("a", {"epoch": epoch, "fid": 40.0 - epoch})
    searcher.on_trial_complete("a", {"epoch": 9, "fid": 50.0})
    searcher.on_trial_result("b", {"epoch": 1, "fid": 60.0})
    searcher.fail("b")
    searcher.on_trial_result("c", {"epoch": 1, "fid": 20.0})

    progress = begin(plan)
    assert progress.status() == (
        "0 s · trials 2/3, 1 failed · reached epoch 2:1  6:1  9:1 · best fid 20.00 (epoch 1) · "
        "starting"
    )
    report(progress, "trial_0002", 1, 20.0)  # again, after the restart
    assert progress.status().endswith("starting")
    report(progress, "trial_0002", 2, 19.0)
    assert progress.status().endswith("left")


def test_where_lines_cannot_overwrite_each_other_the_status_comes_now_and_then(
    plan: Plan, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = begin(plan)
    for epoch in range(1, 10):
        clock.now += QUIET_SECONDS / 4 + 0.1
        report(progress, "trial_0000", epoch, 10.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" · ")[0] for line in lines] == ["15 s", "31 s"]


@contextlib.contextmanager
def narrow_terminal() -> Iterator[list[str]]:
    """Makes standard output a narrow terminal; its text is the item of the list, afterwards."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    shown: list[str] = []
    with io.TextIOWrapper(io.FileIO(theirs, "w"), encoding="utf-8", write_through=True) as stdout:
        with contextlib.redirect_stdout(stdout):
            yield shown
        stdout.write("end")
        text = b""
        while not text.endswith(b"end"):
            text += os.read(ours, 1000)
    os.close(ours)
    shown.append(text.decode().removesuffix("end"))


def test_on_a_terminal_the_status_overwrites_itself_and_ended_trials_stay(
    plan: Plan, clock: Clock
) -> None:
    with narrow_terminal() as shown:
        progress = begin(plan)
        for epoch in range(1, 4):
            clock.now += REDRAW_SECONDS + 0.1
            report(progress, "trial_0000", epoch, 30.0)
            report(progress, "trial_0001", epoch, 30.0)  # too soon to be drawn
        complete(progress, "trial_0000")
        clock.now += REDRAW_SECONDS + 0.1
        report(progress, "trial_0001", 4, 30.0)
        progress.on_experiment_end([])
    # of each line all that stood in it, one after the other
    first, last = (
        [part for part in line.split("\r") if part.strip()] for line in shown[0].split("\r\n")
    )
    *statuses, ended = first
    assert len(statuses) == 4  # the first as the search begins
    assert ended == f"trial_0000 stopped at epoch 3: best fid 30.00 at epoch 1{SHOWN}"
    assert last
    assert shown[0].endswith(" " * 20 + "\r")  # what follows begins where the status stood
    for status in [*statuses, *last]:
        # a wrapped line could not be overwritten
        assert len(status) < COLUMNS
        assert " s · trials " in status
