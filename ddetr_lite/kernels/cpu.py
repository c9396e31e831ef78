"""Multi-scale deformable attention for CPUs: a weighted sum of rows is what `embedding_bag` computes, fast.

The output of a query and head is Σ weight · bilinear · row over 4·L·P rows of a table of feature vectors: one bag for
each (picture, query, head). The table stores every level with a border of zeros, so that no sample needs a mask.
The backward pass is written by hand: four dot products for each sample give the gradients of weight and location
(`torch.sparse.sampled_addmm`), and the gradient of the values is a transposed sparse matrix times the output's (SciPy).
Letters: B pictures, N_q queries, M heads, D channels of a head, L levels, P points, R rows of the table.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from ddetr_lite.kernels.reference import LevelShapes

with warnings.catch_warnings():  # torch says once in a process that its sparse tensors are young: let it be said here
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


def table_rows(level_shapes: LevelShapes) -> int:
    """R, the rows that `pad_levels` makes for a picture and head: Σ (H+2)(W+2) + max(W) + 3."""
    return sum((h + 2) * (w + 2) for h, w in level_shapes) + max(w for _, w in level_shapes) + 3


def pad_levels(value: Tensor, level_shapes: LevelShapes) -> Tensor:
    """(B, N, M, D) → (B, R, M, D), each level framed by one cell of zeros, and zeros behind the last: a sample that lies
    on the far border reads its neighbours there. R = `table_rows(level_shapes)`.
    """
    batch, _, heads, channels = value.shape
    table = value.new_zeros(batch, table_rows(level_shapes), heads, channels)
    start = row = 0
    for h, w in level_shapes:
        inside = table[:, row : row + (h + 2) * (w + 2)].unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1]
        inside.copy_(value[:, start : start + h * w].unflatten(1, (h, w)))
        start, row = start + h * w, row + (h + 2) * (w + 2)
    return table


class Samples(NamedTuple):
    """Where every sample falls in the table, each (B, N_q, M, L·P): `row` of its upper left cell, how far it lies to the
    right (`fx`) and below (`fy`) that cell, in 0..1, and `below`, (M, L·P): how many rows ahead the next line begins.

    inside: (2, B, N_q, M, L·P), for x and y, False where moving the sample a little changes nothing.
    """

    row: Tensor
    fx: Tensor
    fy: Tensor
    below: Tensor
    inside: Tensor


def find_samples(locations: Tensor, level_shapes: LevelShapes) -> Samples:
    """Locations (B, N_q, M, L, P, 2) in 0..1 to cells of the table that `pad_levels` makes."""
    batch, _, heads, levels, points, _ = locations.shape
    device = locations.device
    planes = locations.flatten(3, 4).movedim(-1, 0).contiguous()  # (2, B, N_q, M, L·P): x, then y
    broken = None
    if not torch.isfinite(planes.sum()):  # one pass over the input; only what is broken pays for more
        broken = ~torch.isfinite(planes)
        planes = planes.masked_fill(broken, 0.0)
    sizes = _sizes_by_sample(level_shapes, heads, points, planes)
    # Pixel coordinates are loc·W − ½; the border shifts them by one cell, so that cell 0 is the border.
    pixels = torch.addcmul(sizes.new_full((), 0.5), planes, sizes)
    clamped = torch.minimum(pixels.clamp(min=0), sizes + 1)  # beyond the border all is zero as well
    corner = clamped.int()  # rounds down: nothing is negative
    fx, fy = clamped.frac()  # not clamped - corner: where types are mixed, torch is many times as slow
    if broken is not None:
        fx = fx.masked_fill(broken.any(0), float("nan"))
    pitch = [w + 2 for _, w in level_shapes]
    first = [sum((h + 2) * (w + 2) for h, w in level_shapes[:level]) for level in range(levels)]
    pitch_by_sample, first_by_sample = _by_sample([pitch, first], heads, points, torch.int32, device)
    picture = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1) * table_rows(level_shapes)
    head = torch.arange(heads, dtype=torch.int32, device=device).view(-1, 1)
    row = torch.addcmul(corner[0], corner[1], pitch_by_sample)
    row = torch.add((picture + first_by_sample) * heads + head, row, alpha=heads)
    inside = (pixels >= 0) & (pixels < sizes + 1)
    return Samples(row, fx, fy, pitch_by_sample[0, 0] * heads, inside)


def _by_sample(numbers: list[list[int]], heads: int, points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Two lists of L numbers, repeated for each point and head: (2, 1, 1, M, L·P).

    The heads are copies, since a row of M·L·P numbers side by side goes with a query's samples several times as fast as
    one of L·P that is broadcast M times.
    """
    by_point = torch.tensor(numbers, dtype=dtype, device=device).repeat_interleave(points, dim=1)
    return by_point[:, None, None, None].expand(-1, -1, -1, heads, -1).contiguous()


