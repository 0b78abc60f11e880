"""The answer of the confirm stage: `python -m analysis.confirm RUN`.

A search reports the best of many noisy values, which flatters. The confirm stage trains its
candidates and the original study's baseline anew, with the same fresh seeds each, and scores them
on validation and test: here are their means, Student's t intervals (95 %), and paired differences,
seed by seed.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import cli
from analysis.load import RESULTS, load_trials, read_json, read_search
from analysis.tables import conditions, read_or_write
from dcgan.schema import CONFIRM_FOLDER, METRIC, SEARCH_FILE, TEST_FILE, trial_name

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
            f"no confirm stage in {run}: expected {CONFIRM_FOLDER}/{SEARCH_FILE} with candidates and "
            "seeds"
        )
    best = load_trials(folder).sort_values(METRIC).drop_duplicates("trial").set_index("trial")
    rows: list[dict[str, Any]] = []
    for number, (candidate, seed) in enumerate(
        itertools.product(enumerate(search["candidates"]), search["seeds"])
    ):
        index, known = candidate
        name = trial_name(number)
        row = {
            "candidate": index,
            "trial": known["trial"] or "baseline",
            "baseline": known.get("baseline", False),
        }
        row |= {
            "estimate": known["estimate"],
            "seed": seed,
            "status": "missing",
            VALIDATION: None,
            TEST: None,
        }
        if name in best.index:
            row["status"] = best.at[name, "status"]
        if row["status"] == "finished":
            row[VALIDATION] = best.at[name, METRIC]
            test = read_json(folder / name / TEST_FILE)
            row |= {f"test_{score}": test[score] for score in RESULTS if score in test}
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(("estimate", VALIDATION, TEST), float))


def mean_interval(values: pd.Series) -> tuple[float, float, float, int]:
    """Mean, both ends of its 95 % t interval, and n; NaN where n is too small for them."""
    n = int(values.count())
    half = stats.t.ppf(0.975, n - 1) * values.sem()
    return values.mean(), values.mean() - half, values.mean() + half, n


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per candidate, in the order of the frame, which `load_confirm` gives.

    Columns: `rank` by the search, `trial`, `baseline`, `estimate`; `validation`, `test`,
    `difference` (from the baseline on test, paired) and `behind` (from the best on validation, on
    test, paired), each with `_low`, `_high`, `_n`; `optimism`, the confirmed validation mean minus
    the estimate; `failed` and `missing` runs.
    """
    heads = frame.drop_duplicates("candidate").set_index("candidate")
    validation = frame.pivot(
        index="seed", columns="candidate", values=VALIDATION
    )  # (seeds, candidates)
    test = frame.pivot(index="seed", columns="candidate", values=TEST)
    references = {
        "difference": heads.index[heads["baseline"]],
        "behind": validation.mean().dropna().sort_values().index[:1],
    }
    rows = []
    for candidate, head in heads.iterrows():
        samples = {"validation": validation[candidate], "test": test[candidate]}
        for name, others in references.items():
            other = next((test[other] for other in others if other != candidate), np.nan)
            samples[name] = test[candidate] - other
        row = {"trial": head["trial"], "baseline": head["baseline"], "estimate": head["estimate"]}
        for name, values in samples.items():
            row |= zip(
                (name, f"{name}_low", f"{name}_high", f"{name}_n"),
                mean_interval(values),
                strict=True,
            )
        statuses = frame.loc[frame["candidate"] == candidate, "status"]
        failed = int((statuses == "failed").sum())
        rows.append(row | {"failed": failed, "missing": len(statuses) - row["test_n"] - failed})
    summary = pd.DataFrame(rows, index=heads.index)
    summary.insert(0, "rank", summary["estimate"].rank(method="min").astype("Int64"))
    return summary.assign(optimism=summary["validation"] - summary["estimate"])


