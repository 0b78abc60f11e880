"""Loading and ranking, on folders laid out as a search lays them out. Real ones are loaded in
tests/integration."""

import contextlib
import itertools
import json
import shutil
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from analysis import tables
from analysis.load import RESULTS, load_trials, over_lanes, read_search
from analysis.tables import conditions, goals_of, pareto, ranking, varied, write
from dcgan.config import TrainConfig
from dcgan.files import read_rows
from dcgan.schema import ADDED_SETTINGS, RENAMED

PROTOCOL = {
    "eval_split": "validation",
    "eval_samples": 2000,
    "eval_seed": 1,
    "fid_real": 0.25,
    "extractor": "abc",
    "device": "cpu",
}


def row(epoch: int, fid: float, lane: int = 0) -> dict[str, Any]:
    """A row with every column."""
    values: dict[str, Any] = dict.fromkeys(RESULTS, 1.0)
    counts = {
        "epoch": epoch,
        "images_seen": 8000 * epoch,
        "classes_covered": 9,
        "peak_memory_bytes": 5_000_000,
    }
    return values | counts | PROTOCOL | {"lane": lane, "fid": fid, "collapsed": epoch == 1}


TRIALS: dict[str, tuple[TrialState, list[float], str]] = {
    "trial_0000": (TrialState.COMPLETE, [50.0, 20.0, 30.0], ""),
    "trial_0001": (TrialState.PRUNED, [40.0], ""),
    "trial_0002": (
        TrialState.FAIL,
        [60.0],
        "Traceback\nFloatingPointError: training diverged in epoch 2\n",
    ),
    "trial_0003": (
        TrialState.FAIL,
        [],
        "Traceback\nFloatingPointError: training diverged in epoch 1\n",
    ),
    "trial_0004": (TrialState.RUNNING, [45.0, 35.0], ""),
}


def make_study(path: Path, states: Sequence[TrialState]) -> Path:
    """A study made by Optuna itself."""
    study = optuna.create_study(storage=f"sqlite:///{path}")
    for state in states:
        study.add_trial(
            create_trial(state=state, values=[1.0] if state == TrialState.COMPLETE else None)
        )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    states = [state for state, _, _ in TRIALS.values()]
    return make_study(tmp_path_factory.mktemp("made") / "study.db", states)


@pytest.fixture
def run(tmp_path: Path, made: Path) -> Path:
    """A search of five trials: finished, stopped, failed with and without rows, and still
    running."""
    for i, (name, (_, fids, error)) in enumerate(TRIALS.items()):
        folder = tmp_path / name
        folder.mkdir()
        params = {
            "dataset": "mnist-mini",
            "generator_lr": 1e-4 * (i + 1),
            "discriminator_lr": 1e-4,
            "epochs": 3,
            "seed": 0,
        }
        (folder / "params.json").write_text(json.dumps(params))
        write_rows(folder, [row(n, fid) for n, fid in enumerate(fids, 1)])
        if error:
            (folder / "error.txt").write_text(error)
    shutil.copy(made, tmp_path / "study.db")
    search = {"axes": {"generator_lr": {"name": "FloatDistribution"}}, "metric": "fid"}
    (tmp_path / "search.json").write_text(json.dumps(search))
    return tmp_path


def write_rows(trial: Path, rows: Sequence[dict[str, Any]]) -> None:
    (trial / "result.json").write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_frame_is_long_typed_and_complete(run: Path) -> None:
    frame = load_trials(run)
    assert list(zip(frame["trial"], frame["epoch"].fillna(0), strict=True)) == [
        ("trial_0000", 1), ("trial_0000", 2), ("trial_0000", 3), ("trial_0001", 1),
        ("trial_0002", 1), ("trial_0003", 0), ("trial_0004", 1), ("trial_0004", 2),
    ]  # fmt: skip
    assert set(RESULTS) <= set(frame.columns)
    assert not {"training_iteration", "config", "trial_id"} & set(frame.columns)
    assert frame["epoch"].dtype == "Int64"
    assert frame["collapsed"].dtype == "boolean"
    assert frame["fid"].dtype == float
    statuses = frame.drop_duplicates("trial").set_index("trial")["status"].to_dict()
    assert statuses == {
        "trial_0000": "finished",
        "trial_0001": "stopped",
        "trial_0002": "failed",
        "trial_0003": "failed",
        "trial_0004": "unfinished",
    }
    assert (
        frame.query("trial == 'trial_0003'")["error"].item()
        == "FloatingPointError: training diverged in epoch 1"
    )


