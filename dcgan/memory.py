"""Peak memory of a run: what the allocator saw on CUDA, the resident set of the process elsewhere."""

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

PROC = Path("/proc/self")


def reset_peak(device: torch.device) -> None:
    """Starts the peak afresh, so that a reused process does not report an earlier run's. Only Linux and CUDA can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROC.exists():
        with contextlib.suppress(OSError):  # some containers forbid it; the peak then includes the process's earlier runs
            (PROC / "clear_refs").write_text("5")  # 5 resets the peak resident set; see proc(5)


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (PROC / "status").exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", (PROC / "status").read_text())):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
