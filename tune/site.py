"""What the machines can do, asked once, where trials run: device, precisions, cost, memory."""

import dataclasses
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch

from dcgan import memory, precision
from dcgan.bench import WARM_UP, ours, seconds, speed
from dcgan.config import TrainConfig, replicate
from dcgan.data import (
    SPLITS,
    check_batch,
    default_data_dir,
    digest_of,
    folder_dataset,
    has_own_yardstick,
    load_split,
)
from dcgan.evaluate import evaluate, load_reference, protocol
from dcgan.models import build
from dcgan.pictures import PREFIX, whole_name
from dcgan.schema import LOCK_FILE, SEARCH_FILE
from dcgan.state import to_device
from dcgan.store import Mirror, Store, search_store
from dcgan.yardstick import own_weights
from tune.cluster import (
    Cluster,
    check_data,
    check_storage,
    check_temporary,
    check_versions,
    result,
)
from tune.options import Options
from tune.plan import Packing, Site, wanted_search
from tune.searches import Search, choices_of

T = TypeVar("T")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SAMPLED_CONFIGS = 4  # of the space, whose epochs are timed
TIMED_BATCH = 64  # images, at most: a large batch would take long on a CPU
GAIN = 1.05  # each doubling of the processes on a GPU must train this many times the images
USABLE = 0.9  # of a GPU's memory; the rest is for what the libraries take late
PROBE_BATCHES, PROBE_SECONDS = 8, 2.0  # trained at a time, and for how long


def settled(options: Options) -> Options:
    """The options with what a person's folder decides, so that it need not be looked into again."""
    if options.dataset is None or not options.dataset.startswith(PREFIX):
        return options
    name = whole_name(options.dataset)
    found = folder_dataset(name, options.data_dir or default_data_dir())
    sizes = {"image_size": found.size, "channels": found.channels, "classes": found.classes}
    added = [f"{key}={value}" for key, value in sizes.items() if key not in options.settings]
    return dataclasses.replace(options, dataset=name, set=(*options.set, *added))


def survey(options: Options) -> Site:
    """Asks the machines for all that a plan depends on, and checks what would make a search fail.

    Raises:
        ValueError: options that cannot work on these machines, or a name that is taken.
        OSError: no cluster, no data, no place for the results, or machines that differ.
        MemoryError: a GPU has no room for a single trial.
    """
    cluster = Cluster(options.address) if options.address else None
    if cluster is None:
        check_temporary()
    else:
        check_versions(cluster)
        if not cluster.check_ready():
            print(
                "waiting for a machine that trials can run on, which the cluster starts now",
                flush=True,
            )
    name = options.resume or options.name or f"{options.search}-{datetime.now():%Y%m%d-%H%M%S}"
    store = search_store(options.storage, name, several=bool(cluster and cluster.several))
    if not options.resume:
        check_free(store)
    data_dir = options.data_dir.expanduser().absolute() if options.data_dir else None
    if cluster:
        site = examine_cluster(options, data_dir, cluster)
    elif torch.cuda.is_available():
        # or this process would keep its part of the GPU as long as the search runs
        site = apart(examine, options, data_dir or default_data_dir())
    else:
        site = examine(options, data_dir or default_data_dir())
    if isinstance(store, Mirror):
        check_storage(store, cluster)
    else:
        check_writable(store)
    return dataclasses.replace(site, store=store)


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in a process of its own, which ends afterwards. Raises what it raises."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def check_free(store: Store) -> None:
    """Refuses a place that holds something.

    What is left of a search that was killed as it began, a folder without a record, is nothing.
    """
    if isinstance(store, Mirror):
        taken = store.has(SEARCH_FILE)
    else:
        files = store.folder.iterdir() if store.folder.exists() else ()
        taken = any(file.name != LOCK_FILE and file.suffix != ".tmp" for file in files)
    if taken:
        raise ValueError(
            f"{store.location} holds a search; go on with it by --resume {store.folder.name}, or "
            f"choose another --name"
        )


