"""Plans: rungs, resources, the checks before the start, and how a command line becomes a plan."""

import argparse
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.config import TrainConfig
from tune.plan import (
    LOCK,
    SAMPLERS,
    SCHEDULERS,
    SEARCH_FILE,
    Plan,
    default_grace_period,
    describe,
    describe_axis,
    preflight,
    record,
    resources,
    seconds_per_epoch,
    usable_cpus,
)
from tune.run import (
    NOT_KEPT,
    ON_RESUMING,
    check_name,
    first_points,
    make_parser,
    parse_objectives,
    parse_settings,
    read_plan,
    run,
    saved_search,
)
from tune.searches import DEMO, OBJECTIVES, PRESETS, SEARCHES, make_search
from tune.study import make_sampler, open_study, running

CPU = torch.device("cpu")
BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}


def make_plan(tmp_path: Path, search: str = "hparams", sampler: str = "tpe", **settings: Any) -> Plan:
    found = make_search(search, DEMO, ("float32",), settings)
    return Plan(
        search=found,
        sampler=sampler,
        scheduler="fifo" if sampler == "grid" else "asha",
        points=first_points(found, sampler, 12, None),
        num_trials=10,
        grace_period=default_grace_period(found.base.epochs),
        seed=0,
        data_dir=None,
        folder=tmp_path / "run",
        slots=2,
        cpus=1,
        gpus=0.0,
        confirm=0,
        confirm_seeds=2,
    )


def parse(tmp_path: Path, text: str = "", search: str = "hparams", preset: str = "demo") -> argparse.Namespace:
    """What a command line says, of a search named `run` in `tmp_path`."""
    arguments = ["--search", search, "--preset", preset, "--storage", str(tmp_path), "--name", "run", *shlex.split(text)]
    return make_parser().parse_args(arguments)


def plan_of(tmp_path: Path, text: str = "", search: str = "hparams", preset: str = "demo") -> Plan:
    """The plan of a command line."""
    return read_plan(parse(tmp_path, text, search, preset), CPU)


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, []), (2, [1]), (3, [1]), (4, [1, 3]), (8, [1, 3]), (9, [2, 6]), (25, [4, 12]), (50, [8, 24])]
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
    assert plan_of(tmp_path).points == [BASELINE]
    grid = plan_of(tmp_path, "--sampler grid")
    assert grid.points == grid.search.grid_points()
    assert len(grid.points) == grid.num_trials == 12
    assert grid.rungs == []  # the report trained every setting to the end
    assert grid.expected_epochs() == 9
    assert plan_of(tmp_path, "--sampler grid --num-trials 5").points == grid.points[:5]
    assert plan_of(tmp_path, search="baseline").points == [{}]
    assert plan_of(tmp_path, "--sampler tpe", search="baseline").points == [{}]


def test_samplers_repeat_under_a_seed_and_differ_between_seeds_and_numbers(tmp_path: Path) -> None:
    import optuna

    def draws(plan: Plan, number: int = 3, attempt: int = 0) -> list[Any]:
        study = optuna.create_study(sampler=make_sampler(plan, number, attempt))
        trials = [study.ask() for _ in range(3)]
        return [plan.search(trial)["generator_lr"] for trial in trials]

    for sampler in ("tpe", "random"):
        plan = make_plan(tmp_path, sampler=sampler)
        assert draws(plan) == draws(plan)
        assert draws(plan) != draws(dataclasses.replace(plan, seed=1))
        assert draws(plan) != draws(plan, number=4)
        assert draws(plan) != draws(plan, attempt=1)


