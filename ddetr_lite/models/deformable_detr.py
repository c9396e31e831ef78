"""Deformable DETR, single or multi-scale, with iterative refinement and two stages (Zhu et al. 2021).

Parameters bear the official names. Letters: B pictures, N tokens of all levels, N_q queries, C classes, d channels,
L levels, P points, K decoder layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ddetr_lite.batching import ImageBatch, flatten_levels, mask_for
from ddetr_lite.kernels.reference import LevelShapes
from ddetr_lite.layers.deformable_attention import MultiScaleDeformableAttention
from ddetr_lite.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableEncoder,
    centres_in_picture,
    refine_boxes,
    valid_ratios,
)
from ddetr_lite.layers.positional_encoding import sine_encoding_2d, sine_encoding_of
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.detector import MLP, Detector, in_full_precision, widened
from ddetr_lite.models.hints import add_hints
from ddetr_lite.set_prediction.losses import DEFORMABLE_DETR_LOSS, Outputs, SetLoss
from ddetr_lite.set_prediction.matching import Target


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Deformable DETR's size. The defaults are the paper's multi-scale model."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    levels: int = 4
    """Feature levels L: the last of the backbone's maps; where it has fewer, strided convolutions behind its last one."""
    points: int = 4
    """Sampling points P of a head on a level."""
    queries: int = 300
    dim: int = 256
    """Channels d of tokens and queries."""
    heads: int = 8
    hidden: int = 1024
    """Width of the feed-forward layers."""
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    refine: bool = False
    """"+ iterative bounding box refinement": each decoder layer corrects the boxes of the one before."""
    two_stage: bool = False
    """"++ two-stage": the encoder's best proposals become the queries. Needs `refine`."""
    anchor_size: float = 0.05
    """Two stages: the size of the boxes that the finest level proposes, as a share of the picture; each coarser level doubles
    it. 5 % suits COCO."""
    hints: int = 0
    """Training only, not in the paper: for each object so many more queries that start near its box (`models.hints`).
    They need no match, so every object teaches more of them. Needs `two_stage`."""
    own_level: bool = False
    """Ablation (table 2): a token of the encoder looks at its own level only. Queries still look at all."""
    scattered: bool = False
    """Ablation: sampling offsets start anywhere within the compass's reach, instead of at the compass."""
    stride: Literal[8, 16, 32] = 32
    """Of the backbone's last map, C3, C4 or C5: later stages are left out. The paper uses C5."""
    finest: Literal[4, 8] = 8
    """Of the finest map that can be a level, C2 or C3. The paper begins at C3; C2 has four times its cells, and is the first of
    DINO's five scales (Zhang et al. 2023). With 4, `levels` must be enough for all maps from C2 to `stride`."""
    loss: SetLoss = DEFORMABLE_DETR_LOSS

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the backbone's maps that are used, rising."""
        return tuple(s for s in (4, 8, 16, 32) if self.finest <= s <= self.stride)[-self.levels :]


class DeformableTransformer(nn.Module):
    """The parameters between tokens and decoder outputs, under the official names; `DeformableDetr.outputs` runs them."""

    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        sizes = (config.dim, config.heads, config.hidden, config.levels, config.points)
        self.encoder = DeformableEncoder(*sizes, config.encoder_layers, config.dropout, config.own_level)
        self.decoder = DeformableDecoder(*sizes, config.decoder_layers, config.dropout)
        self.level_embed = nn.Parameter(torch.empty(config.levels, config.dim))
        if config.two_stage:
            self.enc_output = nn.Linear(config.dim, config.dim)
            self.enc_output_norm = nn.LayerNorm(config.dim)
            self.pos_trans = nn.Linear(config.dim * 2, config.dim * 2)
            self.pos_trans_norm = nn.LayerNorm(config.dim * 2)
        else:
            self.reference_points = nn.Linear(config.dim, 2)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
                if config.scattered:
                    module.scatter_offsets()
        nn.init.normal_(self.level_embed)
        if not config.two_stage:
            nn.init.zeros_(self.reference_points.bias)


