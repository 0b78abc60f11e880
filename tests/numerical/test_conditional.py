"""Conditional nets: labels reach both of them, are asked for, recognised, drawn and saved."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import numpy as np
import pytest
import torch
from PIL import Image

import dcgan.sample
from dcgan import checkpoint
from dcgan.config import CONDITIONS, TrainConfig, replicate
from dcgan.data import load_split, one_hot
from dcgan.evaluate import asked_labels, evaluate, evaluation_noise, generate, load_reference, score
from dcgan.images import interpolate, sample_grid, save_grid
from dcgan.loop import make_update, train, train_epoch
from dcgan.models import build
from dcgan.schema import COLUMNS, LABEL_COLUMNS, Row
from dcgan.state import new_state, new_states
from dcgan.yardstick import extract, load_yardstick

CPU = torch.device("cpu")
TINY = TrainConfig(
    dataset="mnist-mini",
    image_size=16,
    generator_width=2,
    discriminator_width=2,
    batch_size=1000,
    epochs=2,
    seed=5,
)
QUICK = dataclasses.replace(TINY, dataset="few-digits", batch_size=200)
KINDS = [kind for kind in CONDITIONS if kind != "none"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [{}, {"channels": 3, "discriminator_norm": "spectral"}], ids=str)
def test_a_net_of_lanes_computes_what_each_one_does(kind: str, values: dict[str, Any]) -> None:
    lanes = replicate(dataclasses.replace(TINY, conditional=kind, **values), 3)
    G, D = build(lanes)
    C, noise, labels = lanes[0].channels, torch.randn(4, 3, 100), torch.randint(10, (4, 3))
    vectors = one_hot(labels, 10)
    with torch.no_grad():
        images = G(noise.flatten(1), vectors)
        logits = D(images, vectors)
        for lane, config in enumerate(lanes):
            own_g, own_d = build([config])
            own, asked = images[:, C * lane : C * (lane + 1)], vectors[:, lane : lane + 1]
            torch.testing.assert_close(own_g(noise[:, lane], asked), own, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                own_d(own, asked)[:, 0], logits[:, lane], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("kind", KINDS)
def test_both_nets_depend_on_the_label_of_their_own_image_alone(kind: str) -> None:
    """In evaluation mode, in which batch norm joins no images."""
    G, D = (net.eval() for net in build([dataclasses.replace(TINY, conditional=kind)]))
    noise, labels = torch.randn(5, 100), torch.tensor([[1], [2], [3], [4], [5]])
    other = labels.clone()
    other[2] = 9
    with torch.no_grad():
        images = G(noise, one_hot(labels, 10))
        moved = (G(noise, one_hot(other, 10)) - images).abs().amax((1, 2, 3)) > 0
        logits = D(images, one_hot(labels, 10))
        judged = (D(images, one_hot(other, 10)) - logits).abs().amax(1) > 0
    assert moved.tolist() == judged.tolist() == [False, False, True, False, False]


def test_a_projection_is_the_papers() -> None:
    """Logit of the features, and their inner product with the label's vector."""
    D = build([dataclasses.replace(TINY, conditional="projection")])[1].eval()
    images, labels = torch.rand(6, 1, 16, 16), torch.tensor([0, 9, 3, 3, 1, 7])
    assert D.projection is not None
    with torch.no_grad():
        features = D.layers[:-1](images)[:, 0]
        expected = D.layers[-1](features[:, None])[:, 0, 0]
        expected = expected + (D.projection.weight[labels] * features).sum(1)
        found = D(images, one_hot(labels, 10)[:, None])[:, 0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_lane_trains_as_it_would_alone(kind: str) -> None:
    config = dataclasses.replace(QUICK, conditional=kind, ema_decay=0.9)
    split = load_split(config.source(None, CPU), "train")

    def means(lanes: list[TrainConfig]) -> list[Row]:
        state = new_state(lanes, CPU)
        update = make_update([state], split.images, split.labels)
        return train_epoch([state], split.images, update)[0]

    together = means(replicate(config, 2))
    for own, seed in zip(together, (5, 6), strict=True):
        assert own == pytest.approx(means([dataclasses.replace(config, seed=seed)])[0], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, conditional=kind)
    rows = train([config], report=ignore, checkpoint_dir=tmp_path / "whole")
    one = dataclasses.replace(config, epochs=1)
    train([one], report=ignore, checkpoint_dir=tmp_path / "two")
    again = train(
        [config], report=ignore, checkpoint_dir=tmp_path / "two", resume_from=tmp_path / "two"
    )
    assert all(row.keys() == COLUMNS.keys() | LABEL_COLUMNS.keys() for row in rows)
    for name in ("fid", "generator_loss", "label_accuracy"):
        assert [row[name] for row in again] == [row[name] for row in rows]


def ignore(row: Row) -> None:
    """Takes a reported row."""


def test_asked_for_labels_are_recognised_in_real_images() -> None:
    """The share is that of the yardstick's own hits; of other labels, by chance."""
    source = TINY.source(None, CPU)
    images, labels = load_split(source, "test")
    reference = load_reference(source, "validation")
    hits = extract(load_yardstick(source), images).probabilities.argmax(1) == labels
    assert score(images, reference, labels)["label_accuracy"] == hits.double().mean() > 0.9
    assert score(images, reference, labels.roll(1))["label_accuracy"] < 0.2
    assert "label_accuracy" not in score(images, reference)


def test_evaluation_asks_for_classes_as_they_are_among_real_images() -> None:
    config = dataclasses.replace(TINY, conditional="concat")
    generator, seen = build([config])[0], []
    generator.register_forward_pre_hook(lambda net, given: seen.append(given[1].argmax(2)))
    scores = evaluate(generator, config, load_reference(config.source(None, CPU), "validation"))
    assert 0 <= scores["label_accuracy"] <= 0.3
    asked = torch.cat(seen)[256:, 0]  # after the paths
    assert torch.equal(asked, load_split(config.source(None, CPU), "validation").labels)
    paths = torch.cat(seen)[:256, 0].view(32, 8)
    assert (paths == paths[:, :1]).all()  # one class a path


def test_grids_have_a_class_to_a_row() -> None:
    generator = build([dataclasses.replace(TINY, conditional="projection")])[0]
    images, columns = sample_grid(generator, 100, 64)
    assert (len(images), columns) == (60, 6)
    assert asked_labels(60, 10, CPU, each=6).view(10, 6).T[0].tolist() == list(range(10))
    strips = interpolate(generator, 100, steps=4, rows=3, seed=0)
    assert strips.shape == (12, 1, 16, 16)
    ones = interpolate(generator, 100, steps=4, rows=3, seed=0, label=1)
    assert torch.equal(ones[4:8], strips[4:8])  # the second strip was of class 1
    assert not torch.equal(ones[:4], strips[:4])
    plain = build([TINY])[0]
    images, none = sample_grid(plain, 100, 64)
    assert (len(images), none) == (64, None)


def test_a_label_is_drawn_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("projection", "none"):
        config = dataclasses.replace(QUICK, conditional=kind, epochs=1)
        train([config], report=ignore, checkpoint_dir=tmp_path / kind)

    def sample(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sample", *map(str, arguments)])
        code = 0
        try:
            dcgan.sample.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().err

    out = tmp_path / "seven.png"
    assert sample(tmp_path / "projection", "--label", 7, "--count", 4, "--out", out)[0] == 0
    generator, _, _ = checkpoint.load_generator(tmp_path / "projection")
    sevens = generate(generator, evaluation_noise(4, 100, CPU), torch.full((4,), 7))
    expected = save_grid(sevens, tmp_path / "expected.png")
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(expected)))
    code, error = sample(tmp_path / "projection", "--label", 10)
    assert (code, "--label is 10; allowed is 0 to 9" in error) == (2, True)
    code, error = sample(tmp_path / "none", "--label", 1)
    assert (code, "this generator knows no labels; train one with --conditional" in error) == (
        2,
        True,
    )


def test_labels_are_learned() -> None:
    """In a minute of training what is asked for is recognised far above chance (0.1)."""
    config = TrainConfig(
        dataset="mnist-mini",
        generator_width=8,
        discriminator_width=8,
        conditional="projection",
        generator_lr=2e-3,
        discriminator_lr=2e-3,
        epochs=4,
    )
    rows = train([config], report=ignore)
    accuracies = [row["label_accuracy"] for row in rows]
    print(f"label_accuracy by epoch: {accuracies}")
    assert accuracies[-1] > 0.4
    assert accuracies[-1] > accuracies[0]


def test_a_way_apart_gives_each_net_its_labels() -> None:
    lanes = replicate(dataclasses.replace(TINY, conditional="projection"), 2)
    states = new_states(lanes, CPU, "branches")
    assert [state.generator.classes for state in states] == [10, 10]
