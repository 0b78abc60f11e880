"""The original study's claims, each judged on data: `python -m analysis.claims RUN [RUN...]`.

A verdict is computed: *supported* if the 95 % t interval of the effect lies within the region that
the sentence claims, *contradicted* if it lies outside of it, else *undecided*. Effects are of
matched pairs: settings that differ in what is contrasted alone, so that what a sampler happened to
try together cannot decide. Where a measure is known by seed, the mean over pairs gives one value a
seed, and the interval holds for these settings and new seeds; else each pair gives one value. Pairs
of several contrasts (depth, width, extra convs) share settings, which makes intervals over them
somewhat too narrow.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import cli
from analysis.confirm import mean_interval
from analysis.load import RESULTS, TEXTS, load_trials, settings_of
from dcgan.schema import METRIC

BASELINE = {
    "generator_depth": 2, "discriminator_depth": 2, "extra_convs": 0, "optimizer": "adam", "generator_lr": 2e-4,
    "discriminator_lr": 2e-4, "batch_size": 64, "precision": "float32",
}  # fmt: skip
"""The original study's single setting, at whatever width is most common: that depends on the
preset."""
FACTORS = [*BASELINE, "generator_width", "discriminator_width", "dataset", "epochs"]
TUNED = ("generator_lr", "discriminator_lr", "batch_size", "optimizer")
PROTOCOL = ["eval_split", "eval_samples", "extractor"]
"""Scores of different protocols are not compared,"""
MACHINE = ["device", "threads", "lanes"]
"""nor costs on different machines; nor of different runs, since what else the machine does
differs."""
MNIST = 60_000
"""Images in one of the original study's epochs."""
SURE = 0.8
"""Confident share from which images count as digit-like."""
FIRST = (12.0, 18.0)
"""About epoch 15."""
MEASURES = [
    "blur", "coverage", "path_length", "sharpness", METRIC, "falling", "confident", "late_loss", "late_loss_%",
    "late_sharpness_%",
]  # fmt: skip
LEAST_LATE = 3
"""Fewest late epochs; more, if a third of all is more."""
RUN = "python -m tune.run --sampler grid"
COMMANDS = {
    "baseline": "baseline",
    "architecture": "architecture",
    "hyperparameters": "hparams",
    "precision": "precision",
}
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Study:
    """The finished trials of some runs, in two views."""

    names: list[str]
    """The columns that make up a setting: those of `TrainConfig` but `seed`, and the protocol."""
    seeds: pd.DataFrame
    """One row per trial and lane: setting, `seed`, and the measures of `_measures`."""
    costs: pd.DataFrame
    """One row per trial, lane and epoch but the first, which warms up: setting, machine, costs,
    `run`, and `repeat` in it."""
    failures: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Which levels of a factor to compare, all else equal."""

    names: tuple[str, ...]
    """The settings that change together, from one level that they share to another."""
    pairs: Callable[[list[Any]], list[tuple[Any, Any]]]
    """Of the levels at hand, sorted, those to compare: (reference, changed)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The effect in each unit (its logarithm, if a ratio), what the units are, what was left out
    and what to do."""

    values: pd.Series
    of: str = "seeds"
    ratio: bool = False
    remark: str = ""
    advice: str = ""
    """What would decide an undecided claim, if not more of the same."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the original study as a question to data."""

    part: str
    claim: str
    measured: str
    region: tuple[float, float]
    """Where the effect lies if the sentence is true: an interval with its ends, or a half-line
    without."""
    unit: str
    evidence: Evidence


def _step(before: Any, after: Any) -> Callable[[list[Any]], list[tuple[Any, Any]]]:
    return lambda levels: [(before, after)] if before in levels and after in levels else []


def _lower_rate(rates: list[float]) -> list[tuple[float, float]]:
    return _step(5e-4, 1e-4)(rates) or [(rates[-1], rates[0])] * (len(rates) > 1)


