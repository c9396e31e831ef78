"""Multi-scale deformable attention: one function, several ways to compute it, and the rule that picks one.

`layers` builds modules on it; this package knows tensors only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.kernels import cpu, reference
from ddetr_lite.kernels.reference import LevelShapes

BACKENDS: dict[str, Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor]] = {
    "loop": reference.loop,
    "reference": reference.grid_sample,
    "cpu": cpu.embedding_bag,
}


def choose_backend(value: Tensor) -> str:
    """The backend that `auto` takes for this value tensor (B, N, M, D): by device and width of a head.

    On a CPU `cpu` from 16 channels a head on (below, sorting the samples costs more than it saves); else `reference`.
    """
    if value.device.type == "cpu" and value.shape[-1] >= 16:
        return "cpu"
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
    Raises ValueError when shapes, devices or levels do not fit together.
    """
    _check(value, level_shapes, locations, weights)
    if backend == "auto":
        backend = choose_backend(value)
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown: choose 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    if backend == "cpu" and value.device.type != "cpu":
        raise ValueError(f"backend='cpu' needs tensors on the CPU, value is on {value.device}: use backend='auto'")
    return BACKENDS[backend](value, level_shapes, locations, weights)


def _check(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (B, N, M, D), got {tuple(value.shape)}")
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"locations must be (B, N_q, M, L, P, 2), got {tuple(locations.shape)}")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"weights must be {tuple(locations.shape[:-1])} like the locations, got {tuple(weights.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    if (locations.shape[0], locations.shape[2]) != (batch, heads):
        raise ValueError(
            f"value has {batch} pictures and {heads} heads, locations have {locations.shape[0]} and {locations.shape[2]}"
        )
    if locations.shape[3] != len(level_shapes):
        raise ValueError(f"locations have {locations.shape[3]} levels, level_shapes {len(level_shapes)}")
    cells = sum(h * w for h, w in level_shapes)
    if cells != tokens:
        raise ValueError(
            f"level_shapes {[tuple(s) for s in level_shapes]} have {cells} cells in all, value has {tokens} tokens: "
            f"{abs(tokens - cells)} too {'many' if tokens > cells else 'few'}"
        )
    devices = {value.device, locations.device, weights.device}
    if len(devices) > 1:
        raise ValueError(f"value, locations and weights must be on one device, found {sorted(map(str, devices))}")
    for name, tensor in (("value", value), ("locations", locations), ("weights", weights)):
        if not torch.is_floating_point(tensor):
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