def test_ranking_is_by_best_epoch_with_the_unfinished_last(run: Path) -> None:
    table = ranking(load_trials(run))
    assert table["trial"].to_list() == [
        "trial_0000",
        "trial_0004",
        "trial_0001",
        "trial_0002",
        "trial_0003",
    ]
    assert table["rank"].fillna(0).to_list() == [1, 0, 0, 0, 0]
    assert table["best_epoch"].to_list()[:4] == [2, 2, 1, 1]
    assert table["epochs"].to_list() == [3, 2, 1, 1, 0]
    assert table["fid"].to_list()[:4] == [20.0, 35.0, 40.0, 60.0]
    assert table["seconds"].to_list()[:4] == [6.0, 4.0, 2.0, 2.0]
    assert table["peak_memory_mb"].to_list()[:4] == [5.0] * 4
    assert "generator_lr" in table
    assert "discriminator_lr" not in table


def test_settings_that_vary_are_found(run: Path) -> None:
    assert varied(load_trials(run)) == ["generator_lr"]


def test_written_tables_hold_what_was_ranked(run: Path) -> None:
    table, text = write(run)
    read = pd.read_csv(run / "table.csv")
    assert read["trial"].to_list() == table["trial"].to_list()
    assert read["fid"].to_list()[:4] == [20.0, 35.0, 40.0, 60.0]
    markdown = (run / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| rank")
    assert sum(line.startswith("|") for line in markdown) == 2 + 5
    for part in (
        "finished",
        "stopped",
        "failed",
        "unfinished",
        "training diverged in epoch 1",
        "validation split",
    ):
        assert part in text
        assert part in (run / "table.md").read_text()


def test_json_holds_the_numbers_that_are_printed(run: Path, printed: Callable[..., str]) -> None:
    lines = printed(tables.main, run).splitlines()[2:7]
    data = json.loads(printed(tables.main, run, "--json"))
    assert [row["rank"] for row in data] == [1, None, None, None, None]
    assert [row["fid"] for row in data] == [20.0, 35.0, 40.0, 60.0, None]
    for one, line in zip(data[:4], lines, strict=False):
        shown = f"{one['trial']} {one['status']} {one['fid']:.0f} {one['best_epoch']} of "
        assert f"{shown}{one['epochs']} {one['generator_lr']:g} " in " ".join(line.split())


def test_an_epoch_trained_twice_counts_once_and_the_later_holds(run: Path) -> None:
    with (run / "trial_0001" / "result.json").open("a") as file:
        file.write(json.dumps(row(1, 39.0)) + "\n")
    assert load_trials(run).query("trial == 'trial_0001'")["fid"].to_list() == [39.0]


@pytest.mark.parametrize(
    "damage",
    [
        '{"epoch": 2, "fid": 1',
        "\x00\x00\x00",
        "[1, 2]",
        "null",
        '{"fid": 3.0}',
        '{"epoch": 2, "fid": "abc"}',
    ],
)
def test_a_damaged_row_is_named_and_the_rest_loads(damage: str, run: Path) -> None:
    with (run / "trial_0001" / "result.json").open("a") as file:
        file.write(damage)
    with pytest.warns(UserWarning, match=r"trial_0001/result.json, line 2, is damaged"):
        frame = load_trials(run)
    assert len(frame) == 8


@pytest.mark.parametrize("content", [None, "{", "[]x"])
def test_missing_or_damaged_settings_are_named_and_the_rest_loads(
    content: str | None, run: Path
) -> None:
    path = run / "trial_0001" / "params.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match=r"trial_0001/params.json is missing or damaged"):
        frame = load_trials(run)
    assert len(frame) == 8
    assert pd.isna(frame.query("trial == 'trial_0001'")["generator_lr"].item())


@pytest.mark.parametrize("search", ["{", "[1]", None])
def test_tables_are_made_of_whatever_is_left(search: str | None, run: Path) -> None:
    """No trial's settings can be read, and the search's description neither."""
    for file in run.glob("trial_*/params.json"):
        file.write_text("{")
    (run / "search.json").unlink() if search is None else (run / "search.json").write_text(search)
    with pytest.warns(UserWarning, match="damaged"):
        table, text = write(run)
    assert table["trial"].to_list()[:2] == ["trial_0000", "trial_0004"]
    assert "trial_0000" in text


def test_settings_that_cannot_be_read_are_left_empty(run: Path) -> None:
    for file in run.glob("trial_*/params.json"):
        file.write_text("{")
    with pytest.warns(UserWarning, match=r"params.json is missing or damaged"):
        table, _ = write(run)
    assert table["generator_lr"].isna().all()


def test_one_trial_alone_loads(run: Path) -> None:
    assert load_trials(run / "trial_0000")["epoch"].to_list() == [1, 2, 3]
    assert set(load_trials(run / "trial_0002")["status"]) == {"failed"}


def test_a_search_in_which_everything_failed_still_has_a_table(run: Path) -> None:
    for number in (0, 1, 2, 4):
        shutil.rmtree(run / f"trial_{number:04d}")
    table, text = write(run)
    assert table["trial"].to_list() == ["trial_0003"]
    assert "No trial finished an epoch" in text


def test_no_results_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no results at {tmp_path}"):
        load_trials(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results at"):
        load_trials(tmp_path / "nowhere")


OTHER_STATES = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.FAIL,
    TrialState.WAITING,
)


@pytest.fixture(scope="module")
def made_otherwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("otherwise") / "study.db", OTHER_STATES)


