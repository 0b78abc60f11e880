"""`dcgan.bench` and `dcgan.plain`: what is printed and written, the count of operations, and that
both loops train the same thing."""

import contextlib
import dataclasses
import gc
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dcgan import bench
from dcgan.config import TrainConfig, replicate
from dcgan.data import Source, Split, load_split, to_unit_range
from dcgan.loop import update_both
from dcgan.models import Discriminator, Generator, build
from dcgan.plain import Images, plain
from dcgan.state import State, new_states
from dcgan.ways import WAYS

CPU = torch.device("cpu")
TINY = TrainConfig(
    dataset="mnist-mini", generator_width=2, discriminator_width=2, batch_size=200, seed=3
)
FEW = 800  # images
PER_EPOCH = 4  # batches of TINY
ROW = [
    "precision",
    "width",
    "batch",
    "replicas",
    "way",
    "images_per_second",
    "spread",
    "plain_images_per_second",
    "plain_spread",
    "ratio",
    "ratio_spread",
    "of_floor",
]
CONDITIONS = [
    "device",
    "threads",
    "cpus",
    "platform",
    "versions",
    "dataset",
    "repeats",
    "date",
]
# a worker process of a DataLoader is forked, and Python 3.12 warns of that where there are threads
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# The command


class Measured(NamedTuple):
    """What a benchmark prints and writes."""

    printed: str
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A small benchmark of two repeats, so that each median is the mean of least and most."""
    file = tmp_path_factory.mktemp("bench") / "numbers.json"
    arguments = "--precisions float32 --widths 4 --batches 64 --replicas 1 2 --repeats 2"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        timing = ["--seconds", "0.1", "--threads", "1", "--json", str(file)]
        patch.setattr(sys, "argv", ["bench", *arguments.split(), *timing])
        bench.main()
    gc.collect()  # ends the workers of the plain loop
    return Measured(printed.getvalue(), json.loads(file.read_text()))


@forks
def test_the_conditions_are_printed_and_written(measured: Measured) -> None:
    printed, numbers = measured
    assert list(numbers) == [*CONDITIONS, "rows"]
    found = (numbers["threads"], numbers["dataset"], numbers["repeats"])
    assert found == (1, "mnist-mini", 2)
    assert numbers["cpus"] == os.cpu_count()
    assert numbers["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", numbers["date"])
    head = printed.partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1)[0] for line in head] == CONDITIONS
    for line in head:
        name, value = line.split(maxsplit=1)
        assert value.rstrip() == str(numbers[name]).rstrip()


@forks
def test_each_row_holds_every_number(measured: Measured) -> None:
    rows = measured.numbers["rows"]
    assert [row["replicas"] for row in rows] == [1, 2]
    for row in rows:
        assert list(row) == ROW
        assert (row["precision"], row["width"], row["batch"]) == ("float32", 4, 64)
        assert 0 < row["of_floor"] < 1
        for name, spread in (
            ("images_per_second", "spread"),
            ("plain_images_per_second", "plain_spread"),
            ("ratio", "ratio_spread"),
        ):
            low, high = row[spread]
            assert 0 < low <= high
            assert row[name] == pytest.approx((low + high) / 2)


@forks
def test_a_ratio_is_that_of_two_neighbouring_chunks(measured: Measured) -> None:
    """Of two chunks each, least and most may have come in the same order or in opposite ones."""
    for row in measured.numbers["rows"]:
        (low, high), (plain_low, plain_high) = row["spread"], row["plain_spread"]
        same = sorted([low / plain_low, high / plain_high])
        opposite = sorted([low / plain_high, high / plain_low])
        assert row["ratio_spread"] in (pytest.approx(same), pytest.approx(opposite))


@forks
def test_rows_of_one_network_share_the_plain_loop_and_the_floor(measured: Measured) -> None:
    one, two = measured.numbers["rows"]
    assert all(one[name] == two[name] for name in ROW if name.startswith("plain"))
    floor, other = (row["of_floor"] / row["images_per_second"] for row in (one, two))
    assert floor == pytest.approx(other)


@forks
def test_the_table_shows_what_the_file_holds(measured: Measured) -> None:
    head, *lines = measured.printed.rstrip("\n").rpartition("\n\n")[2].splitlines()
    assert head.split() == [
        "precision",
        "width",
        "batch",
        "R",
        "way",
        "images/s,",
        "ours",
        "plain",
        "ratio",
        "floor",
    ]
    for line, row in zip(lines, measured.numbers["rows"], strict=True):
        low, high = row["spread"]
        least, most = row["ratio_spread"]
        assert line.split() == [
            "float32",
            "4",
            "64",
            str(row["replicas"]),
            "grouped",
            f"{row['images_per_second']:,.0f}",
            f"[{low:,.0f},",
            f"{high:,.0f}]",
            f"{row['plain_images_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"[{least:.2f},",
            f"{most:.2f}]",
            f"{row['of_floor']:.0%}",
        ]


@pytest.mark.parametrize("speed", [12.3, 9_999.4, 99_999.4, 2_000_000.0])
def test_rows_of_slow_and_fast_devices_stand_under_their_headings(speed: float) -> None:
    config = TrainConfig(
        precision="bfloat16", generator_width=1024, discriminator_width=1024, batch_size=1024
    )
    lanes = replicate(config, 64)
    for way in WAYS:
        row = bench.numbers(lanes, way, [speed, speed], [speed / 123.4] * 2, 2 * speed)
        line = bench.table_line(row)
        assert len(line) == len(bench.HEADINGS)
        assert len(line.split()) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--precisions float16",
            "precision float16 needs a CUDA GPU, and this run is on the cpu; use float32",
        ),
        ("--precisions float8", "precision is 'float8'; allowed: float32, tf32, bfloat16, float16"),
        ("--widths 0", "generator_width is 0; allowed is 1 to 1024"),
        ("--widths wide", "argument --widths: invalid int value: 'wide'"),
        ("--batches 1", "batch_size is 1; batch norm needs at least 2 images a batch"),
        ("--batches 8001", "batch_size is 8001; the training split of mnist-mini holds 8000"),
        ("--replicas 0", "replicas is 0; allowed is 1 to 64"),
        ("--repeats 0", "--repeats is 0; allowed is at least 1"),
        ("--threads 0", "--threads is 0; allowed is at least 1"),
        ("--seconds -1", "--seconds is -1.0; allowed is"),
        ("--seconds inf", "--seconds is inf; allowed is"),
        ("--dataset digits", "argument --dataset: invalid choice: 'digits'"),
        ("--json /proc/nowhere/numbers.json", "/proc/nowhere"),
        ("--speed 4", "unrecognized arguments: --speed 4"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    least = "--precisions float32 --widths 2 --batches 64 --replicas 1 --repeats 1 --seconds 0.01"
    monkeypatch.setattr(sys, "argv", ["bench", *least.split(), *arguments.split()])
    with pytest.raises(SystemExit, match=r"^2$"):
        bench.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m dcgan.bench: error: ")
    assert message in line


def test_options_make_a_config_for_each_precision_width_and_batch_size() -> None:
    options = bench.BenchOptions(precisions=("tf32", "float32"), widths=(8, 16), batches=(50, 100))
    found = [(c.precision, c.generator_width, c.batch_size) for c in options.configs(CPU)]
    assert found == [
        (name, width, batch)
        for name in ("tf32", "float32")
        for width in (8, 16)
        for batch in (50, 100)
    ]
    for config in options.configs(CPU):
        assert config.discriminator_width == config.generator_width
        assert config.dataset == "mnist-mini"


# The loops


@dataclasses.dataclass
class Seen:
    """What passes through the nets and optimizers of a loop."""

    noise: list[Tensor] = dataclasses.field(default_factory=list)
    """What G got."""
    images: list[Tensor] = dataclasses.field(default_factory=list)
    """What D got."""
    steps: list[Optimizer] = dataclasses.field(default_factory=list)
    """Whose updates, in their order."""
    start: dict[Optimizer, list[Tensor]] = dataclasses.field(default_factory=dict)
    """Weights before an optimizer's first update."""


