"""The encoder and decoder of Deformable DETR (Zhu et al. 2021, sections 4.2 and A.4).

Both attend to picture tokens with deformable attention; only the queries among themselves keep the dense kind.
Coordinates are fractions 0..1 of the picture without its padding ("real picture") unless a name says otherwise.
Parameters bear the official names. Letters: B pictures, N tokens of all levels, N_q queries, L levels, K decoder layers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddetr_lite.kernels.reference import LevelShapes
from ddetr_lite.layers.attention import MultiHeadAttention
from ddetr_lite.layers.deformable_attention import MultiScaleDeformableAttention
from ddetr_lite.layers.transformer import FeedForward, with_position


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of a number in 0..1, which is first kept `eps` away from both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def refine_boxes(delta: Tensor, reference: Tensor) -> Tensor:
    """One step of iterative box refinement: boxes = σ(Δ + σ⁻¹(reference)), section A.4.

    delta: (..., 4), what a box head says; reference: (..., 4) boxes, or (..., 2) points, which shift only the centre.
    Returns (..., 4), (cx, cy, w, h) in 0..1.
    """
    anchor = inverse_sigmoid(reference)
    if reference.shape[-1] == 2:
        return torch.cat((delta[..., :2] + anchor, delta[..., 2:]), dim=-1).sigmoid()
    return (delta + anchor).sigmoid()


def valid_ratios(padding: list[Tensor]) -> Tensor:
    """The share of each level's map that is real picture: (B, L, 2) as (x, y), from L masks (B, H, W), True on padding.

    Padding must be at the right and at the bottom, where `ImageBatch` puts it.
    """
    ratios = []
    for mask in padding:
        height, width = mask.shape[1:]
        ratios.append(torch.stack(((~mask[:, 0, :]).sum(1) / width, (~mask[:, :, 0]).sum(1) / height), dim=-1))
    return torch.stack(ratios, dim=1)


def cell_centres(level_shapes: LevelShapes, device: torch.device | None = None) -> list[Tensor]:
    """For every level (H·W, 2): the centres of its cells as (x, y), in cells: (½, ½), (1½, ½), ..."""
    centres = []
    for h, w in level_shapes:
        y, x = torch.meshgrid(torch.arange(h, device=device) + 0.5, torch.arange(w, device=device) + 0.5, indexing="ij")
        centres.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    return centres


def centres_in_picture(level_shapes: LevelShapes, ratios: Tensor) -> list[Tensor]:
    """For every level (B, H·W, 2): the centres of its cells as (x, y) in 0..1 of the real picture; on padding beyond 1.

    ratios: (B, L, 2), see `valid_ratios`.
    """
    points = []
    for level, (centres, (h, w)) in enumerate(
        zip(cell_centres(level_shapes, ratios.device), level_shapes, strict=True)
    ):
        real = torch.stack((ratios[:, level, 0] * w, ratios[:, level, 1] * h), dim=-1)  # (B, 2), in cells
        points.append(centres / real[:, None])
    return points


def encoder_reference_points(level_shapes: LevelShapes, ratios: Tensor) -> Tensor:
    """Where each token is, as a point on every level's map: (B, N, L, 2), (x, y) in 0..1 of the *padded* maps.

    ratios: (B, L, 2). A cell's centre is first a fraction of its own level's real picture, and then of each level's map.
    """
    return torch.cat(centres_in_picture(level_shapes, ratios), dim=1)[:, :, None] * ratios[:, None]


class DeformableEncoderLayer(FeedForward):
    """Every token looks at P points around itself on every level, then thinks alone.

    own_level: it looks at its own level only, as in the paper's table 2 without multi-scale attention.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, levels: int, points: int, dropout: float = 0.1, own_level: bool = False
    ):
        super().__init__(dim, hidden, dropout, norms=2)
        self.own_level = own_level
        self.self_attn = MultiScaleDeformableAttention(dim, heads, 1 if own_level else levels, points)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, level_shapes: LevelShapes, padding_mask: Tensor | None
    ) -> Tensor:
        """x, position: (B, N, d); reference: (B, N, L, 2); padding_mask: (B, N). Returns (B, N, d)."""
        attend = self._attend_on_own_level if self.own_level else self.self_attn
        attended = attend(with_position(x, position), reference, x, level_shapes, padding_mask)
        x = self.norm1(x + self.drop(attended))
        return self.norm2(x + self.drop(self.feed_forward(x)))

    def _attend_on_own_level(
        self, query: Tensor, reference: Tensor, x: Tensor, level_shapes: LevelShapes, padding_mask: Tensor | None
    ) -> Tensor:
        """The same attention on each level by itself."""
        sizes = [h * w for h, w in level_shapes]
        masks = [None] * len(sizes) if padding_mask is None else padding_mask.split(sizes, dim=1)
        parts = zip(*(t.split(sizes, dim=1) for t in (query, reference, x)), masks, level_shapes, strict=True)
        return torch.cat(
            [self.self_attn(q, r[:, :, i : i + 1], v, [shape], mask) for i, (q, r, v, mask, shape) in enumerate(parts)],
            dim=1,
        )


