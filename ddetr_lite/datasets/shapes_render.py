"""How a picture of the `shapes` set is painted: backgrounds, patterns, shading, grain.

Bound by the same rule as `shapes_outlines`: no operation that one CPU rounds differently from another.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddetr_lite.datasets.shapes_outlines import FULL_COVER, Draws, Floats, Ints, Window

# The colours of the objects; backgrounds are the same hues, greyed.
PALETTE = np.array(
    [
        *[(214, 64, 69), (240, 113, 77), (244, 162, 63), (247, 203, 88), (177, 196, 71), (94, 165, 84)],
        *[(45, 139, 110), (58, 175, 169), (72, 159, 207), (50, 104, 172), (72, 76, 148), (125, 84, 160)],
        *[(186, 92, 158), (232, 135, 165), (152, 92, 64), (206, 160, 116), (240, 228, 205), (66, 64, 78)],
    ],
    dtype=np.float64,
)


# -------------------------------------------------------------------------------------------------- textures
# A texture is a field (h, w) of numbers in 0..1, the share of a second colour at each pixel.


def _clip01(field: Floats) -> Floats:
    return np.minimum(np.maximum(field, 0.0), 1.0)


def _wave(phase: Floats, period: float) -> Floats:
    """Stripes of equal width: 0 and 1 in turn along `phase` (pixels), with edges one pixel soft."""
    share = phase / period
    return _clip01(0.5 + (np.abs(share - np.floor(share) - 0.5) - 0.25) * period)


def _clouds(draws: Draws, size: int, coarse: int, octaves: int) -> Floats:
    """Value noise: random grids, each twice as fine and half as strong as the last, blended smoothly."""
    total, strength, reach = np.zeros((size, size)), 1.0, 0.0
    for octave in range(octaves):
        cells = coarse * 2**octave
        grid = draws.grid(cells + 1, cells + 1)
        at = (np.arange(size) + 0.5) * (cells / size)
        low = np.floor(at).astype(np.int64)
        share = at - low
        share = share * share * (3.0 - 2.0 * share)
        rows = grid[low] + (grid[low + 1] - grid[low]) * share[:, None]
        total = total + strength * (rows[:, low] + (rows[:, low + 1] - rows[:, low]) * share)
        reach, strength = reach + strength, strength * 0.5
    return _clip01(0.5 + (total / reach - 0.5) * 1.7)


def _axes(draws: Draws, size: int) -> tuple[Floats, Floats]:
    """Pixel coordinates (size, size) along two axes, turned by a random angle about the picture's centre."""
    cosine, sine = draws.turn()
    at = np.arange(size) + 0.5 - size / 2
    x, y = at[None, :], at[:, None]
    return x * cosine - y * sine, x * sine + y * cosine


def _gradient(draws: Draws, size: int) -> Floats:
    along, across = _axes(draws, size)
    if draws.uniform(0, 1) < 0.5:
        return _clip01(0.5 + along / (1.2 * size))
    x, y = along - draws.uniform(-0.4, 0.4) * size, across - draws.uniform(-0.4, 0.4) * size
    return _clip01(np.sqrt(x * x + y * y) / (0.9 * size))


def _stripes(draws: Draws, size: int) -> Floats:
    along, _ = _axes(draws, size)
    bent = along + _clouds(draws, size, 2, 2) * size * draws.uniform(0.0, 0.25)
    return _wave(bent, size * draws.uniform(0.07, 0.25))


def _checks(draws: Draws, size: int) -> Floats:
    along, across = _axes(draws, size)
    period = size * draws.uniform(0.12, 0.35)
    a, b = _wave(along, period), _wave(across, period)
    return a + b - 2.0 * a * b


def _cells(draws: Draws, size: int) -> Floats:
    """Pebbles round random points, with walls where the nearest two points are equally far."""
    count = draws.integer(10, 34)
    spots = draws.grid(count, 2) * (1.3 * size) - 0.15 * size
    shades = draws.grid(count, 1)[:, 0]
    at = np.arange(size) + 0.5
    x, y = at[None, None, :] - spots[:, 0, None, None], at[None, :, None] - spots[:, 1, None, None]
    squares = x * x + y * y  # (count, size, size)
    nearest, second = np.partition(squares, 1, axis=0)[:2]
    wall = _clip01((np.sqrt(second) - np.sqrt(nearest)) * (24.0 / size))
    pebbles: Floats = wall * (0.25 + 0.75 * shades[np.argmin(squares, axis=0)])
    return pebbles


