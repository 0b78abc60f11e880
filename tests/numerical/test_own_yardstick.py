"""Yardsticks of data sets without a shipped one: trained once, kept, handed over, never mixed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcgan import evaluate, yardstick
from dcgan.config import TrainConfig
from dcgan.data import DATASETS, Dataset, Source, load_mini, load_split
from dcgan.evaluate import hand_over, load_reference, protocol, score
from dcgan.feed import Feed
from dcgan.loop import make_update, train, train_epoch
from dcgan.recipe import RECIPE, TURNS, recipe_for, turn
from dcgan.schema import CLASS_COLUMNS, COLUMNS
from dcgan.state import new_states
from dcgan.weights import is_whole, pack, unpack
from dcgan.yardstick import HANDED, Stacked, Yardstick, extract, load_yardstick

CPU = torch.device("cpu")
SIZES = {"train": 1000, "validation": 200, "test": 200}
MINI = Source("mnist-mini")
TINY = {"generator_width": 4, "discriminator_width": 4, "epochs": 1, "image_size": 16}


def some(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    images, labels = load_mini(split, data_dir)
    return images[: SIZES[split]], labels[: SIZES[split]]


def unlabelled(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    images, labels = some(split, data_dir)
    return images, torch.zeros_like(labels)


def stacked(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Three digits as colours, as `stacked-mnist` has of the full set."""
    images, labels = some(split, data_dir)
    ones = labels.long()
    tens, hundreds = ones.roll(1), ones.roll(2)
    colours = torch.stack([images.roll(2, 0), images.roll(1, 0), images], 1)
    return colours, 100 * hundreds + 10 * tens + ones


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small data sets by registration, a training of few updates, and a data folder of their
    own."""
    monkeypatch.setenv("DCGAN_DATA_DIR", str(tmp_path / "data"))
    set_updates(monkeypatch, 7)
    monkeypatch.setitem(DATASETS, "own", Dataset(some, 28, 1, 10))
    monkeypatch.setitem(DATASETS, "turns", Dataset(unlabelled, 28, 1, 0))
    monkeypatch.setitem(DATASETS, "one", Dataset(unlabelled, 28, 1, 1))
    monkeypatch.setitem(
        DATASETS, "three", Dataset(stacked, 28, 3, 1000, yardstick="stacked digits")
    )
    forget()


def set_updates(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Trains yardsticks that long: 60 learn something, 7 are an epoch."""
    for bound in ("LEAST_UPDATES", "MOST_UPDATES"):
        monkeypatch.setattr(f"dcgan.recipe.{bound}", updates)


def forget() -> None:
    """As if the process had just begun."""
    HANDED.clear()
    for cache in (load_split, load_reference, load_yardstick):
        cache.cache_clear()


def test_the_recipe_takes_as_many_updates_as_a_small_or_large_set_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert recipe_for(20_000) == RECIPE
    for images in (40, 1000, 8000, 50_000, 102_800, 162_770):
        recipe = recipe_for(images)
        updates = recipe["epochs"] * (images // recipe["batch_size"])
        assert 600 <= updates <= 2400
        assert recipe["batch_size"] == min(128, images)


def test_a_labelled_set_learns_its_classes_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_updates(monkeypatch, 60)
    source = Source("own")
    reference = load_reference(source, "validation")
    assert "training the yardstick of own on its classes, once" in capsys.readouterr().err
    assert reference.accuracy > 0.6
    assert reference.classes == 10
    images, labels = load_split(source, "validation")
    hits = extract(reference.yardstick, images).probabilities.argmax(1) == labels
    assert reference.accuracy == hits.double().mean().item()
    (file,) = (tmp_path / "data" / "yardsticks").glob("*.safetensors")
    assert is_whole(file)
    assert protocol(reference)["extractor"] == reference.yardstick.sha256[:12]
    forget()
    again = load_reference(source, "validation")
    assert again.yardstick.sha256 == reference.yardstick.sha256
    assert torch.equal(again.features, reference.features)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["turns", "one"])
