"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SHARED = {"tests/integration/test_tracking.py": "tests/integration/test_search.py"}
"""Files that look at what another one runs, which takes minutes."""
WHOLE = (
    *(f"integration/test_{name}" for name in ("search", "variants", "environments", "docs")),
    *("integration/test_ray_up", "numerical/test_training", "unit/tune/test_simulate"),
    *("unit/tune/test_crash_points", "numerical/test_fake_cuda"),
)
APART = tuple(
    f"integration/test_{name}"
    for name in ("freeze_thaw", "s3", "kills", "cluster", "driver", "wandb_online")
)
LONGEST = [f"tests/{name}.py" for name in (*WHOLE, *APART)]
"""Files that take minutes, the longest first: they begin before all others, so that little is left
over for one worker alone at the end. Those of `APART` share nothing that costs much, so that each
of their tests may run on another worker."""


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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m slow`, leaves out files that hold no such test: each worker would import them all,
    which takes ten seconds."""
    if config.option.markexpr != "slow" or not collection_path.match("test_*.py"):
        return None
    return "mark.slow" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others keep their order."""

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, all tests of a file run on one worker, which makes their fixtures once, but for
    those of `APART`. They begin in the order in which they were collected."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            if file in LONGEST[len(WHOLE) :]:
                return nodeid
            return SHARED.get(file, file)

    config.option.loadscopereorder = False
    return ByFile(config, log)
