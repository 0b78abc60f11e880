"""Standard streams that never end a program: what a terminal cannot show is replaced, and a stream
that nobody reads is silence."""

import io
import os
import select
import sys
from typing import Any, TextIO


class Silent(io.FileIO):
    """A descriptor that swallows what cannot be written: its terminal is closed, its reader, such
    as `head`, has seen enough, or its disk is full."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # not blocking, and full
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


def steady_streams() -> None:
    """Makes the standard streams such: called once by each command line, before it prints.

    A descriptor that is closed would else be given to the next file that is opened, which then
    holds what libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else a notebook's, or a test's
            setattr(sys, name, steady(stream, number))


def steady(stream: TextIO | None, number: int) -> TextIO:
    """A stream over the same descriptor, in the same encoding."""
    if sys.platform == "win32" and isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a console takes no bytes
        return stream
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Silent(number, "w", closefd=False)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="replace",
        line_buffering=True,
    )
