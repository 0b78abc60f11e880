"""The study as the record of a search: opened, proposed from, told, gone on with; what stops trials
and what changes them."""

import dataclasses
import math
import random
import shlex
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dcgan.config import TrainConfig
from dcgan.files import write_rows
from dcgan.schema import OBJECTIVES
from dcgan.store import Store
from tune.asha import Halving
from tune.curves import CURVES, Curves
from tune.describe import describe, record
from tune.ledger import (
    RETRY_OF,
    best_points,
    open_ledger,
    record_epoch,
    retry_failed,
    running,
    take_over_folders,
)
from tune.options import Options, from_flags, make_parser
from tune.plan import Plan, Site
from tune.plan import make_plan as plan_of
from tune.schedulers import SCHEDULERS, Scheduler
from tune.searches import DEMO, SEARCHES, Preset, Search, make_search
from tune.simulation import SimulatedTrial, simulate
from tune.study import StudySearch

EPOCHS = DEMO.epochs
BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}


def make_plan(tmp_path: Path, text: str = "", **changes: Any) -> Plan:
    """The plan of a command line, in an empty folder."""
    options = from_flags(
        make_parser(), ["--search", "hparams", "--preset", "demo", *shlex.split(text)]
    )
    site = Site(
        store=Store(tmp_path / (options.name or "run")),
        device="cpu",
        precisions=("float32",),
        cpus=2,
        gpus=0,
    )
    plan = dataclasses.replace(plan_of(options, site), **changes)
    plan.folder.mkdir(exist_ok=True)
    return plan


def open_search(plan: Plan) -> StudySearch:
    """A session's searcher."""
    return StudySearch(plan, open_ledger(plan.folder, plan.objectives))


def row(epoch: int, fid: float, **columns: float) -> dict[str, Any]:
    return {"epoch": epoch, "fid": fid, **columns}


def fid_of(number: int, epoch: int) -> float:
    """Curves that fall for six epochs and rise again."""
    return 10.0 + (number * 7) % 11 + abs(epoch - 6)


def train(searcher: StudySearch, trial_id: str, epochs: int = EPOCHS) -> None:
    """Reports a trial up to an epoch and ends it: finished, or stopped by the scheduler."""
    number = searcher.numbers[trial_id]
    for epoch in range(1, epochs):
        searcher.on_trial_result(trial_id, row(epoch, fid_of(number, epoch)))
    searcher.on_trial_complete(trial_id, row(epochs, fid_of(number, epochs)))


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.get_trials()]


# The file


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "my run",
        "what?",
        "a?b=c&d",
        "100%",
        "per%20cent",
        "a#b",
        "Prüfung",
        "a:b@c",
        "{x}",
        "it's",
        "a+b",
        "a\\b",
    ],
)
def test_a_study_lies_in_any_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    open_ledger(folder, ("fid",)).add_trial(running({}, {}))
    assert [file.name for file in folder.iterdir()] == ["study.db"]
    assert list(tmp_path.iterdir()) == [folder]
    assert (
        len(open_ledger(folder).get_trials())
        == len(open_ledger(folder, ("fid",)).get_trials())
        == 1
    )


def test_a_study_keeps_its_directions(tmp_path: Path) -> None:
    columns = ("fid", "seconds_train", "sample_coverage")
    study = open_ledger(tmp_path, columns)
    assert study.directions == [
        StudyDirection.MINIMIZE,
        StudyDirection.MINIMIZE,
        StudyDirection.MAXIMIZE,
    ]
    assert open_ledger(tmp_path).directions == study.directions


