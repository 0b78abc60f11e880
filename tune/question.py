"""The question that options ask: which space, by which sampler and scheduler, from which settings.

What a person left open is settled by the preset, the search, or the device that trials run on.
"""

import dataclasses
import json
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

from dcgan.config import replicate
from dcgan.schema import STUDY_FILE
from dcgan.store import Store, copy_of
from tune.ledger import best_points
from tune.options import Options, read_record
from tune.schedulers import SCHEDULERS, Scheduler
from tune.searches import DEMO, PRESETS, REPORT, Point, Preset, Search, make_search

POINTS_SHARE = 3  # at most a third of the trials begin at settings of an earlier search


def wanted_preset(options: Options, device: str) -> Preset:
    """The preset that a person asks for, or the one that suits the device; with its width."""
    name = options.preset or (REPORT if device == "cuda" else DEMO).name
    preset = PRESETS[name]
    return dataclasses.replace(preset, width=options.width or preset.width)


def wanted_search(options: Options, device: str, precisions: tuple[str, ...]) -> Search:
    """The search that a person asks for, with its sampler and its number of trials.

    Raises:
        ValueError: a combination of options that cannot work.
    """
    preset = wanted_preset(options, device)
    search = make_search(options.search or "", preset, precisions, options.settings)
    replicate(search.base, options.replicas)  # refuses seeds that are too large
    sampler = options.sampler or search.sampler
    if sampler == "grid":
        search = search.as_grid()
    num_trials = wanted_trials(options, search, sampler)
    search = dataclasses.replace(search, sampler=sampler, num_trials=num_trials)
    check_combination(options, search)
    return search


def wanted_trials(options: Options, search: Search, sampler: str) -> int:
    """How many settings to try: as asked, else the whole grid, else the search's own number.

    Raises:
        ValueError: there are fewer different settings than asked for.
    """
    available = search.settings  # infinite where an axis is continuous
    if options.num_trials is None:
        return int(available if sampler == "grid" else min(search.num_trials, available))
    if options.num_trials > available:
        what = "grid" if sampler == "grid" else "space"
        raise ValueError(
            f"--num-trials is {options.num_trials}; the {what} of {search.name} has {available} "
            f"settings"
        )
    return options.num_trials


def wanted_scheduler(options: Options, search: Search) -> Scheduler:
    """The scheduler that a person asks for; nothing ends a grid, or a Pareto search, early."""
    whole = search.sampler == "grid" or len(options.columns) > 1
    return SCHEDULERS[options.scheduler or ("fifo" if whole else "asha")]


def check_combination(options: Options, search: Search) -> None:
    """Refuses options that cannot work with each other.

    Raises:
        ValueError: names them, and what to do.
    """
    if len(options.columns) > 1 and not wanted_scheduler(options, search).several_objectives:
        raise ValueError(
            f"--scheduler {options.scheduler} knows one objective; use fifo with --objectives "
            f"{','.join(options.columns)}"
        )
    if options.grace_period and options.grace_period > search.base.epochs:
        raise ValueError(
            f"--grace-period is {options.grace_period}; allowed is up to the {search.base.epochs} "
            f"epochs of a trial"
        )
    if options.points_from and search.sampler == "grid":
        raise ValueError("--points-from does not go with --sampler grid, whose settings are fixed")
    if options.points_from and not search.axes:
        raise ValueError(
            f"--points-from does not go with --search {search.name}, which varies nothing"
        )


def default_grace_period(epochs: int) -> int:
    """A sixth of the epochs: from there on trials rank much as they do at the end (analysis.rungs,
    docs/log.md)."""
    return max(1, round(epochs / 6))


def first_points(options: Options, search: Search) -> list[Point]:
    """Settings tried before the sampler proposes any: the whole grid, or the baseline and the best
    of an earlier search.

    Raises:
        FileNotFoundError, ValueError: the earlier search cannot be read, or has none that fits.
    """
    if search.sampler == "grid":
        return search.grid_points()[: search.num_trials]
    if not options.points_from:
        return [search.baseline()]
    earlier = copy_of(options.points_from, purpose="earlier")
    earlier.clear()
    earlier.get(STUDY_FILE)
    count = max(1, search.num_trials // POINTS_SHARE)
    return [search.baseline(), *best_points(earlier.folder, search, count)]


def saved_points(search: Search, store: Store) -> list[Point]:
    """The first settings of the search to resume.

    Raises:
        ValueError: its space was another one; names what differs.
    """
    record = read_record(store)
    was, now = record["axes"], search.axes_as_json()
    if differing := [name for name in [*was, *now] if was.get(name) != now.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{store.location} cannot go on here: {name} was over {axis_text(was.get(name))}, is "
            f"over {axis_text(now.get(name))} (a device must do all precisions of a search)"
        )
    points: list[Point] = record["points"]
    return points


def axis_text(axis: dict[str, Any] | None) -> str:
    """An axis of `search.json` as a person reads it."""
    return describe_axis(json_to_distribution(json.dumps(axis))) if axis else "nothing"


def describe_axis(axis: BaseDistribution) -> str:
    """A distribution as a person reads it: `5e-05 to 0.005, log-uniform` or `64, 128, 256`."""
    if isinstance(axis, CategoricalDistribution):
        return ", ".join(map(str, axis.choices))
    assert isinstance(axis, FloatDistribution | IntDistribution)
    kind = "whole numbers, " if isinstance(axis, IntDistribution) else ""
    kind += "log-uniform" if axis.log else "uniform"
    return f"{axis.low:g} to {axis.high:g}, {kind}"
