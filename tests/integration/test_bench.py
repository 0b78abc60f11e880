"""`python -m dcgan.bench`: what it prints and writes, and that its two loops train the same thing."""

import dataclasses
import gc
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dcgan import bench
from dcgan.config import TrainConfig
from dcgan.data import Source, load_split, to_unit_range
from dcgan.loop import State, new_state, update_both
from dcgan.models import Discriminator, Generator, build

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TINY = TrainConfig(dataset="mnist-mini", generator_width=2, discriminator_width=2, batch_size=2000, seed=3)
PER_EPOCH = 4  # its batches
ROW = {
    "precision", "width", "batch", "replicas", "images_per_second", "spread", "plain_images_per_second", "plain_spread",
    "ratio", "ratio_spread", "of_floor", "peak_memory_bytes", "plain_peak_memory_bytes",
}  # fmt: skip
CONDITIONS = {"device", "threads", "cpus", "platform", "versions", "dataset", "repeats", "date"}
# a worker process of a DataLoader is forked, and Python 3.12 warns of that where there are threads
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def run(*arguments: object, limit: float = 200) -> subprocess.CompletedProcess[str]:
    """The command in a process group of its own, all of which ends with it."""
    command = [sys.executable, "-m", "dcgan.bench", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# The command


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a small benchmark prints and writes: two repeats, so that each median is the mean of least and most."""
    file = tmp_path_factory.mktemp("bench") / "numbers.json"
    settings = ["--widths", 4, "--batches", 64, "--replicas", 1, 2, "--repeats", 2, "--seconds", 0.1, "--threads", 1]
    done = run(*settings, "--precisions", "float32", "--json", file)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(file.read_text())


def test_the_conditions_are_printed_and_written(measured: tuple[str, dict[str, Any]]) -> None:
    printed, numbers = measured
    assert numbers.keys() == CONDITIONS | {"rows"}
    assert (numbers["threads"], numbers["dataset"], numbers["repeats"]) == (1, "mnist-mini", 2)
    assert numbers["cpus"] == os.cpu_count()
    assert numbers["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", numbers["date"])
    head = printed.partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1)[0] for line in head] == [name for name in numbers if name != "rows"]
    for line in head:
        name, value = line.split(maxsplit=1)
        assert value.rstrip() == str(numbers[name]).rstrip()


def test_each_row_holds_every_number(measured: tuple[str, dict[str, Any]]) -> None:
    _, numbers = measured
    assert [row["replicas"] for row in numbers["rows"]] == [1, 2]
    for row in numbers["rows"]:
        assert row.keys() == ROW
        assert (row["precision"], row["width"], row["batch"]) == ("float32", 4, 64)
        assert 0 < row["of_floor"] < 1
        assert 0 < row["peak_memory_bytes"] < 2e9
        assert 0 < row["plain_peak_memory_bytes"] < 2e9


def test_speeds_lie_within_their_spread(measured: tuple[str, dict[str, Any]]) -> None:
    _, numbers = measured
    for row in numbers["rows"]:
        for name, spread in (
            ("images_per_second", "spread"),
            ("plain_images_per_second", "plain_spread"),
            ("ratio", "ratio_spread"),
        ):
            low, high = row[spread]
            assert 0 < low <= high
            assert row[name] == pytest.approx((low + high) / 2)


def test_a_ratio_is_that_of_two_neighbouring_chunks(measured: tuple[str, dict[str, Any]]) -> None:
    """Of two chunks each, least and most may have come in the same order or in opposite ones."""
    _, numbers = measured
    for row in numbers["rows"]:
        (low, high), (plain_low, plain_high) = row["spread"], row["plain_spread"]
        same = sorted([low / plain_low, high / plain_high])
        opposite = sorted([low / plain_high, high / plain_low])
        assert row["ratio_spread"] in (pytest.approx(same), pytest.approx(opposite))


def test_rows_of_one_network_share_the_plain_loop_and_the_floor(measured: tuple[str, dict[str, Any]]) -> None:
    _, numbers = measured
    one, two = numbers["rows"]
    assert all(one[name] == two[name] for name in ROW if name.startswith("plain"))
    assert one["of_floor"] / one["images_per_second"] == pytest.approx(two["of_floor"] / two["images_per_second"])


def test_the_table_shows_what_the_file_holds(measured: tuple[str, dict[str, Any]]) -> None:
    printed, numbers = measured
    head, *lines = printed.rstrip("\n").rpartition("\n\n")[2].splitlines()
    assert head.split() == [
        "precision",
        "width",
        "batch",
        "R",
        "images/s,",
        "ours",
        "plain",
        "ratio",
        "floor",
        "MB",
        "plain",
        "MB",
    ]
    assert len(lines) == 2
    for line, row in zip(lines, numbers["rows"], strict=True):
        low, high = row["spread"]
        least, most = row["ratio_spread"]
        assert line.split() == [
            "float32", "4", "64", str(row["replicas"]), f"{row['images_per_second']:,.0f}", f"[{low:,.0f},", f"{high:,.0f}]",
            f"{row['plain_images_per_second']:,.0f}", f"{row['ratio']:.2f}", f"[{least:.2f},", f"{most:.2f}]",
            f"{row['of_floor']:.0%}", f"{row['peak_memory_bytes'] / 1e6:,.0f}", f"{row['plain_peak_memory_bytes'] / 1e6:,.0f}",
        ]  # fmt: skip


@pytest.mark.parametrize("speed", [12.3, 9_999.4, 99_999.4, 2_000_000.0])
def test_rows_of_slow_and_fast_devices_stand_under_their_headings(speed: float) -> None:
    row = {
        "precision": "bfloat16", "width": 1024, "batch": 1024, "replicas": 64, "images_per_second": speed,
        "spread": [speed, speed], "plain_images_per_second": speed, "plain_spread": [speed, speed], "ratio": 123.4,
        "ratio_spread": [123.4, 123.4], "of_floor": 0.5, "peak_memory_bytes": 99e9, "plain_peak_memory_bytes": 99e9,
    }  # fmt: skip
    line = bench.line(row)
    assert len(line) == len(bench.in_columns(*bench.COLUMNS))
    assert len(line.split()) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precisions", "float16"], "precision float16 needs a CUDA GPU, and this run is on the cpu; use float32"),
        (["--precisions", "float8"], "argument --precisions: invalid choice: 'float8'"),
        (["--widths", "0"], "generator_width is 0; allowed is 1 to 1024"),
        (["--widths", "wide"], "argument --widths: invalid int value: 'wide'"),
        (["--batches", "1"], "batch_size is 1; batch norm needs at least 2 images a batch"),
        (["--replicas", "0"], "replicas is 0; allowed is 1 to 64"),
        (["--repeats", "0"], "--repeats is 0; allowed is at least 1"),
        (["--threads", "0"], "--threads is 0; allowed is at least 1"),
        (["--seconds", "-1"], "--seconds is -1.0; allowed is"),
        (["--seconds", "inf"], "--seconds is inf; allowed is"),
        (["--json", "/proc/nowhere/numbers.json"], "/proc/nowhere"),
        (["--speed", "4"], "unrecognized arguments: --speed 4"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    least = ["--precisions", "float32", "--widths", "2", "--batches", "64", "--replicas", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *least, "--seconds", "0.01", "--threads", "1", *arguments])
    with pytest.raises(SystemExit, match=r"^2$"):
        bench.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m dcgan.bench: error: ")
    assert message in line


def test_a_batch_larger_than_the_data_is_refused() -> None:
    done = run("--precisions", "float32", "--widths", 2, "--batches", 8001, "--replicas", 1, limit=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "batch_size is 8001; the training split of mnist-mini holds 8000" in line


# The loops


@dataclasses.dataclass
class Seen:
    """What passes through the nets and optimizers of a loop."""

    noise: list[Tensor] = dataclasses.field(default_factory=list)
    """What G got."""
    judged: list[Tensor] = dataclasses.field(default_factory=list)
    """What D got."""
    steps: list[Optimizer] = dataclasses.field(default_factory=list)
    """Whose updates, in their order."""
    start: dict[Optimizer, list[Tensor]] = dataclasses.field(default_factory=dict)
    """Weights before an optimizer's first update."""


@pytest.fixture
def seen() -> Iterator[Seen]:
    found = Seen()

    def before_forward(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(net, Generator | Discriminator):
            (found.noise if isinstance(net, Generator) else found.judged).append(inputs[0].detach().clone())

    def before_step(optimizer: Optimizer, *_: object) -> None:
        found.start.setdefault(optimizer, [weight.detach().clone() for weight in weights(optimizer)])

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


def weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


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
    train = bench.plain(config, None, CPU)
    train(k - 1)
    assert len(seen.steps) == 2 * (k - 1)
    train(1)  # goes on
    D, G = seen.steps[:2]
    assert seen.steps == [D, G] * k
    assert (len(seen.noise), len(seen.judged)) == (k, 3 * k)  # D judges real, fake, and fake again

    state = new_state(config, CPU)
    images = as_pixels(torch.cat(seen.judged[::3]))
    for i, noise in enumerate(list(seen.noise)):
        index = torch.arange(config.batch_size)[:, None] + i * config.batch_size
        update_both(state, images, index, noise)
    assert state.updates == k
    for theirs, net, start in zip((G, D), (state.generator, state.discriminator), build(config), strict=True):
        for at_first, weight in zip(seen.start[theirs], start.parameters(), strict=True):
            assert torch.equal(at_first, weight)
        ours, plain = (
            torch.cat([(now - then).detach().flatten() for now, then in zip(moved, start.parameters(), strict=True)])
            for moved in (net.parameters(), weights(theirs))
        )
        assert ours.norm() > 1e-3
        assert torch.cosine_similarity(ours, plain, dim=0) > 0.999
        assert ours.norm().item() == pytest.approx(plain.norm().item(), rel=1e-3)


@forks
def test_the_plain_loop_sees_every_image_once_an_epoch_in_random_order(seen: Seen) -> None:
    bench.plain(TINY, None, CPU)(2 * PER_EPOCH)
    split = load_split(Source("mnist-mini"), "train")
    known = {image.numpy().tobytes(): i for i, image in enumerate(split.images)}
    real = seen.judged[::3]
    assert {batch.shape for batch in real} == {(TINY.batch_size, 1, 28, 28)}
    order = [known[image.numpy().tobytes()] for batch in real for image in as_pixels(batch)]
    first, second = order[: len(known)], order[len(known) :]
    assert sorted(first) == sorted(second) == list(range(len(known)))
    assert first != second
    assert first != sorted(first)
    assert {noise.shape for noise in seen.noise} == {(TINY.batch_size, TINY.latent_size)}
    assert len({noise.numpy().tobytes() for noise in seen.noise}) == 2 * PER_EPOCH
    assert torch.cat(seen.noise).std().item() == pytest.approx(1, abs=0.01)


def test_digits_come_one_by_one_as_torchvision_gives_them() -> None:
    split = load_split(Source("mnist-mini"), "train")
    digits = bench.Digits(*split)
    assert len(digits) == 8000
    for i in (0, 1, 7999):
        image, label = digits[i]
        assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
        assert (image.min().item(), image.max().item()) == (-1, 1)
        torch.testing.assert_close(image, to_unit_range(split.images[i]), rtol=0, atol=1e-6)
        assert label == split.labels[i]


def states(train: Callable[[int], None]) -> list[State]:
    found: list[State] = inspect.getclosurevars(train).nonlocals["states"]
    return found


@pytest.mark.parametrize(("batch_size", "per_epoch"), [(2000, 4), (3000, 2), (8000, 1)])
def test_our_loop_makes_just_as_many_updates_as_asked(batch_size: int, per_epoch: int, seen: Seen) -> None:
    """Also where they are fewer or more than an epoch, or two thirds of the images make its last batch."""
    train = bench.ours(dataclasses.replace(TINY, image_size=16, batch_size=batch_size), None, CPU)
    (state,) = states(train)
    total = 0
    for batches in (1, per_epoch, per_epoch + 1, 3 * per_epoch - 1, 0, 1):
        train(batches)
        total += batches
        assert state.updates == total
        assert seen.steps == [state.discriminator_optimizer, state.generator_optimizer] * total


def test_our_loop_trains_all_replicas() -> None:
    """Those that a CPU trains as one network, and those that it trains one after another."""
    for width, groups in ((2, [3]), (16, [2, 1])):
        config = dataclasses.replace(TINY, generator_width=width, discriminator_width=2, replicas=3)
        train = bench.ours(config, None, CPU)
        assert [state.config.replicas for state in states(train)] == groups
        before = [[weight.detach().clone() for weight in state.generator.parameters()] for state in states(train)]
        train(2)
        for state, weights_before in zip(states(train), before, strict=True):
            assert state.updates == 2
            for weight, then in zip(state.generator.parameters(), weights_before, strict=True):
                for ours, at_first in zip(*(tensor.chunk(state.config.replicas) for tensor in (weight, then)), strict=True):
                    assert not torch.equal(ours, at_first)


def test_our_loop_begins_with_the_nets_of_the_plain_one(seen: Seen) -> None:
    bench.ours(TINY, None, CPU)(1)
    for optimizer, net in zip(seen.steps, reversed(build(TINY)), strict=True):
        for weight, expected in zip(seen.start[optimizer], net.parameters(), strict=True):
            assert torch.equal(weight, expected)


def test_a_started_loop_knows_its_images_its_memory_and_the_length_of_a_chunk() -> None:
    args = bench.make_parser().parse_args(["--seconds", "2", "--threads", "1"])
    runner = bench.start(bench.ours, dataclasses.replace(TINY, batch_size=64, replicas=2), args, CPU)
    assert runner.images == 128
    assert runner.batches > 1
    assert 0 < runner.peak_bytes < 2e9
    (state,) = states(runner.train)
    assert state.updates == 2 * bench.WARM_UP  # once to warm up, once to see how long they take
