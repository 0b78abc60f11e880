"""How lanes run side by side: the one room that decides. All ways compute the same numbers but for
rounding; which is fastest depends on the device (`python -m dcgan.bench --ways`).
"""

from typing import NamedTuple

import torch


class Way(NamedTuple):
    """One way to run lanes."""

    layout: torch.memory_format = torch.channels_last
    """Of maps and of convolutions' weights."""
    patches: bool = False
    """Convolutions of an image's few channels are products of its patches, in one batch."""
    apart: bool = False
    """Each lane is a network of its own; their updates are parallel branches of one CUDA graph."""


WAYS = {
    "grouped": Way(),
    "grouped-nchw": Way(layout=torch.contiguous_format),
    "patches": Way(patches=True),
    "branches": Way(apart=True),
}


def default_way(device: torch.device) -> str:
    """The name of the way that lanes run on a device, where nobody asks for another.

    On CUDA it is the one that has the kernels of a single net: grouped convolutions are reported
    slow there (pytorch issues 34977, 70954, 73764). To be replaced by what `dcgan.bench` measures.
    """
    return "branches" if device.type == "cuda" else "grouped"
