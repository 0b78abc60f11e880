"""Kinds of searches that differ from the usual one, and what goes wrong within them: whole searches
from options to exit code, in this process, on one running Ray."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from search_processes import at, parts, run
from search_results import decisions, epochs_by_trial, rows_now, rows_of
from wandb_runs import assert_logged_once, wait_for_follower

from analysis.load import load_trials, over_lanes
from analysis.tables import ranking
from dcgan.config import TrainConfig
from dcgan.schema import CHECKPOINT_FILE, ROWS_FILE, trial_name
from tune.ledger import open_ledger, record_epoch, running
from tune.searches import SEARCHES, Preset, Search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Run = Callable[..., Any]
KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"
ONE_AT_A_TIME: dict[str, Any] = {
    "search": "hparams",
    "num_trials": 4,
    "epochs": 4,
    "seed": 3,
    "max_concurrent": 1,
}
"""As `search_processes.ONE_AT_A_TIME`, of which `undisturbed` is a run."""


# What is asked for


def test_each_trial_trains_several_seeds_whose_mean_counts(search_in_process: Run) -> None:
    """W&B has an epoch of them once."""
    ended = search_in_process(search="baseline", epochs=2, replicas=2, seed=5, wandb="offline")
    assert ended.code == 0, ended.output
    lanes = load_trials(ended.folder)
    assert lanes["seed"].to_list() == [5, 5, 6, 6]
    assert lanes["lane"].to_list() == [0, 0, 1, 1]
    means = over_lanes(lanes)
    for _, row in means.iterrows():
        values = lanes.query("epoch == @row.epoch")["fid"]
        assert row["fid"] == pytest.approx(values.mean())
        assert row["fid_std"] == pytest.approx(values.std(ddof=1))
    (trial,) = decisions(ended.folder)
    assert trial["values"] == [means["fid"].min()]
    assert_logged_once(ended.folder)


def test_several_objectives_give_a_pareto_set(search_in_process: Run) -> None:
    objectives = "fid,seconds_train,peak_memory_bytes"
    ended = search_in_process(search="hparams", num_trials=4, epochs=2, objectives=objectives)
    assert ended.code == 0, ended.output
    url = f"sqlite:///{ended.folder}/study.db"
    study = optuna.load_study(study_name=None, storage=url)
    assert len(study.directions) == 3
    # nothing is stopped early
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    frame = load_trials(ended.folder)
    for trial in study.trials:
        rows = frame[frame["trial"] == trial_name(trial.number)]
        best = rows.loc[rows["fid"].idxmin()]
        assert trial.values == [best["fid"], best["seconds_train"], best["peak_memory_bytes"]]
    shown = re.findall(r"^\d+ +yes +(trial_\d+)", ended.output, re.MULTILINE)
    assert set(shown) == {trial_name(trial.number) for trial in study.best_trials}


def test_a_search_begins_with_the_best_of_an_earlier_one(
    search_in_process: Run, undisturbed: Path
) -> None:
    ended = search_in_process(
        search="hparams", num_trials=3, epochs=1, points_from=str(undisturbed)
    )
    assert ended.code == 0, ended.output
    earlier = [trial for trial in decisions(undisturbed) if trial["state"] == "COMPLETE"]
    baseline = decisions(undisturbed)[0]["params"]
    best = min(earlier, key=lambda trial: trial["values"] if trial["params"] != baseline else [1e9])
    assert decisions(ended.folder)[1]["params"] == best["params"]


def test_what_came_after_dcgan_is_searched_with_the_baseline_first(search_in_process: Run) -> None:
    """And tracking that is off leaves no trace."""
    ended = search_in_process(search="modern", num_trials=4, epochs=1)
    assert ended.code == 0, ended.output
    first, *others = decisions(ended.folder)
    baseline = {"loss": "non-saturating", "discriminator_norm": "batch", "penalty": 0.0}
    assert first["params"].items() >= baseline.items()
    assert all(trial["state"] == "COMPLETE" for trial in others)
    assert "discriminator_norm" in ended.output
    assert "tracking off" in ended.output
    assert not list(ended.folder.glob("wandb*"))


# What goes wrong


def diverging(base: TrainConfig, preset: Preset, precisions: Sequence[str]) -> Search:
    """Three learning rates, one of which is absurd."""
    rates = (2e-4, 1e30, 1e-3)
    search = SEARCHES["baseline"](base, preset, precisions)
    return dataclasses.replace(
        search,
        name="diverging",
        axes={"generator_lr": CategoricalDistribution(rates)},
        ties={"discriminator_lr": "generator_lr"},
        grid={"generator_lr": rates},
    )


def test_a_trial_that_diverges_shows_as_failed_and_the_others_go_on(
    search_in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCHES, "diverging", diverging)
    ended = search_in_process(search="diverging", sampler="grid", epochs=2)
    assert ended.code == 0, ended.output
    table = ranking(load_trials(ended.folder))
    failed = table.query("status == 'failed'")
    assert failed["generator_lr"].to_list() == [1e30]
    assert "diverged" in failed["error"].item()
    assert failed["epochs"].item() == 0
    others = table.query("status != 'failed'")
    assert sorted(others["generator_lr"]) == [2e-4, 1e-3]
    assert others["fid"].notna().all()
    assert re.search(r"trial_\w+ failed: .*diverged in epoch 1", ended.output)
    assert re.search(r"trial_\w+ +failed .*1e\+30.*diverged", ended.output)


def test_a_search_without_a_result_says_why_and_what_to_change(tmp_path: Path) -> None:
    """In a process of its own, for its exit code. A map of 8000 x 1024 x 32 x 32 floats, 34 GB, is
    more than this machine has, or it takes a while to find out."""
    settings = {"image_size": 64, "batch_size": 8000, "discriminator_width": 1024}
    settings |= dict.fromkeys(("generator_depth", "discriminator_depth", "generator_width"), 1)
    fixed = [f"--set={name}={value}" for name, value in settings.items()]
    arguments = ["--search", "baseline", "--epochs", "1", "--preset", "demo", "--no-estimate"]
    code, output = run([*arguments, *fixed, *at(tmp_path)], tmp_path / "home")
    assert code == 1, output
    text = (tmp_path / "s" / "trial_0000" / "error.txt").read_text()
    assert re.match(
        r"out of memory on cpu with batch_size 8000, .*: make one of them smaller"
        r".*tried to allocate \d+ bytes$",
        text,
    )
    assert f"trial_0000 failed: {text}" in output
    assert "Traceback" not in output


@contextlib.contextmanager
def workers_killed(folder: Path) -> Iterator[None]:
    """Kills each worker of this process as soon as the search has a row, before it has another."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for pid in parts(os.getpid())["worker"] if rows_now(folder) else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=watch)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def test_a_trial_whose_worker_always_dies_fails_and_is_retried_when_asked(
    search_in_process: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    with workers_killed(folder):
        # of epochs that take longer than to see that there is one
        ended = search_in_process(search="baseline", dataset="mnist-mini", epochs=4)
    assert ended.code == 1, ended.output
    assert "no trial has finished" in ended.output
    # a worker may also be killed as it starts
    reason = r"trial_0000 failed: .*(died|never ran)"
    assert re.search(reason, ended.output), ended.output
    assert set(load_trials(folder)["status"]) == {"failed"}

    search_in_process(resume="s")  # alone, it leaves the failed one as it is
    assert [trial["state"] for trial in decisions(folder)] == ["FAIL"]
    ended = search_in_process(resume="s", retry_failed=True)
    assert ended.code == 0, ended.output
    assert [trial["state"] for trial in decisions(folder)] == ["FAIL", "COMPLETE"]
    assert epochs_by_trial(folder) == {"trial_0001": [1, 2, 3, 4]}
    ended = search_in_process(resume="s", retry_failed=True)
    assert ended.code == 0, ended.output
    assert "retrying 0 failed" in ended.output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_ends_the_search_with_a_reason_and_costs_nothing(
    search_in_process: Run, undisturbed: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], check=True)
    try:
        reason = r"No space left on device; .* go on with: python -m tune.run --resume s --storage"
        with pytest.raises(OSError, match=reason):
            search_in_process(**ONE_AT_A_TIME, storage=disk)
        assert 0 < rows_now(disk / "s") < rows_now(undisturbed)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        ended = search_in_process(resume="s", storage=disk)
        assert ended.code == 0, ended.output
        assert decisions(disk / "s") == decisions(undisturbed)
        assert rows_of(disk / "s").equals(rows_of(undisturbed))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_damaged_checkpoint_is_put_aside_and_its_trial_begins_anew(
    search_in_process: Run, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    cut_back(undisturbed, folder)
    saved = folder / "trial_0000" / CHECKPOINT_FILE
    saved.write_bytes(saved.read_bytes()[:-1000])
    (folder / "trial_0000" / ROWS_FILE).write_text('{"epoch": 1, "fi')
    ended = search_in_process(resume="s")
    assert ended.code == 0, ended.output
    assert (folder / "trial_0000" / "checkpoint.damaged").is_file()
    assert decisions(folder) == decisions(undisturbed)
    assert rows_of(folder).equals(rows_of(undisturbed))


def cut_back(search: Path, folder: Path) -> None:
    """A copy of a search as it was after the first epoch of its first trial."""
    whole = open_ledger(search).get_trials()[0]
    folder.mkdir()
    shutil.copy(search / "search.json", folder)
    shutil.copytree(search / "trial_0000", folder / "trial_0000")
    ledger = open_ledger(folder, ("fid",))
    ledger.add_trial(running(whole.params, whole.distributions, **whole.user_attrs))
    record_epoch(ledger, 0, 1, whole.intermediate_values[1])


def test_an_unreachable_server_costs_only_the_tracking(
    search_in_process: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    ended = search_in_process(search="hparams", num_trials=2, epochs=1, wandb="online")
    assert ended.code == 0, ended.output
    assert "tracking W&B, online" in ended.output
    assert "best: trial_" in ended.output
    wait_for_follower(ended.folder)
    assert "cannot be reached" in (ended.folder / "wandb.log").read_text()
    assert_logged_once(ended.folder)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
