"""The training loop: alternating updates of D and G (Goodfellow et al. 2014, algorithm 1, k = 1).

On the CPU each update runs as written here. On CUDA the same code is captured once and replayed as
a CUDA graph, since its kernels take less time than launching them; float16 with RMSprop alone runs
as written there, too: its gradient scalers wait for the device, twice an update.

Shapes: N batch, L lanes of a network or group, Z latent size, C channels, S image size, B batches,
K numbers that an augmentation takes.
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
from dcgan.augment import AUGMENTATIONS, noise_size, split_noise
from dcgan.config import TrainConfig, check_lanes
from dcgan.data import check_batch, load_split, one_hot, to_unit_range
from dcgan.evaluate import Reference, evaluate_lanes, load_reference, protocol
from dcgan.feed import Feed
from dcgan.graph import Graphed, side_by_side
from dcgan.losses import LOSSES, gradient_penalty, smoothing
from dcgan.models import move_towards, update_average
from dcgan.power import EXPONENTS, share
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
Fetch = Callable[[Tensor], Tensor]  # as `dcgan.feed.Feed.fetch`


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
        checkpoint_dir: folder of `checkpoint.pt`, rewritten each epoch, and of the snapshots of
            averages; None writes none.
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
        split = load_split(source, "train")
        reference = load_reference(source, "validation")
        states = new_states(lanes, device)
        groups = grouped(states)
        feed = Feed(split, device, NOISE_BATCHES * config.batch_size * len(lanes))
    per_epoch = len(split.images) // config.batch_size * config.batch_size
    rows: list[Row] = []
    best: dict[str, Any] = {}
    if resume_from is not None:
        saved = restore(states, lanes, resume_from)
        rows, best = saved["rows"], saved["best"]
    updates = [make_update(group, feed.images, feed.labels) for group in groups]
    peak_memory, saving = 0, 0.0

    for epoch in range(len(rows) // len(lanes) + 1, config.epochs + 1):
        memory.reset_peak(device)
        start = time.perf_counter()
        with memory.explained(lanes, device):
            means: list[list[Row]] = []  # of each lane of each state
            for group, update in zip(groups, updates, strict=True):
                means += train_epoch(group, split.images, update, feed.fetch)
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
                "seconds_checkpoint": saving / len(lanes),
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
            if config.snapshots_every and epoch % config.snapshots_every == 0:
                checkpoint.save_averages(checkpoint_dir, epoch, state_contents)
            checkpoint.save(checkpoint_dir, lanes, device, state_contents, rows, best)
        saving = time.perf_counter() - evaluated
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


def grouped(states: Sequence[State]) -> list[list[State]]:
    """The states whose updates run at the same time: on CUDA all, on a CPU one after another."""
    return [list(states)] if states[0].sums.is_cuda else [[state] for state in states]


def train_epoch(
    group: Sequence[State], images: Tensor, update: Update, fetch: Fetch | None = None
) -> list[list[Row]]:
    """One pass over the images (all, C, S, S), which `fetch` brings where the update reads them if
    they are elsewhere; returns the means over batches of each state's lanes."""
    for state in group:
        state.sums.zero_()
    for index, noise in draw_batches(group, images, fetch):
        update(index, noise)
    batches = len(images) // group[0].config.batch_size
    by_state = [(state.sums / batches).T.tolist() for state in group]
    return [[dict(zip(MEANS, own, strict=True)) for own in lanes] for lanes in by_state]


