"""Searches on a cluster of several nodes, which is lost, is not alike, or has GPUs of several sizes."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import kill, ray_nodes
from search_processes import QUICK, ROOT, end_all, rows_now, run, start

from analysis.load import load_trials

MEASURED = ["seconds_train", "seconds_eval", "images_per_second", "peak_memory_bytes"]
SEARCH = [
    "--search",
    "hparams",
    "--num-trials",
    "4",
    "--epochs",
    "4",
    "--sampler",
    "random",
    "--scheduler",
    "fifo",
    *QUICK,
]
HEAD, WORKER = {"num_cpus": 0}, {"num_cpus": 1}


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.mark.timeout(600)
def test_a_search_survives_the_loss_of_its_cluster(tmp_path: Path) -> None:
    """All of it, with the driver and its disk. The storage, here a mounted folder, and another cluster end the search."""
    code, output = run(
        [*SEARCH, "--storage", str(tmp_path), "--name", "undisturbed"], tmp_path / "home"
    )
    assert code == 0, output
    lost = tmp_path / "mounted" / "s"
    with ray_nodes(tmp_path / "one", HEAD, WORKER, WORKER) as (address, cluster):
        process = start(
            [*SEARCH, "--address", address, "--storage", str(lost.parent), "--name", "s"],
            tmp_path / "one",
        )
        deadline = time.monotonic() + 200
        while rows_now(lost) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kill(cluster)
        output, _ = process.communicate(timeout=120)
        assert "Ray's head died" in output
        assert (
            f"go on with: python -m tune.run --resume s --storage {lost.parent} --address {address}"
            in output
        )
        assert re.search(r"^cluster +3 machines, 2 CPUs: ", output, re.MULTILINE), output
        assert re.search(r"^trials .* 2 at a time", output, re.MULTILINE), output
    with ray_nodes(tmp_path / "two", HEAD, WORKER, WORKER) as (address, _):
        resume = ["--resume", "s", "--storage", str(lost.parent), "--address", address]
        code, output = run(resume, tmp_path / "two")
    assert code == 0, output
    ended, undisturbed = (
        load_trials(folder).drop(columns=MEASURED) for folder in (lost, tmp_path / "undisturbed")
    )
    assert ended.equals(undisturbed)
    assert (lost / "report.html").is_file()

    code, output = run(
        ["--resume", "s", "--storage", str(lost.parent)], tmp_path / "three"
    )  # without any cluster, in the folder
    assert code == 0, output
    assert load_trials(lost).drop(columns=MEASURED).equals(undisturbed)


def test_machines_that_differ_are_named(tmp_path: Path) -> None:
    fake = tmp_path / "fake" / "optuna-1.2.3.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 1.2.3\n")
    other = WORKER | {"env_vars": {"PYTHONPATH": str(fake.parent)}}
    with ray_nodes(tmp_path / "home", HEAD, WORKER, other) as (address, _):
        code, output = run(
            [*SEARCH, "--address", address, "--storage", str(tmp_path / "runs")], tmp_path / "home"
        )
    assert code == 2, output
    assert re.search(
        r"error: the machines differ: \S+ \(\S+\) has optuna 1.2.3, here 5\.", output
    ), output
    assert output.count("has optuna") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            "ray://127.0.0.1:10001",
            r"--address is ray://127.0.0.1:10001; allowed is auto, or HOST:PORT of the cluster's head",
        ),
        ("127.0.0.1:1", r"cannot join the Ray cluster at --address 127.0.0.1:1: "),
    ],
)
def test_an_address_that_leads_nowhere_is_said(address: str, reason: str, tmp_path: Path) -> None:
    code, output = run(
        [*SEARCH, "--address", address, "--storage", str(tmp_path)], tmp_path / "home"
    )
    assert code == 2, output
    assert re.search(f"^python -m tune.run: error: {reason}", output, re.MULTILINE), output


def test_a_cluster_without_room_for_trials_is_said(tmp_path: Path) -> None:
    with ray_nodes(tmp_path / "home", HEAD) as (address, _):
        code, output = run(
            [*SEARCH, "--address", address, "--storage", str(tmp_path)], tmp_path / "home"
        )
    assert code == 2, output
    assert "error: trials have no CPU in the cluster (1 machine, 0 CPUs: " in output


PLACED = """
import collections, json, sys, ray
ray.init(sys.argv[1], log_to_driver=False)
request = json.loads(sys.argv[2])
cpus, gpus = request.pop("cpu"), request.pop("gpu")

@ray.remote(num_cpus=cpus, num_gpus=gpus, resources=request)
class Trial:
    def where(self): return ray.get_runtime_context().get_node_id()

names = {node["NodeID"]: node["Resources"].get("GPU", 0) and node["Resources"]["gpu_memory"] for node in ray.nodes()}
trials = [Trial.remote() for _ in range(16)]
placed, _ = ray.wait([trial.where.remote() for trial in trials], num_returns=16, timeout=20)
print(json.dumps(collections.Counter(str(names[node]) for node in ray.get(placed))))
"""


def test_gpus_of_several_sizes_get_as_many_trials_as_they_hold(tmp_path: Path) -> None:
    """Ray's placement of what `tune.packing.pack` asks for, on nodes that say they have a GPU of 16 and one of 80 GiB."""
    import dataclasses
    import json

    import torch

    from tune.cluster import Node
    from tune.packing import pack
    from tune.run import make_parser, read_plan

    small, large = (
        Node(id=name, name=name, cpus=8, gpus=1, gpu_gib=gib)
        for name, gib in (("small", 16), ("large", 80))
    )
    share, gib = pack(8, 5.0, {"small": 16.0, "large": 80.0}, [small, large])
    plan = read_plan(
        make_parser().parse_args(["--search", "hparams", "--preset", "demo"]), torch.device("cpu")
    )
    request = dataclasses.replace(plan, gpus=share, gpu_gib=gib).request
    gpus = [
        {"num_cpus": 8, "num_gpus": 1, "resources": {"gpu_memory": node.gpu_gib}}
        for node in (small, large)
    ]
    with ray_nodes(tmp_path / "home", {"num_cpus": 16}, *gpus) as (address, _):
        told = subprocess.run(
            [sys.executable, "-c", PLACED, address, json.dumps(request)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    assert json.loads(told.stdout.splitlines()[-1]) == {
        "16.0": 2,
        "80.0": 8,
    }  # none where there is no GPU
