"""Recorded learning curves: one compact table of what each setting scored, epoch by epoch, and how
long it took."""

import csv
import dataclasses
import json
import lzma
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from dcgan.config import RATES, read_lanes
from dcgan.files import read_rows
from dcgan.schema import ERROR_FILE, METRIC, ROWS_FILE, SEARCH_FILE, TRIALS_PATTERN, Row
from tune.schedulers import SCHEDULERS
from tune.searches import DEMO, Point, Search, choices_of, make_search

CURVES = Path(__file__).with_name("curves.csv.xz")
KEYS = ("search", "config", "seed")
RESULTS = ("epoch", METRIC, "collapsed", "seconds_train", "seconds_eval", "error")
# distance of settings that differ in a category; learning rates are never that far apart
MISMATCH = 100.0


class Curves:
    """The recorded curves of one search; a ValueError if the file holds none."""

    def __init__(self, path: Path, search: str) -> None:
        table = read_table(path, search)
        axes = [name for name, text in table[0].items() if text and name not in (*KEYS, *RESULTS)]
        self.settings: dict[int, Point] = {}
        """What varied, of each recorded config."""
        self.rows: dict[tuple[int, int], list[Row]] = {}
        """The epochs of each config and seed; fewer than all where it diverged."""
        for row in table:
            config, seed = int(row["config"]), int(row["seed"])
            self.settings[config] = {name: _parse(row[name]) for name in axes}
            rows = self.rows.setdefault((config, seed), [])
            if not row["error"]:
                rows.append({name: _parse(row[name]) for name in RESULTS[:-1]})
        self.seeds = sorted({seed for _, seed in self.rows})
        self.epochs = max(len(rows) for rows in self.rows.values())

    def nearest(self, config: Point, seed: int) -> list[Row]:
        """The epochs of the recorded setting of a seed that is nearest: of the same categories
        where there is one, and of these the nearest in the logarithm of the learning rate."""
        return self.rows[self.nearest_setting(config, seed), seed]

    def nearest_setting(self, config: Point, seed: int) -> int:
        """The number of the recorded setting of a seed that is nearest."""
        recorded = (number for number, own in self.rows if own == seed)
        return min(recorded, key=lambda number: _distance(self.settings[number], config))

    def best(self, seed: int) -> float:
        """The best metric that any setting reached with a seed."""
        curves = [rows for (_, own), rows in self.rows.items() if own == seed]
        return min(float(row[METRIC]) for rows in curves for row in rows)

    def regrets(self) -> dict[int, float]:
        """How much worse each setting is than the best one, as a share: of the means over the
        recorded seeds of the best epoch. Infinite where it diverged with a seed."""
        means = {}
        for number in self.settings:
            curves = [rows for (own, _), rows in self.rows.items() if own == number]
            whole = all(len(rows) == self.epochs for rows in curves)
            bests = [min((row[METRIC] for row in rows), default=math.inf) for rows in curves]
            means[number] = statistics.fmean(bests) if whole else math.inf
        best = min(means.values())
        return {number: mean / best - 1 for number, mean in means.items()}

    def search(self, name: str) -> Search:
        """The named search over the categories that were recorded."""
        search = make_search(name, DEMO, ("float32",), {"epochs": self.epochs})
        axes = dict(search.axes)
        for axis, values in search.axes.items():
            if choices_of(values) is not None:
                recorded = {setting[axis] for setting in self.settings.values()}
                axes[axis] = CategoricalDistribution(sorted(recorded))
        return dataclasses.replace(search, axes=axes)


def read_table(path: Path, search: str) -> list[dict[str, str]]:
    """The rows of a search in a table that `write_curves` wrote; a ValueError if it holds none."""
    try:
        with lzma.open(path, "rt", newline="", encoding="utf-8") as file:
            table = [row for row in csv.DictReader(file) if row["search"] == search]
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"{path} is no table of curves ({error}); expected one that --record wrote"
        ) from error
    if not table:
        raise ValueError(f"{path} holds no curves of search {search}")
    return table


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a word, such as adam


def _distance(recorded: Point, config: Point) -> float:
    distance = 0.0
    for name, value in recorded.items():
        if name in RATES:
            distance += abs(math.log(value / config[name]))
        else:
            distance += MISMATCH * (value != config[name])
    return distance


def recorded_rows(run: Path) -> Iterator[Row]:
    """The epochs of each trial and lane of a search's folder, with `search`, `settings` (what
    varied) and `seed`; a ValueError if any has no whole curve.

    Where a trial failed, the epoch that it did not finish has an `error` and no results.
    """
    search = json.loads((run / SEARCH_FILE).read_text(encoding="utf-8"))
    if search["scheduler"] != SCHEDULERS["fifo"].name:
        raise ValueError(
            f"{run} was searched with --scheduler {search['scheduler']}; whole curves need fifo"
        )
    for folder in sorted(run.glob(f"{TRIALS_PATTERN}/")):
        rows = read_rows(folder / ROWS_FILE)
        for number, config in enumerate(read_lanes(folder)):
            own = [row for row in rows if row["lane"] == number]
            if len(own) < config.epochs:
                own.append(unfinished_row(folder, len(own), config.epochs))
            settings = {name: getattr(config, name) for name in search["axes"]}
            head = {"search": search["search"], "settings": settings, "seed": config.seed}
            for row in own:
                yield head | row


def unfinished_row(folder: Path, done: int, epochs: int) -> Row:
    """The row of the epoch in which a trial failed."""
    error = folder / ERROR_FILE
    if not error.exists():
        raise ValueError(
            f"{folder} has {done} of {epochs} epochs; finish it by --resume {folder.parent.name}"
        )
    return {"epoch": done + 1, "error": error.read_text(encoding="utf-8").strip()}


def write_curves(rows: Iterable[Row], out: Path) -> None:
    """Writes a table of rows like those of `recorded_rows`. Settings are numbered as they come."""
    rows = list(rows)
    axes = dict.fromkeys(name for row in rows for name in row["settings"])
    numbers: dict[str, dict[str, int]] = {row["search"]: {} for row in rows}
    with lzma.open(out, "wt", newline="") as file:
        columns = [*KEYS, *axes, *RESULTS]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            known = numbers[row["search"]]
            number = known.setdefault(json.dumps(row["settings"], sort_keys=True), len(known))
            results = {name: _short(value) for name, value in row.items()}
            writer.writerow(results | row["settings"] | {"config": number})


def _short(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value