def test_without_classes_it_learns_turns_and_says_so(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_updates(monkeypatch, 60)
    source = Source(name)
    reference = load_reference(source, "validation")
    assert "on its turns, since it has no labels" in capsys.readouterr().err
    assert reference.accuracy > 0.5  # of four turns
    row = score(load_split(source, "test").images, reference)
    assert not row.keys() & set(CLASS_COLUMNS)
    assert row["collapsed"] is False
    one = load_split(source, "test").images[:1].expand(200, -1, -1, -1)
    assert score(one, reference)["collapsed"] is True


def test_turned_images_are_turned_as_they_say() -> None:
    images = load_split(MINI, "train").images[:40].float()
    turned, quarters = turn(images, torch.Generator().manual_seed(0))
    assert set(quarters.tolist()) == set(range(TURNS))
    for image, own, by in zip(images, turned, quarters.tolist(), strict=True):
        assert torch.equal(own.rot90(-by, (1, 2)), image)


def test_values_of_different_yardsticks_have_different_protocols() -> None:
    """The same images, in two data sets."""
    found = {name: load_reference(Source(name), "validation") for name in ("own", "turns")}
    extractors = {protocol(one)["extractor"] for one in found.values()}
    assert len(extractors) == 2
    assert "1fa29a6cf59e" not in extractors


def test_a_yardstick_that_is_handed_over_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker on another machine is handed the driver's."""
    first = load_reference(Source("own"), "validation").yardstick.sha256
    other = pack(Yardstick().state_dict())
    hand_over("own", other)
    reference = load_reference(Source("own"), "validation")
    assert reference.yardstick.sha256 != first
    monkeypatch.setattr(yardstick, "fit", lambda *given, **named: pytest.fail("it is trained"))
    hand_over("turns", pack(Yardstick(classes=TURNS).state_dict()))
    assert load_reference(Source("turns"), "validation").classes == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_yardstick_is_trained_again(damage: str, tmp_path: Path) -> None:
    first = load_yardstick(Source("own")).sha256
    (file,) = (tmp_path / "data" / "yardsticks").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[5000] ^= 16
    damaged = {"cut": content[:3000], "flipped": content, "empty": b""}
    file.write_bytes(damaged[damage])
    forget()
    assert load_yardstick(Source("own")).sha256 == first
    assert is_whole(file)


def test_packed_weights_are_a_safetensors_file() -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = Yardstick().state_dict()
    found = library.load(pack(tensors))
    assert found.keys() == tensors.keys() == unpack(pack(tensors)).keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_stacked_digits_are_read_colour_by_colour() -> None:
    source = Source("three", 28, 3)
    net = load_yardstick(source)
    assert isinstance(net, Stacked)
    images, labels = load_split(source, "test")
    features, probabilities = extract(net, images)
    alone = [extract(load_yardstick(MINI), images[:, [c]]) for c in range(3)]
    assert torch.allclose(features, torch.cat([one.features for one in alone], 1), atol=1e-5)
    a, b, c = (one.probabilities for one in alone)
    product = (a[:, :, None, None] * b[:, None, :, None] * c[:, None, None, :]).flatten(1)
    assert torch.allclose(probabilities, product, atol=1e-5)
    assert (probabilities.argmax(1) == labels).double().mean() > 0.95
    reference = load_reference(source, "validation")
    row = score(images, reference)
    assert row["classes_covered"] == len(probabilities.argmax(1).unique())  # any image counts
    assert reference.accuracy > 0.95


@pytest.mark.parametrize("name", ["own", "turns", "three"])
def test_a_run_on_any_data_set(name: str) -> None:
    channels = DATASETS[name].channels
    rows = train([TrainConfig(dataset=name, channels=channels, **TINY)], report=lambda row: None)
    absent = set(CLASS_COLUMNS) if name == "turns" else set()
    assert rows[0].keys() == COLUMNS.keys() - absent


def test_labels_of_an_own_set_condition_both_nets() -> None:
    config = TrainConfig(dataset="own", conditional="projection", **TINY)
    (row,) = train([config], report=lambda row: None)
    assert 0 <= row["label_accuracy"] <= 1
    assert "fid_in_class" not in row  # 20 images of a class say nothing of 128 features


def test_the_distance_in_a_class_is_that_of_its_images() -> None:
    images, labels = load_split(MINI, "test")
    reference = load_reference(MINI, "validation")
    assert reference.labels.bincount().min() > 128
    found = score(images, reference, labels)
    assert found["fid_in_class"] < 5
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert score(images, reference, shuffled)["fid_in_class"] > 20


def test_batches_that_are_copied_train_as_if_all_images_were_there() -> None:
    split = load_split(Source("own", 16), "train")
    config = TrainConfig(dataset="own", conditional="concat", **TINY)
    found = []
    for copied in (False, True):
        (state,) = new_states([config], CPU)
        feed = Feed(split, CPU, 64 * config.batch_size)
        if copied:
            feed.whole = False
            feed.images = torch.empty(64 * config.batch_size, 1, 16, 16, dtype=torch.uint8)
            feed.labels = torch.empty(64 * config.batch_size, dtype=torch.int64)
        update = make_update([state], feed.images, feed.labels)
        means = train_epoch([state], split.images, update, feed.fetch)
        found.append((means, state.generator.state_dict()))
    (means, whole), (others, copied_too) = found
    assert means == others
    assert all(torch.equal(whole[name], copied_too[name]) for name in whole)


def test_a_reference_is_kept_for_each_yardstick() -> None:
    load_reference(Source("own"), "validation")
    files = list((evaluate.default_data_dir() / "references").glob("*.pt"))
    hand_over("own", pack(Yardstick().state_dict()))
    load_reference(Source("own"), "validation")
    assert len(list(files[0].parent.glob("*.pt"))) == len(files) + 1 == 2
