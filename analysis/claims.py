"""The original study's claims put to data: `python -m analysis.claims RUN [RUN...]`.

`CLAIMS` says of each sentence what measures it, between which settings, and where the effect lies
if the sentence is true. Effects are of matched settings, which differ in what is contrasted alone,
in one of two designs:

- Paired by seed: the mean over all pairs of settings gives one value a seed, and the interval is
  for further seeds of these settings. A cost has one value a search (`run`) instead.
- Paired by setting: each pair of settings gives one value; the interval is for further settings.

*Supported* means that the effect is as the sentence says, and large enough to matter,
*contradicted* that it is the opposite, each by a t test at 5 % for all claims at once (Holm's
adjustment). Else a claim is *undecided*, also where no effect that matters is found, or *not
testable*: the trials are not what it is about.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq

from analysis import cli, stats
from analysis.load import PROTOCOL, load_trials, settings_of
from analysis.stats import LEVEL, Array, Interval
from dcgan.cli import Parser
from dcgan.schema import METRIC

Curve = Mapping[str, Array]  # of one trial and seed: a column's values by epoch
Mask = NDArray[np.bool_]
Level = tuple[Any, ...]  # values of some columns
Group = Mapping[Level, Array]  # a measure by unit, at each level of a contrast, all else equal
Effects = Callable[[Group], list[Array]]  # by unit, of each case in a group; NaN where one lacks

BASELINE = {
    "generator_depth": 2, "discriminator_depth": 2, "extra_convs": 0, "optimizer": "adam",
    "generator_lr": 2e-4, "discriminator_lr": 2e-4, "batch_size": 64, "precision": "float32",
}  # fmt: skip
"""The original study's single setting, at whatever width: that depends on the preset."""
DEPTHS = ("generator_depth", "discriminator_depth")
WIDTHS = ("generator_width", "discriminator_width")
RATES = ("generator_lr", "discriminator_lr")
TUNED = (*RATES, "batch_size", "optimizer")
FACTORS = [*BASELINE, *WIDTHS, "dataset", "epochs"]
MACHINE = ["device", "threads", "lanes"]
NO_CUDA = ["cpu", "mps", "xpu"]
"""Of the values of `device`, where others are models of GPUs."""
NUMBERS = [
    METRIC, "epoch", "images_seen", "generator_loss", "sample_precision", "sample_recall",
    "sample_density", "sample_coverage", "confident_share", "collapsed", "sharpness",
    "path_length", "seconds_train", "peak_memory_bytes",
]  # fmt: skip
MNIST = 60_000
"""Images in one of the original study's 25 epochs."""
FULL = 25 * 49_000
"""Images in 25 epochs of MNIST without the 10,000 digits of its validation split."""
CONFIDENT, PRECISE = 0.8, 0.5
"""Least shares of digit-like images. Noise has a sample_precision of 0, real digits of .94."""
DENSE = 0.85
"""Least sample_density at which high frequencies are edges. Real digits have .91 to .96; with noise
of .1 added .80; blurred, and with noise that brings sharpness back to 1, .76 at most."""
LEAST_LATE = 4
"""Fewest late epochs; more, if a third of all is more."""
MOST_UNITS = 64
"""Most seeds of a setting that a search trains."""


# What to compare


def step(before: Any, after: Any) -> Effects:
    """One pair of levels."""
    return lambda group: [group[after] - group[before]] if {before, after} <= group.keys() else []


def doubled(group: Group) -> list[Array]:
    """Each width, of both nets, and its double."""
    widths = [level[0] for level in group if level[0] == level[1]]
    pairs = [(width, 2 * width) for width in widths if 2 * width in widths]
    return [group[wide, wide] - group[narrow, narrow] for narrow, wide in pairs]


def mixed(group: Group) -> list[Array]:
    """float32 and bfloat16, or float16 where that was not tried."""
    name = "bfloat16" if ("bfloat16",) in group else "float16"
    return step(("float32",), (name,))(group)


def alone(group: Group) -> list[Array]:
    """The baseline by itself."""
    return [values for level, values in group.items() if level == tuple(BASELINE.values())]


def advised(level: Level) -> bool:
    """Whether a level of `TUNED` is what the original study found best."""
    return level[2:] == (128, "adam") and all(2e-4 <= rate <= 3e-4 for rate in level[:2])


