"""`python -m dcgan.train`: trains one DCGAN outside any search."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dcgan import checkpoint, cli
from dcgan.config import DATASETS, OPTIMIZERS, PRECISIONS, TrainConfig, field_docs
from dcgan.evaluate import device_name
from dcgan.images import sample, save_grid
from dcgan.loop import train
from dcgan.precision import default_device
from dcgan.schema import Row

GRID = 64  # images of a sample grid
CHOICES: dict[str, tuple[Any, ...]] = {
    "dataset": DATASETS, "optimizer": OPTIMIZERS, "precision": PRECISIONS, "channels": (1, 3),
}  # fmt: skip


def make_parser() -> cli.Parser:
    """The command line: one flag for each field of `TrainConfig`, and where to read and write."""
    parser = cli.Parser(
        prog="python -m dcgan.train",
        description="Train one DCGAN. Writes params.json (the config), result.json (a row an epoch), checkpoint.pt and "
        "sample grids to the output folder. The defaults are the baseline: two stages in each net, full MNIST, 25 epochs.",
    )
    where = parser.add_argument_group("run")
    where.add_argument(
        "--config", type=Path, metavar="FILE",
        help="JSON of settings, or a folder with params.json; flags win. A run's or trial's folder gives the number of CPU "
        "threads in its result.json too, so that its rows repeat on a CPU bit for bit",
    )  # fmt: skip
    where.add_argument(
        "--out", type=Path, default=Path("runs/train"), metavar="DIR", help="output folder (default: runs/train)"
    )
    where.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    where.add_argument("--samples-every", type=int, default=1, metavar="N", help="epochs between sample grids, 0 for none (1)")
    cli.add_data_dir(where)
    settings = parser.add_argument_group("settings")
    docs = field_docs()
    for field in dataclasses.fields(TrainConfig):
        settings.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.type,
            choices=CHOICES.get(field.name),
            metavar=None if field.name in CHOICES else str(getattr(field.type, "__name__", "")).upper(),
            help=f"{docs[field.name].replace('%', '%%')} (default: {field.default})",
        )
    return parser


def read_config(args: argparse.Namespace) -> TrainConfig:
    """The config of a command line: flags over the config file (or the resumed run's) over the defaults."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    source = args.out if args.resume else args.config
    base = TrainConfig.from_file(source) if source else TrainConfig()
    return dataclasses.replace(base, **given)


def recorded_threads(folder: Path) -> int | None:
    """The number of CPU threads that the run in `folder` began with, if its rows say."""
    try:
        with (folder / "result.json").open() as rows:
            threads = json.loads(rows.readline())["threads"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return threads if type(threads) is int and threads > 0 else None


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        try:
            run(args)
        except KeyboardInterrupt:
            kept = (args.out / checkpoint.NAME).exists()
            print(f"\nstopped; go on with: {parser.prog} --resume --out {args.out}" if kept else "\nstopped", file=sys.stderr)
            sys.exit(130)


def run(args: argparse.Namespace) -> None:
    """Checks, prints the plan, trains, and says where everything is."""
    config = read_config(args)
    out: Path = args.out
    if args.samples_every < 0:
        raise ValueError(f"--samples-every is {args.samples_every}; allowed is 0 or more")
    if args.resume and args.config:
        raise ValueError(f"--config {args.config} does not go with --resume: the run in {out} has its own settings")
    if args.resume:
        checkpoint.check_same_run(out, checkpoint.load(out), config)
    elif (out / checkpoint.NAME).exists():
        raise ValueError(f"{out} already holds a run; go on with it by --resume, or choose another folder by --out")
    out.mkdir(parents=True, exist_ok=True)
    device = default_device()
    (out / "params.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    on = device_name(device)
    if args.config and (threads := recorded_threads(args.config)):
        torch.set_num_threads(threads)
        on += f" with {threads} thread{'s' * (threads > 1)}, as {args.config} had"
    print(f"{config.dataset}, {config.epochs} epochs in {config.precision} on {on} → {out}", flush=True)

    rows_file = out / "result.json"
    start = time.monotonic()

    def report(row: Row) -> None:
        with rows_file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(progress_line(row, config.epochs, time.monotonic() - start, first), flush=True)
        announce(int(row["epoch"]) + 1, config.epochs)
        if args.samples_every and int(row["epoch"]) % args.samples_every == 0:
            generator, _, epoch = checkpoint.load_generator(out, last=True)
            save_grid(sample(generator, config.latent_size, GRID), out / "samples" / f"epoch_{epoch:03d}.png")

    first = 0
    if args.resume:
        history = checkpoint.load(out)["history"]
        first = len(history)
        # the checkpoint is the truth: a kill between it and the row's writing would lose the row
        checkpoint.write_rows(rows_file, history)
    resume_from = out if args.resume else None
    (out / "error.txt").unlink(missing_ok=True)
    announce(first + 1, config.epochs)
    try:
        rows = train(config, report=report, checkpoint_dir=out, resume_from=resume_from, data_dir=args.data_dir, device=device)
    except (FloatingPointError, MemoryError) as error:
        (out / "error.txt").write_text(f"{error}\n")  # as Ray does for a trial, so that analysis reads it as failed
        raise
    generator, _, best = checkpoint.load_generator(out)
    picture = save_grid(sample(generator, config.latent_size, GRID), out / "samples" / "best.png")
    trained, evaluated = (sum(row[name] for row in rows) for name in ("seconds_train", "seconds_eval"))
    print(f"{len(rows)} epochs: {cli.duration(trained)} of training, {cli.duration(evaluated)} of evaluation")
    print(f"best epoch {best}; samples: {picture}; checkpoint: {out / checkpoint.NAME}")


def announce(epoch: int, epochs: int) -> None:
    """Says on a terminal which epoch has begun; its result overwrites this."""
    if sys.stdout.isatty() and epoch <= epochs:
        print(f"epoch {epoch}/{epochs} …", end="\r", flush=True)


def progress_line(row: Row, epochs: int, elapsed: float, first: int) -> str:
    """One line of progress: bar, quality, losses, speed and time left. `first` epochs were done before `elapsed` began."""
    epoch = int(row["epoch"])
    done = round(20 * epoch / epochs)
    left = elapsed / (epoch - first) * (epochs - epoch)
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs} {'█' * done}{'░' * (20 - done)} fid {row['fid']:.2f}  "
        f"G {row['generator_loss']:.3f}  D {row['discriminator_loss']:.3f}  {row['images_per_second']:,.0f} images/s  "
        f"{cli.duration(left)} left{'  COLLAPSED' if row['collapsed'] else ''}"
    )


if __name__ == "__main__":
    main()
