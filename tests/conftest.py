"""What all tests share."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

SHARED = {"tests/integration/test_tracking.py": "tests/integration/test_search.py"}
"""Files that look at what another one runs, which takes minutes."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread, as in a trial on a CPU: quicker for nets this small, and the same rounding
    everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Undoes what command lines in this process set in the environment, for the tests after."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, all tests of a file run on one worker, which makes their fixtures once. Files
    begin in their own order, so that whole searches, which take longest, do not come last."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return SHARED.get(file, file)

    config.option.loadscopereorder = False
    return ByFile(config, log)
