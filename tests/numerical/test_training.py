"""The training loop against an independent one, and against itself interrupted: bit for bit on the
CPU."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dcgan import checkpoint
from dcgan.config import TrainConfig, replicate, write_lanes
from dcgan.data import load_split
from dcgan.evaluate import load_reference
from dcgan.lanes import PatchConv, PatchUpConv, split_lane
from dcgan.loop import make_update, scored, train, train_epoch
from dcgan.losses import LOSSES, Loss
from dcgan.models import build
from dcgan.power import KEPT
from dcgan.precision import autocast
from dcgan.schema import AVERAGES_FOLDER, CHECKPOINT_FILE, COLUMNS, Row
from dcgan.state import (
    LOOP_STREAM,
    State,
    contents,
    new_state,
    new_states,
    regroup,
    restore,
    weights_to_evaluate,
)
from dcgan.ways import WAYS

CPU = torch.device("cpu")
ROOT = str(Path(__file__).parents[2])
TINY = TrainConfig(
    dataset="mnist-mini",
    image_size=16,
    generator_width=2,
    discriminator_width=2,
    batch_size=1000,
    epochs=3,
    seed=5,
)
QUICK = dataclasses.replace(TINY, dataset="few-digits", batch_size=200)
QUICK_EMA = dataclasses.replace(QUICK, ema_decay=0.9)
QUICK_WIDE = dataclasses.replace(QUICK, discriminator_width=16)
VARIANTS = {
    "adam": [QUICK],
    "adam with EMA": [dataclasses.replace(QUICK_EMA, generator_lr=1e-3)],
    "two seeds with EMA": replicate(QUICK_EMA, 2),
    "two seeds with snapshots of averages": replicate(
        dataclasses.replace(QUICK_EMA, snapshots_every=1), 2
    ),
    "rmsprop with EMA": [dataclasses.replace(QUICK_EMA, optimizer="rmsprop", extra_convs=1)],
    "lanes of other rates, in two networks": [
        QUICK_WIDE,
        dataclasses.replace(QUICK_WIDE, generator_lr=1e-3, beta1=0.0),
        dataclasses.replace(QUICK_WIDE, discriminator_lr=1e-4, seed=9),
    ],
}
OTHER_LANES = {
    "seeds": {"seed": 6},
    "rates": {"generator_lr": 1e-3, "discriminator_lr": 5e-5},
    "betas": {"beta1": 0.0, "beta2": 0.9},
    "all": {"seed": 7, "generator_lr": 5e-5, "discriminator_lr": 4e-4, "beta1": 0.9, "beta2": 0.99},
}
RESUME = """
import sys, few_digits, torch
from pathlib import Path
from dcgan.config import read_lanes
from dcgan.loop import train
torch.set_num_threads(1)
for variant in map(Path, sys.argv[1:]):
    lanes = read_lanes(variant)
    for folder in (variant / "after_1", variant / "after_2"):
        report = lambda row: print(row["epoch"])
        train(lanes, report=report, checkpoint_dir=folder, resume_from=folder)
"""
TIMED = (
    "seconds_train",
    "seconds_eval",
    "seconds_checkpoint",
    "images_per_second",
    "peak_memory_bytes",
)


def ignore(row: Row) -> None:
    """Takes a reported row."""


def images_of(config: TrainConfig) -> torch.Tensor:
    return load_split(config.source(None, CPU), "train").images


def one_epoch(state: State) -> list[Row]:
    images = images_of(state.config)
    return train_epoch([state], images, make_update([state], images))[0]


def untimed(rows: list[Row]) -> list[Row]:
    """Rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path within it."""
    return tensors_in(checkpoint.load(folder))


def tensors_in(content: object) -> dict[str, torch.Tensor]:
    """Every tensor of dictionaries and lists, by its path within them."""
    found: dict[str, torch.Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}/{key}", item)

    walk("", content)
    return found


def assert_same_run(a: Path, b: Path) -> None:
    """Both runs' checkpoints and snapshots hold the same bits, and the same rows."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert len(first) > 40
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert untimed(checkpoint.load(a)["rows"]) == untimed(checkpoint.load(b)["rows"])
    snapshots = [
        {file.name: tensors_in(checkpoint.read(file)) for file in run.glob(f"{AVERAGES_FOLDER}/*")}
        for run in (a, b)
    ]
    assert snapshots[0].keys() == snapshots[1].keys()
    for name, ours in snapshots[0].items():
        assert ours.keys() == snapshots[1][name].keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, snapshots[1][name][key]), (name, key)


