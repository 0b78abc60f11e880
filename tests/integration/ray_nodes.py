"""A Ray cluster of several nodes on this machine (Ray's own, for tests), in processes of its own
that can be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPT = """
import json, sys
from ray.cluster_utils import Cluster
nodes = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], "include_dashboard": False})
for node in nodes[1:]:
    cluster.add_node(**node)
print("address", cluster.address, flush=True)
for node in sys.stdin:
    cluster.add_node(**json.loads(node))
    print("added", flush=True)
"""


@contextlib.contextmanager
def ray_nodes(home: Path, *nodes: dict[str, Any]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A cluster of such nodes, the first of which is the head: its address, and its process group,
    to be killed whole."""
    home.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(nodes)],
        env={**os.environ, "HOME": str(home)},
        text=True,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("address "):
                break
        else:
            raise AssertionError("".join(lines))
        yield lines[-1].split()[1], process
    finally:
        kill(process)
        for stream in (process.stdin, process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def add_node(cluster: subprocess.Popen[str], node: dict[str, Any]) -> None:
    """One more node, in a cluster that runs."""
    assert cluster.stdin
    assert cluster.stdout
    cluster.stdin.write(json.dumps(node) + "\n")
    cluster.stdin.flush()
    assert any(line == "added\n" for line in cluster.stdout)


def kill(process: subprocess.Popen[str]) -> None:
    """Ends all nodes at once, as when the power goes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
