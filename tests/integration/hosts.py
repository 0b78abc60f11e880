"""Machines to log in to by SSH, made of this one: namespaces of network, processes, mounts and host
name. Linux, as root.

Each has an address in a private network, an SSH server that takes one key, and a home and a
`/tmp/ray` of its own; the rest of the file system is this machine's. `~/venv` is the environment
that runs the tests. There is no way to the world outside.

All is held by open pipes: when they close, because the test ended or was killed, the kernel removes
the rest.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NEEDED = (ROOT, Path(sys.prefix), Path(sys.base_prefix))
# a host's, mounted over this folder
HOME = next(
    home for home in ("/mnt", "/srv") if not any(path.is_relative_to(home) for path in NEEDED)
)
PINS = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
SSHD = (
    f"-f /dev/null -o HostKey={HOME}/.ssh/host_key -o UsePAM=no -o StrictModes=no "
    f"-o PidFile=none -o MaxStartups=99"
)

# What joins them is in a network namespace too, where this machine's firewall does not apply.
HUB = "ip link add bridge type bridge; ip link set bridge up"
BOOT = f"""
hostname "$1"; mount --bind "$2" {HOME}; cd {HOME}
for file in passwd shadow hosts; do mount --bind $file /etc/$file; done
mkdir -p ray /tmp/ray; mount --bind ray /tmp/ray; mount -t tmpfs tmpfs /run; mkdir /run/sshd
ip link set lo up; "$3" {SSHD}
"""
HOLD = "\necho up; cat; exit"  # until standard input closes


@dataclass(frozen=True)
class Host:
    """One machine; `home` is its home, seen from here."""

    name: str
    ip: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def root(self) -> Path:
        """Its whole file system, seen from here."""
        return Path(f"/proc/{self.process.pid}/root")

    def runs(self, program: bytes) -> bool:
        """Whether a process has this in its command line."""
        for file in self.root.glob("proc/[0-9]*/cmdline"):
            with suppress(OSError):  # the process has just ended
                if program in file.read_bytes():
                    return True
        return False

    def kill(self) -> None:
        """The machine vanishes without a word, as when the power goes."""
        _ip(self.process.pid, "link", "set", "eth0", "down")
        # unshare, which takes the namespace's first process with it, and that one all others
        self.process.kill()
        self.process.wait()


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """`count` hosts, which let in the key `folder/key` as root."""
    subnet = f"10.77.{os.getpid() % 256}"
    ips = [f"{subnet}.{10 + i}" for i in range(count)]
    names = [f"host{i}" for i in range(count)]
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True
    )
    with ExitStack() as stack:
        hub = stack.enter_context(_namespace([], HUB))
        _plug(hub, "uplink", os.getpid(), f"dcgan{os.getpid()}", f"{subnet}.1")
        made = []
        for name, ip in zip(names, ips, strict=True):
            home = folder / name
            _furnish(
                home, folder / "key", "".join(f"{i} {n}\n" for i, n in zip(ips, names, strict=True))
            )
            flags = ["--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
            process = stack.enter_context(_namespace(flags, BOOT, name, str(home), _sshd()))
            _plug(hub, name, process.pid, "eth0", ip)
            made.append(Host(name, ip, home, process))
        yield made


def switch(folder: Path) -> Path:
    """`local.yaml`, made in `folder` by the command that `cluster.yaml` documents."""
    shutil.copy(ROOT / "cluster.yaml", folder)
    command = re.search(
        r"^# +(sed .* cluster\.yaml > local\.yaml)$",
        (folder / "cluster.yaml").read_text(),
        re.MULTILINE,
    )
    assert command, "cluster.yaml documents no switch"
    subprocess.run(command[1], shell=True, cwd=folder, check=True)
    return folder / "local.yaml"


def fill_in(path: Path, hosts: list[Host], key: Path, head: str = "true") -> None:
    """Changes what a person must in `local.yaml`: the first host is the head, where the shell runs
    `head` before Ray starts."""
    config = yaml.safe_load(path.read_text())
    config["provider"] |= {"head_ip": hosts[0].ip, "worker_ips": [host.ip for host in hosts[1:]]}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(key)}
    config["head_start_ray_commands"][-1] = f"{head}\n" + config["head_start_ray_commands"][-1]
    path.write_text(yaml.safe_dump(config))


@contextmanager
def _namespace(flags: list[str], script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["unshare", "--net", *flags, "sh", "-ec", script + HOLD, "sh", *arguments]
    with subprocess.Popen(
        command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n", f"{script} failed"
        yield process


def _plug(hub: subprocess.Popen[bytes], port: str, pid: int, card: str, ip: str) -> None:
    """A cable from a port of the hub to a card of a process's network."""
    _ip(hub.pid, "link", "add", port, "type", "veth", "peer", "name", card, "netns", str(pid))
    _ip(hub.pid, "link", "set", port, "master", "bridge", "up")
    _ip(pid, "address", "add", f"{ip}/24", "dev", card)
    _ip(pid, "link", "set", card, "up")


def _ip(pid: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "--net", "--target", str(pid), "ip", *arguments], check=True)


def _furnish(home: Path, key: Path, addresses: str) -> None:
    ssh = home / ".ssh"
    ssh.mkdir(parents=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / "host_key"], check=True
    )
    shutil.copy(key.with_suffix(".pub"), ssh / "authorized_keys")
    (home / "hosts").write_text("127.0.0.1 localhost\n" + addresses)  # no name server answers
    (home / "passwd").write_text(
        f"root:x:0:0::{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    )
    (home / "shadow").write_text(
        "root:*:::::::\n"
    )  # no password; a locked account could not log in by key either
    (home / "venv").symlink_to(sys.prefix)
    (home / "venv.pins").write_bytes(
        b"".join(pin.read_bytes() for pin in PINS)
    )  # as if set-up had installed it


def _sshd() -> str:
    """The server insists on being called by its whole path."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
