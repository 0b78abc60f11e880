"""Simulated searches: the searcher and the schedulers over recorded curves, killed at every step
and gone on with."""

import dataclasses
import itertools
import json
import lzma
import math
import random
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.stats import ttest_1samp
from sqlalchemy import Engine, event

from dcgan.config import TrainConfig, replicate, write_lanes
from dcgan.files import write_rows
from dcgan.schema import Row
from tune import simulate as module
from tune.curves import Curves, recorded_rows, write_curves
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.simulate import METHODS, make_plan, mean_text, median_interval, outcome, ratio_text
from tune.simulation import Simulation, simulate

EPOCHS = 9
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def recording(fid: Callable[[int, int], float], **changes: Any) -> Iterator[Row]:
    """Curves of an hparams search: `fid(setting, epoch)`, slow at a small batch."""
    settings = itertools.product(RATES, (64, 128), ("adam", "rmsprop"))
    for seed, (number, (lr, batch, optimizer)) in itertools.product((0, 1), enumerate(settings)):
        setting = {"generator_lr": lr, "batch_size": batch, "optimizer": optimizer}
        for epoch in range(1, EPOCHS + 1):
            row = {
                "search": "hparams",
                "settings": setting,
                "seed": seed,
                "epoch": epoch,
                "fid": fid(number, epoch) + seed,
                "collapsed": False,
                "seconds_train": 64.0 / batch,
                "seconds_eval": 0.25,
            }
            yield row | changes


def falling(number: int, epoch: int) -> float:
    """Curves that fall towards levels in no order, and cross; most are worse at last."""
    level = 10.0 + (number * 7) % 16 + (number % 3 if epoch == EPOCHS else 0)
    return level + (40.0 + 3 * ((number * 5) % 16)) / epoch


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    return make_curves(tmp_path, recording(falling))


def make_curves(tmp_path: Path, rows: Iterator[Row] | list[Row]) -> Curves:
    write_curves(rows, tmp_path / "curves.csv.xz")
    return Curves(tmp_path / "curves.csv.xz", "hparams")


@pytest.fixture
def ill(tmp_path: Path) -> Curves:
    """Curves of which some diverge in their second epoch, and some are collapsed, and no better,
    from then on."""
    rows = []
    for row in recording(falling):
        lr, batch, optimizer = row["settings"].values()
        if (lr, optimizer) == (3e-3, "adam") and row["epoch"] >= 2:
            if row["epoch"] == 2:
                rows.append(
                    {name: row[name] for name in ("search", "settings", "seed", "epoch")}
                    | {"error": "not finite"}
                )
        elif (batch, optimizer) == (64, "rmsprop") and row["epoch"] >= 2:
            rows.append(row | {"collapsed": True, "fid": 150.0})
        else:
            rows.append(row)
    return make_curves(tmp_path, rows)


def plan_of(
    curves: Curves,
    method: str,
    num_trials: int = 7,
    grace_period: int = 2,
    workers: int = 1,
    seed: int = 0,
) -> Plan:
    return make_plan(curves.search("hparams"), method, seed, num_trials, grace_period, workers)


def story(study: optuna.Study) -> list[Any]:
    """All that the study says of its trials, but for times."""
    return [
        (t.number, t.params, t.intermediate_values, t.state, t.values) for t in study.get_trials()
    ]


def ledger_in(folder: Path) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    return open_ledger(folder, ("fid",))


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    """SQLite that does not wait for the disk: thousands of transactions in a second."""

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


# The recording


def test_a_table_keeps_what_was_recorded(curves: Curves) -> None:
    assert curves.seeds == [0, 1]
    assert curves.epochs == EPOCHS
    assert len(curves.settings) == 16
    assert curves.settings[3] == {"generator_lr": 1e-4, "batch_size": 128, "optimizer": "rmsprop"}
    fid = pytest.approx(falling(3, 5) + 1, rel=1e-5)
    assert curves.rows[3, 1][4] == {
        "epoch": 5,
        "fid": fid,
        "collapsed": 0,
        "seconds_train": 0.5,
        "seconds_eval": 0.25,
    }
    assert curves.best(0) == pytest.approx(
        min(falling(number, epoch) for number in range(16) for epoch in range(1, EPOCHS + 1)),
        rel=1e-5,
    )
    assert curves.best(1) == pytest.approx(curves.best(0) + 1, rel=1e-5)


