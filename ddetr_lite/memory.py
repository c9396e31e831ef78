"""Main memory: how much is free, and how much a piece of work takes.

Linux ends a process that takes more than there is without a word, so it has to be asked before.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

LIMITS = (  # a container's limit, what it uses, and in its statistics the files' pages, which can be given back
    ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)
"""Of both versions of Linux's control groups: the folder below theirs, and the names of files and fields."""


def free_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What this process could still take, of the machine or of its container; None where the system does not say it."""
    available = _field(proc / "meminfo", "MemAvailable:")
    if available is None:
        return None
    free = 1024 * available
    for kind, limit, used, files in LIMITS:
        for folder in _folders(groups / kind, proc / "self" / "cgroup", kind):
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
            except (OSError, ValueError):  # no container of this kind, or one without a limit ("max")
                continue
            free = min(free, left + sum(_field(folder / "memory.stat", name) or 0 for name in files))
    return max(free, 0)


def _folders(root: Path, own: Path, kind: str) -> list[Path]:
    """Those of this process's group and of all that it is in, each of which may have a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return [root]
    path = next((name for _, kinds, name in lines if kind in kinds.split(",")), "/").lstrip("/")
    below = [root / path, *(root / path).parents]
    return [folder for folder in below if folder == root or root in folder.parents]


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
