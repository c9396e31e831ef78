"""Main memory: how much is free, and how much a piece of work takes.

Linux ends a process that takes more than there is without a word, so it has to be asked before.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

LIMITS = (  # a container's limit, what it uses, its statistics, and what in them could be given back at once
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What this process could still take, of the machine or of its container; None where the system does not say it."""
    available = _field(proc / "meminfo", "MemAvailable:")
    if available is None:
        return None
    free = 1024 * available
    for limit, used, statistics, cached in LIMITS:
        try:
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
        except (OSError, ValueError):  # no container of this kind, or one without a limit ("max")
            continue
        free = min(free, left + (_field(groups / statistics, cached) or 0))
    return max(free, 0)


def taken_by(work: Callable[[], object], proc: Path = Path("/proc/self")) -> int | None:
    """The bytes by which this process grew at most while it worked; None where the system does not say it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what lies there unused would be taken first, and not be seen
        (proc / "clear_refs").write_text("5")  # the high-water mark starts anew
    except (AttributeError, OSError):  # another C library, or no Linux
        return None
    before = _field(proc / "status", "VmRSS:")
    work()
    most = _field(proc / "status", "VmHWM:")
    return None if before is None or most is None else 1024 * max(most - before, 0)


def _field(path: Path, name: str) -> int | None:
    """The number behind a name at the start of a line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), None)
