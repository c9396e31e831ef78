"""Which model an official state dict belongs to: all that names and shapes tell."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import DetrConfig
from ddetr_lite.models.presets import SetModelConfig

RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
"""Blocks of each stage, and whether they are bottlenecks of three convolutions."""


def infer(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    dilation: bool,
    queries: int,
    dropout: float,
    source: str,
    refine: bool | None = None,
) -> tuple[SetModelConfig, int]:
    """The config and the number of classes that an official state dict was made with.

    queries: used for two stages only; refine: None reads it from the second names. Raises ValueError for no
    such model.
    """

    def size(key: str, axis: int) -> int:
        if key not in state:
            raise ValueError(f"{source} is neither DETR nor Deformable DETR in the official layout: it lacks {key!r}")
        return state[key].shape[axis]

    name = _infer_resnet(state, source)
    backbone = BackboneConfig(name, weights="none", dilation=dilation)
    encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
    common: dict[str, Any] = {
        "backbone": backbone,
        "heads": heads,
        "hidden": size(encoder + "0.linear1.weight", 0),
        "encoder_layers": _count(state, encoder),
        "decoder_layers": _count(state, decoder),
        "dropout": dropout,
    }
    deepest = 2048 if RESNETS[name][1] else 512
    if any(".multihead_attn." in k for k in state):
        detr = DetrConfig(
            **common,
            stride=32 * size("input_proj.weight", 1) // deepest,  # type: ignore[arg-type]
            queries=size("query_embed.weight", 0),
            dim=size("query_embed.weight", 1),
            position="learned" if "backbone.1.row_embed.weight" in state else "sine",
        )
        return detr, size("class_embed.weight", 0) - 1  # the last logit is "no object"
    levels, dim = size("transformer.level_embed", 0), size("transformer.level_embed", 1)
    two_stage = "transformer.enc_output.weight" in state
    if refine is None:
        refine = any(k.startswith("transformer.decoder.bbox_embed.") for k in state)
    samples = size(encoder + "0.self_attn.sampling_offsets.weight", 0) // 2
    if samples % (heads * levels):
        raise ValueError(f"{source} does not have heads={heads}: {samples} samples on {levels} levels do not divide")
    # Of the projections, 3×3 convolutions stand behind the backbone's last map, whose own is the last 1×1 one.
    projections = [f"input_proj.{level}.0.weight" for level in range(levels)]
    own = [key for key in projections if size(key, -1) == 1]
    stride = 32 * size(own[-1], 1) // deepest if own else 32
    deformable = DeformableDetrConfig(
        **common,
        levels=levels,
        stride=stride,  # type: ignore[arg-type]
        finest=4 if len(own) > 1 and stride >> (len(own) - 1) == 4 else 8,
        points=samples // (heads * levels),
        queries=queries if two_stage else size("query_embed.weight", 0),
        dim=dim,
        refine=refine,
        two_stage=two_stage,
    )
    return deformable, size("class_embed.0.weight", 0)


def _infer_resnet(state: Mapping[str, Tensor], source: str) -> str:
    counts = [_count(state, f"backbone.0.body.layer{stage}.") for stage in range(1, 5)]
    depths = tuple(count for count in counts if count)  # stages behind the last map that is used are left out
    bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state
    for name, known in RESNETS.items():
        if depths and depths == known[0][: len(depths)] and bottleneck == known[1]:
            return name
    raise ValueError(
        f"{source} has no ResNet of 18, 34, 50, 101 or 152 layers below 'backbone.0.body.' (blocks of its "
        f"stages: {depths}): build the model yourself, and load the file with from_official(state, model)"
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are below a prefix."""
    number = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for k in state if (found := number.match(k))})