@pytest.mark.parametrize(
    ("cuda", "gpus_per_trial", "max_concurrent", "expected"),
    [
        (0, 0.25, None, (4, 1, 0.0)),
        (0, 0.25, 1, (1, 1, 0.0)),
        (1, 0.25, None, (4, 1, 0.25)),
        (1, 0.5, None, (2, 1, 0.5)),
        (2, 0.5, None, (4, 1, 0.5)),
        (2, 1.0, None, (2, 1, 1.0)),
        (1, 0.4, None, (2, 1, 0.5)),
        (2, 0.25, None, (4, 1, 0.5)),  # two on each
        (2, 0.25, 3, (3, 1, 0.5)),
        (8, 0.25, None, (4, 1, 1.0)),  # four CPUs feed no more than four trials
        (1, 0.25, 2, (2, 1, 0.5)),
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


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"scheduler": "pbt", "grace_period": 3}, ["rungs    every 3 epochs the worst quarter takes over from the best"]),
        ({"scheduler": "fifo"}, ["rungs    none: every trial trains all epochs", "about 90 epochs"]),
        ({"confirm": 3, "confirm_seeds": 5}, ["the best 3 and the baseline on 5 fresh seeds, judged on test: about 3 min"]),
        ({"objectives": ("fid", "kid"), "scheduler": "fifo"}, ["metric   Pareto set of fid, kid, on validation"]),
        ({"points": [BASELINE] * 3}, ["by tpe, the first at the baseline, then 2 of an earlier search; seed 0"]),
        ({"gpus": 0.25, "slots": 4}, ["4 at a time, 1 CPU and 0.25 GPU each"]),
    ],
)  # fmt: skip
def test_the_description_of_what_else_decides(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    text = describe(dataclasses.replace(make_plan(tmp_path), **changes), "demo, as asked", 2.0)
    for part in parts:
        assert part in text
    assert ("confirm" in text) == ("confirm" in changes)


def test_without_a_cost_the_description_leaves_times_out(tmp_path: Path) -> None:
    text = describe(dataclasses.replace(make_plan(tmp_path), confirm=3, confirm_seeds=5), "demo, as asked", None)
    assert "the best 3 and the baseline on 5 fresh seeds, judged on test\n" in text
    assert "\ncost" not in text
    assert "about " not in text
    assert "\n\n" not in text


def test_replicas_are_described_and_confirmed_one_by_one(tmp_path: Path) -> None:
    plan = dataclasses.replace(make_plan(tmp_path, replicas=4), confirm=1, confirm_seeds=2)
    text = describe(plan, "demo, as asked", 8.0)  # of an epoch of all four
    assert "seed 0, each on 4 seeds; 2 at a time" in text
    assert "fresh seeds, judged on test: about 36 s more" in text  # 2 settings x 2 seeds x 9 epochs of 2 s, 2 at a time


def test_the_record_is_json_and_holds_what_decides(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "--objectives fid,sample_coverage --seed 3 --num-trials 5")
    told = json.loads(json.dumps(record(plan, {"seed": 3}, CPU)))
    assert told["objectives"] == [{"column": "fid", "mode": "min"}, {"column": "sample_coverage", "mode": "max"}]
    expected = {"search": "hparams", "sampler": "tpe", "scheduler": "fifo", "points": [BASELINE], "num_trials": 5, "seed": 3,
                "rungs": [], "ties": {"discriminator_lr": "generator_lr"}, "arguments": {"seed": 3}}  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert TrainConfig.from_dict(told["base"]) == plan.search.base


# Command line to plan


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_can_be_planned_by_its_defaults(
    search: str, preset: str, sampler: str | None, scheduler: str | None, tmp_path: Path
) -> None:
    """Without a number of trials: the default one must be allowed."""
    text = (f"--sampler {sampler} " if sampler else "") + (f"--scheduler {scheduler}" if scheduler else "")
    if scheduler == "pbt" and search not in ("hparams", "joint"):
        with pytest.raises(
            ValueError, match=f"--scheduler pbt changes learning rates, which {search} does not vary; use hparams"
        ):
            plan_of(tmp_path, text, search, preset)
        return
    plan = plan_of(tmp_path, text, search, preset)
    assert 1 <= plan.num_trials <= plan.search.settings
    assert plan.num_trials >= len(plan.points)
    assert plan.sampler == (sampler or plan.search.sampler)
    assert plan.scheduler == (scheduler or ("fifo" if plan.sampler == "grid" else "asha"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"sampler": "tpe", "scheduler": "asha", "num_trials": 18, "grace_period": 2, "confirm": 1, "confirm_seeds": 2}),
        ("--sampler random", {"sampler": "random", "scheduler": "asha"}),
        ("--sampler grid", {"sampler": "grid", "scheduler": "fifo", "num_trials": 12}),
        ("--sampler grid --scheduler asha", {"sampler": "grid", "scheduler": "asha"}),
        ("--objectives fid,kid", {"scheduler": "fifo", "objectives": ("fid", "kid")}),
        ("--objectives fid", {"scheduler": "asha", "objectives": ("fid",)}),
        ("--epochs 3", {"grace_period": 1, "epochs": 3}),
        ("--epochs 25", {"grace_period": 4, "rungs": [4, 12]}),
        ("--epochs 25 --grace-period 6", {"grace_period": 6, "rungs": [6, 18]}),
        ("--grace-period 9", {"grace_period": 9, "rungs": []}),
        ("--confirm 0", {"confirm": 0}),
        ("--confirm 4 --confirm-seeds 7", {"confirm": 4, "confirm_seeds": 7}),
        ("--scheduler pbt", {"confirm": 0, "grace_period": 2, "rungs": []}),
        ("--num-trials 1", {"num_trials": 1, "concurrent": 1}),
        ("--max-concurrent 1", {"slots": 1}),
        ("--seed 7", {"seed": 7}),
        ("--data-dir /data", {"data_dir": Path("/data")}),
    ],
)
def test_a_command_line_becomes_a_plan(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, text)
    assert {name: getattr(plan, name) for name in expected} == expected
    assert plan.folder == tmp_path / "run"


