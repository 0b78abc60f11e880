"""Folders that outlast their machine.

A `Store` is the folder of a search or a trial. A `Mirror` is one that is a working copy of a folder
in an object store (s3:, gs:), or in a folder that several machines mount: it holds the same
files under the same names. The driver works on one copy, each trial on one of its own, and both
upload files as soon as these have to outlast the machine: a decision before it takes effect, an
epoch as often as its upload is worth (`tune.trainable.Pace`).
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
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dcgan.files import replace
from dcgan.schema import DRIVER_FILE, LOCK_FILE, STUDY_FILE, TRACKER_LOCK_FILE

COPIES = Path("~/.cache/dcgan")
LOCK_FILES = (LOCK_FILE, TRACKER_LOCK_FILE)
NEVER_UPLOADED = (*LOCK_FILES, "*.tmp", ".ray/*", "wandb.log")
SMALL = ("*.json", "*.txt", "*.csv", "*.md", "*.html", "*.png", "wandb/*")
VERSION_KEYS = ("size", "ETag", "LastModified", "etag", "updated", "mtime", "created")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class StorageError(OSError):
    """The storage cannot be reached, or refuses; whether it did before is not known."""


class Store:
    """A folder of this machine, which is all there is: nothing has to be fetched or uploaded.

    Of a `Mirror` every method raises StorageError where the storage cannot be used.
    """

    is_mirror = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        """Where the files are found: the folder, or the URI that it is a copy of."""

    def has(self, name: str) -> bool:
        """Whether a file or folder of this name is where the files outlast the machine."""
        return (self.folder / name).exists()

    def siblings(self, name: str) -> list[str]:
        """Names of the folders beside this one that have a file of this name."""
        fs, root = file_system(self.location)
        parent = root.rpartition("/")[0]
        return sorted(Path(found).parent.name for found in fs.glob(f"{parent}/*/{name}"))

    def inside(self, name: str) -> "Store":
        """The store of a folder in this one, in the same copy."""
        return Store(self.folder / name)

    def trial(self, name: str) -> "Store":
        """The store of a trial, as the worker that trains it opens it."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return Store(self.folder / name)

    def begin(self) -> None:
        """Makes this process the driver of the folder's search."""

    def clear(self) -> None:
        """Empties a copy, which may be of another search of the same name."""

    def get(self, *patterns: str, depth: int | None = None) -> None:
        """Brings the files up to date whose names match (`study.db`, `*/result.json`), or all of
        them; `depth` limits the levels of folders to look into."""

    def get_small(self) -> None:
        """Brings all but studies, checkpoints and TensorBoard files up to date."""
        self.get(*SMALL)

    def put(self, *paths: Path) -> None:
        """Uploads what is new or changed of these files and folders, or of all."""

    def remove(self, name: str) -> None:
        """Removes a file or folder of a mirror from the storage, and from the copy."""

    def commit(self, record: Path) -> None:
        """Uploads the record of a decision; a StorageError if another process is the driver now."""


