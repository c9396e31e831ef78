"""DETR: a Transformer on the cells of one feature map, and N_q learned queries that become objects (Carion et al. 2020).

Parameters bear the official names. Letters: B pictures, N = H·W tokens, N_q queries, C classes, d channels, K layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from ddetr_lite.batching import ImageBatch, flatten_levels, mask_for
from ddetr_lite.layers.positional_encoding import LearnedEncoding2d, sine_encoding_2d
from ddetr_lite.layers.transformer import Transformer
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.detector import MLP, Detector, widened
from ddetr_lite.set_prediction.losses import DETR_LOSS, Outputs, SetLoss
from ddetr_lite.set_prediction.matching import Target


@dataclass(frozen=True)
class DetrConfig:
    """DETR's size. The defaults are the paper's."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    stride: Literal[8, 16, 32] = 32
    """Stride of the feature map whose cells become tokens; a dilated backbone (DC5) halves it."""
    queries: int = 100
    """How many objects a picture may have at most."""
    dim: int = 256
    """Channels d of tokens and queries."""
    heads: int = 8
    hidden: int = 2048
    """Width of the feed-forward layers."""
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    position: Literal["sine", "learned"] = "sine"
    loss: SetLoss = DETR_LOSS

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the backbone's maps that are used: one."""
        return (self.stride,)


class Detr(Detector):
    """The detector; `classes` is C, the "no object" class comes on top."""

    def __init__(self, config: DetrConfig, classes: int):
        super().__init__()
        if config.dim % 4:
            raise ValueError(f"dim={config.dim} must be a multiple of 4: sines and cosines of x and of y")
        self.config, self.classes, self.loss = config, classes, config.loss
        extra = 1 if config.loss.kind == "softmax" else 0
        # The official model has the encoding of positions at index 1; ours is a function unless it is learned.
        backbone = Backbone(config.backbone, config.strides)
        self.backbone = nn.Sequential(backbone)
        if config.position == "learned":
            self.backbone.append(LearnedEncoding2d(config.dim))
        self.input_proj = nn.Conv2d(backbone.channels[0], config.dim, kernel_size=1)
        self.transformer = Transformer(
            config.dim, config.heads, config.hidden, config.encoder_layers, config.decoder_layers, config.dropout
        )
        self.query_embed = nn.Embedding(config.queries, config.dim)
        self.class_embed = nn.Linear(config.dim, classes + extra)
        self.bbox_embed = MLP(config.dim, config.dim, 4, layers=3)

    def outputs(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> Outputs:
        """One pass: features → tokens → memory → queries → logits (K, B, N_q, C+1) and boxes (K, B, N_q, 4)."""
        features = self.backbone[0](batch.pixels)[0]  # (B, C5, H, W)
        mask = mask_for(batch.mask, features.shape[-2:])  # (B, H, W)
        if self.config.position == "learned":
            position = self.backbone[1](mask)  # (B, H, W, d)
        else:
            position = sine_encoding_2d(mask, self.config.dim, "detr").to(self.query_embed.weight.dtype)
        hidden = self.transformer(
            flatten_levels([self.input_proj(features)]),
            mask.flatten(1),
            position.flatten(1, 2),
            self.query_embed.weight,
        )  # (K, B, N_q, d)
        return Outputs(self.class_embed(hidden), widened(self.bbox_embed(hidden)).sigmoid())
