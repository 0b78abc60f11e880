"""Where a search is kept so that it outlasts its machines: an object store (s3://…, gs://…), or a folder that all mount.

The storage holds what a local search's folder holds, under the same names. The driver works on a copy on its own machine,
each trial in a folder of its own, and both put files into the storage as soon as these have to outlast the machine: a
decision before it takes effect, an epoch as often as its upload is worth (`Pace`).
"""

import contextlib
import datetime
import fnmatch
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from dcgan import checkpoint

COPIES = Path("~/.cache/dcgan")
DRIVER = "driver.txt"  # names the process that decides
LOCK = ".lock"
LOCAL = (LOCK, "*.tmp", ".ray/*", "wandb.log")  # never put into the storage
SHARE = 0.05  # of a trial's time that uploads may take


class StorageError(OSError):
    """The storage cannot be reached, or refuses; whether it did before is not known."""


class Store:
    """A folder that is a copy of one in a storage. Without a URI it is no copy, and what follows has nothing to do."""

    def __init__(self, folder: Path, uri: str = "") -> None:
        self.folder, self.uri = folder, uri
        self.owner = ""
        self._put: dict[str, tuple[int, int]] = {}  # size and time of the files here that the storage has, by name
        self._got: dict[str, str] = {}  # version in the storage of the files that are here, by name

    def get(self, *patterns: str) -> None:
        """Brings files up to date whose names match (`study.db`, `*/result.json`), or all.

        Raises:
            StorageError: they cannot be read.
        """
        if not self.uri:
            return
        with self._explained("read") as (fs, root):
            there = self._list(fs, root)
            names = [n for n, version in there.items() if matches(n, patterns or ("*",)) and self._got.get(n) != version]
            files = {name: self.folder / f"{name}.{os.getpid()}.tmp" for name in names}
            for file in files.values():
                file.parent.mkdir(parents=True, exist_ok=True)
            try:
                if files:  # one call: storages answer many requests at once
                    fs.get([f"{root}/{name}" for name in names], [str(file) for file in files.values()])
                for name, file in files.items():
                    file.replace(self.folder / name)
                    self._got[name], self._put[name] = there[name], stamp(self.folder / name)
            finally:
                for file in files.values():
                    file.unlink(missing_ok=True)

    def put(self, *paths: Path) -> None:
        """Puts those of these files, and of the files in these folders, that are new or changed into the storage; or of all.

        Raises:
            StorageError: they cannot be written.
        """
        if not self.uri:
            return
        files = [file for path in paths or (self.folder,) for file in (path.rglob("*") if path.is_dir() else (path,))]
        stamps = {str(file.relative_to(self.folder)): stamp(file) for file in files if file.is_file()}
        changed = [n for n, now in stamps.items() if self._put.get(n) != now and not matches(n, LOCAL)]
        with self._explained("written") as (fs, root):
            if is_folder(fs):  # whole or not at all, as object stores do of themselves
                for name in changed:
                    (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
                    checkpoint.replace(Path(root) / name, (self.folder / name).read_bytes())
            elif changed:
                fs.put([str(self.folder / name) for name in changed], [f"{root}/{name}" for name in changed])
        self._put |= {name: stamps[name] for name in changed}

    def remove(self, name: str) -> None:
        """Removes a file or folder from the storage, and here."""
        if not self.uri:
            return
        with self._explained("written") as (fs, root), contextlib.suppress(FileNotFoundError):
            fs.rm(f"{root}/{name}", recursive=True)
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the storage has a file or folder of this name."""
        with self._explained("read") as (fs, root):
            fs.invalidate_cache()
            return bool(fs.exists(f"{root}/{name}"))

    @property
    def location(self) -> str:
        """The URI, or the folder where there is none."""
        return self.uri or str(self.folder)

    def siblings(self, name: str) -> list[str]:
        """Names of the folders beside this one that have a file of this name."""
        fs, root = file_system(self.location)
        return sorted(Path(found).parent.name for found in fs.glob(f"{root.rpartition('/')[0]}/*/{name}"))

    def begin(self) -> None:
        """Makes this process the driver: the folder becomes a fresh copy of all but what is large, and others are told.

        A former driver that still lives finds out at its next decision, and ends.
        """
        if not self.uri:
            return
        self.clear()
        self.get_small()
        self.get("*.db")  # once: from now on it is written here
        since = f"{datetime.datetime.now():%F %T} ({secrets.token_hex(4)})"
        self.owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        checkpoint.replace(self.folder / DRIVER, self.owner.encode())
        self.put(self.folder / DRIVER)

    def clear(self) -> None:
        """Empties the copy, which may be of a search of the same name that is no longer in the storage."""
        for path in self.folder.iterdir() if self.uri and self.folder.is_dir() else ():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def get_small(self) -> None:
        """Brings all but studies, checkpoints and TensorBoard files up to date."""
        self.get("*.json", "*.txt", "*.csv", "*.md", "*.html", "*.png", "wandb/*")

    def decide(self, record: Path) -> None:
        """Puts the record of a decision into the storage, unless another process has become the driver.

        Raises:
            StorageError: it has, or the storage cannot be written.
        """
        if not self.uri:
            return
        with self._explained("read") as (fs, root):
            now = fs.cat_file(f"{root}/{DRIVER}").decode()
        if now != self.owner:
            raise StorageError(f"{self.uri} was taken over by {now}; this one, {self.owner}, has ended")
        self.put(record)

    def _list(self, fs: Any, root: str) -> dict[str, str]:
        """The version of each file in the storage, by name."""
        fs.invalidate_cache()
        found = fs.find(root, detail=True) if fs.exists(root) else {}
        told = ("size", "ETag", "LastModified", "etag", "updated", "mtime", "created")
        names = {str(Path(path).relative_to(root)): info for path, info in found.items()}
        inside = {name: info for name, info in names.items() if ".." not in Path(name).parts}  # an object may have any name
        return {name: str([info.get(key) for key in told]) for name, info in inside.items()}

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[tuple[Any, str]]:
        """The storage's file system and the path in it; any error of theirs becomes one that names the URI."""
        fs, root = file_system(self.uri)
        try:
            yield fs, root
        except StorageError:
            raise
        except Exception as error:  # each storage has classes of its own, for want of a network, of rights, of credentials
            reason = " ".join(str(error).split())
            raise StorageError(f"{self.uri} cannot be {what} from "
                               f"{socket.gethostname()}: {type(error).__name__}: {reason}") from error  # fmt: skip


class Pace:
    """How often a trial's epochs are put into the storage: so that it takes at most a twentieth of the time.

    What a lost machine costs is the time since the last upload: an epoch, or 20 times what an upload takes.

    Args:
        always: epochs at which a trial may end, or be taken over.
    """

    def __init__(self, always: Collection[int]) -> None:
        self.always = always
        self.next = 0.0

    def keep(self, epoch: int, put: Callable[[], None]) -> None:
        """Puts the epoch, if it is time."""
        start = time.monotonic()
        if epoch in self.always or start >= self.next:
            put()
            now = time.monotonic()
            self.next = now + (now - start) / SHARE


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI or a path, and the path in it.

    Raises:
        ValueError: an unknown kind of storage, or one whose package is not installed.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        fs, root = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        kind = uri.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}.get(kind)
        hint = f"it needs a package: pip install {package}" if package else "allowed: folders, s3://, gs://, what fsspec knows"
        raise ValueError(f"storage {uri} cannot be used: {hint} ({error})") from error
    return fs, str(root).rstrip("/")