@pytest.fixture
def seen() -> Iterator[Seen]:
    found = Seen()

    def before_forward(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(net, Generator):
            found.noise.append(inputs[0].detach().clone())
        if isinstance(net, Discriminator):
            found.images.append(inputs[0].detach().clone())

    def before_step(optimizer: Optimizer, *_: object) -> None:
        start = [weight.detach().clone() for weight in weights(optimizer)]
        found.start.setdefault(optimizer, start)

    def after_step(optimizer: Optimizer, *_: object) -> None:
        found.steps.append(optimizer)

    handles = (
        register_module_forward_pre_hook(before_forward),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    )
    yield found
    for handle in handles:
        handle.remove()
    gc.collect()  # ends the workers of a loop that a test has left


@pytest.fixture(autouse=True)
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """A few images in place of the training split."""
    images, labels = load_split(Source("mnist-mini"), "train")
    few = Split(images[:FEW], labels[:FEW])
    monkeypatch.setattr("dcgan.bench.load_split", lambda source, split: few)
    monkeypatch.setattr("dcgan.plain.load_split", lambda source, split: few)
    return few


def weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def movement(after: Any, before: Any) -> Tensor:
    """How far weights have moved, as one vector."""
    moved = [(a - b).detach().flatten() for a, b in zip(after, before, strict=True)]
    return torch.cat(moved)


def as_pixels(images: Tensor) -> Tensor:
    """Images (N, C, S, S) in [-1, 1] as the uint8 they were made of."""
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(to_unit_range(pixels), images, rtol=0, atol=1e-6)
    return pixels


@forks
def test_the_plain_loop_makes_the_updates_that_ours_does(seen: Seen) -> None:
    """The same nets on the same batches move to the same weights."""
    config = dataclasses.replace(TINY, generator_lr=5e-4, discriminator_lr=3e-4)
    k = PER_EPOCH + 2
    loop = plain(config, None, CPU)
    bench.seconds([loop], k - 1, CPU)
    assert len(seen.steps) == 2 * (k - 1)
    bench.seconds([loop], 1, CPU)  # goes on
    D, G = seen.steps[:2]
    assert seen.steps == [D, G] * k
    assert (len(seen.noise), len(seen.images)) == (k, 3 * k)  # D gets real, fake, and fake again

    (state,) = new_states([config], CPU)
    images = as_pixels(torch.cat(seen.images[::3]))
    for i, noise in enumerate(list(seen.noise)):
        index = torch.arange(config.batch_size)[:, None] + i * config.batch_size
        update_both(state, images, index, noise)
    assert state.updates == k
    nets = (state.generator, state.discriminator)
    for theirs, net, start in zip((G, D), nets, build([config]), strict=True):
        for at_first, weight in zip(seen.start[theirs], start.parameters(), strict=True):
            assert torch.equal(at_first, weight)
        ours = movement(net.parameters(), start.parameters())
        others = movement(weights(theirs), start.parameters())
        assert ours.norm() > 1e-3
        assert torch.cosine_similarity(ours, others, dim=0) > 0.999
        assert ours.norm().item() == pytest.approx(others.norm().item(), rel=1e-3)


@forks
def test_the_plain_loop_sees_every_image_once_an_epoch_in_random_order(
    seen: Seen, split: Split
) -> None:
    bench.seconds([plain(TINY, None, CPU)], 2 * PER_EPOCH, CPU)
    known = {image.numpy().tobytes(): i for i, image in enumerate(split.images)}
    real = seen.images[::3]
    assert {batch.shape for batch in real} == {(TINY.batch_size, 1, 28, 28)}
    order = [known[image.numpy().tobytes()] for batch in real for image in as_pixels(batch)]
    first, second = order[: len(known)], order[len(known) :]
    assert sorted(first) == sorted(second) == list(range(len(known)))
    assert first != second
    assert first != sorted(first)
    assert {noise.shape for noise in seen.noise} == {(TINY.batch_size, TINY.latent_size)}
    assert len({noise.numpy().tobytes() for noise in seen.noise}) == 2 * PER_EPOCH
    assert torch.cat(seen.noise).std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_one_by_one_as_torchvision_gives_them(channels: int) -> None:
    split = load_split(Source("mnist-mini", channels=channels), "train")
    images = Images(*split)
    assert len(images) == 8000
    for i in (0, 1, 7999):
        image, label = images[i]
        assert (image.shape, image.dtype) == ((channels, 28, 28), torch.float32)
        assert (image.min().item(), image.max().item()) == (-1, 1)
        torch.testing.assert_close(image, to_unit_range(split.images[i]), rtol=0, atol=1e-6)
        assert label == split.labels[i]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The states that the benchmark makes."""
    found: list[State] = []

    def make(*arguments: Any) -> list[State]:
        states = new_states(*arguments)
        found.extend(states)
        return states

    monkeypatch.setattr(bench, "new_states", make)
    return found


@pytest.mark.parametrize(("batch_size", "per_epoch"), [(200, 4), (300, 2), (800, 1)])
def test_our_loop_makes_just_as_many_updates_as_asked(
    batch_size: int, per_epoch: int, seen: Seen, made: list[State]
) -> None:
    """Also where they are fewer or more than an epoch, or two thirds of the images make its last
    batch."""
    config = dataclasses.replace(TINY, batch_size=batch_size)
    groups = bench.ours([config], None, CPU)
    (state,) = made
    D, G = (
        own.optimizers[0] for own in (state.discriminator_optimizers, state.generator_optimizers)
    )
    total = 0
    for batches in (1, per_epoch, per_epoch + 1, 3 * per_epoch - 1, 0, 1):
        bench.seconds(groups, batches, CPU)
        total += batches
        assert state.updates == total
        assert seen.steps == [D, G] * total


def test_our_loop_sees_every_image_once_an_epoch(seen: Seen, split: Split) -> None:
    bench.seconds(bench.ours([TINY], None, CPU), PER_EPOCH, CPU)
    known = {image.numpy().tobytes(): i for i, image in enumerate(split.images)}
    order = [
        known[image.numpy().tobytes()]
        for batch in seen.images[::3]
        for image in as_pixels(batch.contiguous())
    ]
    assert sorted(order) == list(range(len(known)))
    assert order != sorted(order)


@pytest.mark.parametrize(("width", "groups"), [(2, [3]), (16, [2, 1])])
def test_our_loop_trains_all_lanes(width: int, groups: list[int], made: list[State]) -> None:
    """Those that a CPU trains as one network, and those that it trains one after another."""
    config = dataclasses.replace(TINY, generator_width=width, discriminator_width=2)
    loops = bench.ours(replicate(config, 3), None, CPU)
    assert [len(state.lanes) for state in made] == groups
    before = [[w.detach().clone() for w in state.generator.parameters()] for state in made]
    bench.seconds(loops, 2, CPU)
    for state, start in zip(made, before, strict=True):
        lanes = len(state.lanes)
        assert state.updates == 2
        for weight, then in zip(state.generator.parameters(), start, strict=True):
            for own, at_first in zip(weight.chunk(lanes), then.chunk(lanes), strict=True):
                assert not torch.equal(own, at_first)


def test_our_loop_begins_with_the_nets_of_the_plain_one(seen: Seen) -> None:
    bench.seconds(bench.ours([TINY], None, CPU), 1, CPU)
    for optimizer, net in zip(seen.steps, reversed(build([TINY])), strict=True):
        for weight, expected in zip(seen.start[optimizer], net.parameters(), strict=True):
            assert torch.equal(weight, expected)


# The timer


def test_a_loop_is_warmed_up_and_a_chunk_of_it_is_about_as_long_as_wanted(
    made: list[State],
) -> None:
    lanes = replicate(dataclasses.replace(TINY, batch_size=64), 2)
    groups = bench.ours(lanes, None, CPU)
    assert bench.chunk_length(groups, 2.0, CPU) > 1
    (state,) = made
    assert state.updates == 2 * bench.WARM_UP  # once to warm up, once to see how long they take
    assert bench.chunk_length(groups, 1e-9, CPU) == 1


def test_speed_is_images_of_all_lanes_over_time(
    monkeypatch: pytest.MonkeyPatch, made: list[State]
) -> None:
    calls: list[int] = []

    def seconds(groups: Any, batches: int, device: torch.device) -> float:
        calls.append(batches)
        for updates in groups:
            for _ in range(batches):
                next(updates)
        return 0.5

    monkeypatch.setattr(bench, "seconds", seconds)
    lanes = replicate(dataclasses.replace(TINY, batch_size=100), 3)
    assert bench.speed(lanes, None, CPU) == 3 * 100 * calls[1] / 0.5
    assert calls == [1, 2]
    assert [int(state.updates) for state in made] == [3]


def test_a_wider_net_is_slower() -> None:
    narrow, wide = (
        TrainConfig(dataset="mnist-mini", generator_width=width, discriminator_width=width)
        for width in (2, 64)
    )
    assert bench.speed([narrow], None, CPU) > 2 * bench.speed([wide], None, CPU) > 0


# Operations, against a count by hand from the layers' shapes


CONFIGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "one stage": {"generator_depth": 1, "discriminator_depth": 1},
    "three stages": {
        "generator_depth": 3,
        "discriminator_depth": 3,
        "generator_width": 16,
        "discriminator_width": 8,
    },
    "unequal nets": {
        "generator_depth": 3,
        "discriminator_depth": 1,
        "generator_width": 8,
        "discriminator_width": 24,
    },
    "extra convs": {"extra_convs": 2, "generator_width": 32, "discriminator_width": 16},
    "large batch": {"batch_size": 300, "generator_width": 8, "discriminator_width": 8},
    "rmsprop in colour": {
        "optimizer": "rmsprop",
        "channels": 3,
        "image_size": 32,
        "latent_size": 7,
        "batch_size": 10,
    },
    "averaged": {"ema_decay": 0.9, "generator_width": 16, "discriminator_width": 16},
}


def generator_operations(config: TrainConfig) -> list[int]:
    """Operations of each of G's layers in a forward pass of one image, from its description alone;
    the gradient of its weights, and that of its input, takes as many."""
    depth, size, width = config.generator_depth, config.image_size, config.generator_width
    side = size >> depth
    channels = width * 2 ** (depth - 1)
    layers = [2 * config.latent_size * channels * side**2]
    for stage in range(depth - 1, 0, -1):
        layers.append(2 * channels * (channels // 2) * 16 * side**2)
        side, channels = size >> stage, channels // 2
    layers += [2 * channels * channels * 9 * side**2] * config.extra_convs
    return [*layers, 2 * channels * config.channels * 16 * side**2]


def discriminator_operations(config: TrainConfig) -> list[int]:
    """Those of D's layers."""
    size, channels = config.image_size, config.discriminator_width
    side = size >> 1
    layers = [2 * config.channels * channels * 16 * side**2]
    for stage in range(2, config.discriminator_depth + 1):
        side = size >> stage
        layers.append(2 * channels * 2 * channels * 16 * side**2)
        channels *= 2
    return [*layers, 2 * channels * side**2]


def operations(config: TrainConfig) -> int:
    """Of one update of D and one of G, for one lane."""
    g, d = generator_operations(config), discriminator_operations(config)
    forward = sum(g) + 3 * sum(d)  # D sees real, fake, and fake again after its own update
    of_weights = sum(g) + 2 * sum(d)  # the second look at fake needs none of D's
    # none for the noise or for D's update; all the way through D for G
    of_inputs = sum(g[1:]) + 2 * sum(d[1:]) + sum(d)
    return config.batch_size * (forward + of_weights + of_inputs)


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_counted_by_hand(name: str) -> None:
    config = TrainConfig(**CONFIGS[name])
    assert bench.count_operations(config) == operations(config)


def test_operations_of_the_baseline_are_known() -> None:
    assert bench.count_operations(TrainConfig()) == 64 * 147_517_440 == 9_441_116_160


def test_precision_does_not_change_the_count() -> None:
    """It is that of float32, which other precisions are compared with."""
    config = TrainConfig(generator_width=16, discriminator_width=16)
    for name in ("tf32", "bfloat16", "float16"):
        other = dataclasses.replace(config, precision=name)
        assert bench.count_operations(other) == bench.count_operations(config)


def test_operations_are_linear_in_the_batch() -> None:
    small, large = (
        bench.count_operations(
            TrainConfig(batch_size=size, generator_width=8, discriminator_width=8)
        )
        for size in (50, 150)
    )
    assert large == 3 * small


def test_the_rate_of_a_matrix_product_is_of_its_kind() -> None:
    found = bench.matmul_rate("float32", CPU)
    assert math.isfinite(found)
    assert 1e8 < found < 1e15


def test_the_rate_in_a_precision_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^precision float16 needs a CUDA GPU"):
        bench.matmul_rate("float16", CPU)


def test_numbers_are_medians_with_least_and_most() -> None:
    row = bench.numbers([TINY], "grouped", [30.0, 10.0, 20.0], [10.0, 10.0, 5.0], 40.0)
    assert row["images_per_second"] == 20
    assert row["spread"] == [10, 30]
    assert row["plain_images_per_second"] == 10
    assert row["plain_spread"] == [5, 10]
    assert row["ratio"] == 3
    assert row["ratio_spread"] == [1, 4]
    assert row["of_floor"] == 0.5