def test_the_search_is_over_what_was_recorded(curves: Curves) -> None:
    axes = curves.search("hparams").axes
    assert axes["batch_size"].choices == (64, 128)  # type: ignore[attr-defined]  # no 256
    assert axes["generator_lr"].low == 5e-5  # type: ignore[attr-defined]
    assert curves.search("hparams").base.epochs == EPOCHS


@pytest.mark.parametrize(
    ("lr", "batch", "optimizer", "found"),
    [
        (3e-4, 64, "adam", (3e-4, 64, "adam")),
        (1.7e-4, 64, "adam", (1e-4, 64, "adam")),  # nearer by ratio, though not by difference
        (1.8e-4, 64, "adam", (3e-4, 64, "adam")),
        (1e-9, 128, "rmsprop", (1e-4, 128, "rmsprop")),
        (1e-3, 256, "rmsprop", (1e-3, 64, "rmsprop")),  # no such batch: one mismatch, not two
    ],
)
def test_a_setting_gets_the_nearest_recorded_curve(
    lr: float, batch: int, optimizer: str, found: tuple[Any, ...], curves: Curves
) -> None:
    rows = curves.nearest(
        {"generator_lr": lr, "batch_size": batch, "optimizer": optimizer, "epochs": 1}, seed=1
    )
    number = next(
        number for number, setting in curves.settings.items() if tuple(setting.values()) == found
    )
    assert rows is curves.rows[number, 1]


def test_only_settings_recorded_with_the_seed_count(tmp_path: Path) -> None:
    rows = [
        row
        for row in recording(falling)
        if row["seed"] == 0 or row["settings"]["generator_lr"] == 3e-3
    ]
    curves = make_curves(tmp_path, rows)
    asked = {"generator_lr": 1e-4, "batch_size": 64, "optimizer": "adam"}
    assert curves.nearest(asked, 0) is curves.rows[0, 0]
    assert curves.nearest(asked, 1) is curves.rows[12, 1]


def test_numbers_are_short_but_learning_rates_exact(tmp_path: Path) -> None:
    row = next(recording(falling)) | {
        "fid": 12.3456789,
        "settings": {"generator_lr": 0.00012345678901234, "batch_size": 64},
    }
    write_curves([row], tmp_path / "out.xz")
    header, line = lzma.decompress((tmp_path / "out.xz").read_bytes()).decode().splitlines()
    assert header == (
        "search,config,seed,generator_lr,batch_size,epoch,fid,collapsed,seconds_train,seconds_eval,error"
    )
    assert line == "hparams,0,0,0.00012345678901234,64,1,12.3457,0,1,0.25,"


def search_folder(run: Path, scheduler: str = "fifo") -> Path:
    """A search's folder as `tune.run` leaves it: two trials of two seeds, of which the second
    diverged."""
    run.mkdir()
    record = {"search": "hparams", "axes": {"batch_size": {}}, "scheduler": scheduler}
    (run / "search.json").write_text(json.dumps(record))
    for number, batch in enumerate((64, 128)):
        trial = run / f"trial_{number:04d}"
        trial.mkdir()
        lanes = replicate(TrainConfig(batch_size=batch, epochs=2, seed=3), 2)
        write_lanes(trial / "params.json", lanes)
        cost = {"seconds_train": 1.5, "seconds_eval": 0.5}
        rows = [
            {"lane": lane, "epoch": epoch, "fid": fid, "collapsed": lane == 0, **cost}
            for epoch in range(1, 3 - number)
            for lane, fid in enumerate((4.0, 6.0))
        ]
        write_rows(trial / "result.json", rows)
    (run / "trial_0001" / "error.txt").write_text("seed 3: fid became nan, epoch 2\n")
    return run


