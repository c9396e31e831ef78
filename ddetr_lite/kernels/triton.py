"""Multi-scale deformable attention in Triton, as an operation of torch; for CUDA, and for tests Triton's interpreter.

It is meant for `torch.compile`, CUDA graphs and autocast, too: nothing here waits for the GPU. The fused form takes offsets
and scores instead of locations and weights, which then never exist in memory. Places, weights, sums and gradients are
float32 whatever the dtype of the values: a bfloat16 cannot tell neighbouring cells of a large map apart. (Only what the
softmax subtracts from the scores' gradients is a product with the output as it was rounded.)
Gradients of values are added up atomically, in any order; with `torch.use_deterministic_algorithms(True)` samples are
sorted by their cell instead: slower, with a wait for the GPU, and the same to the last bit in every run.
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, L levels, P points.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ddetr_lite.kernels.cpu import corner_shares, find_samples, table_rows
from ddetr_lite.kernels.reference import LevelShapes
from ddetr_lite.kernels.triton_kernels import backward_kernel, forward_kernel, tile

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What values may be."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors, as the environment said when this was imported."""


def _kind(reference: Tensor | None) -> int:
    """What the kernels' KIND is: 0 for locations and weights, 2 for offsets and scores around points, 4 around boxes."""
    return 0 if reference is None else reference.shape[-1]


def _launch(value: Tensor, queries: int, adds: bool = False) -> tuple[tuple[int], dict[str, int]]:
    """The number of programs, and how large each is. adds: float32 sums, four at a time, beside what is read."""
    batch, _, heads, channels = value.shape
    blocks = tile(channels, each=4 if adds or value.element_size() == 4 else 8)
    return (triton.cdiv(queries, blocks["BLOCK"]) * heads * batch,), blocks


@torch.library.custom_op("ddetr_lite::deformable_attention", mutates_args=())
def _attend(value: Tensor, places: Tensor, shares: Tensor, reference: Tensor | None, sizes: list[int]) -> Tensor:
    value, places, shares = value.contiguous(), places.contiguous(), shares.contiguous()
    batch, tokens, heads, channels = value.shape
    queries, levels, points = places.shape[1], places.shape[3], places.shape[4]
    output = value.new_empty(batch, queries, heads * channels)
    if places.numel() == 0 or value.numel() == 0:
        return output.zero_()
    grid, blocks = _launch(value, queries)
    with torch.cuda.device_of(value):
        forward_kernel[grid](
            value, places, shares, places if reference is None else reference.contiguous(), output, _as_floats(sizes),
            queries, tokens, M=heads, D=channels, L=levels, P=points, KIND=_kind(reference),
            PADDED=triton.next_power_of_2(levels * points), **blocks,
        )  # fmt: skip
    return output


