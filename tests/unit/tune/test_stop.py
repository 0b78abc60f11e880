"""How a search stops before its end, without Ray: signals, and parts of Ray that have died."""

import dataclasses
import os
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tune import stop as room
from tune.plan import Plan
from tune.stop import Stop, answers, stop_signals


@pytest.fixture(autouse=True)
def no_signals_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that `stop_signals` sets is taken back."""
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "0")


class Process:
    """One of Ray's processes."""

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Node:
    """Ray's node of this process, of which some processes have died."""

    def __init__(self, *dead: str) -> None:
        self.dead = dead
        self.processes = [Process(), Process()]
        self.all_processes = {"raylet": [SimpleNamespace(process=p) for p in self.processes]}

    def dead_processes(self) -> list[tuple[str, Any]]:
        return [(kind, None) for kind in self.dead]


class EndedError(Exception):
    """This process would have ended."""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    """Ray's node, and an `os._exit` that only raises."""

    def end(code: int) -> None:
        assert code == 130
        raise EndedError

    node = Node()
    monkeypatch.setattr("ray._private.worker._global_node", node)
    monkeypatch.setattr(os, "_exit", end)
    return node


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_tune_to_end_and_the_second_ends_at_once(
    number: signal.Signals, plan: Plan, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = Stop(plan)
    ends: list[str] = []
    before = signal.getsignal(number)
    with stop_signals(stop):
        signal.signal(signal.SIGUSR1, lambda *arguments: ends.append("fit"))  # as Tune does
        signal.raise_signal(number)
        assert (stop.asked, ends) == (True, ["fit"])
        assert stop.timer.is_alive()  # for a search that does not end
        stop.timer.cancel()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert ends == ["fit"]
    assert signal.getsignal(number) == before
    assert "stopping; what was computed is kept (again: stop at once)" in capsys.readouterr().out


def test_a_signal_before_tune_runs_ends_at_once(plan: Plan, node: Node) -> None:
    stop = Stop(plan)
    with stop_signals(stop), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not stop.asked
    assert not stop.timer.is_alive()


def test_all_handlers_are_put_back_and_the_watch_ends_whatever_happens(
    plan: Plan, node: Node
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    threads = set(threading.enumerate())

    def fail() -> None:
        with stop_signals(Stop(plan)):
            signal.signal(signal.SIGUSR1, lambda *arguments: None)
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert [signal.getsignal(number) for number in numbers] == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()


def test_stopping_at_once_kills_rays_node_and_says_how_to_go_on(
    plan: Plan, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EndedError):
        Stop(plan).at_once()
    assert all(process.killed for process in node.processes)
    assert capsys.readouterr().out == f"\nstopped; go on with: {plan.resume_command}\n"


# Parts of Ray that die


class Looks:
    """Ends a watch that has looked three times, without a pause."""

    def __init__(self) -> None:
        self.count = 0

    def wait(self, seconds: float) -> bool:
        self.count += 1
        return self.count > 3


def watch(plan: Plan) -> None:
    """Watches Ray for a while."""
    stop = Stop(plan)
    stop.over = Looks()  # type: ignore[assignment]
    stop.watch()


@pytest.mark.parametrize(
    ("dead", "shown"),
    [
        (["raylet"], "raylet"),
        (["gcs_server"], "gcs_server"),
        (["raylet", "gcs_server"], "raylet, gcs_server"),
        (["log_monitor", "raylet"], "raylet"),
    ],
)
def test_a_dead_node_ends_the_search(
    dead: list[str],
    shown: str,
    plan: Plan,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node.dead = tuple(dead)
    with pytest.raises(EndedError):
        watch(plan)
    output = capsys.readouterr().out
    assert output.startswith(f"\nRay's {shown} died: killed, or out of memory?\n")
    assert output.endswith(f"go on with: {plan.resume_command}\n")


def test_what_a_search_can_do_without_may_die(plan: Plan, node: Node) -> None:
    node.dead = ("log_monitor", "dashboard")
    watch(plan)


@pytest.mark.parametrize("alive", [True, False])
def test_a_cluster_whose_head_is_gone_ends_the_search(
    alive: bool,
    make_demo_plan: Any,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = dataclasses.replace(make_demo_plan(), address="10.0.0.1:6379")
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(room, "answers", lambda address, tries: alive)
    if alive:
        watch(plan)
        return
    with pytest.raises(EndedError):
        watch(plan)
    assert "Ray's head died" in capsys.readouterr().out


def test_an_address_answers_if_something_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(room, "time", SimpleNamespace(sleep=waited.append))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert answers(address)
    assert not answers(address)
    waited.clear()
    assert not answers(address, tries=3)
    assert waited == [0, 3, 3]
