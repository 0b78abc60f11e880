"""Files that outlast a crash: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from dcgan.schema import Row


def replace(path: Path, content: bytes) -> None:
    """Writes a file: either the whole new one is there afterwards, or the whole old one."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replaces a file of one JSON value in one step."""
    replace(path, (json.dumps(content, indent=2) + "\n").encode())


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines, none without a file; a ValueError if a line is damaged."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Replaces a file of JSON lines in one step."""
    replace(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
