"""`python -m dcgan.bench`: this package's training loop against the plain one of `dcgan.plain`.

Both train the same nets with batches of the same size. Ours trains lanes side by side, and its
images are those of all of them. The loops run in one process, a chunk of each in turn, so that
whatever else the machine does hits both alike.
"""

import argparse
import dataclasses
import datetime
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dcgan import cli, graph, memory, precision
from dcgan.augment import noise_size
from dcgan.config import TrainConfig, replicate
from dcgan.data import DATASETS, check_batch, load_split
from dcgan.evaluate import device_name
from dcgan.files import write_json
from dcgan.loop import draw_batches, grouped, make_update, update_both
from dcgan.plain import plain
from dcgan.settings import check_choice, check_settings, field_docs, flag_name, setting
from dcgan.state import State, new_states
from dcgan.ways import WAYS, default_way

WARM_UP = 5  # batches: library set-up, and the capture of a CUDA graph
LISTS = {"precisions": str, "widths": int, "batches": int, "replicas": int, "ways": str}
"""Options that take several values, and the type of each value."""
HEADINGS = (
    f"{'precision':<10}{'width':>5}{'batch':>6}{'R':>4} {'way':<13}"
    f"{'images/s, ours':>34}{'plain':>11}"
    f"{'ratio':>25}{'floor':>7}"
)

Numbers = dict[str, Any]
Updates = Iterator[Any]
"""A loop: each step trains a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What is timed, and for how long."""

    precisions: tuple[str, ...] = ()
    """Precisions to time (default: all that the device does at a sensible speed)."""
    widths: tuple[int, ...] = (32, 64)
    """Channels of both nets (default: 32 64)."""
    batches: tuple[int, ...] = (64, 128)
    """Images a batch (default: 64 128)."""
    replicas: tuple[int, ...] = (1, 4, 8, 16)
    """Lanes that train side by side (default: 1 4 8 16)."""
    ways: tuple[str, ...] = ()
    """Ways that lanes run, of `dcgan.ways` (default: the device's own)."""
    repeats: int = setting(5, least=1)
    """Chunks of each loop."""
    seconds: float = 1.0
    """Length of a chunk, seconds."""
    threads: int | None = setting(None, least=1)
    """CPU threads of both loops (default: PyTorch's)."""
    dataset: str = setting("mnist-mini", choices=DATASETS)
    """Data set."""
    json: Path | None = None
    """File to write the numbers to, besides printing them."""
    data_dir: Path | None = None
    """Folder above MNIST/raw (default: $DCGAN_DATA_DIR or ~/.cache/dcgan)."""
    qualify: bool = False
    """Answer what one asks of a new GPU, most important first (see `dcgan.qualify`); the same
    command goes on where it ended."""
    out: Path | None = None
    """Folder of the answers of `--qualify`, kept one by one."""
    minutes: float = 8.0
    """Time after which `--qualify` begins no further answer, minutes."""

    def __post_init__(self) -> None:
        check_settings(self, flag_name)
        for name in ("seconds", "minutes"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"--{name} is {value}; allowed is a finite number above 0")
        for way in self.ways:
            check_choice("--ways", way, WAYS)
        if self.qualify != bool(self.out):
            raise ValueError("--qualify and --out go together; give both or neither")

    def configs(self, device: torch.device) -> list[TrainConfig]:
        """A config for each precision, width and batch size."""
        precisions = self.precisions or precision.usable(device)
        return [
            TrainConfig(
                dataset=self.dataset,
                precision=name,
                generator_width=width,
                discriminator_width=width,
                batch_size=batch,
            )
            for name, width, batch in itertools.product(precisions, self.widths, self.batches)
        ]


def ours(
    lanes: Sequence[TrainConfig],
    data_dir: Path | None,
    device: torch.device,
    way: str | None = None,
) -> list[Updates]:
    """The loops of `dcgan.loop`, without evaluation: one for each group of networks that the lanes
    make, by a way of `WAYS`."""
    precision.switch(lanes[0].precision)
    images, labels = load_split(lanes[0].source(data_dir, device), "train")  # (all, C, S, S)

    def epoch_after_epoch(group: Sequence[State]) -> Updates:
        update = make_update(group, images, labels)
        while True:
            for index, noise in draw_batches(group, images):
                update(index, noise)
                yield

    return [epoch_after_epoch(group) for group in grouped(new_states(lanes, device, way))]


