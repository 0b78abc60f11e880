"""Results of an earlier version, as kept in docs/study: they load as those of today, and what the
tables say of them is recomputed from their files."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import tables
from analysis.load import load_trials, over_lanes, read_search
from dcgan.schema import RENAMED

SEARCHES = ("baseline", "architecture", "hparams", "precision", "joint")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with zipfile.ZipFile(Path(__file__).parents[3] / "docs" / "study" / "runs.zip") as archive:
        archive.extractall(folder)
    return folder


def rows_of(trial: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def best_by_seed(run: Path) -> pd.DataFrame:
    """The settings of each trial, and, of each seed's own best epoch, the results that tables show
    beside fid."""
    found = []
    for trial in sorted(run.glob("trial_*")):
        settings = json.loads((trial / "params.json").read_text())
        rows = rows_of(trial)
        for seed in range(settings["replicas"]):
            best = min(rows, key=lambda row: row["by_replica"]["fid"][seed])
            own = {name: values[seed] for name, values in best["by_replica"].items()}
            speed = best["images_per_second"]
            found.append(settings | own | {"seed": seed, "images_per_second": speed})
    return pd.DataFrame(found)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_ranked_by_the_means_over_seeds(name: str, runs: Path) -> None:
    """Rows of earlier versions hold them. Who trained all 12 epochs has finished."""
    trials = {trial.name: rows_of(trial) for trial in (runs / name).glob("trial_*")}
    best = {trial: min(rows, key=lambda row: row["fid"]) for trial, rows in trials.items()}
    order = sorted(best, key=lambda trial: (len(trials[trial]) < 12, best[trial]["fid"]))
    table = tables.rank(load_trials(runs / name), read_search(runs / name))
    assert table["trial"].to_list() == order
    assert table["rank"].count() == sum(len(rows) == 12 for rows in trials.values())
    assert table["best_epoch"].to_list() == [best[trial]["epoch"] for trial in order]
    for column in ("fid", "kid", "sample_coverage", "images_per_second"):
        expected = [best[trial][column] for trial in order]
        assert table[column].to_list() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "factor", "known"),
    [
        (
            "hparams",
            "optimizer",
            {"sample_coverage": [0.101, 0.121], "images_per_second": [3698, 3786]},
        ),
        ("hparams", "batch_size", {}),
        ("architecture", "generator_depth", {"sharpness": [0.993, 0.928]}),
    ],
)
def test_levels_are_compared_by_seed(
    name: str, factor: str, known: dict[str, list[float]], runs: Path
) -> None:
    """Means, SciPy's paired t interval of four seeds, and other columns at the best epochs."""
    best = best_by_seed(runs / name)
    table = tables.compare(load_trials(runs / name), factor)
    by_seed = best.pivot_table("fid", "seed", factor)
    assert table[factor].to_list() == by_seed.columns.to_list()
    assert table["mean"].to_list() == pytest.approx(by_seed.mean().to_list())
    worse, good = (by_seed.iloc[:, n] for n in (by_seed.mean().argmax(), by_seed.mean().argmin()))
    ends = table.loc[table["mean"].idxmax(), ["difference_low", "difference_high"]]
    expected = stats.ttest_rel(worse, good).confidence_interval()
    assert ends.to_list() == pytest.approx(list(expected), rel=1e-3)
    for column in ("sample_coverage", "sharpness", "path_length", "images_per_second"):
        means = best.groupby(factor)[column].mean()
        assert table[column].to_list() == pytest.approx(means.to_list())
    for column, values in known.items():
        np.testing.assert_allclose(table[column], values, rtol=5e-3)


def test_lanes_are_the_replicas_of_consecutive_seeds(runs: Path) -> None:
    frame = load_trials(runs / "hparams")
    first = frame[frame["trial"] == "trial_0000"]
    assert first.groupby("lane")["seed"].unique().map(list).to_list() == [[0], [1], [2], [3]]
    assert set(frame["lanes"]) == {4}
    means = over_lanes(frame)
    rows = pd.read_json(runs / "hparams" / "trial_0000" / "result.json", lines=True)
    rows = rows.rename(columns=RENAMED)
    own = means[means["trial"] == "trial_0000"].reset_index(drop=True)
    for name in ("fid", "kid", "fid_std", "seconds_train", "seconds_eval", "images_per_second"):
        assert own[name].to_list() == pytest.approx(rows[name].to_list(), rel=1e-12)
    for name in ("classes_covered", "collapsed", "peak_memory_bytes", "images_seen"):
        assert own[name].to_list() == rows[name].to_list()
