"""Picture files as training images: `folder:PATH`, a person's own, in whatever format Pillow reads.

Every picture is cut to the square in its middle and made small once, into a file of bytes under the
data folder that later processes map into memory: so trials share one copy, and a set that is larger
than memory is read from disk as it is needed. What cannot be read is skipped, and listed.

A folder with pictures in two or more subfolders has a class for each, in the order of their names;
any other has no labels. Every fifth picture of each class, in an order that depends on its name
alone, is of the validation split, another fifth of the test split.

Shapes: N images, C channels, S pixels a side.
"""

import functools
import hashlib
import json
import os
import statistics
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from dcgan.cli import one_line
from dcgan.files import replace

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "folder:"
FOLDER_SPLITS = ("validation", "test", "train")
MOST_HELD_OUT = 10_000  # images of validation, and of test, of any data set
LEAST = 50  # pictures of which a folder can be split
LEAST_SIZE, MOST_SIZE = 16, 64  # of the images by default: what the pictures have, within these
PROBED = 200  # pictures from which a folder's size and channels are known
MOST_PIXELS = 200_000_000  # of one picture
VERSION = 1  # to be raised when a picture is made small in another way
SHOWN = 5  # skipped files that are printed


class UnreadableError(ValueError):
    """Why a picture is skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """What lies in a person's folder."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]  # of each file; 0 where there are no classes
    classes: tuple[str, ...]  # names of the subfolders; none where there are no labels
    others: tuple[tuple[Path, str], ...]  # files that are no pictures, and why


@dataclass(frozen=True, slots=True)
class Pictures:
    """Files of pictures, read when their size is known."""

    files: Sequence[Path]
    others: Sequence[tuple[Path, str]] = ()  # files beside them that are none, and why

    def __len__(self) -> int:
        return len(self.files)

    def of(self, index: Sequence[int]) -> "Pictures":
        """Those at some places."""
        return Pictures([self.files[place] for place in index])

    def key(self, size: int, channels: int) -> str:
        """A digest of what the decoded pictures depend on: names, sizes and times of the files."""
        digest = hashlib.sha256(f"{VERSION} {size} {channels}\n".encode())
        for file in self.files:
            try:
                about = file.stat()
                known = f"{about.st_size} {about.st_mtime_ns}"
            except OSError:
                known = "missing"
            digest.update(f"{file}\0{known}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]


def whole_name(dataset: str) -> str:
    """`folder:PATH` with its absolute path, as it is known everywhere."""
    path = Path(dataset.removeprefix(PREFIX)).expanduser().absolute()
    return f"{PREFIX}{os.path.normpath(path)}"


def folder_path(dataset: str, data_dir: Path) -> Path:
    """The folder of `folder:PATH`: PATH, or what has its name in the data folder, where it may have
    been moved to. FileNotFoundError where there is neither."""
    path = Path(dataset.removeprefix(PREFIX)).expanduser().absolute()
    for found in (path, data_dir / path.name):
        if found.is_dir():
            return found
    raise FileNotFoundError(
        f"dataset is {dataset!r}, and there is no folder {path}, nor {data_dir / path.name}; give "
        f"the folder of your pictures, or the one above it by --data-dir"
    )


@functools.lru_cache(maxsize=8)
def find(path: Path) -> Folder:
    """What lies in a folder. ValueError where there are too few pictures."""
    from PIL import Image

    readable = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    found: list[tuple[str, Path]] = []  # the subfolder, or nothing, and the file
    others, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        real = os.path.realpath(folder)
        if real in seen:  # a link to where the search for pictures has been
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder) / name
            if file.suffix.lower() in readable:
                parts = file.relative_to(path).parts
                found.append((parts[0] if len(parts) > 1 else "", file))
            else:
                others.append((file, f"no picture by its ending {file.suffix or '(none)'}"))
    names = sorted({name for name, _ in found})
    labelled = len(names) > 1 and "" not in names
    if len(found) < LEAST:
        raise ValueError(
            f"{path} has {len(found)} pictures; needed are at least {LEAST}"
            + (f" ({len(others)} files are of other kinds)" if others else "")
        )
    # an order that depends on the name alone, so that another picture moves no other
    found.sort(key=lambda one: (one[0] if labelled else "", _scatter(one[1].relative_to(path))))
    return Folder(
        files=tuple(file for _, file in found),
        labels=tuple(names.index(name) if labelled else 0 for name, _ in found),
        classes=tuple(names) if labelled else (),
        others=tuple(others),
    )