@_attend.register_fake
def _(value: Tensor, places: Tensor, shares: Tensor, reference: Tensor | None, sizes: list[int]) -> Tensor:
    return value.new_empty(value.shape[0], places.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("ddetr_lite::deformable_attention_backward", mutates_args=())
def _attend_backward(
    value: Tensor,
    places: Tensor,
    shares: Tensor,
    reference: Tensor | None,
    output: Tensor | None,
    grad_output: Tensor,
    sizes: list[int],
    moves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, places, shares, and, where the reference moves, of the reference (else an empty tensor)."""
    value, places, shares, grad_output = (
        value.contiguous(),
        places.contiguous(),
        shares.contiguous(),
        grad_output.contiguous(),
    )
    batch, tokens, heads, channels = value.shape
    queries, levels, points = places.shape[1], places.shape[3], places.shape[4]
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    # The kernel writes each of these numbers once, in their own dtype; the locations', which are still to be summed for a
    # reference, in float32.
    make = torch.empty_like if value.numel() else torch.zeros_like
    grad_places = make(places, dtype=torch.float32 if moves else places.dtype)
    grad_shares = make(shares)
    sorted_sum = torch.are_deterministic_algorithms_enabled()  # atomic additions come in any order
    if places.numel() and value.numel():
        grid, blocks = _launch(value, queries, adds=True)
        with torch.cuda.device_of(value):
            backward_kernel[grid](
                value, places, shares, places if reference is None else reference.contiguous(),
                value if output is None else output, grad_output, grad_value, grad_places, grad_shares,
                _as_floats(sizes), queries, tokens, M=heads, D=channels, L=levels, P=points, KIND=_kind(reference),
                SCALED=not moves, VALUE=not sorted_sum, PADDED=triton.next_power_of_2(levels * points), **blocks,
            )  # fmt: skip
        if sorted_sum:
            level_shapes = list(zip(sizes[::2], sizes[1::2]))
            locations, weights = _materialise(places, shares, reference, level_shapes)
            rows = table_rows(level_shapes)
            row, fx, fy, _, _ = find_samples(locations, level_shapes)
            by_corner = corner_shares(weights.flatten(3), fx, fy)
            bags = grad_output.float().view(-1, channels)
            grad_value = _sum_by_cell(bags, row, by_corner, torch.Size((batch, rows, heads, channels)), level_shapes)
    grad_reference = value.new_empty(0, dtype=torch.float32)
    if moves and reference is not None:
        grad_reference = _grad_reference(grad_places, places, reference, sizes)
    return grad_value.to(value.dtype), grad_places.to(places.dtype), grad_shares, grad_reference


@_attend_backward.register_fake
def _(
    value: Tensor,
    places: Tensor,
    shares: Tensor,
    reference: Tensor | None,
    output: Tensor | None,
    grad_output: Tensor,
    sizes: list[int],
    moves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_reference = value.new_empty(reference.shape if moves and reference is not None else (0,), dtype=torch.float32)
    return value.new_empty(value.shape), places.new_empty(places.shape), shares.new_empty(shares.shape), of_reference


def _grad_reference(grad_locations: Tensor, offsets: Tensor, reference: Tensor, sizes: list[int]) -> Tensor:
    """The reference's gradient from that of the locations, which becomes in place the gradient of the offsets.

    Numbers go to the device as arguments of operations: a tensor of sizes would be a copy to wait for.
    """
    grad_reference = grad_locations.sum((2, 4))  # (B, N_q, L, 2)
    if reference.shape[-1] == 4:
        scales = reference[:, :, None, :, None, 2:] * (0.5 / offsets.shape[4])
        of_size = (grad_locations * offsets).sum((2, 4)) * (0.5 / offsets.shape[4])
        grad_locations.mul_(scales)
        return torch.cat((grad_reference, of_size), dim=-1)
    for level, (height, width) in enumerate(zip(sizes[::2], sizes[1::2])):
        grad_locations[:, :, :, level, :, 0].div_(width)
        grad_locations[:, :, :, level, :, 1].div_(height)
    return grad_reference


def _sum_by_cell(
    grad_bags: Tensor, base: Tensor, shares: Tensor, table_shape: torch.Size, level_shapes: LevelShapes
) -> Tensor:
    """The gradient of `value`, (B, N, M, D): samples sorted by cell, summed for each corner, corners put in place."""
    batch, rows, heads, channels = table_shape
    cells, order = base.flatten().sort(stable=True)
    offsets = torch.searchsorted(cells, torch.arange(batch * rows * heads, dtype=cells.dtype, device=cells.device))
    bag_of_sample = order // base.shape[-1]
    by_corner = shares.movedim(3, 0)  # (4, B, N_q, M, L·P)
    sums = [
        F.embedding_bag(bag_of_sample, grad_bags, offsets, per_sample_weights=corner.flatten()[order], mode="sum").view(
            batch, rows, heads, channels
        )
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


def _materialise(
    places: Tensor, shares: Tensor, reference: Tensor | None, level_shapes: LevelShapes
) -> tuple[Tensor, Tensor]:
    """Locations and weights, float32, as the kernels make them in their registers."""
    places, shares = places.float(), shares.float()
    if reference is None:
        return places, shares
    if reference.shape[-1] == 4:
        scales = reference[:, :, None, :, None, 2:] * (0.5 / places.shape[4])
    else:
        sizes = [(w, h) for h, w in level_shapes]
        scales = 1 / torch.tensor(sizes, dtype=torch.float32, device=places.device)[:, None]
    locations = reference[:, :, None, :, None, :2] + places * scales
    return locations, shares.flatten(3).softmax(-1).view_as(shares)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, places, shares, reference, ctx.sizes = inputs
    fused = reference is not None
    ctx.save_for_backward(value, places, shares, reference, output if fused else None)  # a softmax needs the output


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, places, shares, reference, output = ctx.saved_tensors
    moves = reference is not None and ctx.needs_input_grad[3]
    *grads, grad_reference = _attend_backward(value, places, shares, reference, output, grad_output, ctx.sizes, moves)
    return *grads, grad_reference if moves else None, None


def _differentiate_twice(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("backend='triton' has no gradients of gradients: use backend='reference'")


torch.library.register_autograd("ddetr_lite::deformable_attention", _differentiate, setup_context=_save)
torch.library.register_autograd("ddetr_lite::deformable_attention_backward", _differentiate_twice)


def attend(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Shapes as in `multi_scale_deformable_attention`; value float32, bfloat16 or float16."""
    return _attend(value, locations.float(), weights.float(), None, _flat(level_shapes))


def attend_fused(
    value: Tensor, level_shapes: LevelShapes, reference: Tensor, offsets: Tensor, scores: Tensor
) -> Tensor:
    """The same from what a layer has in hand: reference (B, N_q, L, 2 or 4), offsets (B, N_q, M, L, P, 2), and scores
    before the softmax over all levels and points, (B, N_q, M, L, P). Offsets and scores may be halves: locations and
    weights are made from them in float32.
    """
    return _attend(value, offsets, scores, reference.float(), _flat(level_shapes))


def _flat(level_shapes: LevelShapes) -> list[int]:
    """Sizes one after the other; those that `torch.compile` keeps open stay open."""
    return [size for shape in level_shapes for size in shape]


def _as_floats(sizes: list[int]) -> tuple[float, ...]:
    """For the kernels, which make whole numbers of them again (see there); float32 holds those below 2²⁴."""
    return tuple(float(size) for size in sizes)
