"""Public data sets, written small in their true formats, as torchvision's readers read them."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from dcgan import downloads
from dcgan.data import DATASETS, SPLITS, Source, load_split

RNG = np.random.default_rng(0)
TRAIN, TEST = 60, 30
FAMILY = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
Made = dict[str, tuple[np.ndarray, np.ndarray]]  # images and labels of the two files


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reaches the network: every address leads to a closed port of this machine."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("DCGAN_DATA_DIR", str(tmp_path / "other"))
    load_split.cache_clear()


def idx(array: np.ndarray) -> bytes:
    """An IDX file, as MNIST and its relatives have."""
    magic = 2048 + array.ndim
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def made(shape: tuple[int, ...], classes: int) -> Made:
    """Random images of the training and of the test file, and their labels."""
    return {
        part: (
            RNG.integers(0, 256, (count, *shape), dtype=np.uint8),
            (np.arange(count) % classes).astype(np.uint8),
        )
        for part, count in (("train", TRAIN), ("test", TEST))
    }


def write_idx(folder: Path, names: dict[str, str], content: Made) -> None:
    folder.mkdir(parents=True)
    for part, (images, labels) in content.items():
        (folder / f"{names[part]}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{names[part]}-labels-idx1-ubyte").write_bytes(idx(labels))


def write_emnist(root: Path, content: Made) -> None:
    """Whose rows and columns are exchanged in the files."""
    turned = {part: (images.transpose(0, 2, 1).copy(), y) for part, (images, y) in content.items()}
    names = {part: f"emnist-balanced-{part}" for part in content}
    write_idx(root / "EMNIST" / "raw", names, turned)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_svhn(root: Path, content: Made, patch: pytest.MonkeyPatch) -> None:
    """MATLAB files, in which 0 is class 10."""
    from scipy.io import savemat

    (root / "SVHN").mkdir(parents=True)
    known = dict(datasets.SVHN.split_list)
    for part, (images, labels) in content.items():
        file = root / "SVHN" / f"{part}_32x32.mat"
        classes = np.where(labels == 0, 10, labels)[:, None]
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": classes})
        known[part] = [known[part][0], file.name, md5(file)]
    patch.setattr(datasets.SVHN, "split_list", known)


def write_cifar10(root: Path, content: Made, patch: pytest.MonkeyPatch) -> None:
    """Pickles of rows, red before green before blue: five of training and one of test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, values: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(values))
        return [name, md5(folder / name)]

    def batch(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        return {"data": images.reshape(len(images), -1), "labels": labels.tolist()}

    images, labels = content["train"]
    parts = [
        write(
            f"data_batch_{i + 1}", batch(images[12 * i : 12 * i + 12], labels[12 * i : 12 * i + 12])
        )
        for i in range(5)
    ]
    patch.setattr(datasets.CIFAR10, "train_list", parts)
    patch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch(*content["test"]))])
    _, digest = write("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digest}
    patch.setattr(datasets.CIFAR10, "meta", meta)


def write_celeba(root: Path, content: Made, patch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """JPEGs of 178 x 218 pixels, and five lists: of the splits, and of what nobody asks for."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    faces = np.concatenate([content["train"][0], content["test"][0]])
    names = [f"{i + 1:06}.jpg" for i in range(len(faces))]
    for name, face in zip(names, faces, strict=True):
        picture = Image.fromarray(face.transpose(1, 2, 0)).resize((178, 218))
        picture.save(folder / "img_align_celeba" / name, quality=95)
    part = [0 if i < 50 else 1 if i < 70 else 2 for i in range(len(names))]
    head = f"{len(names)}\n"
    lists = {
        "list_eval_partition.txt": [f"{n} {p}" for n, p in zip(names, part, strict=True)],
        "identity_CelebA.txt": [f"{name} 1" for name in names],
        "list_bbox_celeba.txt": [head + "image_id x_1 y_1 width height"]
        + [f"{name} 1 1 10 10" for name in names],
        "list_landmarks_align_celeba.txt": [head + "lefteye_x lefteye_y"]
        + [f"{name} 1 1" for name in names],
        "list_attr_celeba.txt": [head + "Bald Smiling"] + [f"{name} -1 1" for name in names],
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    files = [(url, "", name) for url, _, name in datasets.CelebA.file_list]
    known = [(url, md5(folder / name) if name in lists else "", name) for url, _, name in files]
    patch.setattr(datasets.CelebA, "file_list", known)
    return list(faces)


def check(name: str, root: Path, content: Made) -> None:
    """Each split holds the images and labels that were written."""
    own = DATASETS[name]
    source = Source(name, own.size, own.channels, root)
    parts = {
        "train": ("train", slice(0, 48)),
        "validation": ("train", slice(48, 60)),
        "test": ("test", slice(None)),
    }
    for split, (part, rows) in parts.items():
        images, labels = load_split(source, split)
        expected, classes = content[part]
        wanted = torch.from_numpy(expected[rows])
        assert torch.equal(images, wanted[:, None] if wanted.ndim == 3 else wanted)
        assert labels.tolist() == classes[rows].tolist()


@pytest.mark.parametrize("name", FAMILY)
def test_relatives_of_mnist(name: str, tmp_path: Path) -> None:
    content = made((28, 28), 10)
    folder = tmp_path / FAMILY[name] / "raw"
    write_idx(folder, {"train": "train", "test": "t10k"}, content)
    check(name, tmp_path, content)


def test_emnist_stands_upright_and_has_47_classes(tmp_path: Path) -> None:
    content = made((28, 28), 47)
    write_emnist(tmp_path, content)
    check("emnist", tmp_path, content)
    assert DATASETS["emnist"].classes == 47


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = made((3, 32, 32), 10)
    write_svhn(tmp_path, content, monkeypatch)
    check("svhn", tmp_path, content)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = made((3, 32, 32), 10)
    write_cifar10(tmp_path, content, monkeypatch)
    check("cifar10", tmp_path, content)


def test_celeba_keeps_its_own_splits_and_has_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = np.linspace(0, 255, 90, dtype=np.uint8)[:, None, None, None]
    faces = np.broadcast_to(smooth, (90, 3, 8, 8)).copy()
    content = {"train": (faces[:60], faces), "test": (faces[60:], faces)}
    write_celeba(tmp_path, content, monkeypatch)
    source = Source("celeba", 64, 3, tmp_path)
    parts = [load_split(source, split) for split in SPLITS]
    assert [part.images.shape for part in parts] == [(n, 3, 64, 64) for n in (50, 20, 20)]
    found = torch.cat([part.images[:, 0, 32, 32] for part in parts]).int()
    assert (found - torch.from_numpy(smooth.flatten().astype(np.int32))).abs().max() <= 2
    assert DATASETS["celeba"].classes == 0


@pytest.mark.parametrize("name", downloads.PUBLIC)
def test_a_set_that_cannot_be_had_says_where_its_files_belong(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    place = (folder / downloads.PUBLIC[name].folder).as_posix()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing or damaged in {place} "):
        load_split(Source(name, 32, 3, folder), "train")
    assert not folder.exists()


def test_a_damaged_set_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "KMNIST" / "raw"
    write_idx(folder, {"train": "train", "test": "t10k"}, made((28, 28), 10))
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=r"kmnist is missing .*delete damaged"):
        load_split(Source("kmnist", 28, 1, tmp_path), "train")


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    content = made((28, 28), 12)
    write_idx(tmp_path / "KMNIST" / "raw", {"train": "train", "test": "t10k"}, content)
    with pytest.raises(ValueError, match="train has labels from 0 to 11; allowed are 0 to 9"):
        load_split(Source("kmnist", 28, 1, tmp_path), "train")


def test_a_few_of_many_are_always_the_same() -> None:
    few = downloads.chosen_few(26_032)
    assert len(few) == 10_000
    assert torch.equal(few, downloads.chosen_few(26_032))
    assert len(set(few.tolist())) == 10_000
    assert 12_500 < few.double().mean() < 13_500  # from everywhere
    assert downloads.chosen_few(30).tolist() == list(range(30))
