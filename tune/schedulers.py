"""What decides which trials go on: ASHA, nothing (FIFO), or population based training (PBT)."""

import math
import random
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pbt import _PBTTrialState

from tune.plan import REDUCTION_FACTOR, Plan
from tune.study import RETRY_OF, StudySearch

PERTURBATIONS = (1.25, 0.8)  # one step up or down on the log scale
RESAMPLE = 0.25  # probability of drawing a rate anew


def make_scheduler(plan: Plan, searcher: StudySearch, transfer: Callable[[int, int], None]) -> TrialScheduler:
    """The plan's scheduler, brought to where the study stands. `transfer` hands state from one trial to another (PBT)."""
    if plan.scheduler == "pbt":
        return Population(plan, searcher, transfer)
    return Halving(plan, searcher) if plan.rungs else FIFOScheduler()


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020, arXiv 1810.05934) whose rungs are those of the study, and which stops what is not finite."""

    def __init__(self, plan: Plan, searcher: StudySearch) -> None:
        super().__init__(
            time_attr="epoch",
            metric=plan.search.metric,
            mode=plan.search.mode,
            max_t=plan.epochs,
            grace_period=plan.grace_period,
            reduction_factor=REDUCTION_FACTOR,
        )
        self.objective = plan.search.metric
        self.searcher = searcher
        retried = {trial.user_attrs.get(RETRY_OF) for trial in searcher.past.values()}
        for number, trial in searcher.past.items():
            if trial.state.is_finished() and number not in retried:
                self._record(f"ended {number}", trial.intermediate_values)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if begun := self.searcher.past.get(self.searcher.numbers[trial.trial_id]):
            values = begun.intermediate_values
            # that it trained on shows what was decided at all epochs but the last
            self._record(trial.trial_id, {epoch: values[epoch] for epoch in values if epoch < max(values)})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not math.isfinite(result[self.objective]):
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _record(self, key: str, values: dict[int, float]) -> None:
        for rung, recorded in self._brackets[0]._rungs:
            if int(rung) in values:
                recorded.setdefault(key, -values[int(rung)])  # Ray maximises


class Population(PopulationBasedTraining):
    """PBT (Jaderberg et al. 2017, arXiv 1711.09846) of the learning rates, with all members in step.

    Every `grace_period` epochs the worst quarter of the population takes over the state of members of the best quarter,
    at their rates times 1.25 or 0.8, or, with probability 1/4, at rates drawn anew.

    Args:
        transfer: called with the numbers of donor and receiver while both stand still.
    """

    def __init__(self, plan: Plan, searcher: StudySearch, transfer: Callable[[int, int], None]) -> None:
        self.plan, self.searcher, self.transfer = plan, searcher, transfer
        self.rng = random.Random(plan.seed)
        super().__init__(
            time_attr="epoch",
            metric=plan.search.metric,
            mode=plan.search.mode,
            perturbation_interval=plan.grace_period,
            custom_explore_fn=self.explore,
            log_config=False,
            synch=True,
        )
        reached = max((trial.last_step or 0 for trial in searcher.past.values()), default=0)
        periods = max(1, math.ceil(reached / plan.grace_period))
        self._next_perturbation_sync: float = periods * plan.grace_period

    def explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """A donor's config at other rates, a step away on the log scale and within the search's range."""
        rates = {}
        for name, axis in self.plan.search.rates.items():
            low, high = axis.low, axis.high
            drawn = math.exp(self.rng.uniform(math.log(low), math.log(high)))
            stepped = config[name] * self.rng.choice(PERTURBATIONS)
            rates[name] = drawn if self.rng.random() < RESAMPLE else min(max(stepped, low), high)
        return config | rates | self.plan.search.tied(config | rates)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Takes a member in. (Ray's own refuses any searcher; ours only gives the first config.)"""
        if trial not in self._trial_state:
            state = self._trial_state[trial] = _PBTTrialState(trial)
            state.last_perturbation_time = int(self._next_perturbation_sync) - self.plan.grace_period

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result["epoch"] >= self.plan.epochs or not math.isfinite(result[self.plan.search.metric]):
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Goes on without a member that is given up: the others may be waiting for it alone, and Ray would wait for ever."""
        if trial.should_recover():
            return
        lost = self._trial_state[trial]
        lost.last_score, lost.last_train_time = None, int(self._next_perturbation_sync)
        for other in tune_controller.get_live_trials():
            state = self._trial_state[other]
            if other is not trial and state.last_result and state.last_train_time >= self._next_perturbation_sync:
                self.on_trial_result(tune_controller, other, state.last_result)
                return

    def _checkpoint_or_exploit(self, trial: Trial, tune_controller: Any, upper: list[Trial], lower: list[Trial]) -> None:
        if trial not in lower:
            return
        donor = self.rng.choice(upper)
        if trial.status != Trial.PAUSED:
            tune_controller.pause_trial(trial, should_checkpoint=False)
        self.transfer(self.searcher.numbers[donor.trial_id], self.searcher.numbers[trial.trial_id])
        trial.set_config(self.explore(donor.config))
        self._num_perturbations += 1