def _sizes_by_sample(level_shapes: LevelShapes, heads: int, points: int, like: Tensor) -> Tensor:
    """Width and height of each sample's level, (2, 1, 1, M, L·P), in the dtype and on the device of `like`."""
    sizes = [[w for _, w in level_shapes], [h for h, _ in level_shapes]]
    return _by_sample(sizes, heads, points, like.dtype, like.device)


def corner_shares(weights: Tensor, fx: Tensor, fy: Tensor) -> Tensor:
    """Weight times bilinear share of each of the four cells around a sample: (B, N_q, M, 4, L·P) from (B, N_q, M, L·P)."""
    shares = weights.new_empty(*weights.shape[:3], 4, weights.shape[3])
    to_right, lower = weights * fx, weights * fy
    torch.mul(to_right, fy, out=shares[..., 3, :])
    torch.sub(to_right, shares[..., 3, :], out=shares[..., 1, :])
    torch.sub(lower, shares[..., 3, :], out=shares[..., 2, :])
    torch.sub(weights - lower, shares[..., 1, :], out=shares[..., 0, :])
    return shares


class _EmbeddingBagAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, level_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        heads, channels = value.shape[2:]
        ctx.level_shapes, ctx.shapes = level_shapes, (value.shape, locations.shape, weights.shape)
        ctx.empty = locations.numel() == 0
        if ctx.empty:  # no pictures, no queries or no points: nothing to sum
            return value.new_zeros(locations.shape[0], locations.shape[1], heads * channels)
        table = pad_levels(value, level_shapes)
        row, fx, fy, below, inside = find_samples(locations, level_shapes)
        flat = weights.flatten(3)
        corners = row.new_empty(*row.shape[:3], 4, row.shape[3])  # the four cells around each sample
        corners[..., 0, :] = row
        torch.add(row, heads, out=corners[..., 1, :])
        torch.add(row, below, out=corners[..., 2, :])
        torch.add(corners[..., 2, :], heads, out=corners[..., 3, :])
        shares = corner_shares(flat, fx, fy)
        output = F.embedding_bag(
            corners.flatten(0, 2).flatten(1),  # (B·N_q·M, 4·L·P)
            table.view(-1, channels),
            per_sample_weights=shares.flatten(0, 2).flatten(1),
            mode="sum",
        )
        ctx.save_for_backward(table, weights, fx, fy, inside, corners, shares)
        return output.view(*row.shape[:2], heads * channels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only where autograd is asked for a graph of the gradient
            raise RuntimeError(
                "the CPU's form of deformable attention has gradients once, not twice: for a gradient of a gradient "
                '(create_graph=True) name backend="reference"'
            )
        if ctx.empty:
            return *(grad_output.new_zeros(shape) for shape in ctx.shapes), None
        table, weights, fx, fy, inside, corners, shares = ctx.saved_tensors
        channels = table.shape[-1]
        grad_bags = grad_output.reshape(-1, channels)  # (B·N_q·M, D), a bag for each query and head
        grad_value = grad_locations = grad_weights = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dots = _dot_products(grad_bags, table.view(-1, channels), corners)  # (B, N_q, M, 4, L·P)
            upper_left, upper_right, lower_left, lower_right = dots.unbind(3)
            upper = torch.lerp(upper_left, upper_right, fx)
            lower = torch.lerp(lower_left, lower_right, fx)
            grad_weights = torch.lerp(upper, lower, fy).view_as(weights)
            slope_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, fy)
            (heads, _, points), flat = weights.shape[2:], weights.flatten(3)
            width, height = _sizes_by_sample(ctx.level_shapes, heads, points, flat)
            # Written in place, x and y in turns: to stack two results takes several times as long.
            by_sample = flat.new_empty(*flat.shape, 2)
            torch.mul(slope_x * (flat * width), inside[0], out=by_sample[..., 0])
            torch.mul((lower - upper) * (flat * height), inside[1], out=by_sample[..., 1])
            grad_locations = by_sample.view(*weights.shape, 2)
        if ctx.needs_input_grad[0]:
            grad_value = unpad_levels(_grad_table(grad_bags, table, corners, shares), ctx.level_shapes)
        return grad_value, grad_locations, grad_weights, None


