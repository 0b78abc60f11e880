"""`dcgan.data` and `dcgan.mnist_mini`: the package's digits, and full MNIST from IDX files and from
a server on loopback."""

import dataclasses
import gzip
import hashlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torchvision.datasets import MNIST

from dcgan import data, downloads, mnist_mini
from dcgan.config import TrainConfig
from dcgan.data import (
    DATASETS,
    MINI_PATH,
    SPLITS,
    Dataset,
    Source,
    check_batch,
    default_data_dir,
    in_channels,
    load_split,
    read_mini,
    resize,
    to_unit_range,
)

load = load_split.__wrapped__  # without the cache
MINI = read_mini(MINI_PATH)
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TRAIN, VALIDATION, TEST = 240, 60, 100  # images of the small stand-in for full MNIST

# digits 0 to 9 in the first 50,000 and the last 10,000 images of MNIST's training file, and in its
# test file
FULL_COUNTS = {
    "train": (4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988),
    "validation": (991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}


# --- mnist-mini


@pytest.mark.parametrize(("split", "size"), [("train", 8000), ("validation", 2000), ("test", 2000)])
def test_mini_has_its_sizes_and_each_digit_in_proportion(split: str, size: int) -> None:
    images, labels = MINI[f"{split}_images"], MINI[f"{split}_labels"]
    assert (images.shape, images.dtype) == ((size, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((size,), np.uint8)
    full = np.array(FULL_COUNTS[split])
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - full * size / full.sum()).max() < 1
    assert images.min() == 0
    assert images.max() == 255


def test_mini_holds_no_image_twice() -> None:
    images = [image.tobytes() for split in SPLITS for image in MINI[f"{split}_images"]]
    assert len(set(images)) == len(images) == 12_000  # within and between the splits


def test_mini_is_small_enough_to_ship() -> None:
    assert MINI_PATH.stat().st_size <= 2e6


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_truncated_mini_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "mini.npz.xz"
    path.write_bytes(MINI_PATH.read_bytes()[:kept])
    with pytest.raises(
        OSError, match=f"{re.escape(str(path))} is damaged or truncated.*install the package again"
    ):
        read_mini(path)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9999])
def test_a_flipped_bit_in_mini_is_noticed(tmp_path: Path, place: float) -> None:
    content = bytearray(MINI_PATH.read_bytes())
    content[int(place * len(content))] ^= 1
    path = tmp_path / "mini.npz.xz"
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{re.escape(str(path))} is damaged or truncated"):
        read_mini(path)


def test_a_missing_mini_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gone"))):
        read_mini(tmp_path / "gone")


def test_stratified_keeps_proportions_and_repeats_nothing() -> None:
    labels = np.repeat(
        np.arange(10, dtype=np.uint8), [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    )  # 275
    index = mnist_mini.stratified(labels, 100, seed=3)
    assert len(index) == len(set(index.tolist())) == 100
    exact = np.bincount(labels) * 100 / 275
    assert np.abs(np.bincount(labels[index], minlength=10) - exact).max() < 1
    assert np.array_equal(index, mnist_mini.stratified(labels, 100, seed=3))
    assert not np.array_equal(index, mnist_mini.stratified(labels, 100, seed=4))
    assert (np.diff(labels[index].astype(int)) < 0).any()  # not sorted by digit


# --- loading


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 20, 28, 32, 64])
def test_a_split_has_the_size_and_channels_asked_for(size: int, channels: int) -> None:
    images, labels = load(Source("mnist-mini", size, channels), "test")
    assert (images.shape, images.dtype) == ((2000, channels, size, size), torch.uint8)
    assert (labels.shape, labels.dtype) == ((2000,), torch.int64)
    assert images.is_contiguous()
    assert torch.equal(images, images[:, :1].expand_as(images))  # grey
    assert np.array_equal(labels.numpy(), MINI["test_labels"])
    if size == 28:
        assert np.array_equal(images[:, 0].numpy(), MINI["test_images"])


@pytest.mark.parametrize("size", [16, 20, 32, 64])
def test_resize_agrees_with_pillow(size: int) -> None:
    digits = MINI["test_images"][:50]
    expected = np.stack(
        [
            np.array(Image.fromarray(d).resize((size, size), Image.Resampling.BILINEAR))
            for d in digits
        ]
    )
    got = resize(torch.from_numpy(digits)[:, None], size)[:, 0].numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1  # Pillow rounds between the two axes