DEPTH = Contrast(("generator_depth", "discriminator_depth"), _step(2, 3))
WIDTH = Contrast(
    ("generator_width", "discriminator_width"),
    lambda levels: [(w, 2 * w) for w in levels if 2 * w in levels],
)
EXTRA = Contrast(("extra_convs",), _step(0, 1))
LARGER = (DEPTH, WIDTH, EXTRA)
RATE = Contrast(("generator_lr", "discriminator_lr"), _lower_rate)
BATCH = Contrast(("batch_size",), _step(64, 128))
RMSPROP = Contrast(("optimizer",), _step("adam", "rmsprop"))
MIXED = {name: Contrast(("precision",), _step("float32", name)) for name in ("bfloat16", "float16")}


def claims(data: Study) -> list[Claim]:
    """All of the original study's claims, in its order, with what the data say. Mixed precision is
    bfloat16, else float16."""
    settings = _matrix(data.seeds, data.names, "seed", METRIC).index
    mixed = next(
        (name for name, contrast in MIXED.items() if _pairs(settings, contrast)), "bfloat16"
    )
    sd_loss, sd_fid = (
        "standard deviation of generator_loss, late epochs",
        "standard deviation of the best fid over seeds",
    )
    late_loss, late_sharpness = f"{sd_loss}, relative to its mean", "the same of sharpness"
    best, blur = "at the best epoch", "|ln sharpness| at the best epoch"
    larger = "one step larger (depth 2 to 3, twice the width, or an extra conv)"
    batch = "batch 128 against 64 (in as many epochs, so half the updates)"
    rmsprop, half = "RMSprop against Adam", f"{mixed} against float32"
    digits = f"first epoch, of {MNIST:,} images, with a confident share of at least {SURE} and no collapse"
    coverage, falls = (
        f"sample_coverage {best}, {larger}",
        f"share of steps between epochs that lower generator_loss, {larger}",
    )
    rates = "learning rate 1e-4 against 5e-4, or else the lowest tried against the highest"
    path = f"path_length {best}, {rates} (it grows as more is learned, too)"
    choice = (
        "fid of the best setting there against the best elsewhere, both picked on the other seeds"
    )
    seconds, memory = (
        f"seconds_train, {half}, by epoch",
        f"peak_memory_bytes (on a CPU the resident set), {half}",
    )
    b, a, h, p = COMMANDS
    unstable = ratio(data, "late_loss", RMSPROP, remark=data.failures)
    return [
        Claim(
            b,
            "digit-like images from about epoch 15",
            digits,
            FIRST,
            "epochs",
            first_confident(data),
        ),
        Claim(
            b,
            "losses somewhat stable",
            late_loss,
            (-math.inf, 20),
            "%",
            baseline(data, "late_loss_%"),
        ),
        Claim(
            b,
            "sharpness varies across batches",
            late_sharpness,
            (10, math.inf),
            "%",
            baseline(data, "late_sharpness_%"),
        ),
        Claim(
            a,
            "deeper nets: clearer edges",
            f"{blur}, depth 2 to 3",
            BELOW,
            "log units",
            change(data, "blur", DEPTH),
        ),
        Claim(
            a,
            "wider nets: clearer edges",
            f"{blur}, twice the width",
            BELOW,
            "log units",
            change(data, "blur", WIDTH),
        ),
        Claim(
            a,
            "extra conv layer: clearer edges",
            f"{blur}, 0 to 1 convs",
            BELOW,
            "log units",
            change(data, "blur", EXTRA),
        ),
        Claim(a, "more detail", coverage, ABOVE, "points", change(data, "coverage", *LARGER)),
        Claim(
            a,
            "slightly slower",
            f"median seconds_train, {larger}",
            (0, 50),
            "%",
            cost(data, "seconds_train", *LARGER),
        ),
        Claim(
            a,
            "more stable: losses",
            f"{sd_loss}, {larger}",
            BELOW,
            "%",
            ratio(data, "late_loss", *LARGER),
        ),
        Claim(a, "more stable: results", f"{sd_fid}, {larger}", BELOW, "%", spread(data, *LARGER)),
        Claim(
            a,
            "G's loss falls more steadily",
            falls,
            ABOVE,
            "points",
            change(data, "falling", *LARGER),
        ),
        Claim(
            h,
            "lower learning rate: smoother transitions",
            path,
            BELOW,
            "%",
            ratio(data, "path_length", RATE),
        ),
        Claim(
            h,
            "larger batch more stable: losses",
            f"{sd_loss}, {batch}",
            BELOW,
            "%",
            ratio(data, "late_loss", BATCH),
        ),
        Claim(
            h,
            "larger batch more stable: results",
            f"{sd_fid}, {batch}",
            BELOW,
            "%",
            spread(data, BATCH),
        ),
        Claim(h, "RMSprop is unstable", f"{sd_loss}, {rmsprop}", ABOVE, "%", unstable),
        Claim(
            h,
            "RMSprop is noisier",
            f"sharpness {best}, {rmsprop}",
            ABOVE,
            "%",
            ratio(data, "sharpness", RMSPROP),
        ),
        Claim(h, "best: Adam, 2e-4 to 3e-4, batch 128", choice, BELOW, "%", best_region(data)),
        Claim(
            p,
            "about 30 % less time",
            seconds,
            (-40, -20),
            "%",
            by_epoch(data, "seconds_train", MIXED[mixed]),
        ),
        Claim(
            p,
            "much less GPU memory",
            memory,
            (-math.inf, -25),
            "%",
            cost(data, "peak_memory_bytes", MIXED[mixed]),
        ),
        Claim(
            p,
            "same quality",
            f"best fid, {half}",
            (-10, 10),
            "%",
            ratio(data, METRIC, MIXED[mixed]),
        ),
    ]