def test_flags_reach_the_config(tmp_path: Path) -> None:
    base = plan_of(tmp_path, "--seed 7 --epochs 4 --replicas 3 --set ema_decay=0.5 --set beta1=0").search.base
    assert (base.seed, base.epochs, base.replicas, base.ema_decay, base.beta1) == (7, 4, 3, 0.5, 0)
    assert plan_of(tmp_path, "--dataset mnist").search.base.dataset == "mnist"
    wide = plan_of(tmp_path, "--width 24", search="architecture")
    assert (wide.search.base.generator_width, wide.search.base.discriminator_width) == (24, 24)
    assert describe_axis(wide.search.axes["generator_width"]) == "12, 24, 48"
    report = plan_of(tmp_path, preset="report")
    assert (report.search.base, report.num_trials, report.confirm, report.confirm_seeds) == (TrainConfig(), 32, 3, 5)


COLUMNS_ALLOWED = f"; allowed: {', '.join(OBJECTIVES)}"
REFUSED: list[tuple[str, str, str]] = [
    *(
        ("hparams", f"--{flag} {value}", f"--{flag} is {value}; allowed is at least 1")
        for flag in ("num-trials", "epochs", "max-concurrent", "grace-period", "replicas", "width", "confirm-seeds")
        for value in (0, -3)
    ),
    ("hparams", "--confirm -1", "--confirm is -1; allowed is at least 0"),
    *(
        ("hparams", f"--gpus-per-trial {value}",
         f"--gpus-per-trial is {value}; allowed is above 0, up to 1 (a trial uses one GPU), or auto")
        for value in ("0.0", "-0.5", "1.5", "nan", "inf")
    ),
    ("hparams", "--grace-period 10", "--grace-period is 10; allowed is up to the 9 epochs of a trial"),
    ("hparams", "--epochs 2 --grace-period 3", "--grace-period is 3; allowed is up to the 2 epochs of a trial"),
    ("hparams", "--sampler grid --num-trials 13", "--num-trials is 13; the grid of hparams has 12 settings"),
    ("architecture", "--num-trials 28", "--num-trials is 28; the space of architecture has 27 settings"),
    ("architecture", "--sampler random --num-trials 28", "--num-trials is 28; the space of architecture has 27"),
    ("baseline", "--sampler tpe --num-trials 2", "--num-trials is 2; the space of baseline has 1 settings"),
    *(
        (search, "--scheduler pbt",
         f"--scheduler pbt changes learning rates, which {search} does not vary; use hparams or joint")
        for search in ("baseline", "architecture", "precision")
    ),
    *(
        ("hparams", f"--scheduler {scheduler} --objectives fid,kid",
         f"--scheduler {scheduler} knows one objective; use fifo with --objectives fid,kid")
        for scheduler in ("asha", "pbt")
    ),
    ("hparams", "--objectives fid,speed,loss", f"--objectives has 'speed', 'loss'{COLUMNS_ALLOWED}"),
    ("hparams", "--objectives ,", f"--objectives has '', ''{COLUMNS_ALLOWED}"),
    ("hparams", "--objectives epoch", f"--objectives has 'epoch'{COLUMNS_ALLOWED}"),
    *(
        ("hparams", f"--objectives {text}",
         f"--objectives is {text}; fid stands first, since it chooses each trial's epoch, and each once")
        for text in ("kid", "kid,fid", "fid,fid", "fid,kid,kid")
    ),
    ("hparams", "--set ema_decay", "--set is 'ema_decay'; expected KEY=VALUE, such as ema_decay=0.999"),
    ("hparams", "--set ema_decay=0 --set ema_decay=0.5", "--set ema_decay stands twice"),
    *(
        ("hparams", f"--set {name}=1", f"--set {name}=1: use --{name} instead")
        for name in ("dataset", "epochs", "seed", "replicas")
    ),
    ("hparams", "--set lr=1", "unknown config key 'lr'; allowed: dataset, "),
    ("hparams", "--set batch_size=32", "batch_size cannot be fixed: search hparams varies generator_lr, batch_size, optimizer"),
    ("hparams", "--set ema_decay=fast", "ema_decay is 'fast', a str; expected float"),
    ("hparams", "--seed -1", "seed is -1; allowed is 0 to 4294967295"),
    ("hparams", "--replicas 65", "replicas is 65; allowed is 1 to 64"),
    ("hparams", "--sampler grid --points-from x", "--points-from does not go with --sampler grid, whose settings are fixed"),
    ("precision", "--points-from x", "--points-from does not go with --sampler grid, whose settings are fixed"),
    *(
        ("hparams", f"--name {name}", f"--name is {name!r}; allowed is one folder name; use --storage for where it lies")
        for name in ("a/b", "..", ".", "/tmp", "a/")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("search", "text", "message"), REFUSED)
def test_what_cannot_work_is_refused_with_the_value_and_the_way_out(
    search: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plan_of(tmp_path, text, search)
    assert not list(tmp_path.iterdir())


def test_points_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no study at {re.escape(str(tmp_path / 'gone' / 'study.db'))}"):
        plan_of(tmp_path, f"--points-from {tmp_path / 'gone'}")


@pytest.mark.parametrize(("num_trials", "taken"), [(1, 1), (2, 1), (6, 2), (9, 3), (30, 4)])
def test_a_third_of_the_trials_may_begin_at_points_of_an_earlier_search(num_trials: int, taken: int, tmp_path: Path) -> None:
    search = make_search("hparams", DEMO, ("float32",), {})
    study = open_study(tmp_path, ("fid",))
    for i, lr in enumerate((1e-3, 2e-3, 3e-3, 4e-3)):
        study.add_trial(running(BASELINE | {"generator_lr": lr}, search.axes))
        study.tell(i, 10.0 - i)
    points = first_points(search, "random", num_trials, tmp_path)
    rates = [4e-3, 3e-3, 2e-3, 1e-3][:taken]
    assert points == [BASELINE, *(BASELINE | {"generator_lr": lr} for lr in rates)]


@pytest.mark.parametrize(
    ("text", "names"), [(None, ("fid",)), ("fid", ("fid",)), ("fid, seconds_train ,kid", ("fid", "seconds_train", "kid"))]
)
def test_objectives_are_read(text: str | None, names: tuple[str, ...]) -> None:
    assert parse_objectives(text) == names


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        ([], {}),
        (["beta1=0.9", "optimizer=adam"], {"beta1": 0.9, "optimizer": "adam"}),
        ([" beta1 = 1e-3 "], {"beta1": 1e-3}),
        (["optimizer=a=b"], {"optimizer": "a=b"}),
        (['optimizer="adam"'], {"optimizer": "adam"}),
        (["latent_size="], {"latent_size": ""}),
        (["latent_size=true"], {"latent_size": True}),
    ],
)
def test_settings_are_json_or_words(texts: list[str], settings: dict[str, Any]) -> None:
    assert parse_settings(texts) == settings