def test_searches_are_recorded(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = tmp_path / "out.xz"
    run = search_folder(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["simulate", "--record", str(run), "--curves", str(out)])
    module.main()
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert lzma.decompress(out.read_bytes()).decode() == (
        "search,config,seed,batch_size,epoch,fid,collapsed,seconds_train,seconds_eval,error\n"
        "hparams,0,3,64,1,4,1,1.5,0.5,\n"
        "hparams,0,3,64,2,4,1,1.5,0.5,\n"
        "hparams,0,4,64,1,6,0,1.5,0.5,\n"
        "hparams,0,4,64,2,6,0,1.5,0.5,\n"
        "hparams,1,3,128,1,4,1,1.5,0.5,\n"
        'hparams,1,3,128,2,,,,,"seed 3: fid became nan, epoch 2"\n'
        "hparams,1,4,128,1,6,0,1.5,0.5,\n"
        'hparams,1,4,128,2,,,,,"seed 3: fid became nan, epoch 2"\n'
    )
    curves = Curves(out, "hparams")
    assert [len(curves.rows[key]) for key in ((0, 3), (0, 4), (1, 3), (1, 4))] == [2, 2, 1, 1]


def test_what_holds_no_whole_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="was searched with --scheduler asha; whole curves need fifo"
    ):
        list(recorded_rows(search_folder(tmp_path / "asha", "asha")))
    run = search_folder(tmp_path / "run")
    (run / "trial_0001" / "error.txt").unlink()
    with pytest.raises(
        ValueError, match=r"trial_0001 has 1 of 2 epochs; finish it by --resume run"
    ):
        list(recorded_rows(run))
    write_curves(recording(falling), tmp_path / "out.xz")
    with pytest.raises(ValueError, match="holds no curves of search joint"):
        Curves(tmp_path / "out.xz", "joint")


# The course of a search


def test_time_passes_as_recorded(curves: Curves) -> None:
    """Random search of full curves: so many workers are busy all the time, and every epoch counts
    once."""
    one = simulate(plan_of(curves, "random"), curves, 0)
    seconds = [
        curves.nearest(t.config, 0)[0]["seconds_train"] + 0.25
        for t in one.trials
        for _ in range(EPOCHS)
    ]
    assert [time for time, _, _ in one.progress] == pytest.approx(
        list(itertools.accumulate(seconds))
    )
    assert [epochs for _, epochs, _ in one.progress] == list(range(1, 7 * EPOCHS + 1))
    fids = [row["fid"] for t in one.trials for row in curves.nearest(t.config, 0)]
    assert [best for _, _, best in one.progress] == list(itertools.accumulate(fids, min))
    three = simulate(plan_of(curves, "random", workers=3), curves, 0)
    assert [t.config for t in three.trials] == [t.config for t in one.trials]
    assert sum(seconds) / 3 <= three.progress[-1][0] < sum(seconds) / 3 + EPOCHS * 1.25


def test_a_simulation_repeats_and_ends_at_its_target(curves: Curves) -> None:
    plan = plan_of(curves, "tpe+asha", workers=2)
    whole = simulate(plan, curves, 0)
    assert simulate(plan, curves, 0).progress == whole.progress
    target = whole.progress[-1][2]
    first = next(index for index, (_, _, best) in enumerate(whole.progress) if best == target)
    assert simulate(plan, curves, 0, target=target).progress == whole.progress[: first + 1]


def test_endings_are_told_with_their_values(ill: Curves, tmp_path: Path) -> None:
    """Finished trials with their best epoch, stopped ones with their last, failed ones with none;
    no epoch is missing."""
    ledger = ledger_in(tmp_path / "run")
    outcome = simulate(plan_of(ill, "random+asha", num_trials=16, workers=2), ill, 0, ledger)
    seen = set()
    for trial, simulated in zip(ledger.get_trials(), outcome.trials, strict=True):
        curve = [row["fid"] for row in ill.nearest(simulated.config, 0)][: len(simulated.rows)]
        assert list(trial.intermediate_values.values()) == curve
        assert (
            trial.values
            == {"COMPLETE": [min(curve)], "PRUNED": curve[-1:], "FAIL": None}[trial.state.name]
        )
        seen.add((trial.state.name, len(curve)))
    assert {("COMPLETE", EPOCHS), ("PRUNED", 2), ("FAIL", 1)} <= seen
    assert all(epochs in (2, 6) for state, epochs in seen if state == "PRUNED")


def test_collapsed_and_diverged_trials_fail(ill: Curves, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "run")
    plan = plan_of(ill, "random", num_trials=16)
    outcome = simulate(plan, ill, 0, ledger)
    for trial, simulated in zip(ledger.get_trials(), outcome.trials, strict=True):
        curve = ill.nearest(simulated.config, 0)
        lasts = 1 if len(curve) == 1 else 1 + plan.patience if curve[-1]["collapsed"] else EPOCHS
        assert len(simulated.rows) == lasts
        assert trial.state == (TrialState.COMPLETE if lasts == EPOCHS else TrialState.FAIL)
    assert {len(trial.rows) for trial in outcome.trials} == {1, 1 + plan.patience, EPOCHS}


