"""Plans: what follows from options and from what the machines can do."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from dcgan.config import TrainConfig
from dcgan.data import default_data_dir
from dcgan.schema import SEARCH_FILE
from dcgan.store import Mirror, Store
from tune.describe import record
from tune.ledger import open_ledger, running
from tune.options import SAMPLERS, VERSION, Options, from_flags, make_parser
from tune.plan import (
    Packing,
    Plan,
    Site,
    first_points,
    make_plan,
    quoted,
    resources,
    wanted_search,
)
from tune.schedulers import SCHEDULERS, default_grace_period
from tune.searches import PRESETS, SEARCHES, describe_axis

BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}
GIB = 2**30


def make_site(tmp_path: Path, **changes: Any) -> Site:
    """A machine with two CPUs, whose results are in `tmp_path`."""
    site = Site(
        store=Store(tmp_path / "run"),
        device="cpu",
        precisions=("float32",),
        cpus=2,
        gpus=0,
        data_dir=default_data_dir(),
    )
    return dataclasses.replace(site, **changes)


def options_of(text: str = "", search: str = "hparams", preset: str = "demo") -> Options:
    """The options of a command line."""
    return from_flags(make_parser(), ["--search", search, "--preset", preset, *shlex.split(text)])


def plan_of(tmp_path: Path, text: str = "", search: str = "hparams", preset: str = "demo") -> Plan:
    """The plan of a command line on the machine of `make_site`."""
    return make_plan(options_of(text, search, preset), make_site(tmp_path))


# What a plan knows


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [
        (1, []),
        (2, [1]),
        (3, [1]),
        (4, [1, 3]),
        (8, [1, 3]),
        (9, [2, 6]),
        (25, [4, 12]),
        (50, [8, 24]),
    ],
)
def test_rungs_are_those_of_asha(epochs: int, rungs: list[int], tmp_path: Path) -> None:
    from ray.tune.schedulers import ASHAScheduler

    plan = plan_of(tmp_path, f"--epochs {epochs}")
    assert plan.rungs == rungs
    assert plan.keep == [*rungs, epochs]
    scheduler = ASHAScheduler(
        time_attr="epoch", max_t=epochs, grace_period=plan.grace_period, reduction_factor=3
    )
    theirs = sorted(
        rung.milestone if hasattr(rung, "milestone") else rung[0]
        for rung in scheduler._brackets[0]._rungs
    )
    assert [milestone for milestone in theirs if milestone < epochs] == rungs


@pytest.mark.parametrize("trials", [5, 18, 60])
def test_expected_epochs_are_those_of_rays_rule(trials: int, tmp_path: Path) -> None:
    """Trials in no order, each as good at one rung as at the next: a trial goes on if it is not
    below the percentile 2/3 of those before it."""
    plan = plan_of(tmp_path, f"--num-trials {trials} --epochs 9 --sampler random")
    rng = np.random.default_rng(0)
    trained = []
    for _ in range(300):
        rungs: dict[int, list[float]] = {2: [], 6: []}
        for value in rng.random(trials):
            for epoch, before in rungs.items():
                cutoff = np.percentile(before, 200 / 3) if before else -math.inf
                before.append(value)
                if value < cutoff:
                    trained.append(epoch)
                    break
            else:
                trained.append(9)
    assert plan.expected_epochs() == pytest.approx(np.mean(trained), rel=0.1)
    longer = plan_of(tmp_path, f"--num-trials {trials} --epochs 9").expected_epochs()
    assert longer == pytest.approx(1.25 * plan.expected_epochs())
    assert plan_of(tmp_path, "--epochs 1").expected_epochs() == 1


@pytest.mark.parametrize(("epochs", "period"), [(1, 1), (8, 1), (9, 2), (25, 4), (50, 8)])
def test_the_first_decision_comes_after_a_sixth_of_the_epochs(epochs: int, period: int) -> None:
    assert default_grace_period(epochs) == period


@pytest.mark.parametrize(
    ("epochs", "patience"), [(1, 4), (9, 4), (12, 4), (13, 5), (25, 9), (50, 17)]
)
def test_patience_grows_with_the_epochs(epochs: int, patience: int, tmp_path: Path) -> None:
    assert plan_of(tmp_path, f"--epochs {epochs}").patience == patience


@pytest.mark.parametrize(
    ("flags", "keep"), [("--epochs 9", [2, 6, 9]), ("--epochs 9 --scheduler fifo", [9])]
)
def test_epochs_that_must_not_be_lost(flags: str, keep: list[int], tmp_path: Path) -> None:
    assert plan_of(tmp_path, flags).keep == keep


def test_the_baseline_comes_first_or_the_grid(tmp_path: Path) -> None:
    assert plan_of(tmp_path).points == [BASELINE]
    grid = plan_of(tmp_path, "--sampler grid")
    assert grid.points == grid.search.points()
    assert len(grid.points) == grid.num_trials == 12
    assert grid.rungs == []  # the original study trained every setting to the end
    assert grid.expected_epochs() == 9
    assert plan_of(tmp_path, "--sampler grid --num-trials 5").points == grid.points[:5]
    assert plan_of(tmp_path, search="baseline").points == [{}]
    assert plan_of(tmp_path, "--sampler tpe", search="baseline").points == [{}]


def test_what_a_trial_asks_of_ray(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.request == {"cpu": 1, "gpu": 0.0}
    assert dataclasses.replace(plan, gpus=0.25).request == {"cpu": 1, "gpu": 0.25}


def test_where_a_plan_in_a_storage_lies(tmp_path: Path) -> None:
    store = Mirror(tmp_path / "copy", "s3://bucket/runs/run")
    site = make_site(tmp_path, store=store, address="10.0.0.1:6379", data_dir=None)
    plan = make_plan(options_of(), site)
    assert (plan.location, plan.folder) == ("s3://bucket/runs/run", tmp_path / "copy")
    assert plan.trial_folder(3) == tmp_path / "copy" / "trial_0003"
    assert plan.resume_command == (
        "python -m tune.run --resume run --storage s3://bucket/runs --address 10.0.0.1:6379"
    )
    stage = dataclasses.replace(plan, store=store.inside("confirm"))
    assert stage.location == "s3://bucket/runs/run/confirm"


def test_a_printed_command_can_be_pasted(tmp_path: Path) -> None:
    store = Store(tmp_path / "my runs" / "-x")
    plan = make_plan(options_of(), make_site(tmp_path, store=store, data_dir=Path("/my data")))
    words = shlex.split(plan.resume_command)
    assert words[:3] == ["python", "-m", "tune.run"]
    options = from_flags(make_parser(), words[3:])
    assert (options.resume, options.storage) == ("-x", str(tmp_path / "my runs"))
    assert options.data_dir == Path("/my data")
    assert quoted("a.b", "c d", flags={"--e": "-f"}) == "python -m a.b 'c d' --e=-f"


# Options to plan


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_can_be_planned_by_its_defaults(
    search: str, preset: str, sampler: str | None, scheduler: str | None, tmp_path: Path
) -> None:
    """Without a number of trials: the default one must be allowed."""
    text = f"--sampler {sampler} " if sampler else ""
    text += f"--scheduler {scheduler}" if scheduler else ""
    plan = plan_of(tmp_path, text, search, preset)
    assert 1 <= plan.num_trials <= plan.search.settings
    assert plan.num_trials >= len(plan.points)
    usual = SCHEDULERS[scheduler or "asha"].sampler
    assert plan.sampler == (sampler or SEARCHES_BY_SAMPLER.get(search, usual))
    assert plan.scheduler.name == (scheduler or ("fifo" if plan.sampler == "grid" else "asha"))


SEARCHES_BY_SAMPLER = {"baseline": "grid", "precision": "grid"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            {
                "sampler": "tpe",
                "scheduler": SCHEDULERS["asha"],
                "num_trials": 15,
                "grace_period": 2,
                "confirm": 1,
                "confirm_seeds": 3,
                "slots": 2,
                "gpus": 0.0,
            },
        ),
        ("--sampler random", {"sampler": "random", "scheduler": SCHEDULERS["asha"]}),
        (
            "--sampler grid",
            {"sampler": "grid", "scheduler": SCHEDULERS["fifo"], "num_trials": 12},
        ),
        ("--sampler grid --scheduler asha", {"sampler": "grid", "scheduler": SCHEDULERS["asha"]}),
        (
            "--objectives fid,kid",
            {"scheduler": SCHEDULERS["fifo"], "objectives": ("fid", "kid")},
        ),
        ("--objectives fid", {"scheduler": SCHEDULERS["asha"], "objectives": ("fid",)}),
        ("--epochs 3", {"grace_period": 1, "epochs": 3}),
        ("--epochs 25", {"grace_period": 4, "rungs": [4, 12]}),
        ("--epochs 25 --grace-period 6", {"grace_period": 6, "rungs": [6, 18]}),
        ("--grace-period 9", {"grace_period": 9, "rungs": []}),
        ("--confirm 0", {"confirm": 0}),
        ("--confirm 4 --confirm-seeds 7", {"confirm": 4, "confirm_seeds": 7}),
        ("--num-trials 1", {"num_trials": 1, "concurrent": 1}),
        ("--max-concurrent 1", {"slots": 1}),
        ("--seed 7 --replicas 3", {"seed": 7, "replicas": 3}),
    ],
)
def test_options_become_a_plan(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, text)
    assert {name: getattr(plan, name) for name in expected} == expected
    assert plan.folder == tmp_path / "run"


def test_options_reach_the_config(tmp_path: Path) -> None:
    base = plan_of(tmp_path, "--seed 7 --epochs 4 --set ema_decay=0.5 --set beta1=0").search.base
    assert (base.seed, base.epochs, base.ema_decay, base.beta1) == (7, 4, 0.5, 0)
    assert plan_of(tmp_path, "--dataset mnist").search.base.dataset == "mnist"
    wide = plan_of(tmp_path, "--width 24", search="architecture").search
    assert (wide.base.generator_width, wide.base.discriminator_width) == (24, 24)
    assert describe_axis(wide.axes["generator_width"]) == "12, 24, 48"
    report = plan_of(tmp_path, preset="full")
    assert report.search.base == TrainConfig()
    assert (report.num_trials, report.confirm, report.confirm_seeds) == (32, 3, 5)


def test_a_grid_has_the_grids_values_as_its_axes(tmp_path: Path) -> None:
    axes = plan_of(tmp_path, "--sampler grid").search.axes
    assert axes["generator_lr"] == CategoricalDistribution((1e-4, 3e-4, 5e-4))
    assert axes["batch_size"] == CategoricalDistribution((64, 128))


def test_without_a_preset_the_device_decides(tmp_path: Path) -> None:
    options = Options(search="hparams")
    demo = make_plan(options, make_site(tmp_path))
    assert (demo.search.base.dataset, demo.num_trials) == ("mnist-mini", 15)
    report = make_plan(options, make_site(tmp_path, device="cuda", cpus=16, gpus=1))
    assert (report.search.base.dataset, report.num_trials) == ("mnist", 32)
    assert (report.slots, report.gpus) == (4, 0.25)


@pytest.mark.parametrize(
    ("text", "gpus"), [("--gpus-per-trial auto", 1 / 8), ("--gpus-per-trial 0.5", 1 / 2)]
)
def test_a_measured_share_counts_where_it_was_asked_for(
    text: str, gpus: float, tmp_path: Path
) -> None:
    packing = Packing(8, GIB, 80 * GIB, 8, 800.0, 200.0) if "auto" in text else None
    site = make_site(tmp_path, device="cuda", cpus=16, gpus=1, packing=packing)
    assert make_plan(options_of(text), site).gpus == pytest.approx(gpus)


def test_without_a_gpu_auto_means_nothing(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "--gpus-per-trial auto") == plan_of(tmp_path, "--gpus-per-trial 0.25")


@pytest.mark.parametrize(
    ("search", "text", "message"),
    [
        (
            "hparams",
            "--grace-period 10",
            "--grace-period is 10; allowed is up to the 9 epochs of a trial",
        ),
        (
            "hparams",
            "--epochs 2 --grace-period 3",
            "--grace-period is 3; allowed is up to the 2 epochs of a trial",
        ),
        (
            "hparams",
            "--sampler grid --num-trials 13",
            "--num-trials is 13; the grid of hparams has 12 settings",
        ),
        (
            "architecture",
            "--num-trials 28",
            "--num-trials is 28; the space of architecture has 27 settings",
        ),
        (
            "architecture",
            "--sampler random --num-trials 28",
            "--num-trials is 28; the space of architecture has 27 settings",
        ),
        (
            "baseline",
            "--sampler tpe --num-trials 2",
            "--num-trials is 2; the space of baseline has 1 setting",
        ),
        (
            "hparams",
            "--scheduler asha --objectives fid,kid",
            "--scheduler asha knows one objective; use fifo with --objectives fid,kid",
        ),
        ("hparams", "--set lr=1", "unknown config key 'lr'; allowed: dataset, "),
        (
            "hparams",
            "--set batch_size=32",
            "batch_size cannot be fixed: search hparams varies generator_lr, batch_size, optimizer",
        ),
        ("hparams", "--set ema_decay=fast", "ema_decay is 'fast', a str; expected float"),
        ("hparams", "--seed 4294967295 --replicas 2", "seed is 4294967296; allowed is 0 to "),
        (
            "hparams",
            "--sampler grid --points-from x",
            "--points-from does not go with --sampler grid, whose settings are fixed",
        ),
        (
            "precision",
            "--points-from x",
            "--points-from does not go with --sampler grid, whose settings are fixed",
        ),
        (
            "baseline",
            "--sampler tpe --points-from x",
            "--points-from does not go with --search baseline, which varies nothing",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_way_out(
    search: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plan_of(tmp_path, text, search)
    assert not list(tmp_path.iterdir())


def test_points_from_nowhere(tmp_path: Path) -> None:
    study = re.escape(str(tmp_path / "gone" / "study.db"))
    with pytest.raises(FileNotFoundError, match=f"no study at {study}"):
        plan_of(tmp_path, f"--points-from {tmp_path / 'gone'}")


@pytest.mark.parametrize(("num_trials", "taken"), [(1, 1), (2, 1), (6, 2), (9, 3), (30, 4)])
def test_a_third_of_the_trials_may_begin_at_points_of_an_earlier_search(
    num_trials: int, taken: int, tmp_path: Path
) -> None:
    options = options_of(f"--num-trials {num_trials} --points-from {tmp_path}")
    search = wanted_search(options, "cpu", ("float32",))
    study = open_ledger(tmp_path, ("fid",))
    for i, lr in enumerate((1e-3, 2e-3, 3e-3, 4e-3)):
        study.add_trial(running(BASELINE | {"generator_lr": lr}, search.axes))
        study.tell(i, 10.0 - i)
    rates = [4e-3, 3e-3, 2e-3, 1e-3][:taken]
    points = [BASELINE, *(BASELINE | {"generator_lr": lr} for lr in rates)]
    assert first_points(options, search) == points


# Trials at a time


@pytest.mark.parametrize(
    ("gpus", "share", "max_concurrent", "expected"),
    [
        (0, 0.25, None, (4, 0.0)),
        (0, 0.25, 1, (1, 0.0)),
        (1, 0.25, None, (4, 0.25)),
        (1, 0.5, None, (2, 0.5)),
        (2, 0.5, None, (4, 0.5)),
        (2, 1.0, None, (2, 1.0)),
        (1, 0.4, None, (2, 0.5)),
        (2, 0.25, None, (4, 0.5)),  # two on each
        (2, 0.25, 3, (3, 0.5)),
        (8, 0.25, None, (4, 1.0)),  # four CPUs feed no more than four trials
        (1, 0.25, 2, (2, 0.5)),
    ],
)
def test_trials_at_a_time_on_four_cpus(
    gpus: int, share: float, max_concurrent: int | None, expected: tuple[int, float]
) -> None:
    assert resources(share, max_concurrent, 4, gpus) == expected


@pytest.mark.parametrize(
    ("share", "most", "cpus", "gpus", "expected"),
    [
        (0.25, None, 5, 0, (5, 0.0)),
        (0.25, 3, 5, 0, (3, 0.0)),
        (0.25, None, 16, 2, (8, 0.25)),
        (0.25, 2, 16, 2, (2, 1.0)),  # spread over the GPUs
        (0.25, None, 3, 2, (3, 0.5)),  # no more than CPUs
        (1 / 49, None, 64, 1, (49, 1 / 49)),  # though 1 / (1 / 49) is below 49
    ],
)
def test_trials_at_a_time_on_a_cluster(
    share: float, most: int | None, cpus: int, gpus: int, expected: tuple[int, float]
) -> None:
    assert resources(share, most, cpus, gpus) == expected


# Going on with a search


def keep(tmp_path: Path, text: str = "") -> tuple[Plan, Options]:
    """A plan whose `search.json` is written as a search does."""
    options, site = options_of(text), make_site(tmp_path)
    plan = make_plan(options, site)
    plan.folder.mkdir()
    (plan.folder / SEARCH_FILE).write_text(json.dumps(record(plan, options, site)))
    return plan, options


@pytest.mark.parametrize("text", ["--sampler grid", "--objectives fid,kid --sampler random", ""])
def test_a_resumed_search_has_the_same_plan(text: str, tmp_path: Path) -> None:
    plan, options = keep(tmp_path, text)
    again = make_plan(dataclasses.replace(options, resume="run"), make_site(tmp_path))
    assert again == plan
    assert plan.resume_command == f"python -m tune.run --resume run --storage {tmp_path}"


def test_a_resumed_search_keeps_the_points_of_an_earlier_one(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    study = open_ledger(earlier, ("fid",))
    axes = wanted_search(options_of(), "cpu", ("float32",)).axes
    study.add_trial(running(BASELINE | {"generator_lr": 1e-3}, axes))
    study.tell(0, 1.0)
    plan, options = keep(tmp_path, f"--points-from {earlier}")
    assert len(plan.points) == 2
    (earlier / "study.db").unlink()
    again = make_plan(dataclasses.replace(options, resume="run"), make_site(tmp_path))
    assert again == plan


def test_a_search_whose_space_is_another_here_does_not_go_on(tmp_path: Path) -> None:
    options = options_of(search="precision")
    many = make_site(tmp_path, precisions=("float32", "bfloat16"))
    plan = make_plan(options, many)
    plan.folder.mkdir()
    content = record(plan, options, many)
    assert content["version"] == VERSION
    (plan.folder / SEARCH_FILE).write_text(json.dumps(content))
    resume = dataclasses.replace(options, resume="run")
    assert make_plan(resume, many).points == plan.points
    message = (
        f"{plan.folder} cannot go on here: precision was over float32, bfloat16, is over float32 ("
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}a device must do all precisions"):
        make_plan(resume, make_site(tmp_path))
