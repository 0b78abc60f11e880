"""The classifier behind every metric: the right file, as accurate as its card, trainable again."""

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dcgan import yardstick
from dcgan.data import Source, Split, load_split, to_unit_range
from dcgan.recipe import augment, fit
from dcgan.weights import unpack
from dcgan.yardstick import (
    FEATURES,
    Yardstick,
    accuracy,
    extract,
    load_yardstick,
)

CPU = torch.device("cpu")
MINI = Source("mnist-mini")
LEAST_ACCURACY = 0.993

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "kernel": torch.linspace(-1, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5),
    "count": torch.tensor(2**40),  # a batch norm's counter: no dimension
    "odd": torch.tensor([1, -2, 3], dtype=torch.int64),
    "not finite": torch.tensor([torch.nan, torch.inf, -0.0]),
}


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    content: dict[str, object] = json.loads(yardstick.CARD.read_text())
    return content


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, types and shapes, and the same bits, which tell -0 from 0 and leave NaN equal
    to itself."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name


# The shipped file


def test_weights_are_small_and_are_the_ones_that_source_and_card_name(
    card: dict[str, object],
) -> None:
    content = yardstick.PATH.read_bytes()
    assert len(content) <= 1_000_000
    assert hashlib.sha256(content).hexdigest() == yardstick.SHA256 == card["sha256"]


def test_card_says_what_the_network_is(card: dict[str, object]) -> None:
    assert card["parameters"] == sum(p.numel() for p in Yardstick().parameters())
    reported = card["accuracy"]
    assert isinstance(reported, dict)
    assert set(reported) == {"validation", "test"}
    assert min(reported.values()) >= LEAST_ACCURACY


@pytest.mark.parametrize("split", ["validation", "test"])
def test_shipped_network_names_unseen_digits(split: str) -> None:
    images, labels = load_split(MINI, split)
    net = load_yardstick(MINI)
    predicted = extract(net, images).probabilities.argmax(1).numpy()
    right = float(np.mean(predicted == labels.numpy()))
    assert right >= LEAST_ACCURACY
    assert accuracy(net, Split(images, labels)) == right


def test_shipped_network_is_frozen_and_loaded_once() -> None:
    net = load_yardstick(MINI)
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert load_yardstick(MINI) is net


def flip(content: bytes) -> bytes:
    """One bit of one weight, as a bad disk would."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda content: content[:-1],
        lambda content: content[:1000],
        lambda content: b"",
        lambda content: content + b"\0",
    ],
    ids=["flipped bit", "last byte lost", "truncated", "empty", "one byte more"],
)
def test_damaged_weights_are_refused_by_name(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damage(yardstick.PATH.read_bytes()))
    monkeypatch.setattr(yardstick, "PATH", path)
    with pytest.raises(
        OSError,
        match=rf"^{re.escape(str(path))} is damaged or truncated .* install the package again$",
    ):
        load_yardstick.__wrapped__(MINI)  # past the cache


def test_missing_weights_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    monkeypatch.setattr(yardstick, "PATH", path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load_yardstick.__wrapped__(MINI)


# The file format, against the library whose format it is


@pytest.mark.parametrize(
    "names", [["matrix"], ["count"], ["odd", "matrix"], list(TENSORS)], ids="+".join
)
def test_unpack_reads_what_safetensors_writes(names: list[str]) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = {name: TENSORS[name] for name in names}
    assert_same_tensors(unpack(library.save(tensors)), tensors)


def test_shipped_file_reads_alike_with_safetensors() -> None:
    library = pytest.importorskip("safetensors.torch")
    content = yardstick.PATH.read_bytes()
    expected = library.load(content)
    assert expected.keys() == Yardstick().state_dict().keys()
    assert_same_tensors(unpack(content), expected)


# Images in, features out


def test_extract_is_the_network_on_scaled_pixels_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = load_split(MINI, "test").images[:60]
    net = load_yardstick(MINI)
    with torch.inference_mode():
        features, logits = net(images.double().div(127.5).sub(1).float())
    for size in (7, 60, 100):
        monkeypatch.setattr(yardstick, "batch_size", lambda device, size=size: size)
        found = extract(net, images)
        assert found.features.shape == (60, FEATURES)
        torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


# Training


def test_make_writes_what_load_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a net that is not trained, with the small data set in place of the full one."""
    torch.manual_seed(0)
    net = Yardstick().eval()
    monkeypatch.setattr(yardstick, "Source", lambda _, **place: Source("mnist-mini", **place))
    monkeypatch.setattr(yardstick, "fit", lambda split, **recipe: net)
    yardstick.make(argparse.Namespace(epochs=1, seed=0, data_dir=None, out=tmp_path / "out"))
    content = (tmp_path / "out" / yardstick.PATH.name).read_bytes()
    assert_same_tensors(unpack(content), net.state_dict())
    card = json.loads((tmp_path / "out" / yardstick.CARD.name).read_text())
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["accuracy"].keys() == {"validation", "test"}
    assert card.keys() == json.loads(yardstick.CARD.read_text()).keys()


