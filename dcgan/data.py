"""Data sets of small images, held whole in device memory as uint8.

A 28 x 28 MNIST is 47 MB: a DataLoader would spend more time on moving it than a GPU on learning from it. A batch is a
slice of a permutation drawn on the device.

Shapes: N images, C channels, S pixels a side.
"""

import functools
import hashlib
import os
import socket
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from dcgan import mnist_mini
from dcgan.config import TrainConfig

SPLITS = ("train", "validation", "test")
DATA_DIR_VARIABLE = "DCGAN_DATA_DIR"

MNIST_VALIDATION = 10_000  # the last images of the training file, always the same ones
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LOCK = "mnist.lock"
DOWNLOAD_TIMEOUT_SECONDS = 20.0  # without it, a network that swallows packets stalls the start for many minutes


class Split(NamedTuple):
    """One split. Shared between runs of a process: read it, never write into it."""

    images: Tensor  # (N, C, S, S) uint8
    labels: Tensor  # (N,) int64


def default_data_dir() -> Path:
    """The folder from the environment variable `DCGAN_DATA_DIR`, else `~/.cache/dcgan`."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/dcgan").expanduser().absolute()


class Source(NamedTuple):
    """Where images come from, in which shape, and on which device they are kept."""

    dataset: str
    image_size: int = 28
    channels: int = 1
    data_dir: Path | None = None
    """Folder above `MNIST/raw`; None takes `default_data_dir`."""
    device: torch.device = torch.device("cpu")


def source(config: TrainConfig, data_dir: Path | str | None, device: torch.device) -> Source:
    """The source of a config's images."""
    return Source(config.dataset, config.image_size, config.channels, Path(data_dir) if data_dir else None, device)


@functools.lru_cache(maxsize=8)
def load_split(source: Source, split: str) -> Split:
    """Loads a split once per process, resized (bilinear, antialiased) and with grey repeated over `channels`.

    Raises:
        ValueError: unknown data set or split.
        OSError: files are missing and cannot be fetched, or are damaged; the message names them and the way out.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    if source.dataset == "mnist":
        images, labels = _load_mnist(split, source.data_dir or default_data_dir())
    elif source.dataset == "mnist-mini":
        arrays = mnist_mini.read()
        images, labels = (torch.from_numpy(arrays[f"{split}_{kind}"]) for kind in ("images", "labels"))
    else:
        raise ValueError(f"dataset is {source.dataset!r}; allowed: mnist, mnist-mini")
    images = resize(images[:, None], source.image_size)  # (N, 1, S, S)
    images = images.expand(-1, source.channels, -1, -1).contiguous()  # (N, C, S, S)
    return Split(images.to(source.device), labels.long().to(source.device))


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes square uint8 images (N, C, H, H) to (N, C, S, S) uint8."""
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def to_unit_range(images: Tensor) -> Tensor:
    """Maps uint8 images to float32 in [-1, 1], the range of G's tanh. (N, C, S, S)"""
    return images.float().div_(127.5).sub_(1)


def _load_mnist(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    from torchvision.datasets.mnist import read_image_file, read_label_file  # 1 s of import, needed by few commands

    folder = data_dir / "MNIST" / "raw"
    if _missing(folder):
        _fetch_mnist(data_dir, folder)
    images, labels = (name for name in MNIST_SHA256 if name.startswith("t10k" if split == "test" else "train"))
    if _damaged(folder, images, labels) and os.access(data_dir, os.W_OK):
        with FileLock(data_dir / LOCK):
            pass  # another process was perhaps still writing them
    for name in _damaged(folder, images, labels):
        raise OSError(f"{folder / name} is damaged or truncated (its sha256 is wrong); delete it to have it fetched again")
    whole = slice(None)
    part = {"train": slice(-MNIST_VALIDATION), "validation": slice(-MNIST_VALIDATION, None)}.get(split, whole)
    return read_image_file(str(folder / images))[part], read_label_file(str(folder / labels))[part]


def _missing(folder: Path) -> list[str]:
    return [name for name in MNIST_SHA256 if not (folder / name).is_file()]


def _damaged(folder: Path, *names: str) -> list[str]:
    return [n for n in names if hashlib.sha256((folder / n).read_bytes()).hexdigest() != MNIST_SHA256[n]]


def _fetch_mnist(data_dir: Path, folder: Path) -> None:
    from torchvision.datasets import MNIST

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / LOCK):
            if not _missing(folder):
                return  # another process fetched it while this one waited
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
            try:
                MNIST(str(data_dir), download=True)
            finally:
                socket.setdefaulttimeout(before)
    except (OSError, RuntimeError) as error:  # torchvision wraps a failed download in RuntimeError
        raise FileNotFoundError(
            f"MNIST is not in {folder} and could not be fetched. Put the four files {', '.join(MNIST_SHA256)} there, or name "
            f"the folder above MNIST/raw by --data-dir or {DATA_DIR_VARIABLE}, or take the digits in the package: "
            f"--dataset mnist-mini. Missing: {', '.join(_missing(folder))}; fetching said: {' '.join(str(error).split())}"
        ) from error
