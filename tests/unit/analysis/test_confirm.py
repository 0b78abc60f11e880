"""What the confirm stage found: on real files, against values worked out by hand and by SciPy."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import confirm
from analysis.confirm import load_confirm, sentences, summarize, write
from analysis.stats import compare_blocks

SEEDS = (101, 102, 103)
ESTIMATES = {"trial_0003": 11.0, "trial_0007": 14.0, "trial_0000": None}
VALIDATION = {
    "trial_0003": [12.0, 13.0, 14.0],
    "trial_0007": [15.0, 16.0, 17.0],
    "trial_0000": [25.0, 27.0, 29.0],
}
TEST = {
    "trial_0003": [12.0, 14.0, 16.0],
    "trial_0007": [15.0, 16.0, 18.5],
    "trial_0000": [24.0, 28.0, 29.0],
}
PROTOCOL = {
    "eval_samples": 2000, "eval_split": "validation", "extractor": "abc", "fid_real": 0.25,
    "device": "cpu",
}  # fmt: skip


def stage(
    run: Path,
    estimates: dict[str, float | None] = ESTIMATES,
    validation: dict[str, list[float]] = VALIDATION,
    test: dict[str, list[float]] = TEST,
    seeds: Sequence[int] = SEEDS,
) -> Path:
    """A confirm stage whose last candidate is the baseline; each run's best epoch is its second of
    three."""
    candidates = [{"trial": name, "estimate": one} for name, one in estimates.items()]
    candidates[-1] |= {"baseline": True}
    search = {"search": "hparams", "candidates": candidates, "seeds": seeds}
    folder = run / "confirm"
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps(search))
    for number, (name, (i, seed)) in enumerate(itertools.product(estimates, enumerate(seeds))):
        trial = folder / f"trial_{number:04d}"
        trial.mkdir()
        settings = {"dataset": "mnist-mini", "epochs": 3, "seed": seed}
        (trial / "params.json").write_text(json.dumps(settings))
        fids = [99.0, validation[name][i], 50.0]
        rows = [{"lane": 0, "epoch": n, "fid": fid} | PROTOCOL for n, fid in enumerate(fids, 1)]
        (trial / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        scores = {"fid": test[name][i], "kid": 0.01 * i, "epoch": 2}
        (trial / "test.json").write_text(json.dumps(scores))
    return run


def trial(run: Path, number: int) -> Path:
    return run / "confirm" / f"trial_{number:04d}"


def cut_short(folder: Path, error: str = "") -> None:
    """Leaves a run's first epoch, as if it had failed, or, without an error, was still to train."""
    (folder / "test.json").unlink()
    rows = (folder / "result.json").read_text().splitlines()
    (folder / "result.json").write_text(rows[0] + "\n")
    if error:
        (folder / "error.txt").write_text(error)


def said(run: Path) -> list[str]:
    frame = load_confirm(run)
    return sentences(frame, summarize(frame))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stage(tmp_path)


def test_runs_are_candidates_times_seeds(run: Path) -> None:
    frame = load_confirm(run)
    assert len(frame) == 9
    head = ["candidate", "trial", "seed", "status"]
    assert frame.loc[5, head].to_list() == [1, "trial_0007", 103, "finished"]
    scores = ["validation_fid", "test_fid", "test_kid", "test_epoch", "estimate"]
    assert frame.loc[5, scores].to_list() == [17.0, 18.5, 0.02, 2, 14.0]
    assert frame["baseline"].to_list() == [False] * 6 + [True] * 3
    assert frame["estimate"].isna().to_list() == [False] * 6 + [True] * 3


