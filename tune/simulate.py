"""`python -m tune.simulate`: compares ways of searching over recorded learning curves
(`tune.simulation`)."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
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
from tune.searches import SEARCHES, Search
from tune.simulation import simulate

WITHIN = 1.05  # of the best recorded metric: how near a search must come
METHODS = {
    "random": ("random", "fifo"),
    "random+asha": ("random", "asha"),
    "tpe": ("tpe", "fifo"),
    "tpe+asha": ("tpe", "asha"),
    "freeze-thaw": ("random", "freeze-thaw"),
}
"""Sampler and scheduler of each way of searching."""
COMPARED = "tpe+asha"  # what the others' epochs are shares of
EPOCHS = 200
"""Epochs up to which regrets are followed, and after which what ends by its epochs ends."""
SHOWN = (20, 30, 40, 60, 80, 120, 160)  # epochs whose regrets are printed
GRID = 5  # epochs between two regrets in the JSON
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a simulated search went."""

    epochs: float  # until the best metric seen was near the best recorded with the same seed
    seconds: float  # the same
    reached: bool  # or not: then all of the budget, at the search's pace
    regrets: list[float]  # of what it would have recommended, after each of `EPOCHS` epochs

    @property
    def epochs_to_regret(self) -> int:
        """Epochs until what it recommends is near the best; all of them where it never is."""
        near = (i for i, regret in enumerate(self.regrets, start=1) if regret <= WITHIN - 1)
        return next(near, EPOCHS)


def make_plan(
    search: Search, method: str, seed: int, num_trials: int, grace_period: int, workers: int
) -> Plan:
    """A plan for simulation, without first points: the samplers show what they can do alone."""
    sampler, scheduler = METHODS[method]
    plan = Plan(
        search=search,
        sampler=sampler,
        scheduler=SCHEDULERS[scheduler],
        points=[],
        num_trials=num_trials,
        grace_period=grace_period,
        seed=seed,
        store=Store(Path()),
        slots=workers,
    )
    if plan.scheduler.freezes(plan.epochs):
        return dataclasses.replace(plan, epochs_in_all=min(EPOCHS, num_trials * plan.epochs))
    return plan


def outcome(plan: Plan, curves: Curves, budget: int) -> Outcome:
    """Simulates a search with the curves of one seed; its regrets are of means over all seeds."""
    curve_seed = curves.seeds[plan.seed % len(curves.seeds)]
    target = WITHIN * curves.best(curve_seed)
    simulation = simulate(plan, curves, curve_seed, target=target, least_epochs=EPOCHS)
    seconds, epochs, _ = simulation.progress[-1]
    pace = seconds / epochs
    near = ((done, time) for time, done, best in simulation.progress if best <= target)
    done, time = next(near, (None, 0.0))
    of_setting = curves.regrets()
    regrets = [of_setting[number] for number in simulation.recommended[:EPOCHS]]
    regrets += [regrets[-1]] * (EPOCHS - len(regrets))
    return Outcome(
        epochs=budget if done is None else done,
        seconds=pace * budget if done is None else time,
        reached=done is not None,
        regrets=regrets,
    )


def run_methods(
    pool: Executor,
    curves: Curves,
    search: Search,
    seeds: int,
    workers: int,
    num_trials: int,
    grace_period: int,
) -> dict[str, list[Outcome]]:
    """Simulates searches by each method, by the same seeds, side by side in a pool."""
    plans = [
        make_plan(search, method, seed, num_trials, grace_period, workers)
        for seed in range(seeds)
        for method in METHODS
    ]
    simulated = partial(outcome, curves=curves, budget=num_trials * curves.epochs)
    outcomes = list(pool.map(simulated, plans))
    return {method: outcomes[i :: len(METHODS)] for i, method in enumerate(METHODS)}


