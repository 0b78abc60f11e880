"""Results of an earlier version, as kept in docs/study, give the answers that were written then."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from analysis import claims, cli, tables
from analysis.load import load_trials, over_lanes, read_search

STUDY = Path(__file__).parents[3] / "docs" / "study"
SEARCHES = ("baseline", "architecture", "hparams", "precision", "joint")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with zipfile.ZipFile(STUDY / "runs.zip") as archive:
        archive.extractall(folder)
    return folder


def written(name: str) -> pd.DataFrame:
    return pd.read_csv(STUDY / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_ranked_as_it_was(name: str, runs: Path) -> None:
    table = tables.rank(load_trials(runs / name), read_search(runs / name))
    expected = written(name)
    assert table["trial"].to_list() == expected["trial"].to_list()
    pd.testing.assert_frame_equal(tables.as_text(table).astype(str), expected.astype(str))


def test_claims_are_what_they_were(runs: Path) -> None:
    table = claims.judge(load_trials([runs / name for name in SEARCHES]))
    expected = written("claims")
    assert table["verdict"].to_list() == expected["verdict"].to_list()
    assert table["remark"].to_list() == expected["remark"].to_list()
    ends = table[["effect", "low", "high", "unit"]].itertuples(index=False)
    texts = [
        f"{cli.spread(effect, low, high, '+')} {unit}" if pd.notna(effect) else ""
        for effect, low, high, unit in ends
    ]
    assert texts == expected["effect"].to_list()


def test_levels_are_compared_by_seed_as_they_were(runs: Path) -> None:
    table = tables.compare(load_trials(runs / "hparams"), "generator_lr")
    expected = written("hparams-generator_lr")
    texts = [cli.spread(*row) for row in table[["mean", "mean_low", "mean_high"]].to_numpy()]
    assert texts == expected["fid, mean"].to_list()
    assert table["n"].astype(str).to_list() == expected["n"].to_list()


def test_lanes_are_the_replicas_of_consecutive_seeds(runs: Path) -> None:
    frame = load_trials(runs / "hparams")
    first = frame[frame["trial"] == "trial_0000"]
    assert first.groupby("lane")["seed"].unique().map(list).to_list() == [[0], [1], [2], [3]]
    assert set(frame["lanes"]) == {4}
    means = over_lanes(frame)
    rows = pd.read_json(runs / "hparams" / "trial_0000" / "result.json", lines=True)
    own = means[means["trial"] == "trial_0000"].reset_index(drop=True)
    for name in ("fid", "kid", "fid_std", "seconds_train", "seconds_eval", "images_per_second"):
        assert own[name].to_list() == pytest.approx(rows[name].to_list(), rel=1e-12)
    for name in ("digits_covered", "collapsed", "peak_memory_bytes", "images_seen"):
        assert own[name].to_list() == rows[name].to_list()
