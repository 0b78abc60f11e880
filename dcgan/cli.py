"""What every command line of the project shares: one-line errors, exit codes and wording of durations.

Exit codes: 0 done, 1 the run itself failed (training diverged, or ran out of memory), 2 the input is wrong, 130 interrupted.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and name the way to the help."""

    def error(self, message: str) -> NoReturn:
        fail(self, f"{message} (see {self.prog} --help)")


def fail(parser: argparse.ArgumentParser, message: object, code: int = 2) -> NoReturn:
    """Prints one line to standard error and exits."""
    print(f"{parser.prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """Adds `--data-dir`."""
    text = "folder above MNIST/raw (default: $DCGAN_DATA_DIR or ~/.cache/dcgan)"
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=text)


@contextlib.contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turns errors that a user can cause (ValueError, OSError) and failed training into one line and an exit code."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(parser, error)
    except (FloatingPointError, MemoryError) as error:
        fail(parser, error, code=1)


def duration(seconds: float) -> str:
    """A duration as a person says it: `8 s`, `2 min 5 s`, `3 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