def _scatter(name: Path) -> bytes:
    return hashlib.sha256(name.as_posix().encode(errors="surrogateescape")).digest()


def load_folder(dataset: str, split: str, data_dir: Path) -> tuple[Pictures, Tensor]:
    """The files of a split of `folder:PATH`, and their labels (N,); the classes are mixed, so that
    the first images stand for all."""
    path = folder_path(dataset, data_dir)
    folder = find(path)
    step = max(5, -(-len(folder.files) // MOST_HELD_OUT))
    # every `step`-th picture is of validation, its neighbour of test, the rest of train
    part = [min(place % step, 2) for place in range(len(folder.files))]
    index = [place for place, own in enumerate(part) if FOLDER_SPLITS[own] == split]
    index.sort(key=lambda place: _scatter(folder.files[place].relative_to(path)))
    labels = torch.tensor([folder.labels[place] for place in index], dtype=torch.int64)
    files = [folder.files[place] for place in index]
    return Pictures(files, folder.others if split == "train" else ()), labels


@functools.lru_cache(maxsize=8)
def probe(path: Path) -> tuple[int, int]:
    """The size and the channels that some of a folder's pictures have: the median of their shorter
    sides as a multiple of 4 from 16 to 64, and 1 if all are grey."""
    files = find(path).files
    sides, grey = [], True
    for file in files[:: -(-len(files) // PROBED)]:
        try:
            with opened(file) as picture:
                sides.append(min(picture.size))
            grey = grey and is_grey(read_picture(file, LEAST_SIZE, 3))
        except UnreadableError:
            continue
    if not sides:
        raise ValueError(f"{path}: no picture of {len(files)} can be read")
    side = int(statistics.median(sides)) // 4 * 4
    return min(max(side, LEAST_SIZE), MOST_SIZE), 1 if grey else 3


def is_grey(image: NDArray[np.uint8]) -> bool:
    """Whether the channels of an image (3, S, S) agree, but for rounding of a lossy format."""
    return int(np.ptp(image.astype(np.int16), axis=0).max()) <= 4


def opened(file: Path) -> "Image.Image":
    """A picture's file, opened; UnreadableError where it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not file.stat().st_size:
            raise UnreadableError("empty file")
        with warnings.catch_warnings():  # Pillow warns of what is refused here
            warnings.simplefilter("ignore")
            picture = Image.open(file)
    except UnidentifiedImageError:
        raise UnreadableError("no picture that Pillow knows") from None
    except UnreadableError:
        raise
    except Exception as error:  # of many classes: each format has its own
        raise UnreadableError(one_line(error)) from None
    if picture.width * picture.height > MOST_PIXELS:
        raise UnreadableError(f"{picture.width} x {picture.height} pixels are too many")
    return picture


def read_picture(file: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """The square in the middle of a picture, upright as its EXIF says, the first frame of several,
    on white where it is transparent. (C, S, S); UnreadableError where it is damaged."""
    from PIL import Image, ImageOps

    with opened(file) as picture:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata
                if picture.format == "JPEG":
                    picture.draft(None, (2 * size, 2 * size))  # decodes no more than is needed
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                coloured = in_mode(upright, "L" if channels == 1 else "RGB")
                side, (width, height) = min(coloured.size), coloured.size
                left, top = (width - side) // 2, (height - side) // 2
                square = coloured.crop((left, top, left + side, top + side))
                small = square.resize((size, size), Image.Resampling.BILINEAR)
        except UnreadableError:
            raise
        except Exception as error:  # of many classes: each format has its own
            raise UnreadableError(one_line(error)) from None
    pixels = np.asarray(small, dtype=np.uint8)  # (S, S) or (S, S, 3)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def in_mode(picture: "Image.Image", mode: str) -> "Image.Image":
    """A picture of any mode in `L` or `RGB`, 16 bits scaled to 8."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        most = {"F": 1.0}.get(picture.mode, 65535.0)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
            raise UnreadableError(
                f"values beyond 0 to {most:g} in a picture of mode {picture.mode}"
            )
        picture = Image.fromarray(np.round(values / most * 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(white, layer)
    return picture.convert(mode)


def decode(
    pictures: Pictures, size: int, channels: int, cache: Path, what: str
) -> tuple[Tensor, Tensor]:
    """Small images (N, C, S, S) of those pictures that can be read, uint8, and their places (N,).

    They are kept in a file under `cache`, if one can be written there, and mapped into memory.
    """
    name = pictures.key(size, channels)
    file, about = cache / f"{name}.npy", cache / f"{name}.json"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if not is_complete(file, about):
                _write_decoded(pictures, size, channels, file, about, what)
        places = json.loads(about.read_text(encoding="utf-8"))["places"]
        # copy on write: nothing writes into them, but a tensor of a read-only map is refused
        mapped = np.load(file, mmap_mode="c")[: len(places)]
        return torch.from_numpy(mapped), torch.tensor(places, dtype=torch.int64)
    except OSError:  # cannot be written: this process keeps them itself
        images = np.empty((len(pictures), channels, size, size), dtype=np.uint8)
        places, skipped = _decode_into(images, pictures, size, channels)
        _say(what, skipped, len(places), None)
        return torch.from_numpy(images[: len(places)]), torch.tensor(places, dtype=torch.int64)


def is_complete(file: Path, about: Path) -> bool:
    """Whether a file of small images is there, of the length that it was written with: reading past
    the end of one that was cut would end the process."""
    try:
        length = json.loads(about.read_text(encoding="utf-8"))["bytes"]
        return bool(file.stat().st_size == length)
    except (OSError, ValueError, KeyError):
        return False


def _write_decoded(
    pictures: Pictures, size: int, channels: int, file: Path, about: Path, what: str
) -> None:
    shape = (len(pictures), channels, size, size)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        places, skipped = _decode_into(mapped, pictures, size, channels)
        mapped.flush()
        del mapped
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    content = {
        "bytes": file.stat().st_size,
        "places": places,
        "skipped": {str(one): reason for one, reason in skipped},
    }
    replace(about, (json.dumps(content, indent=1) + "\n").encode())
    _say(what, skipped, len(places), about)


def _decode_into(
    images: NDArray[np.uint8], pictures: Pictures, size: int, channels: int
) -> tuple[list[int], list[tuple[Path, str]]]:
    """Writes the pictures that can be read one after another; returns their places, and what was
    skipped and why."""

    def read(file: Path) -> NDArray[np.uint8] | str:
        try:
            return read_picture(file, size, channels)
        except UnreadableError as error:
            return str(error)

    places: list[int] = []
    skipped = list(pictures.others)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        for place, image in enumerate(pool.map(read, pictures.files)):
            if isinstance(image, str):
                skipped.append((pictures.files[place], image))
            else:
                images[len(places)] = image
                places.append(place)
    return places, skipped


def _say(what: str, skipped: Sequence[tuple[Path, str]], of: int, where: Path | None) -> None:
    """Prints what was skipped."""
    if not skipped:
        return
    print(f"{what}: {len(skipped)} files are skipped, {of} are used", file=sys.stderr)
    for file, reason in skipped[:SHOWN]:
        print(f"  {file}: {reason}", file=sys.stderr)
    if len(skipped) > SHOWN and where:
        print(f"  and {len(skipped) - SHOWN} more, listed in {where}", file=sys.stderr)
