"""Optuna's part in a search: what is proposed and recorded, and Optuna's own tools on the
record."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from dcgan.config import TrainConfig
from dcgan.store import Store
from tune.ledger import best_points, open_ledger
from tune.options import Options, from_flags, make_parser
from tune.plan import Plan, Site
from tune.plan import make_plan as plan_of
from tune.searches import DEMO, SEARCHES, Preset, Search, make_search
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
