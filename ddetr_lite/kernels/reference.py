"""Multi-scale deformable attention twice: as a loop that one can read, and with `grid_sample`.

Both are slow, obviously right, and what every faster backend is tested against (Zhu et al. 2021, equations 2 and 3).
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, L levels, P points.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LevelShapes = Sequence[tuple[int, int]]


def bilinear_sample(feature: Tensor, x: float, y: float) -> Tensor:
    """The feature map's value at the pixel position (x, y), a mean of the four cells around it.

    feature: (H, W, D); integer positions are the centres of the cells; outside the map everything is zero.
    Returns (D,). The weights are (1−fx)(1−fy), fx(1−fy), (1−fx)fy, fx·fy with fx, fy the fractions of x and y.
    """
    height, width, channels = feature.shape
    if not (math.isfinite(x) and math.isfinite(y)):
        return feature.new_full((channels,), float("nan"))
    x0, y0 = math.floor(x), math.floor(y)
    fx, fy = x - x0, y - y0
    result = feature.new_zeros(channels)
    for row, weight_y in ((y0, 1 - fy), (y0 + 1, fy)):
        for column, weight_x in ((x0, 1 - fx), (x0 + 1, fx)):
            if 0 <= row < height and 0 <= column < width:
                result = result + weight_x * weight_y * feature[row, column]
    return result


def loop(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3, one sample after the other. Shapes as in `multi_scale_deformable_attention`. Not differentiable in
    the locations (they become Python numbers); for small input only.
    """
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    maps = value.split([h * w for h, w in level_shapes], dim=1)
    output = value.new_zeros(batch, queries, heads, channels)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                for level in range(levels):
                    height, width = level_shapes[level]
                    feature = maps[level][b, :, m].reshape(height, width, channels)
                    for p in range(points):
                        x, y = locations[b, q, m, level, p].tolist()
                        sample = bilinear_sample(feature, x * width - 0.5, y * height - 0.5)
                        output[b, q, m] += weights[b, q, m, level, p] * sample
    return output.flatten(2)  # (B, N_q, M·D)


def grid_sample(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same in a few tensor operations: one `torch.nn.functional.grid_sample` for each level, then a weighted sum.

    Runs and has gradients on every device that torch knows. Precision below float32 is computed in float32: bfloat16
    could not tell neighbouring pixels of a large map apart.
    """
    batch, _, heads, channels = value.shape
    result_dtype, dtype = value.dtype, torch.promote_types(value.dtype, torch.float32)
    value, locations, weights = value.to(dtype), locations.to(dtype), weights.to(dtype)
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    x, y = locations.detach().unbind(-1)
    # Adds nothing, or NaN where a location is not finite: what grid_sample makes of it differs by device and version.
    weights = weights + ((x - x) + (y - y))
    grids = 2 * locations - 1  # grid_sample counts from −1 to 1
    samples = []
    for level, feature in enumerate(value.split([h * w for h, w in level_shapes], dim=1)):
        height, width = level_shapes[level]
        feature = feature.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B·M, N_q, P, 2)
        samples.append(F.grid_sample(feature, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, dim=-2)  # (B·M, D, N_q, L, P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    output = (stacked * weights).sum((-2, -1))  # (B·M, D, N_q)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).to(result_dtype)