def test_the_direction_of_each_objective(tmp_path: Path) -> None:
    directions = open_ledger(tmp_path, tuple(OBJECTIVES)).directions
    assert [direction.name.lower()[:3] for direction in directions] == list(OBJECTIVES.values())


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no study at .*gone/study\.db$"):
        open_ledger(tmp_path / "gone")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a study with ten trials."""
    plan = make_plan(tmp_path_factory.mktemp("whole"))
    searcher = open_search(plan)
    for i in range(10):
        searcher.suggest(str(i))
        train(searcher, str(i))
    return (plan.folder / "study.db").read_bytes()


DAMAGES = {
    "noise": lambda whole: random.Random(0).randbytes(5000),
    "text": lambda whole: b"no study, but a letter\n",
    "half": lambda whole: whole[: len(whole) // 2],
    "header": lambda whole: whole[:100],
    "header lost": lambda whole: bytes(4096) + whole[4096:],
    "last page lost": lambda whole: whole[:-4096],
    "pages overwritten": lambda whole: whole[:4096] + random.Random(1).randbytes(len(whole) - 4096),
}


@pytest.mark.parametrize("objectives", [(), ("fid",)], ids=["read", "go on"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_study_is_refused_by_name(
    damage: str, objectives: tuple[str, ...], whole: bytes, tmp_path: Path
) -> None:
    (tmp_path / "study.db").write_bytes(DAMAGES[damage](whole))
    with pytest.raises(
        ValueError,
        match=rf"^{tmp_path}/study\.db is damaged \(.*read by python -m analysis\.tables",
    ):
        open_ledger(tmp_path, objectives).get_trials()


def test_damage_anywhere_is_noticed_on_opening_or_does_no_harm(
    whole: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(whole)
    trials = open_ledger(tmp_path).get_trials()
    refused = 0
    for page in range(1, len(whole) // 4096, 2):
        noise = random.Random(page).randbytes(4096)
        file.write_bytes(whole[: page * 4096] + noise + whole[(page + 1) * 4096 :])
        try:
            study = open_ledger(tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{file} is damaged (")  # noqa: PT017, since not every page need be refused
            refused += 1
        else:
            assert study.get_trials() == trials, page
    assert refused >= 5


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("create table letters (word text)")
    database.close()
    with pytest.raises(ValueError, match=r"study\.db is damaged"):
        open_ledger(tmp_path)


# Proposals


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_depend_on_seed_and_number_alone(sampler: str, tmp_path: Path) -> None:
    """One session, or one for each trial."""
    text = f"--epochs 4 --sampler {sampler} --num-trials 6"
    once, often = (
        make_plan(tmp_path, f"{text} --name once"),
        make_plan(tmp_path, f"{text} --name often"),
    )
    searcher = open_search(once)
    for i in range(6):
        searcher.suggest(str(i))
        train(searcher, str(i), epochs=4 if i % 2 else 2)
        session = open_search(often)
        assert session.remaining == 6 - i
        session.suggest("another name")
        train(session, "another name", epochs=4 if i % 2 else 2)
    assert open_search(often).remaining == 0
    assert params(open_ledger(once.folder)) == params(open_ledger(often.folder))
    other = StudySearch(dataclasses.replace(once, seed=1), None)
    for i in range(3):
        other.suggest(str(i))
    assert params(other.study)[0] == BASELINE == params(searcher.study)[0]
    assert all(
        mine != theirs
        for mine, theirs in zip(params(other.study)[1:], params(searcher.study)[1:3], strict=True)
    )


def test_the_baseline_comes_first_and_proposals_are_complete(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--search joint --set ema_decay=0.5")
    searcher = open_search(plan)
    assert searcher.suggest("a") == plan.search.base.to_dict()
    second = searcher.suggest("b")
    assert set(second) == set(plan.search.base.to_dict())
    assert second["discriminator_lr"] == second["generator_lr"] != 2e-4
    assert second["ema_decay"] == 0.5
    ledger = open_ledger(plan.folder).get_trials()
    assert [trial.state for trial in ledger] == [TrialState.RUNNING] * 2
    assert ledger[1].params == {name: second[name] for name in plan.search.axes}
    assert ledger[1].distributions == plan.search.axes


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("name", ["architecture", "precision"])
def test_a_finite_space_is_tried_once_each_to_the_last(
    name: str, sampler: str, tmp_path: Path
) -> None:
    search = make_search(name, DEMO, ("float32", "tf32", "bfloat16"), {})
    grid = search.as_grid().points()
    settings = len(grid) if sampler == "grid" else int(search.settings)
    for seed in range(3):
        points = grid if sampler == "grid" else [search.baseline()]
        plan = make_plan(
            tmp_path, search=search, sampler=sampler, points=points, num_trials=settings, seed=seed
        )
        searcher = StudySearch(plan, None)
        tried = []
        for i in range(settings):
            config = searcher.suggest(str(i))
            tried.append({axis: config[axis] for axis in search.axes})
            train(searcher, str(i))
        assert all(tried.count(setting) == 1 for setting in tried)
        assert tried[0] == points[0]


def test_points_come_in_order_across_sessions_and_doubles_once(tmp_path: Path) -> None:
    points = [BASELINE | {"generator_lr": lr} for lr in (2e-4, 1e-3, 1e-3, 3e-3)]
    plan = make_plan(tmp_path, points=points, num_trials=5)
    for i in range(5):
        searcher = open_search(plan)
        searcher.suggest(str(i))
        train(searcher, str(i))
    rates = [setting["generator_lr"] for setting in params(searcher.study)]
    assert rates[:3] == [2e-4, 1e-3, 3e-3]
    assert len(set(rates)) == 5


# What is told


def test_each_end_is_told_as_what_it_was(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--num-trials 6")
    searcher = open_search(plan)
    for trial_id in "abcdef":
        searcher.suggest(trial_id)
    train(searcher, "a")
    train(searcher, "b", epochs=2)
    searcher.on_trial_result("c", row(1, 30.0))
    searcher.on_trial_complete("c", error=True)  # Ray's word; the cause comes by `fail`
    searcher.on_trial_complete("c", row(EPOCHS, 30.0), error=True)
    assert open_ledger(plan.folder).trials[2].state == TrialState.RUNNING
    searcher.fail("c")
    searcher.on_trial_result("d", row(1, 30.0))
    searcher.on_trial_complete("d", row(2, math.nan))
    searcher.on_trial_complete("e", row(EPOCHS, math.inf))
    searcher.on_trial_result("f", row(1, 30.0))
    searcher.on_trial_complete("f", None)  # Ray says so of what it was told to leave
    ledger = open_ledger(plan.folder).get_trials()
    assert [trial.state for trial in ledger] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert ledger[0].values == [fid_of(0, 6)]  # of the best epoch, not the last
    assert ledger[0].intermediate_values == {
        epoch: fid_of(0, epoch) for epoch in range(1, EPOCHS + 1)
    }
    assert ledger[1].intermediate_values == {1: fid_of(1, 1), 2: fid_of(1, 2)}
    assert [trial.intermediate_values for trial in ledger[2:]] == [
        {1: 30.0},
        {1: 30.0},
        {},
        {1: 30.0},
    ]
    memory = searcher.study.get_trials()
    assert [(t.state, t.values, t.intermediate_values) for t in memory] == [
        (t.state, t.values, t.intermediate_values) for t in ledger
    ]
    assert open_ledger(plan.folder).best_trial.number == 0


def test_of_several_objectives_those_of_the_best_epoch_by_the_first_count(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--objectives fid,seconds_train,sample_coverage")
    searcher = open_search(plan)
    searcher.suggest("a")
    rows = [
        (1, 9.0, 5.0, 0.9),
        (2, 4.0, 3.0, 0.2),
        (3, 4.0, 1.0, 0.8),
        (EPOCHS, 6.0, 1.0, 0.5),
    ]  # a tie: the earlier counts
    *before, last = [
        row(epoch, fid, seconds_train=s, sample_coverage=c, collapsed=False)
        for epoch, fid, s, c in rows
    ]
    for result in before:
        searcher.on_trial_result("a", result)
    searcher.on_trial_complete("a", last)
    (trial,) = open_ledger(plan.folder).get_trials()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [4.0, 3.0, 0.2])
    assert trial.intermediate_values == {1: 9.0, 2: 4.0, 3: 4.0, EPOCHS: 6.0}
    searcher.suggest("b")
    searcher.on_trial_result("b", before[0])
    searcher.fail("b")
    assert [t.state for t in open_ledger(plan.folder).get_trials()] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
    ]
    assert [t.number for t in open_ledger(plan.folder).best_trials] == [0]


def test_epochs_reported_again_change_nothing(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    searcher = open_search(plan)
    config = searcher.suggest("a")
    searcher.suggest("b")
    for epoch in (1, 2, 3):
        searcher.on_trial_result("a", row(epoch, 10.0 - epoch))
    searcher = open_search(plan)
    assert searcher.remaining == plan.num_trials
    assert searcher.suggest("x") == config
    assert searcher.numbers == {"x": 0}
    for epoch in (1, 2, 3):
        searcher.on_trial_result("x", row(epoch, 10.0 - epoch))
    searcher.on_trial_result("x", row(2, 99.0))
    searcher.on_trial_complete("x", row(EPOCHS, 50.0))
    searcher.suggest("y")
    searcher.suggest("z")
    assert searcher.numbers == {"x": 0, "y": 1, "z": 2}
    ledger = open_ledger(plan.folder).get_trials()
    assert ledger[0].intermediate_values == {1: 9.0, 2: 8.0, 3: 7.0, EPOCHS: 50.0}
    assert ledger[0].values == [7.0]
    assert len(ledger) == 3


# Failed trials begun anew


def test_failed_trials_are_retried_once_each(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--num-trials 4")
    searcher = open_search(plan)
    for trial_id in "abcd":
        searcher.suggest(trial_id)
        folder = plan.trial_folder(searcher.numbers[trial_id])
        folder.mkdir()
        (folder / "result.json").write_text(trial_id)
    train(searcher, "a")
    train(searcher, "b", epochs=2)
    for trial_id in "cd":
        searcher.fail(trial_id)
        (plan.trial_folder(searcher.numbers[trial_id]) / "error.txt").touch()
    assert open_search(plan).remaining == 0
    assert retry_failed(plan) == 2
    assert retry_failed(plan) == 0
    study = open_ledger(plan.folder)
    for _ in range(2):
        take_over_folders(plan, study)
        assert sorted(path.name for path in plan.folder.glob("trial_*")) == [
            "trial_0000",
            "trial_0001",
            "trial_0004",
            "trial_0005",
        ]
        assert [(plan.trial_folder(n) / "result.json").read_text() for n in (0, 1, 4, 5)] == [
            "a",
            "b",
            "c",
            "d",
        ]
    assert not list(plan.folder.glob("*/error.txt"))
    trials = study.get_trials()
    states = [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        *[TrialState.FAIL] * 2,
        *[TrialState.RUNNING] * 2,
    ]
    assert [trial.state for trial in trials] == states
    assert [trial.user_attrs for trial in trials[4:]] == [{RETRY_OF: 2}, {RETRY_OF: 3}]
    assert [trial.params for trial in trials[4:]] == [trial.params for trial in trials[2:4]]

    searcher = open_search(plan)
    assert searcher.remaining == 2
    assert searcher.suggest("e") == plan.search.complete(trials[2].params)
    train(searcher, "e")
    searcher.suggest("f")
    searcher.fail("f")
    (plan.trial_folder(5) / "error.txt").touch()
    assert searcher.numbers == {"e": 4, "f": 5}
    assert open_search(plan).remaining == 0
    assert retry_failed(plan) == 1  # the retry that failed, and not what it repeated
    take_over_folders(plan, study)
    assert study.get_trials()[6].user_attrs == {RETRY_OF: 5}
    assert (plan.trial_folder(6) / "result.json").read_text() == "d"
    assert not plan.trial_folder(5).exists()


def test_a_retry_in_the_middle_of_a_search_costs_it_no_trial(tmp_path: Path) -> None:
    points = [BASELINE | {"generator_lr": lr} for lr in (2e-4, 1e-3, 3e-3)]
    plan = make_plan(tmp_path, points=points, num_trials=4)
    searcher = open_search(plan)
    for trial_id in "ab":
        searcher.suggest(trial_id)
    searcher.fail("a")  # before it had a folder
    train(searcher, "b")
    assert retry_failed(plan) == 1
    take_over_folders(plan, open_ledger(plan.folder))
    assert not list(plan.folder.glob("trial_*"))
    searcher = open_search(plan)
    assert searcher.remaining == 3
    for trial_id in "cde":
        searcher.suggest(trial_id)
        train(searcher, trial_id)
    assert searcher.numbers == {"c": 2, "d": 3, "e": 4}
    rates = [setting["generator_lr"] for setting in params(open_ledger(plan.folder))]
    assert rates[:4] == [2e-4, 1e-3, 2e-4, 3e-3]
    assert rates[4] not in rates[:4]
    assert open_search(plan).remaining == 0


def test_a_retry_interrupted_halfway_takes_its_folder_later(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    searcher = open_search(plan)
    searcher.suggest("a")
    searcher.fail("a")
    plan.trial_folder(0).mkdir()  # error.txt was removed, and then the process was killed
    assert retry_failed(plan) == 1
    study = open_ledger(plan.folder)
    take_over_folders(plan, study)
    assert [path.name for path in plan.folder.glob("trial_*")] == ["trial_0001"]
    (plan.trial_folder(1) / "error.txt").touch()  # it fails again
    plan.trial_folder(0).mkdir()  # by someone else
    take_over_folders(plan, study)
    assert (plan.trial_folder(1) / "error.txt").exists()


# Points of an earlier search


def finish(study: optuna.Study, search: Search, point: dict[str, Any], fid: float | None) -> None:
    """Adds a trial: finished, or failed if there is no score."""
    study.add_trial(running(point, {name: search.axes[name] for name in point}))
    number = len(study.trials) - 1
    study.tell(number, fid, TrialState.FAIL if fid is None else TrialState.COMPLETE)


@pytest.fixture
def joint() -> Search:
    return make_search("joint", DEMO, ("float32",), {})


def test_the_best_points_come_best_first_in_the_terms_of_the_new_search(
    joint: Search, tmp_path: Path
) -> None:
    architecture = make_search("architecture", DEMO, ("float32",), {})
    study = open_ledger(tmp_path, ("fid",))
    for depth, fid in ((1, 30.0), (3, 10.0), (2, 20.0)):
        point = {"generator_depth": depth, "generator_width": 32, "extra_convs": 1}
        finish(study, architecture, point, fid)
    finish(study, architecture, architecture.baseline(), 1.0)  # tried first anyway
    finish(study, architecture, architecture.baseline() | {"extra_convs": 2}, None)
    pruned = architecture.baseline() | {"extra_convs": 1}
    study.add_trial(running(pruned, architecture.axes))
    record_epoch(study, 5, 1, 0.5)
    study.tell(5, state=TrialState.PRUNED)
    varied = {"generator_width": 32, "extra_convs": 1}
    expected = [joint.baseline() | varied | {"generator_depth": depth} for depth in (3, 2, 1)]
    assert best_points(tmp_path, joint, 9) == expected
    assert best_points(tmp_path, joint, 2) == expected[:2]


def test_settings_that_the_new_search_does_not_vary_are_left_out_and_no_point_stands_twice(
    joint: Search, tmp_path: Path
) -> None:
    study = open_ledger(tmp_path, ("fid",))
    for width, lr, fid in ((8, 1e-3, 3.0), (32, 1e-3, 2.0), (16, 2e-3, 4.0), (8, 2e-4, 1.0)):
        finish(study, joint, joint.baseline() | {"generator_width": width, "generator_lr": lr}, fid)
    hparams = make_search("hparams", DEMO, ("float32",), {})
    assert best_points(tmp_path, hparams, 9) == [
        BASELINE | {"generator_lr": lr} for lr in (1e-3, 2e-3)
    ]


def test_points_out_of_range_are_left_out(joint: Search, tmp_path: Path) -> None:
    hparams = make_search("hparams", DEMO, ("float32",), {})
    wide = dataclasses.replace(
        hparams, axes={**hparams.axes, "generator_lr": FloatDistribution(1e-6, 1.0, log=True)}
    )
    study = open_ledger(tmp_path, ("fid",))
    rates = (4.99e-5, 5e-5, 5e-3, 5.01e-3)
    for i, lr in enumerate(rates[:1] + rates[3:]):
        finish(study, wide, BASELINE | {"generator_lr": lr}, float(i))
    message = (
        f"--points-from {tmp_path}: no finished trial there lies within the ranges of "
        f"generator_lr, batch_size, optimizer"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        best_points(tmp_path, hparams, 9)
    for i, lr in enumerate(rates[1:3]):
        finish(study, wide, BASELINE | {"generator_lr": lr}, float(i))
    assert [point["generator_lr"] for point in best_points(tmp_path, hparams, 9)] == [5e-5, 5e-3]


def test_categories_that_the_new_search_has_not_are_left_out(tmp_path: Path) -> None:
    on_gpu = make_search("precision", DEMO, ("float32", "bfloat16", "float16"), {})
    study = open_ledger(tmp_path, ("fid",))
    for precision, fid in (("float16", 1.0), ("bfloat16", 2.0)):
        finish(study, on_gpu, {"precision": precision}, fid)
    on_cpu = make_search("precision", DEMO, ("float32", "bfloat16"), {})
    assert best_points(tmp_path, on_cpu, 9) == [{"precision": "bfloat16"}]


def test_a_damaged_study_gives_no_points_and_no_advice_to_take_them(
    joint: Search, tmp_path: Path
) -> None:
    (tmp_path / "study.db").write_bytes(b"noise" * 1000)
    with pytest.raises(ValueError, match=r"study\.db is damaged") as caught:
        best_points(tmp_path, joint, 1)
    assert "by --points-from" not in str(caught.value)


# Optuna's own tools on what is left


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A study of 30 finished, pruned and failed trials and one that is not over, opened as Optuna's
    manual says."""
    plan = make_plan(tmp_path_factory.mktemp("left"), "--num-trials 31 --sampler random")
    searcher = open_search(plan)
    for i in range(31):
        searcher.suggest(str(i))
        if i % 5 == 4:
            searcher.fail(str(i))
        elif i < 30:
            score = 100 * searcher.study.trials[i].params["generator_lr"]
            epochs = EPOCHS if i % 3 else 2
            for epoch in range(1, epochs):
                searcher.on_trial_result(str(i), row(epoch, score + 10.0 - epoch))
            searcher.on_trial_complete(str(i), row(epochs, score + 10.0 - epochs))
    return optuna.load_study(study_name=None, storage=f"sqlite:///{plan.folder}/study.db")


