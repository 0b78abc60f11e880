"""Freeze-thaw searches: what is chosen, what the ledger says in the end, and that the budget is
kept."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from dcgan.store import Store
from tune import choice
from tune.choice import Curve, choose, curves_of, draw, outlook, step_of
from tune.curves import CURVES, Curves
from tune.describe import describe, describe_cost, record
from tune.ledger import open_ledger, reopen_stopped, retry_failed
from tune.options import from_flags, make_parser
from tune.plan import Plan, Site
from tune.runner import has_more_epochs
from tune.simulate import make_plan
from tune.simulation import Simulation, simulate

BUDGET = 50


@pytest.fixture(scope="module")
def curves() -> Curves:
    return Curves(CURVES, "hparams")


def plan_of(curves: Curves, budget: int = BUDGET, workers: int = 1, **changes: Any) -> Plan:
    search = curves.search("hparams")
    plan = make_plan(search, "freeze-thaw", 0, 150, 2, workers)
    return dataclasses.replace(plan, epochs_in_all=budget, **changes)


def ledger_in(folder: Path) -> optuna.Study:
    return open_ledger(folder, ("fid",))


# The choice


def test_settings_by_chance_lie_within_their_axes() -> None:
    axes = {
        "a": FloatDistribution(1e-4, 1e-1, log=True),
        "b": FloatDistribution(-1, 1),
        "c": FloatDistribution(0, 1, step=0.25),
        "d": IntDistribution(1, 9, step=2),
        "e": CategoricalDistribution(["x", None, 3]),
    }
    rng = np.random.default_rng(0)
    points = [draw(axes, rng) for _ in range(400)]
    for point in points:  # Optuna refuses what an axis does not contain
        optuna.create_trial(value=0.0, params=point, distributions=axes)
    assert {point["c"] for point in points} == {0, 0.25, 0.5, 0.75, 1}
    assert {point["d"] for point in points} == {1, 3, 5, 7, 9}
    assert np.median([math.log10(point["a"]) for point in points]) == pytest.approx(-2.5, abs=0.3)


@pytest.mark.parametrize(("epochs", "step"), [(1, 1), (9, 1), (12, 1), (25, 2), (100, 8)])
def test_a_step_is_an_epoch_or_a_twelfth(epochs: int, step: int) -> None:
    assert step_of(epochs) == step


AXES = {"x": FloatDistribution(0, 1)}


def falling(level: float, epochs: int) -> dict[int, float]:
    return {epoch: level * (1 + 2 / epoch) for epoch in range(1, epochs + 1)}


def share_of(curves: dict[int, Curve], new: list[dict[str, Any]], **training: int) -> list[Any]:
    """What is chosen with many random numbers."""
    busy = {int(name[1:]): epoch for name, epoch in training.items()}
    frozen = [n for n, curve in curves.items() if not curve.over and n not in busy]
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    return [choose(curves, frozen, busy, new, AXES, 9, rng) for rng in rngs]


def test_what_is_likeliest_to_end_best_goes_on() -> None:
    """Of two frozen trials the one that is far ahead, in nearly all random rounds."""
    curves = {n: Curve({"x": n / 9}, falling(10 if n == 4 else 100, 3)) for n in range(6)}
    chosen = share_of(curves, [])
    assert chosen.count(4) > 50


def test_new_settings_begin_where_good_ones_lie() -> None:
    curves = {n: Curve({"x": n / 9}, falling(10 + 20 * n, 9), over=True) for n in range(6)}
    new: list[dict[str, Any]] = [{"x": 0.03}, {"x": 0.5}]
    assert share_of(curves, new).count(new[0]) > 50


def test_settings_like_those_that_failed_are_avoided() -> None:
    """Both new ones are alike to what trained; one is like what failed at once."""
    curves = {n: Curve({"x": 0.45 + n / 50}, falling(50, 9), over=True) for n in range(6)}
    new: list[dict[str, Any]] = [{"x": 0.05}, {"x": 0.95}]
    curves |= {6 + n: Curve({"x": n / 40}, over=True, failed=True) for n in range(4)}
    assert share_of(curves, new).count(new[0]) == 0


def test_the_first_settings_begin_unasked_and_nothing_is_no_choice() -> None:
    rng = np.random.default_rng(0)
    some: list[dict[str, Any]] = [{"x": 0.1}, {"x": 0.2}]
    assert choose({}, [], {}, some, AXES, 9, rng) == some[0]
    lost = {n: Curve({"x": 0.1}, over=True, failed=True) for n in range(9)}
    assert choose(lost, [], {}, some, AXES, 9, rng) == some[0]  # nothing is known yet
    assert choose(lost, [], {}, [], AXES, 9, rng) is None


def test_what_trains_is_imagined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second worker takes another trial than the first's twin more often, since of that more
    will be known."""
    curves = {n: Curve({"x": n / 9}, falling(100, 2)) for n in range(6)}
    curves[7] = Curve({"x": 0.95}, falling(20, 1))
    new: list[dict[str, Any]] = [{"x": 0.951}, {"x": 0.75}]
    with_it = share_of(curves, new, n7=2).count(new[0])
    monkeypatch.setattr(choice, "imagine", lambda forecast, pending: forecast)
    assert with_it <= share_of(curves, new, n7=2).count(new[0])


