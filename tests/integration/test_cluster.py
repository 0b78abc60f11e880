"""Searches on a cluster of several nodes, which is lost, is not alike, or has GPUs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import add_node, kill, ray_nodes
from search_processes import BY_CHANCE, ROOT, at, run, start, wait_for
from search_results import rows_now, rows_of

import tune.run

pytestmark = pytest.mark.usefixtures("nothing_left_running")
HEAD, WORKER = {"num_cpus": 0}, {"num_cpus": 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_survives_the_loss_of_its_cluster(
    undisturbed_by_chance: Path, tmp_path: Path, search_in_process: Callable[..., Any]
) -> None:
    """All of it, with the driver and its disk. The storage, here a mounted folder, and another
    cluster end the search."""
    lost = tmp_path / "mounted" / "s"
    with ray_nodes(tmp_path / "one", HEAD, WORKER, WORKER) as (address, cluster):
        arguments = [*BY_CHANCE, "--address", address, *at(lost.parent)]
        process = start(arguments, tmp_path / "one")
        wait_for(lambda: rows_now(lost) >= 3, process)
        kill(cluster)
        output, _ = process.communicate(timeout=120)
    assert "Ray's head died" in output
    command = f"python -m tune.run --resume s --storage {lost.parent} --address {address}"
    assert f"go on with: {command}" in output
    assert re.search(r"^cluster +3 machines, 2 CPUs: ", output, re.MULTILINE), output
    assert re.search(r"^trials .* 2 at a time", output, re.MULTILINE), output
    resume = ["--resume", "s", "--storage", str(lost.parent)]
    with ray_nodes(tmp_path / "two", HEAD, WORKER, WORKER) as (address, _):
        code, output = run([*resume, "--address", address], tmp_path / "two")
    assert code == 0, output
    assert rows_of(lost).equals(rows_of(undisturbed_by_chance))
    assert (lost / "report.html").is_file()

    # without any cluster, in the folder
    ended = search_in_process(resume="s", storage=lost.parent)
    assert ended.code == 0, ended.output
    assert rows_of(lost).equals(rows_of(undisturbed_by_chance))


PLACED = """
import collections, json, sys
import ray
from tune.options import Options
from tune.plan import make_plan
from tune.site import survey

address, storage = sys.argv[1:]
options = Options(search="hparams", preset="demo", address=address, storage=storage, estimate=False)
plan = make_plan(options, survey(options))
request = {"num_cpus": plan.request["cpu"], "num_gpus": plan.request["gpu"]}

@ray.remote(**request)
class Trial:
    def where(self):
        return ray.get_runtime_context().get_node_id()

trials = [Trial.remote() for _ in range(plan.slots + 1)]
calls = [trial.where.remote() for trial in trials]
up, waiting = ray.wait(calls, num_returns=plan.slots, timeout=60)
late, _ = ray.wait(waiting, timeout=1)
cpus = {node.id: node.cpus for node in plan.nodes}
trials_of = collections.Counter(f"{cpus[node]:.0f} CPUs" for node in ray.get([*up, *late]))
print(json.dumps({"slots": plan.slots, "request": request, "trials_of": trials_of}))
"""


@pytest.mark.slow
def test_trials_go_where_gpus_are_as_many_as_there_are_slots(tmp_path: Path) -> None:
    """Nodes that say they have GPUs: four trials to each, but no more than CPUs beside the GPUs;
    none to the node without a GPU."""
    nodes = [{"num_cpus": 2}, {"num_cpus": 3, "num_gpus": 1}, {"num_cpus": 2, "num_gpus": 1}]
    home = tmp_path / "home"
    with ray_nodes(home, *nodes) as (address, _):
        done = subprocess.run(
            [sys.executable, "-c", PLACED, address, str(tmp_path / "runs")],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "slots": 5,
        "request": {"num_cpus": 1, "num_gpus": 1 / 3},
        "trials_of": {"3 CPUs": 3, "2 CPUs": 2},
    }


@pytest.mark.slow
def test_a_cluster_without_room_and_machines_that_differ_are_said(tmp_path: Path) -> None:
    fake = tmp_path / "fake" / "optuna-1.2.3.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 1.2.3\n")
    other = WORKER | {"env_vars": {"PYTHONPATH": str(fake.parent)}}
    with ray_nodes(tmp_path / "home", HEAD) as (address, cluster):
        arguments = [*BY_CHANCE, "--address", address, *at(tmp_path / "runs")]
        code, output = run(arguments, tmp_path / "home")
        assert code == 2, output
        assert "error: trials have no CPU in the cluster (1 machine, 0 CPUs: " in output
        add_node(cluster, other)
        code, output = run(arguments, tmp_path / "home")
    assert code == 2, output
    differs = r"error: the machines differ: \S+ \(\S+\) has optuna 1.2.3, here 5\."
    assert re.search(differs, output), output
    assert output.count("has optuna") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            "ray://127.0.0.1:10001",
            r"--address is ray://127.0.0.1:10001; allowed is local, auto, or HOST:PORT of the "
            r"cluster's head",
        ),
        ("127.0.0.1:1", r"cannot join the Ray cluster at --address 127.0.0.1:1: "),
    ],
)
def test_an_address_that_leads_nowhere_is_said(
    address: str, reason: str, tmp_path: Path, command: Any
) -> None:
    code, _, error = command(tune.run.main, *BY_CHANCE, "--address", address, *at(tmp_path))
    assert code == 2
    assert re.search(f"^python -m tune.run: error: {reason}", error, re.MULTILINE), error