def check_writable(store: Store) -> None:
    """Refuses a storage folder that cannot be written."""
    storage = store.folder.parent
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise OSError(
            f"results cannot be written to {storage} ({error.strerror}); choose a folder by "
            f"--storage"
        ) from error


def examine_cluster(options: Options, data_dir: Path | None, cluster: Cluster) -> Site:
    """What a cluster can do: all its CPUs and GPUs, and what one machine where trials run found.

    To measure how many trials share a GPU, that is the machine with the smallest.
    """
    if options.share is None and cluster.gpus:
        cluster.run_on_worker(smallest_gpu_bytes)  # waits until a machine with a GPU has started
        cluster.refresh()
        nodes = [node for node in cluster.nodes if node.gpus]
        calls = [cluster.start(node, smallest_gpu_bytes, gpus=node.gpus) for node in nodes]
        sizes = dict(zip(nodes, map(result, calls), strict=True))
        smallest = min(sizes, key=lambda node: sizes[node])
        site: Site = result(cluster.start(smallest, examine, options, data_dir, gpus=1))
    else:
        site = cluster.run_on_worker(examine, options, data_dir)
    cluster.refresh()
    search = wanted_search(options, site.device, site.precisions, site.images)
    check_data(cluster, search.base.source(data_dir, torch.device("cpu")))
    return dataclasses.replace(
        site,
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        address=cluster.address,
        nodes=tuple(cluster.nodes),
    )


def smallest_gpu_bytes() -> int:
    """Memory of this machine's smallest GPU."""
    devices = range(torch.cuda.device_count())
    return min(torch.cuda.mem_get_info(device)[1] for device in devices)


def examine(options: Options, data_dir: Path | None) -> Site:
    """What this machine can do; called where trials run."""
    device = precision.default_device()
    precisions = precision.usable(device)
    search = wanted_search(options, device.type, precisions)
    source = search.base.source(data_dir, device)
    if reason := precision.unsupported(search.base.precision, device):
        raise ValueError(reason)
    images = len(load_split(source, "train").images)
    largest_batch = largest(search).batch_size
    search = wanted_search(options, device.type, precisions, images)
    check_batch(largest(search).batch_size, source)
    warnings = [precision.absurdly_slow(search.base.precision, device) or ""]
    if largest(search).batch_size < largest_batch:
        warnings.append(f"batches above {images} are left out: no more images are trained on")
    cpus, gpus = usable_cpus(), torch.cuda.device_count() if device.type == "cuda" else 0
    conditions, cost, packing, yardstick = {}, None, None, b""
    if not options.resume:
        conditions = protocol(load_reference(source, "validation"))
        if has_own_yardstick(source.dataset):
            yardstick = own_weights(source)
        if options.estimate:
            cost = seconds_per_epoch(search, options, data_dir, device)
    if options.share is None and gpus:
        lanes = replicate(largest(search), options.replicas)
        packing = measure_packing(lanes, data_dir, device, max(1, cpus // gpus))
    data = ""
    if source.dataset.startswith(PREFIX):
        data = digest_of(*(load_split(source, split).images for split in SPLITS))
    packages = {package: version(package) for package in ("torch", "ray", "optuna")}
    return Site(
        store=Store(Path()),  # the driver's
        device=device.type,
        precisions=precisions,
        cpus=cpus,
        gpus=gpus,
        data_dir=data_dir,
        packing=packing,
        seconds_per_epoch=cost,
        images=images,
        warning="; ".join(filter(None, warnings)),
        protocol=conditions,
        yardstick=yardstick,
        data=data,
        versions={"python": platform.python_version(), **packages},
        platform=platform.platform(),
    )


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota.

    `200000 100000` is a quota of two CPUs; `max` is none.
    """
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    if CPU_QUOTA.is_file():
        quota, *period = CPU_QUOTA.read_text(encoding="utf-8").split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period[0])))
    return cpus


def seconds_per_epoch(
    search: Search, options: Options, data_dir: Path | None, device: torch.device
) -> float:
    """The measured time of an epoch of all replicas, with its evaluation: the mean over a few
    random configs of the space, of which the first is evaluated."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a trial
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=options.seed))
    count = SAMPLED_CONFIGS if search.axes else 1
    configs = [TrainConfig.from_dict(search(study.ask())) for _ in range(count)]
    evaluating = seconds_to_evaluate(configs[0], data_dir, device)
    images = len(load_split(search.base.source(data_dir, device), "train").images)
    training = []
    for config in configs:
        timed = dataclasses.replace(config, batch_size=min(TIMED_BATCH, config.batch_size))
        lanes = replicate(timed, options.replicas)
        training.append(len(lanes) * images / speed(lanes, data_dir, device))
    torch.set_num_threads(threads)
    return evaluating * options.replicas + statistics.fmean(training)


