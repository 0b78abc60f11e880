"""Recorded learning curves: one compact table of what each setting scored, epoch by epoch, and how long it took."""

import csv
import dataclasses
import json
import lzma
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from dcgan.loop import RATES
from dcgan.schema import METRIC, Row
from tune.plan import SEARCH_FILE
from tune.searches import DEMO, Point, Search, make_search
from tune.trainable import ERROR

CURVES = Path(__file__).with_name("curves.csv.xz")
KEYS = ("search", "config", "seed")
RESULTS = ("epoch", METRIC, "collapsed", "seconds_train", "seconds_eval", "error")
MISMATCH = 100.0  # distance of settings that differ in a category; learning rates are never that far apart


class Curves:
    """The recorded curves of one search.

    Raises:
        ValueError: the file holds none of that search.
    """

    def __init__(self, path: Path, search: str) -> None:
        with lzma.open(path, "rt", newline="") as file:
            table = [row for row in csv.DictReader(file) if row["search"] == search]
        if not table:
            raise ValueError(f"{path} holds no curves of search {search}")
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
        """The epochs of the recorded setting of a seed that is nearest: of the same categories where there is one, and of
        these the nearest in the logarithm of the learning rate."""
        recorded = (number for number, of in self.rows if of == seed)
        return self.rows[min(recorded, key=lambda number: _distance(self.settings[number], config)), seed]

    def best(self, seed: int) -> float:
        """The best metric that any setting reached with a seed."""
        return min(float(row[METRIC]) for (_, of), rows in self.rows.items() if of == seed for row in rows)

    def search(self, name: str) -> Search:
        """The named search over the categories that were recorded."""
        search = make_search(name, DEMO, ("float32",), {"epochs": self.epochs})
        recorded = {axis: sorted({setting[axis] for setting in self.settings.values()}) for axis in search.axes}
        axes = {
            axis: CategoricalDistribution(recorded[axis]) if isinstance(values, CategoricalDistribution) else values
            for axis, values in search.axes.items()
        }
        return dataclasses.replace(search, axes=axes)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a word, such as adam


def _distance(recorded: Point, config: Point) -> float:
    return sum(
        abs(math.log(value / config[name])) if name in RATES else MISMATCH * (value != config[name])
        for name, value in recorded.items()
    )


def recorded_rows(run: Path) -> Iterator[Row]:
    """The epochs of each trial and seed of a search's folder, with `search`, `settings` (what varied) and `seed`.

    Where a trial failed, the epoch that it did not finish has an `error` and no results.

    Raises:
        ValueError: a scheduler ended or changed trials, or one is unfinished.
    """
    search = json.loads((run / SEARCH_FILE).read_text())
    if search["scheduler"] != "fifo":
        raise ValueError(f"{run} was searched with --scheduler {search['scheduler']}; whole curves need fifo")
    for folder in sorted(run.glob("trial_*/")):
        params = json.loads((folder / "params.json").read_text())
        rows = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
        if len(rows) < params["epochs"]:
            if not (folder / ERROR).exists():
                raise ValueError(f"{folder} has {len(rows)} of {params['epochs']} epochs; finish it by --resume {run.name}")
            rows.append({"epoch": len(rows) + 1, "error": (folder / ERROR).read_text().strip()})
        settings = {name: params[name] for name in search["axes"]}
        for replica in range(params["replicas"]):
            head = {"search": search["search"], "settings": settings, "seed": params["seed"] + replica}
            yield from (head | _of_replica(row, replica, params["replicas"]) for row in rows)


def _of_replica(row: Row, replica: int, replicas: int) -> Row:
    own = {name: values[replica] for name, values in row.get("by_replica", {}).items()}
    return row | own | {name: row[name] / replicas for name in ("seconds_train", "seconds_eval") if name in row}


def write_curves(rows: Iterable[Row], out: Path) -> None:
    """Writes a table of rows like those of `recorded_rows`. Settings are numbered as they come."""
    rows = list(rows)
    axes = dict.fromkeys(name for row in rows for name in row["settings"])
    numbers: dict[str, dict[str, int]] = {row["search"]: {} for row in rows}
    with lzma.open(out, "wt", newline="") as file:
        writer = csv.DictWriter(file, [*KEYS, *axes, *RESULTS], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            known = numbers[row["search"]]
            number = known.setdefault(json.dumps(row["settings"], sort_keys=True), len(known))
            writer.writerow({name: _short(value) for name, value in row.items()} | row["settings"] | {"config": number})


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else int(value) if isinstance(value, bool) else value
