"""The training loop: alternating updates of D and G (Goodfellow et al. 2014, algorithm 1, k = 1).

On the CPU each update runs as written here. On CUDA the same code is captured once and replayed as
a CUDA graph, since its kernels take less time than launching them; float16 with RMSprop alone runs
as written there, too: its gradient scalers wait for the device, twice an update.

Shapes: N batch, L lanes of a network, Z latent size, C channels, S image size, B batches.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcgan import checkpoint, memory, precision
from dcgan.config import TrainConfig, check_lanes
from dcgan.data import check_batch, load_split, to_unit_range
from dcgan.evaluate import Reference, evaluate_lanes, load_reference, protocol
from dcgan.graph import Graphed
from dcgan.losses import LOSSES
from dcgan.models import update_average
from dcgan.schema import METRIC, Row
from dcgan.state import (
    MEANS,
    State,
    contents,
    generator_to_evaluate,
    new_states,
    restore,
    weights_to_evaluate,
)

# Batches whose noise is drawn at a time: a draw for each would cost as much as the update.
NOISE_BATCHES = 64

Update = Callable[[Tensor, Tensor], None]


def train(
    lanes: Sequence[TrainConfig],
    *,
    report: Callable[[Row], None],
    checkpoint_dir: Path | str | None = None,
    resume_from: Path | str | None = None,
    data_dir: Path | str | None = None,
    device: torch.device | None = None,
) -> list[Row]:
    """Trains lanes side by side; returns their rows, one a lane and epoch (see `dcgan.schema`).

    Args:
        lanes: with the device, all that the result depends on.
        report: called with each new row, once the epoch's checkpoint is written.
        checkpoint_dir: folder of `checkpoint.pt`, rewritten each epoch; None writes none.
        resume_from: a checkpoint (file or folder) of the same lanes to go on from; its rows are
            returned, not reported.
        data_dir: folder above `MNIST/raw`; None takes `DCGAN_DATA_DIR` or `~/.cache/dcgan`.
        device: None takes CUDA's current device if there is one, else the CPU.

    Raises:
        ValueError: lanes that differ in more than `LANE_FIELDS`, a precision that the device lacks,
            a batch larger than the data, a checkpoint that is damaged or of another config.
        OSError: data or checkpoint are missing or damaged.
        FloatingPointError: a loss, an image or a metric became non-finite.
        MemoryError: the device has too little memory.
    """
    check_lanes(lanes)
    config = lanes[0]
    device = device or precision.default_device()
    precision.set_up(config.precision, device)
    memory.release(device)
    source = config.source(data_dir, device)
    with memory.explained(lanes, device):
        check_batch(config.batch_size, source)
        images = load_split(source, "train").images  # (all, C, S, S) uint8
        reference = load_reference(source, "validation")
        states = new_states(lanes, device)
    per_epoch = len(images) // config.batch_size * config.batch_size
    rows: list[Row] = []
    best: dict[str, Any] = {}
    if resume_from is not None:
        saved = restore(states, lanes, resume_from)
        rows, best = saved["rows"], saved["best"]
    updates = [make_update(state, images) for state in states]
    peak_memory = 0

    for epoch in range(len(rows) // len(lanes) + 1, config.epochs + 1):
        memory.reset_peak(device)
        start = time.perf_counter()
        with memory.explained(lanes, device):
            pairs = zip(states, updates, strict=True)
            means = [train_epoch(state, images, update) for state, update in pairs]
            trained = time.perf_counter()
            # a graph's memory counts only as it is captured
            peak_memory = max(peak_memory, memory.peak_bytes(device))
            scores: list[Row] = []
            for state, own_means in zip(states, means, strict=True):
                scores += scored(state, own_means, reference, epoch, named=len(lanes) > 1)
        evaluated = time.perf_counter()

        new_rows: list[Row] = [
            {
                "lane": lane,
                "epoch": epoch,
                "images_seen": epoch * per_epoch,
                **own,
                "seconds_train": (trained - start) / len(lanes),
                "seconds_eval": (evaluated - trained) / len(lanes),
                "images_per_second": len(lanes) * per_epoch / (trained - start),
                "peak_memory_bytes": peak_memory,
                **protocol(reference),
                "threads": torch.get_num_threads(),
            }
            for lane, own in enumerate(scores)
        ]
        rows += new_rows
        best = best_epoch(best, new_rows, states)
        if checkpoint_dir is not None:
            state_contents = [contents(state) for state in states]
            checkpoint.save(checkpoint_dir, lanes, device, state_contents, rows, best)
        for row in new_rows:
            report(dict(row))
    return rows


def best_epoch(
    best: dict[str, Any], rows: Sequence[Row], states: Sequence[State]
) -> dict[str, Any]:
    """What a checkpoint keeps of the epoch with the best mean over lanes: its best lane's G."""
    values = [row[METRIC] for row in rows]
    mean = statistics.fmean(values)
    if best and mean >= best[METRIC]:
        return best
    places = [(state, lane) for state in states for lane in range(len(state.lanes))]
    number = values.index(min(values))
    weights = {
        name: one.cpu().clone() for name, one in weights_to_evaluate(*places[number]).items()
    }
    return {"epoch": rows[0]["epoch"], METRIC: mean, "lane": number, "generator": weights}


