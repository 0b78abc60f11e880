"""`python -m dcgan.average RUN`: the average of a run's G whose length is best, after training.

A run with `snapshots_every` keeps snapshots of two averages of G. Those of other lengths are
combined from them (`dcgan.power`), batch norm's statistics in the same way as the weights, and
evaluated on the validation split, as an epoch is. What was picked as best there is scored on the
test split, beside the last epoch's G.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcgan import checkpoint, cli, export, power
from dcgan.config import TrainConfig
from dcgan.evaluate import evaluate, load_reference, protocol
from dcgan.models import Generator
from dcgan.precision import default_device
from dcgan.schema import METRIC, SEARCH_FILE, Row
from dcgan.settings import check_bounds
from dcgan.state import to_device

LENGTHS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28)
LEAST_LENGTH = 0.01
SHOWN = (METRIC, "kid", "sample_recall", "sample_coverage", "classifier_score", "sharpness")
WIDTHS = {name: max(6, len(name)) for name in SHOWN}
"""Of the table's columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """What a run has kept of one lane, on the CPU."""

    config: TrainConfig
    rows: list[Row]
    last: dict[str, dict[str, Tensor]]  # weights of the last epoch's G, and of its `ema_decay`'s
    snapshots: list[dict[str, Tensor]]  # weights of both averages, named as in a checkpoint
    updates: list[int]  # of each snapshot

    @property
    def epoch(self) -> int:
        """The last one."""
        return int(self.rows[-1]["epoch"])


def read_lane(run: Path, number: int = 0) -> Lane:
    """Reads a lane of a run: of the last epoch from the checkpoint, of those before from files.

    Raises:
        FileNotFoundError: the checkpoint or a snapshot is missing.
        ValueError: one of them is damaged, the run keeps no snapshots, or has no such lane.
    """
    saved = checkpoint.load(run)
    check_bounds("--lane", number, 0, len(saved["lanes"]) - 1, "the run's lanes, from 0")
    config = TrainConfig.from_dict(saved["lanes"][number])
    every, epoch = config.snapshots_every, saved["rows"][-1]["epoch"]
    if not every:
        raise ValueError(f"{run} has no snapshots of averages; train with --snapshots-every 1")
    folder = run if run.is_dir() else run.parent
    states = [checkpoint.load_averages(folder, own) for own in range(every, epoch, every)]
    states.append(saved["states"])
    names = {"last epoch": "generator"}
    if config.ema_decay:
        names[f"ema_decay {config.ema_decay}"] = "average"
    return Lane(
        config=config,
        rows=[row for row in saved["rows"] if row["lane"] == number],
        last={
            which: checkpoint.lane_weights(states[-1], number, name)
            for which, name in names.items()
        },
        snapshots=[checkpoint.lane_weights(own, number, "power_averages") for own in states],
        updates=[own[0]["updates"] for own in states],
    )


def generator_of(config: TrainConfig, weights: dict[str, Tensor]) -> Generator:
    """A G of these weights."""
    generator = Generator(config)
    generator.load_state_dict(weights)
    return generator


def average_of(lane: Lane, length: float) -> tuple[Generator, float]:
    """G with the average of this length at the last epoch; and the error of its profile."""
    count, kinds = len(lane.updates), len(power.KEPT)
    times = torch.tensor(lane.updates, dtype=torch.float64) / lane.updates[-1]
    gammas = torch.tensor(list(power.EXPONENTS.values()), dtype=torch.float64)
    coefficients, error = power.combination(
        times.repeat_interleave(kinds), gammas.repeat(count), length
    )
    weights = {}
    for name, last in lane.last["last epoch"].items():
        kept = [own[f"{kind}.{name}"] for own in lane.snapshots for kind in power.KEPT]
        weights[name] = last
        if last.is_floating_point():  # counts of batches are not read
            weights[name] = torch.tensordot(coefficients, torch.stack(kept).double(), 1)
        if name.endswith("running_var"):  # some coefficients are negative
            weights[name] = weights[name].clamp(min=0)
    return generator_of(lane.config, weights), error


class Scorer:
    """Evaluates generators on the device, against real images of a split."""

    def __init__(self, config: TrainConfig, data_dir: Path | None, split: str) -> None:
        self.config, self.device = config, default_device()
        self.reference = load_reference(config.source(data_dir, self.device), split)

    def __call__(self, generator: Generator) -> Row:
        """The metrics of a G, and the conditions that they hold under."""
        net = to_device(generator, self.device)
        return evaluate(net, self.config, self.reference) | protocol(self.reference)


