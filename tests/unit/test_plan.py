"""Plans: rungs, first points, resources and the checks before the start."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tune.plan import Plan, describe, make_sampler, preflight, resources, seconds_per_epoch, usable_cpus
from tune.searches import DEMO, make_search

CPU = torch.device("cpu")


def make_plan(tmp_path: Path, search: str = "hparams", sampler: str = "tpe", **settings: Any) -> Plan:
    return Plan(
        search=make_search(search, DEMO, ("float32",), settings),
        sampler=sampler,
        num_trials=10,
        seed=0,
        data_dir=None,
        folder=tmp_path / "run",
        slots=2,
        cpus=1,
        gpus=0.0,
    )


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, []), (2, [1]), (3, [1]), (4, [1, 3]), (8, [2, 6]), (9, [2, 6]), (25, [6, 18])]
)
def test_rungs_are_those_of_asha(epochs: int, rungs: list[int], tmp_path: Path) -> None:
    from ray.tune.schedulers import ASHAScheduler

    plan = make_plan(tmp_path, epochs=epochs)
    assert plan.rungs == rungs
    scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=plan.grace_period, reduction_factor=3)
    theirs = sorted(rung.milestone if hasattr(rung, "milestone") else rung[0] for rung in scheduler._brackets[0]._rungs)
    assert [milestone for milestone in theirs if milestone < epochs] == rungs


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1), (2, 1 + 25 / 60), (9, 2 + 4 * 25 / 60 + 3 * 13 / 60)])
def test_expected_epochs(epochs: int, expected: float, tmp_path: Path) -> None:
    assert make_plan(tmp_path, epochs=epochs).expected_epochs() == pytest.approx(expected)


def test_the_baseline_comes_first_or_the_grid(tmp_path: Path) -> None:
    baseline = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}
    assert make_plan(tmp_path).first_points == [baseline]
    grid = make_plan(tmp_path, sampler="grid")
    assert len(grid.first_points) == 12
    assert grid.rungs == []  # the report trained every setting to the end
    assert grid.expected_epochs() == 9


def test_samplers_repeat_under_a_seed_and_differ_between_seeds(tmp_path: Path) -> None:
    import optuna

    def draws(plan: Plan) -> list[Any]:
        study = optuna.create_study(sampler=make_sampler(plan))
        trials = [study.ask() for _ in range(3)]
        return [plan.search(trial)["generator_lr"] for trial in trials]

    for sampler in ("tpe", "random"):
        plan = make_plan(tmp_path, sampler=sampler)
        assert draws(plan) == draws(plan)
        assert draws(plan) != draws(dataclasses.replace(plan, seed=1))


@pytest.mark.parametrize(
    ("cuda", "gpus_per_trial", "max_concurrent", "expected"),
    [
        (0, 0.25, None, (4, 1, 0.0)),
        (0, 0.25, 1, (1, 1, 0.0)),
        (1, 0.25, None, (4, 1, 0.25)),
        (1, 0.5, None, (2, 1, 0.5)),
        (2, 0.5, None, (4, 1, 0.5)),
        (2, 1.0, None, (2, 1, 1.0)),
        (1, 0.4, None, (2, 1, 0.4)),
        (8, 0.25, None, (4, 1, 0.25)),  # four CPUs feed no more than four trials
        (1, 0.25, 2, (2, 1, 0.25)),
    ],
)
def test_resources(
    cuda: int, gpus_per_trial: float, max_concurrent: int | None, expected: tuple[int, int, float], monkeypatch: Any
) -> None:
    """On a machine of four CPUs with so many GPUs."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr("tune.plan.CPU_QUOTA", Path("/nowhere"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cuda)
    assert resources(gpus_per_trial, max_concurrent) == expected


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_a_containers_quota_counts(quota: str, cpus: int, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr("tune.plan.CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cpus() == cpus


def test_preflight_refuses_what_would_make_every_trial_fail(tmp_path: Path) -> None:
    preflight(make_plan(tmp_path), CPU)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="precision float16 needs a CUDA GPU"):
        preflight(make_plan(tmp_path, precision="float16"), CPU)
    with pytest.raises(ValueError, match="batch_size is 9000; the training split of mnist-mini holds 8000"):
        preflight(make_plan(tmp_path, search="baseline", batch_size=9000), CPU)
    (tmp_path / "file").touch()
    blocked = dataclasses.replace(make_plan(tmp_path), folder=tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"results cannot be written to .*file"):
        preflight(blocked, CPU)


def test_the_description_names_everything_that_decides_the_course(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ema_decay=0.5)
    text = describe(plan, "demo, as asked", 2.0)
    for part in ("hparams", "mnist-mini", "5e-05 to 0.005, log-uniform", "64, 128, 256", "adam, rmsprop", "epoch 2, 6",
                 "discriminator_lr", "10 by tpe", "seed 0", "2 at a time", "fid", str(tmp_path / "run")):  # fmt: skip
        assert part in text
    assert "43 epochs at 2.0 s: about 43 s" in text


def test_the_cost_is_measured(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    narrow = make_plan(tmp_path, search="baseline", generator_width=2, discriminator_width=2)
    wide = make_plan(tmp_path, search="baseline", generator_width=64, discriminator_width=64)
    assert 0 < seconds_per_epoch(narrow, CPU) < seconds_per_epoch(wide, CPU)
    assert torch.get_num_threads() == threads
