"""The training loop against an independent one, and against itself interrupted: bit for bit on the CPU."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dcgan import checkpoint
from dcgan.config import TrainConfig
from dcgan.data import Source, load_split
from dcgan.evaluate import load_reference
from dcgan.loop import LOOP_STREAM, combine, judge, make_update, new_state, new_states, train, train_epoch
from dcgan.models import build, part
from dcgan.schema import COLUMNS, Row

CPU = torch.device("cpu")
ROOT = str(Path(__file__).parents[2])
TINY = TrainConfig(
    dataset="mnist-mini", image_size=16, generator_width=2, discriminator_width=2, batch_size=1000, epochs=3, seed=5
)  # fmt: skip
VARIANTS = {
    "adam": TINY,
    "adam with EMA": dataclasses.replace(TINY, ema_decay=0.9, generator_lr=1e-3),
    "two replicas with EMA": dataclasses.replace(TINY, replicas=2, ema_decay=0.9),
    "rmsprop with EMA": dataclasses.replace(TINY, optimizer="rmsprop", ema_decay=0.9, extra_convs=1),
}
RESUME = """
import sys, torch
from pathlib import Path
from dcgan.config import TrainConfig
from dcgan.loop import train
torch.set_num_threads(1)
config = TrainConfig.from_file(Path(sys.argv[1]))
for folder in map(Path, sys.argv[2:]):
    train(config, report=lambda row: print(row["epoch"]), checkpoint_dir=folder, resume_from=folder)
"""
TIMED = ("seconds_train", "seconds_eval", "images_per_second", "peak_memory_bytes")


def untimed(rows: list[Row]) -> list[Row]:
    """Rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path within it."""
    found: dict[str, torch.Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}/{key}", item)

    walk("", checkpoint.load(folder))
    return found


def assert_same_run(a: Path, b: Path) -> None:
    """Both checkpoints hold the same bits and the same rows."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert len(first) > 40
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert untimed(checkpoint.load(a)["history"]) == untimed(checkpoint.load(b)["history"])


def textbook_epochs(
    config: TrainConfig, epochs: int, start: dict[str, Any] | None = None
) -> tuple[torch.nn.Module, torch.nn.Module, list[float]]:
    """DCGAN's updates written as a tutorial does: probabilities' cross-entropy, three backward passes, plain layout.

    `start`: the state in a checkpoint to go on from, at the config's rates.
    """
    images = load_split(Source(config.dataset, config.image_size), "train").images
    G, D = build(config)
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        optimizer_g = torch.optim.Adam(G.parameters(), lr=config.generator_lr, betas=betas, foreach=False)
        optimizer_d = torch.optim.Adam(D.parameters(), lr=config.discriminator_lr, betas=betas, foreach=False)
    else:
        optimizer_g = torch.optim.RMSprop(G.parameters(), lr=config.generator_lr, foreach=False)
        optimizer_d = torch.optim.RMSprop(D.parameters(), lr=config.discriminator_lr, foreach=False)
    seed = np.random.SeedSequence([config.seed, LOOP_STREAM]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    rng = torch.Generator().manual_seed(int(seed))
    if start:
        G.load_state_dict(start["generator"])
        D.load_state_dict(start["discriminator"])
        for optimizer, name in ((optimizer_g, "generator_optimizer"), (optimizer_d, "discriminator_optimizer")):
            optimizer.load_state_dict(start[name] | {"param_groups": optimizer.state_dict()["param_groups"]})
        rng.set_state(start["rngs"][0])
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

    Both optimizers divide by the gradient's size, so that rounding in a tiny gradient moves a weight a whole step either
    way: the movement is compared as a whole, not weight by weight.
    """
    config = dataclasses.replace(TINY, optimizer=optimizer, generator_lr=3e-4)
    state = new_state(config, CPU)
    images = load_split(Source(config.dataset, config.image_size), "train").images
    (means,) = train_epoch(state, images, make_update(state, images))
    *textbook, losses = textbook_epochs(config, 1)
    for ours, theirs, start in zip((state.generator, state.discriminator), textbook, build(config), strict=True):
        a, b = movement(ours, start), movement(theirs, start)
        assert torch.cosine_similarity(a, b, dim=0) > 0.999
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
        for (name, x), y in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert means["discriminator_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_average_has_a_short_memory_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    decays: list[float] = []
    monkeypatch.setattr("dcgan.loop.update_average", lambda average, live, decay: decays.append(decay.item()))
    config = dataclasses.replace(TINY, ema_decay=0.5)
    state = new_state(config, CPU)
    images = load_split(Source(config.dataset, config.image_size), "train").images
    for _ in range(2):
        train_epoch(state, images, make_update(state, images))
    assert decays == pytest.approx([*((1 + n) / (10 + n) for n in range(8)), *[0.5] * 8])


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_new_rates_hold_from_the_first_update(optimizer: str, tmp_path: Path) -> None:
    """One update an epoch: the only one after restoring is a textbook's at the new rates."""
    old = dataclasses.replace(TINY, optimizer=optimizer, batch_size=8000, epochs=1)
    new = dataclasses.replace(old, generator_lr=7e-4, discriminator_lr=1e-4, epochs=2)
    train(old, report=lambda row: None, checkpoint_dir=tmp_path / "old")
    train(new, report=lambda row: None, checkpoint_dir=tmp_path / "new", resume_from=tmp_path / "old", new_rates=True)
    (before,), (after,) = (checkpoint.load(tmp_path / name)["states"] for name in ("old", "new"))
    *textbook, _ = textbook_epochs(new, 1, before)
    for name, theirs, start, ours in zip(("generator", "discriminator"), textbook, build(new), build(new), strict=True):
        start.load_state_dict(before[name])
        ours.load_state_dict(after[name])
        a, b = movement(ours, start), movement(theirs, start)
        assert torch.cosine_similarity(a, b, dim=0) > 0.999
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
    train(dataclasses.replace(new, epochs=3), report=lambda row: None, resume_from=tmp_path / "new")  # they are its own now


def assert_moved_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """All weights moved the same way and as far, as one vector; and the statistics agree."""
    names = [name for name in start if "running" not in name and "tracked" not in name]
    a, b = (torch.cat([(net[name] - start[name]).flatten() for name in names]) for net in (ours, theirs))
    assert a.norm() > 1e-3
    assert torch.cosine_similarity(a, b, dim=0) > 0.999
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)
    for name in start.keys() - names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-4)


