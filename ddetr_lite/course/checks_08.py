"""The exercises of notebook 08: valid ratios, reference points of the encoder, and the operation itself."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr_lite import kernels
from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal, padding
from ddetr_lite.kernels.reference import LevelShapes
from ddetr_lite.layers import deformable_transformer

# --- valid_ratio --------------------------------------------------------------------------------------------------


def _ratio(mask: Tensor) -> Tensor:
    return torch.stack(((~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)), dim=-1)


def _plug_ratio(function: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The package asks for all levels at once."""
    return lambda masks: torch.stack([function(mask) for mask in masks], dim=1)


VALID_RATIO = Exercise(
    name="valid_ratio",
    notebook="08",
    task="The share of the columns that are picture, and the share of the rows: (x, y) for each picture.",
    reference=_ratio,
    cases=lambda: [
        Case("a picture of 2 × 3 cells on a map of 4 × 4", (padding(4, 4, (2, 3)),)),
        Case("two pictures on a map of 6 × 10", (padding(6, 10, (6, 4), (3, 10)),)),
        Case("no padding at all", (padding(3, 5, (3, 5)),)),
    ],
    part=deformable_transformer.valid_ratios,
    adapt=_plug_ratio,
    hints=(
        "mask[:, 0] is the first row of every picture: its cells that are not padding are the columns of the picture.",
        "(~mask[:, 0]).float().mean(dim=1) is their share. The first column, mask[:, :, 0], gives the rows.",
        "torch.stack((x, y), dim=-1).",
    ),
    mistakes=(
        Mistake("y comes before x", lambda m: _ratio(m).flip(-1)),
        Mistake("the padding is counted; the picture is asked for: ~mask", lambda m: 1 - _ratio(m)),
        Mistake("cells are counted; their share of the map is asked for",
                lambda m: _ratio(m) * torch.tensor([m.shape[2], m.shape[1]])),
        Mistake("both are the share of the whole area: look along the first row, and along the first column",
                lambda m: (~m).float().mean((1, 2))[:, None].expand(-1, 2)),
        Mistake("the last row and the last column are looked at, which may be padding; the first ones are picture",
                lambda m: torch.stack(((~m[:, -1]).float().mean(1), (~m[:, :, -1]).float().mean(1)), dim=-1)),
    ),
)  # fmt: skip

# --- encoder_reference_points ----------------------------------------------------------------------------------------


def _points(
    level_shapes: LevelShapes,
    ratios: Tensor,
    half: float = 0.5,
    flip: bool = False,
    divide: bool = True,
    multiply: str = "all",
    by_columns: bool = False,
) -> Tensor:
    rows = []
    for level, (height, width) in enumerate(level_shapes):
        cells = [(i, j) for i in range(height) for j in range(width)]
        if by_columns:
            cells = [(i, j) for j in range(width) for i in range(height)]
        for i, j in cells:
            x, y = (j + half) / width, (i + half) / height
            centre = torch.tensor([y, x] if flip else [x, y])
            point = centre / ratios[:, level] if divide else centre.expand(len(ratios), 2)
            on_levels = {
                "all": ratios,
                "own": ratios[:, level, None].expand_as(ratios),
                "own twice": ratios * ratios[:, level, None] ** 2,
                "none": torch.ones_like(ratios),
            }
            rows.append(point[:, None] * on_levels[multiply])
    return torch.stack(rows, dim=1)


def _reference_points(level_shapes: LevelShapes, ratios: Tensor) -> Tensor:
    return _points(level_shapes, ratios)


