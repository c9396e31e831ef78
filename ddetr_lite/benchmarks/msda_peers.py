"""Other people's ways to compute multi-scale deformable attention, behind one signature; each where it can be imported.

A peer takes (value, level_shapes, locations, weights) as `kernels.multi_scale_deformable_attention` does, and returns
(B, N_q, M·D). Those that take one dtype only get halves as float32: locations in halves would be another result. Their
extra input (tensors of level sizes) is made once, outside the time that is measured.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr_lite.kernels import choose_backend, multi_scale_deformable_attention
from ddetr_lite.kernels.reference import LevelShapes

Peer = Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor]
OURS = "ddetr_lite"
BASELINE = "grid_sample"


def grid_sample_form(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One `grid_sample` a level and a weighted sum, as in the authors' test code: no care for NaN."""
    value = value.to(locations.dtype)
    batch, _, heads, channels = value.shape
    queries, grids, samples = locations.shape[1], 2 * locations - 1, []
    for level, ((height, width), feature) in enumerate(
        zip(level_shapes, value.split([h * w for h, w in level_shapes], dim=1))
    ):
        feature = feature.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B·M, N_q, P, 2)
        samples.append(F.grid_sample(feature, grid, align_corners=False))  # (B·M, D, N_q, P)
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)  # (B·M, D, N_q)
    return output.view(batch, heads * channels, queries).transpose(1, 2)


def gather_form(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The four corners by index: what a compiler can fuse."""
    channels = value.shape[-1]
    rows, output, start = value.transpose(1, 2), torch.zeros((), device=value.device), 0
    for level, (height, width) in enumerate(level_shapes):
        x = locations[:, :, :, level, :, 0].transpose(1, 2) * width - 0.5  # (B, M, N_q, P)
        y = locations[:, :, :, level, :, 1].transpose(1, 2) * height - 0.5
        share = weights[:, :, :, level].transpose(1, 2)
        x0, y0 = x.floor(), y.floor()
        for row, by_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            for column, by_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                token = start + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                index = token.long().flatten(2)[..., None].expand(-1, -1, -1, channels)
                cells = rows.gather(2, index).unflatten(2, share.shape[2:])  # (B, M, N_q, P, D)
                output = output + (cells * (share * by_y * by_x * inside)[..., None]).sum(3)
        start += height * width
    return output.transpose(1, 2).flatten(2)


@cache
def _sizes(level_shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(L, 2) heights and widths, and (L,) where levels begin, as the official operation wants them."""
    cells = [h * w for h, w in level_shapes]
    starts = [sum(cells[:level]) for level in range(len(cells))]
    return torch.tensor(level_shapes, device=device), torch.tensor(starts, device=device)


def _hugging_face() -> Peer:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module = MultiScaleDeformableAttention()

    def peer(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _sizes(tuple(level_shapes), value.device)
        output: Tensor = module(value.to(locations.dtype), sizes, level_shapes, starts, locations, weights, 64)
        return output

    return peer


def _compiled_gather() -> Peer:
    compiled: Peer = torch.compile(gather_form, dynamic=False)
    return compiled


def _official() -> Peer:
    import MultiScaleDeformableAttention as operation  # type: ignore[import-not-found]

    class Official(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor, sizes: Tensor, starts: Tensor, at: Tensor, share: Tensor) -> Any:
            ctx.save_for_backward(value, sizes, starts, at, share)
            return operation.ms_deform_attn_forward(value, sizes, starts, at, share, 64)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            value, at, share = operation.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), 64)
            return value, None, None, at, share

    def peer(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = Official.apply(value, *_sizes(tuple(level_shapes), value.device), locations, weights)
        return output

    return peer


def _msda_triton() -> Peer:
    # Not the function that the package names: where the kernel fails, that one takes `grid_sample` without a word.
    from msda_triton.frontend import triton_multiscale_deformable_attention  # type: ignore[import-not-found]

    def peer(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, _ = _sizes(tuple(level_shapes), value.device)
        output: Tensor = triton_multiscale_deformable_attention(value, sizes, locations, weights, "zeros", False)
        return output.flatten(2)

    return peer


def _deformops() -> Peer:
    from deformops.registry import msda  # type: ignore[import-not-found]

    def peer(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _sizes(tuple(level_shapes), value.device)
        output: Tensor = msda(value.to(locations.dtype), sizes, starts, locations, weights.flatten(3))
        return output

    return peer


def _torch_ms_deform_attn() -> Peer:
    from torch_ms_deform_attn import ms_deform_attn  # type: ignore[import-not-found]

    def peer(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _sizes(tuple(level_shapes), value.device)
        output: Tensor = ms_deform_attn(value.to(locations.dtype), sizes, starts, locations, weights)
        return output

    return peer


PEERS: dict[str, tuple[str | None, Callable[[], Peer]]] = {
    OURS: (None, lambda: multi_scale_deformable_attention),
    BASELINE: (None, lambda: grid_sample_form),
    "hugging-face": ("transformers", _hugging_face),
    "compiled-gather": (None, _compiled_gather),
    "official-cuda": ("MultiScaleDeformableAttention", _official),
    "msda-triton": ("msda_triton", _msda_triton),
    "deformops": ("deformops", _deformops),
    "torch-ms-deform-attn": ("torch_ms_deform_attn", _torch_ms_deform_attn),
}
"""Name → (the package that it needs, how to get it)."""


def refused(name: str, value: Tensor) -> str | None:
    """Why this peer is not measured with such values; None if it is. Raises ValueError for an unknown name."""
    if name not in PEERS:
        raise ValueError(f"peer {name!r} is unknown: choose from {', '.join(PEERS)}")
    package = PEERS[name][0]
    if package is not None and find_spec(package) is None:
        return f"the package {package} is not installed"
    if name == "official-cuda" and (not value.is_cuda or value.dtype != torch.float32):
        return "it takes float32 on CUDA only"
    if name == "msda-triton" and (not value.is_cuda or value.dtype != torch.float32):
        return "it is measured in float32 on CUDA only"
    return None


def describe_ours(value: Tensor) -> str:
    return f"{OURS} ({choose_backend(value)})"
