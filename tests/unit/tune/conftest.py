"""What the tests of a search's course share: a plan whose machines are made up."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcgan.store import Store
from tune.options import from_flags, make_parser
from tune.plan import Plan, Site, make_plan

MakePlan = Callable[..., Plan]


@pytest.fixture
def make_demo_plan(tmp_path: Path) -> MakePlan:
    """Makes the plan of a command line with two CPUs, in an empty folder of its own or a store."""

    def make(text: str = "", store: Store | None = None, **changes: Any) -> Plan:
        words = ["--search", "hparams", "--preset", "demo", *shlex.split(text)]
        options = from_flags(make_parser(), words)
        store = store or Store(tmp_path / "run")
        site = Site(store=store, device="cpu", precisions=("float32",), cpus=2, gpus=0)
        plan = dataclasses.replace(make_plan(options, site), **changes)
        plan.folder.mkdir(parents=True, exist_ok=True)
        return plan

    return make


@pytest.fixture
def plan(make_demo_plan: MakePlan) -> Plan:
    """A plan of three trials of nine epochs, with rungs at 2 and 6."""
    return make_demo_plan("--num-trials 3")
