"""What the command lines of this room share."""

import argparse
from collections.abc import Callable

import pandas as pd


def run(parser: argparse.ArgumentParser, answer: Callable[[argparse.Namespace], str]) -> None:
    """Prints the answer to the command line; an error that a user can cause takes one line and exit
    code 2."""
    args = parser.parse_args()
    try:
        print(answer(args))
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


def spread(value: float, low: float, high: float, sign: str = "") -> str:
    """A value and its interval, such as `12.31 [11.70, 12.92]`, or as much of it as is known."""
    interval = f" [{low:{sign}.2f}, {high:{sign}.2f}]" if pd.notna(low) else ""
    return f"{value:{sign}.2f}{interval}" if pd.notna(value) else ""
