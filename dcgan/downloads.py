"""Public data sets that are downloaded once, into the data folder: MNIST by files of known sha256,
all others by torchvision's classes.

The training file of a set is split once more: its last images are the validation split, as many as
a fifth of it, and no more than `MOST_HELD_OUT`. A test file with more is represented by a fixed
choice of so many: pairwise metrics grow with the square of the number.

Shapes: N images, H pixels a side.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from dcgan.cli import one_line
from dcgan.pictures import MOST_HELD_OUT, Pictures
from dcgan.schema import DATA_DIR_VARIABLE

MNIST_VALIDATION = 10_000  # the last images of the training file, always the same ones
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Without it, a network that swallows packets stalls the start for many minutes.
DOWNLOAD_TIMEOUT_SECONDS = 20.0


def lock_file(data_dir: Path, name: str) -> Path:
    """What is locked while a data set is downloaded."""
    return data_dir / f"{name}.lock"


@contextlib.contextmanager
def short_timeout() -> Iterator[None]:
    """Has connections give up after `DOWNLOAD_TIMEOUT_SECONDS`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_mnist(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Full MNIST from `data_dir/MNIST/raw`, fetched there once if it is missing."""
    folder = data_dir / "MNIST" / "raw"
    if _missing(folder):
        _fetch_mnist(data_dir, folder)
    prefix = "t10k" if split == "test" else "train"
    names = [name for name in MNIST_SHA256 if name.startswith(prefix)]
    contents = [_content(folder, name) for name in names]
    lock = lock_file(data_dir, "mnist")
    if None in contents and lock.exists() and os.access(data_dir, os.W_OK):
        with FileLock(lock):  # another process was perhaps still writing them
            contents = [_content(folder, name) for name in names]
    whole = []
    for name, content in zip(names, contents, strict=True):
        if content is None:
            raise OSError(
                f"{_file(folder, name)} is damaged or truncated (its sha256 is wrong); "
                f"delete it to have it fetched again"
            )
        whole.append(bytearray(content))
    images, labels = whole
    # behind headers of 16 and 8 bytes
    digits = torch.frombuffer(images, dtype=torch.uint8, offset=16).view(-1, 28, 28)
    classes = torch.frombuffer(labels, dtype=torch.uint8, offset=8)
    parts = {"train": slice(-MNIST_VALIDATION), "validation": slice(-MNIST_VALIDATION, None)}
    part = parts.get(split, slice(None))  # the test file is one split
    return digits[part], classes[part]


def _file(folder: Path, name: str) -> Path:
    """Where a file of MNIST is, or as it is distributed, packed."""
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() and not (folder / name).is_file() else folder / name


def _missing(folder: Path) -> list[str]:
    return [name for name in MNIST_SHA256 if not _file(folder, name).is_file()]


def _content(folder: Path, name: str) -> bytes | None:
    """A file of MNIST, unpacked; None if it is damaged."""
    file = _file(folder, name)
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return None
    return content if hashlib.sha256(content).hexdigest() == MNIST_SHA256[name] else None


def _fetch_mnist(data_dir: Path, folder: Path) -> None:
    from torchvision.datasets import MNIST

    is_new = not data_dir.exists()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(data_dir, "mnist")):
            if not _missing(folder):
                return  # another process fetched it while this one waited
            with short_timeout():
                MNIST(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:  # torchvision wraps a failed download in RuntimeError
        missing = _missing(folder)
        if is_new and len(missing) == len(MNIST_SHA256):
            shutil.rmtree(data_dir, ignore_errors=True)
        raise FileNotFoundError(
            f"MNIST is not in {folder} and could not be fetched. Put the four files "
            f"{', '.join(MNIST_SHA256)} there, or name the folder above MNIST/raw by --data-dir or "
            f"{DATA_DIR_VARIABLE}, or take the digits in the package: --dataset mnist-mini. "
            f"Missing: {', '.join(missing)}; "
            f"fetching said: {one_line(error)}"
        ) from error


class Public(NamedTuple):
    """How torchvision reads a data set."""

    folder: str  # its files, under the data folder
    # a split's reader from the data folder, which downloads what is missing if True
    read: Callable[[Path, str, bool], Any]
    # images (N, H, H) or (N, 3, H, H), uint8, or picture files, and labels (N,) of a reader
    arrays: Callable[[Any], tuple[Any, Any]]
    own_validation: bool = False  # whether the reader knows a validation split


def load_public(name: str, split: str, data_dir: Path) -> tuple[Tensor | Pictures, Tensor]:
    """A split of a data set of `PUBLIC`, from `data_dir`, downloaded there once if it is missing.

    Raises:
        FileNotFoundError: it is missing or damaged, and cannot be downloaded.
    """
    public = PUBLIC[name]
    images, labels = public.arrays(reader(name, split, data_dir))
    labels = torch.as_tensor(np.asarray(labels)).long()
    if len(images) != len(labels):
        where = data_dir / public.folder
        raise OSError(f"{where} is damaged: it has {len(images)} images, {len(labels)} labels")
    if split == "test" or public.own_validation:
        index = torch.arange(len(labels)) if split == "train" else chosen_few(len(labels))
    else:
        cut = len(labels) - min(MOST_HELD_OUT, len(labels) // 5)
        index = torch.arange(len(labels))[slice(cut) if split == "train" else slice(cut, None)]
    if isinstance(images, Pictures):
        return images.of(index.tolist()), labels[index]
    return torch.as_tensor(np.ascontiguousarray(images))[index], labels[index]


def chosen_few(count: int) -> Tensor:
    """The indices of at most `MOST_HELD_OUT` of so many images, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:MOST_HELD_OUT].sort().values