def test_failed_unfinished_and_missing_runs_have_no_scores(run: Path) -> None:
    cut_short(trial(run, 1), "FloatingPointError: diverged\n")
    shutil.rmtree(trial(run, 4))
    cut_short(trial(run, 8))
    frame = load_confirm(run)
    assert frame["status"].to_list() == [
        "finished", "failed", "finished", "finished", "missing", "finished", "finished", "finished",
        "unfinished",
    ]  # fmt: skip
    assert frame.loc[[1, 4, 8], ["validation_fid", "test_fid"]].isna().all(axis=None)
    summary = summarize(frame)
    assert summary["failed"].to_list() == [1, 0, 0]
    assert summary["missing"].to_list() == [0, 1, 1]
    assert summary["test_n"].to_list() == [2, 2, 2]
    assert summary["test"].to_list() == [14.0, 16.75, 26.0]
    assert summary["difference_n"].to_list() == [1, 1, 0]  # seed 101 alone is common to both
    assert summary["difference"].to_list()[:2] == [-12.0, -9.0]
    assert summary["behind"].to_list() == [0.0, 3.0, 12.0]  # of seed 101
    assert summary[["difference_low", "behind_low"]].isna().all(axis=None)
    text = said(run)
    assert text[1].endswith("(seed by seed, n = 1); one pair of runs gives no interval.")
    assert text[-1] == "Of the runs, 1 failed and 2 are missing: means are over the others."


@pytest.mark.parametrize("content", [None, "{"])
def test_a_finished_run_without_its_test_scores_is_named(content: str | None, run: Path) -> None:
    path = trial(run, 0) / "test.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match=r"trial_0000/test.json is missing or damaged"):
        summary = summarize(load_confirm(run))
    assert summary.loc[0, ["validation_n", "test_n", "missing"]].to_list() == [3, 2, 1]


def test_a_run_without_rows_has_no_scores(tmp_path: Path) -> None:
    run = stage(tmp_path, {"trial_0000": None}, seeds=[1])
    (trial(run, 0) / "result.json").unlink()
    assert load_confirm(run)[["validation_fid", "test_fid"]].isna().all(axis=None)


def ends(summary: pd.DataFrame, candidate: int, name: str) -> list[float]:
    return list(summary.loc[candidate, [f"{name}_low", f"{name}_high"]])


def test_means_and_their_intervals_are_scipys(run: Path) -> None:
    summary = summarize(load_confirm(run))
    assert summary["trial"].to_list() == list(TEST)
    assert summary["rank"].to_list()[:2] == [1, 2]
    assert summary["rank"].isna().to_list() == [False, False, True]
    assert summary["validation"].to_list() == [13.0, 16.0, 27.0]
    assert summary["test"].to_list() == [14.0, 16.5, 27.0]
    assert summary["optimism"].to_list()[:2] == [2.0, 2.0]
    for name, scores in (("validation", VALIDATION), ("test", TEST)):
        for candidate, values in enumerate(scores.values()):
            expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert ends(summary, candidate, name) == pytest.approx(list(expected))


def test_differences_from_the_baseline_hold_at_once(run: Path) -> None:
    """Of two candidates each interval is one of 97.5 %, so that both cover in 95 % (Bonferroni)."""
    summary = summarize(load_confirm(run))
    assert summary["difference"].to_list()[:2] == [-13.0, -10.5]
    for candidate, name in enumerate(["trial_0003", "trial_0007"]):
        paired = stats.ttest_rel(TEST[name], TEST["trial_0000"])
        expected = paired.confidence_interval(1 - 0.05 / 2)
        assert ends(summary, candidate, "difference") == pytest.approx(list(expected))
    assert summary.loc[2, ["difference", "difference_low", "difference_high"]].isna().all()


def test_what_is_behind_the_best_is_compared_by_seed(run: Path) -> None:
    summary = summarize(load_confirm(run))
    expected = [one.difference for one in compare_blocks(pd.DataFrame(TEST))]
    found = summary[["behind", "behind_low", "behind_high", "behind_n"]]
    np.testing.assert_allclose(found.to_numpy(float), np.array(expected, float))
    assert summary["behind"].to_list() == [0.0, 2.5, 13.0]


def test_the_noise_of_a_seed_is_that_of_all_candidates(run: Path) -> None:
    """Pooled by hand, also where runs are missing; t(0.975) of 6 and of 4 degrees is 2.446912 and
    2.776445 in every table."""
    for groups, freedom, t in (
        ([[12, 13, 14], [15, 16, 17], [25, 27, 29]], 6, 2.446912),
        ([[12, 14], [15, 16, 17], [25, 29]], 4, 2.776445),
    ):
        squares = sum((len(group) - 1) * np.var(np.log(group), ddof=1) for group in groups)
        spread = math.sqrt(squares / freedom)
        apart = math.exp(t * spread * math.sqrt(2)) - 1
        (sentence,) = [one for one in said(run) if one.startswith("Another seed")]
        assert f" fid by {100 * spread:.0f} % (" in sentence
        assert f" {freedom} degrees of freedom" in sentence
        assert sentence.endswith(f" from {100 * apart:.0f} % on.")
        for number in (1, 7):
            shutil.rmtree(trial(run, number), ignore_errors=True)


