"""What follows from a cluster's machines: room for trials, GPUs packed by memory, what is asked of Ray, and of whom."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from tune import packing
from tune.cluster import Node, answers, capacity, describe, use_token, versions
from tune.packing import Packed, cluster_share, pack
from tune.plan import Plan, resources
from tune.run import make_parser, read_plan
from tune.searches import DEMO, make_search
from tune.storage import Store
from tune.study import open_study, retry_failed, running, take_over_folders

GIB = 2**30


def node(name: str, cpus: float = 4, gpus: float = 0, gib: float = 0) -> Node:
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, gpu_gib=gib)


@pytest.mark.parametrize(
    ("nodes", "most", "room"),
    [
        ([node("head", 0), node("a", 2), node("b", 3)], {}, (5, 0)),
        ([node("head", 8), node("a", 4, 1)], {}, (4, 1)),  # where there are GPUs, other machines run no trials
        ([node("head", 0)], {"CPU": 16, "GPU": 4}, (16, 4)),  # none is there yet
        ([node("head", 2), node("a", 4, 1)], {"CPU": 18, "GPU": 4}, (18, 4)),
        ([node("head", 0)], {}, (0, 0)),
    ],
)
def test_room_for_trials(nodes: list[Node], most: dict[str, float], room: tuple[int, int]) -> None:
    assert capacity(nodes, most) == room


@pytest.mark.parametrize(
    ("share", "most", "room", "expected"),
    [
        (0.25, None, (5, 0), (5, 1, 0.0)),
        (0.25, 3, (5, 0), (3, 1, 0.0)),
        (0.25, None, (16, 2), (8, 1, 0.25)),
        (0.25, 2, (16, 2), (2, 1, 1.0)),  # spread over the GPUs
        (0.25, None, (3, 2), (3, 1, 0.5)),  # no more than CPUs
    ],
)
def test_resources_on_a_cluster(
    share: float, most: int | None, room: tuple[int, int], expected: tuple[int, int, float]
) -> None:
    assert resources(share, most, room) == expected


SMALL, LARGE, FOUR = node("small", gpus=1, gib=16), node("large", gpus=1, gib=80), node("four", gpus=4, gib=64)
SIZES = {"small": 16.0, "large": 80.0, "four": 16.0}


@pytest.mark.parametrize(
    ("most", "each", "nodes", "share", "gib"),
    [
        (8, 5.0, [SMALL, LARGE], 1 / 8, 5.0 / 0.9),  # the small one holds 2, which Ray counts
        (8, 5.0, [SMALL, LARGE, FOUR], 1 / 2, 5.0 / 0.9),  # Ray fills the first of four GPUs first, so the share limits them
        (8, 5.0, [LARGE, dataclasses.replace(SMALL, gpu_gib=0)], 1 / 2, 0.0),  # not declared: the smallest decides
        (2, 1.0, [SMALL, LARGE], 1 / 2, 1.0 / 0.9),  # no more than pay
        (4, 40.0, [SMALL, LARGE], 1 / 4, 40.0 / 0.9),  # none on the small one
    ],
)
def test_trials_are_packed_by_memory(most: int, each: float, nodes: list[Node], share: float, gib: float) -> None:
    assert pack(most, each, {n.name: SIZES[n.name] for n in nodes}, nodes) == pytest.approx((share, gib))


def test_the_share_on_a_cluster_is_measured_on_its_largest_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Fake:
        nodes = (node("head"), SMALL, LARGE)

        def refreshed(self) -> list[Node]:
            return list(self.nodes)

        def call(self, node: Node, function: object, *args: object, gpus: float = 0) -> object:
            if function is packing.gpu_gib:
                return SIZES[node.name]
            asked.append((node.name, gpus))
            return [Packed(1, 100, 5 * GIB), Packed(2, 190, 5 * GIB), Packed(4, 350, 5 * GIB)]

    monkeypatch.setattr(packing, "result", lambda call: call)
    search = make_search("hparams", DEMO, ("float32",), {})
    assert cluster_share(search, None, Fake()) == pytest.approx((1 / 4, 5 / 0.9))  # type: ignore[arg-type]
    assert asked == [("large", 1)]
    assert "takes 5.0 GiB; on a GPU of 80 GiB (large) it pays to have 4 side by side" in capsys.readouterr().out


def make_plan(storage: str, *flags: str) -> Plan:
    arguments = ["--search", "hparams", "--preset", "demo", "--storage", storage, "--name", "run", *flags]
    return read_plan(make_parser().parse_args(arguments), torch.device("cpu"))


def test_what_a_trial_asks_of_ray(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path))
    assert plan.request == {"cpu": 1, "gpu": 0.0}
    assert dataclasses.replace(plan, gpus=0.25, gpu_gib=5.5).request == {"cpu": 1, "gpu": 0.25, "gpu_memory": 5.5}


@pytest.mark.parametrize(
    ("flags", "keep"),
    [
        ("--epochs 9", [2, 6, 9]),
        ("--epochs 9 --scheduler fifo", [9]),
        ("--epochs 9 --scheduler pbt --grace-period 3", [3, 6, 9]),
    ],
)
def test_epochs_that_must_not_be_lost(flags: str, keep: list[int], tmp_path: Path) -> None:
    assert make_plan(str(tmp_path), *flags.split()).keep == keep


def test_where_a_plan_in_a_storage_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = dataclasses.replace(make_plan("s3://bucket/runs"), address="10.0.0.1:6379")
    assert plan.location == "s3://bucket/runs/run"
    assert dataclasses.replace(plan, folder=plan.folder / "confirm").location == "s3://bucket/runs/run/confirm"
    assert plan.resume_command == "python -m tune.run --resume run --storage s3://bucket/runs --address 10.0.0.1:6379"


def test_machines_as_a_person_reads_them() -> None:
    assert describe([node("head", 0), node("a", 4, 1)]) == "2 machines, 4 CPUs, 1 GPUs: head, a"
    assert describe([node(f"n{i}") for i in range(10)]).endswith("n6, n7 and 2 more")


def test_versions_tell_our_own_code() -> None:
    assert {"python", "torch", "ray", "optuna", "dcgan-tune"} <= set(versions())
    assert versions() == versions()


def test_nothing_answers_at_a_closed_port() -> None:
    assert not answers("127.0.0.1:1")


def test_the_token_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"  # as asked


def test_a_retry_takes_over_its_folder_in_a_storage_too(tmp_path: Path) -> None:
    """Also after it was interrupted between any two files."""
    there, here = tmp_path / "mounted", tmp_path / "copy"
    here.mkdir()
    plan = make_plan(str(tmp_path))
    plan = dataclasses.replace(plan, folder=here, store=Store(here, str(there)))
    study = open_study(here, plan.objectives)
    study.add_trial(running(plan.search.baseline(), plan.search.axes))
    study.tell(0, state=TrialState.FAIL)
    files = {"params.json": "{}", "checkpoint.pt": "weights", "result.json": "rows", "error.txt": "diverged"}
    for name, text in files.items():
        (there / "trial_0000").mkdir(parents=True, exist_ok=True)
        (there / "trial_0000" / name).write_text(text)
    (there / "trial_0001").mkdir()
    (there / "trial_0001" / "result.json").write_text("of an attempt that was interrupted")
    assert retry_failed(plan) == 1
    for _ in range(2):
        plan.store.get_small()
        take_over_folders(plan, study)
        assert {path.name for path in there.iterdir()} == {"trial_0001"}
        taken = {path.name: path.read_text() for path in (there / "trial_0001").iterdir()}
        assert taken == {name: text for name, text in files.items() if name != "error.txt"}
