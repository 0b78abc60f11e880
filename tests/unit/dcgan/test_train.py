"""`dcgan.train`'s command line: flags over file over defaults, lanes, progress, refusals."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan import checkpoint
from dcgan.config import TrainConfig, write_lanes
from dcgan.data import DATASETS
from dcgan.losses import LOSSES
from dcgan.schema import Row
from dcgan.train import make_parser, progress_line, recorded_threads, run, wanted_lanes

CPU = torch.device("cpu")
ROW: Row = {
    "epoch": 5,
    "fid": 12.345,
    "generator_loss": 0.69314,
    "discriminator_loss": 1.2,
    "images_per_second": 12345.6,
    "collapsed": False,
}


@pytest.mark.parametrize(
    ("rows", "epochs", "elapsed", "done", "line"),
    [
        (
            [ROW],
            25,
            10.0,
            0,
            "epoch  5/25 ████░░░░░░░░░░░░░░░░ fid 12.35  "
            "G 0.693  D 1.200  12,346 images/s  40 s left",
        ),
        (  # resumed after epoch 4: one epoch took 10 s
            [ROW | {"fid": 3}],
            25,
            10.0,
            4,
            "epoch  5/25 ████░░░░░░░░░░░░░░░░ fid 3.00  "
            "G 0.693  D 1.200  12,346 images/s  3 min 20 s left",
        ),
        (
            [ROW | {"collapsed": True}],
            5,
            10.0,
            0,
            "epoch 5/5 ████████████████████ fid 12.35  "
            "G 0.693  D 1.200  12,346 images/s  0 s left  COLLAPSED",
        ),
        (  # means over lanes; one collapsed
            [
                ROW | {"fid": 3, "images_per_second": 100},
                ROW | {"fid": 4, "collapsed": True, "images_per_second": 200},
            ],
            5,
            10.0,
            0,
            "epoch 5/5 ████████████████████ fid 3.50  "
            "G 0.693  D 1.200  150 images/s  0 s left  COLLAPSED",
        ),
    ],
)
def test_progress_line(rows: list[Row], epochs: int, elapsed: float, done: int, line: str) -> None:
    assert progress_line(rows, epochs, elapsed, done) == line


OTHER: dict[str, Any] = {
    "dataset": "mnist-mini",
    "image_size": 32,
    "channels": 3,
    "latent_size": 7,
    "generator_depth": 3,
    "discriminator_depth": 1,
    "generator_width": 8,
    "discriminator_width": 16,
    "extra_convs": 2,
    "loss": "other",
    "label_smoothing": 0.1,
    "penalty": 1.0,
    "discriminator_norm": "spectral",
    "augment": "translation",
    "conditional": "projection",
    "optimizer": "rmsprop",
    "generator_lr": 1e-3,
    "discriminator_lr": 3e-4,
    "beta1": 0.9,
    "beta2": 0.99,
    "rmsprop_alpha": 0.9,
    "batch_size": 128,
    "epochs": 3,
    "precision": "bfloat16",
    "ema_decay": 0.999,
    "snapshots_every": 2,
    "seed": 9,
}


@pytest.fixture
def other_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second loss, so that each setting has another value than the default."""
    monkeypatch.setitem(LOSSES, "other", LOSSES["non-saturating"])


def lanes_of(*arguments: object) -> list[TrainConfig]:
    """The lanes that a command line asks for."""
    return wanted_lanes(make_parser().parse_args([str(argument) for argument in arguments]))


@pytest.mark.usefixtures("other_loss")
def test_every_setting_has_a_flag() -> None:
    # of the classes the data set decides
    assert {*OTHER, "classes"} == {field.name for field in dataclasses.fields(TrainConfig)}
    baseline = TrainConfig().to_dict()
    for name, value in OTHER.items():
        flag = "--" + name.replace("_", "-")
        assert value != baseline[name]
        (lane,) = lanes_of(flag, value)
        assert lane.to_dict() == baseline | {name: value}
        assert flag in make_parser().format_help()


def test_a_data_set_brings_its_own_size_unless_a_flag_gives_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DATASETS, "faces", DATASETS["mnist"]._replace(size=64, channels=3))
    (lane,) = lanes_of("--dataset", "faces")
    assert (lane.image_size, lane.channels) == (64, 3)
    (lane,) = lanes_of("--dataset", "faces", "--image-size", 32)
    assert (lane.image_size, lane.channels) == (32, 3)


def test_flags_win_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    file.write_text(json.dumps({"epochs": 7, "batch_size": 32, "ema_decay": 0.5}))
    lanes = lanes_of("--config", file, "--batch-size", 128, "--ema-decay", 0, "--out", tmp_path)
    assert lanes == [TrainConfig(epochs=7, batch_size=128)]


@pytest.mark.usefixtures("other_loss")
def test_a_resumed_run_keeps_its_config(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(OTHER))
    (lane,) = lanes_of("--resume", "--out", tmp_path, "--epochs", 30)
    assert lane.to_dict() == OTHER | {"classes": 10, "epochs": 30}