def seconds(groups: Sequence[Updates], batches: int, device: torch.device) -> float:
    """The time that the next `batches` updates of each group take, one group after another."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize(device)
    start = time.perf_counter()
    for updates in groups:
        for _ in itertools.islice(updates, batches):
            pass
    synchronize(device)
    return time.perf_counter() - start


def speed(lanes: Sequence[TrainConfig], data_dir: Path | None, device: torch.device) -> float:
    """Images a second, of all lanes, in a few updates after some to warm up."""
    warm_up, batches = (2 * graph.WARM_UP, 50) if device.type == "cuda" else (1, 2)
    groups = ours(lanes, data_dir, device)
    seconds(groups, warm_up, device)
    return len(lanes) * batches * lanes[0].batch_size / seconds(groups, batches, device)


def count_operations(config: TrainConfig) -> int:
    """Additions and multiplications of one lane's convolutions and linear layers in an update."""
    (state,) = new_states([dataclasses.replace(config, precision="float32")], torch.device("cpu"))
    N, S = config.batch_size, config.image_size
    images = torch.zeros(N, config.channels, S, S, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        numbers = torch.zeros(N, noise_size(config.augment, config.latent_size))
        labels = torch.zeros(N, dtype=torch.int64)
        update_both(state, images, torch.arange(N)[:, None], numbers, labels)
    operations: int = counter.get_total_flops()
    return operations


def matmul_rate(name: str, device: torch.device) -> float:
    """Additions and multiplications a second of a large matrix product, the fastest of ten."""
    precision.set_up(name, device)
    side = 8192 if device.type == "cuda" else 1024
    dtype = precision.AUTOCAST_DTYPES.get(name, torch.float32)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    products = (torch.mm(a, b) for _ in itertools.count())
    return 2 * side**3 / min(seconds([products], 1, device) for _ in range(10))


def chunk_length(groups: Sequence[Updates], wanted: float, device: torch.device) -> int:
    """The number of batches that take a loop, which this warms up, about the wanted seconds."""
    seconds(groups, WARM_UP, device)
    return max(1, round(WARM_UP * wanted / seconds(groups, WARM_UP, device)))


def time_loops(config: TrainConfig, options: BenchOptions, device: torch.device) -> list[Numbers]:
    """Times the plain loop and ours at each number of lanes and way, a chunk in turn; a row for
    each. A lane alone is not a branch of anything."""
    cases = [
        (replicate(config, count), way)
        for count in options.replicas
        for way in options.ways or (default_way(device),)
        if count > 1 or not WAYS[way].apart or len(options.ways) < 2
    ]
    groups = [lanes for lanes, _ in cases]
    precision.set_up(config.precision, device)
    check_batch(config.batch_size, config.source(options.data_dir, device))
    N = config.batch_size
    images = [N, *(len(lanes) * N for lanes in groups)]  # a batch of each loop, of all its lanes
    with memory.explained(max(groups, key=len), device):
        loops: list[list[Updates]] = [[plain(config, options.data_dir, device)]]
        loops += [ours(lanes, options.data_dir, device, way) for lanes, way in cases]
        lengths = [chunk_length(loop, options.seconds, device) for loop in loops]
        speeds: list[list[float]] = [[] for _ in loops]  # images a second, by chunk
        for _ in range(options.repeats):
            for loop, length, size, own in zip(loops, lengths, images, speeds, strict=True):
                own.append(length * size / seconds(loop, length, device))
    fastest = N * matmul_rate(config.precision, device) / count_operations(config)
    return [
        numbers(lanes, way, own, speeds[0], fastest)
        for (lanes, way), own in zip(cases, speeds[1:], strict=True)
    ]


def numbers(
    lanes: Sequence[TrainConfig],
    way: str,
    speeds: list[float],
    plain_speeds: list[float],
    fastest: float,
) -> Numbers:
    """One row: medians over chunks, with the least and the most, of images a second. `fastest` is
    what the device could do at best."""
    ratios = [own / other for own, other in zip(speeds, plain_speeds, strict=True)]
    return {
        "precision": lanes[0].precision,
        "width": lanes[0].generator_width,
        "batch": lanes[0].batch_size,
        "replicas": len(lanes),
        "way": way,
        "images_per_second": statistics.median(speeds),
        "spread": [min(speeds), max(speeds)],
        "plain_images_per_second": statistics.median(plain_speeds),
        "plain_spread": [min(plain_speeds), max(plain_speeds)],
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "of_floor": statistics.median(speeds) / fastest,
    }


def table_line(row: Numbers) -> str:
    """A row as a person reads it, in the columns of `HEADINGS`."""
    low, high = row["spread"]
    least, most = row["ratio_spread"]
    speed = f"{row['images_per_second']:,.0f} [{low:,.0f}, {high:,.0f}]"
    ratio = f"{row['ratio']:.2f} [{least:.2f}, {most:.2f}]"
    return (
        f"{row['precision']:<10}{row['width']:>5}{row['batch']:>6}{row['replicas']:>4} "
        f"{row['way']:<13}{speed:>34}"
        f"{row['plain_images_per_second']:>11,.0f}{ratio:>25}{row['of_floor']:>7.0%}"
    )


def conditions(options: BenchOptions, device: torch.device) -> Numbers:
    """The machine and settings that the numbers hold for."""
    return {
        "device": device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "torchvision")},
        "dataset": options.dataset,
        "repeats": options.repeats,
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """The model of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = cli.Parser(
        prog="python -m dcgan.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    docs = field_docs(BenchOptions)
    for name, kind in LISTS.items():
        metavar = "N" if kind is int else "NAME"
        parser.add_argument(flag_name(name), type=kind, nargs="+", metavar=metavar, help=docs[name])
    cli.add_flags(parser, BenchOptions, leave_out=LISTS)
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        options = BenchOptions(**cli.given_flags(args, BenchOptions))
        if options.qualify:
            from dcgan.qualify import qualify

            qualify(options)
        else:
            run(options)


def run(options: BenchOptions) -> None:
    """Times all configs, prints a table, and writes the numbers where the options ask for it."""
    device = precision.default_device()
    configs = options.configs(device)
    if options.json:  # fails now, not after minutes
        try:
            options.json.open("a").close()
        except OSError as error:
            raise OSError(f"--json is {options.json} ({error.strerror}); choose another") from error
    if options.threads:
        torch.set_num_threads(options.threads)
    about = conditions(options, device)
    for name, value in about.items():
        print(f"{name:<10}{value}")
    print("\nMedians over repeats [least, most]. floor: share of a large matrix product's rate.\n")
    print(HEADINGS, flush=True)
    rows = []
    for config in configs:
        for row in time_loops(config, options, device):
            rows.append(row)
            print(table_line(row), flush=True)
            if options.json:
                write_json(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