@pytest.mark.filterwarnings(
    "ignore:All-NaN slice:RuntimeWarning"
)  # Ray's, of a rung that nothing finite reached
@pytest.mark.parametrize("epoch", [1, 2, 5, 9])
def test_what_is_not_finite_goes_no_further(epoch: int, tmp_path: Path) -> None:
    curves = make_curves(tmp_path, recording(falling))
    for rows in curves.rows.values():
        rows[epoch - 1]["fid"] = math.nan
    ledger = ledger_in(tmp_path / "run")
    outcome = simulate(plan_of(curves, "random+asha", workers=2), curves, 0, ledger)
    states = [trial.state for trial in ledger.get_trials()]
    assert states == [
        TrialState.FAIL if len(t.rows) == epoch else TrialState.PRUNED for t in outcome.trials
    ]
    assert TrialState.FAIL in states
    assert max(len(trial.rows) for trial in outcome.trials) == epoch


# Kills


METHODS_KILLED = ("tpe+asha", "random+asha", "tpe")
# of a search that ends by its epochs, how many trials there are shows in the end
METHODS_RESUMED = (*METHODS_KILLED, "freeze-thaw")


@pytest.mark.parametrize("method", METHODS_RESUMED)
def test_a_search_killed_at_any_step_ends_the_same(
    method: str, ill: Curves, tmp_path: Path, monkeypatch: Any
) -> None:
    """The folder is copied after each write: what a search killed there leaves, since the study is
    all that is read back."""
    # decisions of freeze-thaw take longer, and it ends by its epochs
    plan = plan_of(ill, method, num_trials=2 if method == "freeze-thaw" else 5)
    whole = ledger_in(tmp_path / "whole")
    left: list[Path] = []

    def copied(write: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **names: Any) -> Any:
            result = write(*args, **names)
            left.append(tmp_path / f"after_{len(left)}")
            shutil.copytree(tmp_path / "whole", left[-1])
            return result

        return step

    for name in ("create_new_trial", "set_trial_intermediate_value", "set_trial_state_values"):
        monkeypatch.setattr(whole._storage, name, copied(getattr(whole._storage, name)))
    simulate(plan, ill, 0, whole)
    trials = whole.get_trials()
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    assert len(left) == len(trials) + epochs + len(trials)  # each trial begins, reports and ends
    for folder in left:
        ledger = ledger_in(folder)
        simulate(plan, ill, 0, ledger)
        assert story(ledger) == story(whole), folder


@pytest.mark.parametrize("method", METHODS_RESUMED)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_killed_again_and_again_ends_the_same(
    method: str, seed: int, ill: Curves, tmp_path: Path
) -> None:
    plan = plan_of(ill, method, num_trials=4 if method == "freeze-thaw" else 12, seed=seed)
    whole, ledger = ledger_in(tmp_path / "whole"), ledger_in(tmp_path / "killed")
    simulate(plan, ill, seed, whole)
    rng = random.Random(seed)
    sessions = 0
    while not ended(ledger, len(whole.get_trials())):
        simulate(plan, ill, seed, ledger_in(tmp_path / "killed"), max_events=rng.randrange(2, 12))
        sessions += 1
    assert sessions > 4
    assert story(ledger) == story(whole)


@pytest.mark.parametrize("method", METHODS_KILLED)
def test_several_workers_are_killed_and_go_on(method: str, ill: Curves, tmp_path: Path) -> None:
    """Which trial reports first may differ then; what was decided stays, and every trial comes to
    an end."""
    plan = plan_of(ill, method, num_trials=12, workers=3)
    rng = random.Random(0)
    before: list[Any] = []
    while not ended(ledger := ledger_in(tmp_path / "run"), 12):
        simulate(plan, ill, 0, ledger, max_events=rng.randrange(10, 30))
        now = story(ledger)
        for old, new in zip(before, now, strict=False):
            assert old == new if old[3].is_finished() else old[1] == new[1]
            assert old[2].items() <= new[2].items()
        before = now
    assert len(before) == 12
    simulate(plan, ill, 0, ledger)  # nothing is left
    assert story(ledger) == before


