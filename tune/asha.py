"""Ray's ASHA, with the rungs of the study. They are private members: `_brackets` and `_rungs` are
touched in this file alone."""

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from dcgan.files import read_rows
from dcgan.schema import ERROR_FILE, METRIC, OBJECTIVES, ROWS_FILE
from tune.ledger import RETRY_OF
from tune.plan import Plan
from tune.schedulers import REDUCTION_FACTOR
from tune.study import StudySearch


class Halving(ASHAScheduler):
    """ASHA (arXiv 1810.05934) with the study's rungs, which stops what is not finite."""

    def __init__(self, plan: Plan, searcher: StudySearch) -> None:
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode=OBJECTIVES[METRIC],
            max_t=plan.epochs,
            grace_period=plan.grace_period,
            reduction_factor=REDUCTION_FACTOR,
        )
        self.searcher = searcher
        retried = {trial.user_attrs.get(RETRY_OF) for trial in searcher.past.values()}
        for number, trial in searcher.past.items():
            if trial.state.is_finished() and number not in retried:
                self._record(f"ended {number}", trial.intermediate_values)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        number = self.searcher.numbers[trial.trial_id]
        begun = self.searcher.past.get(number)
        if begun:
            # that it trained on shows what was decided at all epochs but the last
            values = begun.intermediate_values
            last = max([*values, self._last_row(number)])
            if (self.searcher.plan.trial_folder(number) / ERROR_FILE).exists():
                last += 1  # it went on from its last epoch, too, and fails at once now
            decided = {epoch: value for epoch, value in values.items() if epoch < last}
            self._record(trial.trial_id, decided)

    def _last_row(self, number: int) -> int:
        """The last epoch in a trial's folder. The ledger may not know it: a driver can die after it
        decided that the trial goes on, and before the next epoch is reported."""
        try:
            rows = read_rows(self.searcher.plan.trial_folder(number) / ROWS_FILE)
        except ValueError:  # damaged: the trial will write it anew, from its checkpoint
            return 0
        return max((row["epoch"] for row in rows), default=0)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not math.isfinite(result[METRIC]):
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _record(self, key: str, values: dict[int, float]) -> None:
        for rung, recorded in self._brackets[0]._rungs:
            if int(rung) in values:
                recorded.setdefault(key, -values[int(rung)])  # Ray maximises
