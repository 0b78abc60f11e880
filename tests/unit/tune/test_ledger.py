"""The ledger of a search: its file, failed trials begun anew, and points for another search."""

import dataclasses
import random
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dcgan.schema import OBJECTIVES
from dcgan.store import Mirror
from tune.ledger import (
    RETRY_OF,
    best_points,
    open_ledger,
    record_epoch,
    retry_failed,
    running,
    take_over_folders,
)
from tune.plan import Plan
from tune.searches import DEMO, Search, make_search
from tune.study import StudySearch

BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}


def open_search(plan: Plan) -> StudySearch:
    """A session's searcher."""
    return StudySearch(plan, open_ledger(plan.folder, plan.objectives))


def end(searcher: StudySearch, trial_id: str, epochs: int = DEMO.epochs) -> None:
    """Ends a trial at an epoch: finished, or stopped by the scheduler."""
    searcher.on_trial_complete(trial_id, {"epoch": epochs, "fid": 10.0})


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
    """The file of a study with ten trials of nine epochs."""
    folder = tmp_path_factory.mktemp("whole")
    study = open_ledger(folder, ("fid",))
    search = make_search("hparams", DEMO, ("float32",), {})
    for number in range(10):
        study.add_trial(running(BASELINE, search.axes))
        for epoch in range(1, 10):
            record_epoch(study, number, epoch, 20.0 - epoch)
        study.tell(number, 11.0)
    return (folder / "study.db").read_bytes()


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


# Failed trials begun anew


def test_failed_trials_are_retried_once_each(make_demo_plan: Any) -> None:
    plan = make_demo_plan("--num-trials 4")
    searcher = open_search(plan)
    for trial_id in "abcd":
        searcher.suggest(trial_id)
        folder = plan.trial_folder(searcher.numbers[trial_id])
        folder.mkdir()
        (folder / "result.json").write_text(trial_id)
    end(searcher, "a")
    end(searcher, "b", epochs=2)
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
    end(searcher, "e")
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


def test_a_retry_in_the_middle_of_a_search_costs_it_no_trial(make_demo_plan: Any) -> None:
    points = [BASELINE | {"generator_lr": lr} for lr in (2e-4, 1e-3, 3e-3)]
    plan = make_demo_plan(points=points, num_trials=4)
    searcher = open_search(plan)
    for trial_id in "ab":
        searcher.suggest(trial_id)
    searcher.fail("a")  # before it had a folder
    end(searcher, "b")
    assert retry_failed(plan) == 1
    take_over_folders(plan, open_ledger(plan.folder))
    assert not list(plan.folder.glob("trial_*"))
    searcher = open_search(plan)
    assert searcher.remaining == 3
    for trial_id in "cde":
        searcher.suggest(trial_id)
        end(searcher, trial_id)
    assert searcher.numbers == {"c": 2, "d": 3, "e": 4}
    rates = [trial.params["generator_lr"] for trial in open_ledger(plan.folder).trials]
    assert rates[:4] == [2e-4, 1e-3, 2e-4, 3e-3]
    assert rates[4] not in rates[:4]
    assert open_search(plan).remaining == 0


def test_a_retry_interrupted_halfway_takes_its_folder_later(make_demo_plan: Any) -> None:
    plan = make_demo_plan()
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


def test_a_retry_takes_over_its_folder_in_a_storage_too(
    make_demo_plan: Any, tmp_path: Path
) -> None:
    """Also after it was interrupted between any two files."""
    storage, copy = tmp_path / "mounted", tmp_path / "copy"
    plan = make_demo_plan(store=Mirror(copy, str(storage)))
    study = open_ledger(copy, plan.objectives)
    study.add_trial(running(plan.search.baseline(), plan.search.axes))
    study.tell(0, state=TrialState.FAIL)
    files = {
        "params.json": "{}",
        "checkpoint.pt": "weights",
        "result.json": "rows",
        "error.txt": "diverged",
    }
    (storage / "trial_0000").mkdir(parents=True)
    for name, text in files.items():
        (storage / "trial_0000" / name).write_text(text)
    (storage / "trial_0001").mkdir()
    interrupted = "of an attempt that was interrupted"
    (storage / "trial_0001" / "result.json").write_text(interrupted)
    assert retry_failed(plan) == 1
    for _ in range(2):
        plan.store.get_small()
        take_over_folders(plan, study)
        assert {path.name for path in storage.iterdir()} == {"trial_0001"}
        taken = {path.name: path.read_text() for path in (storage / "trial_0001").iterdir()}
        assert taken == {name: text for name, text in files.items() if name != "error.txt"}


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