# The course of a search


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_it_ends_by_its_budget_with_a_finished_best(
    workers: int, sampler: str, curves: Curves, tmp_path: Path
) -> None:
    ledger = ledger_in(tmp_path)
    plan = plan_of(curves, workers=workers, sampler=sampler)
    simulation = simulate(plan, curves, 0, ledger)
    trials = ledger.get_trials()
    assert sum(len(trial.intermediate_values) for trial in trials) <= BUDGET
    assert BUDGET - len(simulation.progress) < plan.epochs  # what could finish nothing is left
    states = {trial.state for trial in trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, simulated in zip(trials, simulation.trials, strict=True):
        fids = [row["fid"] for row in simulated.rows]
        assert list(trial.intermediate_values.values()) == fids
        whole = len(fids) == plan.epochs
        assert trial.state == (TrialState.COMPLETE if whole else TrialState.PRUNED)
    if workers == 1:  # several may come near the end at the same time, and not all to it
        best = min(trials, key=lambda trial: min(trial.intermediate_values.values()))
        assert best.state == TrialState.COMPLETE
    thaws = [t for t in simulation.trials if len(t.rows) > 1]
    assert len(thaws) > 1


def test_no_more_trials_train_than_there_are_workers(curves: Curves) -> None:
    simulation = Simulation(plan_of(curves, workers=3), curves, 0, None)
    simulation.start_trials()
    most = 0
    while simulation.events:
        most = max(most, len(simulation.events))
        simulation.step()
        simulation.start_trials()
    assert most == 3


def test_failed_trials_fail_once_and_are_not_thawed(curves: Curves, tmp_path: Path) -> None:
    """Those that diverge, at once or later; each costs the epoch that it could not report."""
    lost = Curves(CURVES, "hparams")
    for (number, seed), rows in curves.rows.items():
        lost.rows[number, seed] = rows[: (0, 2, 12)[number % 3]]
    ledger = ledger_in(tmp_path)
    simulate(plan_of(lost), lost, 0, ledger)
    trials = ledger.get_trials()
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert {len(trial.intermediate_values) for trial in failed} == {0, 2}
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    assert BUDGET - 12 < epochs + len(failed) <= BUDGET
    assert TrialState.COMPLETE in {trial.state for trial in trials}


def test_collapsed_trials_fail_when_they_are_thawed(curves: Curves, tmp_path: Path) -> None:
    ill = Curves(CURVES, "hparams")
    for key, rows in curves.rows.items():
        ill.rows[key] = [
            row | ({"collapsed": 1, "fid": 90.0} if row["epoch"] > 1 else {}) for row in rows
        ]
    ledger = ledger_in(tmp_path)
    plan = plan_of(ill, budget=60)
    simulate(plan, ill, 0, ledger)
    lengths = {
        len(trial.intermediate_values)
        for trial in ledger.get_trials()
        if trial.state == TrialState.FAIL
    }
    assert 1 + plan.patience in lengths  # others were better later, or took longer to be sure
    assert min(lengths) == 1 + plan.patience


def test_first_points_come_first_and_in_order(curves: Curves) -> None:
    search = curves.search("hparams")
    points = [{"generator_lr": lr, "batch_size": 64, "optimizer": "adam"} for lr in (1e-4, 2e-4)]
    plan = dataclasses.replace(plan_of(curves), points=points)
    configs = [trial.config for trial in simulate(plan, curves, 0).trials]
    assert configs[:2] == [search.complete(point) for point in points]


def test_a_finite_space_is_tried_once_each(tmp_path: Path) -> None:
    curves = Curves(CURVES, "architecture")
    search = curves.search("architecture")
    axes = {name: search.axes[name] for name in ("generator_depth", "extra_convs")}
    small = dataclasses.replace(search, axes=axes, ties={"discriminator_depth": "generator_depth"})
    plan = make_plan(small, "freeze-thaw", 0, 9, 2, 2)
    ledger = ledger_in(tmp_path)
    simulate(dataclasses.replace(plan, epochs_in_all=9 * 12), curves, 0, ledger)
    trials = ledger.get_trials()
    assert len(trials) == 9 == len({tuple(trial.params.values()) for trial in trials})
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}  # nothing else was left


def test_failed_trials_begin_anew(curves: Curves, tmp_path: Path) -> None:
    """With what they had counting once."""
    lost = Curves(CURVES, "hparams")
    for key, rows in curves.rows.items():
        lost.rows[key] = rows[:2] if key[0] % 2 else rows
    plan = plan_of(lost)
    plan = dataclasses.replace(plan, store=Store(tmp_path))
    ledger = ledger_in(tmp_path)
    simulate(plan, lost, 0, ledger)
    count = len(ledger.get_trials())
    failed = retry_failed(plan)
    assert failed
    simulate(plan, curves, 0, ledger_in(tmp_path))
    trials = ledger_in(tmp_path).get_trials()
    assert all(trial.state.is_finished() for trial in trials)
    assert {trial.state for trial in trials[count : count + failed]} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
    }
    assert len(curves_of(trials)) == len(trials) - failed


