"""`python -m dcgan.bench`: our training loop against a plain one, as a tutorial writes it, with the same nets and batches.

The plain loop has a DataLoader with workers, ToTensor and Normalize, zero_grad, three backward passes, and `.item()` each
step; it trains one seed. Ours trains R seeds at once; its images are those of all of them. Both run in one process, a
chunk of each in turn, so that what else the machine does hits both alike.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dcgan import cli, memory, precision
from dcgan.config import DATASETS, PRECISIONS, TrainConfig
from dcgan.data import load_split, source
from dcgan.evaluate import device_name
from dcgan.floor import ceilings, floor_seconds, wait, work
from dcgan.loop import make_update, new_states, train_epoch
from dcgan.models import build

Train = Callable[[int], None]  # so many batches
WARM_UP = 5  # batches: library set-up, and the capture of a CUDA graph
WORKERS = 2  # of the plain loop's DataLoader, as tutorials have it


class Digits(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's MNIST gives them, transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.images, self.labels = images.cpu(), labels.cpu()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i, 0].numpy(), mode="L")), int(self.labels[i])


def plain(config: TrainConfig, data_dir: Path | None, device: torch.device) -> Train:
    """The loop of a tutorial."""
    split = load_split(source(config, data_dir, torch.device("cpu")), "train")
    loader = DataLoader(
        Digits(*split), config.batch_size, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )
    netG, netD = (net.to(device) for net in build(config))
    criterion = nn.BCEWithLogitsLoss()
    betas = (config.beta1, config.beta2)
    optimizerG = torch.optim.Adam(netG.parameters(), lr=config.generator_lr, betas=betas)
    optimizerD = torch.optim.Adam(netD.parameters(), lr=config.discriminator_lr, betas=betas)
    scalerG, scalerD = precision.scalers(config.precision, device)
    losses: list[tuple[float, ...]] = []

    def steps() -> Iterator[None]:
        for data, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
            netD.zero_grad()
            real = data.to(device)
            label = torch.full((len(real),), 1.0, device=device)
            with precision.autocast(config.precision, device):
                output = netD(real).view(-1)
                errD_real = criterion(output, label)
            scalerD.scale(errD_real).backward()
            D_x = output.mean().item()
            noise = torch.randn(len(real), config.latent_size, device=device)
            with precision.autocast(config.precision, device):
                fake = netG(noise)
                output = netD(fake.detach()).view(-1)
                errD_fake = criterion(output, label.fill_(0.0))
            scalerD.scale(errD_fake).backward()
            D_G_z1 = output.mean().item()
            scalerD.step(optimizerD)
            scalerD.update()
            netG.zero_grad()
            with precision.autocast(config.precision, device):
                output = netD(fake).view(-1)
                errG = criterion(output, label.fill_(1.0))
            scalerG.scale(errG).backward()
            scalerG.step(optimizerG)
            scalerG.update()
            losses.append((errG.item(), (errD_real + errD_fake).item(), D_x, D_G_z1))
            yield

    running = steps()

    def train(batches: int) -> None:
        for _ in itertools.islice(running, batches):
            pass

    return train


def ours(config: TrainConfig, data_dir: Path | None, device: torch.device) -> Train:
    """Our loop, of all the config's replicas."""
    images = load_split(source(config, data_dir, device), "train").images
    states = new_states(config, device)
    updates = [make_update(state, images) for state in states]

    def train(batches: int) -> None:
        while batches > 0:
            some = images[: batches * config.batch_size]
            for state, update in zip(states, updates, strict=True):
                train_epoch(state, some, update)
            batches -= len(some) // config.batch_size

    return train


@dataclasses.dataclass(kw_only=True)
class Runner:
    """One of the loops that are timed in turn."""

    train: Train
    images: int
    """Images a batch, of all replicas."""
    batches: int = 0
    """Batches of a chunk."""
    peak_bytes: int = 0
    speeds: list[float] = dataclasses.field(default_factory=list)
    """Images a second, by chunk."""

    def time(self, batches: int, device: torch.device) -> float:
        """Seconds that so many batches take."""
        wait(device)
        start = time.perf_counter()
        self.train(batches)
        wait(device)
        return time.perf_counter() - start


Make = Callable[[TrainConfig, Path | None, torch.device], Train]


def start(make: Make, config: TrainConfig, args: argparse.Namespace, device: torch.device) -> Runner:
    """Sets a loop up, warms it up, measures its memory, and settles how many batches take so many seconds."""
    if device.type == "cpu":  # a process keeps what it frees, so that only a fresh one shows a peak
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(peak_bytes, make, config, args, device).result()
    else:
        peak = peak_bytes(make, config, args, device)
    runner = Runner(train=make(config, args.data_dir, device), images=config.replicas * config.batch_size, peak_bytes=peak)
    runner.train(WARM_UP)
    runner.batches = max(1, round(WARM_UP * args.seconds / runner.time(WARM_UP, device)))
    return runner


def peak_bytes(make: Make, config: TrainConfig, args: argparse.Namespace, device: torch.device) -> int:
    """Memory that a loop takes above what the process and the data do."""
    torch.set_num_threads(args.threads)
    load_split(source(config, args.data_dir, device), "train")
    memory.reset_peak(device)
    before = memory.peak_bytes(device)
    make(config, args.data_dir, device)(WARM_UP)
    return memory.peak_bytes(device) - before


