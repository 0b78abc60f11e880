"""The confirm stage: the best settings of a search and the report's baseline, on seeds that the search never saw.

The best of many estimates is too good by selection (the winner's curse). Here each setting is trained anew, the epoch is
chosen on the validation split as in the search, and the test split judges it.
"""

import dataclasses
import json
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from dcgan import checkpoint
from dcgan.data import source
from dcgan.evaluate import evaluate, load_reference
from dcgan.schema import METRIC
from tune.plan import SEARCH_FILE, Plan
from tune.study import open_study

TEST_FILE = "test.json"


def confirm_plan(plan: Plan, top: int, count: int, record: dict[str, Any]) -> Plan:
    """The plan that trains the best `top` finished settings and the baseline on `count` fresh seeds, in `confirm/`.

    Raises:
        ValueError: the search was confirmed before with other numbers.
    """
    folder = plan.folder / "confirm"
    file = folder / SEARCH_FILE
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        first = plan.search.base.seed + plan.search.base.replicas
        stage = {"candidates": candidates(plan, top), "seeds": list(range(first, first + count)), "top": top}
        checkpoint.replace(file, (json.dumps(record | stage, indent=2) + "\n").encode())
        plan.store.put(file)
    stage = json.loads(file.read_text())
    seeds = stage["seeds"]
    if (stage["top"], len(seeds)) != (top, count):
        raise ValueError(
            f"{folder} confirms the best {stage['top']} on {len(seeds)} seeds, not {top} on {count}; "
            f"delete that folder to confirm anew"
        )
    points = [candidate["point"] | {"seed": seed} for candidate in stage["candidates"] for seed in seeds]
    search = dataclasses.replace(
        plan.search,
        name="confirm",
        base=dataclasses.replace(plan.search.base, replicas=1),
        axes={**plan.search.axes, "seed": CategoricalDistribution(seeds)},
    )
    return dataclasses.replace(
        plan, search=search, scheduler="fifo", objectives=(METRIC,), points=points, num_trials=len(points), folder=folder
    )


def candidates(plan: Plan, top: int) -> list[dict[str, Any]]:
    """The search's best finished trials, best first, and the baseline, last, each with the search's own estimate."""
    trials = open_study(plan.folder).get_trials()
    finished = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda trial: trial.values[0])
    baseline = plan.search.baseline()
    best = [_candidate(plan, trial) for trial in finished[:top] if trial.params != baseline]
    tried = [trial for trial in trials if trial.params == baseline]
    last = _candidate(plan, tried[-1]) if tried else {"trial": None, "estimate": None, "point": baseline}  # if retried
    return [*best, last | {"baseline": True}]


def _candidate(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    # of a stopped trial too little is known to be held against a whole run
    estimate = min(trial.intermediate_values.values()) if trial.state == TrialState.COMPLETE else None
    return {"trial": plan.trial_folder(trial.number).name, "estimate": estimate, "point": trial.params, "baseline": False}


def judge(stage: Plan, device: torch.device) -> None:
    """Scores the best generator of each finished trial on the test split, into its `test.json`."""
    for trial in open_study(stage.folder).get_trials(states=[TrialState.COMPLETE]):
        folder = stage.trial_folder(trial.number)
        if (folder / TEST_FILE).exists():
            continue
        stage.store.get(f"confirm/{folder.name}/{checkpoint.NAME}")
        generator, config, epoch = checkpoint.load_generator(folder)
        reference = load_reference(source(config, stage.data_dir, device), "test")
        scores = {"epoch": epoch, **evaluate(generator.to(device), config, reference)}
        checkpoint.replace(folder / TEST_FILE, (json.dumps(scores) + "\n").encode())