def scored(
    state: State, means: Sequence[Row], reference: Reference, epoch: int, *, named: bool
) -> list[Row]:
    """Evaluates a state's lanes; returns the means and scores of each, which are finite. `named`
    has errors name the lane's seed."""
    seeds = [f"seed {config.seed}: " if named else "" for config in state.lanes]
    for seed, row in zip(seeds, means, strict=True):
        check_finite(row, epoch, seed)
    net = generator_to_evaluate(state)
    scores = evaluate_lanes(net, state.lanes, reference, named=named)
    for seed, row in zip(seeds, scores, strict=True):
        check_finite(row, epoch, seed)
    return [own | row for own, row in zip(means, scores, strict=True)]


def check_finite(values: Row, epoch: int, whose: str) -> None:
    """Refuses a value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{whose}training diverged in epoch {epoch}: {name} is {value}; "
                f"try a lower learning rate"
            )


def train_epoch(state: State, images: Tensor, update: Update) -> list[Row]:
    """One pass over the images (all, C, S, S); returns each lane's means over batches."""
    state.sums.zero_()
    for index, noise in draw_batches(state, images):
        update(index, noise)
    batches = len(images) // state.config.batch_size
    return [dict(zip(MEANS, means, strict=True)) for means in (state.sums / batches).T.tolist()]


def draw_batches(state: State, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one pass over the images, each lane's in a random order of its own: the index of
    the lanes' images (N, L), and their noise side by side (N, L Z)."""
    N, Z, device = state.config.batch_size, state.config.latent_size, images.device
    batches = len(images) // N
    orders = [torch.randperm(len(images), generator=rng, device=device) for rng in state.rngs]
    indices = torch.stack(orders, 1)[: batches * N].unflatten(0, (batches, N))  # (B, N, L)
    for block in torch.split(indices, NOISE_BATCHES):
        size = (len(block), N, Z)
        draws = [torch.randn(size, generator=rng, device=device) for rng in state.rngs]
        noise = torch.stack(draws, 2).flatten(2)  # (B, N, L Z)
        yield from zip(block, noise, strict=True)


def make_update(state: State, images: Tensor, *, graphed: bool = True) -> Update:
    """`update_both` of a state and its images: as a CUDA graph if `graphed`, where that can be."""
    update = partial(update_both, state, images)
    config = state.config
    # a fused optimizer skips an update by itself where gradients overflow; else the scaler asks
    can = images.is_cuda and (config.precision != "float16" or config.optimizer == "adam")
    return Graphed(update) if can and graphed else update


def update_both(state: State, images: Tensor, index: Tensor, noise: Tensor) -> None:
    """One update of D and one of G, on the images at index (N, L) and with noise (N, L Z); never
    waits for the device, but for float16's scalers with RMSprop."""
    G, D, config, device = state.generator, state.discriminator, state.config, images.device
    loss = LOSSES[config.loss]
    batch = images[index].flatten(1, 2).contiguous(memory_format=torch.channels_last)
    real = to_unit_range(batch)  # (N, L C, S, S)
    with precision.autocast(config.precision, device):
        fake = G(noise)  # (N, L C, S, S)
        real_logits, fake_logits = D(real), D(fake.detach())  # (N, L)
    loss_d = loss.discriminator(real_logits, fake_logits)  # (L,)
    state.discriminator_optimizers.descend(loss_d)

    D.requires_grad_(False)  # G's update needs the gradient through D, not D's own
    with precision.autocast(config.precision, device):
        logits = D(fake)  # (N, L)
    loss_g = loss.generator(logits)  # (L,)
    state.generator_optimizers.descend(loss_g)
    D.requires_grad_(True)

    with torch.no_grad():
        if state.average is not None:
            # a short memory at first, or the initial weights would linger
            decay = ((1 + state.updates) / (10 + state.updates)).clamp(max=config.ema_decay)
            update_average(state.average, G, decay)
        state.updates += 1
        d_real, d_fake = (one.float().sigmoid().mean(0) for one in (real_logits, fake_logits))
        state.sums += torch.stack([loss_g, loss_d, d_real, d_fake])
