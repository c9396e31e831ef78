"""The Triton kernels of multi-scale deformable attention: one forward, one backward. `triton` makes an operation of them.

A program computes BLOCK queries of one head of one picture. It works out each sample's place once, and reads rows of D
neighbouring channels in two pieces of WIDTH. (In one piece a thread would have four channels of two queries, and work out two
places, instead of eight channels of one: 1.5 times the instructions, and so many registers that fewer warps fit.) In the
fused form it makes places and weights from what the layer has in hand (reference points, offsets, scores before the softmax).
Sizes of levels come as floats: of whole numbers Triton would translate a kernel anew for every pattern of divisibility, and
training at several scales meets many. M and D are constants, since only of those it knows that a row of 24 channels begins at
a multiple of 16 bytes, and so can be loaded 16 bytes at a time.
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, L levels, P points.
"""

import triton
import triton.language as tl


def tile(channels: int, each: int = 4) -> dict[str, int]:
    """How many queries a program computes, the power of two that holds half of a head's channels, and Triton's options.

    each: numbers of a piece that a thread has, 4, or 8 where they are halves that are only read: 16 bytes at a time. A program
    is one warp: sums over channels stay within it, and it waits for no other. (By the instructions; not measured on a chip.)
    """
    width = max(4, triton.next_power_of_2(channels) // 2)
    block = max(1, 32 * each // width)
    # Fusion: a·b + c in one instruction, which Triton 3.10 no longer makes unless told.
    return {"BLOCK": block, "WIDTH": width, "num_warps": 1, "enable_fp_fusion": True}


@triton.jit
def _tile(queries, M: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Which picture and head this program computes; its queries as lines of B·N_q and whether each exists, (BLOCK,); the
    channels of the first piece, and whether each exists there and in the second, WIDTH further on, (WIDTH,).
    """
    blocks = tl.cdiv(queries, BLOCK)
    program = tl.program_id(0)
    query = program % blocks * BLOCK + tl.arange(0, BLOCK)
    head, picture = program // blocks % M, (program // blocks // M).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    return picture, head, picture * queries + query, query < queries, channel, channel < D, channel + WIDTH < D


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
    picture, head, line, here, channel, in_first, in_second = _tile(queries, M, D, BLOCK, WIDTH)
    entry = line * M + head  # (BLOCK,) of B·N_q·M
    largest, factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if KIND > 0:
        largest, factor = _softmax_parts(shares, entry, here, L, P, PADDED)
    value += (picture * tokens * M + head) * D
    first_sum = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    second_sum = first_sum
    start = 0
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
                    at = (start + r * width + c)[:, None] * (M * D) + channel[None, :]
                    cells = tl.load(value + at, mask=inside[:, None] & in_first[None, :], other=0.0)
                    first_sum += share[:, None] * cells.to(tl.float32)
                    cells = tl.load(value + WIDTH + at, mask=inside[:, None] & in_second[None, :], other=0.0)
                    second_sum += share[:, None] * cells.to(tl.float32)
        start += height * width
    own = entry[:, None] * D + channel[None, :]
    tl.store(output + own, first_sum, mask=here[:, None] & in_first[None, :])
    tl.store(output + WIDTH + own, second_sum, mask=here[:, None] & in_second[None, :])


@triton.jit(do_not_specialize=["queries", "tokens"])
def backward_kernel(
    value, places, shares, reference, output, grad_output, grad_value, grad_places, grad_shares,
    sizes, queries, tokens, M: tl.constexpr, D: tl.constexpr,
    L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr, SCALED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gradients of places (SCALED: as they are; else of the locations made from them), shares and, with VALUE, values."""
    picture, head, line, here, channel, in_first, in_second = _tile(queries, M, D, BLOCK, WIDTH)
    entry = line * M + head
    own = entry[:, None] * D + channel[None, :]
    own_first, own_second = here[:, None] & in_first[None, :], here[:, None] & in_second[None, :]
    first_grad = tl.load(grad_output + own, mask=own_first, other=0.0).to(tl.float32)
    second_grad = tl.load(grad_output + WIDTH + own, mask=own_second, other=0.0).to(tl.float32)
    largest, factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    mean = largest  # of the gradients of the weights, weighted by them: what a softmax subtracts
    if KIND > 0:
        largest, factor = _softmax_parts(shares, entry, here, L, P, PADDED)
        first_said = tl.load(output + own, mask=own_first, other=0.0).to(tl.float32)
        second_said = tl.load(output + WIDTH + own, mask=own_second, other=0.0).to(tl.float32)
        mean = tl.sum(first_said * first_grad + second_said * second_grad, axis=1)
    value += (picture * tokens * M + head) * D
    grad_value += (picture * tokens * M + head) * D
    start = 0
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
                    at = (start + r * width + c)[:, None] * (M * D) + channel[None, :]
                    first_mask, second_mask = inside[:, None] & in_first[None, :], inside[:, None] & in_second[None, :]
                    first_cells = tl.load(value + at, mask=first_mask, other=0.0).to(tl.float32)
                    second_cells = tl.load(value + WIDTH + at, mask=second_mask, other=0.0).to(tl.float32)
                    dot = tl.sum(first_cells * first_grad + second_cells * second_grad, axis=1)
                    dots += by_y * by_x * dot
                    slope_x += (by_y if right else -by_y) * dot
                    slope_y += (by_x if down else -by_x) * dot
                    if VALUE:
                        share = (weight * by_y * by_x)[:, None]
                        tl.atomic_add(grad_value + at, share * first_grad, mask=first_mask, sem="relaxed")
                        tl.atomic_add(grad_value + WIDTH + at, share * second_grad, mask=second_mask, sem="relaxed")
            grad_share = dots
            if KIND > 0:
                grad_share = weight * (dots - mean)
            tl.store(grad_shares + sample, grad_share, mask=here)
            grad_x, grad_y = weight * width * slope_x, weight * height * slope_y
            if SCALED:
                grad_x, grad_y = grad_x * scale_x, grad_y * scale_y
            tl.store(grad_places + 2 * sample, grad_x, mask=here)
            tl.store(grad_places + 2 * sample + 1, grad_y, mask=here)
        start += height * width