@pytest.fixture
def study(run: Path, made_otherwise: Path) -> Path:
    """The search of `run`, whose study says what the rows do not, in a folder whose name no URI may
    hold as it is."""
    folder = run / "odd name?#%41 &mode=rw"
    folder.mkdir()
    for number in range(5):
        name = f"trial_{number:04d}"
        (run / name).rename(folder / name)
    shutil.copy(made_otherwise, folder / "study.db")
    return folder


def statuses(frame: pd.DataFrame) -> list[str]:
    return frame.drop_duplicates("trial")["status"].to_list()


def test_statuses_come_from_the_study(study: Path) -> None:
    (study / "trial_0000" / "result.json").write_text(
        json.dumps(row(1, 50.0))
    )  # the study's word counts
    frame = load_trials(study)
    assert statuses(frame) == ["finished", "stopped", "failed", "unfinished", "failed"]
    assert (
        frame.query("trial == 'trial_0002'")["error"].item()
        == "FloatingPointError: training diverged in epoch 2"
    )


def test_a_trial_that_failed_after_its_last_epoch_has_failed(study: Path) -> None:
    (study / "trial_0002" / "result.json").write_text(
        "".join(json.dumps(row(n, 9.0)) + "\n" for n in (1, 2, 3))
    )
    assert statuses(load_trials(study))[2] == "failed"


def test_the_study_outweighs_an_error_left_by_an_earlier_attempt(study: Path) -> None:
    (study / "trial_0001" / "error.txt").write_text("Traceback\nOSError: worker lost\n")
    frame = load_trials(study).query("trial == 'trial_0001'")
    assert statuses(frame) == ["stopped"]
    assert frame["error"].isna().all()


@pytest.mark.parametrize("damage", ["text", "empty", "no number", "locked"])
def test_a_study_that_cannot_be_read_is_named_and_the_rows_decide(damage: str, study: Path) -> None:
    path = study / "study.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        if damage == "no number":
            with database:
                database.execute("UPDATE trials SET number = NULL")
        elif damage == "locked":
            database.execute("BEGIN EXCLUSIVE")
        else:
            path.write_text("no database" if damage == "text" else "")
        with pytest.warns(UserWarning, match=r"study\.db is damaged or locked"):
            frame = load_trials(study)
    assert statuses(frame) == ["finished", "unfinished", "failed", "failed", "unfinished"]


def test_reading_leaves_the_study_as_it_is(study: Path) -> None:
    before = (study / "study.db").read_bytes(), sorted(study.iterdir())
    load_trials(study)
    assert ((study / "study.db").read_bytes(), sorted(study.iterdir())) == before


