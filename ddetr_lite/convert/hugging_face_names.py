"""Parameter names of Hugging Face transformers' DETR and Deformable DETR, to and from the official ones.

Names are those of the files on the hub, which every version of transformers reads. What models of version 5
have in memory (`o_proj`, `mlp.fc1`, `backbone.model`) is brought to them first.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rules = list[tuple[str, str]]
"""Pairs of prefixes, official and Hugging Face's; the first that fits counts. `#` is a number; it stays."""

_ENCODER = [("norm1", "self_attn_layer_norm"), ("norm2", "final_layer_norm")]
_DETR_DECODER = [
    ("multihead_attn", "encoder_attn"),
    ("norm1", "self_attn_layer_norm"),
    ("norm2", "encoder_attn_layer_norm"),
    ("norm3", "final_layer_norm"),
]
_DEFORMABLE_DECODER = [
    ("cross_attn", "encoder_attn"),
    ("norm1", "encoder_attn_layer_norm"),  # in Deformable DETR the first norm is the second to be used
    ("norm2", "self_attn_layer_norm"),
    ("norm3", "final_layer_norm"),
]
_FEED_FORWARD = [("linear1", "fc1"), ("linear2", "fc2")]
_TIMM: Rules = [("backbone.0.body.", "model.backbone.conv_encoder.model.")]


def _layer_rules(stack: str, parts: Sequence[tuple[str, str]]) -> Rules:
    return [(f"transformer.{stack}.layers.#.{a}.", f"model.{stack}.layers.#.{b}.") for a, b in [*parts, *_FEED_FORWARD]]


def _resnet_rules() -> Rules:
    """torchvision's names of a ResNet's parts to those of transformers' `ResNetBackbone`."""
    ours, theirs = "backbone.0.body.", "model.backbone.conv_encoder.model."
    rules = [("conv1.", "embedder.embedder.convolution."), ("bn1.", "embedder.embedder.normalization.")]
    for stage in range(1, 5):
        old, new = f"layer{stage}.#.", f"encoder.stages.{stage - 1}.layers.#."
        for j in range(1, 4):
            rules.append((f"{old}conv{j}.", f"{new}layer.{j - 1}.convolution."))
            rules.append((f"{old}bn{j}.", f"{new}layer.{j - 1}.normalization."))
        rules.append((f"{old}downsample.0.", f"{new}shortcut.convolution."))
        rules.append((f"{old}downsample.1.", f"{new}shortcut.normalization."))
    return [(ours + a, theirs + b) for a, b in rules]


def _rules(detr: bool, timm: bool) -> Rules:
    rules = _TIMM if timm else _resnet_rules()
    rules = [
        *rules,
        ("backbone.1.row_embed.", "model.position_embedding.row_embeddings."),
        ("backbone.1.col_embed.", "model.position_embedding.column_embeddings."),
        ("query_embed.", "model.query_position_embeddings."),
        *_layer_rules("encoder", _ENCODER),
    ]
    if detr:
        rules += [
            *_layer_rules("decoder", _DETR_DECODER),
            ("transformer.decoder.norm.", "model.decoder.layernorm."),
            ("input_proj.", "model.input_projection."),
            ("class_embed.", "class_labels_classifier."),
            ("bbox_embed.", "bbox_predictor."),
        ]
    else:
        rules += [*_layer_rules("decoder", _DEFORMABLE_DECODER), ("input_proj.", "model.input_proj.")]
    return [*rules, ("transformer.", "model.")]


_TO_HUB = [
    (re.compile(r"^model\.backbone\.model\."), "model.backbone.conv_encoder.model."),
    (re.compile(r"^model\.backbone\.position_embedding\."), "model.position_embedding."),  # before version 5
    (re.compile(r"_attn\.o_proj\."), "_attn.out_proj."),
    (re.compile(r"\.mlp\.(fc[12])\."), r".\1."),
]


def to_hub_names(state: Mapping[str, Tensor], detr: bool, timm: bool) -> dict[str, Tensor]:
    """Official names to those of the hub. detr: else Deformable DETR; timm: how the ResNet is named."""
    return _rename(_split_projections(state), _rules(detr, timm))


def to_official_names(state: Mapping[str, Tensor], detr: bool) -> dict[str, Tensor]:
    """Names of the hub, or of a model in memory, to the official ones. An unknown key stays as it is.

    Raises ValueError when two keys are names of the same tensor.
    """
    rules = [(b, a) for a, b in _rules(detr, uses_timm(state))]
    hub: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in _TO_HUB:
            new = pattern.sub(replacement, new)
        if new in hub:
            raise ValueError(f"the state dict has both {new!r} and {key!r}, an older and a newer name of one tensor")
        hub[new] = value
    return _join_projections(_rename(hub, rules))


def uses_timm(state: Mapping[str, Tensor]) -> bool:
    """Whether the backbone has timm's names, and not those of transformers' own ResNet."""
    return not any(".embedder.embedder." in k for k in state)


def _rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    patterns = [(re.compile(re.escape(a).replace(r"\#", r"(\d+)")), b.replace("#", r"\1")) for a, b in rules]
    result = {}
    for key, value in state.items():
        pair = next((pair for pair in patterns if pair[0].match(key)), None)
        result[pair[0].sub(pair[1], key, count=1) if pair else key] = value
    return result


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`in_proj_weight` (3d, d) → `q_proj.weight`, `k_proj.weight`, `v_proj.weight`; biases alike."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        module, found, kind = key.rpartition(".in_proj_")
        if found:
            result.update({f"{module}.{n}_proj.{kind}": part.clone() for n, part in zip("qkv", value.chunk(3))})
        else:
            result[key] = value
    return result


def _join_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back. A projection without its two companions stays, and is found out as unexpected later."""
    result = dict(state)
    for key in state:
        module, found, kind = key.rpartition(".q_proj.")
        parts = [f"{module}.{n}_proj.{kind}" for n in "qkv"]
        if found and all(part in state for part in parts):
            result[f"{module}.in_proj_{kind}"] = torch.cat([result.pop(part) for part in parts])
    return result


def with_all_names(
    state: dict[str, Tensor], layers: int, refine: bool, two_stage: bool, tied: bool
) -> dict[str, Tensor]:
    """Under official names: give each tensor of a head all its names, where a file has only some of them.

    tied: transformers' `tie_word_embeddings`, which makes one of all class heads unless there are two stages.
    """
    result = dict(state)
    for key, value in state.items():
        head = re.match(r"(transformer\.decoder\.)?(class|bbox)_embed\.(\d+)\.(.*)", key)
        if head is None:
            continue
        _, kind, index, rest = head.groups()
        if not refine or (tied and kind == "class" and not two_stage and index == "0"):
            others = [f"{kind}_embed.{k}.{rest}" for k in range(layers)]
        else:
            others = [f"{kind}_embed.{index}.{rest}"]
        if refine and (kind == "bbox" or two_stage):
            others.append(f"transformer.decoder.{kind}_embed.{index}.{rest}")
        for other in others:
            result.setdefault(other, value)
    return result
