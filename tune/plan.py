"""What a search is going to do, settled before anything starts: space, rungs, resources, place and cost."""

import dataclasses
import os
import platform
import tempfile
import time
from dataclasses import dataclass
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
from dcgan.loop import new_state, train_epoch
from dcgan.schema import COLUMNS
from tune.searches import SEARCHES, Point, Search

REDUCTION_FACTOR = 3  # ASHA keeps the best third at each rung (Li et al. 2020, arXiv 1810.05934)
optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SAMPLERS = ("tpe", "random", "grid")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A search with everything that decides its course."""

    search: Search
    sampler: str
    num_trials: int
    seed: int
    data_dir: Path | None
    folder: Path
    """Where everything is written: storage path and name."""
    slots: int
    """Trials that train at the same time."""
    cpus: int
    """CPU threads of a trial."""
    gpus: float
    """Share of a GPU that a trial asks for; 0 on a machine without one."""

    @property
    def epochs(self) -> int:
        return self.search.base.epochs

    @property
    def grace_period(self) -> int:
        """Epochs before the first decision. At a tenth of the budget most GANs still draw noise, which ranks nothing."""
        return max(1, self.epochs // 4)

    @property
    def rungs(self) -> list[int]:
        """Epochs at which ASHA decides; none for a grid, which is there to be compared as a whole."""
        if self.sampler == "grid":
            return []
        rungs = [self.grace_period]
        while rungs[-1] * REDUCTION_FACTOR < self.epochs:
            rungs.append(rungs[-1] * REDUCTION_FACTOR)
        return [rung for rung in rungs if rung < self.epochs]

    @property
    def first_points(self) -> list[Point]:
        """Points tried before the sampler proposes any: the whole grid, or the baseline."""
        return self.search.grid_points() if self.sampler == "grid" else [self.search.baseline()]

    def expected_epochs(self) -> float:
        """Epochs of a trial on average, if trials came in no order: the i-th at a rung is among the best third of those
        before it with probability 1/i for the first few, and 1/3 after."""
        arrivals, epochs, before = float(self.num_trials), 0.0, 0
        for rung in [*self.rungs, self.epochs]:
            epochs += arrivals * (rung - before)
            before = rung
            arrivals = sum(1 / min(i, REDUCTION_FACTOR) for i in range(1, round(arrivals) + 1))
        return epochs / self.num_trials


def resources(gpus_per_trial: float, max_concurrent: int | None) -> tuple[int, int, float]:
    """Slots, CPUs and GPU share of a trial: as many trials at once as fit on this machine.

    Without a GPU each trial takes one CPU: two one-thread trials train more images a second than one of two threads.
    """
    slots, gpus = usable_cpus(), 0.0
    if torch.cuda.is_available():
        slots, gpus = min(slots, torch.cuda.device_count() * int(1 / gpus_per_trial)), gpus_per_trial
    return min(slots, max_concurrent or slots), 1, gpus


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota ("200000 100000" is two CPUs; "max" is none)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_QUOTA.is_file() and (quota := CPU_QUOTA.read_text().split())[0] != "max":
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def make_sampler(plan: Plan) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for what comes after the first points."""
    if plan.sampler == "tpe":
        startup = min(10, max(1, plan.num_trials // 3))  # random trials first; Optuna's 10 would leave few for a demo
        return optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=startup)
    return optuna.samplers.RandomSampler(seed=plan.seed)


def preflight(plan: Plan, device: torch.device) -> None:
    """Finds, before Ray starts, what would make every trial fail.

    Raises:
        ValueError: precision or batch size cannot work.
        OSError: the data cannot be had, or the results cannot be written.
    """
    base = plan.search.base
    if reason := precision.unsupported(base.precision, device):
        raise ValueError(reason)
    images = load_split(source(base, plan.data_dir, device), "train").images
    largest = max([base.batch_size, *_choices(plan.search.axes.get("batch_size"))])
    if largest > len(images):
        raise ValueError(f"batch_size is {largest}; the training split of {base.dataset} holds {len(images)} images")
    try:
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=plan.folder.parent).close()
    except OSError as error:
        storage = plan.folder.parent
        raise OSError(f"results cannot be written to {storage} ({error.strerror}); choose a folder by --storage") from error


def _choices(distribution: BaseDistribution | None) -> list[Any]:
    return list(getattr(distribution, "choices", []))


def seconds_per_epoch(plan: Plan, device: torch.device, samples: int = 4) -> float:
    """Measured time of one epoch with its evaluation on this machine, mean over a few random configs of the space.

    Each is evaluated once and trains two small batches, after one to warm up.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(plan.cpus)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.seed))
    configs = [TrainConfig.from_dict(plan.search(study.ask())) for _ in range(samples if plan.search.axes else 1)]
    seconds = [_one_epoch(config, source(config, plan.data_dir, device)) for config in configs]
    torch.set_num_threads(threads_before)
    return sum(seconds) / len(seconds)


def _one_epoch(config: TrainConfig, data: Source) -> float:
    small = dataclasses.replace(config, batch_size=min(64, config.batch_size))
    images, reference = load_split(data, "train").images, load_reference(data, "validation")
    state = new_state(small, data.device)
    start = time.perf_counter()
    evaluate(state.generator, small, reference)  # before training, which may diverge
    evaluated = time.perf_counter() - start
    train_epoch(state, small, images[: small.batch_size])
    start = time.perf_counter()
    train_epoch(state, small, images[: 2 * small.batch_size])
    return evaluated + (time.perf_counter() - start) * len(images) / (2 * small.batch_size)


def describe(plan: Plan, chosen: str, cost: float) -> str:
    """The plan as a person reads it. `cost` is `seconds_per_epoch`."""
    search, base = plan.search, plan.search.base
    doc = " ".join((SEARCHES[search.name].__doc__ or "").split())
    epochs = plan.num_trials * plan.expected_epochs()
    gpus = f" and {plan.gpus:g} GPU" if plan.gpus else ""
    rungs = ", ".join(map(str, plan.rungs))
    first = "the report's grid" if plan.sampler == "grid" else f"{plan.sampler}, the first at the baseline"
    space = [f"{name:<18} {describe_axis(axis)}" for name, axis in search.axes.items()]
    if plan.sampler == "grid":
        space = [f"{name:<18} {', '.join(map(str, values))}" for name, values in search.grid.items()]
    space += [f"{name:<18} follows {followed}" for name, followed in search.ties.items()]
    lines = [
        ("search", f"{search.name}: {doc}"),
        ("preset", chosen),
        ("data", f"{base.dataset}, {base.image_size} × {base.image_size}, width {base.generator_width}, {plan.epochs} epochs"),
        *(("space" if i == 0 else "", line) for i, line in enumerate(space or ["a single setting"])),
        ("trials", f"{plan.num_trials} by {first}; seed {plan.seed}; {plan.slots} at a time with {plan.cpus} CPU{gpus} each"),
        ("rungs", f"the best third goes on after epoch {rungs} (ASHA)" if rungs else "none: every trial trains all epochs"),
        ("metric", f"{search.metric} on validation: {COLUMNS[search.metric]}"),
        ("cost", f"about {epochs:.0f} epochs at {cost:.1f} s: about {duration(epochs * cost / plan.slots)}"),
        ("results", str(plan.folder)),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in lines)


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
        "axes": {name: describe_axis(axis) for name, axis in search.axes.items()},
        "ties": dict(search.ties),
        "base": base.to_dict(),
        "metric": search.metric,
        "mode": search.mode,
        "sampler": plan.sampler,
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