def test_a_split_is_loaded_once() -> None:
    one = Source("mnist-mini", 16)
    try:
        assert load_split(one, "test") is load_split(Source("mnist-mini", 16), "test")
        assert load_split(one, "validation") is not load_split(one, "test")
    finally:
        load_split.cache_clear()


def test_source_takes_what_matters_from_the_config() -> None:
    config = TrainConfig(dataset="mnist-mini", image_size=32, channels=3)
    cpu = torch.device("cpu")
    assert config.source("d", cpu) == Source("mnist-mini", 32, 3, Path("d"), cpu)
    other = dataclasses.replace(config, seed=9, batch_size=7)
    assert other.source(Path("d"), cpu) == config.source(Path("d"), cpu)
    assert config.source(None, cpu).data_dir is None


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("mnist-mini", "valid", "split is 'valid'; allowed: train, validation, test"),
        ("faces", "train", "dataset is 'faces'; allowed: mnist, mnist-mini"),
    ],
)
def test_unknown_names_are_refused(dataset: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(Source(dataset), split)


def test_a_data_set_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours of another size become what the config asks for."""
    asked = []

    def load_noise(split: str, data_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((split, data_dir))
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(256, (50, 3, 40, 40), generator=rng, dtype=torch.uint8)
        return images, torch.arange(50, dtype=torch.int32) % 3

    monkeypatch.setitem(DATASETS, "noise", Dataset(load_noise, size=40, channels=3, classes=3))
    config = TrainConfig(dataset="noise")
    images, labels = load(config.source("somewhere", torch.device("cpu")), "validation")
    assert asked == [("validation", Path("somewhere"))]
    assert (images.shape, images.dtype) == ((50, 3, 40, 40), torch.uint8)
    assert labels.dtype == torch.int64
    grey, _ = load(Source("noise", 16, 1, Path("somewhere")), "train")
    assert grey.shape == (50, 1, 16, 16)


def test_colours_become_grey_by_their_mean() -> None:
    images = torch.tensor([10, 20, 31], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert in_channels(images, 1).flatten().tolist() == [20]
    assert in_channels(images, 3).flatten().tolist() == [10, 20, 31]


def test_a_batch_larger_than_the_split_is_refused() -> None:
    check_batch(8000, Source("mnist-mini"))
    message = "^batch_size is 8001; the training split of mnist-mini holds 8000 images$"
    with pytest.raises(ValueError, match=message):
        check_batch(8001, Source("mnist-mini"))


def test_to_unit_range_is_linear_and_leaves_its_source_alone() -> None:
    grey = torch.arange(256, dtype=torch.uint8)
    mapped = to_unit_range(grey)
    assert mapped.dtype == torch.float32
    assert (mapped[0], mapped[-1]) == (-1, 1)
    torch.testing.assert_close(
        mapped.double(), torch.linspace(-1, 1, 256, dtype=torch.float64), rtol=0, atol=2e-7
    )
    assert torch.equal(grey, torch.arange(256, dtype=torch.uint8))


# --- full MNIST, with few images under the real names


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four IDX files of a small MNIST by name, made known to `dcgan.data` as the real ones."""

    def images(array: np.ndarray) -> bytes:
        return struct.pack(">IIII", 2051, *array.shape) + array.tobytes()

    def labels(array: np.ndarray) -> bytes:
        return struct.pack(">II", 2049, len(array)) + array.tobytes()

    n = TRAIN + VALIDATION
    contents = (
        images(MINI["train_images"][:n]),
        labels(MINI["train_labels"][:n]),
        images(MINI["test_images"][:TEST]),
        labels(MINI["test_labels"][:TEST]),
    )
    made = dict(zip(NAMES, contents, strict=True))
    monkeypatch.setattr(
        downloads,
        "MNIST_SHA256",
        {name: hashlib.sha256(content).hexdigest() for name, content in made.items()},
    )
    monkeypatch.setattr(downloads, "MNIST_VALIDATION", VALIDATION)
    monkeypatch.setattr(
        MNIST, "mirrors", ["http://127.0.0.1:9/"]
    )  # closed: no test reaches the network
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return made


@pytest.fixture
def raw(files: dict[str, bytes], tmp_path: Path) -> Path:
    """The folder `MNIST/raw` under `tmp_path`, with the four files in it."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_real_names_and_hashes_are_pinned() -> None:
    assert tuple(downloads.MNIST_SHA256) == NAMES
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in downloads.MNIST_SHA256.values())
    assert downloads.MNIST_VALIDATION == 10_000


@pytest.mark.usefixtures("raw")
@pytest.mark.parametrize(
    ("split", "key", "part"),
    [
        ("train", "train", slice(0, TRAIN)),
        ("validation", "train", slice(TRAIN, TRAIN + VALIDATION)),
        ("test", "test", slice(0, TEST)),
    ],
)
def test_splits_come_from_the_right_files(
    tmp_path: Path, split: str, key: str, part: slice
) -> None:
    images, labels = load(Source("mnist", data_dir=tmp_path), split)
    assert np.array_equal(images[:, 0].numpy(), MINI[f"{key}_images"][part])
    assert np.array_equal(labels.numpy(), MINI[f"{key}_labels"][part])


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named(tmp_path: Path, raw: Path, name: str, harm: str) -> None:
    content = bytearray((raw / name).read_bytes())
    if harm == "truncated":
        del content[-1]
    else:
        content[len(content) // 2] ^= 1
    (raw / name).write_bytes(content)
    for split in ("test",) if name.startswith("t10k") else ("train", "validation"):
        with pytest.raises(
            OSError, match=f"{re.escape(str(raw / name))} is damaged or truncated.*delete it"
        ):
            load(Source("mnist", data_dir=tmp_path), split)


def test_files_are_read_as_they_are_distributed(tmp_path: Path, raw: Path) -> None:
    """Packed, each of them or some; the unpacked one counts where both are there."""
    plain = {split: load(Source("mnist", data_dir=tmp_path), split) for split in SPLITS}
    for name in NAMES:
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        if name != NAMES[1]:
            (raw / name).unlink()
    (raw / f"{NAMES[1]}.gz").write_bytes(b"not read")
    for split in SPLITS:
        load_split.cache_clear()
        images, labels = load(Source("mnist", data_dir=tmp_path), split)
        assert torch.equal(images, plain[split].images)
        assert torch.equal(labels, plain[split].labels)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "of something else"])
def test_a_damaged_packed_file_is_named(tmp_path: Path, raw: Path, harm: str) -> None:
    name = NAMES[0]
    packed = bytearray(gzip.compress((raw / name).read_bytes()))
    if harm == "truncated":
        del packed[-9:]
    elif harm == "flipped":
        packed[len(packed) // 2] ^= 1
    else:
        packed = bytearray(gzip.compress(b"digits"))
    (raw / name).unlink()
    (raw / f"{name}.gz").write_bytes(packed)
    with pytest.raises(OSError, match=rf"{name}\.gz is damaged or truncated"):
        load(Source("mnist", data_dir=tmp_path), "train")


@pytest.mark.usefixtures("files")
def test_without_files_and_network_the_message_names_every_way_out(tmp_path: Path) -> None:
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError, match="could not be fetched") as caught:
        load(Source("mnist", data_dir=tmp_path / "new"), "train")
    for part in (
        *NAMES,
        str(tmp_path / "new" / "MNIST" / "raw"),
        "--data-dir",
        "DCGAN_DATA_DIR",
        "--dataset mnist-mini",
    ):
        assert part in str(caught.value)
    assert socket.getdefaulttimeout() == before


def test_without_one_file_the_message_says_which(tmp_path: Path, raw: Path) -> None:
    (raw / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=f"Missing: {NAMES[3]};"):
        load(Source("mnist", data_dir=tmp_path), "train")


@pytest.mark.usefixtures("files")
def test_a_data_dir_that_cannot_be_made_is_reported_alike(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileNotFoundError, match=r"could not be fetched\..*DCGAN_DATA_DIR"):
        load(Source("mnist", data_dir=tmp_path / "file"), "train")


@pytest.mark.usefixtures("raw")
def test_data_dir_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, expected in (
        (str(tmp_path), tmp_path),
        ("~/d", tmp_path / "home/d"),
        ("", tmp_path / "home/.cache/dcgan"),
    ):
        monkeypatch.setenv("DCGAN_DATA_DIR", value)
        assert default_data_dir() == expected
    monkeypatch.delenv("DCGAN_DATA_DIR")
    assert default_data_dir() == tmp_path / "home/.cache/dcgan"
    monkeypatch.setenv("DCGAN_DATA_DIR", str(tmp_path))
    assert len(load(Source("mnist"), "test").labels) == TEST


def test_mini_is_made_again_from_full_mnist(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert raw.is_dir()
    monkeypatch.setattr(mnist_mini, "SIZES", {"train": 50, "validation": 20, "test": 20})
    first, again = (mnist_mini.make(tmp_path, tmp_path / name) for name in ("a.xz", "b.xz"))
    assert first == again == hashlib.sha256((tmp_path / "a.xz").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "MINI_SHA256", first)
    made = read_mini(tmp_path / "a.xz")
    assert {key: len(value) for key, value in made.items() if key.endswith("labels")} == {
        "train_labels": 50,
        "validation_labels": 20,
        "test_labels": 20,
    }
    validation = {image.tobytes() for image in MINI["train_images"][TRAIN : TRAIN + VALIDATION]}
    assert {image.tobytes() for image in made["validation_images"]} <= validation


# --- fetching

CHILD = """
import hashlib, json, sys
from pathlib import Path
from torchvision.datasets import MNIST
from dcgan import data, downloads
told = json.loads(sys.argv[1])
MNIST.mirrors, MNIST.resources = [told["mirror"]], told["resources"]
downloads.MNIST_SHA256, downloads.MNIST_VALIDATION = told["sha256"], told["validation"]
print("ready", flush=True)
sys.stdin.readline()
source = data.Source("mnist", data_dir=Path(told["data_dir"]))
images = [data.load_split(source, split).images for split in data.SPLITS]
print(json.dumps([hashlib.sha256(i.numpy().tobytes()).hexdigest() for i in images]))
"""


@pytest.fixture
def mirror(files: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes], Counter[str]]]:
    """A web server of the four files, compressed: its address, what it serves, and how often each
    was downloaded."""
    packed = {f"/{name}.gz": gzip.compress(content) for name, content in files.items()}
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.05)  # long enough for a second process to come in between
            if (
                self.headers["Method"] != "HEAD"
            ):  # torchvision first looks for redirects, by a GET so labelled
                counts[self.path] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(packed[self.path])))
            self.end_headers()
            self.wfile.write(packed[self.path])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", packed, counts
        server.shutdown()
        thread.join()


def digests(data_dir: Path) -> list[str]:
    splits = [load(Source("mnist", data_dir=data_dir), split) for split in SPLITS]
    return [hashlib.sha256(split.images.numpy().tobytes()).hexdigest() for split in splits]


def test_two_processes_fetch_each_file_once(
    files: dict[str, bytes],
    mirror: tuple[str, dict[str, bytes], Counter[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, packed, counts = mirror
    resources = [(path[1:], hashlib.md5(content).hexdigest()) for path, content in packed.items()]
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", resources)
    data_dir = tmp_path / "new"
    told = {
        "mirror": address,
        "resources": resources,
        "sha256": downloads.MNIST_SHA256,
        "validation": VALIDATION,
        "data_dir": str(data_dir),
    }
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(data.__file__).parents[1],
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        here = digests(data_dir)  # at the same time as the child
        there = json.loads(child.communicate(timeout=60)[0])
    n = TRAIN + VALIDATION
    parts = (
        MINI["train_images"][:TRAIN],
        MINI["train_images"][TRAIN:n],
        MINI["test_images"][:TEST],
    )
    assert here == there == [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]
    assert counts == dict.fromkeys(packed, 1)
    assert {name: (data_dir / "MNIST/raw" / name).read_bytes() for name in NAMES} == files


def test_a_damaged_download_is_not_taken(
    mirror: tuple[str, dict[str, bytes], Counter[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, packed, counts = mirror
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", [(path[1:], "0" * 32) for path in packed])
    with pytest.raises(FileNotFoundError, match=r"(?s)could not be fetched\..*corrupted"):
        load(Source("mnist", data_dir=tmp_path), "train")
    assert counts.total() == 1


def test_a_file_that_another_process_is_writing_is_waited_for(tmp_path: Path, raw: Path) -> None:
    whole = (raw / NAMES[0]).read_bytes()
    (raw / NAMES[0]).write_bytes(whole[: len(whole) // 2])
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / "mnist.lock"):  # as the fetching process holds it
            loading = pool.submit(load, Source("mnist", data_dir=tmp_path), "train")
            wait([loading], timeout=0.5)
            (raw / NAMES[0]).write_bytes(whole)
        assert len(loading.result(timeout=60).images) == TRAIN
