"""`dcgan.config`: the baseline, what is refused and how it is said, and the ways in and out of a
file."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dcgan.config import (
    LANE_FIELDS,
    TrainConfig,
    check_lanes,
    read_lanes,
    replicate,
    write_lanes,
)
from dcgan.data import DATASETS, Dataset
from dcgan.losses import LOSSES
from dcgan.settings import field_docs

NAMES = [field.name for field in dataclasses.fields(TrainConfig)]

BASELINE = {
    "dataset": "mnist",
    "image_size": 28,
    "channels": 1,
    "classes": 10,
    "latent_size": 100,
    "generator_depth": 2,
    "discriminator_depth": 2,
    "generator_width": 64,
    "discriminator_width": 64,
    "extra_convs": 0,
    "loss": "non-saturating",
    "label_smoothing": 0.0,
    "penalty": 0.0,
    "discriminator_norm": "batch",
    "augment": "none",
    "conditional": "none",
    "optimizer": "adam",
    "generator_lr": 2e-4,
    "discriminator_lr": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "rmsprop_alpha": 0.99,
    "batch_size": 64,
    "epochs": 25,
    "precision": "float32",
    "ema_decay": 0.0,
    "snapshots_every": 0,
    "seed": 0,
}


def test_defaults_are_the_baseline() -> None:
    assert TrainConfig().to_dict() == BASELINE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 30}, "image_size is 30; allowed is a multiple of 4 from 16 to 128"),
        ({"image_size": 12}, "image_size is 12; allowed is a multiple of 4 from 16 to 128"),
        ({"image_size": 132}, "image_size is 132; allowed is a multiple of 4 from 16 to 128"),
        ({"generator_lr": 0.0}, "generator_lr is 0.0; allowed is a finite number above 0"),
        ({"generator_lr": 0}, "generator_lr is 0; allowed is a finite number above 0"),
        ({"generator_lr": -1.0}, "generator_lr is -1.0; allowed is a finite number above 0"),
        ({"generator_lr": math.nan}, "generator_lr is nan; allowed is a finite number above 0"),
        (
            {"discriminator_lr": math.inf},
            "discriminator_lr is inf; allowed is a finite number above 0",
        ),
        (
            {"discriminator_lr": -math.inf},
            "discriminator_lr is -inf; allowed is a finite number above 0",
        ),
        ({"batch_size": 0}, "batch_size is 0; allowed is at least 1"),
        ({"batch_size": 1}, "batch_size is 1; batch norm needs at least 2 images"),
        ({"epochs": 0}, "epochs is 0; allowed is 1 to 100000"),
        ({"latent_size": 0}, "latent_size is 0; allowed is 1 to 4096"),
        ({"latent_size": 4097}, "latent_size is 4097; allowed is 1 to 4096"),
        ({"generator_width": 1025}, "generator_width is 1025; allowed is 1 to 1024"),
        ({"discriminator_width": 0}, "discriminator_width is 0; allowed is 1 to 1024"),
        ({"extra_convs": -1}, "extra_convs is -1; allowed is 0 to 16"),
        ({"extra_convs": 17}, "extra_convs is 17; allowed is 0 to 16"),
        ({"generator_depth": 0}, "generator_depth is 0; allowed is 1 to 3"),
        ({"discriminator_depth": 0}, "discriminator_depth is 0; allowed is 1 to 3"),
        ({"generator_depth": 4}, "generator_depth is 4; allowed is 1 to 3"),
        (
            {"discriminator_depth": 6, "image_size": 64},
            "discriminator_depth is 6; allowed is 1 to 5",
        ),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adam, rmsprop"),
        ({"dataset": "faces"}, "dataset is 'faces'; allowed: mnist, mnist-mini"),
        ({"precision": "int8"}, "precision is 'int8'; allowed: float32, tf32, bfloat16, float16"),
        ({"channels": 2}, "channels is 2; allowed: 0, 1, 3"),
        ({"beta1": 1.0}, "beta1 is 1.0; allowed is 0 up to, not including, 1"),
        ({"beta2": -0.1}, "beta2 is -0.1; allowed is 0 up to, not including, 1"),
        ({"rmsprop_alpha": math.nan}, "rmsprop_alpha is nan; allowed is 0 up to, not including, 1"),
        ({"ema_decay": 1}, "ema_decay is 1; allowed is 0 up to, not including, 1"),
        ({"snapshots_every": -1}, "snapshots_every is -1; allowed is 0 to 100000"),
        ({"seed": -1}, "seed is -1; allowed is 0 to 4294967295"),
        ({"seed": 2**32}, f"seed is {2**32}; allowed is 0 to 4294967295"),
        ({"loss": "hinges"}, "loss is 'hinges'; allowed: non-saturating"),
        ({"label_smoothing": 0.6}, "label_smoothing is 0.6; allowed is 0 to 0.5"),
        ({"penalty": -1.0}, "penalty is -1.0; allowed is 0 to 1000"),
        ({"penalty": math.nan}, "penalty is nan; allowed is 0 to 1000"),
        (
            {"discriminator_norm": "layer"},
            "discriminator_norm is 'layer'; allowed: batch, spectral",
        ),
        ({"augment": "cutout"}, "augment is 'cutout'; allowed: none, translation"),
        (
            {"label_smoothing": 0.1, "loss": "hinge"},
            "label_smoothing is 0.1 with loss hinge, which has no labels",
        ),
        (
            {"penalty": 1.0, "precision": "float16"},
            "penalty is 1.0 with precision float16, in which the gradients",
        ),
        # wrong types
        ({"epochs": True}, "epochs is True, a bool; expected int"),
        ({"generator_lr": True}, "generator_lr is True, a bool; expected float"),
        ({"batch_size": 64.0}, "batch_size is 64.0, a float; expected int"),
        ({"batch_size": "64"}, "batch_size is '64', a str; expected int"),
        ({"generator_lr": "2e-4"}, "generator_lr is '2e-4', a str; expected float"),
        ({"dataset": 1}, "dataset is 1, a int; expected str"),
        ({"optimizer": ["adam"]}, "optimizer is ['adam'], a list; expected str"),
        ({"seed": None}, "seed is None, a NoneType; expected int"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**values)


def test_an_integer_too_large_for_a_float_is_a_bad_rate() -> None:
    with pytest.raises(ValueError, match="generator_lr is 1000"):
        TrainConfig(generator_lr=10**400)


@pytest.mark.parametrize("size", range(16, 129, 4))
def test_every_multiple_of_4_is_accepted_down_to_a_map_of_2_pixels(size: int) -> None:
    deepest = max(depth for depth in range(1, 9) if size // 2**depth >= 2)
    config = TrainConfig(image_size=size, generator_depth=deepest, discriminator_depth=deepest)
    assert config.image_size == size
    with pytest.raises(
        ValueError, match=f"generator_depth is {deepest + 1}; allowed is 1 to {deepest}$"
    ):
        TrainConfig(image_size=size, generator_depth=deepest + 1)


@pytest.mark.parametrize(
    "values",
    [
        {"beta1": 0, "ema_decay": 0.9999},
        {"generator_lr": 1},
        {"label_smoothing": 0.5, "penalty": 1000, "discriminator_norm": "none"},
        {"batch_size": 2, "epochs": 1, "seed": 2**32 - 1},
        {"latent_size": 1, "generator_width": 1, "discriminator_width": 1024, "extra_convs": 16},
        {"channels": 3, "optimizer": "rmsprop", "dataset": "mnist-mini", "precision": "float16"},
    ],
)
def test_the_bounds_themselves_are_allowed(values: dict[str, Any]) -> None:
    assert TrainConfig(**values).to_dict() == BASELINE | values


def test_is_frozen_and_keyword_only() -> None:
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError, match="seed"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        TrainConfig("mnist")  # type: ignore[misc]


def test_replace_checks_again() -> None:
    with pytest.raises(ValueError, match="epochs is 0"):
        dataclasses.replace(TrainConfig(), epochs=0)


def test_from_dict_refuses_unknown_keys() -> None:
    message = f"unknown config key 'netG_lr', 'lr'; allowed: {', '.join(NAMES)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainConfig.from_dict({"netG_lr": 1e-3, "epochs": 3, "lr": 1e-3})


def test_round_trips_through_json() -> None:
    config = TrainConfig(
        dataset="mnist-mini",
        image_size=32,
        generator_lr=3.1e-5,
        optimizer="rmsprop",
        ema_decay=0.99,
        seed=7,
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({"seed": 7}) == TrainConfig(seed=7)


@pytest.mark.parametrize("count", [0, 65])
def test_the_number_of_lanes_is_bounded(count: int) -> None:
    with pytest.raises(ValueError, match=f"^replicas is {count}; allowed is 1 to 64$"):
        replicate(TrainConfig(), count)


def test_lanes_of_one_config_differ_in_their_seed_alone() -> None:
    lanes = replicate(TrainConfig(seed=2**32 - 64, epochs=3), 64)
    assert lanes == [TrainConfig(seed=2**32 - 64 + i, epochs=3) for i in range(64)]
    with pytest.raises(ValueError, match="seed is 4294967296; allowed is 0 to 4294967295"):
        replicate(TrainConfig(seed=2**32 - 2), 3)


def test_lanes_may_differ_in_seed_rates_and_betas_alone() -> None:
    values = {"seed": 5, "generator_lr": 1e-3, "discriminator_lr": 1e-4, "beta1": 0.0, "beta2": 0.9}
    assert set(values) == set(LANE_FIELDS)
    check_lanes([TrainConfig(), TrainConfig(**values)])
    with pytest.raises(
        ValueError, match=r"^lane 1 has batch_size 128, lane 0 64; lanes may differ in seed, "
    ):
        check_lanes([TrainConfig(), TrainConfig(batch_size=128)])
    with pytest.raises(ValueError, match="there are no lanes"):
        check_lanes([])


def test_image_size_and_channels_are_the_data_sets_own_unless_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colour = Dataset(DATASETS["mnist"].load, size=64, channels=3, classes=10)
    monkeypatch.setitem(DATASETS, "colour", colour)
    config = TrainConfig(dataset="colour")
    assert (config.image_size, config.channels) == (64, 3)
    config = TrainConfig(dataset="colour", image_size=32, channels=1)
    assert (config.image_size, config.channels) == (32, 1)


def test_what_is_registered_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "mine", LOSSES["non-saturating"])
    assert TrainConfig(loss="mine").loss == "mine"


@pytest.mark.parametrize("count", [1, 3])
def test_lanes_round_trip_through_a_file(tmp_path: Path, count: int) -> None:
    lanes = replicate(TrainConfig(epochs=3, seed=4), count)
    write_lanes(tmp_path / "params.json", lanes)
    assert read_lanes(tmp_path) == lanes
    content = json.loads((tmp_path / "params.json").read_text())
    assert isinstance(content, list if count > 1 else dict)


@pytest.mark.parametrize(
    ("file", "given"), [("a.json", "a.json"), ("params.json", "."), ("config.json", ".")]
)
def test_read_lanes_takes_a_file_or_a_run_folder(tmp_path: Path, file: str, given: str) -> None:
    (tmp_path / file).write_text(json.dumps({"epochs": 3, "generator_lr": 1e-3}))
    assert read_lanes(tmp_path / given) == [TrainConfig(epochs=3, generator_lr=1e-3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: 3", " is not valid JSON"),
        (b"", " is not valid JSON"),
        (b'{"epochs": 3', " is not valid JSON"),
        (b"\xff\xfe\x00", " is not valid JSON"),
        (b"[1, 2]", ": it holds int; expected a JSON object"),
        (b"[]", ": there are no lanes"),
        (b"null", ": it holds NoneType; expected a JSON object"),
    ],
)
def test_read_lanes_names_a_file_it_cannot_read(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "params.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}{message}"):
        read_lanes(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epoch": 3}', "unknown config key 'epoch'"),
        ('{"generator_lr": NaN}', "generator_lr is nan"),
    ],
)
def test_read_lanes_checks_keys_and_values(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "params.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_lanes(tmp_path)


def test_read_lanes_says_what_to_give_when_there_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(
            FileNotFoundError,
            match=f"no config at {re.escape(str(path))}; give a JSON file, or a folder",
        ):
            read_lanes(path)


def test_every_field_is_documented() -> None:
    docs = field_docs(TrainConfig)
    assert list(docs) == NAMES
    assert docs["generator_lr"] == "Learning rate of G."
    assert [name for name, text in docs.items() if not re.search(r"\w.*\.$", text, re.DOTALL)] == []
