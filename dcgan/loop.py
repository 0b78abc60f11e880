"""The training loop: alternating updates of D and G (Goodfellow et al. 2014, algorithm 1, with k = 1).

Shapes: N batch, Z latent size, C channels, S image size.
"""

import copy
import math
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
from dcgan.evaluate import evaluate, load_reference, protocol
from dcgan.losses import discriminator_loss, generator_loss
from dcgan.models import build, update_average
from dcgan.schema import METRIC, Row

LOOP_STREAM = 1  # the random stream of order and noise; stream 0, the seed itself, draws the initial weights
MEANS = ("generator_loss", "discriminator_loss", "d_real", "d_fake")


@dataclass(kw_only=True, slots=True)
class State:
    """All that changes while a run trains."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    generator_scaler: torch.amp.GradScaler
    discriminator_scaler: torch.amp.GradScaler
    rng: torch.Generator
    history: list[Row]
    best: dict[str, Any]


def train(
    config: TrainConfig,
    *,
    report: Callable[[Row], None],
    checkpoint_dir: Path | str | None = None,
    resume_from: Path | str | None = None,
    data_dir: Path | str | None = None,
    device: torch.device | None = None,
) -> list[Row]:
    """Trains one GAN and returns its rows, one an epoch, with the columns of `dcgan.schema`.

    Args:
        config: all that the result depends on, with the device.
        report: called with each new row, once the epoch's checkpoint is written.
        checkpoint_dir: folder of `checkpoint.pt`, rewritten each epoch; None writes none.
        resume_from: a checkpoint (file or folder) of the same config to go on from; its rows are returned, not reported.
        data_dir: folder above `MNIST/raw`; None takes `DCGAN_DATA_DIR` or `~/.cache/dcgan`.
        device: where to train; None takes CUDA's current device if there is one, else the CPU.

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
    state = new_state(config, device)
    if resume_from is not None:
        restore(state, config, resume_from)

    for epoch in range(len(state.history) + 1, config.epochs + 1):
        memory.reset_peak(device)
        start = time.perf_counter()
        means = train_epoch(state, config, images)
        trained = time.perf_counter()
        peak_memory = memory.peak_bytes(device)
        _check_finite(means, epoch)
        judged = state.average or state.generator
        scores = evaluate(judged, config, reference)
        _check_finite(scores, epoch)
        evaluated = time.perf_counter()

        per_epoch = len(images) // config.batch_size * config.batch_size
        row: Row = {
            "epoch": epoch,
            "images_seen": epoch * per_epoch,
            **means,
            **scores,
            "seconds_train": trained - start,
            "seconds_eval": evaluated - trained,
            "images_per_second": per_epoch / (trained - start),
            "peak_memory_bytes": peak_memory,
            **protocol(reference),
        }
        state.history.append(row)
        if not state.best or scores[METRIC] < state.best[METRIC]:
            weights = {name: tensor.cpu().clone() for name, tensor in judged.state_dict().items()}
            state.best = {"epoch": epoch, METRIC: scores[METRIC], "generator": weights}
        if checkpoint_dir is not None:
            checkpoint.save(contents(state, config), checkpoint_dir)
        report(dict(row))
    return state.history


def train_epoch(state: State, config: TrainConfig, images: Tensor) -> Row:
    """One pass over the images (all, C, S, S) in random order; returns the means over its batches."""
    G, D, rng, device = state.generator, state.discriminator, state.rng, images.device
    order = torch.randperm(len(images), generator=rng, device=device)
    batches = torch.split(order[: len(images) // config.batch_size * config.batch_size], config.batch_size)
    sums = torch.zeros(len(MEANS), device=device)  # read once, at the end: reading waits for the device
    for step, index in enumerate(batches, start=len(state.history) * len(batches)):
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
            update_average(state.average, G, min(config.ema_decay, (1 + step) / (10 + step)))
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
    """The state before the first epoch, determined by config and device."""
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
        history=[],
        best={},
    )


STATEFUL = (
    "generator",
    "discriminator",
    "generator_optimizer",
    "discriminator_optimizer",
    "generator_scaler",
    "discriminator_scaler",
)


def contents(state: State, config: TrainConfig) -> dict[str, Any]:
    """The state as a checkpoint holds it."""
    return {
        **{name: getattr(state, name).state_dict() for name in STATEFUL},
        "average": state.average.state_dict() if state.average is not None else None,
        "rng": state.rng.get_state(),
        "history": state.history,
        "best": state.best,
        "config": config.to_dict(),
    }


def restore(state: State, config: TrainConfig, path: Path | str) -> None:
    """Brings a new state to where the checkpoint was taken.

    Raises:
        FileNotFoundError, ValueError: no checkpoint, a damaged one, or one of another config.
    """
    saved = checkpoint.load(path)
    checkpoint.check_same_run(path, saved, config)
    for name in STATEFUL:
        getattr(state, name).load_state_dict(saved[name])
    if state.average is not None:
        state.average.load_state_dict(saved["average"])
    state.rng.set_state(saved["rng"])
    state.history, state.best = saved["history"], saved["best"]


def _check_finite(values: Mapping[str, Any], epoch: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"training diverged in epoch {epoch}: {name} is {value}; try a lower learning rate")