@pytest.mark.parametrize("name", ["a", "a b", "ü", "...", "-x", ".hidden", "a?b%20#"])
def test_any_name_of_a_folder_is_a_name(name: str) -> None:
    check_name("--name", name)


# Going on with a search


def keep(tmp_path: Path, text: str = "") -> tuple[Plan, Path]:
    """A plan whose search.json is written as a search does."""
    args = parse(tmp_path, text)
    plan = read_plan(args, CPU)
    plan.folder.mkdir()
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    arguments = {name: value for name, value in kept.items() if name not in NOT_KEPT} | {"data_dir": str(plan.data_dir)}
    file = plan.folder / SEARCH_FILE
    file.write_text(json.dumps(record(plan, arguments, CPU)))
    return plan, file


def go_on(tmp_path: Path, text: str = "", name: str = "run") -> Plan:
    """The plan of `--resume`."""
    parser = make_parser()
    arguments = ["--resume", name, "--storage", str(tmp_path), *shlex.split(text)]
    args, points = saved_search(parser.parse_args(arguments), parser)
    return read_plan(args, CPU, points)


def test_a_resumed_search_has_the_same_plan(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    study = open_study(earlier, ("fid",))
    study.add_trial(running(BASELINE | {"generator_lr": 1e-3}, make_search("hparams", DEMO, ("float32",), {}).axes))
    study.tell(0, 1.0)
    text = (
        "--width 8 --seed 4 --replicas 2 --set ema_decay=0.5 --epochs 5 --num-trials 7 --max-concurrent 1 --confirm 2 "
        "--confirm-seeds 3"
    )
    plan, _ = keep(tmp_path, f"{text} --points-from {earlier}")
    assert len(plan.points) == 2
    (earlier / "study.db").unlink()  # the points are kept
    assert go_on(tmp_path) == plan
    assert plan.resume_command == f"python -m tune.run --resume run --storage {tmp_path}"


@pytest.mark.parametrize(
    "text",
    ["--scheduler pbt --grace-period 3", "--sampler grid", "--objectives fid,kid --sampler random", "--data-dir 'my data'", ""],
)
def test_any_search_can_be_resumed(text: str, tmp_path: Path) -> None:
    plan, _ = keep(tmp_path, text)
    assert go_on(tmp_path) == plan


@pytest.mark.parametrize(
    ("text", "confirm", "seeds"),
    [("--confirm 5", 5, 2), ("--confirm 0", 0, 2), ("--confirm-seeds 9", 1, 9), ("--dry-run", 1, 2)],
)
def test_whether_to_confirm_can_be_said_on_resuming(text: str, confirm: int, seeds: int, tmp_path: Path) -> None:
    plan, _ = keep(tmp_path)
    assert go_on(tmp_path, text) == dataclasses.replace(plan, confirm=confirm, confirm_seeds=seeds)


FLAGS: dict[str, str] = {
    "search": "hparams", "preset": "demo", "num_trials": "9", "epochs": "5", "dataset": "mnist", "data_dir": "d",
    "sampler": "tpe", "scheduler": "fifo", "grace_period": "1", "replicas": "2", "width": "4",
    "objectives": "fid", "points_from": "x",
    "set": "beta1=0", "max_concurrent": "1", "gpus_per_trial": "1", "seed": "1", "confirm": "1", "confirm_seeds": "1",
    "storage": "{}", "address": "auto", "name": "n", "resume": "run", "retry_failed": "", "dry_run": "", "wandb": "offline",
}  # fmt: skip
"""A value of each flag that is not its default."""


def test_on_resuming_only_some_flags_are_allowed(tmp_path: Path) -> None:
    parser = make_parser()
    assert set(FLAGS) == set(vars(parser.parse_args([]))), "a new flag needs a line here"
    assert set(ON_RESUMING) == {"resume", "storage", "address", "dry_run", "confirm", "confirm_seeds", "retry_failed", "wandb"}
    keep(tmp_path)
    for name, value in FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ON_RESUMING:
            go_on(tmp_path, f"{flag} {value}".format(tmp_path))
            continue
        with pytest.raises(ValueError, match=f"^{flag} cannot go with --resume: the search keeps its own settings$"):
            go_on(tmp_path, f"{flag} {value}")
    with pytest.raises(ValueError, match=r"^--num-trials, --seed cannot go with --resume"):
        go_on(tmp_path, "--seed 1 --num-trials 3")


def test_a_search_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "no search").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"^no search 'gone' in {re.escape(str(tmp_path))}; there: none$"):
        go_on(tmp_path, name="gone")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SEARCH_FILE).touch()
    with pytest.raises(FileNotFoundError, match=r"^no search 'gone' in .*; there: a, b$"):
        go_on(tmp_path, name="gone")
    with pytest.raises(ValueError, match=r"^--resume is '\.\.'; allowed is one folder name"):
        go_on(tmp_path, name="..")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b"{}", b'{"arguments": {}}', b'{"arguments": [], "points": []}']
)
def test_a_damaged_description_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SEARCH_FILE).write_bytes(content)
    message = f"{tmp_path / 'run' / SEARCH_FILE} is damaged, or of an older version ("
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*can still be read by python -m analysis.tables$"):
        go_on(tmp_path)