def ended(ledger: optuna.Study, count: int) -> bool:
    states = [trial.state for trial in ledger.get_trials()]
    return len(states) == count and all(state.is_finished() for state in states)


def test_rungs_are_rebuilt(ill: Curves, tmp_path: Path) -> None:
    """After each event, a new scheduler decides among the same values as the one that lived through
    it all."""
    plan = plan_of(ill, "random+asha", num_trials=12, workers=2)
    lived = Simulation(plan, ill, 0, ledger_in(tmp_path / "run"))
    lived.start_trials()
    checked = 0
    while lived.events:
        rebuilt = Simulation(plan, ill, 0, ledger_in(tmp_path / "run"))
        rebuilt.trials.clear()
        while rebuilt.searcher._begun:
            rebuilt.add_trial()
        waiting = {
            number: max(t.intermediate_values, default=0)
            for number, t in rebuilt.searcher.past.items()
        }
        assert rungs_of(rebuilt, {}) == rungs_of(lived, waiting)
        checked += any(rungs_of(lived, {}).values())
        lived.step()
        lived.start_trials()
    assert checked > 30


def rungs_of(simulation: Simulation, undecided: dict[int, int]) -> dict[int, list[float]]:
    """The values at each rung, without those of epochs that are a running trial's last: they are
    reported again."""
    alive = {
        t.trial_id: simulation.searcher.numbers[t.trial_id] for t in simulation.get_live_trials()
    }
    return {
        int(rung): sorted(
            value for key, value in recorded.items() if undecided.get(alive.get(key, -1)) != rung
        )
        for rung, recorded in simulation.scheduler._brackets[0]._rungs
    }


# The comparison


def test_a_finite_space_is_tried_to_its_end(curves: Curves) -> None:
    """However often the sampler proposes what was tried before."""
    search = curves.search("hparams")
    axes = {name: axis for name, axis in search.axes.items() if name != "generator_lr"}
    space = dataclasses.replace(search, axes=axes, ties={})
    for method in ("random", "tpe", "tpe+asha"):
        for seed in range(10):
            outcome = simulate(make_plan(space, method, seed, 4, 2, 2), curves, 0)
            assert (
                len({(t.config["batch_size"], t.config["optimizer"]) for t in outcome.trials}) == 4
            )


def test_what_never_comes_near_counts_as_the_whole_budget(curves: Curves, monkeypatch: Any) -> None:
    plan = plan_of(curves, "random")
    seconds, epochs, _ = simulate(plan, curves, 0).progress[-1]
    monkeypatch.setattr("tune.simulate.WITHIN", 0.5)
    found = outcome(plan, curves, 1000)
    assert (found.epochs, found.seconds, found.reached) == (
        1000,
        pytest.approx(seconds / epochs * 1000),
        False,
    )
    monkeypatch.setattr("tune.simulate.WITHIN", 9.0)
    found = outcome(plan, curves, 1000)
    assert (found.epochs, found.reached) == (1, True)


def test_regret_is_of_the_means_over_seeds(tmp_path: Path) -> None:
    """The setting whose metric is best with one seed may be worse than others on average."""

    def rows() -> Iterator[Row]:
        for row in recording(lambda number, epoch: 10.0 + number + 9 - epoch):
            lucky = row["settings"]["generator_lr"] == 3e-3 and row["seed"] == 0
            yield row | {"fid": row["fid"] - 20 * lucky}

    curves = make_curves(tmp_path, rows())
    regrets = curves.regrets()
    means = [10.5 + number - 10 * (number >= 12) for number in range(16)]
    assert regrets == pytest.approx({n: means[n] / min(means) - 1 for n in range(16)})
    plan = plan_of(curves, "random", num_trials=16)
    simulation = simulate(plan, curves, 0)
    best = math.inf
    for (_, _, seen), number in zip(simulation.progress, simulation.recommended, strict=True):
        assert seen <= best
        best = seen
        assert seen in [row["fid"] for row in curves.rows[number, 0]]
    found = outcome(plan, curves, 1000).regrets
    assert found[: len(simulation.recommended)] == [regrets[n] for n in simulation.recommended]
    assert set(found[len(simulation.recommended) :]) == {found[-1]}


