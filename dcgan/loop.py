"""The training loop: alternating updates of D and G (Goodfellow et al. 2014, algorithm 1, with k = 1).

On the CPU each update runs as written here. On CUDA the same code is captured once and replayed as a CUDA graph, since its
kernels take less time than launching them; float16 alone runs as written there too, for the sake of its gradient scaler.

Shapes: N batch, R replicas, Z latent size, C channels, S image size.
"""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan import checkpoint, memory, precision
from dcgan.config import TrainConfig
from dcgan.data import load_split, source, to_unit_range
from dcgan.evaluate import Reference, evaluate, load_reference, protocol
from dcgan.graph import Graphed
from dcgan.losses import discriminator_loss, generator_loss
from dcgan.models import Generator, build, part, update_average
from dcgan.schema import METRIC, Row

LOOP_STREAM = 1  # the random stream of order and noise; stream 0, the seed itself, draws the initial weights
MEANS = ("generator_loss", "discriminator_loss", "d_real", "d_fake")
RATES = ("generator_lr", "discriminator_lr")
OVER_REPLICAS: dict[str, Callable[[list[Any]], Any]] = {"digits_covered": min, "collapsed": any}  # the rest is averaged
CPU_WIDTH = 32  # channels of all replicas that a CPU trains as one network
NOISE_BATCHES = 64  # drawn at a time: a draw for each batch and replica would cost as much as the update

Update = Callable[[Tensor, Tensor], None]


@dataclass(kw_only=True, slots=True)
class State:
    """All that changes while replicas train as one network (see `dcgan.models`)."""

    config: TrainConfig
    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    generator_scaler: torch.amp.GradScaler
    discriminator_scaler: torch.amp.GradScaler
    rngs: list[torch.Generator]
    """One of each replica, for its order and noise."""
    updates: Tensor
    """Their number so far, on the device."""
    sums: Tensor
    """Sums of `MEANS` over an epoch's batches, (4, R), on the device: reading them would wait for it."""

    def judged(self) -> list[nn.Module]:
        """The G of each replica that is evaluated."""
        whole, R = self.average or self.generator, self.config.replicas
        if R == 1:
            return [whole]
        nets: list[nn.Module] = []
        for r in range(R):
            net = Generator(dataclasses.replace(self.config, replicas=1))
            net.load_state_dict(part(whole.state_dict(), r, R))
            nets.append(on(self.sums.device, net))
        return nets


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
        MemoryError: the device has too little memory; so are they.
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
    with memory.explained(config, device):
        states = new_states(config, device)
    history: list[Row] = []
    best: dict[str, Any] = {}
    if resume_from is not None:
        history, best = restore(states, config, resume_from, new_rates=new_rates)
    updates = [make_update(state, images) for state in states]
    peak_memory = 0

    for epoch in range(len(history) + 1, config.epochs + 1):
        memory.reset_peak(device)
        start = time.perf_counter()
        with memory.explained(config, device):
            means = [row for state, update in zip(states, updates, strict=True) for row in train_epoch(state, images, update)]
            trained = time.perf_counter()
            peak_memory = max(peak_memory, memory.peak_bytes(device))  # a graph's memory counts only as it is captured
            generators = [generator for state in states for generator in state.judged()]
            results = judge(generators, means, config, reference, epoch)
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
            _, winner = min(zip(results, generators, strict=True), key=lambda pair: pair[0][METRIC])
            weights = {name: tensor.cpu().clone() for name, tensor in winner.state_dict().items()}
            best = {"epoch": epoch, METRIC: row[METRIC], "generator": weights}
        if checkpoint_dir is not None:
            content = {"states": [contents(state) for state in states], "history": history, "best": best}
            checkpoint.save({**content, "config": config.to_dict(), "device": device.type}, checkpoint_dir)
        report(copy.deepcopy(row))
    return history