class Mirror(Store):
    """A working copy of the folder at `uri`: of an object store, or one that machines mount."""

    is_mirror = True

    def __init__(self, folder: Path, uri: str) -> None:
        super().__init__(folder)
        self.location = uri
        self.driver_uri = f"{uri}/{DRIVER_FILE}"  # of the search, also where this is a part of it
        self.owner = ""
        # size and time of the copy's files that the storage has, by name
        self._uploaded: dict[str, tuple[int, int]] = {}
        # version in the storage of the files that the copy has, by name
        self._fetched: dict[str, str] = {}

    def has(self, name: str) -> bool:
        with self._explained("read") as (fs, root):
            fs.invalidate_cache()
            return bool(fs.exists(f"{root}/{name}"))

    def inside(self, name: str) -> "Mirror":
        mirror = Mirror(self.folder / name, f"{self.location}/{name}")
        mirror.driver_uri, mirror.owner = self.driver_uri, self.owner
        return mirror

    def trial(self, name: str) -> Store:
        # A folder that is not mounted on this machine would take everything in silence.
        if not self.has(STUDY_FILE):
            raise StorageError(f"{self.location} is not to be seen from {socket.gethostname()}")
        # In Ray's working folder of the trial; what an earlier attempt left is older than the
        # storage.
        copy = Mirror(Path.cwd() / name, f"{self.location}/{name}")
        shutil.rmtree(copy.folder, ignore_errors=True)
        copy.folder.mkdir(parents=True)
        copy.get()
        return copy

    def begin(self) -> None:
        """Makes the copy fresh, and this process the driver: a former driver that still lives finds
        out at its next decision, and ends."""
        self.clear()
        self.get_small()
        self.get("*.db")  # once: from now on it is written here
        since = f"{datetime.datetime.now():%F %T} ({secrets.token_hex(4)})"
        self.owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        replace(self.folder / DRIVER_FILE, self.owner.encode())
        self.put(self.folder / DRIVER_FILE)

    def clear(self) -> None:
        for path in self.folder.glob("*"):
            if path.name not in LOCK_FILES:
                delete(path)
        self._uploaded.clear()
        self._fetched.clear()

    def get(self, *patterns: str, depth: int | None = None) -> None:
        with self._explained("read") as (fs, root):
            fs.invalidate_cache()
            found = fs.find(root, maxdepth=depth, detail=True) if fs.exists(root) else {}
            files, versions = {}, {}  # what to fetch, by name: the unfinished file, and its version
            for path, info in found.items():
                name = str(Path(path).relative_to(root))
                version = str([info.get(key) for key in VERSION_KEYS])
                inside = ".." not in Path(name).parts  # an object may have any name
                if (
                    inside
                    and matches(name, patterns or ("*",))
                    and version != self._fetched.get(name)
                ):
                    files[name] = self.folder / f"{name}.{os.getpid()}.tmp"
                    files[name].parent.mkdir(parents=True, exist_ok=True)
                    versions[name] = version
            try:
                if files:  # one call: storages answer many requests at once
                    fs.get([f"{root}/{name}" for name in files], [str(f) for f in files.values()])
                for name, file in files.items():
                    file.replace(self.folder / name)
                    self._fetched[name] = versions[name]
                    self._uploaded[name] = stamp(self.folder / name)
            finally:
                for file in files.values():
                    file.unlink(missing_ok=True)

    def put(self, *paths: Path) -> None:
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        changed = {}
        for path in paths or (self.folder,):
            for file in [path, *path.rglob("*")]:
                name = str(file.relative_to(self.folder))
                if not file.is_file() or matches(name, NEVER_UPLOADED):
                    continue
                if (now := stamp(file)) != self._uploaded.get(name):
                    changed[name] = now
        with self._explained("written") as (fs, root):
            if isinstance(fs, LocalFileSystem):  # whole or not at all, as object stores do
                for name in changed:
                    (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
                    replace(Path(root) / name, (self.folder / name).read_bytes())
            elif changed:
                copies = [str(self.folder / name) for name in changed]
                fs.put(copies, [f"{root}/{name}" for name in changed])
        self._uploaded |= changed

    def remove(self, name: str) -> None:
        with self._explained("written") as (fs, root), contextlib.suppress(FileNotFoundError):
            fs.rm(f"{root}/{name}", recursive=True)
        delete(self.folder / name)

    def commit(self, record: Path) -> None:
        with self._explained("read") as (fs, _):
            now = fs.cat_file(self.driver_uri).decode()
        if now != self.owner:
            raise StorageError(
                f"{self.location} was taken over by {now}; this one, {self.owner}, has ended"
            )
        self.put(record)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[tuple[Any, str]]:
        """The storage's file system and the path in it, whose errors then name the URI."""
        fs, root = file_system(self.location)
        try:
            yield fs, root
        # each storage has classes of its own, for want of a network, of rights, of credentials
        except Exception as error:
            reason, host = " ".join(str(error).split()), socket.gethostname()
            raise StorageError(
                f"{self.location} cannot be {what} from {host}: {type(error).__name__}: {reason}"
            ) from error


def search_store(storage: str, name: str, *, several: bool) -> Store:
    """Where a search of this name lies: in the folder itself, or, of a URI or for several machines,
    in a copy of it. A ValueError if a URI names no bucket."""
    if storage.endswith("://"):
        raise ValueError(
            f"--storage is {storage}; "
            f"expected a bucket or folder in it, such as {storage}BUCKET/FOLDER"
        )
    if "://" in storage:
        return copy_of(f"{storage.rstrip('/')}/{name}")
    path = Path(storage).expanduser().absolute() / name
    return mirror_of(str(path)) if several else Store(path)


def copy_of(location: str, purpose: str = "searches") -> Store:
    """The folder of a search, or of a URI a copy on this machine for some purpose."""
    if "://" not in location:
        return Store(Path(location).absolute())
    return mirror_of(location.rstrip("/"), purpose)


def mirror_of(uri: str, purpose: str = "searches") -> Mirror:
    """The copy on this machine of a search in a storage."""
    parent, _, name = uri.rpartition("/")
    readable = re.sub(r"\W+", "-", parent).strip("-")
    digest = hashlib.sha256(parent.encode()).hexdigest()[:8]
    return Mirror(COPIES.expanduser() / purpose / f"{readable}-{digest}" / name, uri)


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI or a path, and the path in it. A ValueError if the kind of
    storage is unknown, or its package not installed."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        fs, root = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(uri.partition("://")[0])
        hint = "allowed: folders, s3://, gs://, what fsspec knows"
        if package:
            hint = f"it needs a package: pip install {package}"
        raise ValueError(f"storage {uri} cannot be used: {hint} ({error})") from error
    return fs, str(root).rstrip("/")


def delete(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name, or its last part, matches one of the patterns."""
    last = Path(name).name
    return any(fnmatch.fnmatch(name, one) or fnmatch.fnmatch(last, one) for one in patterns)


def stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
