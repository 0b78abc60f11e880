"""The confirm stage: the best settings of a search and the baseline, on seeds that the search never
saw.

The best of many estimates is too good by selection (the winner's curse). The confirm stage trains
each setting anew, chooses the epoch on the validation split as the search does, and scores its
generator on the test split.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from dcgan import checkpoint
from dcgan.evaluate import evaluate, load_reference
from dcgan.files import replace, write_json
from dcgan.precision import default_device
from dcgan.schema import CHECKPOINT_FILE, CONFIRM_FOLDER, METRIC, SEARCH_FILE, TEST_FILE
from dcgan.store import Store
from tune.ledger import open_ledger
from tune.plan import Plan
from tune.progress import Progress
from tune.runner import run_plan
from tune.schedulers import SCHEDULERS
from tune.stop import Stop


def train_again(plan: Plan, stop: Stop) -> None:
    """Trains the best settings of a search anew, within a session, and scores them on the test
    split."""
    record = json.loads((plan.folder / SEARCH_FILE).read_text(encoding="utf-8"))
    stage = confirm_plan(plan, record)
    runs, epochs = stage.num_trials, stage.epochs
    print(f"\nconfirming on fresh seeds: {runs} runs of {epochs} epochs", flush=True)
    run_plan(stage, stop, Progress)
    if not stop.asked:
        score_on_test(stage)


def confirm_plan(plan: Plan, record: dict[str, Any]) -> Plan:
    """The plan that trains the best finished settings and the baseline on fresh seeds, in
    `confirm/`; the record is the search's, as its `search.json` holds it.

    An earlier stage, of other settings or seeds, is put aside: the search had fewer trials then, or
    was asked for others.
    """
    first = plan.search.base.seed + plan.replicas
    chosen: dict[str, Any] = {
        "candidates": candidates(plan, plan.confirm),
        "seeds": list(range(first, first + plan.confirm_seeds)),
        "top": plan.confirm,
        "replicas": 1,
    }
    store = plan.store.inside(CONFIRM_FOLDER)
    file = store.folder / SEARCH_FILE
    if file.is_file() and not is_of(file, chosen):
        put_aside(plan.store, CONFIRM_FOLDER)
    if not file.is_file():
        store.folder.mkdir(exist_ok=True)
        write_json(file, record | chosen)
        store.put(file)
    points = [
        candidate["point"] | {"seed": seed}
        for candidate in chosen["candidates"]
        for seed in chosen["seeds"]
    ]
    # of the points alone: the baseline may lie outside a grid's values
    axes = {
        name: CategoricalDistribution(list(dict.fromkeys(point[name] for point in points)))
        for name in (*plan.search.axes, "seed")
    }
    return dataclasses.replace(
        plan,
        search=dataclasses.replace(plan.search, name=CONFIRM_FOLDER, axes=axes),
        scheduler=SCHEDULERS["fifo"],
        objectives=(METRIC,),
        points=points,
        num_trials=len(points),
        epochs_in_all=None,
        replicas=1,
        store=store,
    )


def is_of(file: Path, chosen: dict[str, Any]) -> bool:
    """Whether the `search.json` of a confirm stage is of these settings and seeds."""
    stage = json.loads(file.read_text(encoding="utf-8"))
    return all(stage.get(name) == value for name, value in chosen.items())


def put_aside(store: Store, name: str) -> None:
    """Renames a folder of a search, such as `confirm` to `confirm-1`."""
    numbers = (number for number in itertools.count(1) if not store.has(f"{name}-{number}"))
    aside = store.folder / f"{name}-{next(numbers)}"
    store.get(f"{name}/*")
    (store.folder / name).rename(aside)
    store.put(aside)
    store.remove(name)
    print(f"an earlier {name} stage, of other settings or seeds, is now {aside.name}", flush=True)


def candidates(plan: Plan, top: int) -> list[dict[str, Any]]:
    """The best finished trials in order, then the baseline, with the search's own estimates."""
    study, baseline = open_ledger(plan.folder), plan.search.baseline()
    finished = study.get_trials(states=[TrialState.COMPLETE])
    finished.sort(key=lambda trial: trial.values[0])
    best = [candidate(plan, trial) for trial in finished[:top] if trial.params != baseline]
    last: dict[str, Any] = {"trial": None, "estimate": None, "point": baseline}
    for trial in study.get_trials():
        if trial.params == baseline:  # the last, if it was retried
            last = candidate(plan, trial)
    return [*best, last | {"baseline": True}]


def candidate(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    """A trial to train again. Of a stopped one too little is known for an estimate to be held
    against a whole run."""
    finished = trial.state == TrialState.COMPLETE
    estimate = min(trial.intermediate_values.values()) if finished else None
    name = plan.trial_folder(trial.number).name
    return {"trial": name, "estimate": estimate, "point": trial.params, "baseline": False}


def score_on_test(stage: Plan) -> None:
    """Scores the best generator of each finished trial on the test split, into its `test.json`."""
    device = default_device()
    for trial in open_ledger(stage.folder).get_trials(states=[TrialState.COMPLETE]):
        folder = stage.trial_folder(trial.number)
        if (folder / TEST_FILE).exists():
            continue
        stage.store.get(f"{folder.name}/{CHECKPOINT_FILE}")
        generator, config, epoch = checkpoint.load_generator(folder)
        reference = load_reference(config.source(stage.data_dir, device), "test")
        scores = {"epoch": epoch, **evaluate(generator.to(device), config, reference)}
        replace(folder / TEST_FILE, (json.dumps(scores) + "\n").encode())
        stage.store.put(folder / TEST_FILE)