def textbook_epochs(
    config: TrainConfig, epochs: int
) -> tuple[torch.nn.Module, torch.nn.Module, list[float]]:
    """DCGAN's updates written as a tutorial does: probabilities' cross-entropy, three backward
    passes, plain layout."""
    images = images_of(config)
    G, D = build([config])
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        optimizer_g = torch.optim.Adam(
            G.parameters(), lr=config.generator_lr, betas=betas, foreach=False
        )
        optimizer_d = torch.optim.Adam(
            D.parameters(), lr=config.discriminator_lr, betas=betas, foreach=False
        )
    else:
        optimizer_g = torch.optim.RMSprop(G.parameters(), lr=config.generator_lr, foreach=False)
        optimizer_d = torch.optim.RMSprop(D.parameters(), lr=config.discriminator_lr, foreach=False)
    seed = np.random.SeedSequence([config.seed, LOOP_STREAM]).generate_state(1, np.uint64)[
        0
    ] >> np.uint64(1)
    rng = torch.Generator().manual_seed(int(seed))
    ones, zeros = torch.ones(config.batch_size), torch.zeros(config.batch_size)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        for i in range(len(images) // config.batch_size):
            real = images[order[i * config.batch_size : (i + 1) * config.batch_size]] / 127.5 - 1
            fake = G(torch.randn(config.batch_size, config.latent_size, generator=rng))
            optimizer_d.zero_grad()
            loss_real = F.binary_cross_entropy(torch.sigmoid(D(real))[:, 0], ones)
            loss_real.backward()
            loss_fake = F.binary_cross_entropy(torch.sigmoid(D(fake.detach()))[:, 0], zeros)
            loss_fake.backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            F.binary_cross_entropy(torch.sigmoid(D(fake))[:, 0], ones).backward()
            optimizer_g.step()
            losses.append((loss_real + loss_fake).item())
    return G, D, losses


def movement(net: torch.nn.Module, start: torch.nn.Module) -> torch.Tensor:
    """How far all weights have moved, as one vector."""
    pairs = zip(net.parameters(), start.parameters(), strict=True)
    return torch.cat([(now - before).detach().flatten() for now, before in pairs])


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_loop_does_what_a_textbook_loop_does(optimizer: str) -> None:
    """Weights move the same way, and losses agree, over an epoch of 8 steps.

    Both optimizers divide by the gradient's size, so that rounding in a tiny gradient moves a
    weight a whole step either
    way: the movement is compared as a whole, not weight by weight.
    """
    config = dataclasses.replace(TINY, optimizer=optimizer, generator_lr=3e-4)
    state = new_state([config], CPU)
    (means,) = one_epoch(state)
    *textbook, losses = textbook_epochs(config, 1)
    for ours, theirs, start in zip(
        (state.generator, state.discriminator), textbook, build([config]), strict=True
    ):
        a, b = movement(ours, start), movement(theirs, start)
        assert torch.cosine_similarity(a, b, dim=0) > 0.999
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
        for (name, x), y in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(
                x, y, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert means["discriminator_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_average_has_a_short_memory_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    decays: list[float] = []
    monkeypatch.setattr(
        "dcgan.loop.update_average", lambda average, live, decay: decays.append(decay.item())
    )
    state = new_state([dataclasses.replace(TINY, ema_decay=0.5)], CPU)
    for _ in range(2):
        one_epoch(state)
    assert decays == pytest.approx([*((1 + n) / (10 + n) for n in range(8)), *[0.5] * 8])


def assert_moved_alike(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> None:
    """All weights moved the same way and as far, as one vector; and the statistics agree."""
    names = [name for name in start if "running" not in name and "tracked" not in name]
    a, b = (
        torch.cat([(net[name] - start[name]).flatten() for name in names]) for net in (ours, theirs)
    )
    assert a.norm() > 1e-3
    assert torch.cosine_similarity(a, b, dim=0) > 0.999
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
    for name in start.keys() - names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("lanes", [1, 2])
def test_moments_of_another_memory_layout_are_restored(lanes: int, tmp_path: Path) -> None:
    """Fused Adam would read them in the order of memory, and in silence train something else."""
    configs = replicate(dataclasses.replace(QUICK, epochs=2), lanes)
    half = [dataclasses.replace(config, epochs=1) for config in configs]
    train(half, report=ignore, checkpoint_dir=tmp_path / "half")
    content = checkpoint.load(tmp_path / "half")
    for name in ("generator_optimizers", "discriminator_optimizers"):
        for lane in content["states"][0][name]:
            for moments in lane["optimizer"]["state"].values():
                moments |= {key: value.contiguous() for key, value in moments.items()}
    checkpoint.write(tmp_path / "contiguous" / CHECKPOINT_FILE, content)
    for name in ("half", "contiguous"):
        folder = tmp_path / name
        train(configs, report=ignore, checkpoint_dir=folder, resume_from=folder)
    assert_same_run(tmp_path / "half", tmp_path / "contiguous")


def test_a_run_does_not_go_on_on_another_kind_of_device(tmp_path: Path) -> None:
    train([dataclasses.replace(QUICK, epochs=1)], report=ignore, checkpoint_dir=tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    checkpoint.write(path, checkpoint.load(path) | {"device": "cuda"})
    message = f"^{path} was trained on cuda, and its random streams cannot go on on cpu"
    with pytest.raises(ValueError, match=message):
        train([QUICK], report=ignore, resume_from=path)


def assert_is_the_single_run(whole: State, means: list[Row], tolerance: float = 1e-3) -> None:
    """Each lane of a state has trained an epoch as its config would alone.

    Weights, statistics, averages, moments and means are compared.
    """
    L = len(whole.lanes)
    for lane, config in enumerate(whole.lanes):
        alone = new_state([config], CPU)
        (own,) = one_epoch(alone)
        assert means[lane] == pytest.approx(own, rel=tolerance)
        assert torch.equal(whole.rngs[lane].get_state(), alone.rngs[0].get_state())
        for name, start in zip(("generator", "discriminator"), build([config]), strict=True):
            ours = split_lane(getattr(whole, name).state_dict(), lane, L)
            assert_moved_alike(ours, getattr(alone, name).state_dict(), start.state_dict())
            all_, one = (getattr(state, f"{name}_optimizers") for state in (whole, alone))
            pairs = zip(all_.views[lane], one.views[0], strict=True)
            for view, parameter in pairs:
                moments = one.optimizers[0].state[parameter]
                for moment in moments.keys() - {"step"}:
                    a = all_.optimizers[lane].state[view][moment].flatten()
                    b = moments[moment].flatten()
                    # of a net without norm rounding is a larger part of what is tiny at first
                    assert (a - b).norm() <= 0.03 * b.norm()
        if config.ema_decay:
            ours, theirs = (
                weights_to_evaluate(state, at) for state, at in ((whole, lane), (alone, 0))
            )
            assert_moved_alike(ours, theirs, build([config])[0].state_dict())
        if config.snapshots_every:
            ours, theirs = (
                checkpoint.lane_weights([contents(state)], at, "power_averages")
                for state, at in ((whole, lane), (alone, 0))
            )
            for kept in KEPT:
                own, other = (
                    {name.removeprefix(f"{kept}."): one for name, one in weights.items()}
                    for weights in (ours, theirs)
                )
                assert_moved_alike(own, other, build([config])[0].state_dict())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ema_decay": 0.9},
        {"snapshots_every": 1},
        {"optimizer": "rmsprop", "ema_decay": 0.9, "generator_lr": 1e-5, "discriminator_lr": 1e-5},
        {"extra_convs": 1},
        {"generator_depth": 3, "discriminator_depth": 1, "image_size": 28},
        {"channels": 3, "discriminator_width": 3},
    ],
)
def test_each_of_several_seeds_is_its_single_run(values: dict[str, Any]) -> None:
    (whole,) = new_states(replicate(dataclasses.replace(QUICK, **values), 3), CPU)
    assert_is_the_single_run(whole, one_epoch(whole))


@pytest.mark.parametrize(
    "values",
    [{}, {"ema_decay": 0.9}, {"channels": 3, "discriminator_width": 3}, {"image_size": 28}],
)
@pytest.mark.parametrize("way", sorted(set(WAYS) - {"grouped", "branches"}))
def test_each_way_trains_as_single_runs_do(way: str, values: dict[str, Any]) -> None:
    # not of few digits: rounding soon grows in small batches
    (whole,) = new_states(replicate(dataclasses.replace(TINY, **values), 3), CPU, way)
    assert_is_the_single_run(whole, one_epoch(whole))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_patches_are_convolutions(precision: str) -> None:
    """Of one image channel and of three, in one lane and in two; G to an odd size, too."""
    for lanes, channels, odd in itertools.product((1, 2), (1, 3), (0, 1)):
        x = torch.randn(5, lanes * channels, 12, 12)
        maps = torch.randn(5, lanes * 4, 6, 6)
        down = PatchConv(lanes * channels, lanes * 4, 4, 2, 1, groups=lanes)
        up = PatchUpConv(lanes * 4, lanes * channels, 4, 2, 1, odd, groups=lanes)
        tolerance = 1e-5 if precision == "float32" else 0.02
        with autocast(precision, CPU):
            pairs = (
                (down(x), torch.nn.Conv2d.forward(down, x)),
                (up(maps), torch.nn.ConvTranspose2d.forward(up, maps)),
            )
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_run_goes_on_in_whatever_networks_its_lanes_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, what each lane has gathered; and its next epoch, within rounding."""
    lanes = replicate(dataclasses.replace(QUICK_EMA, epochs=1), 3)
    longer = [dataclasses.replace(lane, epochs=2) for lane in lanes]
    train(lanes, report=ignore, checkpoint_dir=tmp_path / "whole")
    monkeypatch.setattr("dcgan.state.default_way", lambda device: "branches")
    apart = new_states(lanes, CPU)
    restore(apart, lanes, tmp_path / "whole")
    assert len(apart) == 3
    monkeypatch.undo()
    (whole,) = new_states(lanes, CPU)
    saved = [contents(state) for state in apart]
    restored = regroup(saved, [3])[0]
    restore([whole], lanes, tmp_path / "whole")
    assert tensors_in(restored).keys() == tensors_in(contents(whole)).keys()
    for name, tensor in tensors_in(contents(whole)).items():
        assert torch.equal(tensor, tensors_in(restored)[name]), name
    undisturbed = train(longer, report=ignore, resume_from=tmp_path / "whole")
    monkeypatch.setattr("dcgan.state.default_way", lambda device: "branches")
    went_on = train(longer, report=ignore, resume_from=tmp_path / "whole")
    for ours, theirs in zip(went_on, undisturbed, strict=True):
        assert ours["fid"] == pytest.approx(theirs["fid"], rel=0.02)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("name", OTHER_LANES)
def test_each_of_different_lanes_is_its_single_run(name: str, optimizer: str) -> None:
    """The first updates: what rounding changes grows with the rate, until runs part
    (docs/log.md)."""
    base = dataclasses.replace(QUICK_EMA, optimizer=optimizer, batch_size=400)
    if optimizer == "rmsprop":
        base = dataclasses.replace(base, generator_lr=1e-4, discriminator_lr=1e-4)
    (whole,) = new_states([base, dataclasses.replace(base, **OTHER_LANES[name]), base], CPU)
    assert_is_the_single_run(whole, one_epoch(whole))


def test_lanes_are_scored_as_their_single_runs() -> None:
    """Metrics of an epoch of 8 updates, from rows of lanes and of single runs."""
    lanes = [QUICK, dataclasses.replace(QUICK, seed=9, generator_lr=5e-4, beta1=0.4)]
    lanes = [dataclasses.replace(lane, epochs=1) for lane in lanes]
    rows = train(lanes, report=ignore)
    for row, lane in zip(rows, lanes, strict=True):
        (alone,) = train([lane], report=ignore)
        for name in ("fid", "kid", "sample_precision", "sharpness", "path_length", "d_real"):
            assert row[name] == pytest.approx(alone[name], rel=0.01, abs=1e-3), name


def test_lanes_that_differ_in_more_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^lane 1 has batch_size 64, lane 0 1000; lanes may"):
        train([TINY, dataclasses.replace(TINY, batch_size=64)], report=ignore)


def test_a_lane_that_diverges_leaves_the_others_alone() -> None:
    (whole,) = new_states(replicate(QUICK, 2), CPU)
    alone = new_state([dataclasses.replace(QUICK, seed=6)], CPU)
    with torch.no_grad():
        for parameter in whole.discriminator.parameters():
            parameter[: len(parameter) // 2] = torch.nan
    broken, sound = one_epoch(whole)
    assert all(math.isnan(value) for value in broken.values())
    assert sound == pytest.approx(one_epoch(alone)[0], rel=1e-3)


def test_a_loss_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered trains, is checked and is scored."""

    def discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return (fake.float() - real.float()).tanh().mean(0)

    def generator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return -fake.float().tanh().mean(0)

    monkeypatch.setitem(LOSSES, "tanh", Loss(discriminator, generator))
    lanes = replicate(dataclasses.replace(QUICK, loss="tanh", epochs=1), 2)
    first, second = train(lanes, report=ignore)
    assert -2 < first["discriminator_loss"] < 0
    assert first["fid"] != second["fid"]


OBJECTIVES: list[dict[str, Any]] = [
    *({"loss": name} for name in LOSSES if name != "non-saturating"),
    {"penalty": 1.0, "discriminator_norm": "none"},
    {"penalty": 0.1, "discriminator_norm": "batch", "loss": "relativistic"},
    {"discriminator_norm": "spectral"},
    {"augment": "translation"},
    {"label_smoothing": 0.1},
    {"augment": "translation", "penalty": 1.0, "discriminator_norm": "spectral", "loss": "hinge"},
]


@pytest.mark.parametrize("values", OBJECTIVES, ids=str)
def test_each_objective_trains_and_its_lanes_are_single_runs(values: dict[str, Any]) -> None:
    config = dataclasses.replace(QUICK, **values)
    (whole,) = new_states(replicate(config, 2), CPU)
    assert_is_the_single_run(whole, one_epoch(whole))
    (usual,) = new_states([QUICK], CPU)
    (other,) = new_states([config], CPU)
    plain, changed = one_epoch(usual)[0], one_epoch(other)[0]
    assert changed["discriminator_loss"] != pytest.approx(plain["discriminator_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("width", "groups"), [(2, [5]), (8, [4, 1]), (16, [2, 2, 1]), (32, [1] * 5), (64, [1] * 5)]
)
def test_a_cpu_trains_no_more_together_than_its_cache_holds(width: int, groups: list[int]) -> None:
    lanes = replicate(dataclasses.replace(TINY, generator_width=width), 5)
    states = new_states(lanes, CPU)
    assert [len(state.lanes) for state in states] == groups
    assert [lane for state in states for lane in state.lanes] == lanes


def test_best_is_the_best_lane_of_the_epoch_with_the_best_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fids = [9.0, 2.0, 5.0, 4.0, 1.0, 9.0]  # of epochs 1, 1, 2, 2, 3, 3
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(net: torch.nn.Module, lanes: list[TrainConfig], *_: Any, **__: Any) -> list[Row]:
        for lane in range(len(lanes)):
            own = split_lane(net.state_dict(), lane, len(lanes))
            seen.append({name: tensor.clone() for name, tensor in own.items()})
        return [{"fid": fid} for fid in fids[len(seen) - len(lanes) : len(seen)]]

    monkeypatch.setattr("dcgan.loop.evaluate_lanes", evaluate)
    train(replicate(QUICK_EMA, 2), report=ignore, checkpoint_dir=tmp_path)
    best, config, epoch = checkpoint.load_generator(tmp_path)
    assert (epoch, checkpoint.load(tmp_path)["best"]["fid"]) == (2, 4.5)
    assert config.seed == 6
    assert all(torch.equal(tensor, seen[3][name]) for name, tensor in best.state_dict().items())
    last, _, epoch = checkpoint.load_generator(tmp_path, last=True)
    assert epoch == 3
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in last.state_dict().items())


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each variant, runs that stopped after k epochs and went on in a new process."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("resumed")
    for name, lanes in VARIANTS.items():
        for k in (1, 2):
            first = [dataclasses.replace(lane, epochs=k) for lane in lanes]
            train(first, report=ignore, checkpoint_dir=root / name / f"after_{k}")
        write_lanes(root / name / "params.json", lanes)
    command = [sys.executable, "-c", RESUME, *(root / name for name in VARIANTS)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/numerical"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [
        epoch for lanes in VARIANTS.values() for epoch in "233" for _ in lanes
    ]
    return root


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_restored_in_a_new_process_equals_undisturbed(
    name: str, resumed: Path, tmp_path: Path
) -> None:
    """k epochs, a new process, n - k epochs: for each k the same bits as n epochs."""
    lanes = VARIANTS[name]
    rows: list[Row] = []
    train(lanes, report=rows.append, checkpoint_dir=tmp_path / "whole")
    expected = [(epoch, lane) for epoch in (1, 2, 3) for lane in range(len(lanes))]
    assert [(row["epoch"], row["lane"]) for row in rows] == expected
    for k in (1, 2):
        assert_same_run(tmp_path / "whole", resumed / name / f"after_{k}")


def test_two_runs_of_one_config_are_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1)
    for name in ("a", "b"):
        torch.manual_seed(len(name))  # the global stream plays no part
        torch.rand(7 if name == "b" else 1)
        train([config], report=ignore, checkpoint_dir=tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train([dataclasses.replace(config, seed=6)], report=ignore, checkpoint_dir=tmp_path / "c")
    a, c = (checkpoint.load(tmp_path / name) for name in "ac")
    assert not torch.equal(a["states"][0]["rngs"][0], c["states"][0]["rngs"][0])
    assert a["rows"][0]["fid"] != c["rows"][0]["fid"]


def test_a_finished_run_resumed_trains_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1)
    before = train([config], report=ignore, checkpoint_dir=tmp_path)
    reported: list[Row] = []
    assert (
        train([config], report=reported.append, checkpoint_dir=tmp_path, resume_from=tmp_path)
        == before
    )
    assert not reported


@pytest.mark.parametrize("count", [1, 3])
def test_rows_hold_exactly_the_documented_columns(count: int) -> None:
    reported: list[Row] = []
    rows = train(replicate(dataclasses.replace(TINY, epochs=1), count), report=reported.append)
    assert reported == rows
    assert all(ours is not theirs for ours, theirs in zip(rows, reported, strict=True))
    assert [row["lane"] for row in rows] == list(range(count))
    assert len({row["fid"] for row in rows}) == count
    for row in rows:
        assert list(row) == list(COLUMNS)
        assert row["threads"] == 1
        assert row["images_seen"] == 8000
        assert row["eval_samples"] == 2000
        assert row["eval_split"] == "validation"
        assert row["images_per_second"] == pytest.approx(8000 / float(row["seconds_train"]))
        assert 1e7 < row["peak_memory_bytes"] < 1e11
        assert json.loads(json.dumps(row)) == row


def test_golden_values_of_a_short_run() -> None:
    """Pins the whole pipeline: any change of data, initial weights, updates, noise or metric shows
    here."""
    (row,) = train(
        [dataclasses.replace(TINY, epochs=1, batch_size=100, generator_width=4)], report=ignore
    )
    golden = {
        "generator_loss": 0.68269,
        "discriminator_loss": 1.29061,
        "d_real": 0.55972,
        "fid": 126.044,
    }
    assert {name: row[name] for name in golden} == pytest.approx(golden, rel=0.02)


@pytest.mark.parametrize("which", ["generator_lr", "discriminator_lr"])
def test_divergence_is_an_error_and_is_never_reported(which: str, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, **{which: 1e30})
    with pytest.raises(FloatingPointError, match=r"diverged.*try a lower learning rate"):
        train(
            [config],
            report=lambda row: pytest.fail("a diverged epoch was reported"),
            checkpoint_dir=tmp_path,
        )
    assert not (tmp_path / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (
            math.inf,
            1.0,
            "^seed 6: training diverged in epoch 4: d_real is inf; try a lower learning rate$",
        ),
        (
            0.5,
            math.nan,
            "^seed 6: training diverged: G generates non-finite values; try a lower learning rate$",
        ),
    ],
)
def test_the_lane_that_diverged_is_named(values: float, weight: float, message: str) -> None:
    lanes = replicate(TINY, 2)
    (state,) = new_states(lanes, CPU)
    with torch.no_grad():
        next(state.generator.parameters()).chunk(2)[1].mul_(weight)
    reference = load_reference(TINY.source(None, CPU), "validation")
    means = [{"d_real": 0.5}, {"d_real": values}]
    with pytest.raises(FloatingPointError, match=message):
        scored(state, means, reference, epoch=4, named=True)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch_size is 8001; the training split of mnist-mini holds 8000"
    ):
        train([dataclasses.replace(TINY, batch_size=8001)], report=ignore)


def test_best_epoch_is_kept_when_later_ones_are_worse(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, batch_size=50, epochs=4)
    history = train([config], report=ignore, checkpoint_dir=tmp_path)
    best = min(history, key=lambda row: row["fid"])
    assert best["epoch"] < 4
    assert checkpoint.load(tmp_path)["best"]["epoch"] == best["epoch"]
    assert checkpoint.load_generator(tmp_path)[2] == best["epoch"]
    assert checkpoint.load_generator(tmp_path, last=True)[2] == 4
