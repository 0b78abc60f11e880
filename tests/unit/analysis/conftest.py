"""What tests of the command lines share."""

import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a room's `main` with arguments and returns what it prints."""

    def run(main: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(printed: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a room's `main`, which has to exit with 2, and returns the one line of its error."""

    def run(main: Callable[[], None], *arguments: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            printed(main, *arguments)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run
