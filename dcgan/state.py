"""All that changes while lanes train: made new, written into a checkpoint, and restored from one.

Shapes: L lanes of one network.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan import checkpoint
from dcgan.config import TrainConfig
from dcgan.lanes import LaneOptimizers, join_lanes, split_lane
from dcgan.models import build
from dcgan.power import KEPT
from dcgan.ways import WAYS, Way, default_way

LOOP_STREAM = 1  # of order and noise; stream 0, the seed itself, draws the weights
MEANS = ("generator_loss", "discriminator_loss", "d_real", "d_fake")
CPU_WIDTH = 32  # channels of all lanes that a CPU trains as one network

NETS = ("generator", "discriminator", "average", "power_averages")
OPTIMIZERS = ("generator_optimizers", "discriminator_optimizers")


@dataclass(kw_only=True, slots=True)
class State:
    """All that changes while some lanes train as one network (see `dcgan.lanes`)."""

    lanes: Sequence[TrainConfig]
    layout: torch.memory_format  # of images and maps
    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module | None  # the averaged copy of G, if the config asks for one
    power_averages: nn.ModuleDict | None  # of G, by name (`dcgan.power.KEPT`), if asked for
    generator_optimizers: LaneOptimizers
    discriminator_optimizers: LaneOptimizers
    rngs: list[torch.Generator]  # one of each lane, for its order and noise
    updates: Tensor  # their number so far, on the device
    sums: Tensor  # (4, L), of `MEANS` over an epoch's batches, on the device: reading waits for it

    @property
    def config(self) -> TrainConfig:
        """What all lanes agree on, but for their `LANE_FIELDS`."""
        return self.lanes[0]


def new_states(
    lanes: Sequence[TrainConfig], device: torch.device, way: str | None = None
) -> list[State]:
    """The states of all lanes before the first epoch, one a network, as a way of `WAYS` makes them
    (default: the device's). On a CPU a network has as many lanes as the cache holds: with more it
    trains fewer images a second than one lane at a time (docs/log.md)."""
    chosen = WAYS[way or default_way(device)]
    most = 1 if chosen.apart else len(lanes)
    if device.type != "cuda":
        widest = max(lanes[0].generator_width, lanes[0].discriminator_width)
        most = min(most, max(1, CPU_WIDTH // widest))
    return [new_state(lanes[i : i + most], device, chosen) for i in range(0, len(lanes), most)]


def new_state(
    lanes: Sequence[TrainConfig], device: torch.device, way: Way = WAYS["grouped"]
) -> State:
    """The state of lanes that train as one network."""
    G, D = (to_device(net, device, way.layout) for net in build(lanes, way))
    rates_g = [lane.generator_lr for lane in lanes]
    rates_d = [lane.discriminator_lr for lane in lanes]
    return State(
        lanes=lanes,
        layout=way.layout,
        generator=G,
        discriminator=D,
        average=copy_of(G) if lanes[0].ema_decay else None,
        power_averages=(
            nn.ModuleDict({name: copy_of(G) for name in KEPT}) if lanes[0].snapshots_every else None
        ),
        generator_optimizers=LaneOptimizers(G, lanes, rates_g),
        discriminator_optimizers=LaneOptimizers(D, lanes, rates_d),
        rngs=[random_stream(lane.seed, device) for lane in lanes],
        updates=torch.zeros((), dtype=torch.int64, device=device),
        sums=torch.zeros(len(MEANS), len(lanes), device=device),
    )


def copy_of(net: nn.Module) -> nn.Module:
    """A net of the same weights that no optimizer changes."""
    return copy.deepcopy(net).requires_grad_(False)


def to_device(
    net: nn.Module, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> nn.Module:
    """The net, usually channels last: for tensor cores, and a third faster on a CPU
    (docs/log.md)."""
    net.to(device, memory_format=layout)  # type: ignore[call-overload]
    return net


def random_stream(seed: int, device: torch.device) -> torch.Generator:
    """The stream of order and noise of a seed's lane."""
    drawn = np.random.SeedSequence([seed, LOOP_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(drawn >> np.uint64(1)))


def generator_to_evaluate(state: State) -> nn.Module:
    """The G of all lanes that is evaluated: the averaged one, if there is one."""
    return state.average or state.generator


def weights_to_evaluate(state: State, lane: int) -> dict[str, Tensor]:
    """A lane's own weights of the G that is evaluated."""
    return split_lane(generator_to_evaluate(state).state_dict(), lane, len(state.lanes))


def contents(state: State) -> dict[str, Any]:
    """A state as a checkpoint holds it."""
    present = [name for name in (*NETS, *OPTIMIZERS) if getattr(state, name) is not None]
    return {
        **{name: getattr(state, name).state_dict() for name in present},
        "rngs": [rng.get_state() for rng in state.rngs],
        "updates": int(state.updates),
    }


def regroup(saved: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Contents of networks of `sizes` lanes, made of others' of the same lanes: how many lanes make
    a network depends on the device and the version."""
    lanes = []
    for content in saved:
        count = len(content["rngs"])
        for lane in range(count):
            own = dict(content)
            for name in [net for net in NETS if net in content]:
                own[name] = split_lane(content[name], lane, count)
            for name in (*OPTIMIZERS, "rngs"):
                own[name] = content[name][lane : lane + 1]
            lanes.append(own)
    regrouped = []
    for size in sizes:
        group, lanes = lanes[:size], lanes[size:]
        joined = dict(group[0])
        for name in [net for net in NETS if net in joined]:
            joined[name] = join_lanes([own[name] for own in group])
        for name in (*OPTIMIZERS, "rngs"):
            joined[name] = [one for own in group for one in own[name]]
        regrouped.append(joined)
    return regrouped


def restore(states: list[State], lanes: Sequence[TrainConfig], path: Path | str) -> dict[str, Any]:
    """Brings new states to where a checkpoint was taken; returns the checkpoint."""
    saved = checkpoint.load(path)
    checkpoint.check_same_run(path, saved, lanes)
    device = states[0].sums.device.type
    if device != saved["device"]:
        raise ValueError(
            f"{path} was trained on {saved['device']}, "
            f"and its random streams cannot go on on {device}; train anew"
        )
    regrouped = regroup(saved["states"], [len(state.lanes) for state in states])
    for state, content in zip(states, regrouped, strict=True):
        for name in (*NETS, *OPTIMIZERS):
            if name in content:
                getattr(state, name).load_state_dict(content[name])
        for rng, drawn in zip(state.rngs, content["rngs"], strict=True):
            rng.set_state(drawn)
        state.updates.fill_(content["updates"])
    return saved
