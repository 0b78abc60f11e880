"""The answer of the confirm stage: `python -m analysis.confirm RUN`.

A search reports the best of many noisy values, which flatters. The confirm stage trains its
candidates and the original study's baseline anew, with the same fresh seeds each, and scores them
on validation and test: their means, and their differences, seed by seed.
"""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import cli
from analysis.load import RESULTS, load_trials, local, read_json, read_search
from analysis.stats import Comparison, Interval, compare_blocks, mean_interval, student_quantile
from analysis.tables import best_epochs, conditions
from dcgan.schema import CONFIRM_FOLDER, METRIC, SEARCH_FILE, TEST_FILE, renamed, trial_name

VALIDATION, TEST = f"validation_{METRIC}", f"test_{METRIC}"


def load_confirm(run: Path) -> pd.DataFrame:
    """One row per candidate and fresh seed, those not trained yet too.

    Columns: `candidate` (index), `trial` of the search, `baseline`, the search's `estimate`,
    `seed`, `status` (see `dcgan.schema.STATUSES`, or `missing`) and, of finished ones,
    `validation_fid` (best epoch) and the scores `test_*`.

    Raises:
        FileNotFoundError: there is no confirm stage.
    """
    folder = run / CONFIRM_FOLDER
    search = read_search(folder)
    if not search.get("candidates") or not search.get("seeds"):
        raise FileNotFoundError(
            f"no confirm stage in {run}: expected {CONFIRM_FOLDER}/{SEARCH_FILE} with candidates "
            f"and seeds"
        )
    best = best_epochs(load_trials(folder)).set_index("trial")
    runs = itertools.product(enumerate(search["candidates"]), search["seeds"])
    rows: list[dict[str, Any]] = []
    for number, ((index, candidate), seed) in enumerate(runs):
        name = trial_name(number)
        row = {
            "candidate": index,
            "trial": candidate["trial"] or "baseline",
            "baseline": candidate.get("baseline", False),
            "estimate": candidate["estimate"],
            "seed": seed,
            "status": best.at[name, "status"] if name in best.index else "missing",
            VALIDATION: math.nan,
            TEST: math.nan,
        }
        if row["status"] == "finished":
            row[VALIDATION] = best.at[name, METRIC]
            test = renamed(read_json(folder / name / TEST_FILE))
            row |= {f"test_{score}": test[score] for score in RESULTS if score in test}
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(("estimate", VALIDATION, TEST), float))


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per candidate, in the order of the frame, which `load_confirm` gives.

    Columns: `rank` by the search, `trial`, `baseline`, `estimate`; the means `validation` and
    `test`; on test, seed by seed, the `difference` from the baseline, and `behind`, that from the
    best candidate on test; each of the four with `_low`, `_high` and `_n`. The intervals of all
    differences from the baseline hold at once, and so do those from the best. `optimism` is the
    confirmed validation mean minus the estimate; `failed` and `missing` count runs.
    """
    heads = frame.drop_duplicates("candidate").set_index("candidate")
    by_seed = frame.set_index(["seed", "candidate"])
    validation = by_seed[VALIDATION].unstack()  # (seeds, candidates)
    test = by_seed[TEST].unstack()
    whole = test.dropna(how="all", axis=1).dropna()
    behind: dict[Any, Comparison] = {}
    if whole.size:  # a seed with which all have finished
        behind = dict(zip(whole.columns, compare_blocks(whole), strict=True))
    baseline = heads.index[heads["baseline"]]
    rows = []
    for candidate, head in heads.iterrows():
        statuses = frame.loc[frame["candidate"] == candidate, "status"]
        row: dict[str, Any] = {name: head[name] for name in ("trial", "baseline", "estimate")}
        row |= columns_of("validation", mean_interval(validation[candidate]))
        row |= columns_of("test", mean_interval(test[candidate]))
        differences = pd.Series(dtype=float)
        if len(baseline) and candidate != baseline[0]:
            differences = test[candidate] - test[baseline[0]]
        others = len(heads) - 1
        row |= columns_of("difference", mean_interval(differences, family=max(others, 1)))
        nothing = mean_interval([])
        found = behind[candidate].difference if candidate in behind else nothing
        row |= columns_of("behind", found)
        row["failed"] = int((statuses == "failed").sum())
        row["missing"] = len(statuses) - row["test_n"] - row["failed"]
        rows.append(row)
    summary = pd.DataFrame(rows, index=heads.index)
    summary.insert(0, "rank", summary["estimate"].rank(method="min").astype("Int64"))
    return summary.assign(optimism=summary["validation"] - summary["estimate"])


def columns_of(name: str, interval: Interval) -> dict[str, float]:
    """An interval as columns of a row."""
    value, low, high, n = interval
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def interval_of(row: pd.Series, name: str) -> Interval:
    """An interval of a row of `summarize`."""
    return Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high", "_n")))


def sentences(frame: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """What the confirm stage says.

    Args:
        frame: as `load_confirm` gives it.
        summary: as `summarize` gives it.
    """
    known = summary.dropna(subset="validation")
    if known.empty:
        return ["No run of the confirm stage has finished."]
    ranked = summary.dropna(subset="estimate").sort_values("rank")
    said = [about_estimate(row) for _, row in ranked[:1].iterrows()]
    said += [about_gain(row) for _, row in ranked[:1].iterrows() if row["difference_n"]]
    tied = known[(known["behind"] > 0) & ~(known["behind_low"] > 0)]
    if len(tied):
        best = known.sort_values("behind").iloc[0]
        names = " and ".join(map(name_of, tied.to_dict("records")))
        said.append(
            f"The best on test is {name_of(best)}; these seeds do not distinguish it from {names}."
        )
    said += about_noise(frame)
    failed, missing = summary["failed"].sum(), summary["missing"].sum()
    if failed or missing:
        said.append(
            f"Of the runs, {failed} failed and {missing} are missing: means are over the others."
        )
    return said


def name_of(row: Any) -> str:
    """A candidate as a person reads it."""
    if row["baseline"] and row["trial"] != "baseline":
        return f"{row['trial']} (baseline)"
    return str(row["trial"])


def about_estimate(row: pd.Series) -> str:
    """How the search's estimate of its best held."""
    estimated = (
        f"The search's best, {name_of(row)}, was estimated at {cli.rounded(row['estimate'])}"
    )
    validation = interval_of(row, "validation")
    if not validation.n:
        return f"{estimated} and is not confirmed: none of its runs has finished."
    text = (
        f"{estimated} and is confirmed at {cli.spread(*validation[:3])} on validation "
        f"(n = {validation.n} fresh seeds), {cli.spread(*interval_of(row, 'test')[:3])} on test"
    )
    percent = 100 * row["optimism"] / row["validation"]
    if validation.excludes(row["estimate"]):
        text += f": the estimate was {abs(percent):.0f} % too {'good' if percent > 0 else 'bad'}"
    return f"{text}."


