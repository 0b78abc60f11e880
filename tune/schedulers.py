"""What may end a trial early: one entry of `SCHEDULERS` each.

An entry says when it decides, how much it leaves to train, and how it is described. Ray is imported
only where its scheduler is made, so that `--help` need not wait for it.
"""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study
    from ray.tune.schedulers import TrialScheduler

    from tune.plan import Plan
    from tune.study import StudySearch

REDUCTION_FACTOR = 3  # at each rung ASHA lets go on what is among the best third of earlier trials
TPE_LONGER = 1.25
"""How much longer trials train under TPE, whose later trials are better than its earlier ones, than
in no order: means over simulated searches from 1.05 to 1.4 (docs/log.md)."""


class Scheduler:
    """Ends nothing; others override what differs."""

    name = "fifo"
    several_objectives = True
    """Whether it goes with a Pareto search."""
    sampler = "tpe"
    """The sampler that suits it, unless a search or a person names another."""

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        """Epochs at which it may end a trial, before the last of all."""
        return []

    def expected_epochs(self, plan: "Plan") -> float:
        """Epochs of a trial on average."""
        return float(plan.epochs)

    def text(self, plan: "Plan") -> str:
        """What it does, as a person reads it."""
        return "none: every trial trains all epochs"

    def epochs_in_all(self, plan: "Plan", asked: int | None) -> int | None:
        """After how many epochs it ends the search; None: once all trials have ended.

        Raises:
            ValueError: a number is asked for that it would not keep to.
        """
        if asked is not None:
            raise ValueError(
                f"--epochs-in-all does not go with --scheduler {self.name}, which ends once all "
                f"trials have; use --num-trials, or --scheduler {FreezeThaw.name}"
            )
        return None

    def freezes(self, epochs: int) -> list[int]:
        """Epochs after which it may lay a trial aside that another worker goes on with."""
        return []

    def make_searcher(self, plan: "Plan", ledger: "Study | None") -> "StudySearch":
        """What proposes settings, brought to where the study stands."""
        from tune.study import StudySearch

        return StudySearch(plan, ledger)

    def outlook(self, plan: "Plan") -> str:
        """What more epochs would likely bring, as far as it knows."""
        return ""

    def make(self, plan: "Plan", searcher: "StudySearch") -> "TrialScheduler":
        """Ray's scheduler, brought to where the study stands."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()


class Asha(Scheduler):
    """ASHA (Li et al. 2020, arXiv 1810.05934), as Ray does it: at each rung a trial goes on that
    scores as well as the best third of those before it."""

    name = "asha"
    several_objectives = False

    def rungs(self, epochs: int, grace_period: int) -> list[int]:
        rungs, rung = [], grace_period
        while rung < epochs:
            rungs.append(rung)
            rung *= REDUCTION_FACTOR
        return rungs

    def expected_epochs(self, plan: "Plan") -> float:
        """Epochs of a trial on average.

        Ray lets a trial go on from a rung if it scores at least the (interpolated) percentile 2/3
        of the n trials that were there before: the first always, and in no order each later one
        with probability (n + 2) / 3 (n + 1).
        """
        arrivals, trained, before = float(plan.num_trials), 0.0, 0
        for rung in [*plan.rungs, plan.epochs]:
            trained += arrivals * (rung - before)
            before = rung
            later = range(1, round(arrivals))
            arrivals = min(arrivals, 1) + sum((n + 2) / (3 * (n + 1)) for n in later)
        longer = TPE_LONGER if plan.sampler == "tpe" else 1
        return min(longer * trained / plan.num_trials, float(plan.epochs))

    def text(self, plan: "Plan") -> str:
        if not plan.rungs:
            return super().text(plan)
        rungs = ", ".join(map(str, plan.rungs))
        return f"after epoch {rungs} goes on what beats two thirds of the trials before it (ASHA)"

    def make(self, plan: "Plan", searcher: "StudySearch") -> "TrialScheduler":
        if not plan.rungs:
            return super().make(plan, searcher)
        from tune.asha import Halving

        return Halving(plan, searcher)


class FreezeThaw(Scheduler):
    """Freeze-thaw search (Swersky et al. 2014, arXiv 1406.3896), with new settings of its own."""

    name = "freeze-thaw"
    several_objectives = False
    sampler = "random"

    def expected_epochs(self, plan: "Plan") -> float:
        assert plan.epochs_in_all
        return plan.epochs_in_all / plan.num_trials

    def epochs_in_all(self, plan: "Plan", asked: int | None) -> int:
        """As many as asked for, else as ASHA would train with as many trials."""
        if asked is not None and asked < plan.epochs:
            raise ValueError(
                f"--epochs-in-all is {asked}; allowed is from the {plan.epochs} epochs of a trial "
                f"on, which one has to train"
            )
        asha = dataclasses.replace(plan, scheduler=SCHEDULERS[Asha.name])
        return asked or max(plan.epochs, round(plan.num_trials * asha.expected_epochs()))

    def freezes(self, epochs: int) -> list[int]:
        return list(range(1, epochs))

    def outlook(self, plan: "Plan") -> str:
        from tune.choice import outlook
        from tune.ledger import open_ledger

        return outlook(plan, open_ledger(plan.folder).get_trials())

    def text(self, plan: "Plan") -> str:
        return (
            f"none: step by step goes on what is likeliest to end best, running, frozen or new; "
            f"ends after {plan.epochs_in_all} epochs in all (freeze-thaw)"
        )

    def make_searcher(self, plan: "Plan", ledger: "Study | None") -> "StudySearch":
        from tune.freeze_thaw import FreezeThawSearch

        return FreezeThawSearch(plan, ledger)

    def make(self, plan: "Plan", searcher: "StudySearch") -> "TrialScheduler":
        from tune.freeze_thaw import FreezeThawSearch, Thawing

        assert isinstance(searcher, FreezeThawSearch)
        return Thawing(searcher)


SCHEDULERS: dict[str, Scheduler] = {one.name: one for one in (Asha(), Scheduler(), FreezeThaw())}


def default_grace_period(epochs: int) -> int:
    """A sixth of the epochs: from there on trials rank much as they do at the end (analysis.rungs,
    docs/log.md)."""
    return max(1, round(epochs / 6))