POINTS = Exercise(
    name="encoder_reference_points",
    notebook="08",
    task="The centre of each cell, divided by its own level's valid ratio, then multiplied by each level's: (B, N, L, 2).",
    reference=_reference_points,
    cases=lambda: [
        Case("levels of 2 × 3 and 1 × 2 cells, some padding",
             ([(2, 3), (1, 2)], torch.tensor([[[2 / 3, 0.5], [0.5, 1]]]))),
        Case("two pictures, three levels",
             ([(4, 6), (2, 3), (1, 2)], 0.4 + 0.6 * normal(130, 2, 3, 2).sigmoid())),
        Case("no padding", ([(2, 2), (1, 1)], torch.ones(1, 2, 2))),
    ],
    part=deformable_transformer.encoder_reference_points,
    hints=(
        "Three loops: levels, rows i, columns j. The centre on its own map is ((j + 0.5) / width, (i + 0.5) / height).",
        "centre / ratios[:, level] is (B, 2): the point of the picture.",
        "torch.stack(points, dim=1) is (B, N, 2); [:, :, None] * ratios[:, None] makes (B, N, L, 2).",
    ),
    mistakes=(
        Mistake("the point is the cell's corner; its centre is half a cell further",
                lambda s, r: _points(s, r, half=0.0)),
        Mistake("y comes before x", lambda s, r: _points(s, r, flip=True)),
        Mistake("the centre is not divided by its own level's ratio: it would be a share of the padded map",
                lambda s, r: _points(s, r, divide=False)),
        Mistake("the centre is multiplied by its own level's ratio; divide by it, which makes it a share of the picture",
                lambda s, r: _points(s, r, multiply="own twice")),
        Mistake("the points are shares of the picture: multiply by each level's ratio",
                lambda s, r: _points(s, r, multiply="none")),
        Mistake("every level gets the centre on the token's own map: ratios are left out, or its own level's is used for all",
                lambda s, r: _points(s, r, multiply="own")),
        Mistake("the cells come column by column; tokens go row by row",
                lambda s, r: _points(s, r, by_columns=True)),
    ),
)  # fmt: skip

# --- multi_scale_attention ------------------------------------------------------------------------------------------


def _attend(
    value: Tensor,
    level_shapes: LevelShapes,
    locations: Tensor,
    weights: Tensor,
    align_corners: bool = False,
    scaled: bool = True,
    padding: str = "zeros",
    heads_last: bool = False,
    swap_xy: bool = False,
    mean: bool = False,
    per_level: bool = False,
    cut_only: bool = False,
    places_cut: bool = False,
    as_width_height: bool = False,
) -> Tensor:
    batch, queries, heads, levels, points, _ = locations.shape
    if per_level:
        weights = weights / weights.sum(-1, keepdim=True)
    locations = locations.flip(-1) if swap_xy else locations
    result = torch.zeros(batch * heads, value.shape[-1], queries)
    for level, part in enumerate(value.split([h * w for h, w in level_shapes], dim=1)):
        feature = part.reshape(batch * heads, -1, *level_shapes[level])
        if not cut_only:
            feature = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, *level_shapes[level])
        if as_width_height:
            height, width = level_shapes[level]
            feature = feature.reshape(batch * heads, -1, width, height)
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)
        if places_cut:
            grid = locations[:, :, :, level].reshape(batch * heads, queries, points, 2)
        grid = 2 * grid - 1 if scaled else grid
        samples = F.grid_sample(feature, grid, padding_mode=padding, align_corners=align_corners)
        share = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        result = result + (samples * share).sum(-1)
    if mean:
        result = result / levels
    if heads_last:
        return result.reshape(batch, heads, -1, queries).transpose(1, 2).flatten(1, 2).transpose(1, 2)
    return result.reshape(batch, -1, queries).transpose(1, 2)


def _sizes(level_shapes: LevelShapes) -> Tensor:
    """(W, H) of each level, (L, 1, 2): beside the locations of its points."""
    return torch.tensor([[[width, height]] for height, width in level_shapes])


