"""What may not happen on CUDA: `checks.py NAME`, in a process on the fake runtime.

Each check prints what it found and raises AssertionError at a fault. Values are garbage.
"""

import dataclasses
import gc
import itertools
import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import log  # noqa: E402 - first of all that imports torch
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dcgan import evaluate, memory, metrics, precision  # noqa: E402
from dcgan.config import TrainConfig, replicate  # noqa: E402
from dcgan.data import Source, load_split  # noqa: E402
from dcgan.graph import WARM_UP, Graphed  # noqa: E402
from dcgan.loop import grouped, make_update, scored, train, train_epoch  # noqa: E402
from dcgan.state import new_states  # noqa: E402
from dcgan.ways import WAYS  # noqa: E402

D = torch.device("cuda", 0)
BASE = TrainConfig(dataset="mnist-mini")
BATCHES = 8
OBJECTIVES: list[dict[str, Any]] = [
    {"loss": "relativistic", "penalty": 1.0, "discriminator_norm": "none"},
    {"loss": "hinge", "discriminator_norm": "spectral", "augment": "translation"},
    {"loss": "least-squares", "penalty": 0.1},
    {"label_smoothing": 0.1},
    {"conditional": "concat"},
    {"conditional": "projection", "loss": "relativistic"},
]
FORBIDDEN = ("UNSAFE", "LEAK", "SUSPECT", "INVALID")
"""Of an entry: what a capture does not allow, or would not see."""
KERNELS = ("C kernel", "C lib c", "C memset", "C memcpy")
NODES = json.loads((HERE / "nodes.json").read_text())
"""Of a captured update, by name of the cell: as recorded, and not to be exceeded."""


def images_of(config: TrainConfig) -> torch.Tensor:
    source = Source("mnist-mini", config.image_size, config.channels, device=D)
    return load_split(source, "train").images[: config.batch_size * BATCHES]


def believe() -> None:
    """Makes evaluation accept garbage."""
    torch.Tensor.isfinite = lambda self: torch.ones(2, dtype=torch.bool)  # type: ignore[method-assign]
    evaluate.metrics.frechet_distance = lambda a, b: 1.0
    evaluate.mean_energy = lambda images: 1.0
    metrics.class_shares = lambda probabilities: torch.full((10,), 0.1, dtype=torch.float64)


def faults() -> dict[str, int]:
    return {what: n for what, n in log.counts().items() if any(f in what for f in FORBIDDEN)}


def cells() -> Iterator[dict[str, Any]]:
    """Settings of an update, `lanes`, and `way`, if not the device's own."""
    names = ("precision", "optimizer", "ema_decay", "lanes")
    kinds = (precision.PRECISIONS, ("adam", "rmsprop"), (0.0, 0.9), (1, 4))
    for values in itertools.product(*kinds):
        yield dict(zip(names, values, strict=True))
    for name, lanes, way in itertools.product(precision.PRECISIONS, (1, 4), WAYS):
        if not WAYS[way].apart and (lanes > 1 or way != "grouped"):  # those are above
            yield {"precision": name, "lanes": lanes, "way": way}
    for depth, extra, lanes, name in itertools.product(
        (1, 2, 3), (0, 2), (1, 3), ("float32", "bfloat16")
    ):
        depths = {"generator_depth": depth, "discriminator_depth": depth, "extra_convs": extra}
        yield depths | {"lanes": lanes, "precision": name}
    for objective, lanes, name in itertools.product(OBJECTIVES, (1, 4), ("float32", "bfloat16")):
        yield objective | {"lanes": lanes, "precision": name}
    yield {"loss": "hinge", "discriminator_norm": "spectral", "precision": "float16"}
    for lanes in (1, 4):
        yield {"snapshots_every": 1, "lanes": lanes}
    yield {"snapshots_every": 1, "ema_decay": 0.9, "precision": "float16", "lanes": 2}
    yield {"image_size": 32, "channels": 3}
    yield {"generator_depth": 1, "discriminator_depth": 3}
    yield {"latent_size": 1, "generator_width": 1, "discriminator_width": 1, "lanes": 2}


