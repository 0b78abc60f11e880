"""The answer of a search that has ended: what is printed, and which files there are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.config import TrainConfig, read_lanes, replicate, write_lanes
from dcgan.files import write_rows
from dcgan.loop import train
from dcgan.schema import BEST_FILE, CHECKPOINT_FILE, ERROR_FILE, PARAMS_FILE, ROWS_FILE
from tune import answer as room
from tune.answer import print_answer, print_confirmed, write_page
from tune.plan import Plan

PICTURES = ("best.png", "interpolation.png", "real.png")
TINY = {"image_size": 16, "generator_width": 2, "discriminator_width": 2, "batch_size": 4000}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial of two lanes that trained an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    lanes = replicate(TrainConfig(dataset="mnist-mini", epochs=1, **TINY), 2)  # type: ignore[arg-type]
    device = torch.device("cpu")
    rows = train(lanes, report=lambda row: None, checkpoint_dir=folder, device=device)
    write_lanes(folder / PARAMS_FILE, lanes)
    write_rows(folder / ROWS_FILE, rows)
    return folder


@pytest.fixture
def ended(plan: Plan, trained: Path) -> Plan:
    """A search whose second trial is the best, and whose first failed."""
    shutil.copytree(trained, plan.trial_folder(1))
    plan.trial_folder(0).mkdir()
    shutil.copy(trained / PARAMS_FILE, plan.trial_folder(0))
    (plan.trial_folder(0) / ERROR_FILE).write_text("diverged in epoch 1\n")
    return plan


def files(folder: Path) -> set[str]:
    """Names of the files in a search's folder."""
    return {file.name for file in folder.iterdir() if file.is_file()}


def test_the_best_trial_is_shown_with_all_that_there_is(
    ended: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_answer(ended)
    output, errors = capsys.readouterr()
    assert "diverged in epoch 1" in output
    assert "best: trial_0001, fid " in output
    assert "  dataset mnist-mini, image_size 16, channels 1, " in output
    assert ", seed 0 to 1\n" in output
    assert output.endswith(
        f"""
everything is in {ended.location}:
  table      table.csv, table.md
  config     best.json
  trials     trial_*/
  study      study.db
  samples    best.png, interpolation.png
  checkpoint trial_0001/{CHECKPOINT_FILE}
"""
    )
    assert not errors
    assert read_lanes(ended.folder / BEST_FILE) == read_lanes(ended.trial_folder(1))
    assert len(read_lanes(ended.folder / BEST_FILE)) == 2
    for name in PICTURES:
        assert (ended.folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_its_checkpoint_the_best_trial_has_no_samples(
    damage: str, ended: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ended.trial_folder(1) / CHECKPOINT_FILE
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    assert print_answer(ended)
    output, errors = capsys.readouterr()
    assert "best: trial_0001" in output
    assert "best.png" not in output
    assert errors.startswith("no samples: ")
    assert CHECKPOINT_FILE in errors
    assert files(ended.folder) == {"table.csv", "table.md", BEST_FILE}


def test_a_driver_without_the_data_goes_on_without_real_digits(
    ended: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster's workers have them, each its own."""

    def missing(source: Any, split: str) -> Any:
        raise FileNotFoundError("MNIST is not in /data and could not be fetched.")

    monkeypatch.setattr(room, "load_split", missing)
    assert print_answer(ended)
    assert capsys.readouterr().err == (
        "no samples: MNIST is not in /data and could not be fetched.\n"
    )
    assert {"table.csv", BEST_FILE} <= files(ended.folder)


def test_a_search_whose_trials_all_failed_says_where_the_reasons_are(
    ended: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(ended.trial_folder(1))
    assert not print_answer(ended)
    output = capsys.readouterr().out
    assert "diverged in epoch 1" in output
    assert output.endswith(
        f"\nno trial has finished; what failed says why in its error.txt, in {ended.folder}\n"
    )
    assert files(ended.folder) == {"table.csv", "table.md"}


def test_a_search_without_a_trial_has_no_answer(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not print_answer(plan)
    assert capsys.readouterr().out == "no trial has begun\n"
    assert not files(plan.folder)


def test_confirmed_and_page_are_made_by_the_analysis(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(runs: list[str], out: Path, *, page_only: bool) -> Path:
        assert (runs, out, page_only) == ([plan.location], plan.folder, True)
        return out / "report.html"

    monkeypatch.setattr("analysis.confirm.write", lambda folder: (None, f"held in {folder}"))
    monkeypatch.setattr("analysis.report.write", write)
    print_confirmed(plan)
    write_page(plan)
    assert capsys.readouterr().out == (
        f"\nheld in {plan.folder}\n\nreport: {plan.location}/report.html\n"
    )