def test_sentences_of_a_search_that_held(run: Path) -> None:
    """Differences to the baseline are -12, -14, -13; t(0.9875, 2) / sqrt(3) is 3.58. The estimate
    lies within the interval, so nothing is said of it. The second best is 2.5 behind; Tukey's
    interval is q(0.95; 3, 4) sqrt(0.5833 / 3) = 2.22 to each side, so nothing is said of a tie."""
    *text, last = said(run)
    assert text == [
        "The search's best, trial_0003, was estimated at 11 and is confirmed at 13 [11, 15] on "
        "validation (n = 3 fresh seeds), 14 [9.0, 19] on test.",
        "trial_0003 minus the baseline: -13 [-17, -9.4] fid on test (seed by seed, n = 3); "
        "it is better.",
    ]
    assert last.startswith("Another seed changes fid by ")


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (10.0, ": the estimate was 23 % too good"),
        (10.6, ""),
        (15.4, ""),
        (16.0, ": the estimate was 23 % too bad"),
    ],
)
def test_an_estimate_is_called_wrong_only_where_the_interval_excludes_it(
    estimate: float, words: str, tmp_path: Path
) -> None:
    """13 [10.52, 15.48] on validation."""
    text = said(stage(tmp_path, {"trial_0003": estimate, "trial_0000": None}))[0]
    assert text.endswith(
        f"13 [11, 15] on validation (n = 3 fresh seeds), 14 [9.0, 19] on test{words}."
    )


def test_what_the_seeds_cannot_tell_is_said(tmp_path: Path) -> None:
    """The search's best is worse than the baseline; the best on test, which the search had second,
    is not told from the baseline."""
    estimates = {"trial_0007": 18.0, "trial_0001": 19.0, "trial_0000": 30.0}
    values = {
        "trial_0007": [40.0, 42.0, 44.0],
        "trial_0001": [17.0, 12.0, 16.0],
        "trial_0000": [20.0, 20.0, 21.0],
    }
    text = said(stage(tmp_path, estimates, values, values))
    assert "trial_0007, was estimated at 18 " in text[0]
    assert text[0].endswith("the estimate was 57 % too good.")  # 42 - 18 of 42
    assert text[1].startswith("trial_0007 minus the baseline: +22 [+")
    assert text[1].endswith("; it is worse.")
    assert text[2] == (
        "The best on test is trial_0001; these seeds do not distinguish it from trial_0000 "
        "(baseline)."
    )


def test_a_difference_that_may_be_none_is_called_neither(tmp_path: Path) -> None:
    values = {"trial_0003": [12.0, 21.0, 17.0], "trial_0000": [20.0, 20.0, 21.0]}
    text = said(stage(tmp_path, {"trial_0003": 11.0, "trial_0000": None}, values, values))[1]
    assert "better" not in text
    assert text.endswith("; the interval includes 0, so 3 seeds do not distinguish them.")


def test_the_baseline_can_be_the_best(tmp_path: Path) -> None:
    estimates = {"trial_0003": 21.0, "trial_0000": 20.0}
    values = {"trial_0003": [30.0, 32.0, 34.0], "trial_0000": [20.0, 20.0, 21.0]}
    text = said(stage(tmp_path, estimates, values, values))
    assert text[0].startswith("The search's best, trial_0000 (baseline), was estimated at 20 ")
    assert not any("minus the baseline" in sentence for sentence in text)