def seconds_to_evaluate(config: TrainConfig, data_dir: Path | None, device: torch.device) -> float:
    """The measured time of evaluating an untrained generator, once libraries are warm."""
    reference = load_reference(config.source(data_dir, device), "validation")
    generator = to_device(build([config])[0], device)
    evaluate(generator, config, reference)
    start = time.perf_counter()
    evaluate(generator, config, reference)  # ends with numbers, for which it waits
    return time.perf_counter() - start


def largest(search: Search) -> TrainConfig:
    """The config of a search that takes the most memory: the largest value of each size."""
    sizes = {}
    for name, axis in search.axes.items():
        values = choices_of(axis) or []
        if values and all(isinstance(value, int) for value in values):
            sizes[name] = max(values)
    return TrainConfig.from_dict(search.complete(search.baseline() | sizes))


def measure_packing(
    lanes: list[TrainConfig], data_dir: Path | None, device: torch.device, cpus: int
) -> Packing:
    """Measures how many of a search's largest trials share a GPU: one alone gives the memory; as
    many as fit, and as `cpus` feed, side by side, show whether they train more images than one.

    Raises:
        MemoryError: not even one trial fits.
    """
    gpu_bytes = torch.cuda.mem_get_info(device)[0]
    speed_alone, trial_bytes = measure(lanes, data_dir, device, 1)
    probed, speed_of_all = max(1, min(cpus, int(USABLE * gpu_bytes / trial_bytes))), speed_alone
    while probed > 1:
        try:
            speed_of_all, _ = measure(lanes, data_dir, device, probed)
            break
        except MemoryError:  # they take more when they run side by side
            probed //= 2
    pays = speed_of_all >= speed_alone * GAIN ** math.log2(probed)
    processes = probed if pays else 1
    return Packing(processes, trial_bytes, gpu_bytes, probed, speed_of_all, speed_alone)


def measure(
    lanes: list[TrainConfig], data_dir: Path | None, device: torch.device, processes: int
) -> tuple[float, int]:
    """Trains a trial's lanes in several processes at the same time, as workers do; they end
    afterwards. Returns the images a second of all, and the memory of one, bytes.

    Raises:
        MemoryError: they do not fit.
    """
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(processes, spawn) as pool:
        barrier = manager.Barrier(processes)
        runs = [pool.submit(probe, lanes, data_dir, device, barrier) for _ in range(processes)]
        errors = [error for run in runs if (error := run.exception())]
        if errors:  # what went wrong comes before the barriers that this broke
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        speeds, sizes = zip(*(run.result() for run in runs), strict=True)
    return sum(speeds), max(sizes)


def probe(
    lanes: list[TrainConfig],
    data_dir: Path | None,
    device: torch.device,
    barrier: threading.Barrier,
) -> tuple[float, int]:
    """Images a second of this process while all of them train, and its memory, bytes."""
    try:
        torch.set_num_threads(1)
        with memory.explained(lanes, device):
            groups = ours(lanes, data_dir, device)
            seconds(groups, WARM_UP, device)
            seconds_to_evaluate(lanes[0], data_dir, device)  # takes memory, too
        barrier.wait()
        batches, taken = 0, 0.0
        while taken < PROBE_SECONDS:
            taken += seconds(groups, PROBE_BATCHES, device)
            batches += PROBE_BATCHES
        barrier.wait()
        return batches * len(lanes) * lanes[0].batch_size / taken, memory.process_bytes(device)
    except BaseException:
        barrier.abort()  # or the others would wait for ever
        raise