def test_moments_of_another_memory_layout_are_restored(tmp_path: Path) -> None:
    """Fused Adam would read them in the order of memory, and in silence train something else."""
    config = dataclasses.replace(TINY, epochs=2)
    train(dataclasses.replace(config, epochs=1), report=lambda row: None, checkpoint_dir=tmp_path / "half")
    content = checkpoint.load(tmp_path / "half")
    for name in ("generator_optimizer", "discriminator_optimizer"):
        for moments in content["states"][0][name]["state"].values():
            moments |= {key: value.contiguous() for key, value in moments.items()}
    del content["version"]
    checkpoint.save(content, tmp_path / "contiguous")
    for name in ("half", "contiguous"):
        train(config, report=lambda row: None, checkpoint_dir=tmp_path / name, resume_from=tmp_path / name)
    assert_same_run(tmp_path / "half", tmp_path / "contiguous")


def test_a_run_does_not_go_on_on_another_kind_of_device(tmp_path: Path) -> None:
    train(dataclasses.replace(TINY, epochs=1), report=lambda row: None, checkpoint_dir=tmp_path)
    content = checkpoint.load(tmp_path) | {"device": "cuda"}
    del content["version"]
    path = checkpoint.save(content, tmp_path)
    with pytest.raises(ValueError, match=f"^{path} was trained on cuda, and its random streams cannot go on on cpu"):
        train(TINY, report=lambda row: None, resume_from=path)


@pytest.mark.parametrize("values", [
    {}, {"ema_decay": 0.9}, {"optimizer": "rmsprop", "ema_decay": 0.9, "generator_lr": 1e-5, "discriminator_lr": 1e-5},
    {"extra_convs": 1},
    {"generator_depth": 3, "discriminator_depth": 1, "image_size": 28}, {"channels": 3, "discriminator_width": 3},
])  # fmt: skip
def test_each_replica_is_the_single_run_of_its_seed(values: dict[str, Any]) -> None:
    """Weights, statistics, averages, moments and means, after an epoch of 8 updates."""
    config = dataclasses.replace(TINY, replicas=3, **values)
    images = load_split(Source(config.dataset, config.image_size, config.channels), "train").images
    (whole,) = new_states(config, CPU)
    means = train_epoch(whole, images, make_update(whole, images))
    for r in range(3):
        single = dataclasses.replace(config, seed=config.seed + r, replicas=1)
        alone = new_state(single, CPU)
        (own,) = train_epoch(alone, images, make_update(alone, images))
        assert means[r] == pytest.approx(own, rel=1e-3)
        assert torch.equal(whole.rngs[r].get_state(), alone.rngs[0].get_state())
        for name, start in zip(("generator", "discriminator"), build(single), strict=True):
            ours = part(getattr(whole, name).state_dict(), r, 3)
            assert_moved_alike(ours, getattr(alone, name).state_dict(), start.state_dict())
            for p, q in zip(getattr(whole, name).parameters(), getattr(alone, name).parameters(), strict=True):
                one, all_ = (getattr(s, f"{name}_optimizer").state[w] for s, w in ((alone, q), (whole, p)))
                for moment in one.keys() - {"step"}:
                    a, b = all_[moment].chunk(3)[r].flatten(), one[moment].flatten()
                    assert (a - b).norm() <= 0.02 * b.norm()
        if config.ema_decay:
            assert_moved_alike(whole.judged()[r].state_dict(), alone.judged()[0].state_dict(), build(single)[0].state_dict())


