"""The outlines of `shapes`' objects: random draws, polygons, and how much of each pixel a polygon covers.

The pixels are part of a pinned test, on every machine. So nothing here, or in `shapes_render`, rounds
differently from one CPU to the next: arrays see only + - * / sqrt, floor and comparisons, which IEEE 754
defines to the last bit; sums that reach a pixel are sums of integers; sines and cosines come from tables that
Python's `math` makes and `round` cuts; random numbers are raw 64-bit words of PCG64, which numpy promises for
good, as it does not promise the distributions built on them.

Coordinates are pixels, x to the right, y down, with the centre of the first pixel at (0.5, 0.5).
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in whole pixels, x1 and y1 excluded

SUBSAMPLES = 6  # a pixel's coverage is counted on 6 x 6 points
FULL_COVER = SUBSAMPLES * SUBSAMPLES
TURN = [(round(math.cos(math.pi * k / 360), 9), round(math.sin(math.pi * k / 360), 9)) for k in range(720)]


class Draws:
    """Random numbers: a function of the integers given alone, on any machine, with any numpy."""

    def __init__(self, *key: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(list(key)))

    def grid(self, height: int, width: int) -> Floats:
        """(height, width) numbers, uniform in [0, 1)."""
        words: NDArray[np.uint64] = self._words.random_raw(height * width).reshape(height, width)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self._words.random_raw()) >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """One of low, low + 1, ..., high."""
        return low + int(self.uniform(0.0, high - low + 1.0))

    def turn(self) -> tuple[float, float]:
        """Cosine and sine of an angle, one of 720 on the circle."""
        return TURN[self.integer(0, 719)]


def _arc(radius: float, start: float, stop: float, steps: int, x: float = 0.0) -> list[tuple[float, float]]:
    """Points on a circle about (x, 0), from angle `start` to `stop` in degrees, both included."""
    angles = [math.radians(start + (stop - start) * k / steps) for k in range(steps + 1)]
    return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _heart(steps: int) -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / steps for k in range(steps)]
    upper = [5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a) - 13 * math.cos(a) for a in angles]
    return [(math.sin(a) * (1 - math.cos(2 * a)) / 2, y / 16) for a, y in zip(angles, upper, strict=True)]


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = [math.pi * k / points for k in range(2 * points)]
    return [(math.sin(a) * r, -math.cos(a) * r) for k, a in enumerate(angles) for r in [inner if k % 2 else 1.0]]


_ARM = 0.34
# Every silhouette is one polygon. Those of ring and key run round the outside, then back round the hole.
SILHOUETTES: dict[str, Floats] = {
    name: np.array([(round(x, 6), round(y, 6)) for x, y in points], dtype=np.float64)
    for name, points in {
        "circle": _arc(1, 0, 360, 48)[:-1],
        "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        "triangle": [(0.0, -1.0), (1.0, 0.7), (-1.0, 0.7)],
        "star": _star(5, 0.44),
        "ring": _arc(1, 0, 360, 48) + _arc(0.54, 360, 0, 36),
        "cross": [
            *[(-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)],
            *[(_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)],
        ],
        "heart": _heart(48),
        # a disc less a smaller one beside it; they cross at 51.32 degrees of the one, 77.36 of the other
        "crescent": _arc(1, 51.32, 308.68, 36) + _arc(0.8, 282.64, 77.36, 30, x=0.45),
        # From here on those that only larger sets have. All of them are far from all others, mirrored ones too: a test
        # measures how far.
        "arrow": [(0.0, -1.0), (0.9, -0.1), (_ARM, -0.1), (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, -0.1), (-0.9, -0.1)],
        "ell": [(-0.8, -1.0), (-0.2, -1.0), (-0.2, 0.4), (0.8, 0.4), (0.8, 1.0), (-0.8, 1.0)],
        "tee": [
            *[(-1.0, -1.0), (1.0, -1.0), (1.0, -0.42), (0.3, -0.42)],
            *[(0.3, 1.0), (-0.3, 1.0), (-0.3, -0.42), (-1.0, -0.42)],
        ],
        "bolt": [
            *[(0.25, -1.0), (-0.65, 0.15), (-0.05, 0.15), (-0.3, 1.0)],
            *[(0.65, -0.25), (0.02, -0.25), (0.5, -1.0)],
        ],
        "hourglass": [(-0.8, -1.0), (0.8, -1.0), (0.14, 0.0), (0.8, 1.0), (-0.8, 1.0), (-0.14, 0.0)],
        "arch": [
            *[*_arc(1, 180, 360, 24), (1.0, 1.0), (0.45, 1.0)],
            *[*_arc(0.45, 360, 180, 18), (-0.45, 1.0), (-1.0, 1.0)],
        ],
        "key": [
            *_arc(0.5, 180, 342.54, 24, x=-0.5),
            *[(1.0, -0.15), (1.0, 0.45), (0.75, 0.45), (0.75, 0.15)],
            *[(0.55, 0.15), (0.55, 0.4), (0.3, 0.4), (0.3, 0.15)],
            *_arc(0.5, 17.46, 180, 24, x=-0.5),
            *_arc(0.2, 180, -180, 24, x=-0.5),
        ],
        "comb": [
            *[(-1.0, -0.9), (-0.6, -0.9), (-0.6, 0.2), (-0.2, 0.2), (-0.2, -0.9), (0.2, -0.9)],
            *[(0.2, 0.2), (0.6, 0.2), (0.6, -0.9), (1.0, -0.9), (1.0, 0.8), (-1.0, 0.8)],
        ],
    }.items()
}


def place(name: str, aspect: float, turn: tuple[float, float], longest: float) -> Floats:
    """The silhouette `name`, stretched by `aspect`, turned, and scaled: (V, 2) points in pixels.

    Its upright bounding box begins at (0, 0), and the longer side of that box is `longest` pixels.
    """
    cosine, sine = turn
    x, y = SILHOUETTES[name][:, 0] * aspect, SILHOUETTES[name][:, 1]
    points = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)
    points = points - points.min(axis=0)
    scaled: Floats = points * (longest / float(points.max()))
    return scaled


def clip_polygon(points: Floats, size: int) -> Floats:
    """The part of a polygon (V, 2) inside the square picture of `size` pixels, as a polygon (V', 2).

    Each border cuts in turn (Sutherland and Hodgman); parts that it separates stay joined along the border.
    """
    kept = [(float(x), float(y)) for x, y in points]
    for axis, sign, limit in ((0, 1.0, 0.0), (0, -1.0, -float(size)), (1, 1.0, 0.0), (1, -1.0, -float(size))):
        corners, kept = kept, []
        for k, here in enumerate(corners):
            before = corners[k - 1]
            depth, depth_before = sign * here[axis] - limit, sign * before[axis] - limit
            if (depth < 0) != (depth_before < 0):
                share = depth_before / (depth_before - depth)
                cut = [before[0] + share * (here[0] - before[0]), before[1] + share * (here[1] - before[1])]
                cut[axis] = abs(limit)
                kept.append((cut[0], cut[1]))
            if depth >= 0:
                kept.append(here)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def coverage(points: Floats) -> tuple[Window, Ints]:
    """How much of each pixel a polygon (V, 2) covers: its window, and (h, w) counts from 0 to `FULL_COVER`.

    Edges cross each row of sample points; the running sum of the crossings, +1 for an edge that goes down and
    -1 for one that goes up, is not 0 inside.
    """
    (x0, y0), (x1, y1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    window = (int(x0), int(y0), int(x1), int(y1))
    width, height = (window[2] - window[0]) * SUBSAMPLES, (window[3] - window[1]) * SUBSAMPLES
    ax, ay = ((points[:, 0] - x0) * SUBSAMPLES, (points[:, 1] - y0) * SUBSAMPLES)
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    sample_y = (np.arange(height) + 0.5)[:, None]
    down = (ay <= sample_y).astype(np.int8) - (by <= sample_y).astype(np.int8)  # (height, V): 1, 0 or -1
    rows, edges = np.nonzero(down)
    share = (sample_y[rows, 0] - ay[edges]) / (by[edges] - ay[edges])
    crossing = ax[edges] + share * (bx[edges] - ax[edges])
    first_inside = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    steps = np.zeros((height, width + 1), dtype=np.int8)
    np.add.at(steps, (rows, first_inside), down[rows, edges])
    inside = np.cumsum(steps, axis=1, dtype=np.int8)[:, :width] != 0
    blocks = inside.reshape(height // SUBSAMPLES, SUBSAMPLES, width // SUBSAMPLES, SUBSAMPLES)
    return window, blocks.sum(axis=(1, 3), dtype=np.int64)