def test_optuna_reads_the_study(left: optuna.Study) -> None:
    states = [trial.state for trial in left.trials]
    expected = {
        TrialState.COMPLETE: 16,
        TrialState.PRUNED: 8,
        TrialState.FAIL: 6,
        TrialState.RUNNING: 1,
    }
    assert {state: states.count(state) for state in expected} == expected
    frame = left.trials_dataframe()
    assert frame["state"].tolist() == [state.name for state in states]
    assert frame["params_generator_lr"].tolist() == [
        trial.params["generator_lr"] for trial in left.trials
    ]
    assert left.best_value == frame.query("state == 'COMPLETE'")["value"].min()
    assert (
        left.best_params["generator_lr"]
        == frame.query("state == 'COMPLETE'")["params_generator_lr"].min()
    )


@pytest.mark.parametrize("evaluator", ["PedAnovaImportanceEvaluator", "FanovaImportanceEvaluator"])
@pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning"
)  # PED-ANOVA is called so
def test_optuna_tells_what_mattered(left: optuna.Study, evaluator: str) -> None:
    importances = optuna.importance.get_param_importances(
        left, evaluator=getattr(optuna.importance, evaluator)()
    )
    assert set(importances) == {"generator_lr", "batch_size", "optimizer"}
    assert (
        max(importances, key=lambda name: importances[name]) == "generator_lr"
    )  # it alone made the scores


