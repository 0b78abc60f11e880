"""The floor under an update's time, against a count by hand from the layers' shapes."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dcgan.config import TrainConfig
from dcgan.floor import Ceilings, Work, ceilings, floor_seconds, work

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
FLOAT = 4  # bytes
CONFIGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "one stage": {"generator_depth": 1, "discriminator_depth": 1},
    "three stages": {"generator_depth": 3, "discriminator_depth": 3, "generator_width": 16, "discriminator_width": 8},
    "unequal nets": {"generator_depth": 3, "discriminator_depth": 1, "generator_width": 8, "discriminator_width": 24},
    "extra convs": {"extra_convs": 2, "generator_width": 32, "discriminator_width": 16},
    "large batch": {"batch_size": 300, "generator_width": 8, "discriminator_width": 8},
    "rmsprop in colour": {"optimizer": "rmsprop", "channels": 3, "image_size": 32, "latent_size": 7, "batch_size": 10},
    "averaged": {"ema_decay": 0.9, "generator_width": 16, "discriminator_width": 16},
}


class Layer(NamedTuple):
    """One layer with weights, for one image."""

    operations: int
    """Of its forward pass; the gradient of its weights, and that of its input, takes as many."""
    weights: int
    """And biases, those of its batch norm among them."""
    output: int
    """Numbers that it gives."""
    normed: bool
    """Whether a batch norm follows, which keeps its input beside the activation that follows."""


def generator_layers(config: TrainConfig) -> list[Layer]:
    """G's layers, from its description alone."""
    depth, size, channels = config.generator_depth, config.image_size, config.channels
    side, width = size >> depth, config.generator_width * 2 ** (depth - 1)
    outputs = width * side**2
    layers = [Layer(2 * config.latent_size * outputs, config.latent_size * outputs + 2 * width, outputs, True)]
    for stage in range(depth - 1, 0, -1):
        into, half = size >> stage, width // 2
        layers.append(Layer(2 * width * half * 16 * side**2, width * half * 16 + 2 * half, half * into**2, True))
        side, width = into, half
    extra = Layer(2 * width * width * 9 * side**2, width * width * 9 + 2 * width, width * side**2, True)
    layers += [extra] * config.extra_convs
    layers.append(Layer(2 * width * channels * 16 * side**2, width * channels * 16 + channels, channels * size**2, False))
    return layers


def discriminator_layers(config: TrainConfig) -> list[Layer]:
    """D's layers, from its description alone."""
    size, channels, width = config.image_size, config.channels, config.discriminator_width
    side = size >> 1
    layers = [Layer(2 * channels * width * 16 * side**2, channels * width * 16 + width, width * side**2, False)]
    for stage in range(2, config.discriminator_depth + 1):
        side = size >> stage
        layers.append(
            Layer(2 * width * 2 * width * 16 * side**2, width * 2 * width * 16 + 4 * width, 2 * width * side**2, True)
        )
        width *= 2
    inputs = width * side**2
    return [*layers, Layer(2 * inputs, inputs + 1, 1, False)]


def operations(config: TrainConfig) -> int:
    """Of one update of D and one of G, for one seed."""
    g, d = ([layer.operations for layer in layers] for layers in (generator_layers(config), discriminator_layers(config)))
    forward = sum(g) + 3 * sum(d)  # D sees real, fake, and fake again after its own update
    weights = sum(g) + 2 * sum(d)  # the second look at fake needs none of D's
    inputs = sum(g[1:]) + 2 * sum(d[1:]) + sum(d)  # none for the noise or for D's update; all the way through D for G
    return config.batch_size * (forward + weights + inputs)


def weights(config: TrainConfig) -> int:
    return sum(layer.weights for layer in (*generator_layers(config), *discriminator_layers(config)))


def kept(config: TrainConfig) -> int:
    """Numbers of one seed that stand between forward and backward: inputs of layers and norms; activations work in place."""
    g, d = generator_layers(config), discriminator_layers(config)
    pixels = config.channels * config.image_size**2
    of_g = config.latent_size + sum(layer.output * (1 + layer.normed) for layer in g)
    of_d = sum(layer.output * (1 + layer.normed) for layer in d)
    return config.batch_size * (of_g + pixels + 3 * of_d)