def compare(config: TrainConfig, replicas: list[int], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times the plain loop and ours at each number of replicas, a chunk in turn; one row for each number."""
    torch.set_num_threads(args.threads)
    precision.set_up(config.precision, device)
    if config.batch_size > (there := len(load_split(source(config, args.data_dir, device), "train").images)):
        raise ValueError(f"batch_size is {config.batch_size}; the training split of {config.dataset} holds {there} images")
    configs = [dataclasses.replace(config, replicas=r) for r in replicas]
    runners = [start(plain, config, args, device), *(start(ours, c, args, device) for c in configs)]
    for _ in range(args.repeats):
        for runner in runners:
            runner.speeds.append(runner.batches * runner.images / runner.time(runner.batches, device))
    can, rows = ceilings(config.precision, device), []
    reference, *loops = runners
    for c, runner in zip(configs, loops, strict=True):
        ratios = [own / theirs for own, theirs in zip(runner.speeds, reference.speeds, strict=True)]
        floor = floor_seconds(work(c), can) / runner.images  # an image
        speed = statistics.median(runner.speeds)
        rows.append({
            "precision": c.precision, "width": c.generator_width, "batch": c.batch_size, "replicas": c.replicas,
            "images_per_second": speed, "spread": [min(runner.speeds), max(runner.speeds)],
            "plain_images_per_second": statistics.median(reference.speeds),
            "plain_spread": [min(reference.speeds), max(reference.speeds)],
            "ratio": statistics.median(ratios), "ratio_spread": [min(ratios), max(ratios)], "of_floor": floor * speed,
            "peak_memory_bytes": runner.peak_bytes, "plain_peak_memory_bytes": reference.peak_bytes,
        })  # fmt: skip
    return rows


COLUMNS = {
    "precision": 10, "width": 5, "batch": 6, "R": 4, "images/s, ours": 34, "plain": 11, "ratio": 25, "floor": 7,
    "MB": 8, "plain MB": 10,
}  # fmt: skip
"""Columns of the table and their widths."""


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    speeds, ratios = row["spread"], row["ratio_spread"]
    return in_columns(
        row["precision"], row["width"], row["batch"], row["replicas"],
        f"{row['images_per_second']:,.0f} [{speeds[0]:,.0f}, {speeds[1]:,.0f}]", f"{row['plain_images_per_second']:,.0f}",
        f"{row['ratio']:.2f} [{ratios[0]:.2f}, {ratios[1]:.2f}]", f"{row['of_floor']:.0%}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}", f"{row['plain_peak_memory_bytes'] / 1e6:,.0f}",
    )  # fmt: skip


def in_columns(first: object, *others: object) -> str:
    """Cells in the table's columns: the first on the left, the others on the right."""
    left, *widths = COLUMNS.values()
    return f"{first:<{left}}" + "".join(f"{cell:>{width}}" for cell, width in zip(others, widths, strict=True))


def conditions(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "device": device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": args.threads,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "torchvision")},
        "dataset": args.dataset,
        "repeats": args.repeats,
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """The model of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    names = [text for text in info.read_text().splitlines() if text.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(prog="python -m dcgan.bench", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    add = parser.add_argument
    add("--precisions", nargs="+", choices=PRECISIONS, help="default: all that the device does at a sensible speed")
    add("--widths", type=int, nargs="+", default=[32, 64], metavar="C", help="channels of both nets (default: 32 64)")
    add("--batches", type=int, nargs="+", default=[64, 128], metavar="N", help="images a batch (default: 64 128)")
    add("--replicas", type=int, nargs="+", default=[1, 4, 8, 16], metavar="R", help="seeds at once (default: 1 4 8 16)")
    add("--repeats", type=int, default=5, metavar="N", help="chunks of each loop (default: 5)")
    add("--seconds", type=float, default=1.0, metavar="S", help="length of a chunk (default: 1)")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="CPU threads of both (default: PyTorch's)")
    add("--dataset", choices=DATASETS, default="mnist-mini", help="data set (default: mnist-mini)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    cli.add_data_dir(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuses what would end in an error after minutes of measuring.

    Raises:
        ValueError: a number that is not allowed.
        OSError: the numbers could not be written.
    """
    for name in ("repeats", "threads"):
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"--{name} is {value}; allowed is at least 1")
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds is {args.seconds}; allowed is a finite number above 0")
    if args.json:
        args.json.touch()


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    device, rows = precision.default_device(), []
    with cli.one_line_errors(parser):
        configs = [
            TrainConfig(
                dataset=args.dataset, precision=name, generator_width=width, discriminator_width=width, batch_size=batch
            )
            for name in args.precisions or precision.usable(device)
            for width, batch in itertools.product(args.widths, args.batches)
        ]
        check(args)
        about = conditions(args, device)
        print("\n".join(f"{name:<10}{value}" for name, value in about.items()))
        print("\nMedians over repeats [least, most]. floor: share of the device's ceiling reached (see dcgan.floor).")
        print("MB: peak of a loop above what process and data take (the plain one's workers not counted).\n")
        print(in_columns(*COLUMNS), flush=True)
        for config in configs:
            with memory.explained(config, device):
                found = compare(config, args.replicas, args, device)
            rows += found
            print("\n".join(map(line, found)), flush=True)
        if args.json:
            args.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