@pytest.mark.parametrize("missing", ["replicas", "objectives", "scheduler", "grace_period", "confirm", "points_from"])
def test_a_description_of_an_older_version_is_refused(missing: str, tmp_path: Path) -> None:
    _, file = keep(tmp_path)
    content = json.loads(file.read_text())
    del content["arguments"][missing]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"is damaged, or of an older version .KeyError.'{missing}'"):
        go_on(tmp_path)


def test_retrying_needs_a_search_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--retry-failed goes with --resume NAME$"):
        run(parse(tmp_path, "--retry-failed --dry-run"), make_parser())


def test_a_name_that_is_taken_is_refused_and_what_a_killed_start_left_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for left in (LOCK, "search.123.tmp"):
        (folder / left).touch()
    assert run(parse(tmp_path, "--dry-run --set generator_width=2", search="baseline"), make_parser()) == 0
    for taken in (SEARCH_FILE, "study.db", "letter.txt"):
        (folder / taken).touch()
        with pytest.raises(ValueError, match=r"run holds a search; go on with it by --resume run, or choose another --name$"):
            run(parse(tmp_path, "--dry-run"), make_parser())
        (folder / taken).unlink()
    assert sorted(path.name for path in folder.iterdir()) == sorted([LOCK, "search.123.tmp"])