FIDS = [[30.0, 40.0, 50.0], [10.0, 60.0, 20.0]]
"""Of seeds 7, 8 and 9 of one trial, in two epochs."""


def own(fids: list[float]) -> dict[str, list[Any]]:
    """Columns of which each lane has values of its own."""
    return {
        "fid": fids,
        "collapsed": [fid > 30 for fid in fids],
        "classes_covered": [9 - lane for lane in range(len(fids))],
    }


def replicated(epoch: int, fids: list[float]) -> dict[str, Any]:
    """The row of an earlier version: means, seconds of all, and lists."""
    means = row(epoch, sum(fids) / len(fids)) | {"seconds_train": 3.0, "seconds_eval": 1.5}
    means["seconds_checkpoint"] *= 3
    del means["lane"]
    return means | {"fid_std": 10.0, "by_replica": own(fids)}


def make_replicas(run: Path) -> Path:
    path = run / "trial_0000" / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7, "replicas": 3}))
    write_rows(run / "trial_0000", [replicated(epoch, fids) for epoch, fids in enumerate(FIDS, 1)])
    return run


def make_lanes(run: Path) -> Path:
    path = run / "trial_0000" / "params.json"
    settings = json.loads(path.read_text()) | {"loss": "non-saturating"}
    path.write_text(json.dumps([settings | {"seed": seed} for seed in (7, 8, 9)]))
    rows = []
    for epoch, fids in enumerate(FIDS, start=1):
        for lane in range(3):
            values = {name: column[lane] for name, column in own(fids).items()}
            seconds = {"seconds_train": 1.0, "seconds_eval": 0.5}
            rows.append(row(epoch, 0.0, lane) | seconds | values)
    write_rows(run / "trial_0000", rows)
    return run


@pytest.fixture(params=[make_lanes, make_replicas])
def lanes(request: pytest.FixtureRequest, run: Path) -> Path:
    """The search of `run`, in which the first trial trained three lanes for two epochs: as it is
    written now, and as an earlier version did."""
    made: Path = request.param(run)
    return made


def first_trial(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["trial"] == "trial_0000"].reset_index(drop=True)


def test_each_lane_has_its_own_rows_and_settings(lanes: Path) -> None:
    frame = load_trials(lanes)
    assert not {"by_replica", "fid_std", "replicas"} & set(frame)
    assert frame["threads"].dtype == frame["lane"].dtype == "Int64"
    columns = ["lane", "seed", "epoch", "fid", "collapsed", "classes_covered", "images_seen"]
    assert first_trial(frame)[columns].to_numpy().tolist() == [
        [0, 7, 1, 30.0, False, 9, 8000], [0, 7, 2, 10.0, False, 9, 16000],
        [1, 8, 1, 40.0, True, 8, 8000], [1, 8, 2, 60.0, True, 8, 16000],
        [2, 9, 1, 50.0, True, 7, 8000], [2, 9, 2, 20.0, False, 7, 16000],
    ]  # fmt: skip
    assert first_trial(frame)["seconds_train"].to_list() == [1.0] * 6  # a third of the trial's
    assert first_trial(frame)["loss"].to_list() == ["non-saturating"] * 6
    assert frame.drop_duplicates("trial")["lanes"].to_list() == [3, 1, 1, 1, 1]
    assert "Mean of 3 seeds a setting" in conditions(frame)
    assert "One seed a setting" in conditions(frame[frame["trial"] != "trial_0000"])


def test_rows_of_an_earlier_version_load_as_those_of_today(run: Path) -> None:
    today = load_trials(make_lanes(run))
    params = run / "trial_0000" / "params.json"
    first, *_ = json.loads(params.read_text())
    del first["loss"]
    params.write_text(json.dumps(first))
    pd.testing.assert_frame_equal(load_trials(make_replicas(run)), today, check_like=True)


def test_columns_that_were_renamed_have_the_name_of_today(run: Path) -> None:
    """Also where only a trial's first rows have the old one, and in a search's objectives."""
    describe(run, [("fid", "min"), ("class_kl", "min")])
    today, goals = load_trials(run), goals_of(read_search(run))
    old = {now: name for name, now in RENAMED.items()}
    for path in run.glob("*/result.json"):
        rows = read_rows(path)
        first = [{old.get(name, name): value for name, value in row.items()} for row in rows[:1]]
        write_rows(path.parent, [*first, *rows[1:]])
    describe(run, [("fid", "min"), (old["class_kl"], "min")])
    pd.testing.assert_frame_equal(load_trials(run), today)
    assert goals_of(read_search(run)) == goals


