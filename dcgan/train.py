"""`python -m dcgan.train`: trains one DCGAN, or several seeds of it side by side, on its own."""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dcgan import checkpoint, cli, schema
from dcgan.config import LANE_FIELDS, TrainConfig, read_lanes, replicate, write_lanes
from dcgan.data import check_batch
from dcgan.evaluate import device_name
from dcgan.files import write_rows
from dcgan.images import sample_grid, save_grid
from dcgan.loop import train
from dcgan.precision import default_device, unsupported
from dcgan.schema import Row
from dcgan.settings import check_bounds

GRID = 64  # images of a sample grid, about


def make_parser() -> cli.Parser:
    """A flag for each field of `TrainConfig`, and where to read and write."""
    parser = cli.Parser(
        prog="python -m dcgan.train",
        description="Train one DCGAN. Writes params.json (the config), result.json (a row per lane "
        "and epoch), checkpoint.pt and sample grids to the output folder. The defaults are the "
        "baseline: two stages in each net, full MNIST, 25 epochs.",
    )
    run_flags = parser.add_argument_group("run")
    add = run_flags.add_argument
    text = (
        "JSON of settings, or a folder with params.json; flags win. A run's or trial's folder "
        "gives the number of CPU threads in its result.json too, so that its rows repeat on a CPU "
        "bit for bit"
    )
    add("--config", type=Path, metavar="FILE", help=text)
    text = "output folder (default: runs/train)"
    add("--out", type=Path, default=Path("runs/train"), metavar="DIR", help=text)
    add("--resume", action="store_true", help="go on with the run in the output folder")
    text = (
        "lanes that train side by side, one a seed: seed, seed + 1 and so on (default: 1, or "
        "as many as the config file has)"
    )
    add("--replicas", type=int, metavar="R", help=text)
    text = "epochs between sample grids, 0 for none (default: 1)"
    add("--samples-every", type=int, default=1, metavar="N", help=text)
    cli.add_data_dir(run_flags)
    cli.add_flags(parser.add_argument_group("settings"), TrainConfig, ("classes",))
    return parser


def wanted_lanes(args: argparse.Namespace) -> list[TrainConfig]:
    """The lanes of a command line: flags over the config file (or the resumed run's) over the
    defaults. `--seed` is the first lane's seed; the others keep their distance from it."""
    given = cli.given_flags(args, TrainConfig)
    file = args.out if args.resume else args.config
    lanes = read_lanes(file) if file else [TrainConfig(**given)]
    shift = given.pop("seed", lanes[0].seed) - lanes[0].seed
    lanes = [dataclasses.replace(lane, **given, seed=lane.seed + shift) for lane in lanes]
    if args.replicas is None:
        return lanes
    settings = [name for name in LANE_FIELDS if name != "seed"]
    differing = [name for name in settings if len({getattr(lane, name) for lane in lanes}) > 1]
    if differing:
        raise ValueError(
            f"--replicas does not go with lanes that differ in {', '.join(differing)}; "
            f"leave it out, or give the same value to all by a flag"
        )
    return replicate(lanes[0], args.replicas)


def check_run(args: argparse.Namespace, lanes: Sequence[TrainConfig]) -> None:
    """Refuses what cannot train, before anything is written: flags that do not go together, a
    folder that holds another run, a precision that the device lacks, data that are not there."""
    check_bounds("--samples-every", args.samples_every, 0)
    if args.resume and args.config:
        raise ValueError(
            f"--config {args.config} does not go with --resume: "
            f"the run in {args.out} has its own settings"
        )
    if args.resume:
        checkpoint.check_same_run(args.out, checkpoint.load(args.out), lanes)
    elif (args.out / schema.CHECKPOINT_FILE).exists():
        raise ValueError(
            f"{args.out} already holds a run; "
            f"go on with it by --resume, or choose another folder by --out"
        )
    device = default_device()
    if reason := unsupported(lanes[0].precision, device):
        raise ValueError(reason)
    check_batch(lanes[0].batch_size, lanes[0].source(args.data_dir, device))


def recorded_threads(folder: Path) -> int | None:
    """The number of CPU threads that the run in `folder` began with, if its first row names it."""
    try:
        with (folder / schema.ROWS_FILE).open(encoding="utf-8") as rows:
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
            message = "\nstopped"
            if (args.out / schema.CHECKPOINT_FILE).exists():
                folder = shlex.quote(str(args.out))
                message += f"; go on with: {parser.prog} --resume --out {folder}"
            print(message, file=sys.stderr)
            sys.exit(130)