def traffic(config: TrainConfig) -> int:
    """Bytes of weights and moments, read and written."""
    return 2 * (3 if config.optimizer == "adam" else 2) * FLOAT * weights(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_counted_by_hand(name: str) -> None:
    config = TrainConfig(**CONFIGS[name])
    assert work(config).operations == operations(config)


def test_operations_of_the_baseline_are_known() -> None:
    need = work(TrainConfig())
    assert need.operations == 64 * 147_517_440 == 9_441_116_160


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_counted_by_hand(name: str) -> None:
    """But for what has no map's size: logits, statistics of batches, losses."""
    config = TrainConfig(**CONFIGS[name])
    batch = config.batch_size * (config.channels * config.image_size**2 + FLOAT * config.latent_size)
    found = work(config).bytes
    assert found > traffic(config) + batch
    assert found == pytest.approx(traffic(config) + batch + 2 * FLOAT * kept(config), rel=2e-3)


def test_work_is_the_same_each_time() -> None:
    """Memory that is freed and taken again during an update is not taken for the tensor that lay there before."""
    found = [work(TrainConfig(generator_width=width, discriminator_width=width)) for width in (16, 64, 16, 64, 16, 64)]
    assert len(set(found[::2])) == len(set(found[1::2])) == 1


def test_precision_does_not_change_the_count() -> None:
    """It is that of float32, which other precisions are compared with."""
    config = TrainConfig(generator_width=16, discriminator_width=16)
    counts = {work(dataclasses.replace(config, precision=name)) for name in ("float32", "tf32", "bfloat16", "float16")}
    assert counts == {work(config)}


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_work_is_linear_in_replicas(optimizer: str) -> None:
    config = TrainConfig(generator_width=16, discriminator_width=16, optimizer=optimizer)
    one = work(config)
    for replicas in (2, 16):
        assert work(dataclasses.replace(config, replicas=replicas)) == Work(replicas * one.operations, replicas * one.bytes)


def test_operations_are_linear_in_the_batch() -> None:
    small, large = (work(TrainConfig(batch_size=n, generator_width=8, discriminator_width=8)) for n in (50, 150))
    assert large.operations == 3 * small.operations
    assert small.bytes < large.bytes < 3 * small.bytes  # weights and moments are moved once


def test_a_wider_net_takes_more_of_both() -> None:
    found = [work(TrainConfig(generator_width=width, discriminator_width=width)) for width in (2, 8, 32, 128)]
    for narrow, wide in itertools.pairwise(found):
        assert 0 < narrow.operations < wide.operations
        assert 0 < narrow.bytes < wide.bytes


def test_rmsprop_moves_one_moment_less_than_adam() -> None:
    adam = TrainConfig(generator_width=16, discriminator_width=24, extra_convs=1)
    rmsprop = dataclasses.replace(adam, optimizer="rmsprop")
    assert work(adam).operations == work(rmsprop).operations
    assert work(adam).bytes - work(rmsprop).bytes == 2 * FLOAT * weights(adam)


def test_ceilings_of_the_cpu_are_numbers_of_its_kind() -> None:
    found = ceilings("float32", CPU)
    assert all(math.isfinite(value) for value in found)
    assert 1e8 < found.operations < 1e15
    assert 1e7 < found.bytes < 1e14


def test_ceilings_of_a_precision_that_the_device_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^precision float16 needs a CUDA GPU"):
        ceilings("float16", CPU)


@pytest.mark.parametrize(("need", "seconds"), [(Work(100, 1), 10.0), (Work(1, 100), 25.0), (Work(100, 40), 10.0)])
def test_the_floor_is_the_longer_of_computing_and_moving(need: Work, seconds: float) -> None:
    assert floor_seconds(need, Ceilings(operations=10.0, bytes=4.0)) == seconds


def test_command_prints_the_baseline_and_a_line_for_each_precision() -> None:
    done = subprocess.run([sys.executable, "-m", "dcgan.floor"], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    megabytes = re.fullmatch(
        r"baseline, width 64, batch 64: 9\.44 GFLOP and (\d+) MB an update, 148 MFLOP an image, 8\.9 TFLOP for 60,000", first
    )
    assert megabytes
    assert int(megabytes[1]) == round(work(TrainConfig()).bytes / 1e6)
    assert lines
    assert lines[0].startswith("float32 on ")
    for line in lines:
        found = re.search(
            r", \d+ CPU threads: ([\d.]+) TFLOP/s, (\d+) GB/s: at least ([\d.]+) ms an update, at most ([\d,]+) images/s$", line
        )
        assert found, line
        _, _, milliseconds, speed = (float(text.replace(",", "")) for text in found.groups())
        assert 64 / (milliseconds / 1e3) == pytest.approx(speed, rel=0.02)


def test_command_takes_no_arguments() -> None:
    command = [sys.executable, "-m", "dcgan.floor", "--widht", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 2
    message = "python -m dcgan.floor: error: unrecognized arguments: --widht 3 (see python -m dcgan.floor --help)"
    assert done.stderr.splitlines() == [message]
