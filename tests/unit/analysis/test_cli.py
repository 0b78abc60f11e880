"""What the command lines share: numbers as text and as data, files that cannot be written, readers
that go away."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import cli
from dcgan.cli import Parser

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123.4, "123"),
        (10.4, "10"),
        (9.96, "10"),
        (9.44, "9.4"),
        (-3.26, "-3.3"),
        (0.351, "0.35"),
        (-0.0684, "-0.068"),
        (0.0, "0.0"),
        (math.nan, ""),
    ],
)
def test_scores_have_two_digits_that_count(value: float, text: str) -> None:
    assert cli.rounded(value) == text


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert cli.spread(12.3, 9.71, 14.2) == "12 [9.7, 14]"
    assert cli.spread(-3.0, -16.2, 10.1, "+") == "-3.0 [-16, +10]"
    assert cli.spread(12.3, math.nan, math.nan) == "12"
    assert cli.spread(math.nan, math.nan, math.nan) == ""


def test_rows_as_data_are_exact_and_what_is_missing_is_null() -> None:
    table = pd.DataFrame(
        {
            "generator_lr": [5.123456789e-5, math.nan],
            "n": pd.array([3, None], dtype="Int64"),
            "run": ["grid", None],
        },
        index=["a", "a"],
    )
    rows = cli.records(table)
    assert rows[0] == {
        "generator_lr": pytest.approx(5.123456789e-5, rel=1e-9),
        "n": 3,
        "run": "grid",
    }
    assert rows[1] == dict.fromkeys(table)
    assert json.loads(json.dumps(rows)) == rows


def test_a_file_that_cannot_be_written_takes_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.keep(tmp_path / "a.md", "é\n")
    assert (tmp_path / "a.md").read_bytes() == "é\n".encode()
    assert capsys.readouterr() == ("", "")
    cli.keep(tmp_path / "nowhere" / "a.md", "text")
    message = f"{tmp_path / 'nowhere' / 'a.md'} is not written: No such file or directory\n"
    assert capsys.readouterr() == ("", message)


def test_errors_take_one_line(refused: Callable[..., str]) -> None:
    def answer(_: argparse.Namespace) -> tuple[str, Any]:
        raise ValueError("first\nsecond")

    error = refused(lambda: cli.run(Parser(prog="x"), answer))
    assert error == "x: error: first second\n"


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(option: list[str]) -> None:
    """As `| head` closes the pipe: before the first line, which is less than the pipe holds, or
    amid many more."""
    script = (
        "from analysis import cli; from dcgan.cli import Parser; "
        "cli.run(Parser(), lambda args: ('x', ['x' * 9] * 10**5))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", script, *option]
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, check=True)
    assert done.stderr == b""