def test_more_epochs_go_on_with_what_was_frozen(curves: Curves, tmp_path: Path) -> None:
    """Of an ended search. One that is killed before its record says so ends again as it had."""
    plan = dataclasses.replace(plan_of(curves), store=Store(tmp_path))
    simulate(plan, curves, 0, ledger_in(tmp_path))
    before = ledger_in(tmp_path).get_trials()
    frozen = [trial.number for trial in before if trial.state == TrialState.PRUNED]
    ledger_in(tmp_path).set_user_attr("note", "of a person")
    reopen_stopped(plan)
    reopened = ledger_in(tmp_path).get_trials()
    assert [t.number for t in reopened if t.state == TrialState.RUNNING] == frozen
    simulate(plan, curves, 0, ledger_in(tmp_path))
    assert all(map(alike, ledger_in(tmp_path).get_trials(), before))

    reopen_stopped(plan)
    more = dataclasses.replace(plan, epochs_in_all=BUDGET + 30)
    simulate(more, curves, 0, ledger_in(tmp_path))
    after = ledger_in(tmp_path).get_trials()
    epochs = sum(len(trial.intermediate_values) for trial in after)
    assert BUDGET + 30 - plan.epochs < epochs <= BUDGET + 30
    assert {trial.state for trial in after} == {TrialState.COMPLETE, TrialState.PRUNED}
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params
        assert old.intermediate_values.items() <= new.intermediate_values.items()
        assert old.state == TrialState.PRUNED or alike(old, new)
    assert any(
        len(after[n].intermediate_values) > len(before[n].intermediate_values) for n in frozen
    )
    assert ledger_in(tmp_path).user_attrs == {"note": "of a person"}


def test_more_epochs_need_the_study(
    curves: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is lost, unlike where the search was killed before it had one."""
    monkeypatch.setattr("tune.runner.read_record", lambda store: {"epochs_in_all": BUDGET - 1})
    plan = dataclasses.replace(plan_of(curves), store=Store(tmp_path))
    assert not has_more_epochs(plan)
    (tmp_path / "trial_0000").mkdir()
    assert has_more_epochs(plan)
    with pytest.raises(FileNotFoundError, match="no study at "):
        reopen_stopped(plan)


def alike(a: FrozenTrial, b: FrozenTrial) -> bool:
    """Whether two trials are the same but for times."""
    return (a.params, a.intermediate_values, a.state, a.values) == (
        b.params,
        b.intermediate_values,
        b.state,
        b.values,
    )


# The plan


def test_the_plan_says_how_many_epochs(make_demo_plan: Any) -> None:
    plan = make_demo_plan("--scheduler freeze-thaw")
    asha = make_demo_plan("--sampler random")
    assert plan.epochs_in_all == round(asha.num_trials * asha.expected_epochs())
    assert plan.sampler == "random"
    assert plan.keep == list(range(1, 10))
    assert make_demo_plan("--scheduler freeze-thaw --sampler tpe").sampler == "tpe"
    plan = make_demo_plan("--scheduler freeze-thaw --epochs-in-all 40")
    site = Site(
        store=plan.store,
        device="cpu",
        precisions=("float32",),
        cpus=2,
        gpus=0,
        seconds_per_epoch=3.0,
    )
    options = from_flags(make_parser(), ["--search", "hparams", "--scheduler", "freeze-thaw"])
    text = describe(plan, options, site)
    assert "within 40 epochs by random, the first at the baseline" in text
    assert "ends after 40 epochs in all (freeze-thaw)" in text
    assert describe_cost(plan, site) == "about 40 epochs at 3.0 s: about 1 min 0 s"
    assert record(plan, options, site)["epochs_in_all"] == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--epochs-in-all 40", "--epochs-in-all does not go with --scheduler asha"),
        ("--scheduler fifo --epochs-in-all 40", "does not go with --scheduler fifo"),
        (
            "--scheduler freeze-thaw --epochs-in-all 8",
            "--epochs-in-all is 8; allowed is from the 9 epochs of a trial on",
        ),
        (
            "--scheduler freeze-thaw --objectives fid,seconds_train",
            "--scheduler freeze-thaw knows one objective",
        ),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str, make_demo_plan: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make_demo_plan(text)


# The outlook


def test_the_outlook_names_the_most_promising(curves: Curves, tmp_path: Path) -> None:
    plan = plan_of(curves)
    assert outlook(plan, []) == ""
    ledger = ledger_in(tmp_path)
    simulate(plan, curves, 0, ledger)
    text = outlook(plan, ledger.get_trials())
    assert "further epochs, of " in text
    assert "would likely bring fid from " in text
    better, best = text.split(" to about ")[1].split()[0], text.split(" from ")[1].split()[0]
    assert float(better) <= float(best)
