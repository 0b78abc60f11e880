"""Loading and ranking, on folders laid out as Ray lays them out. Real ones are loaded in tests/integration."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.load import load_trials
from analysis.tables import ranking, varied, write
from dcgan.schema import COLUMNS

PROTOCOL = {
    "eval_split": "validation",
    "eval_samples": 2000,
    "eval_seed": 1,
    "fid_real": 0.25,
    "extractor": "abc",
    "device": "cpu",
}


def row(epoch: int, fid: float) -> dict[str, Any]:
    """A row with every column, and some of Ray's own."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 1.0)
    counts = {"epoch": epoch, "images_seen": 8000 * epoch, "digits_covered": 9, "peak_memory_bytes": 5_000_000}
    ray = {"training_iteration": epoch, "time_total_s": 3.0, "config": {"generator_lr": 1}, "trial_id": "x"}
    return values | counts | {"fid": fid, "collapsed": epoch == 1} | PROTOCOL | ray


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search of five trials: finished, stopped, failed with and without rows, and still running."""
    trials: dict[str, tuple[str, list[float], str]] = {
        "trial_a": ("TERMINATED", [50.0, 20.0, 30.0], ""),
        "trial_b": ("TERMINATED", [40.0], ""),
        "trial_c": ("ERROR", [60.0], "Traceback\nFloatingPointError: training diverged in epoch 2\n"),
        "trial_d": ("ERROR", [], "Traceback\nFloatingPointError: training diverged in epoch 1\n"),
        "trial_e": ("RUNNING", [45.0, 35.0], ""),
    }
    state = []
    for i, (name, (status, fids, error)) in enumerate(trials.items()):
        folder = tmp_path / name
        folder.mkdir()
        params = {"dataset": "mnist-mini", "generator_lr": 1e-4 * (i + 1), "discriminator_lr": 1e-4, "epochs": 3, "seed": 0}
        (folder / "params.json").write_text(json.dumps(params))
        (folder / "result.json").write_text("".join(json.dumps(row(n, fid)) + "\n" for n, fid in enumerate(fids, 1)))
        if error:
            (folder / "error.txt").write_text(error)
        state.append([json.dumps({"relative_logdir": name, "status": status}), "{}"])
    (tmp_path / "experiment_state-2026-01-02_00-00-00.json").write_text(json.dumps({"trial_data": state}))
    old = [[json.dumps({"relative_logdir": name, "status": "PENDING"}), "{}"] for name in trials]
    (tmp_path / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps({"trial_data": old}))
    search = {"axes": {"generator_lr": "1e-4 to 5e-4"}, "metric": "fid"}
    (tmp_path / "search.json").write_text(json.dumps(search))
    return tmp_path


def test_frame_is_long_typed_and_complete(run: Path) -> None:
    frame = load_trials(run)
    assert list(zip(frame["trial"], frame["epoch"].fillna(0), strict=True)) == [
        ("trial_a", 1), ("trial_a", 2), ("trial_a", 3), ("trial_b", 1), ("trial_c", 1), ("trial_d", 0),
        ("trial_e", 1), ("trial_e", 2),
    ]  # fmt: skip
    assert set(COLUMNS) <= set(frame.columns)
    assert not {"training_iteration", "config", "trial_id"} & set(frame.columns)
    assert frame["epoch"].dtype == "Int64"
    assert frame["collapsed"].dtype == "boolean"
    assert frame["fid"].dtype == float
    statuses = frame.drop_duplicates("trial").set_index("trial")["status"].to_dict()
    assert statuses == {
        "trial_a": "finished", "trial_b": "stopped", "trial_c": "failed", "trial_d": "failed", "trial_e": "unfinished",
    }  # fmt: skip
    assert frame.query("trial == 'trial_d'")["error"].item() == "FloatingPointError: training diverged in epoch 1"


def test_ranking_is_by_best_epoch_with_failures_last(run: Path) -> None:
    table = ranking(load_trials(run))
    assert table["trial"].to_list() == ["trial_a", "trial_e", "trial_b", "trial_c", "trial_d"]
    assert table["rank"].to_list()[:4] == [1, 2, 3, 4]
    assert table["rank"].isna().to_list() == [False] * 4 + [True]
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
    for part in ("finished", "stopped", "failed", "unfinished", "training diverged in epoch 1", "validation split"):
        assert part in text
        assert part in (run / "table.md").read_text()


def test_an_epoch_trained_twice_counts_once_and_the_later_holds(run: Path) -> None:
    with (run / "trial_b" / "result.json").open("a") as file:
        file.write(json.dumps(row(1, 39.0)) + "\n")
    assert load_trials(run).query("trial == 'trial_b'")["fid"].to_list() == [39.0]


@pytest.mark.parametrize(
    "damage", ['{"epoch": 2, "fid": 1', "\x00\x00\x00", "[1, 2]", "null", '{"fid": 3.0}', '{"epoch": 2, "fid": "abc"}']
)
def test_a_damaged_row_is_named_and_the_rest_loads(damage: str, run: Path) -> None:
    with (run / "trial_b" / "result.json").open("a") as file:
        file.write(damage)
    with pytest.warns(UserWarning, match=r"trial_b/result.json, line 2, is damaged"):
        frame = load_trials(run)
    assert len(frame) == 8


@pytest.mark.parametrize("content", [None, "{", "[]x"])
def test_missing_or_damaged_settings_are_named_and_the_rest_loads(content: str | None, run: Path) -> None:
    path = run / "trial_b" / "params.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match=r"trial_b/params.json is missing or damaged"):
        frame = load_trials(run)
    assert len(frame) == 8
    assert pd.isna(frame.query("trial == 'trial_b'")["generator_lr"].item())


@pytest.mark.parametrize("search", ["{", "[1]", None])
def test_tables_are_made_of_whatever_is_left(search: str | None, run: Path) -> None:
    """No trial's settings can be read, and the search's description neither."""
    for file in run.glob("trial_*/params.json"):
        file.write_text("{")
    (run / "search.json").unlink() if search is None else (run / "search.json").write_text(search)
    with pytest.warns(UserWarning, match="damaged"):
        table, text = write(run)
    assert table["trial"].to_list()[:2] == ["trial_a", "trial_e"]
    assert "trial_a" in text


def test_settings_that_cannot_be_read_are_left_empty(run: Path) -> None:
    for file in run.glob("trial_*/params.json"):
        file.write_text("{")
    with pytest.warns(UserWarning, match=r"params.json is missing or damaged"):
        table, _ = write(run)
    assert table["generator_lr"].isna().all()


def test_a_damaged_state_gives_way_to_the_one_before(run: Path) -> None:
    (run / "experiment_state-2026-01-02_00-00-00.json").write_text('{"trial_da')
    with pytest.warns(UserWarning, match="experiment_state-2026-01-02_00-00-00.json is damaged"):
        frame = load_trials(run)
    assert set(frame["status"]) == {"finished", "unfinished"}


def test_one_trial_alone_loads(run: Path) -> None:
    assert load_trials(run / "trial_a")["epoch"].to_list() == [1, 2, 3]
    assert set(load_trials(run / "trial_c")["status"]) == {"failed"}


def test_a_search_in_which_everything_failed_still_has_a_table(run: Path) -> None:
    for name in "abce":
        for file in (run / f"trial_{name}").iterdir():
            file.unlink()
        (run / f"trial_{name}").rmdir()
    table, text = write(run)
    assert table["trial"].to_list() == ["trial_d"]
    assert "No trial finished an epoch" in text


def test_no_results_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no results at {tmp_path}"):
        load_trials(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results at"):
        load_trials(tmp_path / "nowhere")
