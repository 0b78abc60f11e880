"""The README's search, run from the built wheel, shorter: what a person sees, what it
leaves, and what the commands of `analysis` make of it."""

import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from search_processes import resume, run
from search_results import decisions

import analysis.claims
import analysis.confirm
import analysis.report
import analysis.tables
import tune.run
from analysis.cli import rounded
from analysis.load import load_trials
from analysis.tables import ranking
from dcgan import checkpoint
from dcgan.config import read_lanes
from dcgan.evaluate import evaluate, load_reference
from dcgan.schema import BEST_FILE, CONFIRM_FOLDER, SEARCH_FILE, TEST_FILE

# the first test that needs the search runs it
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]
CPU = torch.device("cpu")
TRIALS, CONFIRMED = 7, 4  # the best and the baseline are confirmed on two seeds


@pytest.fixture(scope="module")
def frame(readme_search: Any) -> pd.DataFrame:
    return load_trials(readme_search.folder)


def test_the_wheel_holds_data_and_weights_and_runs_away_from_the_source(
    readme_search: Any, tmp_path: Path
) -> None:
    names = zipfile.ZipFile(readme_search.wheel).namelist()
    assets = ("mnist_mini.npz.xz", "yardstick.safetensors", "yardstick.json")
    assert {f"dcgan/assets/{name}" for name in assets} <= set(names)
    rooms = {name.split("/")[0] for name in names if not name.startswith("dcgan_tune-")}
    assert rooms == {"dcgan", "tune", "analysis"}

    script = "import dcgan, tune, analysis; print(dcgan.__file__, tune.__file__, analysis.__file__)"
    for file in readme_search.run("-c", script, cwd=tmp_path).split():
        assert Path(file).is_relative_to(readme_search.python.parents[1])
    flags = ["--image-size=16", "--generator-width=2", "--discriminator-width=2"]
    arguments = ["--dataset", "mnist-mini", "--epochs", "1", "--batch-size=1000", *flags]
    assert "epoch 1/1" in readme_search.run("-m", "dcgan.train", *arguments, cwd=tmp_path)


# The answer


def test_all_trials_are_ranked_and_the_best_are_digits(
    readme_search: Any, frame: pd.DataFrame
) -> None:
    assert frame["trial"].nunique() == TRIALS
    assert set(frame["status"]) == {"finished", "stopped"}
    assert (frame["generator_lr"] == frame["discriminator_lr"]).all()
    baseline = frame.query("generator_lr == 2e-4 and batch_size == 64 and optimizer == 'adam'")
    assert baseline["trial"].nunique() == 1

    table, output = ranking(frame), readme_search.output
    assert table.loc[table["status"] == "finished", "fid"].is_monotonic_increasing
    assert table["fid"][0] < 12  # noise is at 180, a black image at 70, real digits at 0.1
    assert all(trial in output for trial in table["trial"])
    trial, fid, epoch = table.loc[0, ["trial", "fid", "best_epoch"]]
    assert f"best: {trial}, fid {rounded(fid)} at epoch {epoch}" in output


def test_a_person_sees_how_far_it_is_and_how_each_trial_ended(readme_search: Any) -> None:
    output = readme_search.output
    ended = r"^trial_\w+ (finished|stopped at epoch \d): best fid"
    assert len(re.findall(ended, output, re.MULTILINE)) == TRIALS + CONFIRMED
    status = r"^\d.* · trials \d+/7 · reached epoch 2:\d+  6:\d+  9:\d+ · best fid .* left$"
    assert re.search(status, output, re.MULTILINE)
    assert f"everything is in {readme_search.folder}" in output
    assert "Traceback" not in output


