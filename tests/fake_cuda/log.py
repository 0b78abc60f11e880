"""The log of the fake runtime, with convolutions, of which cuDNN builds graphs of its own."""

import ctypes
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

RUNTIME = ctypes.CDLL(os.environ["FAKE_CUDA"])
LIBRARY = torch.library.Library("aten", "IMPL", "CUDA")


def reset() -> None:
    """Forgets all entries."""
    RUNTIME.fake_reset()


def counts() -> dict[str, int]:
    """How often each entry was logged; `C ` begins what was captured, `- ` what was not."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        RUNTIME.fake_counts(str(file).encode())
        lines = file.read_text(errors="replace").splitlines()
    return {line.split("\t", 1)[1]: int(line.split("\t", 1)[0]) for line in lines}


def layout(x: Tensor, w: Tensor) -> torch.memory_format:
    formats = suggest_memory_format(x), suggest_memory_format(w)
    return torch.channels_last if torch.channels_last in formats else torch.contiguous_format


def work(kind: str, *, tf32: bool | None = None) -> None:
    switch = torch.backends.cudnn.allow_tf32 if tf32 is None else tf32
    RUNTIME.fake_work(f"conv {kind} allow_tf32={switch}".encode())


def result(
    x: Tensor, w: Tensor, arguments: Sequence[Sequence[int]], transposed: bool, groups: int
) -> Tensor:
    """What a convolution would return, not written to."""
    stride, padding, dilation, output_padding = arguments
    shape = torch.ops.aten.convolution.default(
        x.to("meta"), w.to("meta"), None, stride, padding, dilation, transposed, output_padding,
        groups,
    ).shape  # fmt: skip
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x, w))


def forward(
    x: Tensor, w: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    groups: int, benchmark: bool, deterministic: bool, allow_tf32: bool,
) -> Tensor:  # fmt: skip
    work("forward", tf32=allow_tf32)
    return result(x, w, (stride, padding, dilation, [0, 0]), False, groups)


def forward_transposed(
    x: Tensor, w: Tensor, padding: Sequence[int], output_padding: Sequence[int],
    stride: Sequence[int], dilation: Sequence[int], groups: int, benchmark: bool,
    deterministic: bool, allow_tf32: bool,
) -> Tensor:  # fmt: skip
    work("forward transposed", tf32=allow_tf32)
    return result(x, w, (stride, padding, dilation, output_padding), True, groups)


def backward(
    gradient: Tensor, x: Tensor, w: Tensor, bias_sizes: Sequence[int] | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    to_data, to_weights, to_bias = mask
    gradients: list[Tensor | None] = [None, None, None]
    for number, (wanted, like) in enumerate(((to_data, x), (to_weights, w))):
        if wanted:
            work("backward")
            gradients[number] = torch.empty_like(like, memory_format=layout(x, w))
    if to_bias:
        gradients[2] = gradient.sum((0, 2, 3))
    return tuple(gradients)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that kernels are overridden
    LIBRARY.impl("cudnn_convolution", forward)
    LIBRARY.impl("cudnn_convolution_transpose", forward_transposed)
    LIBRARY.impl("convolution_backward", backward)
