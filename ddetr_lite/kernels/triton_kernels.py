"""The Triton kernels of multi-scale deformable attention: one forward, one backward. `triton` makes an operation of them.

A program computes BLOCK queries of one head of one picture. It works out each sample's place once, and reads rows of D
neighbouring channels, so that a warp's loads are whole cache lines. In the fused form it makes places and weights from
what the layer has in hand (reference points, offsets, scores before the softmax).
Sizes of levels come as floats: of whole numbers Triton would translate a kernel anew for every pattern of divisibility, and
training at several scales meets many.
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, L levels, P points.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(queries, heads, channels, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Which picture and head this program computes; its queries as lines of B·N_q and whether each exists, (BLOCK,); its
    channels and whether each exists, (WIDTH,).
    """
    blocks = tl.cdiv(queries, BLOCK)
    program = tl.program_id(0)
    query = program % blocks * BLOCK + tl.arange(0, BLOCK)
    head, picture = program // blocks % heads, (program // blocks // heads).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    return picture, head, picture * queries + query, query < queries, channel, channel < channels


@triton.jit
def _softmax_parts(scores, entry, here, L: tl.constexpr, P: tl.constexpr, PADDED: tl.constexpr):
    """The largest of each query's L·P scores, and the sum of exp(score − largest): (BLOCK,) each."""
    sample = tl.arange(0, PADDED)
    known = here[:, None] & (sample < L * P)[None, :]
    all_scores = tl.load(scores + entry[:, None] * (L * P) + sample[None, :], mask=known, other=0.0).to(tl.float32)
    all_scores = tl.where((sample < L * P)[None, :], all_scores, float("-inf"))
    largest = tl.max(all_scores, axis=1)
    return largest, tl.sum(tl.exp(all_scores - largest[:, None]), axis=1)


@triton.jit
def _sample(
    places, shares, reference, sample, spot, here, height, width, largest, total, P: tl.constexpr, KIND: tl.constexpr
):
    """Place (x, y) in 0..1 and weight of each query's sample, and what an offset of one moves x and y by.

    KIND 0: `places` are locations, `shares` weights. 2 and 4: `places` are offsets from reference points or boxes, and
    `shares` scores before the softmax.
    """
    x = tl.load(places + 2 * sample, mask=here, other=0.0).to(tl.float32)
    y = tl.load(places + 2 * sample + 1, mask=here, other=0.0).to(tl.float32)
    weight = tl.load(shares + sample, mask=here, other=0.0).to(tl.float32)
    scale_x = tl.zeros_like(x) + 1.0
    scale_y = scale_x
    if KIND > 0:
        weight = tl.exp(weight - largest) / total
        if KIND == 2:  # an offset counts cells
            scale_x = scale_x / width
            scale_y = scale_y / height
        else:  # an offset of P reaches the edge of the box
            scale_x = tl.load(reference + KIND * spot + 2, mask=here, other=0.0) * (0.5 / P)
            scale_y = tl.load(reference + KIND * spot + 3, mask=here, other=0.0) * (0.5 / P)
        x = tl.load(reference + KIND * spot, mask=here, other=0.0) + x * scale_x
        y = tl.load(reference + KIND * spot + 1, mask=here, other=0.0) + y * scale_y
    weight += (x - x) + (y - y)  # adds nothing, or NaN where a location is not finite
    return x, y, weight, scale_x, scale_y


@triton.jit
def _cell(location, size):
    """Location in 0..1 → the cell before it, and how far it lies behind that cell's centre, in 0..1.

    Clamped to where all is zero anyway, so that the integers hold; what is not finite ends there, too.
    """
    pixel = tl.minimum(tl.maximum(location * size - 0.5, -2.0), size + 1.0)
    cell = tl.floor(pixel)
    return cell.to(tl.int32), pixel - cell


@triton.jit(do_not_specialize=["queries"])
def forward_kernel(
    value, places, shares, reference, output, sizes, queries, heads, channels,
    picture_stride, token_stride, head_stride,
    L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    picture, head, line, here, channel, wide = _tile(queries, heads, channels, BLOCK, WIDTH)
    entry = line * heads + head  # (BLOCK,) of B·N_q·M
    largest, total = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if KIND > 0:
        largest, total = _softmax_parts(shares, entry, here, L, P, PADDED)
    value += picture * picture_stride + head * head_stride
    result = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    first = 0
    for level in tl.static_range(L):
        height, width = tl.cast(sizes[2 * level], tl.int32), tl.cast(sizes[2 * level + 1], tl.int32)
        for point in range(P):
            sample = entry * (L * P) + level * P + point
            x, y, weight, _scale_x, _scale_y = _sample(
                places, shares, reference, sample, line * L + level, here, height, width, largest, total, P, KIND
            )
            column, fx = _cell(x, width)
            row, fy = _cell(y, height)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    r, c = row + down, column + right
                    inside = here & (r >= 0) & (r < height) & (c >= 0) & (c < width)
                    share = weight * (fy if down else 1 - fy) * (fx if right else 1 - fx)
                    at = (first + r * width + c)[:, None] * token_stride + channel[None, :]
                    cells = tl.load(value + at, mask=inside[:, None] & wide[None, :], other=0.0)
                    result += share[:, None] * cells.to(tl.float32)
        first += height * width
    tl.store(output + entry[:, None] * channels + channel[None, :], result, mask=here[:, None] & wide[None, :])


@triton.jit(do_not_specialize=["queries", "tokens"])
def backward_kernel(
    value, places, shares, reference, output, grad_output, grad_value, grad_places, grad_shares,
    sizes, queries, tokens, heads, channels, picture_stride, token_stride, head_stride,
    L: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr, SCALED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gradients of places (SCALED: as they are; else of the locations made from them), shares and, with VALUE, values."""
    picture, head, line, here, channel, wide = _tile(queries, heads, channels, BLOCK, WIDTH)
    entry = line * heads + head
    whole = here[:, None] & wide[None, :]
    grad = tl.load(grad_output + entry[:, None] * channels + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    largest, total = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    mean = largest  # of the gradients of the weights, weighted by them: what a softmax subtracts
    if KIND > 0:
        largest, total = _softmax_parts(shares, entry, here, L, P, PADDED)
        said = tl.load(output + entry[:, None] * channels + channel[None, :], mask=whole, other=0.0).to(tl.float32)
        mean = tl.sum(said * grad, axis=1)
    value += picture * picture_stride + head * head_stride
    grad_value += (picture * tokens * heads + head) * channels
    first = 0
    for level in tl.static_range(L):
        height, width = tl.cast(sizes[2 * level], tl.int32), tl.cast(sizes[2 * level + 1], tl.int32)
        for point in range(P):
            sample = entry * (L * P) + level * P + point
            x, y, weight, scale_x, scale_y = _sample(
                places, shares, reference, sample, line * L + level, here, height, width, largest, total, P, KIND
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
                    token, mask = first + r * width + c, inside[:, None] & wide[None, :]
                    cells = tl.load(value + token[:, None] * token_stride + channel[None, :], mask=mask, other=0.0)
                    dot = tl.sum(cells.to(tl.float32) * grad, axis=1)
                    dots += by_y * by_x * dot
                    slope_x += (by_y if right else -by_y) * dot
                    slope_y += (by_x if down else -by_x) * dot
                    if VALUE:
                        at = token[:, None] * (heads * channels) + channel[None, :]
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