def is_folder(fs: Any) -> bool:
    """Whether a file system is this machine's own, which may be a mounted one."""
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    return isinstance(fs, LocalFileSystem)


def place(storage: str, name: str, *, several: bool) -> Store:
    """Where a search of this name lies: in the folder itself, or, of a URI or for several machines, in a copy of it.

    Raises:
        ValueError: a URI that names no bucket.
    """
    if storage.endswith("://"):
        raise ValueError(f"--storage is {storage}; expected a bucket or folder in it, such as {storage}BUCKET/FOLDER")
    if "://" not in storage:
        path = Path(storage).expanduser().absolute() / name
        return Store(working_copy(str(path)), str(path)) if several else Store(path)
    uri = f"{storage.rstrip('/')}/{name}"
    return Store(working_copy(uri), uri)


def stored(location: str, purpose: str = "searches") -> Store:
    """The folder of a search, or of a URI a copy on this machine for some purpose."""
    if "://" not in location:
        return Store(Path(location).absolute())
    uri = location.rstrip("/")
    return Store(working_copy(uri, purpose), uri)


def working_copy(uri: str, purpose: str = "searches") -> Path:
    """The folder of this machine for a search in a storage."""
    parent, _, name = uri.rpartition("/")
    readable = re.sub(r"\W+", "-", parent).strip("-")
    return COPIES.expanduser() / purpose / f"{readable}-{hashlib.sha256(parent.encode()).hexdigest()[:8]}" / name


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name, or its last part, matches one of the patterns."""
    return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(Path(name).name, pattern) for pattern in patterns)


def stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