def _speckle(draws: Draws, size: int) -> Floats:
    fine = _clouds(draws, size, max(4, size // 6), 2)
    return _clip01((fine - draws.uniform(0.55, 0.75)) * 6.0) * 0.8 + 0.2 * _clouds(draws, size, 3, 2)


def _mist(draws: Draws, size: int) -> Floats:
    return _clouds(draws, size, draws.integer(2, 5), 4)


_Texture = Callable[[Draws, int], Floats]
TEXTURES: tuple[_Texture, ...] = (_gradient, _mist, _stripes, _checks, _cells, _speckle)


# -------------------------------------------------------------------------------------------------- pictures


def _colour(draws: Draws) -> Floats:
    """A colour (3,) of the palette, a little lighter or darker, as numbers from 0 to 255."""
    colour: Floats = PALETTE[draws.integer(0, len(PALETTE) - 1)] + draws.uniform(-14, 14)
    return colour


def _mix(first: Floats, second: Floats, share: Floats | float) -> Floats:
    return first + (second - first) * share


def paint_background(draws: Draws, size: int) -> Floats:
    """A canvas (size, size, 3), 0 to 255: a texture, or two that meet, muted, with blurred blobs."""
    grey = np.full(3, draws.uniform(55, 220))
    first = _mix(_colour(draws), grey, draws.uniform(0.55, 0.8))
    second = _mix(_colour(draws), grey, draws.uniform(0.55, 0.8))
    second = second + draws.uniform(14, 34) * (1.0 if draws.uniform(0, 1) < 0.5 else -1.0)
    field = TEXTURES[draws.integer(0, len(TEXTURES) - 1)](draws, size)
    if draws.uniform(0, 1) < 0.35:
        other = TEXTURES[draws.integer(0, len(TEXTURES) - 1)](draws, size)
        field = _mix(field, other, _clip01((_clouds(draws, size, 2, 2) - 0.5) * 4.0 + 0.5))
    canvas = _mix(first, second, field[..., None])
    at = np.arange(size) + 0.5
    for _ in range(draws.integer(0, 4)):
        radius = size * draws.uniform(0.1, 0.4)
        x, y = at[None, :] - size * draws.uniform(0, 1), at[:, None] - size * draws.uniform(0, 1)
        bump = np.maximum(1.0 - (x * x + y * y) / (radius * radius), 0.0)
        tint = _mix(_colour(draws), grey, draws.uniform(0.3, 0.7))
        canvas = _mix(canvas, tint, (bump * bump * draws.uniform(0.25, 0.6))[..., None])
    light = 0.88 + 0.24 * _gradient(draws, size)
    return canvas * light[..., None]


def _pattern(draws: Draws, kind: str, x: Floats, y: Floats, longest: float) -> Floats:
    """A field (h, w) over an object's window, whose centre is the origin of x (1, w) and y (h, 1)."""
    cosine, sine = draws.turn()
    u, v = x * cosine - y * sine, x * sine + y * cosine
    period = max(4.5, longest * draws.uniform(0.2, 0.42))
    if kind == "plain":
        return np.zeros_like(u)
    if kind == "gradient":
        return _clip01(0.5 + u / longest)
    if kind == "stripes":
        return _wave(u, period)
    a, b = u / period, v / period
    if kind == "checks":
        p, q = _wave(u, period), _wave(v, period)
        return p + q - 2.0 * p * q
    a, b = a - np.floor(a) - 0.5, b - np.floor(b) - 0.5  # dots
    return _clip01(0.5 + 0.3 * period - np.sqrt(a * a + b * b) * period)


def _blur(counts: Ints, reach: int) -> Ints:
    """The sum over each pixel's square of 2 * reach + 1 pixels a side; (h, w) to (h, w), zeros outside."""
    for axis in (0, 1):
        ends = [(reach + 1, reach) if k == axis else (0, 0) for k in (0, 1)]
        sums = np.cumsum(np.pad(counts, ends), axis=axis)
        span = 2 * reach + 1
        counts = sums[span:] - sums[:-span] if axis == 0 else sums[:, span:] - sums[:, :-span]
    return counts


def paint_object(draws: Draws, canvas: Floats, window: Window, counts: Ints, others: Sequence[Floats] = ()) -> Floats:
    """Paint an object over `canvas` (H, W, 3), in place: shadow, then pattern, shaded, with a darker rim.

    `window` and `counts` are `coverage`'s, and may reach beyond the picture. Returns the object's main colour
    (3,); `others` are those of the objects painted before, from which this one's keeps a distance where it
    can.
    """
    size = len(canvas)
    reach = max(1, (size + 48) // 96)
    margin = 3 * reach
    x0, y0, x1, y1 = window[0] - margin, window[1] - margin, window[2] + margin, window[3] + margin
    counts = np.pad(counts, margin)
    inside = (slice(max(0, -y0), min(y1, size) - y0), slice(max(0, -x0), min(x1, size) - x0))
    under = canvas[max(0, y0) : min(y1, size), max(0, x0) : min(x1, size)]
    longest = float(max(window[2] - window[0], window[3] - window[1]))

    cover = (counts / FULL_COVER)[inside][..., None]
    whole = FULL_COVER * (2 * reach + 1) * (2 * reach + 1)
    soft = _blur(counts, reach)
    softer = _blur(soft, reach) / (whole * (2 * reach + 1) * (2 * reach + 1))
    shadow = np.roll(softer, (reach, reach), axis=(0, 1))
    x = (np.arange(x0, x1, dtype=np.float64) + 0.5 - (x0 + x1) / 2)[None, :]
    y = (np.arange(y0, y1, dtype=np.float64) + 0.5 - (y0 + y1) / 2)[:, None]
    kinds = ("plain", "gradient", "plain", "stripes", "checks", "dots")
    known = len(kinds) if longest >= 16 else 2  # a pattern on a very small object would only blur its outline
    field = _pattern(draws, kinds[draws.integer(0, known - 1)], x, y, longest)
    first, second = _fill(draws, under, counts[inside], others)
    paint = _mix(first, second, field[inside][..., None])
    paint = paint * (1.04 - 0.22 * (x + y) / longest)[inside][..., None]
    rim = _clip01((0.97 - soft / whole) * 2.2)[inside][..., None]
    paint = paint * (1.0 - 0.42 * rim)
    under[...] = under * (1.0 - 0.42 * shadow[inside][..., None])
    under[...] = _mix(under, paint, cover)
    return first


def _fill(draws: Draws, under: Floats, counts: Ints, others: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Two colours (3,) for an object, neither lost on what lies under it (`under`, weighted by `counts`)."""
    ground = (np.floor(under).astype(np.int64) * counts[..., None]).sum(axis=(0, 1)) / int(counts.sum())
    best, best_contrast = (PALETTE[0], PALETTE[0]), -1.0
    for _ in range(12):
        first = _colour(draws)
        second = _mix(first, _colour(draws), draws.uniform(0.45, 1.0))
        rivals = [_distance(first, other) for other in others]
        contrast = min([_distance(first, ground), _distance(second, ground), *rivals])
        if contrast > best_contrast:
            best, best_contrast = (first, second), contrast
        if contrast >= 80:
            break
    return best


def _distance(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Sum of the differences in red, green and blue, added one after the other so that the order is fixed."""
    red, green, blue = (abs(float(a) - float(b)) for a, b in zip(first, second, strict=True))
    return red + green + blue


def finish(draws: Draws, canvas: Floats) -> NDArray[np.uint8]:
    """The canvas (H, W, 3) with a camera's grain, as bytes."""
    height, width, _ = canvas.shape
    strength = draws.uniform(2, 9)
    grain = (draws.grid(height, width) + draws.grid(height, width) - 1.0) * strength
    levels = np.floor(canvas + grain[..., None] + 0.5)
    return np.minimum(np.maximum(levels, 0.0), 255.0).astype(np.uint8)