def test_a_replica_that_diverges_leaves_the_others_alone() -> None:
    config = dataclasses.replace(TINY, replicas=2)
    images = load_split(Source(config.dataset, config.image_size), "train").images
    (whole,), alone = new_states(config, CPU), new_state(dataclasses.replace(TINY, seed=6), CPU)
    with torch.no_grad():
        for parameter in whole.discriminator.parameters():
            parameter[: len(parameter) // 2] = torch.nan
    broken, sound = train_epoch(whole, images, make_update(whole, images))
    assert all(math.isnan(value) for value in broken.values())
    assert sound == pytest.approx(train_epoch(alone, images, make_update(alone, images))[0], rel=1e-3)


@pytest.mark.parametrize(("width", "groups"), [(2, [5]), (8, [4, 1]), (16, [2, 2, 1]), (32, [1] * 5), (64, [1] * 5)])
def test_a_cpu_trains_no_more_together_than_its_cache_holds(width: int, groups: list[int]) -> None:
    states = new_states(dataclasses.replace(TINY, generator_width=width, replicas=5), CPU)
    assert [state.config.replicas for state in states] == groups
    assert [state.config.seed + r for state in states for r in range(state.config.replicas)] == [5, 6, 7, 8, 9]


def test_a_row_of_replicas_combines_theirs() -> None:
    one = {"generator_loss": 1.0, "fid": 10.0, "digits_covered": 9, "collapsed": False}
    two = {"generator_loss": 2.0, "fid": 13.0, "digits_covered": 7, "collapsed": True}
    three = {"generator_loss": 6.0, "fid": 19.0, "digits_covered": 10, "collapsed": False}
    combined = combine([one, two, three])
    assert combined == {
        "generator_loss": 3.0, "fid": 14.0, "digits_covered": 7, "collapsed": True,
        "fid_std": pytest.approx(21**0.5),  # ((-4)² + (-1)² + 5²) / 2
        "by_replica": {
            "generator_loss": [1.0, 2.0, 6.0], "fid": [10.0, 13.0, 19.0],
            "digits_covered": [9, 7, 10], "collapsed": [False, True, False],
        },
    }  # fmt: skip
    assert json.loads(json.dumps(combined)) == combined
    alone = combine([one])
    assert alone == one | {"fid_std": 0.0}
    assert {name: type(value) for name, value in alone.items()} == {name: type(value) for name, value in one.items()} | {
        "fid_std": float
    }


def test_best_is_the_best_replica_of_the_epoch_with_the_best_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fids = [9.0, 2.0, 5.0, 4.0, 1.0, 9.0]  # of epochs 1, 1, 2, 2, 3, 3
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(generator: torch.nn.Module, *_: object) -> Row:
        seen.append({name: tensor.clone() for name, tensor in generator.state_dict().items()})
        return {"fid": fids[len(seen) - 1]}

    monkeypatch.setattr("dcgan.loop.evaluate", evaluate)
    train(dataclasses.replace(TINY, replicas=2, ema_decay=0.9), report=lambda row: None, checkpoint_dir=tmp_path)
    best, _, epoch = checkpoint.load_generator(tmp_path)
    assert (epoch, checkpoint.load(tmp_path)["best"]["fid"]) == (2, 4.5)
    assert all(torch.equal(tensor, seen[3][name]) for name, tensor in best.state_dict().items())
    last, _, epoch = checkpoint.load_generator(tmp_path, last=True)
    assert epoch == 3
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in last.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_restored_in_a_new_process_equals_undisturbed(name: str, tmp_path: Path) -> None:
    """k epochs, a new process, n - k epochs: for each k the same bits as n epochs."""
    config = VARIANTS[name]
    rows: list[Row] = []
    train(config, report=rows.append, checkpoint_dir=tmp_path / "whole")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    stopped = [tmp_path / f"stopped_after_{k}" for k in (1, 2)]
    for k, folder in enumerate(stopped, start=1):
        train(dataclasses.replace(config, epochs=k), report=lambda row: None, checkpoint_dir=folder)
    (tmp_path / "params.json").write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-c", RESUME, tmp_path, *stopped]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.stdout.split() == ["2", "3", "3"]
    for folder in stopped:
        assert_same_run(tmp_path / "whole", folder)


def test_two_runs_of_one_config_are_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, epochs=1)
    for name in ("a", "b"):
        torch.manual_seed(len(name))  # the global stream plays no part
        torch.rand(7 if name == "b" else 1)
        train(config, report=lambda row: None, checkpoint_dir=tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(dataclasses.replace(config, seed=6), report=lambda row: None, checkpoint_dir=tmp_path / "c")
    a, c = (checkpoint.load(tmp_path / name) for name in "ac")
    assert not torch.equal(a["states"][0]["rngs"][0], c["states"][0]["rngs"][0])
    assert a["history"][0]["fid"] != c["history"][0]["fid"]


def test_a_finished_run_resumed_trains_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, epochs=1)
    before = train(config, report=lambda row: None, checkpoint_dir=tmp_path)
    reported: list[Row] = []
    assert train(config, report=reported.append, checkpoint_dir=tmp_path, resume_from=tmp_path) == before
    assert not reported