def score_averages(
    lane: Lane, lengths: Sequence[float], score: Scorer, report: Callable[[Row], None]
) -> list[Row]:
    """Scores the last epoch's G, that of `ema_decay` if there is one, and an average of each
    length. Each has a row: metrics, `which` it is, and of an average its `length` and `error`."""
    rows: list[Row] = []

    def add(generator: Generator, **about: Any) -> None:
        rows.append(about | score(generator))
        report(rows[-1])

    for which, weights in lane.last.items():
        add(generator_of(lane.config, weights), which=which)
    for length in lengths:
        generator, error = average_of(lane, length)
        add(generator, which=f"length {length:g}", length=length, error=error)
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    values = [f"{row[name]:>{width}.4g}" for name, width in WIDTHS.items()]
    error = f"{row['error']:.3f}" if "error" in row else ""
    return "  ".join([f"{row['which']:<16}", *values, error]).rstrip()


def card(lane: Lane, best: Row, row: Row) -> str:
    """The model card of the best average, whose row is of the test split."""
    length, epoch = best["length"], lane.epoch
    which = (
        f"The average of length {length:g} (arXiv 2312.02696) of the generator's weights, at the "
        f"end of epoch {epoch}"
    )
    trust = (
        "The length was chosen on the validation split. These are of one training run; another "
        "seed would give others, and how different ones has not been measured."
    )
    return export.card(lane.config, row, trust, which)


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m dcgan.average",
        description="Find the average of a trained generator whose length is best, of a run with "
        "--snapshots-every. A length is the standard deviation of the updates that an average is "
        "made of, over the number of all updates; error is how much of that profile its snapshots "
        "cannot make up.",
    )
    add = parser.add_argument
    text = "a checkpoint.pt, the folder of a run or trial, or of a search, whose best trial it is"
    add("run", type=Path, help=text)
    text = f"of the averages (default: {' '.join(map(str, LENGTHS))})"
    add("--lengths", type=float, nargs="+", metavar="X", default=LENGTHS, help=text)
    add("--lane", type=int, default=0, metavar="N", help="lane of the run (default: 0, the first)")
    text = "folder to write the best average to, as dcgan.export does"
    add("--out", type=Path, metavar="DIR", help=text)
    cli.add_data_dir(parser)
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        for length in args.lengths:
            check_bounds("--lengths", length, LEAST_LENGTH, power.MOST_LENGTH)
        if args.out and args.out.exists() and not args.out.is_dir():
            raise ValueError(f"--out is {args.out}, which is a file; choose another folder")
        run = args.run
        if (run / SEARCH_FILE).is_file():
            run, _ = export.best_of_search(run)
        lane = read_lane(run, args.lane)
        updates, count = lane.updates[-1], len(lane.updates)
        print(f"{run}, seed {lane.config.seed}: {updates} updates, {count} snapshots", flush=True)
        best = find_best(lane, args.lengths, args.data_dir)
        tested = score_on_test(lane, best, args.data_dir)
        if args.out:
            generator, _ = average_of(lane, best["length"])
            for file in export.write(args.out, generator, lane.config, card(lane, best, tested)):
                print(file)


def find_best(lane: Lane, lengths: Sequence[float], data_dir: Path | None) -> Row:
    """Scores all on the validation split, prints them as they come, and returns the best
    average's row."""
    names = [f"{name:>{width}}" for name, width in WIDTHS.items()]
    print("  ".join([f"{'validation split':<16}", *names, "error"]))
    score = Scorer(lane.config, data_dir, "validation")
    rows = score_averages(lane, lengths, score, lambda row: print(line(row), flush=True))
    best_epoch = min(lane.rows, key=lambda row: float(row[METRIC]))
    print(line(best_epoch | {"which": f"best epoch, {best_epoch['epoch']}"}))
    return min((row for row in rows if "length" in row), key=lambda row: float(row[METRIC]))


def score_on_test(lane: Lane, best: Row, data_dir: Path | None) -> Row:
    """Prints what the best average and the last epoch's G get on the test split, on which nothing
    was chosen; returns the row of the average."""
    score = Scorer(lane.config, data_dir, "test")
    tested = score(average_of(lane, best["length"])[0])
    plain = score(generator_of(lane.config, lane.last["last epoch"]))
    print(
        f"best: {best['which']}; {METRIC} {tested[METRIC]:.4g} on the test split, "
        f"the last epoch's {plain[METRIC]:.4g}"
    )
    return tested


if __name__ == "__main__":
    main()
