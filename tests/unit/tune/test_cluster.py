"""What follows from a cluster's machines: room for trials, and what is checked of them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcgan.data import Source
from dcgan.store import Mirror
from tune import cluster as room
from tune.cluster import (
    Cluster,
    capacity,
    check_data,
    check_storage,
    check_temporary,
    check_versions,
    connect,
    describe_nodes,
    use_token,
    versions,
)
from tune.plan import Node


def node(name: str, cpus: float = 4, gpus: float = 0) -> Node:
    return Node(id=name, name=name, cpus=cpus, gpus=gpus)


class Pretended(Cluster):
    """A cluster of such machines; `answers` says what each returns, or raises, if it is asked."""

    def __init__(
        self, *nodes: Node, gpus: int = 0, autoscales: bool = False, **answers: Any
    ) -> None:
        self.address, self.nodes, self.answers = "auto", list(nodes), answers
        self.cpus, self.gpus, self.autoscales = 4, gpus, autoscales

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return {
            name: answer(*args) if callable(answer) else answer
            for name, answer in self.answers.items()
        }


@pytest.mark.parametrize(
    ("nodes", "limits", "room"),
    [
        ([node("head", 0), node("a", 2), node("b", 3)], {}, (5, 0)),
        # where there are GPUs, other machines run no trials
        ([node("head", 8), node("a", 4, 1)], {}, (4, 1)),
        # none has started yet
        ([node("head", 0)], {"CPU": 16, "GPU": 4}, (16, 4)),
        ([node("head", 2), node("a", 4, 1)], {"CPU": 18, "GPU": 4}, (18, 4)),
        ([node("head", 0)], {}, (0, 0)),
    ],
)
def test_room_for_trials(
    nodes: list[Node], limits: dict[str, float], room: tuple[int, int]
) -> None:
    assert capacity(nodes, limits) == room


def test_a_trial_can_run_where_there_is_what_it_needs() -> None:
    assert Pretended(node("head", 0), node("a")).check_ready()
    assert Pretended(node("head"), node("a", 4, 1), gpus=1).check_ready()
    assert not Pretended(node("head"), gpus=1, autoscales=True).check_ready()
    message = "trials have no CPU in the cluster (1 machine, 0 CPUs: head); are its workers up?"
    with pytest.raises(OSError, match=re.escape(message)):
        Pretended(node("head", 0)).check_ready()


def test_several_machines_are_there_or_may_come() -> None:
    assert not Pretended(node("head")).several
    assert Pretended(node("head"), node("a")).several
    assert Pretended(node("head"), autoscales=True).several


def test_machines_as_a_person_reads_them() -> None:
    machines = [node("head", 0), node("a", 4, 1)]
    assert describe_nodes(machines) == "2 machines, 4 CPUs, 1 GPUs: head, a"
    assert describe_nodes([node(f"n{i}") for i in range(10)]).endswith("n6, n7 and 2 more")


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp")
    check_temporary()
    monkeypatch.setenv(name, f"/tmp/{'long/' * 12}")
    with pytest.raises(
        ValueError, match=rf"^the environment's {name} is /tmp/long/.*/, \d+ bytes too"
    ):
        check_temporary()
    if name == "TMPDIR":  # the other one counts
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        check_temporary()


def test_nothing_answers_at_a_closed_port() -> None:
    message = "cannot join the Ray cluster at --address 127.0.0.1:1: nothing answers at 127.0.0.1:1"
    with pytest.raises(OSError, match=re.escape(message)):
        connect("127.0.0.1:1")


def test_versions_include_this_projects_own_code() -> None:
    assert {"python", "torch", "ray", "optuna", "dcgan-tune"} <= set(versions())
    assert versions() == versions()


def test_machines_that_differ_are_named() -> None:
    ours = versions()
    check_versions(Pretended(a=ours, b=ours))
    other = ours | {"optuna": "1.2.3"}
    message = f"the machines differ: b has optuna 1.2.3, here {ours['optuna']}; install the same"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_versions(Pretended(a=ours, b=other))
    with pytest.raises(OSError, match=r"^b cannot run our code: No module named 'x'; install it"):
        check_versions(Pretended(a=ours, b=ModuleNotFoundError("No module\nnamed 'x'")))


def test_a_machine_without_the_data_is_named() -> None:
    source = Source("mnist")
    check_data(Pretended(a=None), source)
    with pytest.raises(OSError, match=r"^b has no mnist: MNIST is not in /x$"):
        check_data(Pretended(a=None, b=FileNotFoundError("MNIST is not\nin /x")), source)


def test_a_storage_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    store = Mirror(tmp_path / "copy", str(tmp_path / "mounted" / "run"))
    check_storage(store, None)
    check_storage(store, Pretended(a=room.use_storage))
    assert not list((tmp_path / "mounted").iterdir())
    blind = Pretended(
        a=room.use_storage, b=FileNotFoundError("it does not see there what the driver wrote")
    )
    message = (
        f"--storage {tmp_path / 'mounted'} must be one that every machine of the cluster reaches, "
        f"such as a folder that all machines mount, or s3://BUCKET/FOLDER: "
        f"b: it does not see there what the driver wrote"
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        check_storage(store, blind)
    assert not list((tmp_path / "mounted").iterdir())


def test_a_folder_of_this_machine_alone_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it does not see there what the driver wrote"):
        room.use_storage(str(tmp_path / "elsewhere"))


def test_the_token_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
