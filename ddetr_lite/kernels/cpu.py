"""Multi-scale deformable attention for CPUs: a weighted sum of rows is what `embedding_bag` computes, fast.

The output of a query and head is Σ weight · bilinear · row over 4·L·P rows of a table of feature vectors: one bag for
each (picture, query, head). The table stores every level with a border of zeros, so that no sample needs a mask.
The backward pass is written by hand: four dot products for each sample give the gradients of weight and location
(`torch.sparse.sampled_addmm`), and the gradient of the values is four bag sums over the samples sorted by their cell.
Letters: B pictures, N_q queries, M heads, D channels of a head, L levels, P points, R rows of the table.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddetr_lite.kernels.reference import LevelShapes

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)


def pad_levels(value: Tensor, level_shapes: LevelShapes) -> Tensor:
    """(B, N, M, D) → (B, R, M, D), each level framed by one cell of zeros: R = Σ (H+2)(W+2)."""
    batch, _, heads, channels = value.shape
    rows = sum((h + 2) * (w + 2) for h, w in level_shapes)
    table = value.new_zeros(batch, rows, heads, channels)
    start = row = 0
    for h, w in level_shapes:
        inside = table[:, row : row + (h + 2) * (w + 2)].unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1]
        inside.copy_(value[:, start : start + h * w].unflatten(1, (h, w)))
        start, row = start + h * w, row + (h + 2) * (w + 2)
    return table


class Samples:
    """Where every sample falls: its upper left cell in the table, and how far it is from that cell.

    base: (B, N_q, M, L·P) row numbers; fx, fy: (B, N_q, M, L, P) in 0..1; inside: 1.0 where the gradient of the
    location is not zero, (B, N_q, M, L, P, 2); right, below: how many rows ahead the neighbouring cells are, (L·P).
    """

    def __init__(self, locations: Tensor, level_shapes: LevelShapes, rows: int):
        batch, _, heads, levels, points, _ = locations.shape
        device = locations.device
        sizes = torch.tensor([(w, h) for h, w in level_shapes], dtype=locations.dtype, device=device)[:, None]  # (L,1,2)
        pixels = locations * sizes - 0.5
        clamped = torch.minimum(pixels.clamp(min=-1), sizes)  # beyond the border of zeros lies nothing new
        self.inside = (pixels >= -1) & (pixels < sizes)
        corner = torch.minimum(clamped.nan_to_num(nan=-1.0).floor(), sizes - 1)  # −1 .. W−1: the cell to the right exists
        fraction = clamped - corner + 0 * locations  # NaN where the location is not finite, and so is the output
        self.fx, self.fy = fraction.unbind(-1)
        pitch = [w + 2 for _, w in level_shapes]
        first, row = [], 0
        for h, w in level_shapes:
            first.append(row)
            row += (h + 2) * (w + 2)
        integer = corner.int() + 1
        level_pitch = torch.tensor(pitch, dtype=torch.int32, device=device)[:, None]
        level_first = torch.tensor(first, dtype=torch.int32, device=device)[:, None]
        base = integer[..., 1] * level_pitch + integer[..., 0] + level_first  # (B, N_q, M, L, P)
        picture = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1, 1) * rows
        head = torch.arange(heads, dtype=torch.int32, device=device).view(1, 1, -1, 1, 1)
        self.base = ((base + picture) * heads + head).flatten(3)
        self.right = heads
        self.below = (level_pitch * heads).expand(levels, points).flatten()
        self.sizes = sizes

    def corners(self) -> Tensor:
        """(B, N_q, M, 4, L·P): row numbers of the four cells around each sample."""
        below = self.base + self.below
        return torch.stack((self.base, self.base + self.right, below, below + self.right), dim=3)

    def bilinear(self) -> Tensor:
        """(B, N_q, M, 4, L·P): the four cells' shares, in the order of `corners`."""
        fx, fy = self.fx.flatten(3), self.fy.flatten(3)
        both = fx * fy
        return torch.stack((1 - fx - fy + both, fx - both, fy - both, both), dim=3)


