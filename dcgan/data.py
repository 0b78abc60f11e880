"""Data sets of small images, held whole in device memory as uint8: one entry of `DATASETS` each.

A 28 x 28 MNIST is 47 MB: a DataLoader would spend more time on moving it than a GPU on learning
from it. A batch is a slice of a permutation drawn on the device.

Shapes: N images, C channels, S pixels a side, H pixels a side as the data set has them.
"""

import functools
import hashlib
import io
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dcgan.downloads import load_mnist, load_public
from dcgan.pictures import PREFIX, Pictures, decode, find, folder_path, load_folder, probe
from dcgan.schema import DATA_DIR_VARIABLE

SPLITS = ("train", "validation", "test")

MINI_PATH = Path(__file__).parent / "assets" / "mnist_mini.npz.xz"
MINI_SHA256 = "1f38ffd64fc39553899794bf374bd24b54fd98672be571b93d3d27e663398962"
OWN_PICTURES = "pictures of the person who trained it, whose licence is theirs to say"
LEAST_IMAGES = 10  # of a split: the metrics look at five neighbours
HASHED = 1000  # images at a time
RESIDENT_SHARE = 0.5  # of a GPU's free memory that training images may take

Arrays = dict[str, NDArray[np.uint8]]


class Dataset(NamedTuple):
    """A data set: how a split of it is loaded from files under a folder, and what it holds."""

    # images (N, C, H, H) or (N, H, H), uint8, or files of pictures; labels (N,)
    load: Callable[[str, Path], tuple[Tensor | Pictures, Tensor]]
    size: int  # H: the default of `image_size`
    channels: int  # C: the default of `channels`
    classes: int  # 0 without labels
    licence: str = "licence unknown"
    yardstick: str = "own"  # which classifier its metrics use, see `dcgan.yardstick`


class Split(NamedTuple):
    """One split. Shared between runs of a process: read it, never write into it."""

    images: Tensor  # (N, C, S, S) uint8; on the CPU if they are too many for the device
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
    dataset = dataset_of(source)
    found, labels = dataset.load(split, source.data_dir or default_data_dir())
    if isinstance(found, Pictures):
        cache = default_data_dir() / "decoded"
        what = f"{source.dataset}, {split}"
        images, places = decode(found, source.image_size, source.channels, cache, what)
        labels = labels[places]
    else:
        images = found[:, None] if found.ndim == 3 else found  # (N, C, H, H)
        images = in_channels(resize(images, source.image_size), source.channels)  # (N, C, S, S)
    labels = labels.long()
    check_split(images, labels, dataset.classes, f"{source.dataset}, {split}")
    if fits(images, source.device):
        images = images.to(source.device)
    return Split(images, labels.to(source.device))


def dataset_of(source: Source) -> Dataset:
    """The data set of a source: an entry of `DATASETS`, or what lies in a person's folder."""
    if source.dataset.startswith(PREFIX):
        return folder_dataset(source.dataset, source.data_dir or default_data_dir())
    return DATASETS[source.dataset]


def licence_of(name: str) -> str:
    """Under which licence a data set's images are."""
    return OWN_PICTURES if name.startswith(PREFIX) else DATASETS[name].licence


def has_own_yardstick(name: str) -> bool:
    """Whether a data set's yardstick is one that is trained for it."""
    return name.startswith(PREFIX) or DATASETS[name].yardstick == "own"


def folder_dataset(name: str, data_dir: Path) -> Dataset:
    """The data set `folder:PATH`. Raises as `load_split`."""
    folder = folder_path(name, data_dir)
    size, channels = probe(folder)
    load = functools.partial(load_folder, name)
    classes = len(find(folder).classes)
    return Dataset(load, size, channels, classes, licence=OWN_PICTURES)


def digest_of(*parts: Tensor) -> str:
    """The sha256 of some tensors' contents, read a piece at a time: they may be larger than
    memory."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in part.split(HASHED):
            digest.update(piece.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_split(images: Tensor, labels: Tensor, classes: int, what: str) -> None:
    """Refuses a split that is too small to be compared with, or has labels that its data set has
    not, by a ValueError."""
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"{what} has {len(images)} images; needed are at least {LEAST_IMAGES}")
    if classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"{what} has labels from {span}; allowed are 0 to {classes - 1}")


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images may lie on a device whole; if not, batches are copied to it."""
    if device.type != "cuda" or images.is_cuda:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes <= RESIDENT_SHARE * free:
        return True
    print(
        f"{len(images)} images of {images.nbytes / 1e9:.1f} GB are too many for the "
        f"{free / 1e9:.1f} GB free on the GPU: batches are copied to it as they are needed",
        file=sys.stderr,
    )
    return False


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


def load_stacked(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """`stacked-mnist`: three digits of a split as the colours of an image, drawn at random, as many
    as it has; the class is their number of three digits (Metz et al. 2017, arXiv 1611.02163)."""
    digits, labels = load_mnist(split, data_dir)
    rng = torch.Generator().manual_seed(SPLITS.index(split))
    drawn = torch.randint(len(digits), (len(digits), 3), generator=rng)
    hundreds, tens, ones = labels.long()[drawn].unbind(1)
    return digits[drawn], 100 * hundreds + 10 * tens + ones


def public(name: str) -> Callable[[str, Path], tuple[Tensor | Pictures, Tensor]]:
    """How a data set of torchvision is loaded."""
    return functools.partial(load_public, name)


class Registry(dict[str, Dataset]):
    """Data sets by name; `folder:PATH` names one that is found as it is asked for."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or str(name).startswith(PREFIX)

    def __missing__(self, name: str) -> Dataset:
        if not name.startswith(PREFIX):
            raise KeyError(name)
        return folder_dataset(name, default_data_dir())


MNIST_LICENCE = "handwritten digits of MNIST, by LeCun, Cortes and Burges, CC BY-SA 3.0"
DATASETS = Registry(
    {
        "mnist": Dataset(
            load_mnist, size=28, channels=1, classes=10, licence=MNIST_LICENCE, yardstick="digits"
        ),
        "mnist-mini": Dataset(
            load_mini, size=28, channels=1, classes=10, licence=MNIST_LICENCE, yardstick="digits"
        ),
        "stacked-mnist": Dataset(
            load_stacked,
            size=28,
            channels=3,
            classes=1000,
            licence=MNIST_LICENCE,
            yardstick="stacked digits",
        ),
        "fashion-mnist": Dataset(
            public("fashion-mnist"), 28, 1, 10, licence="Fashion-MNIST, by Zalando, MIT"
        ),
        "kmnist": Dataset(
            public("kmnist"), 28, 1, 10, licence="KMNIST, by CODH and NIJL, CC BY-SA 4.0"
        ),
        "emnist": Dataset(
            public("emnist"), 28, 1, 47, licence="EMNIST Balanced, made from NIST's, public domain"
        ),
        "svhn": Dataset(
            public("svhn"), 32, 3, 10, licence="SVHN, by Stanford, for non-commercial use"
        ),
        "cifar10": Dataset(
            public("cifar10"), 32, 3, 10, licence="CIFAR-10, by Krizhevsky, no licence stated"
        ),
        "celeba": Dataset(
            public("celeba"), 64, 3, 0, licence="CelebA, by CUHK, for non-commercial research"
        ),
    }
)