def judge(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per claim of the original study, in its order, however little is known.

    Args:
        frame: as `analysis.load.load_trials` gives it, of one run or several. A setting and seed
            trained in several of them counts once; costs are compared within each run.

    Columns: `part` of the study, `claim`, what is `measured`, the `expected` region of the effect;
    the `effect` with the ends `low` and `high` of its 95 % t interval, in `unit` (points are
    percentage points); `n` units `of` a kind (seeds, pairs of settings, repeated trials, epochs);
    `verdict`: supported, contradicted or undecided; `remark`, such as what was left out and what to
    run.
    """
    return pd.DataFrame([_judge(claim) for claim in claims(_study(frame))])


def _judge(claim: Claim) -> dict[str, Any]:
    evidence, (least, most) = claim.evidence, claim.region
    *ends, n = mean_interval(evidence.values)
    effect, low, high = (100 * math.expm1(end) if evidence.ratio else end for end in ends)
    verdict = _verdict(low, high, claim.region)
    remarks = [evidence.remark] if evidence.remark else []
    if verdict == "undecided":
        why = (
            "the interval crosses an end of the region"
            if n > 1
            else f"too few {evidence.of} to compare"
        )
        more = f"{RUN} --search {COMMANDS[claim.part]} --replicas {8 if n > 1 else 4}"
        remarks.append(evidence.advice or f"{why}; to decide it: {more}")
    words = [f"above {least:g} {claim.unit}"] * (least > -math.inf) + [
        f"below {most:g} {claim.unit}"
    ] * (most < math.inf)
    expected = words[0] if len(words) == 1 else f"{least:g} {claim.unit} to {most:g} {claim.unit}"
    row: dict[str, Any] = {
        "part": claim.part,
        "claim": claim.claim,
        "measured": claim.measured,
        "expected": expected,
    }
    row |= {
        "effect": effect,
        "low": low,
        "high": high,
        "unit": claim.unit,
        "n": n,
        "of": evidence.of,
    }
    return row | {"verdict": verdict, "remark": "; ".join(remarks)}


def _verdict(low: float, high: float, region: tuple[float, float]) -> str:
    least, most = region
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if math.isinf(least) or math.isinf(most):  # no change at all is not below 0
        within, outside = least < low and high < most, high <= least or most <= low
    else:
        within, outside = least <= low and high <= most, high < least or most < low
    return "supported" if within else "contradicted" if outside else "undecided"


def baseline(data: Study, measure: str) -> Evidence:
    """A measure of the baseline itself."""
    rows = data.seeds
    for name, value in BASELINE.items():
        rows = rows[rows[name] == value]
    for width in ("generator_width", "discriminator_width"):
        rows = rows[rows[width].isin(rows[width].mode()[:1])]
    return _over(_matrix(rows, data.names, "seed", measure))


def first_confident(data: Study) -> Evidence:
    """A seed that is never confident counts as at its end, if even that lies beyond the region;
    else nothing is known."""
    evidence = baseline(data, "confident")
    if late := int(np.isinf(evidence.values).sum()):
        known = f"{late} of {len(evidence.values)} seeds do not get there and end too early to tell"
        return Evidence(
            pd.Series(dtype=float), advice=f"{known}; to decide it, train longer (--epochs)"
        )
    return evidence


def change(data: Study, measure: str, *contrasts: Contrast) -> Evidence:
    """The difference of a measure between matched settings, by seed."""
    return _over(_effects(_matrix(data.seeds, data.names, "seed", measure), contrasts))


def ratio(data: Study, measure: str, *contrasts: Contrast, remark: str = "") -> Evidence:
    """The ratio of a positive measure between matched settings, by seed."""
    return _over(
        _effects(_log(_matrix(data.seeds, data.names, "seed", measure)), contrasts),
        ratio=True,
        remark=remark,
    )


def spread(data: Study, *contrasts: Contrast) -> Evidence:
    """The ratio of the standard deviations of fid over seeds, by pair of settings."""
    deviations = (
        _matrix(data.seeds, data.names, "seed", METRIC).std(axis=1).to_frame()
    )  # (settings, 1)
    return Evidence(_effects(_log(deviations), contrasts).mean(axis=1), "settings", ratio=True)


def cost(data: Study, measure: str, *contrasts: Contrast) -> Evidence:
    """The ratio of a trial's cost (peak, or median over epochs) by pair of settings; of a single
    pair, by repeated trial."""
    names, middle = [*data.names, *MACHINE], "max" if measure.startswith("peak") else "median"
    trials = data.costs.groupby([*names, "repeat"], sort=False)[measure].agg(middle).reset_index()
    effects = _effects(_log(_matrix(trials, names, "repeat", measure)), contrasts).dropna(how="all")
    if len(effects) == 1 and effects.iloc[0].count() > 1:
        return Evidence(effects.iloc[0], "trials", ratio=True, remark=_devices(data))
    return Evidence(effects.mean(axis=1), "settings", ratio=True, remark=_devices(data))


def by_epoch(data: Study, measure: str, *contrasts: Contrast) -> Evidence:
    """The ratio of an epoch's cost to that of the same epoch in the matched setting."""
    matrix = _matrix(data.costs, [*data.names, *MACHINE, "run"], "epoch", measure)
    return _over(_effects(_log(matrix), contrasts), "epochs", ratio=True, remark=_devices(data))


def best_region(data: Study) -> Evidence:
    """Adam at 2e-4 to 3e-4 with batch 128: for each seed, the best of both sides by the other seeds
    meet on this one."""
    fids = _matrix(data.seeds, data.names, "seed", METRIC)  # (settings, seeds)
    rows = []
    for _, group in fids.groupby([name for name in data.names if name not in TUNED], sort=False):
        whole = _whole(group)
        tuned = whole.index.to_frame()
        inside = (
            tuned["generator_lr"].between(2e-4, 3e-4)
            & (tuned["optimizer"] == "adam")
            & (tuned["batch_size"] == 128)
        )
        if whole.shape[1] > 1 and inside.any() and not inside.all():
            own, other = (
                np.array([_picked(side, seed) for seed in side])
                for side in (whole[inside], whole[~inside])
            )
            rows.append(pd.Series(np.log(own / other), whole.columns))
    return _over(pd.DataFrame(rows, columns=fids.columns, dtype=float), ratio=True)


def _picked(fids: pd.DataFrame, seed: Any) -> float:
    """A seed's fid in the setting that is best on the others. (settings, seeds)"""
    return float(fids[seed].iloc[fids.drop(columns=seed).mean(axis=1).argmin()])


def _study(frame: pd.DataFrame) -> Study:
    """The views of a frame. What it lacks is missing there; a trial whose settings are lost is left
    out."""
    needed = ["run", "trial", "status", "seed", "lanes", *FACTORS, *RESULTS]
    frame = frame.reset_index(drop=True).reindex(columns=list(dict.fromkeys([*frame, *needed])))
    for name in set(RESULTS) - set(TEXTS):
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("Float64").astype(float)
    frame["run"] = frame["run"].astype(object).where(frame["run"].notna(), "")
    trial = ["run", "trial"]
    names = [name for name in settings_of(frame) if name not in ("seed", "lanes")] + PROTOCOL
    rows = frame[frame["status"] == "finished"].dropna(subset=[*FACTORS, *trial, "seed", "epoch"])
    for name in (*names, *MACHINE):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "unknown")
    rows = rows.sort_values([*trial, "seed", "epoch"], ignore_index=True)
    groups = rows.dropna(subset=METRIC).groupby([*trial, "seed"])
    measured = [{**own.iloc[0].to_dict(), **_measures(own)} for _, own in groups]
    seeds = pd.DataFrame(measured, columns=[*names, "seed", *MEASURES])
    heads = rows.drop_duplicates(trial)
    number = heads.groupby([*names, *MACHINE, "run"], sort=False).cumcount()
    costs = rows[rows["epoch"] > 1].merge(
        heads[trial].assign(repeat=heads["run"] + " " + number.astype(str)), on=trial
    )
    failed = (
        (frame["status"] == "failed")[~frame.duplicated(trial)]
        .groupby(frame["optimizer"])
        .agg(["sum", "size"])
    )
    failures = [
        f"{name}: {row['sum']} of {row['size']} trials failed" for name, row in failed.iterrows()
    ]
    return Study(names, seeds, costs, "; ".join(failures))