def lanes_of(lanes: int = 1, **settings: Any) -> list[TrainConfig]:
    """As many lanes of these settings."""
    return replicate(dataclasses.replace(BASE, **settings), lanes)


def captures() -> None:
    """Every update is captured legally, waits for nothing, and computes in its precision."""
    for cell in cells():
        own = dict(cell)
        way = own.pop("way", None)
        lanes = lanes_of(**own)
        config = lanes[0]
        precision.set_up(config.precision, D)
        images = images_of(config)
        states = new_states(lanes, D, way)
        (group,) = grouped(states)
        labels = torch.zeros(len(images), dtype=torch.int64, device=D)
        update = make_update(group, images, labels)
        log.reset()
        train_epoch(group, images, update)
        found = log.counts()
        assert not faults(), (cell, faults())
        captured = isinstance(update, Graphed)
        assert captured == ((config.precision, config.optimizer) != ("float16", "rmsprop")), cell
        if not captured:
            continue
        waits = sum(n for what, n in found.items() if what.startswith("- SYNC stream"))
        assert waits == len(states), (cell, f"{waits} waits: one reads each network's means")
        assert found["- graphLaunch "] == BATCHES - WARM_UP, cell
        switches = {what.split("allow_tf32=")[1] for what in found if "allow_tf32" in what}
        modes = {what.split("math_mode ")[1] for what in found if "math_mode" in what}
        assert switches == {str(config.precision == "tf32")}, (cell, switches)
        assert ("3" in modes) == (config.precision == "tf32"), (cell, modes)
        nodes = sum(n for what, n in found.items() if what.startswith(KERNELS))
        name = " ".join(f"{k}={v}" for k, v in cell.items())
        print(f"{nodes:>5} nodes  {name}", flush=True)
        assert nodes <= NODES.get(name, nodes), (cell, nodes, NODES[name])


def resumed() -> None:
    """A run goes on from its checkpoint, captured as legally as before."""
    believe()
    cells = [
        {"ema_decay": 0.9},
        {"optimizer": "rmsprop", "lanes": 3},
        {"snapshots_every": 1, "lanes": 2},
        {"precision": "bfloat16", "ema_decay": 0.9, "lanes": 2},
        {"precision": "float16"},
    ]
    for cell in cells:
        lanes = lanes_of(batch_size=512, **cell)
        shorter = [dataclasses.replace(lane, epochs=1) for lane in lanes]
        longer = [dataclasses.replace(lane, epochs=2) for lane in lanes]
        with tempfile.TemporaryDirectory() as folder:
            train(shorter, report=lambda row: None, checkpoint_dir=folder, device=D)
            log.reset()
            rows = train(
                longer, report=lambda row: None, checkpoint_dir=folder, resume_from=folder, device=D
            )
        assert [row["epoch"] for row in rows] == [1] * len(lanes) + [2] * len(lanes), cell
        assert not faults(), (cell, faults())


def many_trials() -> None:
    """Equal trials in one process, as a reused worker has them, take the same memory, and the
    allocator keeps not much more than they use."""
    images, peaks, reserved = images_of(BASE), [], []
    for seed in range(6):
        memory.release(D)
        memory.reset_peak(D)
        (state,) = new_states([dataclasses.replace(BASE, seed=seed)], D)
        update = make_update([state], images)
        train_epoch([state], images, update)
        peaks.append(memory.peak_bytes(D) >> 20)
        reserved.append(
            (torch.cuda.max_memory_reserved() >> 20, torch.cuda.memory_reserved() >> 20)
        )
        del state, update
        gc.collect()
    memory.release(D)
    memory.reset_peak(D)
    group = new_states(lanes_of(lanes=4), D, "branches")
    train_epoch(group, images, make_update(group, images))
    lanes = memory.peak_bytes(D) >> 20
    print(f"of four lanes {lanes} MB")
    assert lanes < 4.4 * peaks[0], (lanes, peaks)
    print(f"peaks {peaks} MB; reserved at most, and at the end {reserved} MB")
    assert peaks[-1] < 1.1 * peaks[0], peaks
    assert reserved[0][0] < 1.3 * reserved[0][1], reserved
    assert reserved[-1][0] < 1.1 * reserved[0][0], reserved