class DeformableDetr(Detector):
    """The detector; `classes` is C. Raises ValueError for options that do not go together, naming both."""

    def __init__(self, config: DeformableDetrConfig, classes: int):
        super().__init__()
        if config.two_stage and not config.refine:
            raise ValueError("two_stage=True needs refine=True: the second stage refines the first one's boxes")
        if config.hints and not config.two_stage:
            raise ValueError(f"hints={config.hints} needs two_stage=True: only there a query can be made from a box")
        if config.finest < 8 and config.strides[0] != config.finest:
            raise ValueError(
                f"finest={config.finest} and stride={config.stride} are the ends of {(config.stride // 4).bit_length()} maps, "
                f"levels={config.levels} leaves out the first: raise levels, or take finest=8"
            )
        coarsest = config.anchor_size * 2 ** (config.levels - 1)
        if config.two_stage and not 0.01 < config.anchor_size <= coarsest < 0.99:
            raise ValueError(
                f"anchor_size={config.anchor_size} makes boxes of {coarsest:.2g} of the picture on the coarsest of "
                f"{config.levels} levels: both must lie between 0.01 and 0.99"
            )
        if config.dim % 32:
            raise ValueError(
                f"dim={config.dim} must be a multiple of 32: the input projections norm 32 groups of channels"
            )
        self.config, self.classes, self.loss = config, classes, config.loss
        backbone = Backbone(config.backbone, config.strides)
        self.backbone = nn.Sequential(backbone)
        self.input_proj = self._projections(backbone.channels)
        self.transformer = DeformableTransformer(config)
        if not config.two_stage:
            self.query_embed = nn.Embedding(config.queries, config.dim * 2)  # position and content
        logits = classes + (1 if config.loss.kind == "softmax" else 0)
        # One head for all layers; under refinement one for each, and in two stages one more for the encoder.
        heads = config.decoder_layers + int(config.two_stage) if config.refine else 1
        self.class_embed = nn.ModuleList(_class_head(config.dim, logits) for _ in range(heads))
        # The first layer starts from a point, so its head sets a size; later ones, and a second stage, start from a box.
        sizes = [-2.0 if i == 0 and not config.two_stage else 0.0 for i in range(heads)]
        self.bbox_embed = nn.ModuleList(_box_head(config.dim, size) for size in sizes)

    def _projections(self, channels: list[int]) -> nn.ModuleList:
        """To d channels: 1×1 convolutions of the backbone's maps, then strided 3×3 ones from the last map onwards."""
        dim = self.config.dim
        convolutions = [nn.Conv2d(inputs, dim, 1) for inputs in channels]
        inputs = channels[-1]
        for _ in range(self.config.levels - len(channels)):
            convolutions.append(nn.Conv2d(inputs, dim, 3, stride=2, padding=1))
            inputs = dim
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        return nn.ModuleList(nn.Sequential(convolution, nn.GroupNorm(32, dim)) for convolution in convolutions)

    def levels(self, batch: ImageBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features (B, d, H_l, W_l), masks (B, H_l, W_l) and encodings with level embedding (B, H_l, W_l, d) of each level."""
        maps = self.backbone[0](batch.pixels)
        features = [project(m) for project, m in zip(self.input_proj, maps, strict=False)]  # others make coarser maps
        deepest = maps[-1]
        for project in self.input_proj[len(maps) :]:
            deepest = project(deepest)
            features.append(deepest)
        masks = [mask_for(batch.mask, f.shape[-2:]) for f in features]
        positions = [
            sine_encoding_2d(mask, self.config.dim, "deformable").to(embed.dtype) + embed
            for mask, embed in zip(masks, self.transformer.level_embed, strict=True)
        ]
        return features, masks, positions

    def outputs(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> Outputs:
        """One pass: levels → tokens → memory → queries and references → logits and boxes of every layer."""
        features, masks, positions = self.levels(batch)
        level_shapes = [(f.shape[-2], f.shape[-1]) for f in features]
        ratios = valid_ratios(masks)  # (B, L, 2)
        mask = torch.cat([m.flatten(1) for m in masks], dim=1)  # (B, N)
        position = torch.cat([p.flatten(1, 2) for p in positions], dim=1)  # (B, N, d)
        memory = self.transformer.encoder(flatten_levels(features), position, level_shapes, ratios, mask)

        encoder_logits = encoder_boxes = query_mask = None
        if self.config.two_stage:
            encoder_logits, unscaled = self.proposals(memory, mask, level_shapes, ratios)
            encoder_boxes = unscaled.sigmoid()
            reference = self.best_proposals(encoder_logits, unscaled)  # (B, N_q, 4)
            own = reference.shape[1]
            if self.config.hints and targets is not None:
                reference, query_mask = add_hints(reference, targets, self.config.hints)
            content, query_position = self.queries_from(reference)
        else:
            query_position, content = self.query_embed.weight.expand(memory.shape[0], -1, -1).chunk(2, dim=-1)
            points = in_full_precision(self.transformer.reference_points, query_position)
            reference = widened(points).sigmoid()  # (B, N_q, 2)

        refined: list[Tensor] = []

        def refine(k: int, hidden: Tensor, reference: Tensor) -> Tensor:
            refined.append(refine_boxes(widened(self.bbox_embed[k](hidden)), reference))
            return refined[-1]

        hidden, _ = self.transformer.decoder(
            content, query_position, reference, memory, level_shapes, ratios, mask,
            refine if self.config.refine else None, query_mask,
        )  # (K, B, N_q, d)  # fmt: skip
        if self.config.refine:
            # The heads beyond the decoder's layers, where there is one, are the encoder's.
            logits = torch.stack([head(h) for head, h in zip(self.class_embed, hidden, strict=False)])
            boxes = torch.stack(refined)
        else:
            logits = self.class_embed[0](hidden)
            boxes = refine_boxes(widened(self.bbox_embed[0](hidden)), reference)
        if query_mask is None:
            return Outputs(logits, boxes, encoder_logits, encoder_boxes)
        (logits, hint_logits), (boxes, hint_boxes) = (x.tensor_split([own], dim=2) for x in (logits, boxes))
        return Outputs(logits, boxes, encoder_logits, encoder_boxes, hint_logits, hint_boxes)

    def proposals(
        self, memory: Tensor, mask: Tensor, level_shapes: LevelShapes, ratios: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stage one: every token proposes a box at its own place, `anchor_size` wide on the finest level, twice that on the
        next (section A.4). Returns logits (B, N, C) and boxes before the sigmoid (B, N, 4); padding and
        tokens too near the border get infinity there.
        """
        anchors = self.anchors(level_shapes, ratios, self.config.anchor_size)  # (B, N, 4)
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True) & ~mask[..., None]
        unscaled = torch.log(anchors / (1 - anchors)).masked_fill(~valid, float("inf"))
        tokens = self.transformer.enc_output_norm(self.transformer.enc_output(memory.masked_fill(~valid, 0.0)))
        return self.class_embed[-1](tokens), widened(self.bbox_embed[-1](tokens)) + unscaled

    @staticmethod
    def anchors(level_shapes: LevelShapes, ratios: Tensor, size: float) -> Tensor:
        """(B, N, 4): the centre of each cell as a fraction of the real picture, and a size that doubles by level."""
        return torch.cat(
            [
                torch.cat((points, torch.full_like(points, size * 2**level)), dim=-1)
                for level, points in enumerate(centres_in_picture(level_shapes, ratios))
            ],
            dim=1,
        )

    def best_proposals(self, logits: Tensor, unscaled: Tensor) -> Tensor:
        """The boxes (B, N_q, 4) of the N_q tokens most sure to be an object (class 0 stands for "any object" here).

        No gradient flows back from them.
        """
        count = min(self.config.queries, logits.shape[1])
        best = logits[..., 0].topk(count, dim=1).indices
        return unscaled.detach().gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()

    def queries_from(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """The content and the position, (B, N_q, d) each, of queries that stand at these boxes (B, N_q, 4)."""
        encoded = sine_encoding_of(reference * 2 * math.pi, self.config.dim // 2).flatten(2)  # (B, N_q, 2d)
        encoded = encoded.to(self.transformer.pos_trans.weight.dtype)
        position, content = self.transformer.pos_trans_norm(self.transformer.pos_trans(encoded)).chunk(2, dim=-1)
        return content, position


def _class_head(dim: int, logits: int) -> nn.Linear:
    """Every class starts unlikely: 1 %."""
    head = nn.Linear(dim, logits)
    nn.init.constant_(head.bias, -math.log(99))
    return head


def _box_head(dim: int, size: float) -> MLP:
    """Every box starts at its reference; `size` is the logit of its width and height where that is a point."""
    head = MLP(dim, dim, 4, layers=3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor((0.0, 0.0, size, size)))
    return head