def about_gain(row: pd.Series) -> str:
    """How a candidate compares with the baseline."""
    gain = interval_of(row, "difference")
    text = (
        f"{name_of(row)} minus the baseline: {cli.spread(*gain[:3], '+')} {METRIC} on test "
        f"(seed by seed, n = {gain.n})"
    )
    if gain.n < 2:
        return f"{text}; one pair of runs gives no interval."
    if not gain.excludes(0):
        return f"{text}; the interval includes 0, so {gain.n} seeds do not distinguish them."
    return f"{text}; it is {'better' if gain.value < 0 else 'worse'}."


def about_noise(frame: pd.DataFrame) -> list[str]:
    """How far apart two trials of one seed each must be, by what another seed does to the same
    settings; nothing where no setting has two runs."""
    deviations = np.log(frame[VALIDATION].where(frame[VALIDATION] > 0))
    by_candidate = deviations.groupby(frame["candidate"])
    freedom = int((by_candidate.count() - 1).clip(lower=0).sum())
    if not freedom:
        return []
    squares = ((deviations - by_candidate.transform("mean")) ** 2).sum()
    spread = math.sqrt(squares / freedom)
    apart = student_quantile(0.025, freedom) * spread * math.sqrt(2)
    return [
        f"Another seed changes {METRIC} by {100 * spread:.0f} % (standard deviation, {freedom} "
        f"degrees of freedom): two trials of one seed each differ by more than chance from "
        f"{100 * math.expm1(apart):.0f} % on."
    ]


def write(run: Path) -> tuple[pd.DataFrame, str]:
    """Summarizes a search's confirm stage, writes `confirm.csv` and `confirm.md` beside the search,
    returns the summary and its text."""
    frame = load_confirm(run)
    summary = summarize(frame)
    text = as_text(summary)
    said = "\n".join(f"- {sentence}" for sentence in sentences(frame, summary))
    said += f"\n\n{conditions(load_trials(run / CONFIRM_FOLDER), frame['seed'].nunique())}"
    cli.keep(run / "confirm.csv", summary.to_csv(index=False))
    markdown = text.to_markdown(index=False, disable_numparse=True)
    cli.keep(run / "confirm.md", f"{markdown}\n\n{said}\n")
    shown = text.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return summary, f"{shown}\n\n{said}"


def as_text(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary's cells as short strings."""

    def spreads(name: str, sign: str = "") -> list[str]:
        rows = [interval_of(row, name) for _, row in summary.iterrows()]
        return [cli.spread(*row[:3], sign) for row in rows]

    return pd.DataFrame(
        {
            "rank": summary["rank"].astype("string").fillna(""),
            "trial": [name_of(row) for row in summary.to_dict("records")],
            "estimate": [cli.rounded(value) for value in summary["estimate"]],
            "validation": spreads("validation"),
            "test": spreads("test"),
            "n": summary["test_n"].astype(str),
            "minus baseline": spreads("difference", "+"),
        }
    )


def main() -> None:
    text = (
        "Print what the confirm stage of a search found; also writes confirm.csv and confirm.md "
        "there."
    )
    cli.run_on_search("confirm", text, show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    with local(args.run, whole=True) as folder:
        summary, text = write(folder)
    return text, cli.records(summary)


if __name__ == "__main__":
    main()
