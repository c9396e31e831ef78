"""The exercises of notebook 07: sampling between cells, its slope, the compass, and where a query looks."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.kernels import reference
from ddetr_lite.layers import deformable_attention

_original_locations = deformable_attention.sampling_locations

# --- bilinear_sample --------------------------------------------------------------------------------------------


def _sample(
    feature: Tensor,
    x: float,
    y: float,
    swap: bool = False,
    mirrored: bool = False,
    clamp: bool = False,
    truncate: bool = False,
    guarded: bool = True,
    bounded: bool = True,
) -> Tensor:
    """The four cells around (x, y), with one thing done differently."""
    if guarded and not (math.isfinite(x) and math.isfinite(y)):
        return feature.new_full((feature.shape[2],), float("nan"))
    x0, y0 = (int(x), int(y)) if truncate else (math.floor(x), math.floor(y))
    fx, fy = x - x0, y - y0
    height, width = feature.shape[:2]
    result = feature.new_zeros(feature.shape[2])
    for row, weight_y in ((y0, fy if mirrored else 1 - fy), (y0 + 1, 1 - fy if mirrored else fy)):
        for column, weight_x in ((x0, fx if mirrored else 1 - fx), (x0 + 1, 1 - fx if mirrored else fx)):
            i, j = (column, row) if swap else (row, column)
            if clamp:
                i, j = min(max(i, 0), height - 1), min(max(j, 0), width - 1)
            if not bounded or (0 <= i < height and 0 <= j < width):
                result = result + weight_x * weight_y * feature[i, j]
    return result


def _nearest(feature: Tensor, x: float, y: float) -> Tensor:
    if not (math.isfinite(x) and math.isfinite(y)):
        return feature.new_full((feature.shape[2],), float("nan"))
    i, j = round(y), round(x)
    inside = 0 <= i < feature.shape[0] and 0 <= j < feature.shape[1]
    return feature[i, j] if inside else feature.new_zeros(feature.shape[2])


def _asks_for_nan_only(feature: Tensor, x: float, y: float) -> Tensor:
    nan = math.isnan(x) or math.isnan(y)
    return feature.new_full((feature.shape[2],), float("nan")) if nan else _sample(feature, x, y, guarded=False)


def _hides_nan(feature: Tensor, x: float, y: float) -> Tensor:
    if not (math.isfinite(x) and math.isfinite(y)):
        return feature.new_zeros(feature.shape[2])
    return reference.bilinear_sample(feature, x, y)


def _sample_cases() -> list[Case]:
    two = torch.tensor([[[1.0], [3]], [[5], [11]]])
    return [
        Case("2 × 2 cells of one channel, x = 0.25, y = 0.6", (two, 0.25, 0.6)),
        Case("4 × 6 cells of three channels, x = 3.6, y = 1.3", (normal(110, 4, 6, 3), 3.6, 1.3)),
        Case("partly outside on the left, x = −0.4, y = 2.2", (normal(111, 4, 6, 3), -0.4, 2.2)),
        Case("partly outside below, x = 2.5, y = 3.7", (normal(112, 4, 6, 2), 2.5, 3.7)),
        Case("far outside", (normal(113, 4, 6, 2), 40.0, -9.0)),
        Case("a location that is not a number", (normal(114, 4, 6, 2), float("nan"), 1.0)),
        Case("an infinite location", (normal(115, 4, 6, 2), 1.0, float("inf"))),
    ]


BILINEAR_SAMPLE = Exercise(
    name="bilinear_sample",
    notebook="07",
    task="Mix the four cells around (x, y), each weighed by its nearness; outside is 0; NaN where x or y is not finite.",
    reference=reference.bilinear_sample,
    cases=_sample_cases,
    part=reference.bilinear_sample,
    hints=(
        "x0 = math.floor(x) is the column on the left, fx = x − x0 how far x is on the way to the next.",
        "The weights are (1 − fx)(1 − fy), fx(1 − fy), (1 − fx)fy and fx·fy; a row is y, a column is x: feature[row, column].",
        "Ask first: if not (math.isfinite(x) and math.isfinite(y)): return feature.new_full((D,), float('nan')).",
    ),
    mistakes=(
        Mistake(
            "x and y are swapped: a row belongs to y, a column to x, feature[row, column]",
            lambda f, x, y: _sample(f, x, y, swap=True),
        ),
        Mistake(
            "the weights are the wrong way round: the nearer cell should weigh more, 1 − fx on the left",
            lambda f, x, y: _sample(f, x, y, mirrored=True),
        ),
        Mistake("the place is rounded to the nearest cell: mix the four around it", _nearest),
        Mistake(
            "outside, the border's cell is repeated; there the map is 0",
            lambda f, x, y: _sample(f, x, y, clamp=True),
        ),
        Mistake(
            "it is not asked whether a cell is on the map: −1 is the last row or column for Python, and beyond it is an error",
            lambda f, x, y: _sample(f, x, y, bounded=False),
        ),
        Mistake(
            "int() cuts towards zero, so that −0.4 falls into cell 0: math.floor goes down",
            lambda f, x, y: _sample(f, x, y, truncate=True),
        ),
        Mistake(
            "half a cell is subtracted: x and y count cells here, and whole numbers are centres already",
            lambda f, x, y: _sample(f, x - 0.5, y - 0.5),
        ),
        Mistake(
            "NaN is not asked for first: math.floor raises an error there, where the result should be NaN",
            lambda f, x, y: _sample(f, x, y, guarded=False),
        ),
        Mistake("an infinite place is not asked for: take math.isfinite, of x and of y", _asks_for_nan_only),
        Mistake("a place that is not finite gives zeros: it should give NaN, so that somebody sees it", _hides_nan),
    ),
)

# --- slope: the gradient with respect to the place ----------------------------------------------------------------


def _corners(feature: Tensor, x: float, y: float) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
    column, row = int(x), int(y)
    a, b = feature[row, column], feature[row, column + 1]
    c, d = feature[row + 1, column], feature[row + 1, column + 1]
    return a, b, c, d, x - column, y - row


def _slope(feature: Tensor, x: float, y: float) -> Tensor:
    a, b, c, d, fx, fy = _corners(feature, x, y)
    return torch.stack(((1 - fy) * (b - a) + fy * (d - c), (1 - fx) * (c - a) + fx * (d - b)))


def _mixed_by_own_fraction(feature: Tensor, x: float, y: float) -> Tensor:
    a, b, c, d, fx, fy = _corners(feature, x, y)
    return torch.stack(((1 - fx) * (b - a) + fx * (d - c), (1 - fy) * (c - a) + fy * (d - b)))


def _upper_row_only(feature: Tensor, x: float, y: float) -> Tensor:
    a, b, c, _, _, _ = _corners(feature, x, y)
    return torch.stack((b - a, c - a))


def _sum_of_differences(feature: Tensor, x: float, y: float) -> Tensor:
    a, b, c, d, _, _ = _corners(feature, x, y)
    return torch.stack(((b - a) + (d - c), (c - a) + (d - b)))


SLOPE = Exercise(
    name="slope",
    notebook="07",
    task="The slope of the map at (x, y): to the right, mixed over the two rows, and downwards, mixed over the two columns.",
    reference=_slope,
    cases=lambda: [
        Case("2 × 2 cells, x = 0.25, y = 0.5", (torch.tensor([[1.0, 3], [5, 11]]), 0.25, 0.5)),
        Case("4 × 6 cells, x = 3.6, y = 1.3", (normal(115, 4, 6), 3.6, 1.3)),
        Case("near the upper left corner, x = 0.1, y = 0.9", (normal(116, 3, 3), 0.1, 0.9)),
    ],
    hints=(
        "column = int(x), fx = x − column; the four cells are feature[row, column], one to the right, one below, and both.",
        "In x: (b − a) in the upper row weighs 1 − fy, (d − c) in the lower one fy.",
        "torch.stack((slope_x, slope_y)) makes (2,) of both.",
    ),
    mistakes=(
        Mistake("y comes before x: the slope in x is asked for first", lambda f, x, y: _slope(f, x, y).flip(0)),
        Mistake(
            "the slope in x is mixed by fx; it is mixed by fy, how far down the place is (and the slope in y by fx)",
            _mixed_by_own_fraction,
        ),
        Mistake("only the cells next to a are looked at: mix both rows, and both columns", _upper_row_only),
        Mistake("the slopes of both rows are added; they should be mixed, 1 − fy and fy", _sum_of_differences),
        Mistake("the sign is wrong: what lies to the right and below, minus what lies to the left and above",
                lambda f, x, y: -_slope(f, x, y)),
    ),
)  # fmt: skip

# --- compass_offsets ----------------------------------------------------------------------------------------------


def _compass(heads: int, points: int, king: bool = True, first: int = 1) -> Tensor:
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    if king:
        directions = directions / directions.abs().amax(-1, keepdim=True)
    return directions[:, None] * torch.arange(first, points + first)[:, None]


def _degrees(heads: int, points: int) -> Tensor:
    angles = torch.arange(heads) * (360 / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    return directions[:, None] * torch.arange(1, points + 1)[:, None]


def _plug_compass(function: Callable[[int, int], Tensor]) -> Callable[[int, int, int], Tensor]:
    """The package asks for all levels; they begin alike."""
    return lambda heads, levels, points: function(heads, points)[:, None].expand(heads, levels, points, 2).clone()


COMPASS = Exercise(
    name="compass_offsets",
    notebook="07",
    task="Head m looks at the angle 2π·m/M, point k is k + 1 cells away, measured by the larger of |x| and |y|.",
    reference=_compass,
    cases=lambda: [
        Case("four heads, two points", (4, 2)),
        Case("eight heads, four points", (8, 4)),
        Case("three heads, one point", (3, 1)),
    ],
    part=deformable_attention.compass_offsets,
    adapt=_plug_compass,
    hints=(
        "angles = torch.arange(heads) * (2 * math.pi / heads); torch.stack((angles.cos(), angles.sin()), dim=-1) is (M, 2).",
        "directions.abs().max(dim=-1, keepdim=True).values is the larger of the two; divide by it.",
        "directions[:, None] is (M, 1, 2); multiply by 1 ... P as (P, 1).",
    ),
    mistakes=(
        Mistake("the first point has no offset: it should be one cell away, k + 1", lambda m, p: _compass(m, p, first=0)),
        Mistake(
            "the distance is measured as the crow flies; divide by the larger of |x| and |y|",
            lambda m, p: _compass(m, p, king=False),
        ),
        Mistake("y comes before x: cos gives x, and x comes first", lambda m, p: _compass(m, p).flip(-1)),
        Mistake("the angles are degrees; cos and sin want radians, 2π for the whole circle", _degrees),
        Mistake(
            "heads and points are swapped: (heads, points, 2)", lambda m, p: _compass(m, p).transpose(0, 1)
        ),
        Mistake("y points upwards; in pictures it grows downwards", lambda m, p: _compass(m, p) * torch.tensor([1, -1])),
    ),
)  # fmt: skip

# --- sampling_locations -------------------------------------------------------------------------------------------


def _locations(reference: Tensor, offsets: Tensor, height: int, width: int) -> Tensor:
    return reference[:, None, None] + offsets / offsets.new_tensor([width, height])


def _location_cases() -> list[Case]:
    one = torch.tensor([[[[1.0, 2], [-2, 1]]]])
    return [
        Case("one query, one head, two points, 4 × 8 cells", (torch.tensor([[0.5, 0.25]]), one, 4, 8)),
        Case("three queries, two heads, four points, 5 × 3 cells",
             (normal(117, 3, 2).sigmoid(), 2 * normal(118, 3, 2, 4, 2), 5, 3)),
        Case("a square map", (normal(119, 2, 2).sigmoid(), normal(120, 2, 2, 2, 2), 6, 6)),
    ]  # fmt: skip


def _plug_locations(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Sequence[tuple[int, int]]], Tensor]:
    """The learner's locations for every picture and level; reference *boxes* stay with the package."""

    def adapted(reference: Tensor, offsets: Tensor, level_shapes: Sequence[tuple[int, int]]) -> Tensor:
        if reference.shape[-1] != 2:
            return _original_locations(reference, offsets, level_shapes)
        pictures = []
        for points, steps in zip(reference, offsets, strict=True):  # (N_q, L, 2) and (N_q, M, L, P, 2)
            levels = [function(points[:, i], steps[:, :, i], h, w) for i, (h, w) in enumerate(level_shapes)]
            pictures.append(torch.stack(levels, dim=2))
        return torch.stack(pictures)

    return adapted


