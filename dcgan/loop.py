"""The training loop: alternating updates of D and G (Goodfellow et al. 2014, algorithm 1, with k = 1).

Shapes: N batch, Z latent size, C channels, S image size.
"""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan import checkpoint, memory, precision
from dcgan.config import TrainConfig
from dcgan.data import load_split, source, to_unit_range
from dcgan.evaluate import Reference, evaluate, load_reference, protocol
from dcgan.losses import discriminator_loss, generator_loss
from dcgan.models import build, update_average
from dcgan.schema import METRIC, Row

LOOP_STREAM = 1  # the random stream of order and noise; stream 0, the seed itself, draws the initial weights
MEANS = ("generator_loss", "discriminator_loss", "d_real", "d_fake")
RATES = ("generator_lr", "discriminator_lr")
OVER_REPLICAS: dict[str, Callable[[list[Any]], Any]] = {"digits_covered": min, "collapsed": any}  # the rest is averaged


@dataclass(kw_only=True, slots=True)
class State:
    """All that changes while one replica trains."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    generator_scaler: torch.amp.GradScaler
    discriminator_scaler: torch.amp.GradScaler
    rng: torch.Generator
    updates: int

    @property
    def judged(self) -> nn.Module:
        """The G that is evaluated."""
        return self.average or self.generator


def train(
    config: TrainConfig,
    *,
    report: Callable[[Row], None],
    checkpoint_dir: Path | str | None = None,
    resume_from: Path | str | None = None,
    data_dir: Path | str | None = None,
    device: torch.device | None = None,
    new_rates: bool = False,
) -> list[Row]:
    """Trains the config's replicas and returns their rows, one an epoch, with the columns of `dcgan.schema`.

    Args:
        config: all that the result depends on, with the device.
        report: called with each new row, once the epoch's checkpoint is written.
        checkpoint_dir: folder of `checkpoint.pt`, rewritten each epoch; None writes none.
        resume_from: a checkpoint (file or folder) of the same config to go on from; its rows are returned, not reported.
        data_dir: folder above `MNIST/raw`; None takes `DCGAN_DATA_DIR` or `~/.cache/dcgan`.
        device: where to train; None takes CUDA's current device if there is one, else the CPU.
        new_rates: whether the checkpoint may be of other learning rates; the config's hold from the first update.

    Raises:
        ValueError: the device cannot do the precision, the batch is larger than the data, or the checkpoint is damaged
            or of another config.
        OSError: data or checkpoint are missing or damaged.
        FloatingPointError: a loss, an image or a metric became non-finite; earlier rows are reported and kept.
    """
    device = device or precision.default_device()
    precision.set_up(config.precision, device)
    data = source(config, data_dir, device)
    images = load_split(data, "train").images  # (all, C, S, S) uint8
    if config.batch_size > len(images):
        raise ValueError(
            f"batch_size is {config.batch_size}; the training split of {config.dataset} holds {len(images)} images"
        )
    reference = load_reference(data, "validation")
    seeds = range(config.seed, config.seed + config.replicas)
    replicas = [new_state(dataclasses.replace(config, seed=seed, replicas=1), device) for seed in seeds]
    history: list[Row] = []
    best: dict[str, Any] = {}
    if resume_from is not None:
        history, best = restore(replicas, config, resume_from, new_rates=new_rates)

    for epoch in range(len(history) + 1, config.epochs + 1):
        memory.reset_peak(device)
        start = time.perf_counter()
        means = train_replicas(replicas, config, images)
        trained = time.perf_counter()
        peak_memory = memory.peak_bytes(device)
        results = judge_replicas(replicas, means, config, reference, epoch)
        evaluated = time.perf_counter()

        per_epoch = len(images) // config.batch_size * config.batch_size
        row: Row = {
            "epoch": epoch,
            "images_seen": epoch * per_epoch,
            **combine(results),
            "seconds_train": trained - start,
            "seconds_eval": evaluated - trained,
            "images_per_second": config.replicas * per_epoch / (trained - start),
            "peak_memory_bytes": peak_memory,
            **protocol(reference),
            "threads": torch.get_num_threads(),
        }
        history.append(row)
        if not best or row[METRIC] < best[METRIC]:
            _, winner = min(zip(results, replicas, strict=True), key=lambda pair: pair[0][METRIC])
            weights = {name: tensor.cpu().clone() for name, tensor in winner.judged.state_dict().items()}
            best = {"epoch": epoch, METRIC: row[METRIC], "generator": weights}
        if checkpoint_dir is not None:
            content = {"replicas": [contents(state) for state in replicas], "history": history, "best": best}
            checkpoint.save({**content, "config": config.to_dict()}, checkpoint_dir)
        report(copy.deepcopy(row))
    return history


def train_replicas(replicas: list[State], config: TrainConfig, images: Tensor) -> list[Row]:
    """Trains each replica for an epoch; returns the means of each."""
    return [train_epoch(state, config, images) for state in replicas]


def judge_replicas(replicas: list[State], means: list[Row], config: TrainConfig, reference: Reference, epoch: int) -> list[Row]:
    """Evaluates each replica; returns the means and scores of each.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    results = []
    for seed, (state, row) in enumerate(zip(replicas, means, strict=True), start=config.seed):
        try:
            _check_finite(row, epoch)
            scores = evaluate(state.judged, config, reference)
            _check_finite(scores, epoch)
        except FloatingPointError as error:
            raise FloatingPointError(f"seed {seed}: {error}" if config.replicas > 1 else str(error)) from None
        results.append(row | scores)
    return results


