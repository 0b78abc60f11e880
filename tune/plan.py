"""What a search is going to do, settled before it starts: space, first settings, rungs, resources.

A `Plan` is made from `Options`, what a person asks for, and a `Site`, what the machines can do.
What a person left open is settled by the preset, the search, or the device that trials run on.
"""

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from optuna.distributions import json_to_distribution

from dcgan.config import replicate
from dcgan.data import default_data_dir
from dcgan.schema import CLASS_COLUMNS, METRIC, STUDY_FILE, Row, trial_name
from dcgan.store import Store, copy_of
from tune.ledger import best_points
from tune.options import Options, parse_objectives, read_record
from tune.resuming import check_same_data, saved_yardstick
from tune.schedulers import SCHEDULERS, Scheduler, default_grace_period
from tune.searches import PRESETS, Point, Preset, Search, describe_axis, make_search

POINTS_SHARE = 3  # at most a third of the trials begin at settings of an earlier search


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of a cluster."""

    id: str
    name: str
    cpus: float
    gpus: float


class Packing(NamedTuple):
    """How many of a search's largest trials a GPU takes, measured."""

    processes: int  # trials on a GPU at a time
    trial_bytes: int  # GPU memory of one, with its CUDA context
    gpu_bytes: int  # memory of the GPU
    probed: int  # processes that were measured side by side
    speed: float  # images a second of all of them
    speed_alone: float  # images a second of one alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What the machines can do, as found where trials run (`tune.site.survey`)."""

    store: Store  # where the search is kept
    device: str  # what trials train on: `cpu` or `cuda`
    precisions: tuple[str, ...]  # those that the device does at a sensible speed
    cpus: int  # for trials, of all machines
    gpus: int  # of all machines
    address: str = ""  # the cluster's; empty where Ray runs on this machine alone
    nodes: tuple[Node, ...] = ()  # the cluster's machines
    data_dir: Path | None = None  # above the data; None lets each machine use its own
    packing: Packing | None = None  # how trials share a GPU, where that was to be measured
    seconds_per_epoch: float | None = None  # of all replicas, evaluated; None: not measured
    images: int = 0  # of the training split; 0: not counted
    warning: str = ""  # what a person should know before the search starts
    protocol: Row = dataclasses.field(default_factory=dict)  # conditions of the evaluation
    yardstick: bytes = b""  # weights of one that was trained for the data set
    data: str = ""  # a digest of the pictures of a person's folder
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of what computes
    platform: str = ""  # the operating system

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
    objectives: tuple[str, ...] = (METRIC,)  # columns to optimise, the metric first
    points: list[Point]  # settings tried before the sampler proposes any
    num_trials: int
    replicas: int = 1  # seeds that each trial trains side by side
    grace_period: int  # epochs before the scheduler's first decision
    epochs_in_all: int | None = None  # after which it ends; None: once all trials have ended
    seed: int = 0  # of the sampler
    data_dir: Path | None = None  # above the data; None lets each machine use its own
    store: Store = dataclasses.field(compare=False)  # where everything is kept
    slots: int  # trials that can train at the same time
    gpus: float = 0.0  # share of a GPU that a trial asks for; 0 on a machine without one
    address: str = ""  # the cluster's; empty where Ray is started on this machine alone
    nodes: tuple[Node, ...] = ()  # the cluster's machines, as the plan was made
    confirm: int = 0  # best settings to train again after the search; 0 leaves that out
    confirm_seeds: int = 1
    yardstick: bytes = dataclasses.field(default=b"", repr=False)  # see `Site`

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
        """Epochs at which a trial may end, or go on elsewhere, so that none of them may be missing
        from the storage."""
        return sorted({*self.rungs, *self.scheduler.freezes(self.epochs), self.epochs})

    @property
    def request(self) -> dict[str, float]:
        """What a trial asks of Ray."""
        return {"cpu": 1, "gpu": self.gpus}

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
        return self.scheduler.expected_epochs(self)

    def expected_epochs_in_all(self) -> float:
        """Epochs of the whole search."""
        return self.epochs_in_all or self.num_trials * self.expected_epochs()


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
    search = wanted_search(options, site.device, site.precisions, site.images)
    preset = wanted_preset(options, site.device)
    objectives = parse_objectives(options.objectives)
    # nothing ends a grid, or a Pareto search, early
    usual = "fifo" if search.sampler == "grid" or len(objectives) > 1 else "asha"
    yardstick = site.yardstick
    if options.resume:
        points = saved_points(options, search, site.store)
        check_same_data(site.store, search.base, site.data)
        yardstick = saved_yardstick(site.store, search.base)
    else:
        points = first_points(options, search)
    share = options.share or site.share
    slots, gpus = resources(share, options.max_concurrent, site.cpus, site.gpus)
    plan = Plan(
        search=search,
        sampler=search.sampler,
        scheduler=SCHEDULERS[options.scheduler or usual],
        objectives=objectives,
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
        yardstick=yardstick,
    )
    epochs_in_all = plan.scheduler.epochs_in_all(plan, options.epochs_in_all)
    return dataclasses.replace(plan, epochs_in_all=epochs_in_all)


