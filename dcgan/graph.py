"""CUDA graphs: a training step of some hundred small kernels, launched as one.

A step on 28 x 28 digits takes a GPU less time than Python takes to launch it. What is captured may
not wait for the device, draw from a random stream, or change shape.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# calls as written, in which libraries choose their kernels and optimizers make their state
WARM_UP = 3


@functools.cache
def side_stream(device: torch.device, number: int = 0) -> torch.cuda.Stream:
    """The stream of all warm-ups and captures, and those of their branches by number: libraries and
    the allocator keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


def side_by_side(calls: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Makes each call on a stream of its own: in a capture they become parallel branches."""
    here = torch.cuda.current_stream(device)
    streams = [side_stream(device, 1 + number) for number in range(len(calls))]
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            call()
    for stream in streams:
        here.wait_stream(stream)


class Graphed:
    """A function of tensors that returns nothing, called with the same shapes each time: first as
    written, on another stream as capturing requires; then captured, and each call copies its
    arguments into the captured ones and replays."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.calls = 0
        self.arguments: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> None:
        self.calls += 1
        if self.calls <= WARM_UP:
            stream = side_stream(arguments[0].device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.function(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self.graph is None:
            self.arguments = [argument.clone() for argument in arguments]
            self.graph = torch.cuda.CUDAGraph()
            stream = side_stream(arguments[0].device)
            with torch.cuda.graph(self.graph, stream=stream):  # records and does not run
                self.function(*self.arguments)
        for captured, now in zip(self.arguments, arguments, strict=True):
            captured.copy_(now)
        self.graph.replay()
