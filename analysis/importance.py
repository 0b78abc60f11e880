"""Which settings mattered? Importances by Optuna's evaluators, of the finished trials of a
search."""

import importlib.util
import math
import sqlite3
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.load import local, read_search
from dcgan.schema import METRIC, STUDY_FILE

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator
    from optuna.study import Study

LEAST_TRIALS = 11
"""With fewer, the best tenth, which PED-ANOVA compares with all, is a single trial."""


def importance(run: str | Path, metric: str = METRIC) -> pd.DataFrame:
    """One row per searched setting, the most important first.

    Args:
        run: a search's folder, or its URI (see `analysis.load.load_trials`).
        metric: an objective of the search.

    Columns: `setting`; `ped_anova`, how much its distribution among the best tenth differs from
    that among all (Watanabe et al. 2023, arXiv 2304.10255); `fanova`, its share of the variance
    that a random forest finds (Hutter et al. 2014), missing without scikit-learn; `n` finished
    trials. Each adds up to 1, and is missing where n < `LEAST_TRIALS`. Stopped trials are not
    counted: this is of what the scheduler let pass.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: the study is damaged, or the metric is none of its objectives.
    """
    with local(run) as folder:
        if not (folder / STUDY_FILE).is_file():
            raise FileNotFoundError(
                f"no study at {run}: expected the folder of a search, with {STUDY_FILE} in it"
            )
        goals = read_search(folder).get("objectives") or [{"column": METRIC, "mode": "min"}]
        names = [goal["column"] for goal in goals]
        if metric not in names:
            raise ValueError(
                f"metric is {metric!r}; allowed: the objectives of the search, {', '.join(names)}"
            )
        index = names.index(metric)
        try:
            study = read_study(folder / STUDY_FILE)
        except Exception as error:  # SQLAlchemy's, by way of Optuna, of many classes
            raise ValueError(f"{run}/{STUDY_FILE} is damaged or locked: {error!r}") from error
        return _importances(study, index, -1 if goals[index]["mode"] == "max" else 1)


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


def _importances(study: "Study", index: int, sign: int) -> pd.DataFrame:
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    evaluators: dict[str, BaseImportanceEvaluator] = {"ped_anova": PedAnovaImportanceEvaluator()}
    if importlib.util.find_spec("sklearn"):
        evaluators["fanova"] = FanovaImportanceEvaluator(seed=0)
    trials = study.get_trials(deepcopy=False)
    settings = sorted({name for trial in trials for name in trial.params})
    n = sum(trial.state.name == "COMPLETE" for trial in trials)
    table = pd.DataFrame({"setting": settings, "ped_anova": math.nan, "fanova": math.nan, "n": n})
    for name, evaluator in evaluators.items() if n >= LEAST_TRIALS and settings else ():
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "PedAnovaImportanceEvaluator computes"
            )  # for low values, which are meant
            found = get_param_importances(
                study, evaluator=evaluator, target=lambda trial: sign * trial.values[index]
            )
        table[name] = table["setting"].map(found).astype(float)
    return table.sort_values("ped_anova", ascending=False, kind="stable", ignore_index=True)