def evaluation() -> None:
    """Evaluating takes at most 400 MB of 10,000 images, and compiles nothing: PyTorch has no kernel
    for a complex number's absolute value until it is asked for one."""
    believe()
    features = torch.zeros(10_000, 128, device=D)
    images = torch.zeros(10_000, 1, 28, 28, dtype=torch.uint8, device=D)
    torch.cuda.empty_cache()
    memory.reset_peak(D)
    before = torch.cuda.memory_allocated()
    radii = metrics.neighbour_radii(features)
    metrics.manifold(features, features, radii, radii)
    metrics.within_kernel_mean(features)
    with NoComplexAbs():
        metrics.high_frequency_energy(images.float())
    peak = (memory.peak_bytes(D) - before) >> 20
    print(f"{peak} MB")
    assert peak < 400


class NoComplexAbs(TorchDispatchMode):
    """Refuses the absolute value of complex numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not (func is torch.ops.aten.abs.default and args[0].is_complex())
        return func(*args, **(kwargs or {}))


def lanes_evaluated() -> None:
    """Eight lanes are evaluated as they train: no weights are copied to the device for it."""
    believe()
    lanes = lanes_of(lanes=8, generator_width=8, discriminator_width=8)
    source = BASE.source(None, D)
    reference = evaluate.load_reference(source, "validation")
    for way in ("grouped", "branches"):
        states = new_states(lanes, D, way)
        for _ in range(2):  # the first fills the caches of noise
            log.reset()
            means: list[Any] = [{}] * (8 // len(states))
            rows = [row for s in states for row in scored(s, means, reference, 1, named=True)]
        assert len(rows) == 8
        check_few_copies()


def check_few_copies() -> None:
    """Only what all lanes are evaluated with may be copied to the device."""
    copies = {what: n for what, n in log.counts().items() if "Hpageable2D" in what}
    assert sum(copies.values()) < 8, copies


def packing() -> None:
    """What is measured to share a GPU computes as what will run."""
    from tune import site

    torch.backends.cudnn.allow_tf32 = True  # as a new process has it
    site.PROBE_SECONDS = 0.05
    believe()
    log.reset()
    site.probe([BASE], None, D, threading.Barrier(1))
    captured = {
        what.split("allow_tf32=")[1]
        for what in log.counts()
        if what.startswith("C ") and "allow_tf32" in what
    }
    assert captured == {"False"}, captured


def driver() -> None:
    """What the driver asks a GPU takes nothing of it afterwards: it has no context."""
    from tune import site

    assert torch.cuda.is_available()
    name = site.apart(torch.cuda.get_device_name)
    assert name == "Fake H100", name
    assert not torch.cuda.is_initialized()


def out_of_memory() -> None:
    """Wherever memory ends, it is said, and nothing is left half captured."""
    believe()
    total = torch.cuda.get_device_properties(0).total_memory
    widths = {"generator_width": 256, "discriminator_width": 256}
    big = dataclasses.replace(BASE, epochs=1, batch_size=256, **widths)
    for megabytes in (10, 60, 150, 300, 450):
        load_split.cache_clear()
        evaluate.load_reference.cache_clear()
        memory.release(D)
        torch.cuda.set_per_process_memory_fraction(megabytes * 2**20 / total)
        try:
            train([big], report=lambda row: None, device=D)
        except MemoryError as error:
            print(megabytes, error)
        else:
            raise AssertionError(f"{megabytes} MB were enough")
        assert not torch.cuda.is_current_stream_capturing()


if __name__ == "__main__":
    warnings.simplefilter("error")
    ours = ("Please use the new API settings to control TF32",)
    for harmless in (*ours, r"cov\(\)", "Synchronization debug", "Triton"):
        warnings.filterwarnings("ignore", harmless)
    globals()[sys.argv[1]]()
    sys.stdout.flush()
    os._exit(0)  # the fake libraries have no way to be unloaded