def reader(name: str, split: str, data_dir: Path) -> Any:
    """torchvision's reader of a split, which downloads what is missing. Raises as `load_public`."""
    public, is_new = PUBLIC[name], not data_dir.exists()
    try:
        return public.read(data_dir, split, False)
    except Exception as error:  # of many classes: torchvision's, pickle's, scipy's
        found = one_line(error)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(data_dir, name)), short_timeout():
            with contextlib.suppress(Exception):  # another process has perhaps downloaded it
                return public.read(data_dir, split, False)
            return public.read(data_dir, split, True)
    except Exception as error:
        if is_new:
            shutil.rmtree(data_dir, ignore_errors=True)
        raise FileNotFoundError(
            f"{name} is missing or damaged in {data_dir / public.folder} ({found}), and could not "
            f"be downloaded ({one_line(error)}). Put its files there as torchvision keeps them and "
            f"delete damaged ones, name the folder above {public.folder} by --data-dir or "
            f"{DATA_DIR_VARIABLE}, or take the digits in the package: --dataset mnist-mini"
        ) from error


def torchvision(kind: str, root: Path, *arguments: Any, **named: Any) -> Any:
    """torchvision's reader of a kind. (Its import takes a second that few need to wait for.)"""
    from torchvision import datasets

    return getattr(datasets, kind)(str(root), *arguments, **named)


def like_mnist(kind: str, *arguments: Any) -> Callable[[Path, str, bool], Any]:
    """The reader of a set of a training and a test file."""
    return lambda root, split, download: torchvision(
        kind, root, *arguments, train=split != "test", download=download
    )


def read_svhn(root: Path, split: str, download: bool) -> Any:
    """The reader of SVHN, whose files lie in a folder of no name of its own."""
    own = "test" if split == "test" else "train"
    return torchvision("SVHN", root / "SVHN", own, download=download)


def read_celeba(root: Path, split: str, download: bool) -> Any:
    """The reader of CelebA, in its own splits."""
    own = "valid" if split == "validation" else split
    return torchvision("CelebA", root, own, download=download)


def celeba_faces(reader: Any) -> tuple[Pictures, Tensor]:
    """The files of a reader of CelebA, without labels."""
    folder = Path(reader.root) / reader.base_folder / "img_align_celeba"
    files = [folder / name for name in reader.filename]
    return Pictures(files), torch.zeros(len(files), dtype=torch.int64)


def as_they_are(reader: Any) -> tuple[Any, Any]:
    """Images and labels of a reader whose images are (N, H, H)."""
    return reader.data, reader.targets


PUBLIC = {
    "fashion-mnist": Public("FashionMNIST/raw", like_mnist("FashionMNIST"), as_they_are),
    "kmnist": Public("KMNIST/raw", like_mnist("KMNIST"), as_they_are),
    # its files have rows and columns exchanged
    "emnist": Public(
        "EMNIST/raw",
        like_mnist("EMNIST", "balanced"),
        lambda reader: (reader.data.transpose(1, 2), reader.targets),
    ),
    "svhn": Public("SVHN", read_svhn, lambda reader: (reader.data, reader.labels)),
    "cifar10": Public(
        "cifar-10-batches-py",
        like_mnist("CIFAR10"),
        lambda reader: (reader.data.transpose(0, 3, 1, 2), reader.targets),
    ),
    "celeba": Public("celeba", read_celeba, celeba_faces, own_validation=True),
}
