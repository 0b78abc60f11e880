"""What a search is going to do, settled before it starts: space, first settings, rungs, resources.

A `Plan` is made from two things: `Options`, what a person asks for, and a `Site`, what the machines
can do.
"""

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dcgan.data import default_data_dir
from dcgan.schema import METRIC, Row, trial_name
from dcgan.store import Store
from tune.options import Options
from tune.question import (
    default_grace_period,
    first_points,
    saved_points,
    wanted_preset,
    wanted_scheduler,
    wanted_search,
)
from tune.schedulers import Scheduler
from tune.searches import Point, Search


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of a cluster."""

    id: str
    name: str
    cpus: float
    gpus: float


class Packing(NamedTuple):
    """How many of a search's largest trials a GPU takes, measured."""

    processes: int
    """Trials on a GPU at a time."""
    trial_bytes: int
    """GPU memory of one, with its CUDA context."""
    gpu_bytes: int
    """Memory of the GPU."""
    probed: int
    """Processes that were measured side by side."""
    speed: float
    """Images a second of all of them."""
    speed_alone: float
    """Images a second of one alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What the machines can do, as found where trials run (`tune.site.survey`)."""

    store: Store
    """Where the search is kept."""
    device: str
    """What trials train on: `cpu` or `cuda`."""
    precisions: tuple[str, ...]
    """Precisions that the device does at a sensible speed."""
    cpus: int
    """CPUs for trials, of all machines."""
    gpus: int
    """GPUs of all machines."""
    address: str = ""
    """The cluster's; empty where Ray runs on this machine alone."""
    nodes: tuple[Node, ...] = ()
    """The cluster's machines."""
    data_dir: Path | None = None
    """Folder above the data; None lets each machine use its own."""
    packing: Packing | None = None
    """How trials share a GPU, where that was to be measured."""
    seconds_per_epoch: float | None = None
    """Measured time of an epoch of all replicas, with its evaluation; None: not measured."""
    warning: str = ""
    """What a person should know before the search starts."""
    protocol: Row = dataclasses.field(default_factory=dict)
    """The conditions under which trials are evaluated, by column name."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Versions of Python and of the packages that compute."""
    platform: str = ""
    """The operating system."""

    @property
    def share(self) -> float:
        """The measured share of a GPU for each trial; a whole one where nothing was measured."""
        return 1 / self.packing.processes if self.packing else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A search with everything that decides its course."""

    search: Search
    sampler: str
    scheduler: Scheduler
    objectives: tuple[str, ...] = (METRIC,)
    """Columns to optimise; the first is the search's metric."""
    points: list[Point]
    """Settings tried before the sampler proposes any."""
    num_trials: int
    replicas: int = 1
    """Seeds that each trial trains side by side."""
    grace_period: int
    """Epochs before the scheduler's first decision."""
    seed: int = 0
    """Seed of the sampler."""
    data_dir: Path | None = None
    """Folder above the data; None lets each machine use its own."""
    store: Store = dataclasses.field(compare=False)
    """Where everything is kept."""
    slots: int
    """Trials that can train at the same time."""
    cpus: int = 1
    """CPU threads of a trial."""
    gpus: float = 0.0
    """Share of a GPU that a trial asks for; 0 on a machine without one."""
    address: str = ""
    """The cluster's; empty where Ray is started on this machine alone."""
    nodes: tuple[Node, ...] = ()
    """The cluster's machines, as the plan was made."""
    confirm: int = 0
    """Best settings to train again after the search; 0 leaves that out."""
    confirm_seeds: int = 1

    @property
    def folder(self) -> Path:
        """The search's folder on this machine, which may be a working copy."""
        return self.store.folder

    @property
    def location(self) -> str:
        """Where everything is found: the folder, or its URI."""
        return self.store.location

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is never stopped."""
        return self.search.base.epochs

    @property
    def concurrent(self) -> int:
        """Trials that do train at the same time."""
        return min(self.slots, self.num_trials)

    @property
    def patience(self) -> int:
        """Epochs in a row that a trial may be collapsed and get no better before it is given up."""
        return max(4, math.ceil(self.epochs / 3))

    @property
    def rungs(self) -> list[int]:
        """Epochs at which the scheduler decides."""
        return self.scheduler.rungs(self.epochs, self.grace_period)

    @property
    def keep(self) -> list[int]:
        """Epochs at which a trial may end, so that none of them may be missing from the storage."""
        return [*self.rungs, self.epochs]

    @property
    def request(self) -> dict[str, float]:
        """What a trial asks of Ray."""
        return {"cpu": self.cpus, "gpu": self.gpus}

    @property
    def resume_command(self) -> str:
        """The command that goes on with an interrupted search."""
        storage, _, name = self.location.rpartition("/")
        flags = {"--resume": name, "--storage": storage}
        if self.data_dir and self.data_dir != default_data_dir():
            flags["--data-dir"] = str(self.data_dir)
        if self.address:
            flags["--address"] = self.address
        return quoted("tune.run", flags=flags)

    def trial_folder(self, number: int) -> Path:
        """Where the trial of a number keeps its settings, rows and checkpoint."""
        return self.folder / trial_name(number)

    def expected_epochs(self) -> float:
        """Epochs of a trial on average."""
        return self.scheduler.expected_epochs(self.num_trials, self.rungs, self.epochs)


def quoted(module: str, *arguments: str, flags: Mapping[str, str] | None = None) -> str:
    """A command of this project as it can be pasted into a shell."""
    words = ["python", "-m", module, *arguments]
    for flag, value in (flags or {}).items():
        # argparse would take a value that begins with a dash for another flag
        words += [f"{flag}={value}"] if value.startswith("-") else [flag, value]
    return shlex.join(words)


def make_plan(options: Options, site: Site) -> Plan:
    """The plan of what a person asks for, on the machines that there are.

    Raises:
        ValueError: a combination that cannot work, or a search to resume that had another space.
        FileNotFoundError: there is no search to take points from.
    """
    search = wanted_search(options, site.device, site.precisions)
    preset = wanted_preset(options, site.device)
    share = options.share or site.share
    slots, gpus = resources(share, options.max_concurrent, site.cpus, site.gpus)
    points = saved_points(search, site.store) if options.resume else first_points(options, search)
    return Plan(
        search=search,
        sampler=search.sampler,
        scheduler=wanted_scheduler(options, search),
        objectives=options.columns,
        points=points,
        num_trials=search.num_trials,
        replicas=options.replicas,
        grace_period=options.grace_period or default_grace_period(search.base.epochs),
        seed=options.seed,
        data_dir=site.data_dir,
        store=site.store,
        slots=slots,
        gpus=gpus,
        address=site.address,
        nodes=site.nodes,
        confirm=preset.confirm if options.confirm is None else options.confirm,
        confirm_seeds=options.confirm_seeds or preset.confirm_seeds,
    )


def resources(
    share: float, max_concurrent: int | None, cpus: int, devices: int
) -> tuple[int, float]:
    """Trials at a time, and the GPU share of each: as many trials as fit.

    Without a GPU each trial takes one CPU: two one-thread trials train more images a second than
    one of two threads.

    Args:
        share: the least share of a GPU; with fewer trials than would fit they are spread over the
            GPUs and take more each.
        max_concurrent: the most trials at a time; None: as many as fit.
        cpus: CPUs for trials, of all machines.
        devices: GPUs of all machines.
    """
    slots = min(cpus, max_concurrent or sys.maxsize)
    if not devices:
        return slots, 0.0
    slots = min(slots, devices * int(1 / share + 1e-9))  # 1 / (1 / 49) is below 49
    # Ray fills one GPU before the next, so each gets as many trials
    return slots, 1 / math.ceil(slots / devices)
