"""Numeric precision: what each device can do, and how a step is run in it.

`float32` computes as written, `tf32` lets CUDA's tensor cores round float32 inputs of products to
10 bits of mantissa, `bfloat16` and `float16` run the nets under autocast with float32 weights
(Micikevicius et al. 2018, arXiv 1710.03740).
"""

import contextlib
import functools
import timeit
import warnings
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from dcgan.config import PRECISIONS

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SLOW = 3.0  # times float32: bfloat16 units measure about 1, emulation 10 to 100


def default_device() -> torch.device:
    """CUDA's current device, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def unsupported(precision: str, device: torch.device) -> str | None:
    """Why `device` cannot train in `precision`, or None where it can."""
    if precision == "float32" or (precision == "bfloat16" and device.type == "cpu"):
        return None
    if device.type != "cuda":
        return (
            f"precision {precision} needs a CUDA GPU, and this run is on the {device.type}; "
            f"use float32"
        )
    if precision == "float16" or torch.cuda.get_device_capability(device) >= (8, 0):
        return None
    return (
        f"precision {precision} needs a GPU of compute capability 8.0 (Ampere) or later, "
        f"not {torch.cuda.get_device_name(device)}; use float16"
    )


@functools.cache
def cpu_bfloat16_slowdown() -> float:
    """The time of a convolution in bfloat16 over the same in float32 on this CPU, on one thread: on
    a busy machine several would measure how long they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _convolution_seconds(torch.bfloat16) / _convolution_seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _convolution_seconds(dtype: torch.dtype) -> float:
    images, kernel = torch.ones(16, 32, 14, 14, dtype=dtype), torch.ones(64, 32, 4, 4, dtype=dtype)
    times = timeit.repeat(lambda: F.conv2d(images, kernel, stride=2), number=1, repeat=11)
    return min(times[1:])  # the first warms up


def absurdly_slow(precision: str, device: torch.device) -> str | None:
    """Why `precision` is pointless on `device` though it works, or None."""
    if precision != "bfloat16" or device.type != "cpu":
        return None
    if (slowdown := cpu_bfloat16_slowdown()) <= SLOW:
        return None
    return (
        f"precision bfloat16 is about {slowdown:.0f} times slower than float32 on this CPU, "
        f"which has no units for it"
    )


def usable(device: torch.device) -> tuple[str, ...]:
    """The precisions worth a search on `device`."""
    works = [name for name in PRECISIONS if not unsupported(name, device)]
    return tuple(name for name in works if not absurdly_slow(name, device))


def set_up(precision: str, device: torch.device) -> None:
    """Sets the process-wide switches that `precision` needs; ValueError if `device` lacks it."""
    if reason := unsupported(precision, device):
        raise ValueError(reason)
    if reason := absurdly_slow(precision, device):
        warnings.warn(f"{reason}; use float32", stacklevel=2)
    switch(precision)


def switch(precision: str) -> None:
    """Sets the process-wide switches that `precision` needs."""
    _allow_tf32(precision == "tf32", precision == "tf32")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Products without TF32's rounding: metrics must not depend on a run's precision."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow_tf32(False, False)
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(products: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of one forward pass; does nothing for float32 and tf32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler for one optimizer; does nothing but for float16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
