"""A cluster that Ray runs on: which machines it has, whether they agree, and whether all of them reach the storage."""

import hashlib
import logging
import os
import platform
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dcgan.config import TrainConfig
from dcgan.data import Source, load_split, source
from tune.storage import Store

GPU_MEMORY = "gpu_memory"  # the resource that a machine declares, GiB of all its GPUs
PACKAGES = ("torch", "torchvision", "numpy", "ray", "optuna", "pandas", "fsspec")
ROOMS = ("dcgan", "tune", "analysis")
ANSWER_SECONDS = 300  # that each machine has for a check; the first imports PyTorch, and may fetch the data

There = Callable[..., Any]
"""Calls a function with arguments where trials run: on this machine, or on one of the cluster's."""


def here(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function on this machine."""
    return function(*args)


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    cpus: float
    gpus: float
    gpu_gib: float = 0.0
    """What it declares as `gpu_memory`: of all its GPUs, GiB."""


class Cluster:
    """A cluster that this process is connected to.

    Args:
        address: `auto`, or host and port of the head; Ray's client (`ray://`) is refused, since the driver has to be part of
            the cluster.

    Raises:
        ValueError: the address is of another kind.
        OSError: there is no cluster, it does not let this process in, or has another version of Ray or Python.
    """

    def __init__(self, address: str) -> None:
        host, colon, port = address.rpartition(":")
        if address != "auto" and ("://" in address or not (host and colon and port.isdecimal())):
            raise ValueError(f"--address is {address}; allowed is auto, or HOST:PORT of the cluster's head, from one of its "
                             f"machines; from elsewhere: ray job submit, or ray exec (docs/cluster.md)")  # fmt: skip
        use_token()
        import ray
        from ray._private.utils import read_ray_address
        from ray.exceptions import AuthenticationError

        head = (os.environ.get("RAY_ADDRESS") or read_ray_address()) if address == "auto" else address
        if head and not answers(head):  # Ray itself would try for minutes
            raise OSError(f"cannot join the Ray cluster at --address {address}: nothing answers at {head}")
        root = Path(__file__).parents[1]
        code = {"py_modules": [str(root / room) for room in ROOMS]}  # each machine runs the code of the driver
        try:
            ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            reason = " ".join(str(error).split())
            raise OSError(f"cannot join the Ray cluster at --address {address}: {reason}") from error
        self.address = address
        self.nodes = nodes()
        most = ray._private.state.state.get_max_resources_from_cluster_config()
        self.autoscales = bool(most)
        self.room = capacity(self.nodes, most or {})

    @property
    def several(self) -> bool:
        """Whether it has several machines, or may have them."""
        return len(self.nodes) > 1 or self.autoscales

    def check_ready(self) -> bool:
        """Whether a trial can run on one of its machines by now.

        Raises:
            OSError: none can, and none will come.
        """
        ready = any(node.gpus if self.room[1] else node.cpus for node in self.nodes)
        if not ready and not self.autoscales:
            raise OSError(f"trials have no CPU in the cluster ({describe(self.nodes)}); are its workers up? see ray status")
        return ready

    def refreshed(self) -> list[Node]:
        """The machines as they are now."""
        self.nodes = nodes()
        return self.nodes

    def there(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function on a machine where trials run, with a GPU to itself if they use one; waits until there is one."""
        import ray

        return result(ray.remote(num_cpus=1, num_gpus=min(1, self.room[1]))(function).remote(*args))

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Calls a function on every machine at the same time; what each returned or raised, by its name."""
        calls = {node.name: self.call(node, function, *args) for node in self.nodes}
        answers: dict[str, Any] = {}
        for name, call in calls.items():
            try:
                answers[name] = result(call, ANSWER_SECONDS)
            except Exception as error:  # of many classes; told with the machine's name
                answers[name] = error
        return answers

    def call(self, node: Node, function: Callable[..., Any], *args: Any, gpus: float = 0) -> Any:
        """Begins to call a function on a machine."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task: Any = ray.remote(num_cpus=0, num_gpus=gpus)(function)
        return task.options(scheduling_strategy=where).remote(*args)


def result(call: Any, timeout: float | None = None) -> Any:
    """What a task returned; what it raised is raised as it was."""
    import ray

    try:
        return ray.get(call, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(f"no answer within {timeout:.0f} s") from None
    except ray.exceptions.RayError as error:  # the worker, or its machine, is gone
        raise OSError(" ".join(str(error).split())) from error


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


def use_token() -> None:
    """Turns token authentication on where there is a token, as `ray.init` does for clusters that it starts itself."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def nodes() -> list[Node]:
    """The living machines of the cluster. Those of one name are told apart by their addresses."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    names = [node["NodeManagerHostname"] for node in alive]
    found = []
    for node, name in zip(alive, names, strict=True):
        told, address = node["Resources"], f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        found.append(
            Node(
                id=node["NodeID"],
                name=name if names.count(name) == 1 else f"{name} ({address})",
                cpus=told.get("CPU", 0.0),
                gpus=told.get("GPU", 0.0),
                gpu_gib=told.get(GPU_MEMORY, 0.0),
            )
        )
    return sorted(found, key=lambda node: node.name)


def capacity(nodes: Sequence[Node], most: Mapping[str, float]) -> tuple[int, int]:
    """CPUs for trials, and GPUs, of a cluster; where it has GPUs, CPUs beside them.

    Args:
        most: CPU and GPU of all machines that an autoscaler may start, if there is one.
    """
    gpus = max(sum(node.gpus for node in nodes), most.get("GPU", 0))
    cpus = max(sum(node.cpus for node in nodes if node.gpus or not gpus), most.get("CPU", 0))
    return int(cpus), int(gpus)


def describe(nodes: Sequence[Node]) -> str:
    """The machines as a person reads them."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    names = ", ".join(node.name for node in nodes[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
    machines = f"{len(nodes)} machine{'s' * (len(nodes) != 1)}"
    return f"{machines}, {cpus:.0f} CPUs" + (f", {gpus:.0f} GPUs" if gpus else "") + f": {names}"


def versions() -> dict[str, str]:
    """What has to be equal on all machines: Python, the packages that compute, and our own code."""
    code = hashlib.sha256()
    for room in ROOMS:
        for file in sorted((Path(__file__).parents[1] / room).rglob("*.py")):
            code.update(file.read_bytes())
    return {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}, "dcgan-tune": code.hexdigest()[:12]}


def check_versions(cluster: Cluster) -> None:
    """Compares each machine with this one.

    Raises:
        ValueError: names machines, packages and versions that differ.
        OSError: a machine did not answer.
    """
    ours, wrong = versions(), []
    for name, theirs in cluster.everywhere(versions).items():
        if isinstance(theirs, Exception):
            raise OSError(f"{name} cannot run our code: {' '.join(str(theirs).split())}; install it there as here "
                          f"(pip install -c constraints.txt -e '.[cluster]')")  # fmt: skip
        differing = [f"{what} {theirs[what]}, here {ours[what]}" for what in ours if theirs[what] != ours[what]]
        wrong += [f"{name} has {'; '.join(differing)}"] if differing else []
    if wrong:
        raise ValueError(f"the machines differ: {' · '.join(wrong)}; install the same everywhere, with -c constraints.txt")


def check_data(cluster: Cluster, config: TrainConfig, data_dir: Path | None) -> None:
    """Has every machine look for its data, and fetch them where it has none, at the same time.

    Raises:
        OSError: names a machine that cannot, and why.
    """
    for name, answer in cluster.everywhere(find_data, source(config, data_dir, torch.device("cpu"))).items():
        if isinstance(answer, Exception):
            raise OSError(f"{name} has no {config.dataset}: {' '.join(str(answer).split())}")


def find_data(source: Source) -> None:
    """Has this machine look for its data."""
    load_split(source, "train")


def check_storage(store: Store, cluster: Cluster | None) -> None:
    """Has every machine list, read, write and delete in the storage, before anything depends on it.

    Raises:
        OSError: names the machines that cannot, and why.
    """
    parent, _, name = store.uri.rpartition("/")
    with tempfile.TemporaryDirectory() as folder:
        probe = Store(Path(folder), f"{parent}/.preflight-{name}-{secrets.token_hex(4)}")
        (probe.folder / "driver.txt").write_text(probe.uri)
        try:
            probe.put()
            if not cluster:
                use_storage(probe.uri)
            answers = cluster.everywhere(use_storage, probe.uri) if cluster else {}
        finally:
            probe.remove("")
    if cannot := {name: " ".join(str(answer).split()) for name, answer in answers.items() if isinstance(answer, Exception)}:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in cannot.items())
        hint = "" if "://" in store.uri else ", such as a folder that all machines mount, or s3://BUCKET/FOLDER"
        raise OSError(f"--storage {parent} must be one that every machine of the cluster reaches{hint}: {reasons}")


def use_storage(uri: str) -> None:
    """Reads the driver's file in a storage, and writes, lists, reads and deletes one of its own.

    Raises:
        OSError: says what fails.
    """
    file, name = f"{secrets.token_hex(8)}.txt", socket.gethostname()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        mine, again = Store(Path(one), uri), Store(Path(other), uri)
        mine.get("driver.txt")
        if not (mine.folder / "driver.txt").is_file():
            raise FileNotFoundError("it does not see there what the driver wrote")
        (mine.folder / file).write_text(name)
        mine.put(mine.folder / file)
        again.get(file)
        if not (again.folder / file).is_file() or (again.folder / file).read_text() != name:
            raise FileNotFoundError("it does not see there what it wrote itself")
        mine.remove(file)
        if again.has(file):
            raise FileExistsError("it cannot delete there what it wrote itself")