def test_settings_that_a_version_added_were_what_they_are_by_default(run: Path) -> None:
    """In one frame with trials that have them, so that nothing seems to vary that did not."""
    paths = sorted(run.glob("trial_*/params.json"))
    defaults = TrainConfig().to_dict()
    assert {name: defaults[name] for name in ADDED_SETTINGS} == ADDED_SETTINGS
    paths[0].write_text(json.dumps(json.loads(paths[0].read_text()) | ADDED_SETTINGS))
    paths[1].write_text("damaged")
    with pytest.warns(UserWarning, match="missing or damaged"):
        frame = load_trials(run)
    for name, value in ADDED_SETTINGS.items():
        of_trial = frame.drop_duplicates("trial").set_index("trial")[name]
        assert of_trial.drop(paths[1].parent.name).to_list() == [value] * (len(of_trial) - 1)
        assert pd.isna(of_trial[paths[1].parent.name])


def test_over_lanes_is_one_row_a_trial_and_epoch(lanes: Path) -> None:
    frame = over_lanes(load_trials(lanes))
    assert "lane" not in frame
    columns = ["epoch", "seed", "lanes", "fid", "collapsed", "classes_covered", "seconds_train"]
    assert first_trial(frame)[columns].to_numpy().tolist() == [
        [1, 7, 3, 40.0, True, 7, 3.0], [2, 7, 3, 30.0, True, 7, 3.0],
    ]  # fmt: skip
    assert first_trial(frame)["seconds_eval"].to_list() == [1.5, 1.5]
    assert first_trial(frame)["fid_std"].to_list() == pytest.approx([10.0, np.std(FIDS[1], ddof=1)])
    assert first_trial(frame)["images_seen"].to_list() == [8000, 16000]
    assert over_lanes(frame) is frame
    assert over_lanes(load_trials(lanes).sample(frac=1, random_state=1)).equals(frame)
    table = ranking(load_trials(lanes)).set_index("trial")
    first = table.loc["trial_0000", ["fid", "best_epoch", "epochs", "seconds"]]
    assert first.to_list() == [30.0, 2, 2, 9.0]
    assert varied(first_trial(load_trials(lanes))) == []  # lanes differ, but no trials


def test_over_one_lane_nothing_changes(run: Path) -> None:
    frame = load_trials(run)
    means = over_lanes(frame)
    assert means["fid_std"].fillna(-1).to_list() == [0, 0, 0, 0, 0, -1, 0, 0]
    pd.testing.assert_frame_equal(means.drop(columns="fid_std"), frame.drop(columns="lane"))


def test_an_epoch_that_lacks_a_lane_is_in_no_mean(lanes: Path) -> None:
    frame = load_trials(lanes)
    cut = frame.drop(index=frame.index[frame["lane"].eq(1) & frame["epoch"].eq(2)])
    assert first_trial(over_lanes(cut))["epoch"].to_list() == [1]
    nothing = first_trial(over_lanes(cut[~(cut["lane"].eq(2) & cut["epoch"].eq(1))]))
    assert len(nothing) == 1
    assert nothing[list(RESULTS)].isna().all(axis=None)
    assert nothing["seed"].item() == 7
    table = ranking(cut[cut["lane"] < 1])
    assert table["fid"].count() == 3  # of 4 trials with rows
    assert table["rank"].isna().all()


def test_a_mean_is_missing_where_a_lane_lacks_the_value(lanes: Path) -> None:
    frame = load_trials(lanes)
    frame.loc[frame["lane"].eq(2) & frame["epoch"].eq(1), ["kid", "seconds_train"]] = np.nan
    assert first_trial(over_lanes(frame))["kid"].isna().to_list() == [True, False]
    assert first_trial(over_lanes(frame))["seconds_train"].isna().to_list() == [True, False]


