"""How many trials share a GPU: measured with the largest config of a search, not guessed.

Real processes train it side by side, as workers will: 1, 2, 4 and so on, until one more doubling trains hardly more images
a second, or does not fit.
"""

import multiprocessing
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from dcgan import memory
from dcgan.config import TrainConfig
from dcgan.data import load_split, source
from dcgan.evaluate import evaluate, load_reference
from dcgan.loop import make_update, new_states, train_epoch
from tune.cluster import Cluster, Node, result
from tune.searches import Search

GAIN = 1.05  # a doubling must train so many times the images
USABLE = 0.9  # of a device's memory; the rest is for the driver, and for what the libraries take late
WARM_UP, BATCHES, SECONDS = 5, 8, 2.0  # batches before and at a time, and length of a measurement


class Packed(NamedTuple):
    """What so many processes did side by side."""

    processes: int
    images_per_second: float
    """Of all."""
    bytes: int
    """Device memory of one, with its CUDA context."""


def largest(search: Search) -> TrainConfig:
    """The config of a search that takes the most memory: the largest choice of each size, float32, Adam."""
    choices = {name: getattr(axis, "choices", ()) for name, axis in search.axes.items()}
    sizes = {name: max(values) for name, values in choices.items() if values and all(isinstance(v, int) for v in values)}
    return TrainConfig.from_dict(search.complete(search.baseline() | sizes))


def measured_share(search: Search, data_dir: Path | None, device: torch.device, cpus: int) -> float:
    """The share of a GPU for each trial of a search, measured and printed.

    Raises:
        MemoryError: not even one trial fits.
    """
    config, total = largest(search), torch.cuda.mem_get_info(device)[0]
    found = probe(config, data_dir, device, cpus, total)
    speeds = ", ".join(f"{one.processes}: {one.images_per_second:,.0f}" for one in found)
    processes = choose(found)
    print(f"packing  images/s of so many of the largest trials side by side: {speeds}; each takes "
          f"{found[0].bytes / 2**30:.1f} of {total / 2**30:.0f} GiB: {processes} on a GPU")  # fmt: skip
    return 1 / processes


def cluster_share(search: Search, data_dir: Path | None, cluster: Cluster) -> tuple[float, float]:
    """The share of a GPU for each trial on a cluster, and the GPU memory that it asks for besides, GiB; measured on the machine
    whose GPUs are the largest, and printed.

    Raises:
        MemoryError: not even one trial fits.
    """
    nodes = [node for node in cluster.refreshed() if node.gpus]
    calls = {node.name: cluster.call(node, gpu_gib, gpus=node.gpus) for node in nodes}
    sizes = {name: result(call) for name, call in calls.items()}
    node = max(nodes, key=lambda node: sizes[node.name])
    cpus = max(1, int(node.cpus / node.gpus))
    found = result(cluster.call(node, measure_here, largest(search), data_dir, cpus, gpus=1))
    each = found[0].bytes / 2**30
    share, gib = pack(choose(found), each, sizes, nodes)
    asked = f"{share:.3g} of a GPU" + (f" and {gib:.1f} GiB" if gib else "")
    print(f"packing  the largest trial takes {each:.1f} GiB; on a GPU of {sizes[node.name]:.0f} GiB ({node.name}) it pays to "
          f"have {choose(found)} side by side: trials ask for {asked}")  # fmt: skip
    return share, gib


def gpu_gib() -> float:
    """Memory of this machine's smallest GPU, GiB."""
    return min(torch.cuda.mem_get_info(i)[1] for i in range(torch.cuda.device_count())) / 2**30


def measure_here(config: TrainConfig, data_dir: Path | None, cpus: int) -> list[Packed]:
    """`probe` on this machine's GPU."""
    device = torch.device("cuda")
    return probe(config, data_dir, device, cpus, torch.cuda.mem_get_info(device)[0])


def pack(most: int, each: float, sizes: Mapping[str, float], nodes: Sequence[Node]) -> tuple[float, float]:
    """The share of a GPU and the memory, GiB, for which a trial asks.

    Where every machine with GPUs declares their memory, Ray counts it, so that a small GPU gets as many trials as it holds
    and a large one as many as pay. Of a machine with several GPUs Ray knows only the sum, and fills the first GPU first, so
    that there the share has to be right by itself; as it has everywhere if some machine does not declare.

    Args:
        most: trials that pay on the largest GPU.
        each: memory of a trial, GiB.
        sizes: memory of a GPU, GiB, by name of the machine.
        nodes: machines with GPUs.
    """
    holds = {name: max(1, int(USABLE * size / each)) for name, size in sizes.items()}
    declared = all(node.gpu_gib for node in nodes)
    counted = [node.name for node in nodes if node.gpus > 1 or not declared]
    return 1 / min([most, *(holds[name] for name in counted)]), each / USABLE if declared else 0.0


def probe(config: TrainConfig, data_dir: Path | None, device: torch.device, most: int, total_bytes: int) -> list[Packed]:
    """Measures 1, 2, 4 and so on up to `most` processes, as long as it pays and fits.

    Raises:
        MemoryError: not even one fits.
    """
    found = [measure(config, data_dir, device, 1)]
    while (processes := 2 * found[-1].processes) <= most and processes * found[-1].bytes <= USABLE * total_bytes:
        try:
            found.append(measure(config, data_dir, device, processes))
        except MemoryError:
            break
        if found[-1].images_per_second < GAIN * found[-2].images_per_second:
            break
    return found


def choose(found: list[Packed]) -> int:
    """How many processes to run: doubled as long as it paid."""
    best = found[0]
    for one in found[1:]:
        if one.images_per_second >= GAIN * best.images_per_second:
            best = one
    return best.processes


def measure(config: TrainConfig, data_dir: Path | None, device: torch.device, processes: int) -> Packed:
    """Trains the config in so many processes at the same time.

    Raises:
        MemoryError: they do not fit.
    """
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(processes, spawn) as pool:
        barrier = manager.Barrier(processes)
        runs = [pool.submit(worker, config, data_dir, device, barrier) for _ in range(processes)]
        errors = [error for run in runs if (error := run.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error  # the cause, not what it broke
        speeds, sizes = zip(*(run.result() for run in runs), strict=True)
    return Packed(processes, sum(speeds), max(sizes))


def worker(config: TrainConfig, data_dir: Path | None, device: torch.device, barrier: threading.Barrier) -> tuple[float, int]:
    """Images a second of this process while all train, and its memory."""
    try:
        torch.set_num_threads(1)
        data = source(config, data_dir, device)
        images = load_split(data, "train").images
        with memory.explained(config, device):
            states = new_states(config, device)
            trains = [partial(train_epoch, state, update=make_update(state, images)) for state in states]
            for train in trains:
                train(images=images[: WARM_UP * config.batch_size])
            evaluate(states[0].judged()[0], config, load_reference(data, "validation"))  # takes memory, too
        barrier.wait()
        trained, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for train in trains:
                train(images=images[: BATCHES * config.batch_size])
            trained += BATCHES * config.batch_size * config.replicas
        speed = trained / (time.perf_counter() - start)
        barrier.wait()
        return speed, memory.process_bytes(device)
    except BaseException:
        barrier.abort()  # or the others would wait for ever
        raise