@pytest.mark.parametrize("seeds", [[101], [101, 102]])
def test_one_candidate_alone(seeds: list[int], tmp_path: Path) -> None:
    """One seed gives neither an interval nor noise."""
    run = stage(tmp_path, {"trial_0000": 24.0}, seeds=seeds)
    summary, text = write(run)
    assert summary["test_low"].isna().to_list() == [len(seeds) == 1]
    found = said(run)
    assert len(found) == len(seeds)
    assert found[0].startswith(
        "The search's best, trial_0000 (baseline), was estimated at 24 and is confirmed at 2"
    )
    assert ("[" in found[0]) == (len(seeds) > 1)
    assert "nan" not in text


def test_a_baseline_that_the_search_never_tried(run: Path) -> None:
    path = run / "confirm" / "search.json"
    path.write_text(path.read_text().replace('"trial_0000"', "null"))
    summary, text = write(run)
    assert summary["trial"].to_list() == ["trial_0003", "trial_0007", "baseline"]
    assert "nan" not in text


def test_nothing_finished_yet(run: Path) -> None:
    for number in range(9):
        cut_short(trial(run, number), "FloatingPointError: diverged\n")
    summary, text = write(run)
    assert summary[["validation", "test", "difference", "behind"]].isna().all(axis=None)
    assert said(run) == ["No run of the confirm stage has finished."]
    assert "nan" not in text


def test_the_best_that_is_not_confirmed_yet(run: Path) -> None:
    for number in range(3):
        shutil.rmtree(trial(run, number))
    text = said(run)
    assert text[0].endswith(
        "was estimated at 11 and is not confirmed: none of its runs has finished."
    )
    assert not any("minus the baseline" in sentence for sentence in text)
    assert text[-1].startswith("Of the runs, 0 failed and 3 are missing")


def test_candidates_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    run = stage(tmp_path, {"trial_0003": 11.0, "trial_0000": None})
    for number in (0, 4, 5):
        shutil.rmtree(trial(run, number))
    assert summarize(load_confirm(run))[["difference", "behind"]].isna().all(axis=None)
    heads = [sentence.split(",")[0] for sentence in said(run)]
    noise = "Another seed changes fid by 5 % (standard deviation"  # ln(14 / 13) / sqrt(2)
    assert heads == ["The search's best", noise, "Of the runs"]


def test_written_files_hold_the_answer(run: Path, printed: Callable[..., str]) -> None:
    out, written = printed(confirm.main, run), (run / "confirm.md").read_text()
    for sentence in said(run):
        assert f"- {sentence}\n" in out
        assert f"- {sentence}\n" in written
    for part in ("| 1      | trial_0003            | 11", "-13 [-17, -9.4]", "Mean of 3 seeds"):
        assert part in written
    assert "nan" not in out.lower()
    assert pd.read_csv(run / "confirm.csv")["test"].to_list() == [14.0, 16.5, 27.0]


def test_json_holds_the_numbers_that_are_printed(run: Path, printed: Callable[..., str]) -> None:
    lines = printed(confirm.main, run).splitlines()[2:5]
    rows = json.loads(printed(confirm.main, run, "--json"))
    for row, line in zip(rows, lines, strict=True):
        assert row["trial"] in line
        assert f" {row['test']:.0f} [" in line
        assert f", {row['validation_high']:.0f}] " in line
    assert [row["test"] for row in rows] == [14.0, 16.5, 27.0]
    assert rows[2]["estimate"] is rows[2]["difference"] is rows[0]["behind_low"] is None


def test_a_folder_that_one_may_only_read_still_has_an_answer(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:  # root may write everywhere
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("analysis.cli.replace", refuse)
    monkeypatch.setattr("sys.argv", ["confirm", str(run)])
    confirm.main()
    out, err = capsys.readouterr()
    assert "- The search's best, trial_0003, was estimated at 11 " in out
    assert err.splitlines() == [
        f"{run / name} is not written: Permission denied" for name in ("confirm.csv", "confirm.md")
    ]


@pytest.mark.parametrize(
    "content", [None, "{}", '{"candidates": [], "seeds": [1]}', '{"candidates": [{"trial": "a"}]}']
)
def test_no_confirm_stage_takes_one_line_and_exit_2(
    content: str | None, run: Path, refused: Callable[..., str]
) -> None:
    path = run / "confirm" / "search.json"
    path.unlink() if content is None else path.write_text(content)
    error = refused(confirm.main, run)
    assert error.startswith("python -m analysis.confirm: error: no confirm stage in")
