"""What the benchmarks share: the clock, and how a result is written down."""

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ddetr_lite.writing import write_json


def heading(command: str, device: torch.device) -> dict[str, Any]:
    """What has to stand above a result, so that anyone can repeat it."""
    return {"command": command, "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine(device)}


def write_result(result: dict[str, Any], out: Path) -> Path:
    """`out` is a name without an ending. Returns the path of the JSON file."""
    path = out.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result, indent=1)
    return path


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Chip, and the versions of everything that decides about speed."""
    known: dict[str, str | int] = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        known["chip"] = torch.cuda.get_device_name(device)
        known["cuda"] = torch.version.cuda or "?"
        known["tf32"] = (
            f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}"
        )
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


def seconds(work: Callable[[], object], device: torch.device, queued: bool = False) -> float:
    """How long `work` takes, on CUDA by the GPU's own clock.

    queued: keep a GPU busy until all of `work` waits for it, so that what is measured is the GPU, and not how fast the CPU
    starts operations, which takes longer than a small one runs. For work that never waits for the GPU itself.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if queued:
        torch.cuda._sleep(20_000_000)  # cycles: about ten milliseconds
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_bytes(work: Callable[[], object]) -> int:
    """GPU memory that `work` needs beyond what is held when it begins."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 256 MB reads and writes here: the best of several."""
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(6))
    return 2 * source.numel() * source.element_size() / best
