"""Importances, on studies that Optuna itself wrote, of functions whose answer is known."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import optuna
import pandas as pd
import pytest
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from analysis import importance as command
from analysis.importance import LEAST_TRIALS, importance
from dcgan.schema import STUDY_FILE

Values = float | tuple[float, ...]


def study(
    folder: Path,
    objective: Callable[[float, str], Values],
    trials: int,
    modes: Sequence[str] = ("min",),
) -> Path:
    """A search of x and a choice, and of one setting that never varied; its last trial failed."""
    folder.mkdir(exist_ok=True)
    names = ("fid", "classifier_score")[: len(modes)]
    goals = [{"column": name, "mode": mode} for name, mode in zip(names, modes, strict=True)]
    (folder / "search.json").write_text(json.dumps({"objectives": goals}))
    directions = ["minimize" if mode == "min" else "maximize" for mode in modes]
    sampler = optuna.samplers.RandomSampler(seed=0)
    made = optuna.create_study(directions=directions, sampler=sampler)

    def run(trial: optuna.Trial) -> Values:
        trial.suggest_float("never", 1.0, 1.0)
        x, choice = trial.suggest_float("x", 0, 1), trial.suggest_categorical("choice", ["a", "b"])
        return objective(x, choice)

    made.optimize(run, n_trials=trials)
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    storage = f"sqlite:///{folder / STUDY_FILE}"  # at once, as every trial is synced to disk
    optuna.create_study(storage=storage, directions=directions).add_trials(made.trials)
    return folder


def x_matters(x: float, choice: str) -> float:
    return 100 * x + (choice == "a")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("known"), x_matters, 60)


def optunas(run: Path, index: int, sign: int) -> dict[str, float]:
    """Optuna's own importances of one objective, of which less is better once it has the sign."""
    return get_param_importances(
        optuna.load_study(study_name=None, storage=f"sqlite:///{run / STUDY_FILE}"),
        evaluator=PedAnovaImportanceEvaluator(),
        target=lambda trial: sign * trial.values[index],
    )


def shares(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["setting"], table["importance"], strict=True))


def test_what_matters_comes_first_with_its_spread(known: Path) -> None:
    table = importance(known)
    assert table.columns.to_list() == ["setting", "importance", "low", "high", "n"]
    assert table["setting"].to_list() == ["x", "choice", "never"]
    assert table["n"].to_list() == [60] * 3
    assert table["importance"].sum() == pytest.approx(1)
    assert table["importance"].iloc[0] > 0.8
    assert table["low"].iloc[0] > table["high"].iloc[1]
    assert table.loc[2, ["importance", "low", "high"]].to_list() == [0, 0, 0]
    assert (table["low"] <= table["importance"]).all()
    assert (table["importance"] <= table["high"]).all()
    assert importance(known).equals(table)


@pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator computes .* low `target` values")
def test_importances_are_optunas_own_whichever_way_an_objective_goes(
    known: Path, tmp_path: Path
) -> None:
    assert shares(importance(known)) == pytest.approx(optunas(known, 0, 1))
    both = study(
        tmp_path / "both", lambda x, choice: (float(choice == "a"), -x), 60, ("min", "max")
    )
    assert shares(importance(both)) == pytest.approx(optunas(both, 0, 1))
    score = importance(both, "classifier_score")
    assert shares(score) == pytest.approx(optunas(both, 1, -1))
    assert [importance(both)["setting"][0], score["setting"][0]] == ["choice", "x"]


@pytest.mark.parametrize("trials", [0, LEAST_TRIALS - 1, LEAST_TRIALS])
def test_too_few_finished_trials_have_no_importances(trials: int, tmp_path: Path) -> None:
    table = importance(study(tmp_path / "run", x_matters, trials))
    few = trials < LEAST_TRIALS
    assert table[["importance", "low", "high"]].isna().to_numpy().tolist() == [[few] * 3] * len(
        table
    )
    assert len(table) == (3 if trials else 0)
    assert set(table["n"]) <= {trials}


def test_a_uri_gives_what_the_folder_does_and_the_folder_stays_as_it_is(known: Path) -> None:
    before = (known / STUDY_FILE).read_bytes(), sorted(known.iterdir())
    fsspec.filesystem("memory").put(str(known), "/importance", recursive=True)
    assert importance("memory://importance").equals(importance(known))
    fsspec.filesystem("memory").rm("/importance", recursive=True)
    assert ((known / STUDY_FILE).read_bytes(), sorted(known.iterdir())) == before


def test_a_study_without_settings_has_none_to_rank(tmp_path: Path) -> None:
    made = optuna.create_study(storage=f"sqlite:///{tmp_path / STUDY_FILE}")
    made.add_trials([optuna.trial.create_trial(value=1.0)] * LEAST_TRIALS)
    assert importance(tmp_path).empty


def test_json_holds_the_numbers_that_are_printed(known: Path, printed: Callable[..., str]) -> None:
    lines = printed(command.main, known).splitlines()[2:5]
    data = json.loads(printed(command.main, known, "--json"))
    assert [row["importance"] for row in data] == pytest.approx(importance(known)["importance"])
    for row, line in zip(data, lines, strict=True):
        setting, *numbers = line.split()
        assert setting == row.pop("setting")
        assert [float(number) for number in numbers] == [round(row[name], 2) for name in row]


def test_too_few_trials_are_counted(tmp_path: Path, printed: Callable[..., str]) -> None:
    run = study(tmp_path / "run", x_matters, 4)
    text = printed(command.main, run)
    assert text == f"4 finished trials; importances need at least {LEAST_TRIALS}\n"
    data = json.loads(printed(command.main, run, "--json"))
    assert [(row["importance"], row["low"], row["n"]) for row in data] == [(None, None, 4)] * 3


def test_errors_name_the_run_and_what_is_allowed(known: Path, tmp_path: Path) -> None:
    message = "metric is 'kid'; allowed: the objectives of the search, fid"
    with pytest.raises(ValueError, match=message):
        importance(known, "kid")
    message = f"no study at {tmp_path}: expected the folder of a search"
    with pytest.raises(FileNotFoundError, match=message):
        importance(tmp_path)
    for content in ("no database", ""):
        (tmp_path / STUDY_FILE).write_text(content)
        with pytest.raises(ValueError, match=f"{tmp_path}/{STUDY_FILE} is damaged or locked"):
            importance(tmp_path)
        assert (tmp_path / STUDY_FILE).read_text() == content


def test_what_few_need_is_not_imported_until_it_is_needed() -> None:
    """In a new process, since this one has it already."""
    unwanted = {"optuna", "fsspec", "torch", "ray"}
    modules = "analysis.importance, analysis.tables, analysis.confirm, analysis.rungs"
    check = f"import sys, {modules}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[3], check=True)
