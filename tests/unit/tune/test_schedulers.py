"""What may end a trial early: nothing where there are no rungs, and a scheduler of one's own."""

from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.curves import CURVES, Curves
from tune.describe import describe, record
from tune.options import from_flags, make_parser
from tune.plan import Plan, Site
from tune.schedulers import SCHEDULERS, Scheduler
from tune.simulation import SimulatedTrial, simulate
from tune.study import StudySearch


@pytest.mark.parametrize("text", ["--scheduler fifo", "--grace-period 9", "--epochs 1"])
def test_without_rungs_nothing_is_stopped(text: str, make_demo_plan: Any) -> None:
    plan = make_demo_plan(text)
    scheduler: Any = plan.scheduler.make(plan, StudySearch(plan, None))
    trial: Any = SimulatedTrial(trial_id="a", config={}, curve=[])
    decision = scheduler.on_trial_result(None, trial, {"epoch": 1, "fid": 1e9})
    assert decision == TrialScheduler.CONTINUE


class Halfway(Scheduler):
    """Stops a trial halfway if it is worse than 60."""

    name = "halfway"
    several_objectives = False

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        return [epochs // 2]

    def expected_epochs(self, plan: Plan) -> float:
        return 0.75 * plan.epochs

    def text(self, plan: Plan) -> str:
        return "half of it"

    def make(self, plan: Plan, searcher: StudySearch) -> Any:
        class StopHalfway(FIFOScheduler):
            def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
                bad = result["epoch"] == plan.rungs[0] and result["fid"] > 60
                return TrialScheduler.STOP if bad else TrialScheduler.CONTINUE

        return StopHalfway()


def test_a_scheduler_is_one_entry(make_demo_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by its flag, planned with, described, and simulated."""
    monkeypatch.setitem(SCHEDULERS, "halfway", Halfway())
    plan = make_demo_plan("--scheduler halfway --num-trials 12 --epochs 8", points=[])
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
