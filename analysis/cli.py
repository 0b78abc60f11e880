"""What the command lines of this room share."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dcgan.cli import Parser
from dcgan.files import replace

RUN_HELP = (
    "the folder of a search, such as runs/hparams-20261122-193000, or its URI (s3://…; only read)"
)


def run(parser: Parser, answer: Callable[[argparse.Namespace], tuple[str, Any]]) -> None:
    """Prints the answer to the command line, its text or, with `--json`, its data; an error that a
    user can cause takes one line and exit code 2."""
    parser.add_argument("--json", action="store_true", help="print the data as JSON")
    args = parser.parse_args()
    try:
        text, data = answer(args)
    except (OSError, ValueError, ImportError) as error:
        parser.fail(error)
    print(json.dumps(data, indent=2) if args.json else text)


def run_on_search(
    name: str, description: str, answer: Callable[[argparse.Namespace], tuple[str, Any]]
) -> None:
    """The command line of a room that takes one search."""
    parser = Parser(prog=f"python -m analysis.{name}", description=description)
    parser.add_argument("run", help=RUN_HELP)
    run(parser, answer)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain JSON values; what is missing is null."""
    return list(json.loads(table.to_json(orient="records", double_precision=15)))


def keep(path: Path, content: str) -> None:
    """Writes a file of an answer; where that cannot be, a line says so, and the answer is printed
    nevertheless."""
    try:
        replace(path, content.encode())
    except OSError as error:
        print(f"{path} is not written: {error.strerror}", file=sys.stderr)


def rounded(value: float, sign: str = "") -> str:
    """A score without digits that another seed would change: two that count."""
    if pd.isna(value):
        return ""
    if abs(value) >= 9.95:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.1f}" if abs(value) >= 0.95 or not value else f"{value:{sign}#.2g}"


def spread(value: float, low: float, high: float, sign: str = "") -> str:
    """A score and its interval, such as `12 [9.7, 14]`, or as much of it as is known."""
    interval = f" [{rounded(low, sign)}, {rounded(high, sign)}]" if pd.notna(low) else ""
    return f"{rounded(value, sign)}{interval}"
