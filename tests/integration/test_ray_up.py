"""`cluster.yaml`: `ray up` on three machines (made by `hosts.py`), work on them, `ray down`."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from hosts import HOME, ROOT, Host, fill_in, hosts, switch
from object_store import BUCKET, s3
from ray.autoscaler._private.util import prepare_config, validate_config
from search_processes import BY_CHANCE, FEW_DIGITS, SEARCH, TINY, at
from search_results import rows_of, rows_stored

BIN = Path(sys.executable).parent
PROGRAMS = ("ip", "unshare", "nsenter", "sshd", "ssh-keygen", "rsync")
WHERE = f"{os.environ['PATH']}:/usr/sbin:/sbin"
launches = pytest.mark.skipif(  # in CI a missing program is a failure
    sys.platform != "linux"
    or os.geteuid() != 0
    or (
        "CI" not in os.environ
        and not all(shutil.which(program, path=WHERE) for program in PROGRAMS)
    ),
    reason="makes machines of namespaces: needs root on Linux, iproute2, util-linux, "
    "openssh-server and rsync",
)
pytestmark = [pytest.mark.timeout(600)]

# So that Ray misses a machine within 12 s, not 65 s. Shorter, and on a busy machine it misses those
# that are up.
IMPATIENT = (
    "export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 "
    "RAY_health_check_failure_threshold=3"
)
WAIT_FOR_NODES = """
import ray, sys, time
ray.init("auto", log_to_driver=False)
while True:
    alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if len(alive) >= int(sys.argv[1]):
        break
    time.sleep(0.2)
print("nodes:", *alive)
"""
STORAGE = f"s3://{BUCKET}/runs"


@dataclass(frozen=True)
class Cluster:
    """A running cluster, seen from the machine that launched it."""

    config: Path
    hosts: list[Host]
    """The first is the head."""
    environment: dict[str, str]
    token: str
    output: str
    """Of `ray up`."""
    object_store: dict[str, str]

    def ray(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return ray(self.environment | variables, *arguments)

    def exec(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on the head, as the header of cluster.yaml says."""
        return self.ray("exec", str(self.config), command)