class DeformableDecoderLayer(FeedForward):
    """Queries look at one another, then at points of the picture around their references, then each thinks alone.

    In the official numbering norm1 follows the cross-attention and norm2 the self-attention, which runs first.
    """

    def __init__(self, dim: int, heads: int, hidden: int, levels: int, points: int, dropout: float = 0.1):
        super().__init__(dim, hidden, dropout, norms=3)
        self.self_attn = MultiHeadAttention(dim, heads, dropout)
        self.cross_attn = MultiScaleDeformableAttention(dim, heads, levels, points)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        reference: Tensor,
        memory: Tensor,
        level_shapes: LevelShapes,
        padding_mask: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x, query_position: (B, N_q, d); reference: (B, N_q, L, 2 or 4); memory: (B, N, d); mask: (N_q, N_q), True where
        a query must not see another. Returns (B, N_q, d).
        """
        q = k = with_position(x, query_position)
        x = self.norm2(x + self.drop(self.self_attn(q, k, x, mask=mask)))
        attended = self.cross_attn(with_position(x, query_position), reference, memory, level_shapes, padding_mask)
        x = self.norm1(x + self.drop(attended))
        return self.norm3(x + self.drop(self.feed_forward(x)))


class DeformableEncoder(nn.Module):
    """A stack of `DeformableEncoderLayer`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        levels: int,
        points: int,
        layers: int,
        dropout: float = 0.1,
        own_level: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, heads, hidden, levels, points, dropout, own_level) for _ in range(layers)
        )

    def forward(
        self, x: Tensor, position: Tensor, level_shapes: LevelShapes, ratios: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        """x, position: (B, N, d); ratios: (B, L, 2); padding_mask: (B, N). Returns the memory, (B, N, d)."""
        reference = encoder_reference_points(level_shapes, ratios)
        for layer in self.layers:
            x = layer(x, position, reference, level_shapes, padding_mask)
        return x


class DeformableDecoder(nn.Module):
    """A stack of `DeformableDecoderLayer`."""

    def __init__(self, dim: int, heads: int, hidden: int, levels: int, points: int, layers: int, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(dim, heads, hidden, levels, points, dropout) for _ in range(layers)
        )

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        reference: Tensor,
        memory: Tensor,
        level_shapes: LevelShapes,
        ratios: Tensor,
        padding_mask: Tensor | None,
        refine: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all layers. reference: (B, N_q, 2 or 4) in 0..1 of the real picture; other shapes as in the layer.

        refine(k, x, reference) → boxes (B, N_q, 4): called after layer k; its boxes, detached, are the next layer's
        reference. Without it the reference stays. Returns the outputs (K, B, N_q, d), and the reference that each
        layer started from, a list of K tensors.
        """
        outputs, references = [], []
        for k, layer in enumerate(self.layers):
            references.append(reference)
            on_levels = (
                reference[:, :, None] * ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]
            )  # (B, N_q, L, 2|4)
            x = layer(x, query_position, on_levels, memory, level_shapes, padding_mask, mask)
            outputs.append(x)
            if refine is not None:
                reference = refine(k, x, reference).detach()
        return torch.stack(outputs), references