def _multi_scale_attention(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    return _attend(value, level_shapes, locations, weights)


def _attention_cases() -> list[Case]:
    def case(
        what: str, seed: int, batch: int, queries: int, heads: int, points: int, shapes: LevelShapes, total: float = 1
    ) -> Case:
        tokens = sum(h * w for h, w in shapes)
        size = (batch, queries, heads, len(shapes), points)
        locations = 1.2 * normal(seed, *size, 2).sigmoid() - 0.1
        shares = normal(seed + 1, batch, queries, heads, len(shapes) * points).softmax(-1).view(size) * total
        return Case(what, (normal(seed + 2, batch, tokens, heads, 4), shapes, locations, shares))

    return [
        case("one query, two heads, levels of 2 × 3 and 1 × 2 cells", 140, 1, 1, 2, 2, [(2, 3), (1, 2)]),
        case(
            "two pictures, three queries, three levels, some points outside", 143, 2, 3, 3, 4, [(4, 6), (2, 3), (1, 2)]
        ),
        case("weights that sum to 2: they are used as they are", 146, 1, 2, 2, 3, [(3, 2), (2, 2)], total=2),
    ]


def _plug_attention(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The package also says which backend it would take; the learner's function is the only one now."""

    def adapted(
        value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor, backend: str = "auto"
    ) -> Tensor:
        return function(value, level_shapes, locations, weights)

    return adapted


ATTENTION = Exercise(
    name="multi_scale_attention",
    notebook="08",
    task="For each query and head the sum over levels and points of weight times the value sampled there; heads side by side.",
    reference=_multi_scale_attention,
    cases=_attention_cases,
    noted=True,
    part=kernels.multi_scale_deformable_attention,
    adapt=_plug_attention,
    fused=True,
    hints=(
        "value.split([h * w for h, w in level_shapes], dim=1) are the levels, each (B, H·W, M, D).",
        "grid_sample wants (B·M, D, H, W): part.permute(0, 2, 3, 1).reshape(B * M, D, H, W); and the grid 2 · location − 1.",
        "Sum over points for each level, add the levels; (B·M, D, N_q) → reshape(B, M·D, N_q) → transpose(1, 2).",
    ),
    mistakes=(
        Mistake("align_corners=True puts the outer cells' centres at 0 and 1; here their borders are there",
                lambda v, s, a, w: _attend(v, s, a, w, align_corners=True)),
        Mistake("half a cell is missing: centres lie between the borders, so a location x is the place x·W − ½ among the cells",
                lambda v, s, a, w: _attend(v, s, a + 0.5 / _sizes(s), w)),
        Mistake("height and width are swapped: x goes with the width, x·W − ½, and y with the height",
                lambda v, s, a, w: _attend(v, s, a * _sizes(s).flip(-1) / _sizes(s), w)),
        Mistake("locations lie in 0..1, but grid_sample counts from −1 to 1: 2 · location − 1",
                lambda v, s, a, w: _attend(v, s, a, w, scaled=False)),
        Mistake("outside, the border is repeated; there everything is 0",
                lambda v, s, a, w: _attend(v, s, a, w, padding="border")),
        Mistake("x and y are swapped: locations are (x, y), and so is grid_sample's grid",
                lambda v, s, a, w: _attend(v, s, a, w, swap_xy=True)),
        Mistake("the levels are averaged; they are added, since the weights sum to one over all of them",
                lambda v, s, a, w: _attend(v, s, a, w, mean=True)),
        Mistake("the weights are divided by their sum; they are used as they are",
                lambda v, s, a, w: _attend(v, s, a, w / w.sum((3, 4), keepdim=True))),
        Mistake("the softmax is taken once more; the weights are given",
                lambda v, s, a, w: _attend(v, s, a, w.flatten(3).softmax(-1).view_as(w))),
        Mistake("the weights are normed on each level; they are used as they are",
                lambda v, s, a, w: _attend(v, s, a, w, per_level=True)),
        Mistake("the numbers of the values are only cut anew: channels have to come before cells, permute(0, 2, 3, 1)",
                lambda v, s, a, w: _attend(v, s, a, w, cut_only=True)),
        Mistake("the locations are only cut anew: heads have to come before queries, transpose(1, 2)",
                lambda v, s, a, w: _attend(v, s, a, w, places_cut=True)),
        Mistake("a map is cut into (D, W, H); its rows come first, (D, H, W)",
                lambda v, s, a, w: _attend(v, s, a, w, as_width_height=True)),
        Mistake("the heads are interleaved; head 0 gives the first D channels",
                lambda v, s, a, w: _attend(v, s, a, w, heads_last=True)),
    ),
)  # fmt: skip

EXERCISES = (VALID_RATIO, POINTS, ATTENTION)