def judge(generators: list[nn.Module], means: list[Row], config: TrainConfig, reference: Reference, epoch: int) -> list[Row]:
    """Evaluates each replica's G; returns the means and scores of each.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    results = []
    for seed, (generator, row) in enumerate(zip(generators, means, strict=True), start=config.seed):
        try:
            _check_finite(row, epoch)
            scores = evaluate(generator, config, reference)
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


def train_epoch(state: State, images: Tensor, update: Update) -> list[Row]:
    """One pass over the images (all, C, S, S), in each replica's own random order; returns each one's means over batches."""
    N, Z, device = state.config.batch_size, state.config.latent_size, images.device
    batches = len(images) // N
    order = torch.stack([torch.randperm(len(images), generator=rng, device=device) for rng in state.rngs], 1)
    state.sums.zero_()
    for block in torch.split(order[: batches * N].unflatten(0, (batches, N)), NOISE_BATCHES):  # (B, N, R)
        draws = [torch.randn(len(block), N, Z, generator=rng, device=device) for rng in state.rngs]
        noise = torch.stack(draws, 2).flatten(2)  # (B, N, R Z)
        for index, z in zip(block, noise, strict=True):
            update(index, z)
    return [dict(zip(MEANS, means, strict=True)) for means in (state.sums / batches).T.tolist()]


def make_update(state: State, images: Tensor, *, graphed: bool = True) -> Update:
    """`update_both` of a state and its images, as a CUDA graph where that can be (and unless `graphed` is false)."""
    update = partial(update_both, state, images)
    can = images.is_cuda and state.config.precision != "float16"
    return Graphed(update) if can and graphed else update


def update_both(state: State, images: Tensor, index: Tensor, noise: Tensor) -> None:
    """One update of D and one of G, on the images at index (N, R) and with noise (N, R Z). Never waits for the device."""
    G, D, config, device = state.generator, state.discriminator, state.config, images.device
    real = to_unit_range(images[index].flatten(1, 2).contiguous(memory_format=torch.channels_last))  # (N, R C, S, S)
    with precision.autocast(config.precision, device):
        fake = G(noise)  # (N, R C, S, S)
        real_logits, fake_logits = D(real), D(fake.detach())  # (N, R)
    loss_d = discriminator_loss(real_logits, fake_logits)  # (R,)
    descend(loss_d, state.discriminator_optimizer, state.discriminator_scaler)

    D.requires_grad_(False)  # G's update needs the gradient through D, not D's own
    with precision.autocast(config.precision, device):
        logits = D(fake)  # (N, R)
    loss_g = generator_loss(logits)  # (R,)
    descend(loss_g, state.generator_optimizer, state.generator_scaler)
    D.requires_grad_(True)

    with torch.no_grad():
        if state.average is not None:  # a short memory at first, or the initial weights would linger
            decay = ((1 + state.updates) / (10 + state.updates)).clamp(max=config.ema_decay)
            update_average(state.average, G, decay)
        state.updates += 1
        d_real, d_fake = (logits.float().sigmoid().mean(0) for logits in (real_logits, fake_logits))
        state.sums += torch.stack([loss_g, loss_d, d_real, d_fake])


def descend(losses: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One update of the optimizer's parameters from each replica's loss (R,), which is a function of its own only.

    The scaler (float16 only) skips one whose gradients overflow.
    """
    optimizer.zero_grad()
    scaler.scale(losses.sum()).backward()
    scaler.step(optimizer)
    scaler.update()


