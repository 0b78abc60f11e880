"""Which settings mattered? Importances by Optuna's PED-ANOVA, of a search's finished trials."""

import argparse
import math
import sqlite3
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import cli
from analysis.load import local, read_search
from analysis.tables import goals_of
from dcgan.schema import METRIC, STUDY_FILE

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

LEAST_TRIALS = 30
"""With fewer finished trials, chance puts the wrong setting first too often: of five settings, the
only one that mattered came first in 28 % of searches of 11 trials (docs/log.md)."""
RESAMPLES = 40


def importance(run: str | Path, metric: str = METRIC) -> pd.DataFrame:
    """One row per searched setting, the most important first.

    Args:
        run: a search's folder, or its URI (see `analysis.load.load_trials`).
        metric: an objective of the search.

    Columns: `setting`; `importance`, how much the setting's distribution among the best tenth
    differs from that among all (PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255; adds up to 1),
    with `low` and `high`, between which lie 95 % of resamples of the trials; `n` finished trials.
    Importances are missing where n < `LEAST_TRIALS`. Stopped trials are not counted: this is of
    what the scheduler let pass.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: the study is damaged, or the metric is none of its objectives.
    """
    with local(run) as folder:
        if not (folder / STUDY_FILE).is_file():
            raise FileNotFoundError(
                f"no study at {run}: expected the folder of a search, with {STUDY_FILE} in it"
            )
        goals = goals_of(read_search(folder))
        columns = [column for column, _ in goals]
        if metric not in columns:
            raise ValueError(
                f"metric is {metric!r}; allowed: the objectives of the search, {', '.join(columns)}"
            )
        index = columns.index(metric)
        try:
            study = read_study(folder / STUDY_FILE)
        except Exception as error:  # SQLAlchemy's, by way of Optuna, of many classes
            raise ValueError(f"{run}/{STUDY_FILE} is damaged or locked: {error!r}") from error
        trials = study.get_trials(deepcopy=False)
    settings = sorted({name for trial in trials for name in trial.params})
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    table = pd.DataFrame({"setting": settings, "importance": math.nan})
    table = table.assign(low=math.nan, high=math.nan, n=len(finished))
    if len(finished) < LEAST_TRIALS or not settings:
        return table
    sign = -1 if goals[index][1] == "max" else 1
    values = [sign * trial.values[index] for trial in finished]
    table["importance"] = table["setting"].map(ped_anova(finished, values))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        picked = rng.integers(len(finished), size=len(finished))
        drawn.append(ped_anova([finished[i] for i in picked], [values[i] for i in picked]))
    ends = pd.DataFrame(drawn).quantile([0.025, 0.975])
    table["low"], table["high"] = (table["setting"].map(ends.loc[end]) for end in ends.index)
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def read_study(path: Path) -> "Study":
    """Optuna's study in a file, which is not written to.

    Raises:
        Exception: of many classes, SQLAlchemy's by way of Optuna: the file is damaged or locked.
    """
    import optuna  # only here: it takes a second, which other tables need not wait for

    connect = partial(sqlite3.connect, f"{path.absolute().as_uri()}?mode=ro", uri=True)
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect})
    study = optuna.study.Study(storage.get_all_studies()[0].study_name, storage)
    study.get_trials(deepcopy=False)  # damage shows on reading
    return study


def ped_anova(trials: list["FrozenTrial"], values: list[float]) -> dict[str, float]:
    """PED-ANOVA's importances of trials with these values, of which less is better."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for trial, value in zip(trials, values, strict=True):
        distributions = trial.distributions
        study.add_trial(create_trial(value=value, params=trial.params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a range has few trials, which the spread shows
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    optuna.logging.set_verbosity(level)
    return found


def main() -> None:
    cli.run_on_search("importance", "Print how much each searched setting mattered.", show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    table = importance(args.run)
    if table["importance"].isna().all():
        n = int(table["n"].max()) if len(table) else 0
        text = f"{n} finished trials; importances need at least {LEAST_TRIALS}"
        return text, cli.records(table)
    text = table.round(2).to_markdown(index=False, tablefmt="simple")
    return f"{text}\n\n95 % of resamples of the trials lie between low and high.", cli.records(
        table
    )


if __name__ == "__main__":
    main()