def test_optuna_draws_the_study(left: optuna.Study) -> None:
    for plot in (
        optuna.visualization.plot_intermediate_values,
        optuna.visualization.plot_optimization_history,
        optuna.visualization.plot_parallel_coordinate,
        optuna.visualization.plot_timeline,
    ):
        assert plot(left).data


# What stops trials and what changes them


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [1, 2])
def test_what_is_not_finite_stops_and_enters_no_rung(
    value: float, epoch: int, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path)
    searcher = StudySearch(plan, None)
    scheduler = plan.scheduler.make(plan, searcher)
    trial: Any = SimulatedTrial(trial_id="a", config=searcher.suggest("a") or {}, curve=[])
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    assert scheduler.on_trial_result(None, trial, row(epoch, value)) == TrialScheduler.STOP  # type: ignore[arg-type]
    assert isinstance(scheduler, Halving)
    assert all(not recorded for _, recorded in scheduler._brackets[0]._rungs)


@pytest.mark.parametrize(("rows", "decided"), [([1, 2], True), ([1], False), (None, False)])
def test_a_trial_whose_folder_is_ahead_of_the_ledger_had_gone_on(
    rows: list[int] | None, decided: bool, tmp_path: Path
) -> None:
    """The driver died before it saw the second epoch: what it decided at the first still holds."""
    plan = make_plan(tmp_path, "--grace-period 1")
    searcher = open_search(plan)
    searcher.suggest("a")
    searcher.on_trial_result("a", row(1, 30.0))
    plan.trial_folder(0).mkdir()
    file = plan.trial_folder(0) / "result.json"
    if rows is None:
        file.write_text('{"epoch": 1, "fi')
    else:
        write_rows(file, [row(epoch, 30.0) for epoch in rows])
    searcher = open_search(plan)
    scheduler = Halving(plan, searcher)
    trial: Any = SimulatedTrial(trial_id="x", config=searcher.suggest("x"), curve=[])
    scheduler.on_trial_add(None, trial)
    recorded = {int(rung): dict(found) for rung, found in scheduler._brackets[0]._rungs}
    assert recorded[1] == ({"x": -30.0} if decided else {})


