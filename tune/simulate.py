"""`python -m tune.simulate`: compares ways of searching over recorded learning curves
(`tune.simulation`)."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats
from tabulate import tabulate  # type: ignore[import-untyped]

from dcgan import cli
from dcgan.schema import METRIC
from dcgan.settings import check_bounds, flag_name
from dcgan.store import Store
from tune.curves import CURVES, Curves, recorded_rows, write_curves
from tune.ledger import quiet_optuna
from tune.options import MOST_TRIALS
from tune.plan import Plan
from tune.schedulers import SCHEDULERS, default_grace_period
from tune.searches import Search
from tune.simulation import simulate

WITHIN = 1.05  # of the best recorded metric: how near a search must come
METHODS = ("random", "random+asha", "tpe", "tpe+asha")  # sampler, and scheduler if any


def make_plan(
    search: Search, method: str, seed: int, num_trials: int, grace_period: int, workers: int
) -> Plan:
    """A plan for simulation, without first points: the samplers show what they can do alone."""
    sampler, _, scheduler = method.partition("+")
    return Plan(
        search=search,
        sampler=sampler,
        scheduler=SCHEDULERS[scheduler or "fifo"],
        points=[],
        num_trials=num_trials,
        grace_period=grace_period,
        seed=seed,
        store=Store(Path()),
        slots=workers,
    )


def needed(plan: Plan, curves: Curves, budget: int) -> tuple[float, float, bool]:
    """Epochs and seconds until a search comes near the best, and whether it does; if not, all of
    the budget, at the search's pace."""
    curve_seed = curves.seeds[plan.seed % len(curves.seeds)]
    target = WITHIN * curves.best(curve_seed)
    seconds, epochs, best = simulate(plan, curves, curve_seed, target=target).progress[-1]
    return (epochs, seconds, True) if best <= target else (budget, seconds / epochs * budget, False)


def compare_methods(
    name: str, curves: Curves, seeds: int, workers: int, num_trials: int, grace_period: int
) -> str:
    """A table of what each method needs."""
    search = curves.search(name)
    num_trials = int(min(num_trials, search.settings))
    budget = num_trials * curves.epochs
    lines = []
    medians: dict[str, float] = {}
    for method in METHODS:
        results = []
        for seed in range(seeds):
            plan = make_plan(search, method, seed, num_trials, grace_period, workers)
            results.append(needed(plan, curves, budget))
        epochs, seconds, reached = zip(*results, strict=True)
        medians[method] = statistics.median(epochs)
        minutes = [value / 60 for value in seconds]
        line = [method, f"{medians[method]:.0f}", mean_text(epochs)]
        line += [f"{statistics.median(minutes):.1f}", mean_text(minutes, 1)]
        line += [f"{sum(reached)}/{seeds}", f"{medians[method] / medians['random']:.2f}"]
        lines.append(line)
    headers = ["method", "epochs", "mean [95 %]", "minutes", "mean [95 %]", "reached"]
    headers += ["of random's"]
    table = tabulate(lines, headers, tablefmt="simple", disable_numparse=True)
    return (
        f"{name}: epochs and simulated minutes until the best {METRIC} seen is within "
        f"{WITHIN - 1:.0%} of the best recorded\n"
        f"Medians, and means with t intervals, over {seeds} sampler seeds on "
        f"{len(curves.seeds)} recorded seeds of {len(curves.settings)} settings;\n"
        f"{workers} workers, first decision at epoch {grace_period} of {curves.epochs}; "
        f"budget {num_trials} trials; a search that never gets there counts as {budget} epochs.\n\n"
        f"{table}"
    )


def mean_text(values: Sequence[float], digits: int = 0) -> str:
    """The mean of some values with Student's 95 % interval, which one value does not have."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = float(stats.t.isf(0.025, len(values) - 1) * stats.sem(values))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def main() -> None:
    parser = cli.Parser(
        prog="python -m tune.simulate",
        description="Compare ways of searching over recorded learning curves.",
    )
    add = parser.add_argument
    text = "what to vary (default: hparams)"
    add("--search", choices=("hparams", "architecture"), default="hparams", help=text)
    add("--seeds", type=int, default=30, metavar="N", help="searches by each method (default: 30)")
    add("--workers", type=int, default=2, metavar="W", help="trials at a time (default: 2)")
    text = "settings that a search may try (default: 150)"
    add("--num-trials", type=int, default=150, metavar="N", help=text)
    text = "epochs before the first decision (default: a sixth of them)"
    add("--grace-period", type=int, metavar="N", help=text)
    text = "table of recorded curves (default: the one in tune/)"
    add("--curves", type=Path, default=CURVES, metavar="FILE", help=text)
    text = "write that table from searches made with --scheduler fifo"
    add("--record", type=Path, nargs="+", metavar="RUN", help=text)
    args = parser.parse_args()
    quiet_optuna()
    with cli.one_line_errors(parser):
        for name, most in (("seeds", 10_000), ("workers", 10_000), ("num_trials", MOST_TRIALS)):
            check_bounds(flag_name(name), getattr(args, name), 1, most, "all are simulated here")
        if args.record:
            write_curves((row for run in args.record for row in recorded_rows(run)), args.curves)
            print(f"wrote {args.curves}")
            return
        curves = Curves(args.curves, args.search)
        grace_period = args.grace_period
        if grace_period is None:
            grace_period = default_grace_period(curves.epochs)
        check_bounds("--grace-period", grace_period, 1, curves.epochs, "the curves end there")
        numbers = (args.seeds, args.workers, args.num_trials, grace_period)
        print(compare_methods(args.search, curves, *numbers))


if __name__ == "__main__":
    main()