def test_a_trial_has_finished_once_all_its_lanes_have(run: Path) -> None:
    make_lanes(run)
    (run / "study.db").unlink()
    rows = [row(epoch, 9.0, lane) for epoch in (1, 2, 3) for lane in range(3)]
    write_rows(run / "trial_0000", rows[:-1])
    assert statuses(load_trials(run))[0] == "unfinished"
    write_rows(run / "trial_0000", rows)
    assert statuses(load_trials(run))[0] == "finished"


@pytest.mark.parametrize("lane", [3, -1, 0.5, "0", None])
def test_a_row_of_no_lane_is_damaged(lane: Any, run: Path) -> None:
    make_lanes(run)
    with (run / "trial_0000" / "result.json").open("a") as file:
        file.write(json.dumps(row(3, 1.0) | {"lane": lane}))
    with pytest.warns(UserWarning, match=r"trial_0000/result.json, line 7, is damaged"):
        assert len(first_trial(load_trials(run))) == 6


@pytest.mark.parametrize(
    "values",
    [
        {"fid": [1.0, 2.0]},
        {"fid": [1.0, 2.0, 3.0], "kid": [1.0] * 4},
        {"fid": [1.0, "2", 3.0]},
        {"fid": [1.0, None, 3.0]},
        {"fid": 1.0},
        {},
        [1.0, 2.0, 3.0],
        None,
    ],
)
def test_damaged_replicas_are_a_damaged_row(values: object, run: Path) -> None:
    make_replicas(run)
    with (run / "trial_0000" / "result.json").open("a") as file:
        file.write(json.dumps(replicated(3, [1.0, 2.0, 3.0]) | {"by_replica": values}))
    with pytest.warns(UserWarning, match=r"trial_0000/result.json, line 3, is damaged"):
        assert len(first_trial(load_trials(run))) == 6


@pytest.mark.parametrize("content", [None, "[]", "[1]", '{"replicas": 3}', '{"replicas": "x"}'])
def test_lanes_without_settings_have_no_seed(content: str | None, lanes: Path) -> None:
    path = lanes / "trial_0000" / "params.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match="params.json is missing or damaged"):
        frame = first_trial(load_trials(lanes))
    assert len(frame) == 6
    assert frame["seed"].isna().all()
    assert frame["lanes"].to_list() == [3] * 6
    assert over_lanes(frame)["fid"].to_list() == [40.0, 30.0]


def test_pareto_agrees_with_comparing_all_pairs() -> None:
    objectives = [("a", "min"), ("b", "max"), ("c", "min")]
    rng = np.random.default_rng(0)
    for number in (2, 3):
        goals = objectives[:number]
        table = pd.DataFrame(
            rng.integers(9, size=(60, 3)).astype(float), columns=list("abc"), index=range(100, 160)
        )
        table.iloc[::9, 0] = np.nan
        expected = dict.fromkeys(table.index, True) | dict.fromkeys(table.index[::9], False)
        for (i, one), (_, other) in itertools.product(table.iterrows(), table.iterrows()):
            better = [
                other[n] < one[n] if mode == "min" else other[n] > one[n] for n, mode in goals
            ]
            worse = [other[n] > one[n] if mode == "min" else other[n] < one[n] for n, mode in goals]
            if any(better) and not any(worse) and not other[["a"]].isna().any():
                expected[i] = False
        assert pareto(table, goals).to_dict() == expected
        assert 1 < sum(expected.values()) < 40


def test_pareto_of_one_nothing_and_missing_values() -> None:
    goals = [("a", "min"), ("b", "min")]
    assert pareto(pd.DataFrame({"a": [1.0], "b": [2.0]}), goals).to_list() == [True]
    assert pareto(pd.DataFrame({"a": [], "b": []}), goals).to_list() == []
    missing = pd.DataFrame({"a": pd.array([1.0, None], dtype="Float64"), "b": [pd.NA, 1.0]})
    assert pareto(missing, goals).to_list() == [False, False]


def describe(run: Path, objectives: list[tuple[str, str]]) -> None:
    search = json.loads((run / "search.json").read_text())
    search["objectives"] = [{"column": column, "mode": mode} for column, mode in objectives]
    (run / "search.json").write_text(json.dumps(search))


