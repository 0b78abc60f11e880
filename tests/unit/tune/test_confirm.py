"""The confirm stage: which settings, on which seeds, and once decided, for good."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dcgan.config import TrainConfig
from dcgan.schema import SEARCH_FILE
from dcgan.store import Mirror, Store
from tune.confirm import candidates, confirm_plan
from tune.ledger import open_ledger, retry_failed, take_over_folders
from tune.options import from_flags, make_parser
from tune.plan import Plan, Site
from tune.plan import make_plan as plan_of
from tune.schedulers import SCHEDULERS
from tune.study import StudySearch

BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}
EPOCHS = 9


def make_plan(tmp_path: Path, text: str = "", **changes: Any) -> Plan:
    """The plan of a command line, in an empty folder."""
    words = ["--search", "hparams", "--preset", "demo", *shlex.split(text)]
    options = from_flags(make_parser(), words)
    site = Site(
        store=Store(tmp_path / "run"),
        device="cpu",
        precisions=("float32", "bfloat16"),
        cpus=2,
        gpus=0,
    )
    plan = dataclasses.replace(plan_of(options, site), **changes)
    plan.folder.mkdir()
    return plan


def stage_of(plan: Plan, top: int, count: int, record: dict[str, Any]) -> Plan:
    """The confirm stage of so many settings and seeds."""
    return confirm_plan(dataclasses.replace(plan, confirm=top, confirm_seeds=count), record)


def search(plan: Plan, scores: str) -> list[dict[str, Any]]:
    """Runs a search whose trials score so: `5` finished, `5p` was stopped, `5f` failed after
    scoring that, `f` before; returns the settings tried."""
    searcher = StudySearch(plan, open_ledger(plan.folder, plan.objectives))
    for i, text in enumerate(scores.split()):
        trial_id = str(i)
        searcher.suggest(trial_id)
        score = float(text.strip("pf") or "nan")
        columns = dict.fromkeys(plan.objectives, 1.0)
        if text != "f":
            searcher.on_trial_result(trial_id, {**columns, "epoch": 1, "fid": score})
        if "f" in text:
            searcher.fail(trial_id)
        else:
            searcher.on_trial_complete(
                trial_id, {**columns, "epoch": 2 if "p" in text else EPOCHS, "fid": score + 1}
            )
    return [trial.params for trial in open_ledger(plan.folder).get_trials()]


@pytest.mark.parametrize(
    ("scores", "top", "expected"),
    [
        ("9 5 7 6", 2, [(1, 5), (3, 6), (0, 9)]),
        ("9 5 7 6", 1, [(1, 5), (0, 9)]),
        ("9 5 7 6", 9, [(1, 5), (3, 6), (2, 7), (0, 9)]),
        (
            "6 5 7 8",
            2,
            [(1, 5), (0, 6)],
        ),  # the baseline is among the best: it stands last, and once
        ("4 5 7 8", 1, [(0, 4)]),
        ("4 5 7 8", 3, [(1, 5), (2, 7), (0, 4)]),
        ("9 5p 7 1f", 3, [(2, 7), (0, 9)]),  # what was stopped early or failed is no candidate
        (
            "9p 5 7",
            2,
            [(1, 5), (2, 7), (0, None)],
        ),  # but the baseline always is, if with no estimate
        ("9f 5 7", 2, [(1, 5), (2, 7), (0, None)]),
        ("f 5 7", 2, [(1, 5), (2, 7), (0, None)]),
        ("9 f f", 3, [(0, 9)]),
        ("9p 5p", 3, [(0, None)]),
    ],
)
def test_candidates(
    scores: str, top: int, expected: list[tuple[int, float | None]], tmp_path: Path
) -> None:
    plan = make_plan(tmp_path)
    tried = search(plan, scores)
    found = candidates(plan, top)
    assert [(candidate["trial"], candidate["estimate"]) for candidate in found] == [
        (f"trial_{number:04d}", estimate) for number, estimate in expected
    ]
    assert [candidate["point"] for candidate in found] == [tried[number] for number, _ in expected]
    assert [candidate["baseline"] for candidate in found] == [False] * (len(found) - 1) + [True]


def test_a_baseline_that_was_never_tried_is_a_candidate(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path, "--sampler grid"
    )  # the original study's grid leaves its own baseline out
    tried = search(plan, "5 4 3")
    assert BASELINE not in tried
    found = candidates(plan, 2)
    assert [candidate["point"] for candidate in found] == [tried[2], tried[1], BASELINE]
    assert found[-1] == {"trial": None, "estimate": None, "point": BASELINE, "baseline": True}


def test_a_baseline_outside_the_grid_is_confirmed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--sampler grid")
    search(plan, "5 4 3")
    stage = stage_of(plan, 1, 1, {})
    searcher = StudySearch(stage, open_ledger(stage.folder, stage.objectives))
    rates = [searcher.suggest(str(k))["generator_lr"] for k in range(2)]
    assert rates == [1e-4, 2e-4]


def test_candidates_of_several_objectives_are_the_best_by_the_first(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--objectives fid,seconds_train")
    search(plan, "9 5 7")
    assert [candidate["trial"] for candidate in candidates(plan, 1)] == ["trial_0001", "trial_0000"]


def test_a_baseline_that_was_retried_is_the_retry(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--num-trials 2")
    search(plan, "50f 5")
    for number in (0, 1):
        plan.trial_folder(number).mkdir()
    assert retry_failed(plan) == 1
    study = open_ledger(plan.folder)
    take_over_folders(plan, study)
    searcher = StudySearch(plan, study)
    searcher.suggest("again")
    searcher.on_trial_complete("again", {"epoch": EPOCHS, "fid": 7.0})
    last = candidates(plan, 1)[-1]
    assert (last["trial"], last["estimate"], last["point"]) == ("trial_0002", 7.0, BASELINE)
    assert (plan.folder / last["trial"]).is_dir()


@pytest.mark.parametrize(
    ("text", "count", "seeds"),
    [
        ("", 2, [1, 2]),
        ("--seed 5", 3, [6, 7, 8]),
        ("--replicas 4", 2, [4, 5]),
        ("--seed 5 --replicas 3", 1, [8]),
    ],
)
def test_the_seeds_are_fresh(text: str, count: int, seeds: list[int], tmp_path: Path) -> None:
    plan = make_plan(tmp_path, text)
    search(plan, "9 5 7")
    stage = stage_of(plan, 1, count, {})
    assert json.loads((stage.folder / SEARCH_FILE).read_text())["seeds"] == seeds
    used = range(plan.search.base.seed, plan.search.base.seed + plan.replicas)
    assert not set(seeds) & set(used)
    assert [point["seed"] for point in stage.points] == seeds * 2
    assert (stage.replicas, stage.scheduler, stage.rungs) == (1, SCHEDULERS["fifo"], [])


def test_the_stage_trains_each_candidate_on_each_seed_to_the_end(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--replicas 2 --objectives fid,kid")
    tried = search(plan, "9 5 7 6")
    stage = stage_of(plan, 2, 3, {"search": "hparams", "metric": "fid"})
    assert (stage.folder, stage.num_trials) == (plan.folder / "confirm", 9)
    assert (stage.scheduler, stage.objectives) == (SCHEDULERS["fifo"], ("fid",))
    assert (stage.rungs, stage.epochs, stage.slots) == ([], plan.epochs, plan.slots)
    written = json.loads((stage.folder / SEARCH_FILE).read_text())
    assert (written["search"], written["metric"], written["top"]) == ("hparams", "fid", 2)
    assert written["candidates"] == candidates(plan, 2)
    assert [path.name for path in stage.folder.iterdir()] == [SEARCH_FILE]

    settings = [tried[1], tried[3], BASELINE]
    for k in range(9):  # a session each
        searcher = StudySearch(stage, open_ledger(stage.folder, stage.objectives))
        assert searcher.remaining == 9 - k
        config = searcher.suggest("trial")
        assert searcher.numbers == {"trial": k}
        assert config == plan.search.complete(settings[k // 3]) | {"seed": [2, 3, 4][k % 3]}
        TrainConfig.from_dict(config)
        searcher.on_trial_complete("trial", {"epoch": EPOCHS, "fid": 1.0})
    assert StudySearch(stage, open_ledger(stage.folder)).remaining == 0
    assert candidates(plan, 2) == written["candidates"]  # the search's own study is as it was


@pytest.mark.parametrize(("name", "runs"), [("baseline", 2), ("precision", 4)])
def test_other_searches_are_confirmed_too(name: str, runs: int, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, f"--search {name}")
    search(plan, "9 8" if name == "precision" else "9")
    stage = stage_of(plan, 1, 2, {})
    searcher = StudySearch(stage, open_ledger(stage.folder, stage.objectives))
    seeds = [(searcher.suggest(str(k)) or {})["seed"] for k in range(stage.num_trials)]
    assert seeds == [1, 2] * (runs // 2)


def test_a_stage_once_begun_is_gone_on_with(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--num-trials 4")
    search(plan, "9 5 7")
    first = stage_of(plan, 2, 2, {"device": "here"})
    before = (first.folder / SEARCH_FILE).read_bytes()
    again = stage_of(plan, 2, 2, {"device": "elsewhere"})
    assert (again.points, again.search, again.folder) == (first.points, first.search, first.folder)
    assert (first.folder / SEARCH_FILE).read_bytes() == before


def test_a_stage_of_other_settings_or_seeds_is_put_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, "--num-trials 4")
    search(plan, "9 5 7")
    first = stage_of(plan, 2, 2, {})
    (first.folder / "trial_0000").mkdir()
    before = (first.folder / SEARCH_FILE).read_bytes()
    searcher = StudySearch(plan, open_ledger(plan.folder))
    searcher.suggest("late")
    searcher.on_trial_complete("late", {"epoch": EPOCHS, "fid": 1.0})  # better than all
    again = stage_of(plan, 2, 2, {})
    assert again.points != first.points
    assert again.folder == first.folder
    assert list(again.folder.iterdir()) == [again.folder / SEARCH_FILE]
    aside = first.folder.with_name("confirm-1")
    assert (aside / SEARCH_FILE).read_bytes() == before
    assert (aside / "trial_0000").is_dir()
    assert capsys.readouterr().out.strip().endswith("is now confirm-1")
    for number, (top, count) in enumerate(((1, 2), (2, 3), (3, 3)), start=2):
        stage = stage_of(plan, top, count, {})
        assert first.folder.with_name(f"confirm-{number}").is_dir()
        assert len(stage.points) == (top + 1) * count


def test_in_a_storage_a_stage_is_put_aside_there(tmp_path: Path) -> None:
    """So that a machine that has nothing of it finds both."""
    plan = make_plan(tmp_path, "--num-trials 4")
    mounted = tmp_path / "mounted" / "s"
    plan = dataclasses.replace(plan, store=Mirror(tmp_path / "copy", str(mounted)))
    plan.folder.mkdir()
    plan.store.begin()
    search(plan, "9 5 7")
    plan.store.put()
    first = stage_of(plan, 2, 2, {})
    (first.folder / "trial_0000").mkdir()
    (first.folder / "trial_0000" / "result.json").write_text("rows")
    first.store.put()
    before = (mounted / "confirm" / SEARCH_FILE).read_bytes()
    again = stage_of(plan, 1, 3, {})
    again.store.put()
    assert (mounted / "confirm-1" / SEARCH_FILE).read_bytes() == before
    assert (mounted / "confirm-1" / "trial_0000" / "result.json").read_text() == "rows"
    assert [path.name for path in (mounted / "confirm").iterdir()] == [SEARCH_FILE]
    assert json.loads((mounted / "confirm" / SEARCH_FILE).read_text())["top"] == 1
    elsewhere = Mirror(tmp_path / "another machine", str(mounted))
    elsewhere.begin()
    assert {path.name for path in elsewhere.folder.glob("confirm*")} >= {"confirm", "confirm-1"}


def test_a_search_without_a_study_cannot_be_confirmed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study at"):
        stage_of(make_plan(tmp_path), 1, 2, {})