def test_replicas_are_lanes_of_consecutive_seeds(tmp_path: Path) -> None:
    assert [lane.seed for lane in lanes_of("--replicas", 3)] == [0, 1, 2]
    assert [lane.seed for lane in lanes_of("--replicas", 2, "--seed", 7)] == [7, 8]
    file = tmp_path / "best.json"
    file.write_text(json.dumps({"seed": 4, "epochs": 7}))
    lanes = lanes_of("--config", file, "--replicas", 2)
    assert lanes == [TrainConfig(seed=4, epochs=7), TrainConfig(seed=5, epochs=7)]
    file.write_text(json.dumps([lane.to_dict() for lane in lanes]))
    assert [lane.seed for lane in lanes_of("--config", file, "--replicas", 3)] == [4, 5, 6]
    assert [lane.seed for lane in lanes_of("--config", file, "--replicas", 1)] == [4]


def test_a_file_of_several_lanes_gives_them_all(tmp_path: Path) -> None:
    lanes = [TrainConfig(seed=4, generator_lr=1e-4), TrainConfig(seed=9, generator_lr=2e-4)]
    write_lanes(tmp_path / "params.json", lanes)
    assert lanes_of("--config", tmp_path) == lanes
    assert lanes_of("--resume", "--out", tmp_path) == lanes
    assert [lane.seed for lane in lanes_of("--config", tmp_path, "--seed", 1)] == [1, 6]
    longer = lanes_of("--config", tmp_path, "--epochs", 3)
    assert longer == [dataclasses.replace(lane, epochs=3) for lane in lanes]


def test_replicas_of_lanes_with_different_rates_are_refused(tmp_path: Path) -> None:
    write_lanes(tmp_path / "params.json", [TrainConfig(generator_lr=1e-4), TrainConfig(seed=1)])
    with pytest.raises(
        ValueError,
        match=r"^--replicas does not go with lanes that differ in generator_lr; leave it out",
    ):
        lanes_of("--config", tmp_path, "--replicas", 2)
    lanes = lanes_of("--config", tmp_path, "--replicas", 2, "--generator-lr", 3e-4)
    assert lanes == [TrainConfig(generator_lr=3e-4), TrainConfig(generator_lr=3e-4, seed=1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "batch_size is 1"),
        (["--generator-lr", "nan"], "generator_lr is nan"),
        (["--config", "nowhere.json"], "no config at nowhere.json"),
        (["--resume", "--out", "nowhere"], "no config at nowhere"),
        (["--replicas", "0"], "replicas is 0; allowed is 1 to 64"),
        (["--replicas", "65"], "replicas is 65; allowed is 1 to 64"),
        (
            ["--replicas", "2", "--seed", str(2**32 - 1)],
            "seed is 4294967296; allowed is 0 to 4294967295",
        ),
    ],
)
def test_a_bad_setting_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        lanes_of(*arguments)


def test_a_choice_that_is_none_is_refused_with_the_choices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        make_parser().parse_args(["--optimizer", "sgd"])
    assert re.search("invalid choice: 'sgd'.*adam.*rmsprop", capsys.readouterr().err)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, [TrainConfig()], CPU, [], [], {})
    args = make_parser().parse_args(["--out", str(tmp_path)])
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(tmp_path))} already holds a run; go on with it by --resume",
    ):
        run(args)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.usefixtures("other_loss")
def test_a_refused_resumption_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, [TrainConfig(**OTHER)], CPU, [], [], {})
    before = json.dumps(OTHER)
    (tmp_path / "params.json").write_text(before)
    args = make_parser().parse_args(
        ["--resume", "--out", str(tmp_path), "--batch-size", "9000", "--precision", "float32"]
    )
    with pytest.raises(
        ValueError, match=r"belongs to another config: .*batch_size was \d+, is 9000"
    ):
        run(args)
    assert (tmp_path / "params.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        (b'{"epoch": 1, "threads": 3}\n{"epoch": 2, "threads": 4}\n', 3),
        (b'{"epoch": 1, "threads": 3}\n{"epo', 3),
        (b'{"epoch": 1}\n', None),  # of older code
        *(
            (b'{"threads": %s}' % value, None)
            for value in (b"0", b"-1", b"true", b"2.0", b'"2"', b"null")
        ),
        *((damaged, None) for damaged in (b"", b"\n", b'{"threads": 3', b"[3]", b"3", b"\xff\xfe")),
    ],
)
def test_threads_are_read_from_the_first_row(
    tmp_path: Path, content: bytes, threads: int | None
) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert recorded_threads(tmp_path) == threads


def test_without_rows_there_are_no_threads(tmp_path: Path) -> None:
    (tmp_path / "best.json").touch()
    assert recorded_threads(tmp_path) is None
    assert recorded_threads(tmp_path / "best.json") is None