class _EmbeddingBagAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, level_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        batch, _, heads, channels = value.shape
        queries = locations.shape[1]
        table = pad_levels(value, level_shapes)
        samples = Samples(locations, level_shapes, table.shape[1])
        corners, bilinear = samples.corners(), samples.bilinear()
        shares = bilinear * weights.flatten(3)[:, :, :, None]
        output = F.embedding_bag(
            corners.flatten(0, 2).flatten(1),  # (B·N_q·M, 4·L·P)
            table.view(-1, channels),
            per_sample_weights=shares.flatten(0, 2).flatten(1),
            mode="sum",
        )
        ctx.samples, ctx.level_shapes = samples, level_shapes
        ctx.save_for_backward(table, weights, corners, bilinear, shares)
        return output.view(batch, queries, heads * channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        table, weights, corners, bilinear, shares = ctx.saved_tensors
        samples: Samples = ctx.samples
        batch, rows, heads, channels = table.shape
        grad_bags = grad_output.reshape(-1, channels)  # (B·N_q·M, D), a bag for each query and head
        grad_value = grad_locations = grad_weights = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dots = _dot_products(grad_bags, table.view(-1, channels), corners)  # (B, N_q, M, 4, L·P)
            grad_weights = (dots * bilinear).sum(3).view_as(weights)
            upper_left, upper_right, lower_left, lower_right = (d.view_as(weights) for d in dots.unbind(3))
            fx, fy = samples.fx, samples.fy
            slope_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, fy)
            slope_y = torch.lerp(lower_left - upper_left, lower_right - upper_right, fx)
            slopes = torch.stack((slope_x, slope_y), dim=-1) * weights[..., None] * samples.sizes
            grad_locations = slopes * samples.inside
        if ctx.needs_input_grad[0]:
            grad_value = _grad_value(grad_bags, samples.base, shares, table.shape, ctx.level_shapes)
        return grad_value, grad_locations, grad_weights, None


def _dot_products(grad_bags: Tensor, table: Tensor, corners: Tensor) -> Tensor:
    """grad_bags (bags, D) · table (rows, D) at the pairs that `corners` names, in its shape."""
    bags, each = len(grad_bags), corners[0, 0, 0].numel()
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, bags * each + 1, each, dtype=torch.int32, device=table.device),
        corners.flatten(),
        table.new_zeros(bags * each),
        size=(bags, len(table)),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, grad_bags, table.t(), beta=0.0).values().view_as(corners)


def _grad_value(
    grad_bags: Tensor, base: Tensor, shares: Tensor, table_shape: torch.Size, level_shapes: LevelShapes
) -> Tensor:
    """The gradient of `value`, (B, N, M, D): samples sorted by cell, summed for each corner, corners put in place."""
    batch, rows, heads, channels = table_shape
    cells, order = base.flatten().sort()
    offsets = torch.searchsorted(cells, torch.arange(batch * rows * heads, dtype=cells.dtype, device=cells.device))
    bag_of_sample = order // base.shape[-1]
    by_corner = shares.movedim(3, 0)  # (4, B, N_q, M, L·P)
    sums = [
        F.embedding_bag(
            bag_of_sample, grad_bags, offsets, per_sample_weights=corner.flatten()[order], mode="sum"
        ).view(batch, rows, heads, channels)
        for corner in by_corner
    ]
    grads, row = [], 0
    for h, w in level_shapes:
        framed = [s[:, row : row + (h + 2) * (w + 2)].unflatten(1, (h + 2, w + 2)) for s in sums]
        grad = framed[0][:, 1:-1, 1:-1] + framed[1][:, 1:-1, :-2]
        grad = grad + framed[2][:, :-2, 1:-1] + framed[3][:, :-2, :-2]
        grads.append(grad.flatten(1, 2))
        row += (h + 2) * (w + 2)
    return torch.cat(grads, dim=1)


def embedding_bag(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Shapes as in `multi_scale_deformable_attention`. float32 and float64 are computed as they are, lower precision
    in float32. Gradients once, not twice.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    output = _EmbeddingBagAttention.apply(
        value.to(dtype), locations.to(dtype), weights.to(dtype), tuple((int(h), int(w)) for h, w in level_shapes)
    )
    return output.to(value.dtype)