def test_make_refuses_epochs_below_1(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--epochs is 0; allowed is at least 1$"):
        yardstick.make(argparse.Namespace(epochs=0, seed=0, data_dir=None, out=tmp_path))


@pytest.mark.parametrize("kind", ["digits", "noise", "white"])
def test_augment_keeps_shape_and_range(kind: str) -> None:
    shape, rng = (300, 1, 28, 28), torch.Generator().manual_seed(0)
    images = {
        "digits": to_unit_range(load_split(MINI, "train").images[:300]),
        "noise": torch.rand(shape, generator=rng) * 2 - 1,
        "white": torch.ones(shape),
    }[kind]
    before = images.clone()
    found = augment(images, rng)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    # a blend of neighbours adds up to their weight within float32's rounding
    assert found.min() >= -1 - 1e-6
    assert found.max() <= 1 + 1e-6
    assert torch.equal(images, before)
    assert not torch.allclose(found, images)


def test_augment_leaves_background_as_it_is() -> None:
    empty = torch.full((50, 1, 28, 28), -1.0)
    torch.testing.assert_close(
        augment(empty, torch.Generator().manual_seed(0)), empty, rtol=0, atol=0
    )


def test_augment_is_fixed_by_its_generator() -> None:
    images = to_unit_range(load_split(MINI, "train").images[:50])
    first, again, other = (
        augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_augment_moves_every_image_in_its_own_way() -> None:
    one = to_unit_range(load_split(MINI, "train").images[:1])
    moved = augment(one.repeat(20, 1, 1, 1), torch.Generator().manual_seed(1)).flatten(1)
    assert len(torch.unique(moved, dim=0)) == 20


def test_augmented_digits_keep_their_names() -> None:
    """An axis swapped, or radians taken for degrees, would leave the range alone and the digits
    unreadable."""
    images, labels = load_split(MINI, "test")
    moved = augment(to_unit_range(images[:500]), torch.Generator().manual_seed(0))
    assert accuracy(load_yardstick(MINI), Split(moved, labels[:500])) > 0.97


def test_fit_learns_digits_from_a_thousand_of_them() -> None:
    images, labels = load_split(MINI, "train")
    unseen = Split(*(part[:1000] for part in load_split(MINI, "validation")))
    some = Split(images[:1000], labels[:1000])
    net = fit(some, build=Yardstick, epochs=2, batch_size=50, learning_rate=4e-3, seed=0)
    assert not net.training
    torch.manual_seed(0)
    untrained = 1 - accuracy(Yardstick().eval(), unseen)
    trained = 1 - accuracy(net, unseen)
    assert untrained > 0.75
    assert trained < 0.4
    assert trained < untrained / 2
