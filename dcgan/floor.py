"""The floor under an update's time: what it must compute and move, over what the device can compute and move.

`python -m dcgan.floor` prints it for the baseline, at each precision the device has. No version of the loop runs much faster.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dcgan import cli, precision
from dcgan.config import TrainConfig
from dcgan.evaluate import device_name
from dcgan.loop import new_state, update_both


class Work(NamedTuple):
    """What one update of both nets takes."""

    operations: int
    """Additions and multiplications of convolutions and linear layers."""
    bytes: int
    """Weights and moments read and written, batch read, and what backward needs written and read; each once."""


class Ceilings(NamedTuple):
    """What a device was measured to do."""

    operations: float
    """A second, in a large matrix product."""
    bytes: float
    """A second, read and written, in a large copy."""


def work(config: TrainConfig) -> Work:
    """Counts one update of the config, as the loop does it, in float32 on the CPU."""
    one = dataclasses.replace(config, replicas=1, precision="float32")
    state = new_state(one, torch.device("cpu"))
    N, S, C = config.batch_size, config.image_size, config.channels
    images = torch.zeros(N, C, S, S, dtype=torch.uint8)
    noise = torch.randn(N, config.latent_size, generator=torch.Generator().manual_seed(0))
    weights = [w for net in (state.generator, state.discriminator) for w in net.parameters()]
    owned = {w.data_ptr() for w in weights}
    kept: dict[int, Tensor] = {}  # held to the end, or another would lie where it lay

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned:
            kept.setdefault(tensor.data_ptr(), tensor)
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        update_both(state, images, torch.arange(N)[:, None], noise)
    moments = 2 if config.optimizer == "adam" else 1
    moved = (
        2 * (1 + moments) * sum(w.nbytes for w in weights)
        + images.nbytes
        + noise.nbytes
        + 2 * sum(tensor.nbytes for tensor in kept.values())
    )
    return Work(config.replicas * counter.get_total_flops(), config.replicas * moved)


def ceilings(name: str, device: torch.device) -> Ceilings:
    """Measures a device in a precision: the best of several runs."""
    precision.set_up(name, device)
    side, size = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 24)
    rng = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, side, side, generator=rng, device=device).to(precision.AUTOCAST_DTYPES.get(name, torch.float32))
    source = torch.randn(size, generator=rng, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        operations=2 * side**3 / _fastest(lambda: torch.mm(a, b), device),
        bytes=2 * source.nbytes / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor_seconds(work: Work, ceilings: Ceilings) -> float:
    """Seconds that an update takes at least."""
    return max(work.operations / ceilings.operations, work.bytes / ceilings.bytes)


def main() -> None:
    cli.Parser(prog="python -m dcgan.floor", description=__doc__).parse_args()
    device, config = precision.default_device(), TrainConfig()
    need = work(config)
    each = need.operations / config.batch_size
    print(
        f"baseline, width {config.generator_width}, batch {config.batch_size}: {need.operations / 1e9:.2f} GFLOP and "
        f"{need.bytes / 1e6:.0f} MB an update, {each / 1e6:.0f} MFLOP an image, {each * 60_000 / 1e12:.1f} TFLOP for 60,000"
    )
    for name in precision.usable(device):
        can = ceilings(name, device)
        floor = floor_seconds(need, can)
        print(
            f"{name} on {device_name(device)}, {torch.get_num_threads()} CPU threads: {can.operations / 1e12:.2f} TFLOP/s, "
            f"{can.bytes / 1e9:.0f} GB/s: at least {floor * 1e3:.3f} ms an update, at most "
            f"{config.batch_size / floor:,.0f} images/s"
        )


if __name__ == "__main__":
    main()
