"""A GPU that is none: tensors on "cuda" whose numbers lie in ordinary memory, for machines without a chip.

Within `pretend_gpu()` whatever asks for the device "cuda" gets tensors that say they are there. Each operation is computed on a
CPU, so results are real; but operands that lie on different devices are an error, as they are on a chip, and what would make
the program wait for the chip is written down. What it cannot show: memory, speed, autocast, and kernels (Triton's interpreter
runs ours).

Inside of torch these tensors are of its device "meta", which has no memory either, and whose gradients autograd computes in the
thread that asks for them; to Python code they say "cuda:0".
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

META, CPU, GPU = torch.device("meta", 0), torch.device("cpu"), torch.device("cuda", 0)
PACKAGE = Path(__file__).resolve().parent.parent / "ddetr_lite"

COPYING = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
LOOKING = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "repeat_interleave", "nms",
)  # fmt: skip
"""Operations that read numbers before they know what they return."""


@dataclass(frozen=True)
class Wait:
    """A moment at which a program halts until the GPU has done all it was told: the operation, and the line that asked."""

    operation: str
    where: str


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; `here` are its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> "OnGpu":
        return Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=META
        )

    def __init__(self, here: Tensor):
        self.here = here

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # in a file it is an ordinary tensor, as one read with map_location is

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(func, args, kwargs or {}, lambda operation: None)


def compute(func: Any, args: Any, kwargs: dict[str, Any], wait: Callable[[str], None]) -> Any:
    """Run an operation of torch. Raises RuntimeError where its operands are on different devices."""
    leaves = tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnGpu)]
    here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnGpu)]
    if not there and kwargs.get("device") != META:
        return func(*args, **kwargs)
    if any(x.device.type == "meta" for x in here):
        raise RuntimeError(f"{func} got a tensor that torch itself made on the GPU, as from a list of indices: a wait")
    if _waits(func, args, kwargs, bool(here)):
        wait(str(func))
    name = func.overloadpacket.__name__
    places = tree_leaves(args[1]) if name in INDEXING else []
    strangers = [x for x in here if x.dim() and not any(x is place for place in places)]
    if strangers and name not in COPYING:
        shapes = [tuple(x.shape) for x in strangers]
        raise RuntimeError(f"{func} got tensors on the CPU and on the GPU: those on the CPU have shapes {shapes}")
    own = tree_map(lambda x: x.here if isinstance(x, OnGpu) else CPU if x == META else x, (args, kwargs))
    result = func(*own[0], **own[1])
    to_cpu = name == "_to_copy" and kwargs.get("device") not in (None, META)
    if not to_cpu and not (name == "copy_" and not isinstance(args[0], OnGpu)):
        result = tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def _waits(func: Any, args: Any, kwargs: dict[str, Any], some_here: bool) -> bool:
    """Whether an operation halts the program on a chip. Copies to it need not, where that is said."""
    name, at_once = func.overloadpacket.__name__, kwargs.get("non_blocking", False)
    if name == "copy_":
        at_once = args[2] if len(args) > 2 else at_once
        return some_here and (isinstance(args[1], OnGpu) or not at_once)
    if name == "_to_copy":
        moves = kwargs.get("device") is not None and (kwargs["device"] == META) == some_here
        return moves and not (some_here and at_once)
    if name in INDEXING:
        places = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
        return any(x.dtype in (torch.bool, torch.uint8) or not isinstance(x, OnGpu) for x in places)
    return name in LOOKING


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[Wait]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {}, self.wait)

    def wait(self, operation: str) -> None:
        lines = [f for f in traceback.extract_stack() if PACKAGE in Path(f.filename).parents]
        where = f"{Path(lines[-1].filename).relative_to(PACKAGE)}: {lines[-1].line}" if lines else "the test itself"
        self.waits.append(Wait(operation, where))


class _Names(TorchFunctionMode):
    """Between Python, which says "cuda", and torch, which is told "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__" and isinstance(args[0], OnGpu):
            if func in (Tensor.is_cuda.__get__, Tensor.is_meta.__get__):  # type: ignore[attr-defined]
                return func == Tensor.is_cuda.__get__  # type: ignore[attr-defined]
            result = func(*args)
            return GPU if isinstance(result, torch.device) and result == META else result
        kwargs = dict(kwargs or {})
        if name == "cuda":
            func, args, kwargs["device"] = Tensor.to, args[:1], META
        args = tuple(_as_meta(x) if isinstance(x, torch.device) or name == "to" else x for x in args)
        if "device" in kwargs:
            kwargs["device"] = _as_meta(kwargs["device"])
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") == META:
            del kwargs["device"]
            return func(*args, **kwargs).to(META)
        if name == "tolist" and isinstance(args[0], OnGpu):
            return args[0].cpu().tolist()
        if name == "new_tensor" and isinstance(args[0], OnGpu):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(META)
        return func(*args, **kwargs)


def _as_meta(device: Any) -> Any:
    """What torch is told instead of "cuda"; other arguments as they are."""
    is_gpu = isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
    return META if is_gpu else device


class _Event:
    """A moment on the clock."""

    def record(self) -> None:
        self.moment = time.perf_counter()

    def elapsed_time(self, later: "_Event") -> float:
        return (later.moment - self.moment) * 1e3


ANSWERS = {
    "get_device_name": "a pretended GPU",
    "get_device_properties": SimpleNamespace(total_memory=10**9, multi_processor_count=100, clock_rate=10**6),
    "max_memory_allocated": 10**6,
    "memory_allocated": 0,
    "reset_peak_memory_stats": None,
    "synchronize": None,
    "_sleep": None,
    "set_device": None,
}
"""What torch.cuda says of it."""


@contextmanager
def pretend_gpu() -> Iterator[list[Wait]]:
    """Within it there is a device "cuda". Gives the list of waits, which grows while a program runs."""
    waits: list[Wait] = []
    with ExitStack() as stack:
        for name, answer in ANSWERS.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(patch.object(torch.cuda, "Event", lambda **_: _Event()))
        stack.enter_context(_Names())
        stack.enter_context(_Operations(waits))
        yield waits