def wanted_preset(options: Options, device: str) -> Preset:
    """The preset that a person asks for, or the one that suits the device; with its width."""
    preset = PRESETS[options.preset or ("full" if device == "cuda" else "demo")]
    return dataclasses.replace(preset, width=options.width or preset.width)


def wanted_search(
    options: Options, device: str, precisions: tuple[str, ...], images: int = 0
) -> Search:
    """The search that a person asks for, with its sampler and its number of trials: as asked, else
    the whole grid, else the search's own. Where the images of the training split are known, no
    batch is larger.

    Raises:
        ValueError: a combination of options that cannot work.
    """
    assert options.search
    preset = wanted_preset(options, device)
    search = make_search(options.search, preset, precisions, options.settings)
    if images:
        search = search.within(images)
    replicate(search.base, options.replicas)  # refuses seeds that are too large
    sampler = options.sampler or search.sampler
    if not options.sampler and options.scheduler and search.sampler == "tpe":
        sampler = SCHEDULERS[options.scheduler].sampler
    if sampler == "grid":
        search = search.as_grid()
    available = search.settings  # infinite where an axis is continuous
    usual = available if sampler == "grid" else min(search.num_trials, available)
    num_trials = options.num_trials or int(usual)
    if num_trials > available:
        space = "grid" if sampler == "grid" else "space"
        holds = f"{available} setting{'s' * (available > 1)}"
        raise ValueError(f"--num-trials is {num_trials}; the {space} of {search.name} has {holds}")
    epochs, base = search.base.epochs, search.base
    of_classes = [name for name in parse_objectives(options.objectives) if name in CLASS_COLUMNS]
    if of_classes and base.classes < 2:
        raise ValueError(
            f"--objectives has {of_classes[0]}, but {base.dataset} has no classes to speak of"
        )
    if options.confirm and options.confirm > num_trials:
        raise ValueError(
            f"--confirm is {options.confirm}; allowed is up to the {num_trials} trials of the "
            f"search"
        )
    if options.grace_period and options.grace_period > epochs:
        raise ValueError(
            f"--grace-period is {options.grace_period}; allowed is up to the {epochs} epochs of a "
            f"trial"
        )
    if options.points_from and sampler == "grid":
        raise ValueError("--points-from does not go with --sampler grid, whose settings are fixed")
    if options.points_from and not search.axes:
        raise ValueError(
            f"--points-from does not go with --search {search.name}, which varies nothing"
        )
    return dataclasses.replace(search, sampler=sampler, num_trials=num_trials)


def first_points(options: Options, search: Search) -> list[Point]:
    """Settings tried before the sampler proposes any: the whole grid, or the baseline and the best
    of an earlier search."""
    if search.sampler == "grid":
        return search.points()[: search.num_trials]
    if not options.points_from:
        return [search.baseline()]
    earlier = copy_of(options.points_from, purpose="earlier")
    earlier.clear()
    earlier.get(STUDY_FILE)
    count = max(1, search.num_trials // POINTS_SHARE)
    return [search.baseline(), *best_points(earlier.folder, search, count)]


def saved_points(options: Options, search: Search, store: Store) -> list[Point]:
    """The first settings of the search to resume, whose space must be the same."""
    record = read_record(store)
    kept = {name: json_to_distribution(json.dumps(axis)) for name, axis in record["axes"].items()}
    for name in [*kept, *search.axes]:
        was, now = kept.get(name), search.axes.get(name)
        if was != now:
            raise ValueError(
                f"{store.location} cannot go on here: {name} was over {describe_axis(was)}, is "
                f"over {describe_axis(now)} (a device must do all precisions of a search)"
            )
    if search.num_trials < record["num_trials"]:
        raise ValueError(
            f"--num-trials is {search.num_trials}; {store.location} was to have "
            f"{record['num_trials']}, and may only have more"
        )
    ends_by_epochs = SCHEDULERS[record["scheduler"]].freezes(search.base.epochs)
    if ends_by_epochs and search.num_trials > record["num_trials"]:
        raise ValueError(
            f"--num-trials does not go with --resume of {store.location}, which ends by its epochs "
            f"(--scheduler {record['scheduler']}); ask for more --epochs-in-all"
        )
    epochs = record.get("epochs_in_all")
    if epochs and options.epochs_in_all and options.epochs_in_all < epochs:
        raise ValueError(
            f"--epochs-in-all is {options.epochs_in_all}; {store.location} was to train {epochs}, "
            f"and may only train more"
        )
    if search.sampler == "grid":
        return first_points(options, search)
    points: list[Point] = record["points"]
    return points


def resources(
    share: float, max_concurrent: int | None, cpus: int, devices: int
) -> tuple[int, float]:
    """Trials at a time, and the GPU share of each: as many trials as fit, at most `max_concurrent`.

    Without a GPU each trial takes one CPU: two one-thread trials train more images a second than
    one of two threads. `share` is the least share of a GPU; fewer trials than would fit are spread
    over the GPUs (`devices`) and take more each.
    """
    slots = min(cpus, max_concurrent or sys.maxsize)
    if not devices:
        return slots, 0.0
    slots = min(slots, devices * int(1 / share + 1e-9))  # 1 / (1 / 49) is below 49
    # Ray fills one GPU before the next, so each gets as many trials
    return slots, 1 / math.ceil(slots / devices)
