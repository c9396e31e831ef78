"""Deformable attention: each query looks at a few points around its reference point (Zhu et al. 2021, section 4.1).

Where to look and how much are both predicted from the query by one linear layer each, so the cost grows with the number
of queries times the number of points, and not with the number of queries times the number of tokens.
Letters: B pictures, N tokens of all levels, N_q queries, M heads, D channels of a head, d = M·D, L levels, P points.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ddetr_lite.kernels import choose_backend, fused_deformable_attention, multi_scale_deformable_attention
from ddetr_lite.kernels.reference import LevelShapes
from ddetr_lite.layers.recording import record


def compass_offsets(heads: int, levels: int, points: int) -> Tensor:
    """The offsets that training starts from, in pixels of each level: (M, L, P, 2) as (x, y).

    Head m looks in direction 2π·m/M (east, south-east, south ... for eight heads), point p at distance p + 1, measured
    in steps of a king on a chess board: the larger of |x| and |y| is p + 1.
    """
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, points + 1.0)
    return (directions[:, None, None, :] * distances[:, None]).expand(heads, levels, points, 2).clone()


def sampling_locations(reference: Tensor, offsets: Tensor, level_shapes: LevelShapes) -> Tensor:
    """Reference points or boxes, and offsets, to locations: the argument of the samples in equations 2 and 3.

    reference: (B, N_q, L, 2) points (x, y), or (B, N_q, L, 4) boxes (cx, cy, w, h), in 0..1 of each level's map;
    offsets: (B, N_q, M, L, P, 2). Returns (B, N_q, M, L, P, 2) in 0..1 of each level's map.
    Around a point, an offset counts pixels of its level; around a box, an offset of P reaches the box's edge.
    """
    if reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference must end in 2 (points) or 4 (boxes), got {tuple(reference.shape)}")
    points = offsets.shape[-2]
    centre = _for_each_point(reference[..., :2], points)
    if reference.shape[-1] == 4:
        return centre + offsets / points * _for_each_point(reference[..., 2:], points) * 0.5
    # (W, H) and not (H, W): offsets are (x, y). The authors' first release had it the other way round.
    sizes = torch.tensor([(w, h) for h, w in level_shapes], dtype=offsets.dtype).to(offsets.device, non_blocking=True)
    return centre + offsets / sizes[:, None].expand(offsets.shape[2:]).contiguous()


def _for_each_point(reference: Tensor, points: int) -> Tensor:
    """(B, N_q, L, 2) → (B, N_q, 1, L, P, 2), copied: on a CPU, to add rows of 2·L·P numbers is several times as fast as to
    broadcast each pair on its own.
    """
    return reference[:, :, None, :, None, :].expand(-1, -1, -1, -1, points, -1).contiguous()


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention over L feature maps at once (equation 3); parameters bear the official names.

    Starts with `compass_offsets` for every query and equal weights. Raises ValueError when `dim` does not divide by
    `heads`. `backend` goes to `kernels.multi_scale_deformable_attention`.
    """

    def __init__(self, dim: int, heads: int = 8, levels: int = 4, points: int = 4, backend: str = "auto"):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} does not divide by heads={heads}: choose a multiple")
        self.dim, self.heads, self.levels, self.points, self.backend = dim, heads, levels, points, backend
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every query starts at the compass with equal weights; projections are Xavier."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(compass_offsets(self.heads, self.levels, self.points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def scatter_offsets(self) -> None:
        """Start from offsets drawn anywhere within the compass's reach, instead of the compass: for ablations."""
        nn.init.uniform_(self.sampling_offsets.bias, -self.points, self.points)

    def samples(self, query: Tensor, reference: Tensor, level_shapes: LevelShapes) -> tuple[Tensor, Tensor]:
        """Where the queries look, and how much: locations (B, N_q, M, L, P, 2) and weights (B, N_q, M, L, P).

        The weights of a head sum to one over all its levels and points. Locations stay float32 under autocast.
        """
        offsets, scores = self._offsets_and_scores(query)
        if offsets.dtype in (torch.bfloat16, torch.float16):  # a bfloat16 cannot tell neighbouring pixels apart
            offsets = offsets.float()
        weights = scores.flatten(3).softmax(-1).view_as(scores)
        return sampling_locations(reference, offsets, level_shapes), weights

    def _offsets_and_scores(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N_q, M, L, P, 2) and (B, N_q, M, L, P), the latter before the softmax."""
        split = (self.heads, self.levels, self.points)
        return (
            self.sampling_offsets(query).unflatten(-1, (*split, 2)),
            self.attention_weights(query).unflatten(-1, split),
        )

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        level_shapes: LevelShapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """query: (B, N_q, d), with its position already added; reference: (B, N_q, L, 2 or 4) in 0..1; tokens: (B, N, d)
        of all levels, ΣHW = N; padding_mask: (B, N), True on padding, whose values become zero. Returns (B, N_q, d).
        """
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.heads, -1))  # (B, N, M, D)
        backend = choose_backend(value) if self.backend == "auto" else self.backend
        if backend == "triton":
            offsets, scores = self._offsets_and_scores(query)
            return self.output_proj(fused_deformable_attention(value, level_shapes, reference, offsets, scores))
        locations, weights = self.samples(query, reference, level_shapes)
        return self.output_proj(multi_scale_deformable_attention(value, level_shapes, locations, weights, backend))


class DeformableAttention(MultiScaleDeformableAttention):
    """Deformable attention on one feature map (equation 2): the case L = 1."""

    def __init__(self, dim: int, heads: int = 8, points: int = 4, backend: str = "auto"):
        super().__init__(dim, heads, levels=1, points=points, backend=backend)


def record_samples(model: nn.Module) -> AbstractContextManager[dict[str, tuple[Tensor, Tensor]]]:
    """Within this context every deformable attention of `model` leaves its samples in the dict that is returned.

    Keys are the modules' names, values (locations, weights) as `MultiScaleDeformableAttention.samples` gives them,
    detached: what is drawn in the paper's figure 6.
    """

    def samples(module: MultiScaleDeformableAttention, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return module.samples(given["query"], given["reference"], given["level_shapes"])

    return record(model, MultiScaleDeformableAttention, ("query", "reference", "tokens", "level_shapes"), samples)
