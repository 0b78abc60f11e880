"""What the confirm stage found: on real files, against values worked out by hand and by SciPy."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import confirm
from analysis.confirm import load_confirm, mean_interval, summarize, verdict, write

SEEDS = [101, 102, 103]
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
ESTIMATES = {"trial_0003": 11.0, "trial_0007": 14.0, "trial_0000": None}


def write_stage(
    run: Path,
    estimates: dict[str, float | None] = ESTIMATES,
    validation: dict[str, list[float]] = VALIDATION,
    test: dict[str, list[float]] = TEST,
    seeds: list[int] = SEEDS,
) -> Path:
    """A confirm stage whose last candidate is the baseline; each run's best epoch is its second of
    three."""
    candidates: list[dict[str, Any]] = [
        {"trial": name, "estimate": e, "point": {}} for name, e in estimates.items()
    ]
    candidates[-1]["baseline"] = True
    folder = run / "confirm"
    folder.mkdir()
    (folder / "search.json").write_text(
        json.dumps({"search": "hparams", "candidates": candidates, "seeds": seeds})
    )
    for number, (name, (i, seed)) in enumerate(itertools.product(estimates, enumerate(seeds))):
        trial = folder / f"trial_{number:04d}"
        trial.mkdir()
        (trial / "params.json").write_text(
            json.dumps({"dataset": "mnist-mini", "epochs": 3, "seed": seed})
        )
        fids = [99.0, validation[name][i], 50.0]
        protocol = {
            "eval_samples": 2000,
            "eval_split": "validation",
            "extractor": "abc",
            "fid_real": 0.25,
            "device": "cpu",
        }
        rows = [
            {"lane": 0, "epoch": epoch, "fid": fid, **protocol} for epoch, fid in enumerate(fids, 1)
        ]
        (trial / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (trial / "test.json").write_text(
            json.dumps({"fid": test[name][i], "kid": 0.01 * i, "epoch": 2})
        )
    return run


def fail(run: Path, number: int) -> None:
    folder = run / "confirm" / f"trial_{number:04d}"
    (folder / "test.json").unlink()
    (folder / "result.json").write_text((folder / "result.json").read_text().splitlines()[0] + "\n")
    (folder / "error.txt").write_text("FloatingPointError: diverged\n")


def remove(run: Path, number: int) -> None:
    folder = run / "confirm" / f"trial_{number:04d}"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_runs_are_candidates_times_seeds(tmp_path: Path) -> None:
    frame = load_confirm(write_stage(tmp_path))
    assert len(frame) == 9
    fifth = frame.iloc[5]
    assert fifth[["candidate", "trial", "seed", "status"]].to_list() == [
        1,
        "trial_0007",
        103,
        "finished",
    ]
    assert fifth[
        ["validation_fid", "test_fid", "test_kid", "test_epoch", "estimate"]
    ].to_list() == [17.0, 18.5, 0.02, 2, 14.0]
    assert frame["baseline"].to_list() == [False] * 6 + [True] * 3
    assert frame["estimate"].isna().to_list() == [False] * 6 + [True] * 3


def test_failed_unfinished_and_missing_runs_have_no_scores(tmp_path: Path) -> None:
    run = write_stage(tmp_path)
    fail(run, 1)
    remove(run, 4)
    unfinished = run / "confirm" / "trial_0008"
    (unfinished / "result.json").write_text(
        (unfinished / "result.json").read_text().splitlines()[0] + "\n"
    )
    (unfinished / "test.json").unlink()
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
    text = verdict(summary)
    assert text[-1] == "Of the runs, 1 failed and 2 are missing: the means are over the others."
    assert any(
        "(paired, n = 1): one pair of runs gives no interval." in sentence for sentence in text
    )


@pytest.mark.parametrize("content", [None, "{"])
def test_a_finished_run_without_its_test_scores_is_named(
    content: str | None, tmp_path: Path
) -> None:
    path = write_stage(tmp_path) / "confirm" / "trial_0000" / "test.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match=r"trial_0000/test.json is missing or damaged"):
        summary = summarize(load_confirm(tmp_path))
    assert summary[["validation_n", "test_n", "missing"]].to_numpy().tolist()[0] == [3, 2, 1]


def test_a_finished_run_without_rows_has_no_scores(tmp_path: Path) -> None:
    run = write_stage(tmp_path, {"trial_0000": None}, seeds=[1])
    (run / "confirm" / "trial_0000" / "result.json").unlink()
    assert load_confirm(run)[["validation_fid", "test_fid"]].isna().all(axis=None)


def test_intervals_are_students() -> None:
    """By hand: 2, 4, 6, 8 have mean 5 and standard error sqrt(20/3)/2; t(0.975, 3) is 3.182446 in
    every table."""
    half = 3.1824463 * np.sqrt(20 / 3) / 2
    assert mean_interval(pd.Series([2.0, 4.0, np.nan, 6.0, 8.0])) == pytest.approx(
        (5.0, 5 - half, 5 + half, 4)
    )
    expected = stats.ttest_1samp([1.0, 7.0, 8.0, 8.5, 3.0], 0).confidence_interval(0.95)
    assert mean_interval(pd.Series([1.0, 7.0, 8.0, 8.5, 3.0]))[1:3] == pytest.approx(
        tuple(expected)
    )
    assert mean_interval(pd.Series([3.0, 3.0])) == (3.0, 3.0, 3.0, 2)
    assert mean_interval(pd.Series([3.0])) == pytest.approx((3.0, np.nan, np.nan, 1), nan_ok=True)
    assert mean_interval(pd.Series([np.nan])) == pytest.approx(
        (np.nan, np.nan, np.nan, 0), nan_ok=True
    )


def test_summary_holds_means_intervals_and_paired_differences(tmp_path: Path) -> None:
    summary = summarize(load_confirm(write_stage(tmp_path)))
    assert summary["trial"].to_list() == ["trial_0003", "trial_0007", "trial_0000"]
    assert summary["rank"].to_list()[:2] == [1, 2]
    assert summary["rank"].isna().to_list() == [False, False, True]
    assert summary["validation"].to_list() == [13.0, 16.0, 27.0]
    assert summary["test"].to_list() == [14.0, 16.5, 27.0]
    assert summary["optimism"].to_list()[:2] == [2.0, 2.0]
    for name, trial in enumerate(TEST):
        low, high = stats.ttest_1samp(TEST[trial], 0).confidence_interval(0.95)
        assert summary.loc[name, ["test_low", "test_high"]].to_list() == pytest.approx([low, high])
        if trial != "trial_0000":
            low, high = stats.ttest_rel(TEST[trial], TEST["trial_0000"]).confidence_interval(0.95)
            assert summary.loc[
                name, ["difference_low", "difference_high"]
            ].to_list() == pytest.approx([low, high])
    assert summary["difference"].to_list()[:2] == [-13.0, -10.5]
    assert summary.loc[2, ["difference", "difference_low", "difference_high"]].isna().all()
    low, high = stats.ttest_rel(TEST["trial_0007"], TEST["trial_0003"]).confidence_interval(0.95)
    assert summary.loc[
        1, ["behind", "behind_low", "behind_high", "behind_n"]
    ].to_list() == pytest.approx([2.5, low, high, 3])
    assert np.isnan(summary.at[0, "behind"])


def test_verdict_of_a_search_that_held(tmp_path: Path) -> None:
    """Differences to the baseline: -12, -14, -13; half an interval is 4.302653 / sqrt(3)."""
    assert verdict(summarize(load_confirm(write_stage(tmp_path)))) == [
        "The search's best, trial_0003, was estimated at 11.00 and is confirmed at 13.00 "
        "[10.52, 15.48] on validation (n = 3 fresh seeds), 14.00 [9.03, 18.97] on test: the "
        "estimate was 15 % too good.",
        "Ranking held: yes; Kendall's tau between the search's order and the confirmed order of 2 "
        "candidates is 1.00, and the confirmed best is trial_0003.",
        "trial_0003 is better than the baseline by 13.00 [10.52, 15.48] fid on test "
        "(paired, n = 3): the interval excludes 0.",
        "trial_0003 and trial_0007 are the best two on validation; on test the second is behind by "
        "2.50 [1.26, 3.74] (paired, n = 3): the interval excludes 0.",
    ]


def test_verdict_of_a_search_that_did_not_hold(tmp_path: Path) -> None:
    """The confirmed best is second in the search, and the search's best is worse than the baseline,
    which is told apart."""
    estimates = {"trial_0007": 18.0, "trial_0001": 19.0, "trial_0000": 30.0}
    values = {
        "trial_0007": [30.0, 32.0, 34.0],
        "trial_0001": [17.0, 12.0, 16.0],
        "trial_0000": [20.0, 20.0, 21.0],
    }
    text = verdict(summarize(load_confirm(write_stage(tmp_path, estimates, values, values))))
    assert "was estimated at 18.00" in text[0]
    assert "the estimate was 44 % too good" in text[0]
    assert text[1] == (
        "Ranking held: no; Kendall's tau between the search's order and the confirmed order of 3 "
        "candidates is -0.33, and the confirmed best is trial_0001 (picked on these seeds, so "
        "flattered a little itself)."
    )
    assert text[2].startswith("trial_0007 is worse than the baseline by 11.67 [")
    assert text[2].endswith("the interval excludes 0.")
    assert text[3].startswith("trial_0001 is better than the baseline by 5.33 [-")
    assert text[3].endswith("the interval includes 0, so not told apart at 3 seeds.")
    assert len(text) == 4  # that the baseline comes second is not said twice


def test_an_estimate_can_be_too_bad(tmp_path: Path) -> None:
    estimates = {"trial_0003": 26.0, "trial_0000": 27.0}
    text = verdict(summarize(load_confirm(write_stage(tmp_path, estimates))))
    assert "the estimate was 100 % too bad" in text[0]


def test_the_baseline_can_be_the_best(tmp_path: Path) -> None:
    estimates = {"trial_0003": 21.0, "trial_0000": 20.0}
    values = {"trial_0003": [30.0, 32.0, 34.0], "trial_0000": [20.0, 20.0, 21.0]}
    summary = summarize(load_confirm(write_stage(tmp_path, estimates, values, values)))
    text = verdict(summary)
    assert text[0].startswith("The search's best, trial_0000 (baseline), was estimated at 20.00")
    assert not any("than the baseline" in sentence for sentence in text)
    assert text[-1].startswith("trial_0000 (baseline) and trial_0003 are the best two")


@pytest.mark.parametrize("seeds", [[101], [101, 102]])
def test_one_candidate_alone(seeds: list[int], tmp_path: Path) -> None:
    run = write_stage(tmp_path, {"trial_0000": 24.0}, seeds=seeds)
    summary, text = write(run)
    assert summary["test_low"].isna().to_list() == [len(seeds) == 1]
    (sentence,) = verdict(summary)
    assert sentence.startswith(
        "The search's best, trial_0000 (baseline), was estimated at 24.00 and is confirmed at 2"
    )
    assert ("[" in sentence) == (len(seeds) > 1)
    assert "nan" not in text


def test_a_baseline_that_the_search_never_tried(tmp_path: Path) -> None:
    run = write_stage(tmp_path, {"trial_0003": 11.0, "trial_0000": None})
    path = run / "confirm" / "search.json"
    search = json.loads(path.read_text())
    search["candidates"][-1]["trial"] = None
    path.write_text(json.dumps(search))
    summary, text = write(run)
    assert summary["trial"].to_list() == ["trial_0003", "baseline"]
    assert "Ranking held" not in text
    assert "nan" not in text


def test_nothing_finished_yet(tmp_path: Path) -> None:
    run = write_stage(tmp_path)
    for number in range(9):
        fail(run, number)
    summary, text = write(run)
    assert verdict(summary) == ["No run of the confirm stage has finished."]
    assert "nan" not in text


def test_the_best_that_is_not_confirmed_yet(tmp_path: Path) -> None:
    run = write_stage(tmp_path)
    for number in range(3):
        remove(run, number)
    text = verdict(summarize(load_confirm(run)))
    assert text[0].endswith(
        "was estimated at 11.00 and is not confirmed: none of its runs has finished."
    )
    assert text[1].startswith("trial_0007 is better than the baseline by 10.50")
    assert text[-1].startswith("Of the runs, 0 failed and 3 are missing")


def test_candidates_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    run = write_stage(tmp_path, {"trial_0003": 11.0, "trial_0000": None})
    for number in (0, 4, 5):
        remove(run, number)
    text = verdict(summarize(load_confirm(run)))
    assert len(text) == 2
    assert text[0].startswith("The search's best")
    assert text[1].startswith("Of the runs, 0 failed and 3 are missing")


def test_written_files_hold_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_stage(tmp_path)
    monkeypatch.setattr(sys, "argv", ["confirm", str(run)])
    confirm.main()
    out = capsys.readouterr().out
    written = (run / "confirm.md").read_text()
    for sentence in verdict(summarize(load_confirm(run))):
        assert f"- {sentence}\n" in out
        assert f"- {sentence}\n" in written
    assert "| 1      | trial_0003            | 11.00" in written
    assert "-13.00 [-15.48, -10.52]" in written
    assert "Mean of 3 seeds a setting" in written
    assert "nan" not in out.lower()
    table = pd.read_csv(run / "confirm.csv")
    assert table["test"].to_list() == [14.0, 16.5, 27.0]


@pytest.mark.parametrize(
    "content", [None, "{}", '{"candidates": [], "seeds": [1]}', '{"candidates": [{"trial": "a"}]}']
)
def test_no_confirm_stage_takes_one_line_and_exit_2(
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_stage(tmp_path)
    path = tmp_path / "confirm" / "search.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(FileNotFoundError, match="no confirm stage in"):
        load_confirm(tmp_path)
    monkeypatch.setattr(sys, "argv", ["confirm", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        confirm.main()
    error = capsys.readouterr().err
    assert error.startswith("python -m analysis.confirm: error: no confirm stage in")
    assert error.count("\n") == 1


def test_it_starts_without_torch_ray_and_optuna() -> None:
    unwanted = {"torch", "ray", "optuna"}
    check = (
        f"import sys, analysis.confirm, analysis.rungs; assert not {unwanted} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[3], check=True)