def tuned(level: Level) -> bool:
    """Whether a level of `TUNED` is not the baseline."""
    return level != tuple(BASELINE[name] for name in TUNED)


def picked(first: Callable[[Level], bool]) -> Effects:
    """The best setting of a part of a group minus the best of the others, both picked on a third of
    the units and compared on the rest, so that picking flatters neither."""

    def effects(group: Group) -> list[Array]:
        rows, units = whole(np.array(list(group.values())))
        kept = [level for level, row in zip(group, rows, strict=True) if row]
        parts = [[level for level in kept if first(level) == own] for own in (True, False)]
        if units.sum() < 2 or not all(parts):
            return []
        some = units.nonzero()[0][: max(units.sum() // 3, 1)]
        best = [min(part, key=lambda level: group[level][some].mean()) for part in parts]
        difference = np.where(units, group[best[0]] - group[best[1]], math.nan)
        difference[some] = math.nan
        return [difference]

    return effects


def whole(x: Array) -> tuple[Mask, Mask]:
    """The cases that have the most units, and these units (of several such sets, the one that most
    cases have), as masks. (cases, units)"""
    finite = np.isfinite(x)
    units = max(finite, key=lambda own: (own.sum(), finite[:, own].all(axis=1).sum()))
    return finite[:, units].all(axis=1) & units.any(), units


# What to measure


def log(value: float) -> float:
    """Its logarithm; NaN of what has none."""
    return math.log(value) if value > 0 else math.nan


def late(values: Array) -> Array:
    """The values of the last epochs."""
    return values[-max(LEAST_LATE, len(values) // 3) :]


def late_spread(loss: Array) -> float:
    """Standard deviation of the late losses about a straight line: stability, whether or not they
    still fall."""
    values = late(loss)
    if len(values) < LEAST_LATE:
        return math.nan
    x = np.arange(len(values)) - (len(values) - 1) / 2
    residuals = values - values.mean() - x * (x * values).sum() / (x**2).sum()
    return math.sqrt((residuals**2).sum() / (len(values) - 2))


def at_updates(curve: Curve, last: float, step: float) -> list[int]:
    """Indices of the epochs nearest to multiples of `step` updates, up to `last`: of batches of all
    sizes as many epochs, after as many updates."""
    count = round(last / step) if step > 0 else 0
    return [int(np.abs(curve["updates"] - step * k).argmin()) for k in range(1, count + 1)]


def measures(curve: Curve, last: float, step: float, fid: float) -> dict[str, float]:
    """All measures of a curve, by name; logarithms of those in %; NaN where they cannot be had.

    Args:
        last: updates that the batches to be compared both reach.
        step: updates in an epoch of the smaller of them.
        fid: what all learning rates reach.
    """
    best = {name: float(values[curve[METRIC].argmin()]) for name, values in curve.items()}
    loss, epochs = curve["generator_loss"], curve["images_seen"] / MNIST
    places, steps, order = at_updates(curve, last, step), np.diff(loss), curve[METRIC].argsort()
    shares = np.array([curve["confident_share"], curve["sample_precision"]])
    digits = (shares[0] >= CONFIDENT) & (shares[1] >= PRECISE) & (curve["collapsed"] != 1)
    first_digits = epochs[digits.argmax()] if digits.any() else epochs[-1]  # or later
    path = np.interp(fid, curve[METRIC][order], curve["path_length"][order], right=math.nan)
    return {
        "fid": log(best[METRIC]),
        "fid_at_updates": log(curve[METRIC][places].min()) if places else math.nan,
        "spread": log(late_spread(loss)),
        "spread_at_updates": log(late_spread(loss[places])),
        "relative_spread": 100 * late_spread(loss) / (late(loss).mean() or math.nan),
        "falling": 100 * (steps < 0).mean() if np.isfinite(steps).any() else math.nan,
        "first_digits": first_digits if np.isfinite(shares).all() else math.nan,
        "blur": 100 * abs(log(best["sharpness"])),
        "excess": 100 * np.maximum(best["sharpness"] - 1, 0),
        "coverage": 100 * best["sample_coverage"],
        "recall": 100 * best["sample_recall"],
        "density": best["sample_density"],
        "path": log(path),
        "seconds": log(np.median(curve["seconds_train"][1:])) if len(steps) else math.nan,
        "memory": log(curve["peak_memory_bytes"][-1]),
        "images": curve["images_seen"][-1],
    }


# The claims


class Measure(NamedTuple):
    """What an effect is of."""

    name: str  # as in `measures`, or `failed`
    text: str
    unit: str = "%"  # if %, effects are ratios
    table: str = "seeds"  # of a study: seeds, costs or trials
    over: str = "seeds"  # the units: seeds, runs or settings


class Contrast(NamedTuple):
    """Between which settings an effect is."""

    text: str
    search: str  # whose grid has them
    names: tuple[str, ...]  # in which they differ
    effects: Effects = lambda _: []


class Need(NamedTuple):
    """What trials have to be for a sentence to be about them."""

    text: str
    met: Callable[[pd.DataFrame], Any]


class Claim(NamedTuple):
    """A sentence of the original study as a question to data."""

    part: str
    sentence: str
    measure: Measure
    contrast: Contrast
    region: tuple[float, float]  # where the effect lies if the sentence is true
    least: float = 0  # the least effect that matters: one between 0 and it decides nothing
    needs: tuple[Need, ...] = ()

    @property
    def ends(self) -> tuple[float, float]:
        """The region without what does not matter: where an effect supports the claim."""
        low, high = self.region
        return (self.least if low == 0 else low), (-self.least if high == 0 else high)


CUDA = Need("CUDA", lambda rows: rows["device"].notna() & ~rows["device"].isin(NO_CUDA))
BUDGET = Need(f"25 epochs of MNIST, {FULL:,} images", lambda rows: rows["images"] >= FULL)
SHARP = Need(f"a sample_density of at least {DENSE}", lambda rows: rows["density"] >= DENSE)
BATCHES = Need("sharpness by batch in the rows", lambda rows: rows["over_batches"].notna())

LATE = "spread of generator_loss about its trend, late epochs"
SEEDS = "standard deviation of ln fid over seeds"
FID = Measure("fid", "best fid")
FID_STEP = Measure("fid_at_updates", "best fid at equal updates")
LOSS = Measure("spread", LATE)
LOSS_STEP = Measure("spread_at_updates", f"{LATE} at equal updates")
LOSS_MEAN = Measure("relative_spread", LATE, "% of the mean")
RESULTS = Measure("fid", SEEDS, over="settings")
RESULTS_STEP = Measure("fid_at_updates", f"{SEEDS} at equal updates", over="settings")
FAILED = Measure("failed", "share of trials that failed", "points", "trials", "settings")
STEADY = Measure("falling", "share of steps between epochs that lower generator_loss", "points")
GOOD = f"confident_share from {CONFIDENT}, sample_precision from {PRECISE} and no collapse"
DIGITS = Measure("first_digits", f"first epoch ({MNIST:,} images) with {GOOD}", "epochs")
VARIES = Measure("over_batches", "spread of sharpness over an epoch's batches", "% of the mean")
EDGES = Measure("blur", "|ln sharpness| at the best epoch, in hundredths", "points")
NOISE = Measure("excess", "high-frequency energy beyond real digits', best epoch", "points")
DETAIL = Measure("coverage", "sample_coverage at the best epoch", "points")
FEATURES = Measure("recall", "sample_recall at the best epoch", "points")
SMOOTH = Measure("path", "path_length at the fid that all rates reach")
TIME = Measure("seconds", "median seconds_train after the first epoch", "%", "costs", "runs")
SPREAD = Measure("fid", "spread of ln fid over settings against over seeds", "times")
MEMORY = Measure("memory", "peak_memory_bytes", "%", "costs", "runs")

ALONE = Contrast("the baseline", "baseline", tuple(BASELINE), alone)
DEPTH = Contrast("depth 3 against 2", "architecture", DEPTHS, step((2, 2), (3, 3)))
WIDTH = Contrast("twice the width", "architecture", WIDTHS, doubled)
EXTRA = Contrast("one extra conv layer", "architecture", ("extra_convs",), step((0,), (1,)))
RATE = Contrast("rate 1e-4 against 5e-4", "hparams", RATES, step((5e-4, 5e-4), (1e-4, 1e-4)))
BATCH = Contrast("batch 128 against 64", "hparams", ("batch_size",), step((64,), (128,)))
RMSPROP = Contrast("RMSprop against Adam", "hparams", ("optimizer",), step(("adam",), ("rmsprop",)))
MIXED = Contrast("bfloat16, else float16, against float32", "precision", ("precision",), mixed)
PICKED = "picked on a third of the units"
BEST = Contrast(f"best of these against best other, {PICKED}", "hparams", TUNED, picked(advised))
TUNING = Contrast(f"the best, {PICKED}, against the baseline", "hparams", TUNED, picked(tuned))
BY_SIZE = Contrast("sizes of nets", "architecture", (*DEPTHS, *WIDTHS, "extra_convs"))
BY_VALUE = Contrast("hyperparameters", "hparams", TUNED)

LESS, MORE = (-math.inf, 0.0), (0.0, math.inf)
A, H = "architecture", "hyperparameters"
CLAIMS = (
    Claim("baseline", "digit-like from about epoch 15", DIGITS, ALONE, (12, 18), needs=(BUDGET,)),
    Claim("baseline", "losses somewhat stable", LOSS_MEAN, ALONE, (-math.inf, 20), needs=(BUDGET,)),
    Claim("baseline", "sharpness varies by batch", VARIES, ALONE, (10, math.inf), needs=(BATCHES,)),
    Claim(A, "deeper nets: more detail", DETAIL, DEPTH, MORE, 3),
    Claim(A, "wider nets: more detail", DETAIL, WIDTH, MORE, 3),
    Claim(A, "extra conv layer: more detail", DETAIL, EXTRA, MORE, 3),
    Claim(A, "deeper nets: clearer edges", EDGES, DEPTH, LESS, 6, (SHARP,)),
    Claim(A, "wider nets: clearer edges", EDGES, WIDTH, LESS, 6, (SHARP,)),
    Claim(A, "extra conv layer: clearer edges", EDGES, EXTRA, LESS, 6, (SHARP,)),
    Claim(A, "deeper nets: slightly slower", TIME, DEPTH, (0, 50), needs=(CUDA,)),
    Claim(A, "wider nets: slightly slower", TIME, WIDTH, (0, 50), needs=(CUDA,)),
    Claim(A, "extra conv layer: slightly slower", TIME, EXTRA, (0, 50), needs=(CUDA,)),
    Claim(A, "deeper nets: more stable losses", LOSS, DEPTH, LESS, 20),
    Claim(A, "wider nets: more stable losses", LOSS, WIDTH, LESS, 20),
    Claim(A, "extra conv layer: more stable losses", LOSS, EXTRA, LESS, 20),
    Claim(A, "deeper nets: more stable results", RESULTS, DEPTH, LESS, 20),
    Claim(A, "wider nets: more stable results", RESULTS, WIDTH, LESS, 20),
    Claim(A, "extra conv layer: more stable results", RESULTS, EXTRA, LESS, 20),
    Claim(A, "deeper nets: G's loss falls more steadily", STEADY, DEPTH, MORE, 5),
    Claim(A, "wider nets: G's loss falls more steadily", STEADY, WIDTH, MORE, 5),
    Claim(A, "extra conv layer: G's loss falls more steadily", STEADY, EXTRA, MORE, 5),
    Claim(A, "depth alone: more features", FEATURES, DEPTH, MORE, 10),
    Claim(H, "lower learning rate: smoother transitions", SMOOTH, RATE, LESS, 10),
    Claim(H, "larger batch: more stable losses, by update", LOSS_STEP, BATCH, LESS, 20),
    Claim(H, "larger batch: more stable losses, by epoch", LOSS, BATCH, LESS, 20),
    Claim(H, "larger batch: more stable results, by update", RESULTS_STEP, BATCH, LESS, 20),
    Claim(H, "larger batch: more stable results, by epoch", RESULTS, BATCH, LESS, 20),
    Claim(H, "RMSprop is unstable: losses", LOSS, RMSPROP, MORE, 20),
    Claim(H, "RMSprop is unstable: failures", FAILED, RMSPROP, MORE, 5),
    Claim(H, "RMSprop is noisier", NOISE, RMSPROP, MORE, 6),
    Claim(H, "best: a batch of 128, by update", FID_STEP, BATCH, LESS, 5),
    Claim(H, "best: a batch of 128, by epoch", FID, BATCH, LESS, 5),
    Claim(H, "best: Adam, 2e-4 to 3e-4, batch 128: quality", FID, BEST, LESS, 5, (BUDGET,)),
    Claim(H, "best: Adam, 2e-4 to 3e-4, batch 128: stability", LOSS, BEST, LESS, 20, (BUDGET,)),
    Claim(H, "best: Adam, 2e-4 to 3e-4, batch 128: speed", TIME, BEST, LESS, 5, (CUDA,)),
    Claim("precision", "about 30 % less time", TIME, MIXED, (-40, -20), needs=(CUDA,)),
    Claim("precision", "much less GPU memory", MEMORY, MIXED, (-math.inf, -25), needs=(CUDA,)),
    Claim("precision", "same quality", FID, MIXED, (-10, 10)),
    Claim("precision", "no downside: failures", FAILED, MIXED, (-math.inf, 5)),
    Claim("precision", "no downside: stability", LOSS, MIXED, (-math.inf, 20)),
    Claim("summary", "highly sensitive to architecture", SPREAD, BY_SIZE, MORE, 2),
    Claim("summary", "highly sensitive to hyperparameters", SPREAD, BY_VALUE, MORE, 2),
    Claim("summary", "more layers: better fidelity", FID, DEPTH, LESS, 5),
    Claim("summary", "an extra conv layer: better fidelity", FID, EXTRA, LESS, 5),
    Claim("summary", "careful tuning: better fidelity", FID, TUNING, LESS, 5),
)
"""Least effects exceed chance in evaluation; those of losses are judgements. Of real digits of
mnist-mini, `dcgan.evaluate.score(train[i : i + 2000], load_reference(source, "validation"))` on a
CPU, for i = 0, 2000, 4000, 6000, and of the test split, spans .06 in ln sharpness, .025 in
sample_coverage, .02 in sample_recall. One generator's samples (the baseline, width 16) from eight
sets of noise have standard deviations of 1.5 % of fid, .009 of sample_coverage, .07 of
sample_recall and 3 % of path_length."""
MEASURES = ["density", "images", *{claim.measure.name: 0 for claim in CLAIMS}]


class Table(NamedTuple):
    """Measures of the trials of some runs."""

    rows: pd.DataFrame  # with the values of `names` as one column, `setting`
    names: list[str]  # which make up a setting
    unit: str  # tells units of a setting apart; what is trained twice counts by the first


class Evidence(NamedTuple):
    """What the data say of a claim."""

    interval: Interval = stats.NOTHING  # of the effect; of ratios in logarithms
    p: float = math.nan  # two-sided, of the decision that the effect is in favour of; 1: of none
    values: Array = np.empty(0)  # the effect by unit
    lacking: str = ""  # what the sentence is about and the trials are not
    remark: str = ""


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each of `CLAIMS`, however little is known.

    Columns: `part` of the study, `claim`, what is `measured`, the `expected` region of the effect;
    the `effect` with the ends `low` and `high` of its own 95 % t interval, in `unit` (points are
    percentage points); `n` units `of` a kind (seeds, runs, settings); `p` of the decision that the
    effect is in favour of, two-sided, adjusted for all claims that have one; `verdict` (supported,
    contradicted, undecided, not testable); `remark`, such as what would decide it.

    Args:
        frame: as `analysis.load.load_trials` gives it, of one run or several. Costs are compared
            within a run. Of several data sets and protocols a claim takes the one with most units.
    """
    study = read_study(frame)
    found = [evidence(claim, study[claim.measure.table]) for claim in CLAIMS]
    p = stats.holm([own.p for own in found]).tolist()
    family = int(np.isfinite(p).sum())
    images = study["seeds"].rows["images"].max()
    budget = (
        f"after {images:,.0f} images, of the original study's {25 * MNIST:,}"
        if images < FULL
        else ""
    )
    rows = []
    for claim, own, adjusted in zip(CLAIMS, found, p, strict=True):
        verdict, why = decide(claim, own, adjusted, family)
        notes = [own.remark, why, budget if verdict in ("supported", "contradicted") else ""]
        remark = "; ".join(note for note in notes if note)
        rows.append(described(claim, own) | {"p": adjusted, "verdict": verdict, "remark": remark})
    return pd.DataFrame(rows)


def read_study(frame: pd.DataFrame) -> dict[str, Table]:
    """The tables of a frame: of seeds, of costs and of trials that ended. A column that the frame
    lacks is missing in them; a trial whose settings are lost is left out."""
    others = ["run", "trial", "status", "seed", *FACTORS, *PROTOCOL, *MACHINE, *NUMBERS]
    columns = list(dict.fromkeys([*frame, *others]))
    frame = frame.reset_index(drop=True).reindex(columns=columns)
    numbers = frame[NUMBERS].apply(pd.to_numeric, errors="coerce")
    frame[NUMBERS] = numbers.astype("Float64").astype(float)
    frame = frame.dropna(subset=[*FACTORS, "trial", "seed"])
    frame["run"] = frame["run"].astype(str)
    frame["trial"] = frame["run"] + " " + frame["trial"].astype(str)
    frame = frame.sort_values(["trial", "seed", "epoch"], ignore_index=True)
    names = [name for name in settings_of(frame) if name not in ("seed", "lanes")]
    scored = [*names, *(name for name in PROTOCOL if name not in names)]
    ended = frame[frame["status"].isin(["finished", "stopped", "failed"])]
    trials = ended.drop_duplicates("trial")
    trials = trials.assign(failed=100.0 * (trials["status"] == "failed"))
    finished = frame[(frame["status"] == "finished") & frame[[METRIC, "epoch"]].notna().all(axis=1)]
    seeds = seed_rows(finished, scored)
    machines = [*scored, *MACHINE]
    return {
        "seeds": table_of(seeds, scored, "seed", MEASURES),
        "costs": table_of(seeds, machines, "run", MEASURES),
        "trials": table_of(trials, names, "trial", ["failed"]),
    }


def table_of(rows: pd.DataFrame, names: list[str], unit: str, values: list[str]) -> Table:
    """A table of settings by these names."""
    kept = rows[[unit, "device", *values]].assign(setting=levels(rows, names))
    return Table(kept, names, unit)


def seed_rows(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """A row for each trial and seed: its settings and its `measures`."""
    columns = {name: rows[name].to_numpy(float) for name in NUMBERS}
    columns["updates"] = columns["images_seen"] / rows["batch_size"].to_numpy(float)
    places = list(rows.groupby(["trial", "seed"], sort=False).indices.values())
    curves = [{name: values[own] for name, values in columns.items()} for own in places]
    heads = rows.iloc[[own[0] for own in places]].drop(columns=NUMBERS).reset_index(drop=True)
    ends = [(c["updates"][-1], c["updates"][0], c[METRIC].min()) for c in curves]
    limits = pd.DataFrame(ends, columns=["last", "step", "fid"], dtype=float)
    halved = heads["batch_size"].replace(128, 64)
    same = levels(heads.assign(batch_size=halved), names)
    limits["last"] = limits["last"].groupby(same).transform("min")
    limits["step"] = limits["step"].groupby(same).transform("max")
    same = levels(heads, [name for name in [*names, "seed"] if name not in RATES])
    limits["fid"] = limits["fid"].groupby(same).transform("max")
    found = [measures(c, *own) for c, own in zip(curves, limits.to_numpy(), strict=True)]
    return heads.join(pd.DataFrame(found, dtype=float).reindex(columns=MEASURES))


def levels(rows: pd.DataFrame, names: list[str]) -> "pd.Series[Any]":
    """The values of some columns of each row, as one."""
    values = np.array(rows[names], dtype=object)
    values[pd.isna(values)] = "unknown"
    return pd.Series([tuple(row) for row in values], rows.index, dtype=object)


def evidence(claim: Claim, table: Table) -> Evidence:
    """The effect and its interval, or what is lacking for it."""
    rows = table.rows
    for need in claim.needs:
        rows = rows[need.met(rows)]
        if rows.empty and len(table.rows):
            return Evidence(lacking=need.text)
    groups: dict[Level, dict[Level, Array]] = {}
    for setting, values in matrix(rows, table.unit, claim.measure).items():
        shared = dict(zip(table.names, setting, strict=True))
        level = tuple(shared.pop(name) for name in claim.contrast.names)
        groups.setdefault(tuple(shared.items()), {})[level] = values
    if claim.measure is SPREAD:
        return over_settings(claim, [np.array(list(group.values())) for group in groups.values()])
    protocols: dict[Level, list[Array]] = {}
    for items, group in groups.items():
        protocol = tuple(value for name, value in items if name in PROTOCOL)
        protocols.setdefault(protocol, []).extend(claim.contrast.effects(group))
    cases = [np.array(effects) for effects in protocols.values() if np.isfinite(effects).any()]
    if not cases:  # else each is (cases, units)
        return Evidence()
    if claim.measure.over == "settings":
        return of_values(claim, max((x[np.isfinite(x)] for x in cases), key=len))
    x = max(cases, key=lambda x: int(whole(x)[1].sum()))
    kept, units = whole(x)
    left = int(np.isfinite(x).any(axis=1).sum() - kept.sum())
    remark = f"{left} of {len(x)} pairs lack some of the {claim.measure.over} and are left out"
    return of_values(claim, x[np.ix_(kept, units)].mean(axis=0), remark if left else "")


def of_values(claim: Claim, values: Array, remark: str = "") -> Evidence:
    """The mean of independent values, by t; alike ones have no interval."""
    interval = stats.mean_interval(values)
    if len(values) < 2 or np.ptp(values) < 1e-9:
        interval = interval._replace(low=math.nan, high=math.nan)
        return Evidence(interval, values=values, remark=remark)
    p = 1.0
    (low, high), (least, most) = scaled(claim, claim.ends), scaled(claim, claim.region)
    if low <= interval.value <= high:
        p = 2 * max(stats.tail_probability(values, low), stats.tail_probability(-values, -high))
    elif interval.value < least:
        p = 2 * stats.tail_probability(-values, -least)
    elif interval.value > most:
        p = 2 * stats.tail_probability(values, most)
    return Evidence(interval, p, values, remark=remark)


def over_settings(claim: Claim, groups: list[Array]) -> Evidence:
    """Standard deviation of the settings' own means over that of seeds about them, by the F test of
    randomised blocks, seeds; for further seeds of these settings F is noncentral."""
    x = max((x[np.ix_(*whole(x))] for x in groups), key=np.size, default=np.empty((0, 0)))
    settings, n = x.shape
    if settings < 3 or n < 2:
        return Evidence()
    means = x.mean(axis=1, keepdims=True)
    error = ((x - means - x.mean(axis=0) + x.mean()) ** 2).sum() / ((settings - 1) * (n - 1))
    if error < 1e-18:
        return Evidence()
    f, freedom = float(n * means.var(ddof=1) / error), (settings - 1, (settings - 1) * (n - 1))

    def tail(noncentrality: float) -> float:
        p = float(special.ncfdtr(*freedom, noncentrality, f))
        return 0.0 if math.isnan(p) else p  # where it underflows

    def spread(share: float) -> float:
        most = 10 * settings * (f + 10)
        end = brentq(lambda x: tail(x) - share, 0, most) if tail(0) > share else 0.0
        return math.sqrt(end / (n * (settings - 1)))

    low, high = spread((1 + LEVEL) / 2), spread((1 - LEVEL) / 2)
    interval = Interval(math.sqrt(max(f - 1, 0) / n), low, high, n)
    enough = interval.value >= claim.least
    return Evidence(interval, 2 * (1 - tail(n * (settings - 1) * claim.least**2)) if enough else 1)


def matrix(rows: pd.DataFrame, unit: str, measure: Measure) -> dict[Level, Array]:
    """A measure by setting and unit; over all units, where settings are to be the units."""
    columns = (rows[name].to_list() for name in ("setting", unit, measure.name))
    found: dict[Level, dict[Any, float]] = {}
    for setting, name, value in zip(*columns, strict=True):
        found.setdefault(setting, {}).setdefault(name, value)
    if measure.over != "settings":
        names = rows[unit].unique().tolist()
        return {
            setting: np.array([values.get(name, math.nan) for name in names])
            for setting, values in found.items()
        }
    taken = {setting: stats.known(list(values.values())) for setting, values in found.items()}
    if measure.table == "trials":
        return {setting: np.array([values.mean()]) for setting, values in taken.items()}
    return {
        setting: np.array([log(values.std(ddof=1))])
        for setting, values in taken.items()
        if len(values) > 1
    }


def scaled(claim: Claim, region: tuple[float, float]) -> tuple[float, float]:
    """A region of a claim's effect, in logarithms if that is a ratio."""
    low, high = region
    if claim.measure.unit != "%":
        return low, high
    return (math.log1p(low / 100) if low > -100 else -math.inf), math.log1p(high / 100)


def decide(claim: Claim, own: Evidence, p: float, family: int) -> tuple[str, str]:
    """The verdict by the adjusted p, and of one that does not decide, what would."""
    (low, high), over, n = scaled(claim, claim.ends), claim.measure.over, own.interval.n
    if own.lacking:
        return "not testable", f"needs {own.lacking}"
    if p < 1 - LEVEL:
        return "supported" if low <= own.interval.value <= high else "contradicted", ""
    command = f"python -m tune.run --search {claim.contrast.search} --sampler grid --replicas"
    if n < 2:
        return "undecided", f"needs at least two {over}, such as of {command} 4"
    if math.isnan(own.p):
        return "undecided", f"the same in all {over}, which says nothing of others"
    if own.p == 1:
        least = f"{claim.least:g} {claim.measure.unit}"
        return "undecided", f"between no effect and {least}, the least that matters"
    by_itself = f"decided by itself, but not among {family} claims; " if own.p < 1 - LEVEL else ""
    thresholds = [low, high, *scaled(claim, claim.region)]
    needed = units_needed(own.values, thresholds, family) if len(own.values) else 2 * n
    more = f"{by_itself}about {needed} {over} like these may decide it"
    if needed > MOST_UNITS:
        more = f"even {MOST_UNITS} {over} like these would not decide it"
    elif over == "seeds":
        more = f"{more}: {command} {needed}"
    return "undecided", more


def units_needed(values: Array, thresholds: Sequence[float], family: int) -> int:
    """How many units like these would decide a claim even as the first of a family; one more than
    `MOST_UNITS` if not even these."""
    distance = np.abs(values.mean() - np.array(thresholds)).min() / values.std(ddof=1)
    n = np.arange(len(values) + 1, MOST_UNITS + 1)
    enough = distance * np.sqrt(n) > stats.student_quantile((1 - LEVEL) / 2 / family, n - 1)
    return int(n[enough][0]) if enough.any() else MOST_UNITS + 1


def described(claim: Claim, own: Evidence) -> dict[str, Any]:
    """What is claimed, and the effect."""
    unit, (least, most) = claim.measure.unit, claim.ends
    effect = [100 * math.expm1(end) if unit == "%" else end for end in own.interval[:3]]
    expected = f"{least:g} to {most:g} {unit}"
    if math.isinf(least):
        expected = f"below {most:g} {unit}"
    if math.isinf(most):
        expected = f"above {least:g} {unit}"
    return {
        "part": claim.part, "claim": claim.sentence,
        "measured": f"{claim.measure.text}, {claim.contrast.text}", "expected": expected,
        "effect": effect[0], "low": effect[1], "high": effect[2], "unit": unit,
        "n": own.interval.n, "of": claim.measure.over,
    }  # fmt: skip


def as_text(table: pd.DataFrame) -> str:
    """The verdicts as a table, and under it how each was measured."""
    columns = (table[name].to_list() for name in ("effect", "low", "high", "unit"))
    ends = zip(*columns, strict=True)
    shown = table[["part", "claim", "expected"]].assign(
        effect=[
            cli.spread(value, low, high, "+" if unit in ("%", "points") else "")
            for value, low, high, unit in ends
        ],
        n=table["n"].astype(str) + " " + table["of"],
        verdict=table["verdict"].replace("not testable", "not testable here"),
    )
    shown.index = pd.RangeIndex(1, len(shown) + 1)
    text = shown.to_markdown(tablefmt="simple", disable_numparse=True)
    remarks = ("; " + table["remark"]).where(table["remark"] != "", "")
    notes = enumerate(table["measured"] + remarks, start=1)
    return f"{text}\n\n" + "\n".join(f"{number}. {note}" for number, note in notes)


def main() -> None:
    parser = Parser(
        prog="python -m analysis.claims", description="Put the original study's claims to data."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"{cli.RUN_HELP}; or several")
    cli.run(parser, show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    table = verdicts(load_trials(args.runs))
    return as_text(table), cli.records(table)


if __name__ == "__main__":
    main()