def make_optimizer(net: nn.Module, config: TrainConfig, learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
    """The config's optimizer for one net."""
    graphs = device.type == "cuda"
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(net.parameters(), learning_rate, betas=betas, fused=True, capturable=graphs)
    return torch.optim.RMSprop(net.parameters(), learning_rate, alpha=config.rmsprop_alpha, capturable=graphs)


def on(device: torch.device, net: nn.Module) -> nn.Module:
    """The net on the device, channels last: the layout of tensor cores, and a third faster on a CPU (docs/log.md)."""
    moved: nn.Module = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def together(config: TrainConfig, device: torch.device) -> int:
    """How many of a config's replicas train as one network.

    All on CUDA, but for float16, whose scaler skips an update of all when one overflows. On a CPU as many as its cache
    holds: more than that train fewer images a second than one at a time (docs/log.md).
    """
    if config.precision == "float16":
        return 1
    widest = max(config.generator_width, config.discriminator_width)
    return config.replicas if device.type == "cuda" else min(config.replicas, max(1, CPU_WIDTH // widest))


def new_states(config: TrainConfig, device: torch.device) -> list[State]:
    """The states of all replicas before the first epoch, determined by config and device."""
    most = together(config, device)
    groups = [min(most, config.replicas - first) for first in range(0, config.replicas, most)]
    firsts = range(config.seed, config.seed + config.replicas, most)
    return [new_state(dataclasses.replace(config, seed=s, replicas=n), device) for s, n in zip(firsts, groups, strict=True)]


def new_state(config: TrainConfig, device: torch.device) -> State:
    """The state of all of the config's replicas as one network."""
    generator, discriminator = (on(device, net) for net in build(config))
    generator_scaler, discriminator_scaler = precision.scalers(config.precision, device)
    return State(
        config=config,
        generator=generator,
        discriminator=discriminator,
        average=copy.deepcopy(generator).requires_grad_(False) if config.ema_decay else None,
        generator_optimizer=make_optimizer(generator, config, config.generator_lr, device),
        discriminator_optimizer=make_optimizer(discriminator, config, config.discriminator_lr, device),
        generator_scaler=generator_scaler,
        discriminator_scaler=discriminator_scaler,
        rngs=[random_stream(config.seed + r, device) for r in range(config.replicas)],
        updates=torch.zeros((), dtype=torch.int64, device=device),
        sums=torch.zeros(len(MEANS), config.replicas, device=device),
    )


def random_stream(seed: int, device: torch.device) -> torch.Generator:
    """The stream of order and noise of a seed's run."""
    drawn = np.random.SeedSequence([seed, LOOP_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(drawn >> np.uint64(1)))


NETS = ("generator", "discriminator", "average")
OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")
SCALERS = ("generator_scaler", "discriminator_scaler")


def contents(state: State) -> dict[str, Any]:
    """A state as a checkpoint holds it."""
    present = [name for name in (*NETS, *OPTIMIZERS, *SCALERS) if getattr(state, name) is not None]
    return {
        **{name: getattr(state, name).state_dict() for name in present},
        "rngs": [rng.get_state() for rng in state.rngs],
        "updates": int(state.updates),
    }


def restore(states: list[State], config: TrainConfig, path: Path | str, *, new_rates: bool) -> tuple[list[Row], dict[str, Any]]:
    """Brings new states to where the checkpoint was taken; returns the rows so far and the best epoch.

    Raises:
        FileNotFoundError, ValueError: no checkpoint, a damaged one, or one of another config or kind of device.
    """
    saved = checkpoint.load(path)
    checkpoint.check_same_run(path, saved, config, RATES if new_rates else ())
    if (here := states[0].sums.device.type) != saved["device"]:
        raise ValueError(f"{path} was trained on {saved['device']}, and its random streams cannot go on on {here}; train anew")
    for state, content in zip(states, saved["states"], strict=True):
        for name in (*NETS, *SCALERS):
            if name in content:
                getattr(state, name).load_state_dict(content[name])
        for name in OPTIMIZERS:
            restore_optimizer(getattr(state, name), content[name])
        for rng, drawn in zip(state.rngs, content["rngs"], strict=True):
            rng.set_state(drawn)
        state.updates.fill_(content["updates"])
    return saved["history"], saved["best"]


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes over what an optimizer had gathered, and keeps the settings, which are the config's and the device's."""
    optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, gathered in optimizer.state.items():
        for name, moment in gathered.items():
            if moment.shape == parameter.shape:  # fused Adam goes through memory, whatever the strides say
                gathered[name] = torch.empty_like(parameter, requires_grad=False).copy_(moment)


def _check_finite(values: Mapping[str, Any], epoch: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"training diverged in epoch {epoch}: {name} is {value}; try a lower learning rate")
