"""A Ray cluster: which machines it has, whether they agree, and whether all reach the storage."""

import contextlib
import hashlib
import logging
import os
import platform
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dcgan.cli import one_line
from dcgan.data import Source, load_split
from dcgan.store import Mirror
from tune.plan import Node

PACKAGES = ("torch", "torchvision", "numpy", "ray", "optuna", "pandas", "fsspec")
ROOMS = [Path(__file__).parents[1] / room for room in ("dcgan", "tune", "analysis")]
SOCKET = "ray/session_2026-01-31_23-59-59_999999_{pid}/sockets/plasma_store"
"""The longest path of Ray's sockets, in the temporary folder."""
SOCKET_BYTES = 107  # of the longest path that Linux takes
ANSWER_SECONDS = 300  # for a check; the first imports PyTorch, and may fetch the data


class Cluster:
    """A cluster that this process is connected to, at `auto`, or host and port of the head.

    Raises:
        OSError: the cluster cannot be joined.
    """

    def __init__(self, address: str) -> None:
        connect(address)
        self.address = address
        self.nodes = living_nodes()
        limits = autoscaler_limits()
        self.autoscales = bool(limits)
        self.cpus, self.gpus = capacity(self.nodes, limits)

    @property
    def several(self) -> bool:
        """Whether it has several machines, or may have them."""
        return len(self.nodes) > 1 or self.autoscales

    def check_ready(self) -> bool:
        """Returns whether a trial can run on a machine by now; an OSError if none ever will."""
        ready = any(node.gpus if self.gpus else node.cpus for node in self.nodes)
        if not ready and not self.autoscales:
            raise OSError(
                f"trials have no CPU in the cluster ({describe_nodes(self.nodes)}); "
                f"are its workers up? see ray status"
            )
        return ready

    def refresh(self) -> None:
        """Looks again which machines there are."""
        self.nodes = living_nodes()

    def run_on_worker(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function on a machine where trials run, with a GPU if they use one, once it is
        up."""
        import ray

        return result(ray.remote(num_cpus=1, num_gpus=min(1, self.gpus))(function).remote(*args))

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Calls a function on all machines at once; gives what each returned or raised, by name."""
        calls = {node.name: self.start(node, function, *args) for node in self.nodes}
        answers: dict[str, Any] = {}
        for name, call in calls.items():
            try:
                answers[name] = result(call, ANSWER_SECONDS)
            except Exception as error:  # of many classes; reported with the machine's name
                answers[name] = error
        return answers

    def start(self, node: Node, function: Callable[..., Any], *args: Any, gpus: float = 0) -> Any:
        """Starts a call of a function on a machine; `result` waits for it."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task: Any = ray.remote(num_cpus=0, num_gpus=gpus)(function)
        return task.options(scheduling_strategy=where).remote(*args)


def connect(address: str) -> None:
    """Makes this process a driver of the cluster; its machines run this checkout's code."""
    use_token()
    import ray
    from ray.exceptions import AuthenticationError

    from tune.stop import answers

    head: str | None = address
    if os.environ.get("RAY_ADDRESS") in ("", "auto", "local"):
        del os.environ["RAY_ADDRESS"]  # which Ray would take for the address that auto asks for
    if address == "auto":
        # private: `ray.init` has no way to ask for the address without trying to connect
        head = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address()
    failure = f"cannot join the Ray cluster at --address {address}"
    if head and not answers(head):  # Ray itself would try for minutes
        raise OSError(f"{failure}: nothing answers at {head}")
    code = {"py_modules": [str(room) for room in ROOMS]}
    try:
        # in workers, modules of the current folder would come before all others
        with contextlib.chdir(ROOMS[0].parent):
            ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise OSError(f"{failure}: {one_line(error)}") from error


def check_temporary() -> None:
    """Refuses by a ValueError a temporary folder whose path is too long for Ray's sockets."""
    heeded = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    inherited = [name for name in heeded if os.environ.get(name)]
    for name in inherited[:1]:
        folder = os.environ[name]
        path = os.path.join(folder, SOCKET.format(pid=os.getpid()))
        excess = len(os.fsencode(path)) - SOCKET_BYTES
        if excess > 0:
            raise ValueError(
                f"the environment's {name} is {folder}, {excess} bytes too long for Ray's sockets; "
                f"name a shorter folder by RAY_TMPDIR, such as /tmp"
            )


def autoscaler_limits() -> Mapping[str, float]:
    """CPU and GPU of all machines that an autoscaler may start; empty where there is none."""
    import ray

    # Private: Ray's public API knows only the machines that have started.
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


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
        raise OSError(one_line(error)) from error


def use_token() -> None:
    """Turns token authentication on if there is a token; Ray reads that as it is imported."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def living_nodes() -> list[Node]:
    """The living machines of the cluster, by name; those of one name with their addresses."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    names = [node["NodeManagerHostname"] for node in alive]
    found = []
    for node, name in zip(alive, names, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"
        cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
        found.append(Node(id=node["NodeID"], name=name, cpus=cpus, gpus=gpus))
    return sorted(found, key=lambda node: node.name)


def capacity(nodes: Sequence[Node], limits: Mapping[str, float]) -> tuple[int, int]:
    """CPUs for trials, and GPUs, of a cluster; where it has GPUs, CPUs beside them."""
    gpus = max(sum(node.gpus for node in nodes), limits.get("GPU", 0))
    cpus = max(sum(node.cpus for node in nodes if node.gpus or not gpus), limits.get("CPU", 0))
    return int(cpus), int(gpus)


def describe_nodes(nodes: Sequence[Node]) -> str:
    """The machines as a person reads them."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    text = f"{len(nodes)} machine{'s' * (len(nodes) != 1)}, {cpus:.0f} CPUs"
    if gpus:
        text += f", {gpus:.0f} GPUs"
    text += f": {', '.join(node.name for node in nodes[:8])}"
    if len(nodes) > 8:
        text += f" and {len(nodes) - 8} more"
    return text


def versions() -> dict[str, str]:
    """What has to be equal on all machines: Python, the packages that compute, and our own code."""
    code = hashlib.sha256()
    for room in ROOMS:
        for file in sorted(room.rglob("*.py")):
            code.update(file.read_bytes())
    packages = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **packages, "dcgan-tune": code.hexdigest()[:12]}


def check_versions(cluster: Cluster) -> None:
    """Compares each machine with this one.

    Raises:
        ValueError: names machines, packages and versions that differ.
        OSError: names a machine that cannot run our code.
    """
    ours, wrong = versions(), []
    for name, theirs in cluster.run_everywhere(versions).items():
        if isinstance(theirs, Exception):
            raise OSError(
                f"{name} cannot run our code: {one_line(theirs)}; install it there as here "
                f"(pip install -c constraints.txt -e '.[cluster]')"
            )
        differing = [f"{k} {theirs[k]}, here {ours[k]}" for k in ours if theirs[k] != ours[k]]
        if differing:
            wrong.append(f"{name} has {'; '.join(differing)}")
    if wrong:
        raise ValueError(
            f"the machines differ: {' · '.join(wrong)}; install the same everywhere, with -c "
            f"constraints.txt"
        )


def check_data(cluster: Cluster, source: Source) -> None:
    """Has every machine look for its data, or fetch them; an OSError names one that cannot."""
    for name, answer in cluster.run_everywhere(find_data, source).items():
        if isinstance(answer, Exception):
            raise OSError(f"{name} has no {source.dataset}: {one_line(answer)}")


def find_data(source: Source) -> None:
    """Has this machine look for its data."""
    load_split(source, "train")


def check_storage(store: Mirror, cluster: Cluster | None) -> None:
    """Has every machine read, write and delete in the storage; an OSError names who cannot."""
    parent, _, name = store.location.rpartition("/")
    with tempfile.TemporaryDirectory() as folder:
        probe = Mirror(Path(folder), f"{parent}/.preflight-{name}-{secrets.token_hex(4)}")
        (probe.folder / "driver.txt").write_text(probe.location)
        try:
            probe.put()
            if cluster is None:
                use_storage(probe.location)
                return
            found = cluster.run_everywhere(use_storage, probe.location)
        finally:
            probe.remove("")
    failures = [f"{name}: {one_line(e)}" for name, e in found.items() if isinstance(e, Exception)]
    if failures:
        text = f"--storage {parent} must be one that every machine of the cluster reaches"
        if "://" not in parent:
            text += ", such as a folder that all machines mount, or s3://BUCKET/FOLDER"
        raise OSError(f"{text}: {'; '.join(failures)}")


def use_storage(uri: str) -> None:
    """Reads the driver's file in a storage, and writes, lists, reads and deletes one of its own."""
    file, name = f"{secrets.token_hex(8)}.txt", socket.gethostname()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        mine, again = Mirror(Path(one), uri), Mirror(Path(other), uri)
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
