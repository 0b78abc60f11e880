"""ASHA of the study: what enters its rungs."""

import math
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from dcgan.files import write_rows
from tune.asha import Halving
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.simulation import SimulatedTrial
from tune.study import StudySearch


def open_search(plan: Plan) -> StudySearch:
    """A session's searcher."""
    return StudySearch(plan, open_ledger(plan.folder, plan.objectives))


def row(epoch: int, fid: float) -> dict[str, Any]:
    return {"epoch": epoch, "fid": fid}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [1, 2])
def test_what_is_not_finite_stops_and_enters_no_rung(
    value: float, epoch: int, make_demo_plan: Any
) -> None:
    plan = make_demo_plan()
    searcher = StudySearch(plan, None)
    scheduler: Any = plan.scheduler.make(plan, searcher)
    trial: Any = SimulatedTrial(trial_id="a", config=searcher.suggest("a") or {}, curve=[])
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, row(epoch, value)) == TrialScheduler.STOP
    assert isinstance(scheduler, Halving)
    assert all(not recorded for _, recorded in scheduler._brackets[0]._rungs)


@pytest.mark.parametrize(("rows", "decided"), [([1, 2], True), ([1], False), (None, False)])
def test_a_trial_whose_folder_is_ahead_of_the_ledger_had_gone_on(
    rows: list[int] | None, decided: bool, make_demo_plan: Any
) -> None:
    """The driver died before it saw the second epoch: what it decided at the first still holds."""
    plan = make_demo_plan("--grace-period 1")
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