def test_several_objectives_show_who_is_on_the_front(run: Path) -> None:
    """Of the best epoch by fid: 0 has 20 and 5 d_fake, 4 has 35 and 4, 1 has 40 and 6, 2 has 60
    and 1."""
    speeds = {0: [9.0, 5.0, 9.0], 1: [6.0], 2: [1.0], 4: [9.0, 4.0]}
    for number, values in speeds.items():
        trial = run / f"trial_{number:04d}"
        rows = read_rows(trial / "result.json")
        write_rows(
            trial, [one | {"d_fake": value} for one, value in zip(rows, values, strict=True)]
        )
    describe(run, [("fid", "min"), ("d_fake", "max")])
    table, text = write(run)
    assert table["trial"].to_list() == [
        "trial_0000",
        "trial_0004",
        "trial_0001",
        "trial_0002",
        "trial_0003",
    ]
    assert table["pareto"].to_list() == [True, False, True, False, False]
    assert table["d_fake"].to_list()[:4] == [5.0, 4.0, 6.0, 1.0]
    assert text.splitlines()[0].split()[:2] == ["rank", "pareto"]
    assert "d_fake" in text.splitlines()[0]
    lines = [line.split() for line in text.splitlines()[2:6]]
    assert ["yes" in line for line in lines] == [True, False, True, False]
    assert pd.read_csv(run / "table.csv")["pareto"].to_list() == [True, False, True, False, False]


def test_the_first_objective_ranks(run: Path) -> None:
    describe(run, [("images_seen", "max")])
    table, text = write(run)
    assert table["images_seen"].to_list()[:4] == [24000, 16000, 8000, 8000]
    assert table["trial"].to_list() == [
        "trial_0000",
        "trial_0004",
        "trial_0001",
        "trial_0002",
        "trial_0003",
    ]
    assert "pareto" not in text