def _measures(own: pd.DataFrame) -> dict[str, float]:
    """The `MEASURES` of one trial and seed, from its epochs in order; missing where they cannot be
    had."""
    best = own.iloc[own[METRIC].argmin()]
    late = own[["generator_loss", "sharpness"]].tail(max(LEAST_LATE, len(own) // 3))
    deviation = late.std() if len(late) >= LEAST_LATE else late.std() * math.nan
    relative = 100 * deviation / late.mean()
    blur = abs(math.log(best["sharpness"])) if best["sharpness"] > 0 else math.nan
    steps = own["generator_loss"].diff().dropna()
    # A net that makes one blob of every noise is sure to the classifier, in the first epochs, but
    # makes no digits.
    epochs = own["images_seen"] / MNIST
    sure = (own["confident_share"] >= SURE) & (own["collapsed"] != 1)
    end = epochs.max() if epochs.max() > FIRST[1] else math.inf
    confident = (
        epochs[sure].min()
        if sure.any()
        else end
        if own["confident_share"].notna().any()
        else math.nan
    )
    falling = 100 * (steps < 0).sum() / len(steps) if len(steps) else math.nan
    quality = [
        blur,
        100 * best["sample_coverage"],
        best["path_length"],
        best["sharpness"],
        best[METRIC],
        falling,
        confident,
    ]
    return dict(zip(MEASURES, [*quality, deviation.iloc[0], *relative], strict=True))


def _matrix(rows: pd.DataFrame, names: Sequence[str], unit: str, measure: str) -> pd.DataFrame:
    """A measure by setting and unit; what was trained several times counts once, by the first.
    (settings, units)"""
    return pd.DataFrame(rows.groupby([*names, unit], sort=False)[measure].first().unstack(unit))


def _log(matrix: pd.DataFrame) -> pd.DataFrame:
    positive = matrix.where(matrix > 0)
    return positive.apply(np.log)


def _pairs(index: pd.Index, contrast: Contrast) -> list[tuple[int, int]]:
    """Positions of the settings to compare: they differ in the contrast's names alone."""
    groups: dict[tuple[Any, ...], dict[Any, int]] = {}
    for place, values in enumerate(index):
        setting = dict(zip(index.names, values, strict=True))
        changed = {setting.pop(name) for name in contrast.names}
        if len(changed) == 1:
            groups.setdefault(tuple(setting.values()), {})[changed.pop()] = place
    return [(at[old], at[new]) for at in groups.values() for old, new in contrast.pairs(sorted(at))]


def _effects(matrix: pd.DataFrame, contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """What each pair's change adds. (pairs, units)"""
    values = matrix.to_numpy(float)
    pairs = [pair for contrast in contrasts for pair in _pairs(matrix.index, contrast)]
    return pd.DataFrame(
        [values[after] - values[before] for before, after in pairs],
        columns=matrix.columns,
        dtype=float,
    )


def _whole(cases: pd.DataFrame) -> pd.DataFrame:
    """The most units that a case has (of such sets, the one that most cases have), and the cases
    that have them all."""
    known = cases.notna().to_numpy()
    units = max(
        known,
        key=lambda own: (own.sum(), known[:, own].all(axis=1).sum()),
        default=known.any(axis=0),
    )
    rows = known[:, units].all(axis=1) & bool(units.any())
    return cases.iloc[np.flatnonzero(rows).tolist(), np.flatnonzero(units).tolist()]


def _over(
    cases: pd.DataFrame, of: str = "seeds", *, ratio: bool = False, remark: str = ""
) -> Evidence:
    """The cases' mean in each unit. (cases, units)"""
    whole, known = _whole(cases), len(cases.dropna(how="all"))
    left = (
        f"{known - len(whole)} of {known} matches left out, which lack some of the {of}"
        if known > len(whole)
        else ""
    )
    return Evidence(whole.mean().astype(float), of, ratio, "; ".join(filter(None, [remark, left])))


def _devices(data: Study) -> str:
    return f"on {', '.join(map(str, data.costs['device'].unique()))}" if len(data.costs) else ""


def as_text(table: pd.DataFrame) -> str:
    """The verdicts as a table, and under it how each was measured."""
    shown = table[["part", "claim", "expected"]].assign(
        effect=[
            cli.spread(*ends, "+")
            for ends in zip(table["effect"], table["low"], table["high"], strict=True)
        ],
        n=table["n"].astype(str) + " " + table["of"],
        verdict=table["verdict"],
    )
    shown.index = pd.RangeIndex(1, len(shown) + 1)
    notes = [
        f"{i}. {text}"
        for i, text in enumerate(
            table["measured"] + ("; " + table["remark"]).where(table["remark"] != "", ""), 1
        )
    ]
    return f"{shown.to_markdown(tablefmt='simple', disable_numparse=True)}\n\n" + "\n".join(notes)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.claims",
        description="Judge the original study's claims on data.",
    )
    what = "the folder of a search, or its URI (s3://…); several count together"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=what)
    cli.run(parser, lambda args: as_text(judge(load_trials(args.runs))))


if __name__ == "__main__":
    main()