def _dot_products(grad_bags: Tensor, table: Tensor, corners: Tensor) -> Tensor:
    """grad_bags (bags, D) · table (rows, D) at the pairs that `corners` names, in its shape."""
    bags, each = len(grad_bags), corners[0, 0, 0].numel()
    if each > len(table):  # sampled_addmm allows no more entries than there are pairs; such a table is tiny
        return (table[corners.view(bags, each)] @ grad_bags[..., None]).view_as(corners)
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, bags * each + 1, each, dtype=torch.int32, device=table.device),
        corners.flatten(),
        table.new_zeros(bags * each),
        size=(bags, len(table)),
        check_invariants=False,
    )
    # Into the pattern itself: a result of its own would be a copy of the pattern first, three times as slow.
    return torch.sparse.sampled_addmm(pattern, grad_bags, table.t(), beta=0.0, out=pattern).values().view_as(corners)


def _grad_table(grad_bags: Tensor, table: Tensor, corners: Tensor, shares: Tensor) -> Tensor:
    """The gradient of the table, in its shape: every corner's row gets its share of the gradient of its bag.

    That is the transpose of a sparse matrix (bags × rows, an entry for each corner) times a dense one. SciPy adds row
    after row, in order, and lets other threads run meanwhile: a picture is the work of one thread, so the result does not
    depend on their number. It was faster than sorting the corners by row and summing them.
    """
    batch, (channels, each) = len(table), (table.shape[-1], corners[0, 0, 0].numel())
    bags, rows = len(grad_bags) // batch, table[0].numel() // channels
    # NumPy alone from here: in a thread, each operation of torch's would start a team of its own.
    indices, entries = corners.view(batch, -1).numpy(), shares.view(batch, -1).numpy()
    grads = grad_bags.view(batch, bags, channels).numpy()

    def some_pictures(first: int, last: int) -> np.ndarray:
        count, local = last - first, indices[first:last].ravel()
        begins = np.arange(0, local.size + 1, each, dtype=np.int32 if local.size < 2**31 else np.int64)
        if first:
            local = local - first * rows
        matrix = csr_array((entries[first:last].ravel(), local, begins), shape=(count * bags, count * rows))
        return matrix.T @ grads[first:last].reshape(-1, channels)

    threads = min(torch.get_num_threads(), batch)
    if threads == 1 or corners.numel() < 2**21:  # else starting threads takes longer than they save
        return torch.from_numpy(some_pictures(0, batch)).view_as(table)
    bounds = [batch * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(some_pictures, bounds, bounds[1:]))  # the list waits, and raises what a thread raised
    return torch.from_numpy(np.concatenate(parts)).view_as(table)


def unpad_levels(table: Tensor, level_shapes: LevelShapes) -> Tensor:
    """The way back of `pad_levels`: (B, R, M, D) → (B, N, M, D)."""
    values, row = [], 0
    for h, w in level_shapes:
        framed = table[:, row : row + (h + 2) * (w + 2)].unflatten(1, (h + 2, w + 2))
        values.append(framed[:, 1:-1, 1:-1].flatten(1, 2))
        row += (h + 2) * (w + 2)
    return torch.cat(values, dim=1)


@torch.compiler.disable  # it looks at numbers on its way: one clean break in a compiled graph, instead of several
def embedding_bag(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Shapes as in `multi_scale_deformable_attention`. float32 and float64 are computed as they are, lower precision
    in float32. Gradients once, not twice.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    output = _EmbeddingBagAttention.apply(
        value.to(dtype), locations.to(dtype), weights.to(dtype), tuple((int(h), int(w)) for h, w in level_shapes)
    )
    return output.to(value.dtype)