LOCATIONS = Exercise(
    name="sampling_locations",
    notebook="07",
    task="Reference point plus offset, where an offset of one cell is 1/W in x and 1/H in y.",
    reference=_locations,
    cases=_location_cases,
    differentiable=True,
    part=deformable_attention.sampling_locations,
    adapt=_plug_locations,
    fused=True,
    hints=(
        "offsets / offsets.new_tensor([width, height]) turns cells into shares of the map.",
        "reference[:, None, None] is (N_q, 1, 1, 2) and repeats against (N_q, M, P, 2).",
    ),
    mistakes=(
        Mistake(
            "the offsets are divided by (H, W): x goes with the width. (The authors' first release had this mistake)",
            lambda r, o, h, w: r[:, None, None] + o / o.new_tensor([h, w]),
        ),
        Mistake("the offsets are added as they are: they count cells, and locations lie in 0..1",
                lambda r, o, h, w: r[:, None, None] + o),
        Mistake("a cell is taken for 1/(W − 1) of the map; locations count from border to border, so it is 1/W",
                lambda r, o, h, w: _locations(r, o, h - 1, w - 1)),
        Mistake("the offsets are multiplied by the size; a cell is a small share of the map, so divide",
                lambda r, o, h, w: r[:, None, None] + o * o.new_tensor([w, h])),
        Mistake("the reference point is divided as well; it is a share of the map already",
                lambda r, o, h, w: (r[:, None, None] + o) / o.new_tensor([w, h])),
        Mistake("the result counts cells: locations lie in 0..1",
                lambda r, o, h, w: r[:, None, None] * o.new_tensor([w, h]) + o),
        Mistake("half a cell is subtracted here; that comes later, when the location is looked up",
                lambda r, o, h, w: _locations(r, o - 0.5, h, w)),
    ),
)  # fmt: skip

EXERCISES = (BILINEAR_SAMPLE, SLOPE, COMPASS, LOCATIONS)
