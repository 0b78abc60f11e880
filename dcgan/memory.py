"""Peak memory of a run: what the allocator saw on CUDA, else the resident set of the process.

A private member of torch: `_C._cuda_clearCublasWorkspaces`, since nothing else frees them.
"""

import contextlib
import gc
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dcgan.config import TrainConfig

CUDA_CONTEXT_BYTES = 600 * 2**20  # what a process takes of a GPU beside its tensors, about
PROC = Path("/proc/self")
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
)
"""What errors say that are no `torch.OutOfMemoryError`: of the CPU, of CUDA, of its libraries."""


def reset_peak(device: torch.device) -> None:
    """Starts the peak afresh, on Linux and CUDA; elsewhere it includes earlier runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROC.exists():
        with contextlib.suppress(OSError):  # some containers forbid it
            (PROC / "clear_refs").write_text("5")  # 5 resets the peak resident set; see proc(5)


def release(device: torch.device) -> None:
    """Frees what an earlier run in this process has left on CUDA: a reused worker's trials would
    else take more and more."""
    if device.type == "cuda":
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device) -> int:
    """The peak memory since `reset_peak`, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = PROC / "status"
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak:
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others kilobytes
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_bytes(device: torch.device) -> int:
    """The peak of what this process takes of the device's memory, or of the machine's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT_BYTES
    return peak_bytes(device)


def limit(share: float) -> None:
    """Keeps this process to a share of its GPU: one that takes too much fails alone."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    context = CUDA_CONTEXT_BYTES / total
    torch.cuda.set_per_process_memory_fraction(max(share / 2, share - context))


@contextlib.contextmanager
def explained(lanes: Sequence[TrainConfig], device: torch.device) -> Iterator[None]:
    """Turns running out of memory into a MemoryError that names the settings to change."""
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error))
        if not known:
            raise
        config = lanes[0]
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        several = f" and {len(lanes)} lanes" if len(lanes) > 1 else ""
        asked = re.search(r"[Tt]ried to (allocate [\d.]+ \w+)", str(error))
        tried = f"; it tried to {asked[1]}" if asked else ""
        raise MemoryError(
            f"out of memory on {where} with batch_size {config.batch_size}, "
            f"generator_width {config.generator_width}, "
            f"discriminator_width {config.discriminator_width}{several}: "
            f"make one of them smaller, or, in a search, give each trial more of a GPU "
            f"(--gpus-per-trial, or auto to have it measured){tried}"
        ) from error