def run(args: argparse.Namespace) -> None:
    """Checks, prints the plan, trains, and prints where everything is."""
    lanes = wanted_lanes(args)
    check_run(args, lanes)
    out: Path = args.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out is {out} ({error.strerror}); choose another folder") from error
    device = default_device()
    write_lanes(out / schema.PARAMS_FILE, lanes)
    where = device_name(device)
    if args.config and (threads := recorded_threads(args.config)):
        torch.set_num_threads(threads)
        where += f" with {threads} thread{'s' * (threads > 1)}, as {args.config} had"
    config = lanes[0]
    epochs, precision = config.epochs, config.precision
    print(f"{config.dataset}, {epochs} epochs in {precision} on {where} → {out}", flush=True)

    rows: list[Row] = []
    if args.resume:
        rows = checkpoint.load(out)["rows"]
        # the checkpoint is the truth: a kill between its writing and a row's would lose the row
        write_rows(out / schema.ROWS_FILE, rows)
    done = rows[-1]["epoch"] if rows else 0
    (out / schema.ERROR_FILE).unlink(missing_ok=True)
    announce(done + 1, epochs)
    start = time.monotonic()

    def report(row: Row) -> None:
        rows.append(row)
        epoch = row["epoch"]
        with (out / schema.ROWS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if len(rows) < epoch * len(lanes):
            return
        elapsed = time.monotonic() - start
        print(progress_line(rows[-len(lanes) :], epochs, elapsed, done), flush=True)
        announce(epoch + 1, epochs)
        if args.samples_every and epoch % args.samples_every == 0:
            draw_samples(out, schema.samples_name(epoch), last=True)

    try:
        train(
            lanes,
            report=report,
            checkpoint_dir=out,
            resume_from=out if args.resume else None,
            data_dir=args.data_dir,
            device=device,
        )
    except (FloatingPointError, MemoryError) as error:
        # as a trial's, so that analysis reads the run as failed
        (out / schema.ERROR_FILE).write_text(f"{error}\n", encoding="utf-8")
        raise
    picture, best = draw_samples(out, schema.BEST_SAMPLES)
    trained, evaluated = (
        cli.duration(sum(row[name] for row in rows)) for name in ("seconds_train", "seconds_eval")
    )
    epochs = rows[-1]["epoch"]
    print(
        f"{epochs} epoch{'s' * (epochs > 1)}: {trained} of training, {evaluated} of evaluation\n"
        f"best epoch {best}; samples: {picture}; checkpoint: {out / schema.CHECKPOINT_FILE}"
    )


def announce(epoch: int, epochs: int) -> None:
    """Prints on a terminal which epoch has begun; its result overwrites this."""
    if sys.stdout.isatty() and epoch <= epochs:
        print(f"epoch {epoch}/{epochs} …", end="\r", flush=True)


def progress_line(rows: Sequence[Row], epochs: int, elapsed: float, done: int) -> str:
    """One line of progress from an epoch's rows, one a lane: bar, quality, losses, speed and time
    left, which follows from the seconds elapsed since `done` of all epochs were done."""
    epoch = int(rows[0]["epoch"])
    filled = round(20 * epoch / epochs)
    left = elapsed / (epoch - done) * (epochs - epoch)
    warning = "  COLLAPSED" if any(row["collapsed"] for row in rows) else ""

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs} {'█' * filled}{'░' * (20 - filled)} "
        f"fid {mean('fid'):.2f}  "
        f"G {mean('generator_loss'):.3f}  D {mean('discriminator_loss'):.3f}  "
        f"{mean('images_per_second'):,.0f} images/s  {cli.duration(left)} left{warning}"
    )


def draw_samples(out: Path, name: str, *, last: bool = False) -> tuple[Path, int]:
    """Draws a grid of the best epoch's generator, or the last one's; returns its path and epoch."""
    generator, config, epoch = checkpoint.load_generator(out, last=last)
    images, columns = sample_grid(generator, config.latent_size, GRID)
    return save_grid(images, out / schema.SAMPLES_FOLDER / name, columns), epoch


if __name__ == "__main__":
    main()
