"""Folders that outlast their machine.

A `Store` is the folder of a search or a trial. A `Mirror` is one that is a working copy of a folder
in an object store (s3://…, gs://…), or in a folder that several machines mount: it holds the same
files under the same names. The driver works on one copy, each trial on one of its own, and both
upload files as soon as these have to outlast the machine: a decision before it takes effect, an
epoch as often as its upload is worth (`Pace`).
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
from dcgan.schema import DRIVER_FILE, LOCK_FILE, STUDY_FILE

COPIES = Path("~/.cache/dcgan")
NEVER_UPLOADED = (LOCK_FILE, "*.tmp", ".ray/*", "wandb.log")
SMALL = ("*.json", "*.txt", "*.csv", "*.md", "*.html", "*.png", "wandb/*")
"""All files but studies, checkpoints and TensorBoard's."""
VERSION_KEYS = ("size", "ETag", "LastModified", "etag", "updated", "mtime", "created")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class StorageError(OSError):
    """The storage cannot be reached, or refuses; whether it did before is not known."""


class Store:
    """A folder of this machine, which is all there is: nothing has to be fetched or uploaded."""

    is_mirror = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def location(self) -> str:
        """Where the files are found: the folder, or the URI that it is a copy of."""
        return str(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name, where the files outlast the machine."""
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
        """Brings those files up to date whose names match (`study.db`, `*/result.json`), or all.

        Args:
            depth: levels of folders to look into; None looks into all.

        Raises:
            StorageError: they cannot be read.
        """

    def get_small(self) -> None:
        """Brings all but studies, checkpoints and TensorBoard files up to date."""

    def put(self, *paths: Path) -> None:
        """Uploads those of these files, and of the files in these folders, that are new or changed;
        or of all.

        Raises:
            StorageError: they cannot be written.
        """

    def remove(self, name: str) -> None:
        """Removes a file or folder of a mirror from the storage, and from the copy."""

    def commit(self, record: Path) -> None:
        """Uploads the record of a decision, unless another process has become the driver.

        Raises:
            StorageError: it has, or the storage cannot be written.
        """


class Mirror(Store):
    """A folder that is a working copy of one in a storage.

    Args:
        folder: the copy, on this machine.
        uri: the folder in the storage: of an object store, or one that other machines mount, too.
    """

    is_mirror = True

    def __init__(self, folder: Path, uri: str) -> None:
        super().__init__(folder)
        self.uri = uri
        self.driver_uri = f"{uri}/{DRIVER_FILE}"  # of the search, also where this is a part of it
        self.owner = ""
        # size and time of the copy's files that the storage has, by name
        self._uploaded: dict[str, tuple[int, int]] = {}
        # version in the storage of the files that the copy has, by name
        self._fetched: dict[str, str] = {}

    @property
    def location(self) -> str:
        return self.uri

    def has(self, name: str) -> bool:
        with self._explained("read") as (fs, root):
            fs.invalidate_cache()
            return bool(fs.exists(f"{root}/{name}"))

    def inside(self, name: str) -> "Mirror":
        mirror = Mirror(self.folder / name, f"{self.uri}/{name}")
        mirror.driver_uri, mirror.owner = self.driver_uri, self.owner
        return mirror

    def trial(self, name: str) -> Store:
        # A folder that is not mounted on this machine would take everything in silence.
        if not self.has(STUDY_FILE):
            raise StorageError(f"{self.uri} is not to be seen from {socket.gethostname()}")
        # In Ray's working folder of the trial. What an earlier attempt left is older than the
        # storage.
        copy = Mirror(Path.cwd() / name, f"{self.uri}/{name}")
        shutil.rmtree(copy.folder, ignore_errors=True)
        copy.folder.mkdir(parents=True)
        copy.get()
        return copy

    def begin(self) -> None:
        """Makes the copy fresh, and this process the driver.

        A former driver that still lives finds out at its next decision, and ends.
        """
        self.clear()
        self.get_small()
        self.get("*.db")  # once: from now on it is written here
        since = f"{datetime.datetime.now():%F %T} ({secrets.token_hex(4)})"
        self.owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        replace(self.folder / DRIVER_FILE, self.owner.encode())
        self.put(self.folder / DRIVER_FILE)

    def clear(self) -> None:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name == LOCK_FILE:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def get(self, *patterns: str, depth: int | None = None) -> None:
        with self._explained("read") as (fs, root):
            versions = self._list(fs, root, depth)
            wanted = [name for name in versions if matches(name, patterns or ("*",))]
            names = [name for name in wanted if self._fetched.get(name) != versions[name]]
            files = {name: self.folder / f"{name}.{os.getpid()}.tmp" for name in names}
            for file in files.values():
                file.parent.mkdir(parents=True, exist_ok=True)
            try:
                if files:  # one call: storages answer many requests at once
                    fs.get([f"{root}/{name}" for name in names], [str(f) for f in files.values()])
                for name, file in files.items():
                    file.replace(self.folder / name)
                    self._fetched[name] = versions[name]
                    self._uploaded[name] = stamp(self.folder / name)
            finally:
                for file in files.values():
                    file.unlink(missing_ok=True)

    def get_small(self) -> None:
        self.get(*SMALL)

    def put(self, *paths: Path) -> None:
        stamps = {
            str(file.relative_to(self.folder)): stamp(file)
            for path in paths or (self.folder,)
            for file in files_under(path)
        }
        changed = [
            name
            for name, now in stamps.items()
            if self._uploaded.get(name) != now and not matches(name, NEVER_UPLOADED)
        ]
        with self._explained("written") as (fs, root):
            if is_local(fs):  # whole or not at all, as object stores do of themselves
                for name in changed:
                    (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
                    replace(Path(root) / name, (self.folder / name).read_bytes())
            elif changed:
                fs.put(
                    [str(self.folder / name) for name in changed],
                    [f"{root}/{name}" for name in changed],
                )
        self._uploaded |= {name: stamps[name] for name in changed}

    def remove(self, name: str) -> None:
        with self._explained("written") as (fs, root), contextlib.suppress(FileNotFoundError):
            fs.rm(f"{root}/{name}", recursive=True)
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def commit(self, record: Path) -> None:
        with self._explained("read") as (fs, _):
            now = fs.cat_file(self.driver_uri).decode()
        if now != self.owner:
            raise StorageError(
                f"{self.uri} was taken over by {now}; this one, {self.owner}, has ended"
            )
        self.put(record)

    def _list(self, fs: Any, root: str, depth: int | None) -> dict[str, str]:
        """The version of each file in the storage, by name."""
        fs.invalidate_cache()
        found = fs.find(root, maxdepth=depth, detail=True) if fs.exists(root) else {}
        names = {str(Path(path).relative_to(root)): info for path, info in found.items()}
        return {
            name: str([info.get(key) for key in VERSION_KEYS])
            for name, info in names.items()
            if ".." not in Path(name).parts  # an object may have any name
        }

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[tuple[Any, str]]:
        """The storage's file system and the path in it; any error of theirs becomes one that names
        the URI."""
        fs, root = file_system(self.uri)
        try:
            yield fs, root
        except StorageError:
            raise
        # each storage has classes of its own, for want of a network, of rights, of credentials
        except Exception as error:
            reason = " ".join(str(error).split())
            host = socket.gethostname()
            raise StorageError(
                f"{self.uri} cannot be {what} from {host}: {type(error).__name__}: {reason}"
            ) from error


def search_store(storage: str, name: str, *, several: bool) -> Store:
    """Where a search of this name lies: in the folder itself, or, of a URI or for several machines,
    in a copy of it.

    Raises:
        ValueError: a URI that names no bucket.
    """
    if storage.endswith("://"):
        raise ValueError(
            f"--storage is {storage}; "
            f"expected a bucket or folder in it, such as {storage}BUCKET/FOLDER"
        )
    if "://" in storage:
        uri = f"{storage.rstrip('/')}/{name}"
        return Mirror(working_copy(uri), uri)
    path = Path(storage).expanduser().absolute() / name
    return Mirror(working_copy(str(path)), str(path)) if several else Store(path)


def copy_of(location: str, purpose: str = "searches") -> Store:
    """The folder of a search, or of a URI a copy on this machine for some purpose."""
    if "://" not in location:
        return Store(Path(location).absolute())
    uri = location.rstrip("/")
    return Mirror(working_copy(uri, purpose), uri)


def working_copy(uri: str, purpose: str = "searches") -> Path:
    """The folder of this machine for a search in a storage."""
    parent, _, name = uri.rpartition("/")
    readable = re.sub(r"\W+", "-", parent).strip("-")
    digest = hashlib.sha256(parent.encode()).hexdigest()[:8]
    return COPIES.expanduser() / purpose / f"{readable}-{digest}" / name


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI or a path, and the path in it.

    Raises:
        ValueError: an unknown kind of storage, or one whose package is not installed.
    """
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


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own, which may be a mounted one."""
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    return isinstance(fs, LocalFileSystem)


def files_under(path: Path) -> list[Path]:
    """The file itself, or the files in a folder at any depth; nothing where there is none."""
    found = path.rglob("*") if path.is_dir() else [path]
    return [file for file in found if file.is_file()]


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name, or its last part, matches one of the patterns."""
    last = Path(name).name
    return any(fnmatch.fnmatch(name, one) or fnmatch.fnmatch(last, one) for one in patterns)


def stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
