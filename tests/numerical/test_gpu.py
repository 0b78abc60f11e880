"""What only a CUDA GPU can show. Run `pytest -m gpu` on a machine that has PyTorch and nothing else
of the project's."""

import contextlib
import dataclasses
import gc
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dcgan import checkpoint, precision
from dcgan.config import PRECISIONS, TrainConfig, replicate
from dcgan.data import Source, load_split
from dcgan.evaluate import evaluate, load_reference, score
from dcgan.graph import WARM_UP, Graphed
from dcgan.lanes import split_lane
from dcgan.loop import grouped, make_update, train, train_epoch
from dcgan.models import Generator, build
from dcgan.schema import Row
from dcgan.state import State, new_state, new_states, regroup, weights_to_evaluate
from dcgan.ways import WAYS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[2]
SMALL = TrainConfig(
    dataset="mnist-mini", generator_width=16, discriminator_width=16, epochs=3, seed=1
)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam with EMA": {"ema_decay": 0.9},
    "adam with averages of powers": {"snapshots_every": 1},
    "rmsprop": {"optimizer": "rmsprop"},
}


@pytest.fixture(autouse=True)
def full_float32() -> None:
    """Whatever the test before has chosen."""
    precision.set_up("float32", CUDA)


@pytest.fixture
def same_algorithms() -> Iterator[None]:
    """Two runs of the same work get the same of cuDNN's algorithms, and ones that repeat."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def skip_without(name: str) -> None:
    """Skips where the GPU is too old for a precision."""
    if reason := precision.unsupported(name, CUDA):
        pytest.skip(reason)


def training_images(device: torch.device = CUDA) -> Tensor:
    return load_split(Source("mnist-mini", device=device), "train").images


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in weights.items()}


def assert_moved_alike(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> None:
    """All weights moved the same way and as far, as one vector; and the statistics agree.

    Both optimizers divide by the gradient's size, so that rounding in a tiny gradient moves a
    weight a whole step either way: the movement is compared as a whole, not weight by weight.
    """
    one, other, first = on_cpu(ours), on_cpu(theirs), on_cpu(start)
    names = [name for name in first if "running" not in name and "tracked" not in name]
    a, b = (
        torch.cat([(net[name] - first[name]).flatten() for name in names]) for net in (one, other)
    )
    assert b.norm() > 1e-3
    assert torch.cosine_similarity(a, b, dim=0) > 0.99
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.02)
    for name in first.keys() - names:
        torch.testing.assert_close(one[name], other[name], rtol=0.05, atol=5e-3)


# Training


@pytest.mark.parametrize("name", PRECISIONS)
def test_each_precision_trains_to_digits(name: str, tmp_path: Path) -> None:
    skip_without(name)
    config = dataclasses.replace(SMALL, precision=name, generator_lr=1e-3, discriminator_lr=1e-3)
    rows = train([config], report=lambda row: None, checkpoint_dir=tmp_path)
    assert float(rows[-1]["fid"]) < 60  # noise is above 150
    assert 0 < rows[-1]["peak_memory_bytes"] < 2e9
    assert rows[-1]["device"] == torch.cuda.get_device_name()


def test_float32_agrees_with_the_cpu() -> None:
    """The same initial weights; other noise, since each device has its own random stream: means
    over an epoch agree."""
    means = []
    for device in (CPU, CUDA):
        images, state = training_images(device), new_state([SMALL], device)
        means += train_epoch([state], images, make_update([state], images))[0]
    assert means[0] == pytest.approx(means[1], rel=0.1)


# CUDA graphs


@pytest.mark.parametrize("name", PRECISIONS)
def test_updates_are_graphs_but_in_float16(name: str) -> None:
    skip_without(name)
    images, state = training_images(), new_state([dataclasses.replace(SMALL, precision=name)], CUDA)
    assert isinstance(make_update([state], images), Graphed)  # of Adam, float16 too
    assert not isinstance(make_update([state], images, graphed=False), Graphed)


@pytest.mark.usefixtures("same_algorithms")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "tolerance"), [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_a_replayed_graph_trains_as_the_code_does(
    name: str, tolerance: float, optimizer: str
) -> None:
    """Twelve updates on the same random numbers: three as written, one captured, and replays,
    against all as written."""
    skip_without(name)
    config = dataclasses.replace(SMALL, precision=name, batch_size=2000, **OPTIMIZERS[optimizer])
    lanes = [config, dataclasses.replace(config, seed=2, generator_lr=4e-4)]
    precision.set_up(name, CUDA)
    images = training_images()
    trained: list[tuple[State, list[Row]]] = []
    for graphed in (True, False):
        state = new_state(lanes, CUDA)
        update = make_update([state], images, graphed=graphed)
        trained.append(
            (state, [row for _ in range(3) for row in train_epoch([state], images, update)[0]])
        )
        if isinstance(update, Graphed):
            assert update.graph is not None
            assert update.calls == 12
    (replayed, means), (written, expected) = trained
    assert int(replayed.updates) == int(written.updates) == 12
    for ours, theirs in zip(means, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    for rng, other in zip(replayed.rngs, written.rngs, strict=True):
        assert torch.equal(rng.get_state(), other.get_state())
    for net, start in zip(("generator", "discriminator"), build(lanes), strict=True):
        assert_moved_alike(
            getattr(replayed, net).state_dict(),
            getattr(written, net).state_dict(),
            start.state_dict(),
        )
    if replayed.average is not None and written.average is not None:
        assert_moved_alike(
            replayed.average.state_dict(),
            written.average.state_dict(),
            build(lanes)[0].state_dict(),
        )
    assert (replayed.average is None) == (config.ema_decay == 0)
    if replayed.power_averages is not None and written.power_averages is not None:
        for name, average in replayed.power_averages.items():
            assert_moved_alike(
                average.state_dict(),
                written.power_averages[name].state_dict(),
                build(lanes)[0].state_dict(),
            )
    assert (replayed.power_averages is None) == (config.snapshots_every == 0)


@pytest.mark.usefixtures("same_algorithms")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_lane_is_its_single_run(optimizer: str, way: str) -> None:
    """After eight updates, the last five of them replayed: other seeds, other rates and betas."""
    config = dataclasses.replace(SMALL, batch_size=1000, **OPTIMIZERS[optimizer])
    other = dataclasses.replace(config, seed=5, generator_lr=1e-4, discriminator_lr=3e-4, beta1=0.3)
    lanes = [config, dataclasses.replace(config, seed=2), other]
    images = training_images()
    (group,) = grouped(new_states(lanes, CUDA, way))
    by_state = train_epoch(group, images, make_update(group, images))
    means = [own for of_state in by_state for own in of_state]
    assert {int(state.updates) for state in group} == {8}
    places = [(state, lane) for state in group for lane in range(len(state.lanes))]
    for number, single in enumerate(lanes):
        state, lane = places[number]
        alone = new_state([single], CUDA)
        ((own,),) = train_epoch([alone], images, make_update([alone], images))
        assert means[number] == pytest.approx(own, rel=0.01)
        assert torch.equal(state.rngs[lane].get_state(), alone.rngs[0].get_state())
        start_g, start_d = (net.state_dict() for net in build([single]))
        for net, start in (("generator", start_g), ("discriminator", start_d)):
            ours = split_lane(getattr(state, net).state_dict(), lane, len(state.lanes))
            assert_moved_alike(ours, getattr(alone, net).state_dict(), start)
        ours = weights_to_evaluate(state, lane)
        assert_moved_alike(ours, weights_to_evaluate(alone, 0), start_g)


def test_float16_scales_each_lane_by_itself() -> None:
    """One whose gradients overflow skips its update; its neighbour does not."""
    skip_without("float16")
    images = training_images()
    whole = new_state(replicate(dataclasses.replace(SMALL, precision="float16"), 2), CUDA)
    before = [weight.detach().clone() for weight in whole.generator.parameters()]
    with torch.no_grad():
        for parameter in whole.discriminator.parameters():
            parameter[: len(parameter) // 2] *= 1e4
    train_epoch([whole], images[: 3 * SMALL.batch_size], make_update([whole], images))
    scales = [scaler.get_scale() for scaler in whole.generator_optimizers.scalers]
    assert scales[0] < scales[1]
    moved = [
        (now - was)[len(was) // 2 :].abs().max()
        for now, was in zip(whole.generator.parameters(), before, strict=True)
    ]
    assert max(moved) > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("name", PRECISIONS)
def test_an_update_never_waits_for_the_device(name: str) -> None:
    """As written and, where it can be, as a replayed graph."""
    skip_without(name)
    precision.set_up(name, CUDA)
    config = dataclasses.replace(SMALL, precision=name, ema_decay=0.9)
    lanes = replicate(config, 2)
    images = training_images()
    index = torch.randint(len(images), (config.batch_size, len(lanes)), device=CUDA)
    noise = torch.randn(config.batch_size, len(lanes) * config.latent_size, device=CUDA)
    kinds = [("grouped", False), ("grouped", True), ("branches", False), ("branches", True)]
    groups = [new_states(lanes, CUDA, way) for way, _ in kinds]
    states = [state for group in groups for state in group]
    updates = [
        make_update(group, images, graphed=graphed)
        for group, (_, graphed) in zip(groups, kinds, strict=True)
    ]
    for _ in range(WARM_UP + 2):
        for update in updates:
            update(index, noise)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in updates:
            update(index, noise)
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            states[0].updates.item()  # the mode is on
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert [int(state.updates) for state in states] == [WARM_UP + 3] * len(states)
    assert all(math.isfinite(value) for state in states for value in state.sums.flatten().tolist())


# Evaluation


def test_metrics_agree_with_the_cpu() -> None:
    images = load_split(Source("mnist-mini"), "test").images
    ours, theirs = (
        score(images.to(device), load_reference(Source("mnist-mini", device=device), "validation"))
        for device in (CPU, CUDA)
    )
    assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_each_of_two_lanes_is_evaluated_as_the_cpu_does(name: str, tmp_path: Path) -> None:
    skip_without(name)
    lanes = replicate(dataclasses.replace(SMALL, precision=name, ema_decay=0.9, epochs=1), 2)
    rows = train(lanes, report=lambda row: None, checkpoint_dir=tmp_path, device=CUDA)
    (saved,) = regroup(checkpoint.load(tmp_path)["states"], [2])
    reference = load_reference(Source("mnist-mini"), "validation")
    for lane, row in enumerate(rows):
        generator = Generator(lanes[lane])
        generator.load_state_dict(split_lane(saved["average"], lane, 2))
        expected = evaluate(generator, lanes[lane], reference)
        for metric in ("fid", "kid"):
            assert row[metric] == pytest.approx(expected[metric], rel=0.01, abs=1e-3)
    assert rows[0]["fid"] != rows[1]["fid"]


# Checkpoints


@pytest.mark.usefixtures("same_algorithms")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("float32", "adam"), ("float32", "rmsprop"), ("bfloat16", "adam"), ("float16", "adam")],
)
def test_resumed_goes_on_where_it_stopped(name: str, optimizer: str, tmp_path: Path) -> None:
    """State is restored exactly; what follows may be summed in another order, so runs agree within
    rounding."""
    skip_without(name)
    config = dataclasses.replace(
        SMALL, precision=name, optimizer=optimizer, ema_decay=0.9, batch_size=1000
    )
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    train(
        [dataclasses.replace(config, epochs=2)],
        report=lambda row: None,
        checkpoint_dir=stopped,
        device=CUDA,
    )
    (before,) = checkpoint.load(stopped)["states"]
    state = new_state([config], CUDA)
    state.rngs[0].set_state(before["rngs"][0])
    assert torch.equal(state.rngs[0].get_state(), before["rngs"][0])

    rows: list[Row] = []
    train([config], report=rows.append, checkpoint_dir=stopped, resume_from=stopped, device=CUDA)
    whole = train([config], report=lambda row: None, checkpoint_dir=undisturbed, device=CUDA)
    assert [row["epoch"] for row in rows] == [3]
    for loss in ("generator_loss", "discriminator_loss"):
        assert rows[0][loss] == pytest.approx(whole[-1][loss], rel=0.02)
    (ours,), (theirs,) = (checkpoint.load(folder)["states"] for folder in (stopped, undisturbed))
    assert ours["updates"] == theirs["updates"] == 24
    assert torch.equal(ours["rngs"][0], theirs["rngs"][0])
    for net in ("generator", "discriminator", "average"):
        assert_moved_alike(ours[net], theirs[net], before[net])


def test_a_run_of_the_cpu_does_not_go_on_on_a_gpu(tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL, generator_width=2, discriminator_width=2, batch_size=1000, epochs=2
    )
    train(
        [dataclasses.replace(config, epochs=1)],
        report=lambda row: None,
        checkpoint_dir=tmp_path,
        device=CPU,
    )
    with pytest.raises(
        ValueError,
        match=r"was trained on cpu, and its random streams cannot go on on cuda; train anew$",
    ):
        train([config], report=lambda row: None, resume_from=tmp_path, device=CUDA)


# Memory


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """This process gets no more than so many bytes of the GPU's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()


