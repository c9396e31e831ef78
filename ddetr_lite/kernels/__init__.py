"""Multi-scale deformable attention: one function, several ways to compute it, and the rule that picks one.

`layers` builds modules on it; this package knows tensors only.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.kernels import cpu, reference
from ddetr_lite.kernels.reference import LevelShapes

triton: Any = None  # loaded where it can run; importing Triton takes a while, and on macOS and Windows there is none
if find_spec("triton") and (torch.cuda.device_count() or os.environ.get("TRITON_INTERPRET") == "1"):
    triton = import_module("ddetr_lite.kernels.triton")


def _triton(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    output: Tensor = triton.attend(value, level_shapes, locations, weights)
    return output


BACKENDS: dict[str, Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor]] = {
    "loop": reference.loop,
    "reference": reference.grid_sample,
    "cpu": cpu.embedding_bag,
    "triton": _triton,
}


def why_not(backend: str, value: Tensor) -> str | None:
    """Why this backend cannot run on this value tensor, in words with the remedy; None if it can.

    Raises ValueError for a backend that does not exist.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown: choose 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    if backend == "cpu" and value.device.type != "cpu":
        return f"backend='cpu' needs tensors on the CPU, value is on {value.device}: use backend='auto'"
    if backend == "triton":
        if triton is None and find_spec("triton") is None:
            return "backend='triton' needs the package triton, which is not installed here: use backend='auto'"
        if triton is None or not (value.is_cuda or triton.INTERPRETED):
            return (
                f"backend='triton' needs tensors on a CUDA device, value is on {value.device}: use backend='auto' (or, "
                "to try the kernels slowly on a CPU, set TRITON_INTERPRET=1 before ddetr_lite is imported)"
            )
        if value.dtype not in triton.DTYPES:
            names = ", ".join(str(dtype) for dtype in triton.DTYPES)
            return f"backend='triton' takes values in {names}, got {value.dtype}: use backend='auto'"
    return None


def _require(backend: str, value: Tensor) -> None:
    reason = why_not(backend, value)
    if reason is not None:
        raise ValueError(reason)


def backends_for(value: Tensor) -> list[str]:
    """The names of all backends that can run on this value tensor."""
    return [name for name in BACKENDS if why_not(name, value) is None]


def choose_backend(value: Tensor) -> str:
    """The backend that `auto` takes for this value tensor (B, N, M, D): by device, dtype and width of a head.

    On CUDA `triton`, for the dtypes that it takes, where Triton is installed. On a CPU `cpu` from 8 channels a head on (below,
    finding the rows costs more than it saves). Else, and in `torch.export`, `reference`.
    """
    if torch.compiler.is_exporting():  # what is exported may run anywhere: only operations that all know
        return "reference"
    if value.device.type == "cpu" and value.shape[-1] >= 8:
        return "cpu"
    if value.is_cuda and why_not("triton", value) is None:
        return "triton"
    return "reference"


def multi_scale_deformable_attention(
    value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor, backend: str = "auto"
) -> Tensor:
    """Each query's weighted sum of a few bilinear samples of the feature maps: equation 3 of Deformable DETR.

    value: (B, N, M, D), the tokens of all L levels one level after the other, each row by row; level_shapes: the
    (H, W) of every level, ΣHW = N; locations: (B, N_q, M, L, P, 2) as (x, y), where (0, 0) is the upper left corner of
    the upper left pixel and (1, 1) the opposite corner, so that cell i lies at (i + ½)/W; weights: (B, N_q, M, L, P).
    Returns (B, N_q, M·D) in the dtype of value.

    Outside the picture the features are zero. A location that is not finite gives NaN. `backend` is `auto`
    (`choose_backend` says what that means here), or one of `BACKENDS`; one that cannot run raises, nothing falls back.
    Gradients of gradients need "reference", and a torch whose `grid_sample` has them (2.15's has, 2.11's has not).
    Raises ValueError when shapes, devices or levels do not fit together.
    """
    _check(value, level_shapes, locations, weights)
    if backend == "auto":
        backend = choose_backend(value)
    _require(backend, value)
    return BACKENDS[backend](value, level_shapes, locations, weights)


def fused_deformable_attention(
    value: Tensor, level_shapes: LevelShapes, reference: Tensor, offsets: Tensor, scores: Tensor
) -> Tensor:
    """The same from what a layer has in hand, in one kernel: locations and weights never exist in memory. Triton only.

    reference: (B, N_q, L, 2) points or (B, N_q, L, 4) boxes in 0..1; offsets: (B, N_q, M, L, P, 2), in cells from a point,
    or of a box so that P is its edge; scores: (B, N_q, M, L, P), before the softmax over all levels and points of a head.
    Offsets and scores may be halves. Returns (B, N_q, M·D) in the dtype of value. Raises ValueError as
    `multi_scale_deformable_attention` does.
    """
    _check(value, level_shapes, offsets, scores, ("offsets", "scores"))
    batch, queries, _, levels = offsets.shape[:4]
    if reference.shape[:3] != (batch, queries, levels) or reference.shape[3:] not in ((2,), (4,)):
        raise ValueError(
            f"reference must be ({batch}, {queries}, {levels}, 2) or ({batch}, {queries}, {levels}, 4) like the offsets, "
            f"got {tuple(reference.shape)}"
        )
    if reference.device != value.device:
        raise ValueError(f"reference must be on {value.device} like value, found {reference.device}")
    _require("triton", value)
    output: Tensor = triton.attend_fused(value, level_shapes, reference, offsets, scores)
    return output


def _check(
    value: Tensor,
    level_shapes: LevelShapes,
    locations: Tensor,
    weights: Tensor,
    names: tuple[str, str] = ("locations", "weights"),
) -> None:
    """names: what the caller knows the two by."""
    places, shares = names
    if value.dim() != 4:
        raise ValueError(f"value must be (B, N, M, D), got {tuple(value.shape)}")
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"{places} must be (B, N_q, M, L, P, 2), got {tuple(locations.shape)}")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"{shares} must be {tuple(locations.shape[:-1])} like the {places}, got {tuple(weights.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    if (locations.shape[0], locations.shape[2]) != (batch, heads):
        raise ValueError(
            f"value has {batch} pictures and {heads} heads, {places} have {locations.shape[0]} and {locations.shape[2]}"
        )
    if locations.shape[3] != len(level_shapes):
        raise ValueError(f"{places} have {locations.shape[3]} levels, level_shapes {len(level_shapes)}")
    cells = sum(h * w for h, w in level_shapes)
    if cells != tokens:
        raise ValueError(
            f"level_shapes {[tuple(s) for s in level_shapes]} have {cells} cells in all, value has {tokens} tokens: "
            f"{abs(tokens - cells)} too {'many' if tokens > cells else 'few'}"
        )
    devices = {value.device, locations.device, weights.device}
    if len(devices) > 1:
        raise ValueError(f"value, {places} and {shares} must be on one device, found {sorted(map(str, devices))}")
    for name, tensor in (("value", value), (places, locations), (shares, weights)):
        if not torch.is_floating_point(tensor):
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
