"""What a search is going to do, settled before anything starts: space, rungs, resources, place and cost."""

import dataclasses
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution

from dcgan import precision
from dcgan.cli import duration
from dcgan.config import TrainConfig
from dcgan.data import Source, load_split, source
from dcgan.evaluate import device_name, evaluate, load_reference, protocol
from dcgan.graph import WARM_UP
from dcgan.loop import make_update, new_state, new_states, train_epoch
from dcgan.schema import COLUMNS, METRIC
from tune.cluster import GPU_MEMORY, Node, There, here
from tune.cluster import describe as describe_cluster
from tune.searches import OBJECTIVES, SEARCHES, Point, Search
from tune.storage import LOCK as LOCK
from tune.storage import Store

REDUCTION_FACTOR = 3  # ASHA keeps the best third at each rung (Li et al. 2020, arXiv 1810.05934)
SEARCH_FILE = "search.json"
optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SAMPLERS = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "fifo", "pbt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A search with everything that decides its course."""

    search: Search
    sampler: str
    scheduler: str
    objectives: tuple[str, ...] = (METRIC,)
    """Columns to optimise; the first is the search's metric."""
    points: list[Point]
    """Settings tried before the sampler proposes any."""
    num_trials: int
    grace_period: int
    """Epochs before the first decision of ASHA, or between two of PBT."""
    seed: int
    data_dir: Path | None
    folder: Path
    """Where everything is written: storage path and name, or this machine's copy of that."""
    store: Store = field(default_factory=lambda: Store(Path()), compare=False)
    """The storage that `folder`, or the one above it, is a copy of, if it is one."""
    slots: int
    """Trials that can train at the same time."""
    cpus: int
    """CPU threads of a trial."""
    gpus: float
    """Share of a GPU that a trial asks for; 0 on a machine without one."""
    gpu_gib: float = 0.0
    """GPU memory that a trial asks for besides, where GPUs of several sizes are packed by it, GiB."""
    address: str = ""
    """The cluster's; none where Ray is started on this machine alone."""
    nodes: Sequence[Node] = ()
    """The cluster's machines, as the plan was made."""
    confirm: int
    """Best settings to train again after the search; 0 leaves that out."""
    confirm_seeds: int

    @property
    def epochs(self) -> int:
        return self.search.base.epochs

    @property
    def concurrent(self) -> int:
        """Trials that do train at the same time."""
        return min(self.slots, self.num_trials)

    @property
    def patience(self) -> int:
        """Epochs in a row that a trial may be collapsed and get no better before it is given up."""
        return max(4, -(-self.epochs // 3))

    @property
    def rungs(self) -> list[int]:
        """Epochs at which ASHA decides."""
        if self.scheduler != "asha":
            return []
        rungs = [self.grace_period]
        while rungs[-1] * REDUCTION_FACTOR < self.epochs:
            rungs.append(rungs[-1] * REDUCTION_FACTOR)
        return [rung for rung in rungs if rung < self.epochs]

    @property
    def resume_command(self) -> str:
        """The command that goes on with an interrupted search."""
        storage, _, name = self.location.rpartition("/")
        command = f"python -m tune.run --resume {name} --storage {shlex.quote(storage)}"
        return f"{command} --address {self.address}" if self.address else command

    @property
    def location(self) -> str:
        """Where everything is found: the folder, or its URI."""
        inside = self.folder.relative_to(self.store.folder) if self.store.uri else Path()
        return "/".join([self.store.uri, *inside.parts]) if self.store.uri else str(self.folder)

    @property
    def keep(self) -> list[int]:
        """Epochs at which a trial may end, or be taken over by another, so that none may be missing from the storage."""
        steps = range(self.grace_period, self.epochs, self.grace_period) if self.scheduler == "pbt" else self.rungs
        return [*steps, self.epochs]

    @property
    def request(self) -> dict[str, float]:
        """What a trial asks of Ray."""
        memory = {GPU_MEMORY: self.gpu_gib} if self.gpu_gib else {}
        return {"cpu": self.cpus, "gpu": self.gpus, **memory}

    def trial_folder(self, number: int) -> Path:
        """Where the trial of a number keeps its settings, rows and checkpoint."""
        return self.folder / folder_name(number)

    def expected_epochs(self) -> float:
        """Epochs of a trial on average, if trials came in no order: the i-th at a rung is among the best third of those
        before it with probability 1/i for the first few, and 1/3 after."""
        arrivals, epochs, before = float(self.num_trials), 0.0, 0
        for rung in [*self.rungs, self.epochs]:
            epochs += arrivals * (rung - before)
            before = rung
            arrivals = sum(1 / min(i, REDUCTION_FACTOR) for i in range(1, round(arrivals) + 1))
        return epochs / self.num_trials


def folder_name(number: int) -> str:
    """The folder of the trial of a number, which is its name in Ray, too."""
    return f"trial_{number:04d}"


def default_grace_period(epochs: int) -> int:
    """A sixth of the epochs: from there on trials rank much as they do at the end (analysis.rungs, docs/log.md)."""
    return max(1, round(epochs / 6))


def resources(gpus_per_trial: float, max_concurrent: int | None, room: tuple[int, int] | None = None) -> tuple[int, int, float]:
    """Slots, CPUs and GPU share of a trial: as many trials at once as fit.

    `gpus_per_trial` is the least share; with fewer trials than would fit they are spread over GPUs and take more each.
    Without a GPU each trial takes one CPU: two one-thread trials train more images a second than one of two threads.
    `room`: CPUs and GPUs of a cluster; None takes this machine's.
    """
    cpus, devices = room or (usable_cpus(), torch.cuda.device_count() if torch.cuda.is_available() else 0)
    slots, gpus = min(cpus, max_concurrent or sys.maxsize), 0.0
    if devices:
        slots = min(slots, devices * int(1 / gpus_per_trial))
        gpus = 1 / math.ceil(slots / devices)  # Ray fills one GPU before the next; so each has as many trials
    return slots, 1, gpus


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota ("200000 100000" is two CPUs; "max" is none)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_QUOTA.is_file() and (quota := CPU_QUOTA.read_text().split())[0] != "max":
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def preflight(plan: Plan, device: torch.device, there: There = here) -> None:
    """Finds, before any trial starts, what would make every one fail.

    Raises:
        ValueError: precision or batch size cannot work.
        OSError: the data cannot be had, or the results cannot be written.
    """
    there(check_trials, plan, device)
    check_writable(plan)


def check_trials(plan: Plan, device: torch.device) -> None:
    """The part of `preflight` that is for a machine where trials run."""
    base = plan.search.base
    if reason := precision.unsupported(base.precision, device):
        raise ValueError(reason)
    images = load_split(source(base, plan.data_dir, device), "train").images
    largest = max([base.batch_size, *_choices(plan.search.axes.get("batch_size"))])
    if largest > len(images):
        raise ValueError(f"batch_size is {largest}; the training split of {base.dataset} holds {len(images)} images")


def check_writable(plan: Plan) -> None:
    """The part of `preflight` that is for the machine of the driver."""
    try:
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=plan.folder.parent).close()
    except OSError as error:
        storage = plan.folder.parent
        raise OSError(f"results cannot be written to {storage} ({error.strerror}); choose a folder by --storage") from error


def _choices(distribution: BaseDistribution | None) -> list[Any]:
    return list(getattr(distribution, "choices", []))


def seconds_per_epoch(plan: Plan, device: torch.device, samples: int = 4) -> float:
    """Measured time of one epoch of all replicas, with its evaluation, mean over a few random configs of the space.

    The first is evaluated once; each trains a few small batches, after some to warm up.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(plan.cpus)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.seed))
    configs = [TrainConfig.from_dict(plan.search(study.ask())) for _ in range(samples if plan.search.axes else 1)]
    reference = load_reference(source(configs[0], plan.data_dir, device), "validation")
    (generator,) = new_state(dataclasses.replace(configs[0], replicas=1), device).judged()
    start = time.perf_counter()
    evaluate(generator, configs[0], reference)
    evaluated = time.perf_counter() - start
    trained = [_one_epoch(config, source(config, plan.data_dir, device)) for config in configs]
    torch.set_num_threads(threads_before)
    return evaluated * plan.search.base.replicas + sum(trained) / len(trained)


def _one_epoch(config: TrainConfig, data: Source) -> float:
    small = dataclasses.replace(config, batch_size=min(64, config.batch_size))
    images = load_split(data, "train").images
    states = new_states(small, data.device)
    updates = [make_update(state, images) for state in states]

    def train(batches: int) -> None:
        for state, update in zip(states, updates, strict=True):
            train_epoch(state, images[: batches * small.batch_size], update)

    warm, timed = (2 * WARM_UP, 50) if images.is_cuda else (1, 2)  # batches: a GPU captures its graph first
    train(warm)
    start = time.perf_counter()
    train(timed)
    return (time.perf_counter() - start) * len(images) / (timed * small.batch_size)


def describe(plan: Plan, chosen: str, cost: float | None) -> str:
    """The plan as a person reads it. `cost` is `seconds_per_epoch`; None leaves it out."""
    search, base = plan.search, plan.search.base
    doc = " ".join((SEARCHES[search.name].__doc__ or "").split())
    epochs = plan.num_trials * plan.expected_epochs()
    seconds = epochs * (cost or 0) / plan.concurrent
    gpus = f" and {plan.gpus:.3g} GPU" if plan.gpus else ""
    gpus += f" with {plan.gpu_gib:.1f} GiB" if plan.gpu_gib else ""
    seeds = f", each on {base.replicas} seeds" if base.replicas > 1 else ""
    first = "the report's grid" if plan.sampler == "grid" else f"{plan.sampler}, the first at the baseline"
    first += f", then {len(plan.points) - 1} of an earlier search" if plan.sampler != "grid" and plan.points[1:] else ""
    space = [f"{name:<18} {text}" for name, text in describe_axes(plan).items()]
    space += [f"{name:<18} follows {followed}" for name, followed in search.ties.items()]
    metric = f"{search.metric} on validation: {COLUMNS[search.metric]}"
    lines = [
        ("search", f"{search.name}: {doc}"),
        ("preset", chosen),
        ("cluster", describe_cluster(plan.nodes) if plan.nodes else ""),
        ("data", f"{base.dataset}, {base.image_size} × {base.image_size}, width {base.generator_width}, {plan.epochs} epochs"),
        *(("space" if i == 0 else "", line) for i, line in enumerate(space or ["a single setting"])),
        (
            "trials",
            f"{plan.num_trials} by {first}; seed {plan.seed}{seeds}; {plan.concurrent} at a time, {plan.cpus} CPU{gpus} each",
        ),
        ("rungs", describe_scheduler(plan)),
        ("metric", metric if len(plan.objectives) == 1 else f"Pareto set of {', '.join(plan.objectives)}, on validation"),
        (
            "cost",
            f"about {epochs:.0f} epochs at {cost:.1f} s: about {duration(seconds)}" if cost else "",
        ),
        ("confirm", describe_confirm(plan, cost) if plan.confirm else ""),
        ("results", plan.location),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in lines if text)


def describe_confirm(plan: Plan, cost: float | None) -> str:
    """The confirm stage as a person reads it."""
    text = f"the best {plan.confirm} and the baseline on {plan.confirm_seeds} fresh seeds, judged on test"
    runs = (plan.confirm + 1) * plan.confirm_seeds
    seconds = runs * plan.epochs * (cost or 0) / plan.search.base.replicas / min(plan.slots, runs)
    return text + (f": about {duration(seconds)} more" if cost else "")


def describe_scheduler(plan: Plan) -> str:
    """What may end a trial early, or change it, as a person reads it."""
    if plan.scheduler == "pbt":
        return f"every {plan.grace_period} epochs the worst quarter takes over from the best, at other learning rates (PBT)"
    if plan.rungs:
        return f"the best third goes on after epoch {', '.join(map(str, plan.rungs))} (ASHA)"
    return "none: every trial trains all epochs"


def describe_axes(plan: Plan) -> dict[str, str]:
    """What is tried of each varied setting, as a person reads it."""
    if plan.sampler == "grid":
        return {name: ", ".join(map(str, values)) for name, values in plan.search.grid.items()}
    return {name: describe_axis(axis) for name, axis in plan.search.axes.items()}


def describe_axis(distribution: BaseDistribution) -> str:
    """A distribution as a person reads it: `5e-05 to 0.005, log-uniform` or `64, 128, 256`."""
    if isinstance(distribution, FloatDistribution):
        return f"{distribution.low:g} to {distribution.high:g}, {'log-' if distribution.log else ''}uniform"
    return ", ".join(map(str, _choices(distribution)))


def record(plan: Plan, arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What belongs beside the results: search, space, rungs, protocol, conditions, and the arguments to go on with."""
    search, base = plan.search, plan.search.base
    reference = load_reference(source(base, plan.data_dir, device), "validation")
    return {
        "search": search.name,
        "axes": describe_axes(plan),
        "ties": dict(search.ties),
        "base": base.to_dict(),
        "metric": search.metric,
        "mode": search.mode,
        "objectives": [{"column": name, "mode": OBJECTIVES[name]} for name in plan.objectives],
        "sampler": plan.sampler,
        "scheduler": plan.scheduler,
        "points": plan.points,
        "num_trials": plan.num_trials,
        "rungs": plan.rungs,
        "seed": plan.seed,
        "slots": plan.slots,
        "protocol": protocol(reference),
        "device": device_name(device),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "ray", "optuna")},
        "arguments": arguments,
    }