def test_rows_hold_exactly_the_documented_columns(tmp_path: Path) -> None:
    (row,) = train(dataclasses.replace(TINY, epochs=1), report=lambda row: None)
    assert list(row) == [name for name in COLUMNS if name != "by_replica"]
    assert row["fid_std"] == 0
    assert row["threads"] == 1
    assert row["images_seen"] == 8000
    assert row["eval_samples"] == 2000
    assert row["eval_split"] == "validation"
    assert row["images_per_second"] == pytest.approx(8000 / float(row["seconds_train"]))
    assert 1e7 < row["peak_memory_bytes"] < 1e11


def test_rows_of_replicas_hold_every_documented_column() -> None:
    reported: list[Row] = []
    (row,) = train(dataclasses.replace(TINY, epochs=1, replicas=3), report=reported.append)
    assert reported == [row]
    assert reported[0]["by_replica"] is not row["by_replica"]  # what a report does to its row stays there
    assert list(row) == list(COLUMNS)
    columns = list(COLUMNS)
    assert list(row["by_replica"]) == columns[columns.index("generator_loss") : columns.index("fid_std")]
    assert {len(values) for values in row["by_replica"].values()} == {3}
    assert row["fid"] == pytest.approx(np.mean(row["by_replica"]["fid"]))
    assert row["fid_std"] == pytest.approx(np.std(row["by_replica"]["fid"], ddof=1))
    assert row["images_seen"] == 8000
    assert row["images_per_second"] == pytest.approx(3 * 8000 / row["seconds_train"])


def test_golden_values_of_a_short_run() -> None:
    """Pins the whole pipeline: any change of data, initial weights, updates, noise or metric shows here."""
    (row,) = train(dataclasses.replace(TINY, epochs=1, batch_size=100, generator_width=4), report=lambda row: None)
    golden = {"generator_loss": 0.68269, "discriminator_loss": 1.29061, "d_real": 0.55972, "fid": 126.044}
    assert {name: row[name] for name in golden} == pytest.approx(golden, rel=0.02)


@pytest.mark.parametrize("which", ["generator_lr", "discriminator_lr"])
def test_divergence_is_an_error_and_is_never_reported(which: str, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, **{which: 1e30})
    with pytest.raises(FloatingPointError, match=r"diverged.*try a lower learning rate"):
        train(config, report=lambda row: pytest.fail("a diverged epoch was reported"), checkpoint_dir=tmp_path)
    assert not (tmp_path / checkpoint.NAME).exists()


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (math.inf, 1.0, "^seed 6: training diverged in epoch 4: d_real is inf; try a lower learning rate$"),
        (0.5, math.nan, "^seed 6: training diverged: G generates non-finite values; try a lower learning rate$"),
    ],
)
def test_the_replica_that_diverged_is_named(values: float, weight: float, message: str) -> None:
    config = dataclasses.replace(TINY, replicas=2)
    (state,) = new_states(config, CPU)
    generators = state.judged()
    with torch.no_grad():
        next(generators[1].parameters()).mul_(weight)
    reference = load_reference(Source(config.dataset, config.image_size), "validation")
    with pytest.raises(FloatingPointError, match=message):
        judge(generators, [{"d_real": 0.5}, {"d_real": values}], config, reference, epoch=4)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 8001; the training split of mnist-mini holds 8000"):
        train(dataclasses.replace(TINY, batch_size=8001), report=lambda row: None)


def test_best_epoch_is_kept_when_later_ones_are_worse(tmp_path: Path) -> None:
    history = train(dataclasses.replace(TINY, batch_size=100, epochs=4), report=lambda row: None, checkpoint_dir=tmp_path)
    best = min(history, key=lambda row: row["fid"])
    assert checkpoint.load(tmp_path)["best"]["epoch"] == best["epoch"]
    assert checkpoint.load_generator(tmp_path)[2] == best["epoch"]
    assert checkpoint.load_generator(tmp_path, last=True)[2] == 4