def verdict(summary: pd.DataFrame) -> list[str]:
    """What the summary says, in sentences."""
    known = summary.dropna(subset="validation").sort_values("validation")
    if known.empty:
        return ["No run of the confirm stage has finished."]
    ranked = summary.dropna(subset="estimate").sort_values("rank")
    picks = list(dict.fromkeys([*ranked.index[:1], known.index[0]]))
    late = (
        ""
        if picks == [known.index[0]]
        else " (picked on these seeds, so flattered a little itself)"
    )
    sentences = [_estimate(summary.loc[index]) for index in ranked.index[:1]]
    if len(both := known.dropna(subset="estimate")) > 1:
        tau = stats.kendalltau(both["estimate"], both["validation"]).statistic
        sentences.append(
            f"Ranking held: {'yes' if np.isclose(tau, 1) else 'no'}; Kendall's tau between the search's order and the "
            f"confirmed order of {len(both)} candidates is {tau:.2f}, and the confirmed best is {_name(known.iloc[0])}{late}."
        )
    sentences += [_gain(summary.loc[index]) for index in picks if summary.at[index, "difference_n"]]
    if (
        len(known) > 1 and known.iloc[1]["behind_n"] and not known.iloc[1]["baseline"]
    ):  # else said already
        sentences.append(_gap(known.iloc[0], known.iloc[1]))
    failed, missing = summary["failed"].sum(), summary["missing"].sum()
    if failed or missing:
        sentences.append(
            f"Of the runs, {failed} failed and {missing} are missing: the means are over the others."
        )
    return sentences


def _name(row: pd.Series) -> str:
    return f"{row['trial']} (baseline)" if row["baseline"] else str(row["trial"])


def _spread(row: pd.Series, name: str, sign: str = "") -> str:
    return cli.spread(row[name], row[f"{name}_low"], row[f"{name}_high"], sign)


def _estimate(row: pd.Series) -> str:
    estimated = f"The search's best, {_name(row)}, was estimated at {row['estimate']:.2f}"
    if not row["validation_n"]:
        return f"{estimated} and is not confirmed: none of its runs has finished."
    percent = 100 * row["optimism"] / row["validation"]
    return (
        f"{estimated} and is confirmed at {_spread(row, 'validation')} on validation (n = {row['validation_n']} fresh seeds), "
        f"{_spread(row, 'test')} on test: the estimate was {abs(percent):.0f} % too {'good' if percent > 0 else 'bad'}."
    )


def _gain(row: pd.Series) -> str:
    sign = -1 if row["difference"] < 0 else 1
    ends = sorted((sign * row["difference_low"], sign * row["difference_high"]))
    return (
        f"{_name(row)} is {'better' if sign < 0 else 'worse'} than the baseline by {cli.spread(abs(row['difference']), *ends)} "
        f"{METRIC} on test (paired, n = {row['difference_n']}): {_zero(row, 'difference')}."
    )


def _gap(best: pd.Series, second: pd.Series) -> str:
    return (
        f"{_name(best)} and {_name(second)} are the best two on validation; on test the second is behind by "
        f"{_spread(second, 'behind')} (paired, n = {second['behind_n']}): {_zero(second, 'behind')}."
    )


def _zero(row: pd.Series, name: str) -> str:
    low, high, n = (row[f"{name}_{end}"] for end in ("low", "high", "n"))
    if n < 2:
        return "one pair of runs gives no interval"
    return (
        "the interval excludes 0"
        if low > 0 or high < 0
        else f"the interval includes 0, so not told apart at {n} seeds"
    )


def write(run: Path) -> tuple[pd.DataFrame, str]:
    """Summarizes a search's confirm stage, writes `confirm.csv` and `confirm.md` beside the search,
    returns both forms."""
    frame = load_confirm(run)
    summary = summarize(frame)
    columns = {
        "rank": summary["rank"].astype("string").fillna(""),
        "trial": summary.apply(_name, axis=1),
        "estimate": summary["estimate"].map(lambda value: cli.spread(value, np.nan, np.nan)),
        **{name: summary.apply(_spread, axis=1, args=(name,)) for name in ("validation", "test")},
        "n": summary["test_n"].astype(str),
        "against baseline": summary.apply(_spread, axis=1, args=("difference", "+")),
        "optimism": summary["optimism"].map(lambda value: cli.spread(value, np.nan, np.nan, "+")),
    }
    text = pd.DataFrame(columns)
    said = "\n".join(f"- {sentence}" for sentence in verdict(summary))
    said += f"\n\n{conditions(load_trials(run / CONFIRM_FOLDER), frame['seed'].nunique())}"
    summary.to_csv(run / "confirm.csv", index=False)
    markdown = text.to_markdown(index=False, disable_numparse=True)
    (run / "confirm.md").write_text(f"{markdown}\n\n{said}\n", encoding="utf-8")
    shown = text.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return summary, f"{shown}\n\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.confirm",
        description="Tell what the confirm stage of a search found; also writes confirm.csv and confirm.md there.",
    )
    what = "the folder of a search whose candidates were trained anew, in RUN/confirm, or its URI (s3://…; only read)"
    parser.add_argument("run", help=what)
    cli.run(parser, lambda args: read_or_write(args.run, write, whole=True))


if __name__ == "__main__":
    main()
