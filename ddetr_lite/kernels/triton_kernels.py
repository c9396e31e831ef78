"""The Triton kernels of multi-scale deformable attention: one forward, one backward. `triton` makes an operation of them.

A program computes BLOCK queries of one head of one picture. It works out each sample's place once, and reads rows of D
neighbouring channels, so that a warp's loads are whole cache lines. In the fused form it makes places and weights from
what the layer has in hand (reference points, offsets, scores before the softmax).
Sizes of levels come as floats: of whole numbers Triton would translate a kernel anew for every pattern of divisibility, and
training at several scales meets many. M and D are constants, since only of those it knows that a row of 24 channels begins at
a multiple of 16 bytes, and so can be loaded 16 bytes at a time.
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, L levels, P points.
"""

import triton
import triton.language as tl


def tile(channels: int) -> dict[str, int]:
    """How many queries a program computes, the power of two that holds a head's channels, and Triton's options.

    A warp for each 256 numbers: each thread loads at least 16 bytes at a time, and sums over channels stay within a warp,
    which then waits for no other. (By the instructions, without barriers; not measured on a chip.)
    """
    width = triton.next_power_of_2(channels)
    block = max(4, 256 // width)
    warps = max(1, block * width // 256)
    # Fusion: a·b + c in one instruction, which Triton 3.10 no longer makes unless told.
    return {"BLOCK": block, "WIDTH": width, "num_warps": warps, "enable_fp_fusion": True}


@triton.jit
def _tile(queries, M: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Which picture and head this program computes; its queries as lines of B·N_q and whether each exists, (BLOCK,); its
    channels and whether each exists, (WIDTH,).
    """
    blocks = tl.cdiv(queries, BLOCK)
    program = tl.program_id(0)
    query = program % blocks * BLOCK + tl.arange(0, BLOCK)
    head, picture = program // blocks % M, (program // blocks // M).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    return picture, head, picture * queries + query, query < queries, channel, channel < D


@triton.jit
def _softmax_parts(scores, entry, here, L: tl.constexpr, P: tl.constexpr, PADDED: tl.constexpr):
    """The largest of each query's L·P scores, and 1 over the sum of exp(score − largest): (BLOCK,) each."""
    sample = tl.arange(0, PADDED)
    known = here[:, None] & (sample < L * P)[None, :]
    all_scores = tl.load(scores + entry[:, None] * (L * P) + sample[None, :], mask=known, other=0.0).to(tl.float32)
    all_scores = tl.where((sample < L * P)[None, :], all_scores, float("-inf"))
    largest = tl.max(all_scores, axis=1)
    return largest, 1 / tl.sum(tl.exp(all_scores - largest[:, None]), axis=1)


@triton.jit
def _frame(reference, line, here, level, height, width, L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr):
    """Where each query's reference stands on a level, (x, y) in 0..1, and what an offset of one moves x and y by.

    KIND 0: nowhere, and by one. 2: a point; an offset counts cells. 4: a box; an offset of P reaches its edge.
    """
    x = tl.zeros_like(line).to(tl.float32)
    y, scale_x, scale_y = x, x + 1.0, x + 1.0
    if KIND > 0:
        spot = reference + KIND * (line * L + level)
        x = tl.load(spot, mask=here, other=0.0)
        y = tl.load(spot + 1, mask=here, other=0.0)
        if KIND == 2:
            scale_x = scale_x / width
            scale_y = scale_y / height
        else:
            scale_x = tl.load(spot + 2, mask=here, other=0.0) * (0.5 / P)
            scale_y = tl.load(spot + 3, mask=here, other=0.0) * (0.5 / P)
    return x, y, scale_x, scale_y


@triton.jit
def _sample(
    places, shares, sample, here, reference_x, reference_y, scale_x, scale_y, largest, factor, KIND: tl.constexpr
):
    """Place (x, y) in 0..1 and weight of each query's sample.

    KIND 0: `places` are locations, `shares` weights. 2 and 4: `places` are offsets from reference points or boxes, and
    `shares` scores before the softmax.
    """
    x = tl.load(places + 2 * sample, mask=here, other=0.0).to(tl.float32)
    y = tl.load(places + 2 * sample + 1, mask=here, other=0.0).to(tl.float32)
    weight = tl.load(shares + sample, mask=here, other=0.0).to(tl.float32)
    if KIND > 0:
        weight = tl.exp(weight - largest) * factor
        x = reference_x + x * scale_x
        y = reference_y + y * scale_y
    weight += (x - x) + (y - y)  # adds nothing, or NaN where a location is not finite
    return x, y, weight


@triton.jit
def _cell(location, size):
    """Location in 0..1 → the cell before it, and how far it lies behind that cell's centre, in 0..1.

    Clamped to where all is zero anyway, so that the integers hold; what is not finite ends there, too.
    """
    pixel = tl.minimum(tl.maximum(location * size - 0.5, -2.0), size + 1.0)
    cell = tl.floor(pixel)
    return cell.to(tl.int32), pixel - cell


@triton.jit(do_not_specialize=["queries", "tokens"])
def forward_kernel(
    value, places, shares, reference, output, sizes, queries, tokens,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    picture, head, line, here, channel, wide = _tile(queries, M, D, BLOCK, WIDTH)
    entry = line * M + head  # (BLOCK,) of B·N_q·M
    largest, factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if KIND > 0:
        largest, factor = _softmax_parts(shares, entry, here, L, P, PADDED)
    value += (picture * tokens * M + head) * D
    result = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    first = 0
    for level in tl.static_range(L):
        height, width = tl.cast(sizes[2 * level], tl.int32), tl.cast(sizes[2 * level + 1], tl.int32)
        reference_x, reference_y, scale_x, scale_y = _frame(reference, line, here, level, height, width, L, P, KIND)
        for point in range(P):
            sample = entry * (L * P) + level * P + point
            x, y, weight = _sample(
                places, shares, sample, here, reference_x, reference_y, scale_x, scale_y, largest, factor, KIND
            )
            column, fx = _cell(x, width)
            row, fy = _cell(y, height)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    r, c = row + down, column + right
                    inside = here & (r >= 0) & (r < height) & (c >= 0) & (c < width)
                    share = weight * (fy if down else 1 - fy) * (fx if right else 1 - fx)
                    at = (first + r * width + c)[:, None] * (M * D) + channel[None, :]
                    cells = tl.load(value + at, mask=inside[:, None] & wide[None, :], other=0.0)
                    result += share[:, None] * cells.to(tl.float32)
        first += height * width
    tl.store(output + entry[:, None] * D + channel[None, :], result, mask=here[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["queries", "tokens"])
def backward_kernel(
    value, places, shares, reference, output, grad_output, grad_value, grad_places, grad_shares,
    sizes, queries, tokens, M: tl.constexpr, D: tl.constexpr,
    L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr, SCALED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gradients of places (SCALED: as they are; else of the locations made from them), shares and, with VALUE, values."""
    picture, head, line, here, channel, wide = _tile(queries, M, D, BLOCK, WIDTH)
    entry = line * M + head
    whole = here[:, None] & wide[None, :]
    grad = tl.load(grad_output + entry[:, None] * D + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    largest, factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    mean = largest  # of the gradients of the weights, weighted by them: what a softmax subtracts
    if KIND > 0:
        largest, factor = _softmax_parts(shares, entry, here, L, P, PADDED)
        said = tl.load(output + entry[:, None] * D + channel[None, :], mask=whole, other=0.0).to(tl.float32)
        mean = tl.sum(said * grad, axis=1)
    value += (picture * tokens * M + head) * D
    grad_value += (picture * tokens * M + head) * D
    first = 0
    for level in tl.static_range(L):
        height, width = tl.cast(sizes[2 * level], tl.int32), tl.cast(sizes[2 * level + 1], tl.int32)
        reference_x, reference_y, scale_x, scale_y = _frame(reference, line, here, level, height, width, L, P, KIND)
        for point in range(P):
            sample = entry * (L * P) + level * P + point
            x, y, weight = _sample(
                places, shares, sample, here, reference_x, reference_y, scale_x, scale_y, largest, factor, KIND
            )
            column, fx = _cell(x, width)
            row, fy = _cell(y, height)
            slope_x = (x - x) + (y - y)  # zero, or NaN
            slope_y, dots = slope_x, slope_x
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    r, c = row + down, column + right
                    inside = here & (r >= 0) & (r < height) & (c >= 0) & (c < width)
                    by_y, by_x = fy if down else 1 - fy, fx if right else 1 - fx
                    at = (first + r * width + c)[:, None] * (M * D) + channel[None, :]
                    mask = inside[:, None] & wide[None, :]
                    cells = tl.load(value + at, mask=mask, other=0.0)
                    dot = tl.sum(cells.to(tl.float32) * grad, axis=1)
                    dots += by_y * by_x * dot
                    slope_x += (by_y if right else -by_y) * dot
                    slope_y += (by_x if down else -by_x) * dot
                    if VALUE:
                        tl.atomic_add(grad_value + at, (weight * by_y * by_x)[:, None] * grad, mask=mask, sem="relaxed")
            grad_share = dots
            if KIND > 0:
                grad_share = weight * (dots - mean)
            tl.store(grad_shares + sample, grad_share, mask=here)
            grad_x, grad_y = weight * width * slope_x, weight * height * slope_y
            if SCALED:
                grad_x, grad_y = grad_x * scale_x, grad_y * scale_y
            tl.store(grad_places + 2 * sample, grad_x, mask=here)
            tl.store(grad_places + 2 * sample + 1, grad_y, mask=here)
        first += height * width