def describe_target(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """A table of what each method needs to see a metric near the best of its recorded seed."""
    lines = []
    random = statistics.median(one.epochs for one in outcomes["random"])
    for method, own in outcomes.items():
        epochs, minutes = [one.epochs for one in own], [one.seconds / 60 for one in own]
        median = statistics.median(epochs)
        line = [method, f"{median:.0f}", mean_text(epochs)]
        line += [f"{statistics.median(minutes):.1f}", mean_text(minutes, 1)]
        line += [f"{sum(one.reached for one in own)}/{len(own)}", f"{median / random:.2f}"]
        lines.append(line)
    headers = ["method", "epochs", "mean [95 %]", "minutes", "mean [95 %]", "reached"]
    headers += ["of random's"]
    return str(tabulate(lines, headers, tablefmt="simple", disable_numparse=True))


def describe_regrets(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """A table of each method's regrets, and of the epochs until they are small."""
    compared = [one.epochs_to_regret for one in outcomes[COMPARED]]
    lines = []
    for method, own in outcomes.items():
        medians = [statistics.median(one.regrets[epochs - 1] for one in own) for epochs in SHOWN]
        needs = [one.epochs_to_regret for one in own]
        line = [method, *(f"{median:.0%}" for median in medians), f"{statistics.median(needs):.0f}"]
        lines.append([*line, "" if method == COMPARED else ratio_text(needs, compared)])
    headers = ["method", *map(str, SHOWN), f"to {WITHIN - 1:.0%}", f"of {COMPARED}'s [95 %]"]
    return str(tabulate(lines, headers, tablefmt="simple", disable_numparse=True))


def describe(
    name: str,
    curves: Curves,
    outcomes: Mapping[str, Sequence[Outcome]],
    workers: int,
    num_trials: int,
    grace_period: int,
) -> str:
    """Both tables, and what they are of."""
    seeds, budget = len(outcomes[COMPARED]), num_trials * curves.epochs
    return (
        f"{name}: epochs and simulated minutes until the best {METRIC} seen is within "
        f"{WITHIN - 1:.0%} of the best recorded\n"
        f"Medians, and means with t intervals, over {seeds} sampler seeds on "
        f"{len(curves.seeds)} recorded seeds of {len(curves.settings)} settings;\n"
        f"{workers} workers, first decision at epoch {grace_period} of {curves.epochs}; "
        f"budget {num_trials} trials; a search that never gets there counts as {budget} epochs.\n\n"
        f"{describe_target(outcomes)}\n\n"
        f"{name}, {workers} workers: regret after so many epochs, medians: how much worse the "
        f"setting with the best {METRIC} seen is\n"
        f"than the best setting, both as means over the recorded seeds; epochs until that is "
        f"{WITHIN - 1:.0%} or less (at most {EPOCHS}),\n"
        f"and their medians' ratio, over pairs of searches by the same seed.\n\n"
        f"{describe_regrets(outcomes)}"
    )


def as_rows(
    name: str, workers: int, outcomes: Mapping[str, Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """The regrets for programs: an object a method and number of epochs."""
    rows = []
    for method, own in outcomes.items():
        needs = statistics.median(one.epochs_to_regret for one in own)
        for epochs in range(GRID, EPOCHS + 1, GRID):
            regrets = [one.regrets[epochs - 1] for one in own]
            low, high = median_interval(regrets)
            rows.append(
                {
                    "table": name,
                    "method": method,
                    "workers": workers,
                    "epochs": epochs,
                    "regret_median": statistics.median(regrets),
                    "regret_low": low,
                    "regret_high": high,
                    "epochs_to_5_percent": needs,
                }
            )
    return rows


def mean_text(values: Sequence[float], digits: int = 0) -> str:
    """The mean of some values with Student's 95 % interval, which one value does not have."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = float(stats.t.isf(0.025, len(values) - 1) * stats.sem(values))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median: between two of the ordered values, which below six values do
    not reach 95 %."""
    ordered = sorted(values)
    below = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[below], ordered[-1 - below]


def ratio_text(values: Sequence[float], compared: Sequence[float]) -> str:
    """The ratio of two medians with its 95 % interval, by resampling pairs."""
    ratio = statistics.median(values) / statistics.median(compared)
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    medians = [np.median(np.array(own, dtype=float)[picks], axis=1) for own in (values, compared)]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = cli.Parser(
        prog="python -m tune.simulate",
        description="Compare ways of searching over recorded learning curves.",
    )
    add = parser.add_argument
    text = "what to vary, as far as the table has it (default: hparams)"
    add("--search", choices=[*SEARCHES], default="hparams", help=text)
    add("--seeds", type=int, default=30, metavar="N", help="searches by each method (default: 30)")
    text = "trials at a time; several numbers are compared one after another (default: 2)"
    add("--workers", type=int, nargs="+", default=[2], metavar="W", help=text)
    text = "settings that a search may try (default: 150)"
    add("--num-trials", type=int, default=150, metavar="N", help=text)
    text = "epochs before the first decision (default: a sixth of them)"
    add("--grace-period", type=int, metavar="N", help=text)
    text = "table of recorded curves (default: the one in tune/)"
    add("--curves", type=Path, default=CURVES, metavar="FILE", help=text)
    add("--json", action="store_true", help="print the regrets as JSON, for programs")
    text = "write that table from searches made with --scheduler fifo"
    add("--record", type=Path, nargs="+", metavar="RUN", help=text)
    args = parser.parse_args()
    quiet_optuna()
    with cli.one_line_errors(parser):
        for name, most in (("seeds", 10_000), ("num_trials", MOST_TRIALS)):
            check_bounds(flag_name(name), getattr(args, name), 1, most, "all are simulated here")
        for workers in args.workers:
            check_bounds("--workers", workers, 1, 10_000, "all are simulated here")
        if args.record:
            write_curves((row for run in args.record for row in recorded_rows(run)), args.curves)
            print(f"wrote {args.curves}")
            return
        curves = Curves(args.curves, args.search)
        grace_period = args.grace_period
        if grace_period is None:
            grace_period = default_grace_period(curves.epochs)
        check_bounds("--grace-period", grace_period, 1, curves.epochs, "the curves end there")
        search = curves.search(args.search)
        num_trials = int(min(args.num_trials, search.settings))
        rows = []
        # processes that start anew: a fork of one that has threads may wait for ever
        spawning = get_context("spawn")
        with ProcessPoolExecutor(mp_context=spawning, initializer=quiet_optuna) as pool:
            for workers in args.workers:
                numbers = (workers, num_trials, grace_period)
                outcomes = run_methods(pool, curves, search, args.seeds, *numbers)
                rows += as_rows(args.search, workers, outcomes)
                if not args.json:
                    print(describe(args.search, curves, outcomes, *numbers), end="\n\n")
        if args.json:
            print(json.dumps(finite(rows), indent=1))


def finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with None for what is infinite, which JSON does not know."""
    return [
        {name: None if value == math.inf else value for name, value in row.items()} for row in rows
    ]


if __name__ == "__main__":
    main()
