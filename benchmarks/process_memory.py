"""The memory of this process, as the operating system counts it, in bytes."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int:
    """Memory held now; outside Linux the peak so far."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory held since `forget_peak`; outside Linux, since the process began."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Give free memory back to the system and, on Linux, start the peak anew."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