def test_several_runs_stay_apart(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Their trials have the same names; the second run is still running, and its trial 1 has
    another best."""
    other = shutil.copytree(run, tmp_path_factory.mktemp("other") / "later")
    shutil.rmtree(other / "trial_0000")
    (other / "trial_0001" / "result.json").write_text(json.dumps(row(1, 10.0)))
    both = load_trials([run, str(other)])
    assert both.columns[:2].to_list() == ["run", "trial"]
    for name, folder in ((run.name, run), ("later", other)):
        part = both[both["run"] == name].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, load_trials(folder))
    assert len(both) == len(load_trials(run)) + len(load_trials(other))
    table = ranking(both)
    assert table[["run", "trial", "fid"]].head(3).to_numpy().tolist() == [
        [run.name, "trial_0000", 20.0],
        ["later", "trial_0001", 10.0],
        ["later", "trial_0004", 35.0],
    ]
    assert len(table) == 9
    assert table["epochs"].head(3).to_list() == [3, 1, 2]
    assert table["seconds"].head(3).to_list() == [6.0, 2.0, 4.0]
    assert varied(both) == ["generator_lr"]


def test_one_run_alone_has_no_column_for_it_unless_it_is_listed(run: Path) -> None:
    assert "run" not in load_trials(run)
    assert set(load_trials([run])["run"]) == {run.name}


def test_runs_of_the_same_name_are_told_apart_by_their_paths(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = shutil.copytree(run, tmp_path_factory.mktemp("other") / run.name)
    assert set(load_trials([run, other])["run"]) == {str(run), str(other)}


def test_runs_must_be_given_each_once_and_hold_results(run: Path) -> None:
    with pytest.raises(ValueError, match="runs are none; expected at least one path"):
        load_trials([])
    with pytest.raises(ValueError, match="and each once"):
        load_trials([run, run])
    with pytest.raises(FileNotFoundError, match=r"no results at .*nowhere"):
        load_trials([run, run / "nowhere"])


@pytest.fixture
def bucket(study: Path) -> Iterator[str]:
    """The URI of a storage that holds the search of `study`, and large files beside the results."""
    (study / "trial_0000" / "checkpoint.pt").write_text("large")
    storage = fsspec.filesystem("memory")
    storage.put(str(study), "/bucket/runs/one", recursive=True)
    yield "memory://bucket/runs/one"
    storage.rm("/bucket", recursive=True)


def test_a_uri_loads_as_the_folder_does(study: Path, bucket: str) -> None:
    expected = load_trials(study)
    assert statuses(expected)[1] == "stopped"  # as the study alone knows
    for uri in (bucket, f"{bucket}/", f"file://{study}"):
        pd.testing.assert_frame_equal(load_trials(uri), expected)
    trial = load_trials(study / "trial_0000")
    pd.testing.assert_frame_equal(load_trials(f"{bucket}/trial_0000"), trial)
    assert set(load_trials([study, bucket])["run"]) == {study.name, "one"}


def test_of_a_uri_only_small_files_are_fetched(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = fsspec.filesystem("memory").get
    monkeypatch.setattr(
        type(fsspec.filesystem("memory")),
        "get",
        lambda _, files, to: fetched.extend(files) or get(files, to),
    )
    load_trials(bucket)
    names = {Path(file).name for file in fetched}
    assert names == {"study.db", "params.json", "result.json", "error.txt"}


def test_damage_behind_a_uri_is_named_by_the_uri(bucket: str) -> None:
    storage = fsspec.filesystem("memory")
    storage.pipe("/bucket/runs/one/trial_0001/params.json", b"{")
    storage.pipe("/bucket/runs/one/study.db", b"no database")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load_trials(bucket)) == 8
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" is ")[0] for message in messages] == [
        f"{bucket}/study.db",
        f"{bucket}/trial_0001/params.json",
    ]


def test_a_uri_without_results_is_an_error_that_names_it() -> None:
    with pytest.raises(FileNotFoundError, match="no results at memory://nowhere"):
        load_trials("memory://nowhere")


def test_columns_that_are_not_known_are_named_once_a_trial_and_the_rest_loads(run: Path) -> None:
    lines = [json.dumps(row(n, 9.0) | {"novel": 1.0, "beta": [2]}) for n in (1, 2)]
    (run / "trial_0001" / "result.json").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="trial_0001/result.json has columns") as caught:
        frame = load_trials(run)
    assert [str(warning.message).split("left out: ")[1] for warning in caught] == ["beta, novel"]
    assert not {"novel", "beta"} & set(frame.columns)
    assert len(frame) == 9


def test_a_running_search_without_a_study_and_with_a_half_written_row_loads(run: Path) -> None:
    (run / "study.db").unlink()
    with (run / "trial_0004" / "result.json").open("a") as file:
        file.write(json.dumps(row(3, 1.0))[:200])
    with pytest.warns(UserWarning, match=r"trial_0004/result.json, line 3, is damaged"):
        frame = load_trials(run)
    assert statuses(frame) == ["finished", "unfinished", "failed", "failed", "unfinished"]
    assert frame.query("trial == 'trial_0004'")["fid"].to_list() == [45.0, 35.0]


def test_a_large_search_loads_in_seconds(tmp_path: Path) -> None:
    """500 trials of 25 epochs: about 0.3 s on two cores of 2023. The bound is for a slow, busy
    machine."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    study.add_trials([create_trial(value=1.0)] * 500)
    epochs = "".join(json.dumps(row(n, 30.0 - n)) + "\n" for n in range(1, 26))
    for number in range(500):
        folder = tmp_path / f"trial_{number:04d}"
        folder.mkdir()
        (folder / "params.json").write_text(
            json.dumps({"generator_lr": 1e-4 * number, "epochs": 25, "seed": 0})
        )
        (folder / "result.json").write_text(epochs)
    begin = time.perf_counter()
    frame = load_trials(tmp_path)
    seconds = time.perf_counter() - begin
    print(f"load_trials: 500 trials, 25 epochs each, in {seconds:.2f} s")
    assert len(frame) == 12_500
    assert set(frame["status"]) == {"finished"}
    assert seconds < 10


def test_means_over_lanes_are_those_that_the_search_optimises(run: Path) -> None:
    """Training takes the mean of its own rows, without pandas."""
    from tune.trainable import mean_row

    make_lanes(run)
    means = first_trial(over_lanes(load_trials(run)))
    rows = read_rows(run / "trial_0000" / "result.json")
    for number, lanes_of_epoch in enumerate((rows[:3], rows[3:])):
        expected = mean_row(lanes_of_epoch)
        assert {name: means.loc[number, name] for name in expected} == pytest.approx(expected)