def test_a_setting_that_diverged_has_no_finite_regret(ill: Curves) -> None:
    lost = {number for (number, _), rows in ill.rows.items() if len(rows) < EPOCHS}
    assert lost
    assert {number for number, regret in ill.regrets().items() if regret == math.inf} == lost


@pytest.mark.parametrize("n", [6, 15, 60])
def test_the_interval_of_a_median_covers_it(n: int) -> None:
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(1000):
        low, high = median_interval(list(rng.exponential(size=n)))
        covered += low <= math.log(2) <= high
    assert 0.945 <= covered / 1000 <= 0.99


def test_the_ratio_of_medians_takes_pairs() -> None:
    """Twice the epochs each time: no doubt about the ratio, however much searches differ."""
    compared = list(np.random.default_rng(0).integers(10, 200, 60))
    assert ratio_text([2 * one for one in compared], compared) == "2.00 [2.00, 2.00]"


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_and_interval(n: int) -> None:
    """Student's, as SciPy has it."""
    values = list(np.random.default_rng(n).normal(50, 10, n))
    found = [float(text.strip("[],")) for text in mean_text(values, 3).split()]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx([np.mean(values), low, high], abs=1e-3)


def test_one_value_has_no_interval() -> None:
    assert mean_text([4.0]) == "4"


def test_the_command_prints_a_table(monkeypatch: Any, capsys: Any) -> None:
    """Over the curves that come with the package."""
    search, methods = "architecture", list(METHODS)
    flags = ["--search", search, "--seeds", "2", "--num-trials", "12"]
    flags += ["--grace-period", "2", "--workers", "3"]
    monkeypatch.setattr(sys, "argv", ["simulate", *flags])
    module.main()
    head, *table = capsys.readouterr().out.split("\n\n")
    assert table[1].startswith(f"{search}, 3 workers: regret after so many epochs")
    assert [line.split()[0] for line in table[2].splitlines()[2:]] == methods
    for part in (
        f"{search}: epochs",
        "2 sampler seeds",
        "3 workers",
        "epoch 2 of 12",
        "12 trials",
        "counts as 144 epochs",
    ):
        assert part in head
    lines = table[0].splitlines()
    assert [line.split()[0] for line in lines[2:]] == methods
    assert lines[2].endswith("1.00")


def test_regrets_as_json_are_a_list_of_objects(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Of a table of one's own, and of several numbers of workers."""
    write_curves(joint_recording(), tmp_path / "curves.csv.xz")
    flags = ["--search", "joint", "--curves", str(tmp_path / "curves.csv.xz"), "--seeds", "1"]
    flags += ["--num-trials", "3", "--workers", "1", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["simulate", *flags])
    module.main()
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(METHODS) * 2 * module.EPOCHS / module.GRID
    names = ["table", "method", "workers", "epochs", "regret_median", "regret_low", "regret_high"]
    assert all(list(row) == [*names, "epochs_to_5_percent"] for row in rows)
    assert {(row["table"], row["method"], row["workers"]) for row in rows} == {
        ("joint", method, workers) for method in METHODS for workers in (1, 2)
    }
    assert all(row["regret_low"] <= row["regret_median"] <= row["regret_high"] for row in rows)

    regrets, picture = tmp_path / "regrets.json", tmp_path / "regret.png"
    regrets.write_text(json.dumps(rows))
    script = Path(__file__).parents[3] / "docs" / "regret.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(regrets), str(picture)])
    runpy.run_path(str(script), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")


def joint_recording() -> Iterator[Row]:
    """Curves of some settings of a joint search."""
    values = {
        "batch_size": (64, 128),
        "optimizer": ("adam", "rmsprop"),
        "generator_depth": (1, 2),
        "generator_width": (8, 16),
        "extra_convs": (0, 1),
        "precision": ("float32",),
    }
    for row in recording(falling):
        number = RATES.index(row["settings"]["generator_lr"])
        chosen = {name: choices[number % len(choices)] for name, choices in values.items()}
        yield row | {"search": "joint", "settings": chosen | row["settings"]}


def test_wrong_numbers_take_one_line(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--seeds", "0"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert (
        capsys.readouterr().err
        == "python -m tune.simulate: error: --seeds is 0; allowed is 1 to 10000: "
        "all are simulated here\n"
    )