def combine(results: list[Row]) -> Row:
    """One row of the replicas' rows."""
    by_replica = {name: [row[name] for row in results] for name in results[0]}
    combined: Row = {name: OVER_REPLICAS.get(name, statistics.fmean)(values) for name, values in by_replica.items()}
    if len(results) == 1:
        return combined | {"fid_std": 0.0}
    return combined | {"fid_std": statistics.stdev(by_replica["fid"]), "by_replica": by_replica}


def train_epoch(state: State, config: TrainConfig, images: Tensor) -> Row:
    """One pass over the images (all, C, S, S) in random order; returns the means over its batches."""
    G, D, rng, device = state.generator, state.discriminator, state.rng, images.device
    order = torch.randperm(len(images), generator=rng, device=device)
    batches = torch.split(order[: len(images) // config.batch_size * config.batch_size], config.batch_size)
    sums = torch.zeros(len(MEANS), device=device)  # read once, at the end: reading waits for the device
    for index in batches:
        real = to_unit_range(images[index])  # (N, C, S, S)
        noise = torch.randn(len(index), config.latent_size, generator=rng, device=device)  # (N, Z)
        with precision.autocast(config.precision, device):
            fake = G(noise)  # (N, C, S, S)
            real_logits, fake_logits = D(real), D(fake.detach())  # (N,)
        loss_d = discriminator_loss(real_logits, fake_logits)
        descend(loss_d, state.discriminator_optimizer, state.discriminator_scaler)

        D.requires_grad_(False)  # G's update needs the gradient through D, not D's own
        with precision.autocast(config.precision, device):
            logits = D(fake)  # (N,)
        loss_g = generator_loss(logits)
        descend(loss_g, state.generator_optimizer, state.generator_scaler)
        D.requires_grad_(True)

        if state.average is not None:  # a short memory at first, or the initial weights would linger
            update_average(state.average, G, min(config.ema_decay, (1 + state.updates) / (10 + state.updates)))
        state.updates += 1
        with torch.no_grad():
            sums += torch.stack([loss_g, loss_d, real_logits.float().sigmoid().mean(), fake_logits.float().sigmoid().mean()])
    return dict(zip(MEANS, (sums / len(batches)).tolist(), strict=True))


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One update of the optimizer's parameters; the scaler (float16 only) skips one whose gradients overflow."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def make_optimizer(net: nn.Module, config: TrainConfig, learning_rate: float) -> torch.optim.Optimizer:
    """The config's optimizer for one net."""
    if config.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), learning_rate, betas=(config.beta1, config.beta2))
    return torch.optim.RMSprop(net.parameters(), learning_rate, alpha=config.rmsprop_alpha)


def new_state(config: TrainConfig, device: torch.device) -> State:
    """A replica's state before the first epoch, determined by config (its seed) and device."""
    # channels last: the layout of tensor cores, and a third faster on a CPU at width 16 (docs/log.md)
    generator, discriminator = (net.to(device, memory_format=torch.channels_last) for net in build(config))  # type: ignore[call-overload]
    generator_scaler, discriminator_scaler = precision.scalers(config.precision, device)
    seed = int(np.random.SeedSequence([config.seed, LOOP_STREAM]).generate_state(1, np.uint64)[0] >> 1)
    return State(
        generator=generator,
        discriminator=discriminator,
        average=copy.deepcopy(generator).requires_grad_(False) if config.ema_decay else None,
        generator_optimizer=make_optimizer(generator, config, config.generator_lr),
        discriminator_optimizer=make_optimizer(discriminator, config, config.discriminator_lr),
        generator_scaler=generator_scaler,
        discriminator_scaler=discriminator_scaler,
        rng=torch.Generator(device).manual_seed(seed),
        updates=0,
    )


STATEFUL = (
    "generator",
    "discriminator",
    "generator_optimizer",
    "discriminator_optimizer",
    "generator_scaler",
    "discriminator_scaler",
)


def contents(state: State) -> dict[str, Any]:
    """A replica's state as a checkpoint holds it."""
    return {
        **{name: getattr(state, name).state_dict() for name in STATEFUL},
        "average": state.average.state_dict() if state.average is not None else None,
        "rng": state.rng.get_state(),
        "updates": state.updates,
    }


def restore(
    replicas: list[State], config: TrainConfig, path: Path | str, *, new_rates: bool
) -> tuple[list[Row], dict[str, Any]]:
    """Brings new states to where the checkpoint was taken; returns the rows so far and the best epoch.

    Raises:
        FileNotFoundError, ValueError: no checkpoint, a damaged one, or one of another config.
    """
    saved = checkpoint.load(path)
    checkpoint.check_same_run(path, saved, config, RATES if new_rates else ())
    for state, content in zip(replicas, saved["replicas"], strict=True):
        for name in STATEFUL:
            getattr(state, name).load_state_dict(content[name])
        if state.average is not None:
            state.average.load_state_dict(content["average"])
        state.rng.set_state(content["rng"])
        state.updates = content["updates"]
        set_rate(state.generator_optimizer, config.generator_lr)
        set_rate(state.discriminator_optimizer, config.discriminator_lr)
    return saved["history"], saved["best"]


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Puts a learning rate in the place of the one that a restored optimizer brought along."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _check_finite(values: Mapping[str, Any], epoch: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"training diverged in epoch {epoch}: {name} is {value}; try a lower learning rate")
