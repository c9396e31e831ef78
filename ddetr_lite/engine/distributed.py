"""Several processes that train one model: `torchrun` starts them, on one machine or on many.

A process knows its place from the environment that torchrun sets. On GPUs they talk by NCCL, on CPUs by gloo.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LONG = timedelta(hours=12)  # other processes wait while one decodes a data set, or computes AP


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`; its device; how often torchrun has started all of them anew."""

    device: torch.device
    rank: int = 0
    size: int = 1
    restarts: int = 0
    patient: Any = None
    """The group in which objects are exchanged and processes wait for one another: by gloo, and for as long as it takes."""

    @property
    def joined(self) -> bool:
        """Whether torchrun started this process; it may have started one alone, which then goes the way of many."""
        return self.patient is not None

    @property
    def main(self) -> bool:
        """Whether this process writes the log, the checkpoints and the terminal."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each has."""
        if self.joined:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process what the first one has in these tensors."""
        if self.joined:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """What each process gave (picklable), in the order of ranks, in every process."""
        if not self.joined:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.patient)
        return gathered

    def now(self) -> float:
        """Seconds on a clock, when all that was started on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.joined:
            dist.barrier(group=self.patient)


@contextmanager
def world(device: str) -> Iterator[World]:
    """Take this process's place among those that torchrun started; alone, where it did not.

    device: "auto" or a device's name. Raises ValueError for a device that is not there, too few GPUs, or processes that
    something else than torchrun has started.
    """
    if "LOCAL_RANK" not in os.environ:
        if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ValueError(f"WORLD_SIZE={size}, but LOCAL_RANK is not set: start the processes with torchrun")
        yield World(pick_device(device), restarts=_restarts())
        return
    place = _own_device(device, int(os.environ["LOCAL_RANK"]))
    joined = not dist.is_initialized()
    if joined:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # torchrun keeps one address book for all its attempts: with the same names in it, processes that were started
            # anew would now and then call those that died. (Several machines do not agree on the number of the attempt.)
            store = dist.PrefixStore(f"attempt {_restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    patient = dist.new_group(backend="gloo", timeout=LONG)
    alone = World(place, dist.get_rank(), dist.get_world_size(), patient=patient)
    yield replace(alone, restarts=max(alone.gather(_restarts())))
    # Not where an error leaves: the others may be waiting for this process, and it would wait for them.
    if joined:
        dist.destroy_process_group()


def _own_device(device: str, local: int) -> torch.device:
    """A GPU of its own for each process of a machine; the CPU for all."""
    if device.startswith("cuda:") and os.environ.get("LOCAL_WORLD_SIZE") != "1":
        raise ValueError(
            f"device={device!r} would be one GPU for all processes: leave --device out, so that each takes its own, and choose "
            "among the machine's GPUs with CUDA_VISIBLE_DEVICES"
        )
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return pick_device(device)
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun started {local + 1} processes or more here, but there are {torch.cuda.device_count()} GPUs: set "
            "--nproc-per-node to their number"
        )
    torch.cuda.set_device(local)  # before anything is put on a GPU
    return torch.device("cuda", local)


def is_main() -> bool:
    """Whether this process speaks for all, also before and after they have joined."""
    return os.environ.get("RANK", "0") == "0"


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def pick_device(name: str) -> torch.device:
    """`auto` → the first GPU or the CPU; a GPU with a number becomes the current one. Raises ValueError for a device that
    is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("tensors without numbers")
        torch.zeros(1, device=device)
    except Exception as error:
        raise ValueError(f"device {name!r} cannot be used here: choose 'auto' or 'cpu'") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # libraries that do not look where a tensor lies take the current one
    return device


@contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Within this context, where `wanted`, torch refuses operations that have no deterministic form."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
