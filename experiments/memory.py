"""Peak memory of a training, on a GPU or a CPU."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def restart_peak(device: torch.device) -> None:
    """Reset the peak, so that runs of one worker process do not share it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone can; elsewhere the peak is the process's own
            (_PROCESS / "clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory held at once since `restart_peak`: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