@pytest.mark.parametrize("text", ["--scheduler fifo", "--grace-period 9", "--epochs 1"])
def test_without_rungs_nothing_is_stopped(text: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, text)
    scheduler = plan.scheduler.make(plan, StudySearch(plan, None))
    trial: Any = SimulatedTrial(trial_id="a", config={}, curve=[])
    assert scheduler.on_trial_result(None, trial, row(1, 1e9)) == TrialScheduler.CONTINUE  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "patience"), [(1, 4), (9, 4), (12, 4), (13, 5), (25, 9), (50, 17)]
)
def test_patience_grows_with_the_epochs(epochs: int, patience: int, tmp_path: Path) -> None:
    assert make_plan(tmp_path, f"--epochs {epochs}").patience == patience


# By registration alone


def test_a_search_over_integers_is_proposed_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value of a finite axis once, in the ledger as Optuna has it, and read back from
    there."""

    def latent(base: TrainConfig, preset: Preset, precisions: Any) -> Search:
        axes = {"latent_size": IntDistribution(99, 104)}
        return Search(name="latent", base=base, axes=axes, grid={}, num_trials=6)

    monkeypatch.setitem(SEARCHES, "latent", latent)
    monkeypatch.setitem(
        Options.__dataclass_fields__["search"].metadata["choices"], "latent", latent
    )
    plan = make_plan(tmp_path, "--search latent")
    assert plan.num_trials == 6
    searcher = open_search(plan)
    for i in range(6):
        config = searcher.suggest(str(i))
        assert TrainConfig.from_dict(config).latent_size == config["latent_size"]
        train(searcher, str(i))
    ledger = open_ledger(plan.folder)
    assert sorted(trial.params["latent_size"] for trial in ledger.trials) == list(range(99, 105))
    assert ledger.trials[0].distributions == plan.search.axes
    search = make_search("latent", DEMO, ("float32",), {})
    best = min(ledger.trials[1:], key=lambda trial: trial.value).params
    assert best_points(plan.folder, search, 1) == [best]


class Halfway(Scheduler):
    """Stops a trial halfway if it is worse than 60."""

    name = "halfway"
    several_objectives = False

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        return [epochs // 2]

    def expected_epochs(self, num_trials: int, rungs: Any, epochs: int) -> float:
        return 0.75 * epochs

    def text(self, plan: Plan) -> str:
        return "half of it"

    def make(self, plan: Plan, searcher: StudySearch) -> Any:
        class StopHalfway(FIFOScheduler):
            def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
                bad = result["epoch"] == plan.rungs[0] and result["fid"] > 60
                return TrialScheduler.STOP if bad else TrialScheduler.CONTINUE

        return StopHalfway()


def test_a_scheduler_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by its flag, planned with, described, and simulated."""
    monkeypatch.setitem(SCHEDULERS, "halfway", Halfway())
    plan = make_plan(tmp_path, "--scheduler halfway --num-trials 12 --epochs 8", points=[])
    assert (plan.rungs, plan.keep, plan.expected_epochs()) == ([4], [4, 8], 6.0)
    site = Site(store=plan.store, device="cpu", precisions=("float32",), cpus=2, gpus=0)
    options = from_flags(make_parser(), ["--search", "hparams", "--scheduler", "halfway"])
    assert "half of it" in describe(plan, options, site)
    assert record(plan, options, site)["scheduler"] == "halfway"
    outcome = simulate(plan, Curves(CURVES, "hparams"), curve_seed=0)
    lengths = {len(trial.rows) for trial in outcome.trials}
    assert lengths == {4, 8}
    for trial in outcome.trials:
        assert (trial.rows[3]["fid"] > 60) == (len(trial.rows) == 4)
