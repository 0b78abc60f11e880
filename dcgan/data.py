"""Data sets of small images, held whole in device memory as uint8: one entry of `DATASETS` each.

A 28 x 28 MNIST is 47 MB: a DataLoader would spend more time on moving it than a GPU on learning
from it. A batch is a slice of a permutation drawn on the device.

Shapes: N images, C channels, S pixels a side, H pixels a side as the data set has them.
"""

import functools
import gzip
import hashlib
import io
import lzma
import os
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SPLITS = ("train", "validation", "test")
DATA_DIR_VARIABLE = "DCGAN_DATA_DIR"

MINI_PATH = Path(__file__).parent / "assets" / "mnist_mini.npz.xz"
MINI_SHA256 = "1f38ffd64fc39553899794bf374bd24b54fd98672be571b93d3d27e663398962"
MNIST_VALIDATION = 10_000  # the last images of the training file, always the same ones
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LOCK = "mnist.lock"
# Without it, a network that swallows packets stalls the start for many minutes.
DOWNLOAD_TIMEOUT_SECONDS = 20.0

Arrays = dict[str, NDArray[np.uint8]]


class Dataset(NamedTuple):
    """A data set: how a split of it is loaded from files under a folder, and what it holds."""

    # images (N, C, H, H) or (N, H, H), uint8, and labels (N,)
    load: Callable[[str, Path], tuple[Tensor, Tensor]]
    size: int  # H: the default of `image_size`
    channels: int  # C: the default of `channels`
    classes: int
    licence: str = "licence unknown"


class Split(NamedTuple):
    """One split. Shared between runs of a process: read it, never write into it."""

    images: Tensor  # (N, C, S, S) uint8
    labels: Tensor  # (N,) int64


class Source(NamedTuple):
    """Where images come from, in which shape, and on which device they are kept."""

    dataset: str
    image_size: int = 28
    channels: int = 1
    data_dir: Path | None = None  # the folder above `MNIST/raw`; None takes `default_data_dir`
    device: torch.device = torch.device("cpu")


def default_data_dir() -> Path:
    """The folder from the environment variable `DCGAN_DATA_DIR`, else `~/.cache/dcgan`."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/dcgan").expanduser().absolute()


@functools.lru_cache(maxsize=8)
def load_split(source: Source, split: str) -> Split:
    """Loads a split once per process, resized (bilinear, antialiased) and in `channels`.

    Raises:
        ValueError: unknown data set or split.
        OSError: files are missing and cannot be fetched, or are damaged.
    """
    for name, value, allowed in (("split", split, SPLITS), ("dataset", source.dataset, DATASETS)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    images, labels = DATASETS[source.dataset].load(split, source.data_dir or default_data_dir())
    if images.ndim == 3:
        images = images[:, None]  # (N, 1, H, H)
    images = in_channels(resize(images, source.image_size), source.channels)  # (N, C, S, S)
    return Split(images.to(source.device), labels.long().to(source.device))


def check_batch(batch_size: int, source: Source) -> None:
    """Refuses a batch that is larger than the training split by a ValueError."""
    images = len(load_split(source, "train").images)
    if batch_size > images:
        held = f"the training split of {source.dataset} holds {images} images"
        raise ValueError(f"batch_size is {batch_size}; {held}")


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes square uint8 images (N, C, H, H) to (N, C, S, S) uint8."""
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Repeats grey over the channels, or averages colours to grey. (N, C, S, S) uint8"""
    if channels == 1 and images.shape[1] > 1:
        images = images.float().mean(1, keepdim=True).round_().to(torch.uint8)
    return images.expand(-1, channels, -1, -1).contiguous()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (...) as vectors (..., K) of a one among zeros, float32; does not wait for the device,
    as PyTorch's own would."""
    return (labels[..., None] == torch.arange(classes, device=labels.device)).float()


def to_unit_range(images: Tensor) -> Tensor:
    """Maps uint8 images to [-1, 1], the range of G's tanh; leaves others as they are. float32"""
    if images.dtype != torch.uint8:
        return images.float()
    return images.div(127.5).sub_(1)


def read_asset(path: Path, sha256: str) -> bytes:
    """The content of a file of this package; OSError where it is not the one that was released."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError(
            f"{path} is damaged or truncated (its sha256 is wrong); install the package again"
        )
    return content


def load_mini(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """`mnist-mini`, the digits in the package (see `dcgan.mnist_mini`)."""
    arrays = read_mini(MINI_PATH)
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return torch.from_numpy(images), torch.from_numpy(labels)


def read_mini(path: Path) -> Arrays:
    """The six arrays of `mnist-mini`: images (N, 28, 28) and labels (N,) of each split."""
    packed = read_asset(path, MINI_SHA256)
    with np.load(io.BytesIO(lzma.decompress(packed))) as arrays:
        return dict(arrays)


def load_mnist(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Full MNIST from `data_dir/MNIST/raw`, fetched there once if it is missing."""
    folder = data_dir / "MNIST" / "raw"
    if _missing(folder):
        _fetch_mnist(data_dir, folder)
    prefix = "t10k" if split == "test" else "train"
    names = [name for name in MNIST_SHA256 if name.startswith(prefix)]
    contents = [_content(folder, name) for name in names]
    if None in contents and (data_dir / LOCK).exists() and os.access(data_dir, os.W_OK):
        with FileLock(data_dir / LOCK):  # another process was perhaps still writing them
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
        missing = _missing(folder)
        if is_new and len(missing) == len(MNIST_SHA256):
            shutil.rmtree(data_dir, ignore_errors=True)
        raise FileNotFoundError(
            f"MNIST is not in {folder} and could not be fetched. Put the four files "
            f"{', '.join(MNIST_SHA256)} there, or name the folder above MNIST/raw by --data-dir or "
            f"{DATA_DIR_VARIABLE}, or take the digits in the package: --dataset mnist-mini. "
            f"Missing: {', '.join(missing)}; "
            f"fetching said: {' '.join(str(error).split())}"
        ) from error


MNIST_LICENCE = "handwritten digits of MNIST, by LeCun, Cortes and Burges, CC BY-SA 3.0"
DATASETS = {
    "mnist": Dataset(load_mnist, size=28, channels=1, classes=10, licence=MNIST_LICENCE),
    "mnist-mini": Dataset(load_mini, size=28, channels=1, classes=10, licence=MNIST_LICENCE),
}
