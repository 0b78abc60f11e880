"""`dcgan.cli`: flags from a dataclass, one line for every error, exit codes, and wording."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dcgan import cli
from dcgan.settings import check_settings, flag_name, setting


@pytest.fixture
def parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m thing")
    parser.add_argument("--count", type=int, required=True)
    return parser


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
        (["--count", "1", "--nope"], "unrecognized arguments: --nope"),
        ([], "the following arguments are required: --count"),
        (["--count", "1\n2"], "argument --count: invalid int value: '1\\n2'"),
    ],
)
def test_wrong_arguments_take_one_line_and_exit_code_2(
    parser: cli.Parser, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"python -m thing: error: {message} (see python -m thing --help)\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("batch_size is 1"), 2, "batch_size is 1"),
        (FileNotFoundError("no checkpoint at x"), 2, "no checkpoint at x"),
        (PermissionError(13, "Permission denied", "/x"), 2, "[Errno 13] Permission denied: '/x'"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            2,
            "'utf-8' codec can't decode byte 0xff in position 0: bad",
        ),
        (FloatingPointError("training diverged"), 1, "training diverged"),
        (ValueError("first line\n  second line\n\n third"), 2, "first line second line third"),
    ],
)
def test_errors_of_a_user_take_one_line(
    parser: cli.Parser, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    with pytest.raises(SystemExit, match=f"^{code}$"), cli.one_line_errors(parser):
        raise error
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"python -m thing: error: {line}\n")


@pytest.mark.parametrize(
    "error",
    [KeyError("lost"), AssertionError("lost"), RuntimeError("lost"), KeyboardInterrupt("lost")],
)
def test_other_errors_keep_their_traceback(parser: cli.Parser, error: BaseException) -> None:
    with pytest.raises(type(error), match="lost"), cli.one_line_errors(parser):
        raise error


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (8.2, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (11_429, "3 h 10 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, words: str) -> None:
    assert cli.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000312345, "0.000312"),
        (2e-4, "0.0002"),
        (1.0, "1"),
        (64, "64"),
        (12345, "12345"),
        ("adam", "adam"),
    ],
)
def test_short_writes_floats_to_three_digits(value: Any, text: str) -> None:
    assert cli.short(value) == text


COLOURS = {"red": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a test."""

    name_of_it: str = "thing"
    """Its name, 100 %."""
    count: int | None = setting(None, least=1)
    """How many
    there are."""
    rate: float = 0.5
    """Its rate."""
    colour: str = setting("red", choices=COLOURS)
    """Its colour."""
    loud: bool = True
    """Whether it is heard."""
    parts: tuple[str, ...] = ()
    """Its parts."""
    folder: Path | None = None
    """Its folder."""
    hidden: int = 3
    """What has no flag."""

    def __post_init__(self) -> None:
        check_settings(self, flag_name)


@pytest.fixture
def flags() -> cli.Parser:
    parser = cli.Parser(prog="python -m thing", formatter_class=argparse.RawTextHelpFormatter)
    cli.add_flags(parser, Settings, leave_out=["hidden"])
    return parser


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--name-of-it", "x"], {"name_of_it": "x"}),
        (["--count", "3", "--rate", "1e-3"], {"count": 3, "rate": 1e-3}),
        (["--colour", "red"], {"colour": "red"}),
        (["--no-loud"], {"loud": False}),
        (["--parts", "a", "--parts", "b"], {"parts": ("a", "b")}),
        (["--folder", "x/y"], {"folder": Path("x/y")}),
    ],
)
def test_only_flags_that_were_given_are_given(
    flags: cli.Parser, arguments: list[str], given: dict[str, Any]
) -> None:
    found = cli.given_flags(flags.parse_args(arguments), Settings)
    assert found == given
    assert Settings(**found) == dataclasses.replace(Settings(), **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "4"], "unrecognized arguments: --hidden 4"),
        (["--colour", "green"], "argument --colour: invalid choice: 'green'"),
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
    ],
)
def test_a_wrong_flag_takes_one_line(
    flags: cli.Parser, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        flags.parse_args(arguments)
    assert capsys.readouterr().err.startswith(f"python -m thing: error: {message}")


def test_a_value_out_of_bounds_is_refused_by_its_flag() -> None:
    with pytest.raises(ValueError, match=r"^--count is 0; allowed is at least 1$"):
        Settings(count=0)


def test_help_shows_the_string_under_a_field_and_its_default(flags: cli.Parser) -> None:
    text = " ".join(flags.format_help().split())
    for part in (
        "Its name, 100 %. (default: thing)",
        "--count N How many there are.",
        "Its rate. (default: 0.5)",
        "{red}",
        "--no-loud Whether it is heard.",
        "--folder DIR Its folder.",
    ):
        assert part in text
    assert "hidden" not in text
    assert "None" not in text


def test_a_choice_that_is_registered_later_has_a_flag_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COLOURS, "green", 2)
    parser = cli.Parser(prog="python -m thing")
    cli.add_flags(parser, Settings)
    assert cli.given_flags(parser.parse_args(["--colour", "green"]), Settings) == {
        "colour": "green"
    }


def test_windows_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli.Parser(prog="python -m dcgan.train")
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SystemExit, match="2"), cli.one_line_errors(parser):
        pytest.fail("it should not get here")
    assert capsys.readouterr().err.startswith("python -m dcgan.train: error: it needs Linux or ")