def draw_batches(
    group: Sequence[State], images: Tensor, fetch: Fetch | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one pass over the images, each lane's in a random order of its own: the index of
    the lanes' images (N, L), as `fetch` changes it, and the numbers drawn for them side by side
    (N, L (Z + 3 K))."""
    config, device = group[0].config, group[0].sums.device
    N, size = config.batch_size, noise_size(config.augment, config.latent_size)
    rngs = [rng for state in group for rng in state.rngs]
    batches = len(images) // N
    orders = [torch.randperm(len(images), generator=rng, device=device) for rng in rngs]
    indices = torch.stack(orders, 1)[: batches * N].unflatten(0, (batches, N))  # (B, N, L)
    for block in torch.split(indices, NOISE_BATCHES):
        shape = (len(block), N, size)
        draws = [torch.randn(shape, generator=rng, device=device) for rng in rngs]
        drawn = torch.stack(draws, 2).flatten(2)  # (B, N, L (Z + 3 K))
        yield from zip(fetch(block) if fetch else block, drawn, strict=True)


def make_update(
    group: Sequence[State], images: Tensor, labels: Tensor | None = None, *, graphed: bool = True
) -> Update:
    """The update of a group on its images (all, C, S, S), of which conditional nets need the labels
    (all,): as a CUDA graph if `graphed`, where that can be."""
    update = partial(update_group, group, images, labels=labels)
    config = group[0].config
    # a fused optimizer skips an update by itself where gradients overflow; else the scaler asks
    can = images.is_cuda and (config.precision != "float16" or config.optimizer == "adam")
    return Graphed(update) if can and graphed else update


def update_group(
    group: Sequence[State],
    images: Tensor,
    index: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
) -> None:
    """One update of each state, on the images at its lanes' index (N, L) and with the numbers drawn
    for them (N, L (Z + 3 K))."""
    sizes = [len(state.lanes) for state in group]
    own = noise.shape[1] // sum(sizes)
    indices, noises = index.split(sizes, 1), noise.split([size * own for size in sizes], 1)
    calls = [
        partial(update_both, state, images, at, drawn, labels)
        for state, at, drawn in zip(group, indices, noises, strict=True)
    ]
    if len(calls) == 1:
        calls[0]()
    else:
        side_by_side(calls, images.device)


def update_both(
    state: State, images: Tensor, index: Tensor, drawn: Tensor, labels: Tensor | None = None
) -> None:
    """One update of D and one of G, on the images at index (N, L) and with the numbers drawn for
    them (N, L (Z + 3 K)); never waits for the device, but for float16's scalers with RMSprop."""
    G, D, config, device = state.generator, state.discriminator, state.config, images.device
    loss, augment = LOSSES[config.loss], AUGMENTATIONS[config.augment].apply
    noise, numbers = split_noise(drawn, config.augment, config.latent_size)
    asked = None
    if config.label_size:
        assert labels is not None
        asked = one_hot(labels[index], config.label_size)  # (N, L, K)
    batch = images[index].flatten(1, 2).contiguous(memory_format=state.layout)
    real = augment(to_unit_range(batch), numbers[0])  # (N, L C, S, S)
    with precision.autocast(config.precision, device):
        fake = G(noise, asked)  # (N, L C, S, S)
    seen = augment(fake.detach(), numbers[1])
    if config.penalty:
        real, seen = real.requires_grad_(), seen.requires_grad_()
    with precision.autocast(config.precision, device):
        real_logits, fake_logits = D(real, asked), D(seen, asked)  # (N, L)
    loss_d = loss.discriminator(real_logits, fake_logits)  # (L,)
    if config.label_smoothing:
        loss_d = loss_d + smoothing(real_logits, config.label_smoothing)
    if config.penalty:
        penalties = gradient_penalty(real_logits, real) + gradient_penalty(fake_logits, seen)
        loss_d = loss_d + config.penalty / 2 * penalties
    state.discriminator_optimizers.descend(loss_d)

    D.requires_grad_(False)  # G's update needs the gradient through D, not D's own
    with precision.autocast(config.precision, device):
        logits = D(augment(fake, numbers[2]), asked)  # (N, L)
        opposite = D(real.detach(), asked) if loss.paired else real_logits
    loss_g = loss.generator(opposite, logits)  # (L,)
    state.generator_optimizers.descend(loss_g)
    D.requires_grad_(True)

    with torch.no_grad():
        if state.average is not None:
            # a short memory at first, or the initial weights would linger
            decay = ((1 + state.updates) / (10 + state.updates)).clamp(max=config.ema_decay)
            update_average(state.average, G, decay)
        state.updates += 1
        if state.power_averages is not None:
            for name, average in state.power_averages.items():
                move_towards(average, G, share(state.updates, EXPONENTS[name]))
        d_real, d_fake = (one.float().sigmoid().mean(0) for one in (real_logits, fake_logits))
        state.sums += torch.stack([loss_g, loss_d, d_real, d_fake])
