"""Importances, on studies that Optuna itself wrote, of functions whose answer is known."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import optuna
import pytest

from analysis.importance import LEAST_TRIALS, importance
from dcgan.schema import STUDY_FILE

Values = float | tuple[float, ...]


def study(
    folder: Path,
    objective: Callable[[float, str], Values],
    trials: int,
    modes: Sequence[str] = ("min",),
) -> Path:
    """A search of x and a choice, and of one setting that never varied; its last trial was
    stopped."""
    folder.mkdir(exist_ok=True)
    names = ("fid", "classifier_score")[: len(modes)]
    goals = [{"column": name, "mode": mode} for name, mode in zip(names, modes, strict=True)]
    (folder / "search.json").write_text(json.dumps({"objectives": goals}))
    directions = ["minimize" if mode == "min" else "maximize" for mode in modes]
    made = optuna.create_study(
        storage=f"sqlite:///{folder / STUDY_FILE}",
        directions=directions,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )

    def run(trial: optuna.Trial) -> Values:
        trial.suggest_float("never", 1.0, 1.0)
        return objective(
            trial.suggest_float("x", 0, 1), trial.suggest_categorical("choice", ["a", "b"])
        )

    made.optimize(run, n_trials=trials)
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    return folder


def x_matters(x: float, choice: str) -> float:
    return 100 * x + (choice == "a")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("known"), x_matters, 60)


def test_what_matters_comes_first_and_shares_add_up(known: Path) -> None:
    table = importance(known)
    assert table.columns.to_list() == ["setting", "ped_anova", "fanova", "n"]
    assert table["setting"].to_list() == ["x", "choice", "never"]
    assert table["n"].to_list() == [60] * 3
    assert table["ped_anova"].sum() == pytest.approx(1)
    assert table["ped_anova"].iloc[0] > 0.8
    assert table["ped_anova"].iloc[2] == 0


@pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="fANOVA needs scikit-learn")
def test_fanova_finds_the_share_of_variance(known: Path) -> None:
    """Of 100 x + choice, x has the variance 10^4 / 12, the choice 1/4."""
    fanova = importance(known).set_index("setting")["fanova"]
    assert fanova.sum() == pytest.approx(1)
    assert fanova["x"] == pytest.approx(1, abs=0.02)
    assert importance(known).equals(importance(known))


def test_without_scikit_learn_fanova_is_missing(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    table = importance(known)
    assert table["fanova"].isna().all()
    assert table["ped_anova"].notna().all()


def test_each_objective_has_its_own_importances_whichever_way_it_goes(tmp_path: Path) -> None:
    """The score is the higher, the lower x is: as if its negative were to be low."""
    both = study(
        tmp_path / "both", lambda x, choice: (float(choice == "a"), -x), 60, ("min", "max")
    )
    negative = study(tmp_path / "negative", lambda x, choice: x, 60)
    expected = importance(negative).set_index("setting")["ped_anova"].to_dict()
    assert (
        importance(both, "classifier_score").set_index("setting")["ped_anova"].to_dict() == expected
    )
    assert importance(both).set_index("setting")["ped_anova"].to_dict() != expected


@pytest.mark.parametrize("trials", [0, 1, LEAST_TRIALS - 1, LEAST_TRIALS])
def test_too_few_finished_trials_have_no_importances(trials: int, tmp_path: Path) -> None:
    table = importance(study(tmp_path / "run", x_matters, trials))
    assert table["ped_anova"].isna().to_list() == [trials < LEAST_TRIALS] * len(table)
    assert set(table["n"]) <= {trials}


def test_a_uri_gives_what_the_folder_does_and_the_folder_stays_as_it_is(known: Path) -> None:
    before = (known / STUDY_FILE).read_bytes(), sorted(known.iterdir())
    fsspec.filesystem("memory").put(str(known), "/importance", recursive=True)
    assert importance("memory://importance").equals(importance(known))
    fsspec.filesystem("memory").rm("/importance", recursive=True)
    assert ((known / STUDY_FILE).read_bytes(), sorted(known.iterdir())) == before


def test_a_single_setting_has_no_settings_to_rank(tmp_path: Path) -> None:
    made = optuna.create_study(storage=f"sqlite:///{tmp_path / STUDY_FILE}")
    made.optimize(lambda trial: 1.0, n_trials=LEAST_TRIALS)
    assert importance(tmp_path).empty


def test_errors_name_the_run_and_what_is_allowed(known: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="metric is 'kid'; allowed: the objectives of the search, fid"
    ):
        importance(known, "kid")
    with pytest.raises(
        FileNotFoundError, match=f"no study at {tmp_path}: expected the folder of a search"
    ):
        importance(tmp_path)
    for content in ("no database", ""):
        (tmp_path / STUDY_FILE).write_text(content)
        with pytest.raises(ValueError, match=f"{tmp_path}/{STUDY_FILE} is damaged or locked"):
            importance(tmp_path)
        assert (tmp_path / STUDY_FILE).read_text() == content


def test_what_few_need_is_not_imported_until_it_is_needed() -> None:
    """In a new process, since this one has it already."""
    unwanted = {"optuna", "fsspec", "torch"}
    modules = "analysis.importance, analysis.tables"
    check = f"import sys, {modules}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[3], check=True)