def ray(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = own | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    assert ray(environment, "get-auth-token", "--generate").returncode == 0
    with hosts(3, folder) as machines, s3(machines[0].ip.rpartition(".")[0] + ".1") as object_store:
        for host in machines:
            configure_s3(host, object_store)
        config = switch(folder)
        fill_in(config, machines, folder / "key", IMPATIENT)
        up = ray(environment, "up", "-y", str(config))
        assert up.returncode == 0, up.stdout
        made = Cluster(
            config,
            machines,
            environment,
            (folder / ".ray/auth_token").read_text(),
            up.stdout,
            object_store,
        )
        (machines[0].home / "wait.py").write_text(WAIT_FOR_NODES)
        nodes = made.exec("timeout 240 python ~/wait.py 3")
        assert f"nodes: {' '.join(host.ip for host in machines)}" in nodes.stdout, (
            nodes.stdout + launcher_log(machines[0])
        )
        yield made


def configure_s3(host: Host, variables: dict[str, str]) -> None:
    """Gives a host credentials of its own, as a person would who has a server of S3's kind."""
    folder = host.home / ".aws"
    folder.mkdir()
    (folder / "config").write_text(
        f"[default]\nendpoint_url = {variables['AWS_ENDPOINT_URL']}\nregion = us-east-1\n"
    )
    keys = [
        f"{name.lower()} = {variables[name]}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    (folder / "credentials").write_text("\n".join(["[default]", *keys, ""]))


def search(*arguments: str) -> str:
    """The command line, for `ray exec`, of a search on the cluster."""
    words = [*(f"{name}={value}" for name, value in FEW_DIGITS.items()), "python", "-u", *SEARCH]
    words += ["--address", "auto", "--wandb", "disabled", *arguments]
    return f"cd ~/dcgan-tune && timeout 400 env {shlex.join(words)}"


def launcher_log(head: Host) -> str:
    """The end of the head's logs of its autoscaler, which logs in to the workers, and of who is
    alive."""
    files = [
        *head.root.glob("tmp/ray/session_2*/logs/monitor.*"),
        *head.root.glob("tmp/ray/session_2*/logs/gcs_server.out"),
    ]
    return "".join(
        f"\n--- {file.name}\n{file.read_text(errors='replace')[-5000:]}" for file in files
    )


@pytest.fixture(scope="module")
def dashboard(cluster: Cluster) -> Iterator[str]:
    """The dashboard's address at this end of the tunnel."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [BIN / "ray", "dashboard", cluster.config, "--port", str(port)],
        env=cluster.environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as tunnel:
        try:
            while refuses("127.0.0.1", port):
                assert tunnel.poll() is None
                time.sleep(0.1)
            yield f"http://localhost:{port}"
        finally:
            os.killpg(tunnel.pid, signal.SIGTERM)


def refuses(ip: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(5)
        try:
            client.connect((ip, port))
        except ConnectionRefusedError:
            return True
        return False


@pytest.mark.parametrize("provider", ["aws", "local"])
def test_schema(tmp_path: Path, provider: str) -> None:
    path = switch(tmp_path) if provider == "local" else ROOT / "cluster.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["provider"]["type"] == provider
    validate_config(prepare_config(config))


def test_a_worker_starts_with_mps_or_goes_on_without(tmp_path: Path) -> None:
    programs = {"ray": 'echo "$@"', "nvidia-cuda-mps-control": f"touch {tmp_path}/mps; exit 1"}
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    start = config["worker_start_ray_commands"][-1]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    printed = subprocess.run(
        ["bash", "-c", start], env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    assert printed.strip() == "start --address=10.0.0.1:6379"
    assert (tmp_path / "mps").exists()


@launches
@pytest.mark.slow
def test_every_machine_asks_for_the_token(cluster: Cluster) -> None:
    for host in cluster.hosts:
        agent = f"http://{host.ip}:52365/api/job_agent/jobs/"  # takes jobs, on every machine
        assert requests.post(agent, json={"entrypoint": "id"}, timeout=10).status_code == 401
    status = cluster.ray(
        "status", "--address", f"{cluster.hosts[0].ip}:6379", RAY_AUTH_MODE="disabled"
    )
    assert status.returncode != 0
    assert "InvalidAuthToken" in status.stdout, status.stdout


@launches
@pytest.mark.slow
@pytest.mark.parametrize("port", [8265, 10001], ids=["dashboard", "client"])
def test_head_listens_on_loopback_only(cluster: Cluster, port: int) -> None:
    assert refuses(cluster.hosts[0].ip, port)


@launches
@pytest.mark.slow
def test_job_through_the_tunnel(cluster: Cluster, dashboard: str) -> None:
    arguments = ["--search", "baseline", *TINY, "--no-estimate", "--storage", STORAGE, "--dry-run"]
    # without --address: a job learns of the cluster from Ray
    plan = f"cd ~/dcgan-tune && exec python -m tune.run {shlex.join(arguments)}"
    job = ["job", "submit", "--address", dashboard, "--", "sh", "-c", plan]
    done = cluster.ray(*job, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout
    assert re.search("^cluster +3 machines, .*: host0, host1, host2$", done.stdout, re.MULTILINE), (
        done.stdout
    )
    refused = cluster.ray(*job, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong")
    assert refused.returncode != 0
    assert "Invalid authentication token" in refused.stdout, refused.stdout
    refused = cluster.ray(*job)
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stdout, refused.stdout


@launches
@pytest.mark.slow
def test_token_stands_in_its_file_only(cluster: Cluster) -> None:
    assert cluster.token not in cluster.output
    for host in cluster.hosts:
        assert (host.home / ".ray/auth_token").read_text() == cluster.token
        logs = [file for file in host.root.glob("tmp/ray/session_2*/logs/**/*") if file.is_file()]
        assert logs
        assert not [file for file in logs if cluster.token.encode() in file.read_bytes()]


@launches
@pytest.mark.slow
def test_a_folder_of_one_machine_alone_is_refused(cluster: Cluster) -> None:
    done = cluster.exec(search(*BY_CHANCE, *at(f"{HOME}/runs")))
    assert done.returncode != 0
    assert (
        "one that every machine of the cluster reaches, such as a folder that all machines mount, "
        "or s3://" in done.stdout
    )
    for host in cluster.hosts[1:]:
        assert f"{host.name}: it does not see there what the driver wrote" in done.stdout, (
            done.stdout
        )
    assert "Traceback" not in done.stdout


@launches
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_goes_on_without_a_machine_that_vanishes(
    cluster: Cluster, undisturbed_by_chance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials end on the machines that are left, with the rows of an undisturbed search on one
    machine."""
    for name, value in cluster.object_store.items():
        monkeypatch.setenv(name, value)
    victim = cluster.hosts[-1]
    with subprocess.Popen(
        [BIN / "ray", "exec", cluster.config, search(*BY_CHANCE, *at(STORAGE))],
        cwd=ROOT,
        env=cluster.environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        deadline = time.monotonic() + 300
        while rows_stored(f"{STORAGE}/s") < 5 or not victim.runs(b"ray::ImplicitFunc"):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the search did not get that far in time"
            time.sleep(0.5)
        victim.kill()
        output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert f"everything is in {STORAGE}/s:" in output
    assert rows_of(f"{STORAGE}/s").equals(rows_of(undisturbed_by_chance))


@launches
@pytest.mark.slow
def test_down(cluster: Cluster) -> None:
    """Has to be the file's last: there is no cluster afterwards."""
    head = cluster.hosts[0]
    assert head.runs(b"raylet")
    down = cluster.ray("down", "-y", str(cluster.config))
    assert down.returncode == 0, down.stdout
    assert not head.runs(b"raylet")  # the workers' miss it, and end, within a minute
