"""What a measurement was made on."""

import platform
import time
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Chip, and the versions of everything that decides about speed."""
    known: dict[str, str | int] = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        known["chip"] = torch.cuda.get_device_name(device)
        known["cuda"] = torch.version.cuda or "?"
        try:
            import triton

            known["triton"] = triton.__version__
        except ImportError:
            known["triton"] = "none"
    else:
        known["chip"], known["threads"] = _processor(), torch.get_num_threads()
    return known


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 256 MB reads and writes here: the best of several."""
    source = torch.ones(64 * 2**20, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best