def test_a_lack_of_memory_is_an_error_that_the_process_survives() -> None:
    large = dataclasses.replace(
        SMALL, generator_width=512, batch_size=8000
    )  # G's first map takes 1.6 GB
    load_reference(large.source(None, CUDA), "validation")  # is no part of it
    gpu = re.escape(torch.cuda.get_device_name())
    message = rf"^out of memory on {gpu} with batch_size 8000, generator_width 512"
    with memory_limit(2**30), pytest.raises(MemoryError, match=message):
        train([large], report=lambda row: pytest.fail("an epoch was reported"), device=CUDA)
    (row,) = train([dataclasses.replace(SMALL, epochs=1)], report=lambda row: None, device=CUDA)
    assert math.isfinite(row["fid"])


# The benchmark


def test_benchmark_runs_in_each_kind_of_precision(tmp_path: Path) -> None:
    """Graphs in float32 and bfloat16, a gradient scaler in float16."""
    names = [
        name for name in ("float32", "bfloat16", "float16") if not precision.unsupported(name, CUDA)
    ]
    file = tmp_path / "numbers.json"
    settings = [
        "--widths",
        "16",
        "--batches",
        "64",
        "--replicas",
        "1",
        "4",
        "--repeats",
        "2",
        "--seconds",
        "0.2",
    ]
    command = [
        sys.executable,
        "-m",
        "dcgan.bench",
        *settings,
        "--precisions",
        *names,
        "--json",
        str(file),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(file.read_text())
    assert numbers["device"] == torch.cuda.get_device_name()
    assert [(row["precision"], row["replicas"]) for row in numbers["rows"]] == [
        (name, r) for name in names for r in (1, 4)
    ]
    for row in numbers["rows"]:
        assert 0 < row["of_floor"] < 1
        assert row["spread"][0] <= row["images_per_second"] <= row["spread"][1]