def test_best_settings_digits_and_table_are_files(readme_search: Any, frame: pd.DataFrame) -> None:
    folder = readme_search.folder
    assert read_lanes(folder / BEST_FILE) == read_lanes(folder / ranking(frame)["trial"][0])
    for name in ("best.png", "interpolation.png", "real.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for name in ("table.csv", "table.md", "report.html", "confirm.csv", "confirm.md"):
        assert (folder / name).stat().st_size > 100
    search = json.loads((folder / SEARCH_FILE).read_text())
    assert search["protocol"]["eval_samples"] == 2000
    assert search["protocol"]["eval_split"] == "validation"
    assert search["rungs"] == [2, 6]


def test_the_study_is_an_ordinary_one_that_optuna_plots(
    readme_search: Any, frame: pd.DataFrame
) -> None:
    url = f"sqlite:///{readme_search.folder}/study.db"
    study = optuna.load_study(study_name=None, storage=url)
    assert study.best_value == pytest.approx(frame.query("status == 'finished'")["fid"].min())
    for plot in (optuna.visualization.plot_intermediate_values, optuna.visualization.plot_edf):
        assert plot(study).data


def test_the_best_are_confirmed_on_fresh_seeds_and_on_test(readme_search: Any) -> None:
    confirmed = load_trials(readme_search.folder / CONFIRM_FOLDER)
    assert confirmed["trial"].nunique() == CONFIRMED
    assert set(confirmed["seed"]) == {1, 2}
    for folder in (readme_search.folder / CONFIRM_FOLDER).glob("trial_*"):
        generator, config, epoch = checkpoint.load_generator(folder)
        scores = json.loads((folder / TEST_FILE).read_text())
        assert scores.pop("epoch") == epoch
        reference = load_reference(config.source(None, CPU), "test")
        assert scores == pytest.approx(evaluate(generator, config, reference))
    assert "is confirmed at" in readme_search.output


@pytest.mark.parametrize("module", [analysis.tables, analysis.confirm, analysis.claims])
def test_commands_print_an_answer_again(module: Any, readme_search: Any, command: Any) -> None:
    code, output, error = command(module.main, readme_search.folder)
    assert code == 0, error
    assert output.strip()


def test_the_printed_command_makes_the_report_for_a_paper(
    readme_search: Any, frame: pd.DataFrame, command: Any
) -> None:
    folder = readme_search.folder
    printed = re.findall(r"python -m analysis\.report (.*)$", readme_search.output, re.MULTILINE)
    code, _, error = command(analysis.report.main, *shlex.split(printed[-1]))
    assert code == 0, error
    report = (folder / "report.md").read_text()
    assert f"fid {rounded(ranking(frame)['fid'][0])} after epoch" in report
    assert f"{TRIALS} of {TRIALS} trials" in report
    for file in re.findall(r"\]\((figures/[^)]+)\)", report):
        assert (folder / file).stat().st_size > 1000
    figures = {path.name for path in (folder / "figures").iterdir()}
    expected = ("real", "between", "curves", "settings", "confirm")
    assert {f"{folder.name}-{name}.png" for name in expected} <= figures


# Again


def test_its_name_is_taken_from_then_on(readme_search: Any, command: Any) -> None:
    folder = readme_search.folder
    place = ["--storage", folder.parent, "--name", folder.name]
    code, _, error = command(tune.run.main, "--search", "hparams", "--preset", "demo", *place)
    assert code == 2
    assert f"holds a search; go on with it by --resume {folder.name}" in error


@pytest.mark.usefixtures("nothing_left_running")
def test_resumed_with_nothing_left_it_trains_and_logs_nothing(
    readme_search: Any, frame: pd.DataFrame, tmp_path: Path
) -> None:
    folder = readme_search.folder
    confirmed = load_trials(folder / CONFIRM_FOLDER)
    studies = decisions(folder), decisions(folder / CONFIRM_FOLDER)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wandb")}
    code, output = run([*resume(folder), "--no-report"], tmp_path / "home", WANDB_MODE="offline")
    assert code == 0, output
    assert load_trials(folder).equals(frame)
    assert load_trials(folder / CONFIRM_FOLDER).equals(confirmed)
    assert (decisions(folder), decisions(folder / CONFIRM_FOLDER)) == studies
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wandb")} == times


def test_little_of_its_time_is_spent_on_anything_but_training(
    readme_search: Any, frame: pd.DataFrame
) -> None:
    """From the command to the answer, of all slots. Printed; the bound is for a machine that does
    other things, too."""
    rows = pd.concat([frame, load_trials(readme_search.folder / CONFIRM_FOLDER)])
    slots = json.loads((readme_search.folder / SEARCH_FILE).read_text())["slots"]
    busy = rows["seconds_train"].sum() + rows["seconds_eval"].sum()
    total = readme_search.seconds * slots
    print(f"demo search: {total:.0f} s of slots, {busy:.0f} s of them in training and evaluation")
    print(f"overhead {1 - busy / total:.1%}")
    assert busy / total > 0.4
