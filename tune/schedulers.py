"""What may end a trial early: one entry of `SCHEDULERS` each.

An entry says when it decides, how much it leaves to train, and how it is described. Ray is imported
only where its scheduler is made, so that `--help` need not wait for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from tune.plan import Plan
    from tune.study import StudySearch

REDUCTION_FACTOR = 3  # ASHA keeps the best third at each rung


class Scheduler:
    """Ends nothing; others override what differs."""

    name = "fifo"
    several_objectives = True
    """Whether it goes with a Pareto search."""

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        """Epochs at which it may end a trial, before the last of all."""
        return []

    def expected_epochs(self, num_trials: int, rungs: Sequence[int], epochs: int) -> float:
        """Epochs of a trial on average."""
        return float(epochs)

    def text(self, plan: "Plan") -> str:
        """What it does, as a person reads it."""
        return "none: every trial trains all epochs"

    def make(self, plan: "Plan", searcher: "StudySearch") -> "TrialScheduler":
        """Ray's scheduler, brought to where the study stands."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()


class Asha(Scheduler):
    """ASHA (Li et al. 2020, arXiv 1810.05934): at each rung the best third of the trials so far
    goes on."""

    name = "asha"
    several_objectives = False

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        rungs, rung = [], grace_period
        while rung < epochs:
            rungs.append(rung)
            rung *= REDUCTION_FACTOR
        return rungs

    def expected_epochs(self, num_trials: int, rungs: Sequence[int], epochs: int) -> float:
        """Epochs of a trial on average, if trials came in no order.

        The i-th trial at a rung is among the best third of those before it with probability 1/i for
        the first few, and 1/3 after.
        """
        arrivals, trained, before = float(num_trials), 0.0, 0
        for rung in [*rungs, epochs]:
            trained += arrivals * (rung - before)
            before = rung
            arrivals = sum(1 / min(i, REDUCTION_FACTOR) for i in range(1, round(arrivals) + 1))
        return trained / num_trials

    def text(self, plan: "Plan") -> str:
        rungs = ", ".join(map(str, plan.rungs))
        return f"the best third goes on after epoch {rungs} (ASHA)" if rungs else super().text(plan)

    def make(self, plan: "Plan", searcher: "StudySearch") -> "TrialScheduler":
        if not plan.rungs:
            return super().make(plan, searcher)
        from tune.asha import Halving

        return Halving(plan, searcher)


SCHEDULERS: dict[str, Scheduler] = {one.name: one for one in (Asha(), Scheduler())}


def default_grace_period(epochs: int) -> int:
    """A sixth of the epochs: from there on trials rank much as they do at the end (analysis.rungs,
    docs/log.md)."""
    return max(1, round(epochs / 6))
