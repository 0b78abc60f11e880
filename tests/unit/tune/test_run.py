"""The course of a search, from options to an exit code. Whole searches are in tests/integration."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcgan.schema import LOCK_FILE, SEARCH_FILE
from dcgan.store import Mirror, StorageError, Store
from tune import run as course
from tune.options import Options, from_flags, make_parser
from tune.plan import Plan, Site, make_plan
from tune.run import run, search


def options_of(tmp_path: Path, text: str = "") -> Options:
    """The options of a search named `run` in `tmp_path`, which is not measured."""
    words = ["--search", "baseline", "--storage", str(tmp_path), "--name", "run", "--no-estimate"]
    return from_flags(make_parser(), [*words, *shlex.split(text)])


def plan_of(options: Options, store: Store) -> Plan:
    """The plan of options on a machine with two CPUs."""
    return make_plan(
        options, Site(store=store, device="cpu", precisions=("float32",), cpus=2, gpus=0)
    )


def test_a_dry_run_prints_the_plan_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options_of(tmp_path, "--dry-run")) == 0
    output = capsys.readouterr().out
    assert output.startswith("search   baseline: The original study's single setting")
    assert f"\nresults  {tmp_path / 'run'}\n" in output
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused_and_what_a_killed_start_left_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for left in (LOCK_FILE, "search.123.tmp"):
        (folder / left).touch()
    assert run(options_of(tmp_path, "--dry-run")) == 0
    for taken in (SEARCH_FILE, "study.db", "letter.txt"):
        (folder / taken).touch()
        message = r"run holds a search; go on with it by --resume run, or choose another --name$"
        with pytest.raises(ValueError, match=message):
            run(options_of(tmp_path, "--dry-run"))
        (folder / taken).unlink()
    assert sorted(path.name for path in folder.iterdir()) == sorted([LOCK_FILE, "search.123.tmp"])


def test_what_is_recorded_goes_into_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(course, "search", lambda *arguments: given.extend(arguments) or 7)
    options = options_of(tmp_path)
    assert run(options) == 7
    plan, same, record = given
    assert plan.folder == tmp_path / "run"
    assert same == options
    assert record["options"] == options.saved() | {"preset": "demo"}
    assert record["protocol"]["eval_split"] == "validation"


def test_a_second_interruption_still_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    options = options_of(tmp_path)
    monkeypatch.setattr("tune.runner.session", interrupted)
    assert search(plan_of(options, Store(tmp_path / "run")), options, {}) == 130
    assert "\nstopped; go on with: python -m tune.run --resume run" in capsys.readouterr().out


def test_a_storage_that_is_gone_ends_the_search_with_the_command_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: Any) -> None:
        raise StorageError("s3://bucket/runs/run cannot be written")

    options = options_of(tmp_path)
    plan = plan_of(options, Mirror(tmp_path / "copy", "s3://bucket/runs/run"))
    monkeypatch.setattr("tune.runner.session", gone)
    message = (
        "s3://bucket/runs/run cannot be written; what is in the storage is kept; go on with: "
        "python -m tune.run --resume run --storage s3://bucket/runs"
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        search(plan, options, {})


ALL = ["session", "tracking", "run", "answer", "confirm", "confirmed", "page", "model", "put"]


@pytest.mark.parametrize(
    ("text", "found", "asked_after", "left_out"),
    [
        ("", True, None, []),
        ("--confirm 0", True, None, ["confirm", "confirmed"]),
        ("--no-report", True, None, ["page", "model"]),
        ("", False, None, ["confirm", "confirmed", "page", "model"]),
        ("", True, "run", ["confirm", "confirmed", "page", "model"]),
        ("", False, "run", ["confirm", "confirmed", "page", "model"]),
        ("", True, "confirm", ["page", "model"]),
        ("--resume run --retry-failed", True, None, []),
    ],
)
def test_a_search_is_run_answered_confirmed_and_reported(
    text: str,
    found: bool,
    asked_after: str | None,
    left_out: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Takes each step but those that were not asked for, or come after an interruption; the exit
    code and the last lines say how it ended."""
    steps: list[str] = []
    stop = SimpleNamespace(asked=False)

    def step(name: str, value: Any = None) -> Any:
        def call(*arguments: Any) -> Any:
            steps.append(name)
            stop.asked = stop.asked or name == asked_after
            return value

        return call

    @contextlib.contextmanager
    def session(plan: Plan, record: dict[str, Any]) -> Iterator[Any]:
        assert record == {"version": 2}
        steps.append("session")
        yield stop

    @contextlib.contextmanager
    def tracking(plan: Plan, mode: str, stop: Any) -> Iterator[None]:
        assert mode == "offline"
        steps.append("tracking")
        yield

    class Kept(Store):
        def put(self, *paths: Path) -> None:
            steps.append("put")

    for target, value in {
        "tune.runner.session": session,
        "tune.track.tracking": tracking,
        "tune.ledger.retry_failed": step("retry", 3),
        "tune.runner.run_plan": step("run"),
        "tune.answer.print_answer": step("answer", found),
        "tune.confirm.train_again": step("confirm"),
        "tune.answer.print_confirmed": step("confirmed"),
        "tune.answer.write_page": step("page"),
        "tune.answer.write_model": step("model"),
    }.items():
        monkeypatch.setattr(target, value)
    options = options_of(tmp_path, f"--wandb offline {text}")
    store = Kept(tmp_path / "my runs" / "run")
    plan = plan_of(options_of(tmp_path, text.partition("--resume")[0]), store)
    code = search(plan, options, {"version": 2})
    assert code == (130 if asked_after else int(not found))
    expected = [name for name in ALL if name not in left_out]
    if options.retry_failed:
        expected.insert(2, "retry")
    assert steps == expected
    output = capsys.readouterr().out
    assert output.startswith("tracking W&B, offline: wandb sync")
    assert ("retrying 3 failed trials" in output) == options.retry_failed
    report = f"python -m analysis.report '{tmp_path}/my runs/run'\n"
    assert (report in output) == found
    resume = f"python -m tune.run --resume run --storage '{tmp_path}/my runs'\n"
    assert (f"\nstopped; go on with: {resume}" in output) == (asked_after is not None)
