"""How a search stops before its end: asked by a signal, or since a part of Ray has died.

Private members of Ray: `_private.worker._global_node` and its processes, since a driver would wait
for a dead node for ever.
"""

import contextlib
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import ray

from tune.plan import Plan

STOP_SECONDS = 8  # an interrupted search that has not ended by then ends hard


class Stop:
    """Whether the search was asked to stop, and how it is made to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.asked = False
        self.over = threading.Event()
        self.timer = threading.Timer(STOP_SECONDS, self.at_once)
        self.timer.daemon = True

    def ask(self, number: int, frame: types.FrameType | None) -> None:
        """Asks Tune to end `fit`, by SIGUSR1; ends harder the second time, or before Ray is up."""
        if self.asked or signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping; what was computed is kept (again: stop at once)", flush=True)
        self.timer.start()
        signal.raise_signal(signal.SIGUSR1)

    def at_once(self) -> None:
        """Ends this process and its Ray node, which may hang; every decision is on disk."""
        print(f"\nstopped; go on with: {self.plan.resume_command}", flush=True)
        node: Any = ray._private.worker._global_node
        for infos in node.all_processes.values():
            for info in infos:
                info.process.kill()
        os._exit(130)

    def watch(self) -> None:
        """Stops at once if a part of its node, or the head, dies: a driver would wait for ever."""
        node: Any = ray._private.worker._global_node
        while not self.over.wait(1):
            dead = [kind for kind, _ in node.dead_processes() if kind in ("raylet", "gcs_server")]
            if self.plan.address:
                head = ray.get_runtime_context().gcs_address
                dead = dead if answers(head, tries=5) else ["head"]
            if dead:
                print(f"\nRay's {', '.join(dead)} died: killed, or out of memory?", flush=True)
                self.at_once()


def answers(address: str, tries: int = 1) -> bool:
    """Whether something listens at `HOST:PORT`; asked several times, since a head may be busy."""
    host, _, port = address.rpartition(":")
    for attempt in range(tries):
        time.sleep(3 * (attempt > 0))
        try:
            socket.create_connection((host, int(port)), timeout=3).close()
        except OSError:
            continue
        return True
    return False


@contextlib.contextmanager
def stop_signals(stop: Stop) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end `Tuner.fit` early but cleanly. (Ray's own handler swallows later
    ones; SIGTERM aborts.)"""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    signal.signal(signal.SIGINT, stop.ask)
    signal.signal(signal.SIGTERM, stop.ask)
    threading.Thread(target=stop.watch, daemon=True).start()
    try:
        yield
    finally:
        stop.over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
