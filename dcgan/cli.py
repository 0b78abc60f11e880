"""What every command line of the project shares: flags, one-line errors, exit codes and wording.

Exit codes: 0 done, 1 the run itself failed (training diverged, or ran out of memory), 2 the input
is wrong, 130 interrupted.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dcgan.settings import field_docs, flag_name, plain_type
from dcgan.streams import steady_streams

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "DIR", tuple: "TEXT"}
"""What `--help` calls a value of each type."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and name the way to the help.

    Making one also makes the process's streams steady, since it is the first to print.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        steady_streams()

    def error(self, message: str) -> NoReturn:
        self.fail(f"{message} (see {self.prog} --help)")

    def fail(self, message: object, code: int = 2) -> NoReturn:
        """Prints one line to standard error and exits."""
        self.exit(code, f"{self.prog}: error: {one_line(message)}\n")


def add_flags(
    parser: argparse._ActionsContainer, settings: type, leave_out: Collection[str] = ()
) -> None:
    """Adds a flag for each field of a dataclass: type, choices, and the string under it as help.

    A bool has the one flag that changes it: `--name`, or `--no-name` where it is true. A tuple of
    texts may be given several times. A flag that is not given is None (see `given_flags`).
    """
    docs = field_docs(settings)
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        kind, _ = plain_type(field.type)
        flag = flag_name(field.name)
        choices = field.metadata.get("choices")
        options: dict[str, Any] = {"default": None, "help": docs[field.name].replace("%", "%%")}
        if kind is bool:
            flag = f"--no-{flag.removeprefix('--')}" if field.default else flag
            options["dest"] = field.name
            options["action"] = "store_false" if field.default else "store_true"
        elif choices is not None:
            options |= {"type": kind, "choices": choices}
        else:
            options["metavar"] = field.metadata.get("metavar") or METAVARS[kind]
            options |= {"action": "append"} if kind is tuple else {"type": kind}
        if kind is not bool and isinstance(field.default, str | int | float):
            options["help"] += f" (default: {field.default})"
        parser.add_argument(flag, **options)


def given_flags(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The values of the flags that were given, by the dataclass's field names."""
    given = {}
    for field in dataclasses.fields(settings):
        value = getattr(args, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return given


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """Adds `--data-dir`."""
    text = "folder above MNIST/raw (default: $DCGAN_DATA_DIR or ~/.cache/dcgan)"
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=text)


@contextlib.contextmanager
def one_line_errors(parser: Parser) -> Iterator[None]:
    """Turns a user's errors (ValueError, OSError) and failed training into one line and a code;
    refuses Windows, which lacks signals and measures that training and searching take from Unix."""
    if sys.platform == "win32":
        parser.fail(
            "it needs Linux or macOS; on Windows use WSL (results are read by analysis there)"
        )
    try:
        yield
    except (ValueError, OSError) as error:
        parser.fail(error)
    except (FloatingPointError, MemoryError) as error:
        parser.fail(error, code=1)


def one_line(error: object) -> str:
    """What an error says, without line breaks; the name of one that says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def duration(seconds: float) -> str:
    """A duration as a person says it: `8 s`, `2 min 5 s`, `3 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(value: Any) -> str:
    """A setting in few characters: floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
