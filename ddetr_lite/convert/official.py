"""The authors' checkpoints: facebookresearch/detr and fundamentalvision/Deformable-DETR.

Parameters have the same names here and there. What differs: without refinement the one head of Deformable
DETR is stored once for every decoder layer; with refinement the box heads, and in two stages the class heads
too, are stored a second time below `transformer.decoder`. Those second names are written as copies
(safetensors refuses shared storage, and the heads are small), and on the way back must be there and equal.
Key counts (ResNet-50, six layers): DETR 458, Deformable DETR 561 (single scale 549), with refinement 597,
two-stage 630.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.convert.coco_ids import COCO91_NAMES
from ddetr_lite.convert.files import read_tensors, write_tensors
from ddetr_lite.convert.infer import infer
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.models.presets import SetModel, SetModelConfig, build

_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of keys that are no weights: batch norm's counter, and what a tool that counts FLOPs leaves behind."""

USUAL_HEADS, USUAL_QUERIES = 8, 300
"""What is taken where neither the file nor its reader says it."""


@dataclass(frozen=True)
class Converted:
    """A model that came from elsewhere: its config, its number of classes, its state dict under our names,
    and the classes' names where the source has them.
    """

    config: SetModelConfig
    classes: int
    state: dict[str, Tensor]
    names: tuple[str, ...] | None = None

    def model(self) -> SetModel:
        """The detector with these weights, in evaluation mode."""
        model = build(self.config, self.classes, load_backbone=False)
        model.load_state_dict(self.state)
        return model.eval()


def second_names(config: SetModelConfig) -> dict[str, list[str]]:
    """For the prefix of each tensor that official files hold more than once: the other prefixes."""
    if isinstance(config, DetrConfig):
        return {}
    if not config.refine:
        return {
            f"{head}.0.": [f"{head}.{k}." for k in range(1, config.decoder_layers)]
            for head in ("class_embed", "bbox_embed")
        }
    doubled = ("bbox_embed", "class_embed") if config.two_stage else ("bbox_embed",)
    count = config.decoder_layers + int(config.two_stage)
    return {f"{head}.{k}.": [f"transformer.decoder.{head}.{k}."] for head in doubled for k in range(count)}


def to_official(model: SetModel) -> dict[str, Tensor]:
    """The model's weights under all official names: what stands under "model" in the authors' files.

    Own names refer to the model's tensors, second names are copies. Raises ValueError where the official model would
    answer differently: for another class loss, whose last logit would be taken for "no object" or the other way round, for
    another `anchor_size`, and for `own_level`.
    """
    _check_meaning(model)
    state = {k: v.detach() for k, v in model.state_dict().items() if not k.endswith(_COUNTERS)}
    for prefix, others in second_names(model.config).items():
        for key in [k for k in state if k.startswith(prefix)]:
            state.update({other + key.removeprefix(prefix): state[key].clone() for other in others})
    return state


def from_official(state: Mapping[str, Any], model: SetModel, source: str = "the state dict") -> SetModel:
    """Load official weights into `model`, and return it.

    state: a state dict, or a whole checkpoint with one under "model"; `source` names it in errors. Raises
    ValueError that lists what is missing, unexpected, of another shape, or not equal under its names; the
    model is then unchanged.
    """
    _check_meaning(model)
    counters = {k: v for k, v in model.state_dict().items() if k.endswith(_COUNTERS)}
    model.load_state_dict(counters | ours_from_official(state, model, source))
    return model


def read_official(
    path: str | Path, *, heads: int | None = None, dilation: bool | None = None, queries: int | None = None
) -> Converted:
    """Read one of the authors' files (or a `.safetensors` in their layout) and find out which model it holds.

    Sizes, levels, points, refinement, two stages, classes and the ResNet follow from the keys. Three things
    do not: `heads`, `dilation` (DC5), and a two-stage model's `queries`. Left out, they are taken from the
    command line that the authors saved with the weights, where there is one; else 8 heads, 300 queries, and
    DC5 when the file's name has "dc5". Raises ValueError for another model, and as `from_official` does.
    """
    path = Path(path)
    content = read_tensors(path)
    args = content.get("args")
    saved: dict[str, Any] = vars(args) if isinstance(args, Namespace) else {}
    if dilation is None:
        dilation = bool(saved.get("dilation", "dc5" in path.name.lower()))
    state = unwrap(content, str(path))
    config, classes = infer(
        state,
        heads=heads or int(saved.get("nheads", USUAL_HEADS)),
        dilation=dilation,
        queries=queries or int(saved.get("num_queries", USUAL_QUERIES)),
        dropout=float(saved.get("dropout", 0.1)),
        source=str(path),
    )
    return converted(state, config, classes, COCO91_NAMES if classes == 91 else None, str(path))


def write_official(model: SetModel, path: str | Path) -> None:
    """Write `to_official(model)`: to `.pth` under "model", for the authors' `--resume`; or to
    `.safetensors`.
    """
    write_tensors(to_official(model), path)


def converted(
    state: Mapping[str, Any], config: SetModelConfig, classes: int, names: tuple[str, ...] | None, source: str
) -> Converted:
    """Check an official state dict against a config, and bring it under our names."""
    with torch.device("meta"):  # names and shapes are all that is needed
        model = build(config, classes, load_backbone=False)
    return Converted(config, classes, ours_from_official(state, model, source), names)


def unwrap(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without counters. Raises ValueError where there is none."""
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{source} is no checkpoint of a detector: expected a dict of tensors, or one under 'model'")
    state = {k: v for k, v in state.items() if not k.endswith(_COUNTERS)}
    if any(k.startswith(("detr.", "mask_head.", "bbox_attention.")) for k in state):
        raise ValueError(f"{source} is a segmentation model (it has a mask head): only detectors can be converted")
    return state


def ours_from_official(content: Mapping[str, Any], model: SetModel, source: str) -> dict[str, Tensor]:
    """Official names to ours, every key accounted for; see `from_official` for the errors."""
    state = unwrap(content, source)
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith(_COUNTERS)}
    own = {k: k for k in expected}  # official name → ours
    for prefix, others in second_names(model.config).items():
        for key in [k for k in expected if k.startswith(prefix)]:
            own.update({other + key.removeprefix(prefix): key for other in others})

    shapes = [
        f"{k!r} is {tuple(state[k].shape)}, expected {tuple(expected[own[k]].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != expected[own[k]].shape
    ]
    unequal = [
        f"{k!r} differs from {own[k]!r}, though they are one tensor in this model"
        for k in own.keys() & state.keys()
        if k != own[k] and own[k] in state and not _equal(state[k], state[own[k]])
    ]
    problems = {
        "missing": [repr(k) for k in own.keys() - state.keys()],
        "unexpected": [repr(k) for k in state.keys() - own.keys()],
        "of another shape": shapes,
        "not equal": [] if shapes else unequal,
    }
    if any(problems.values()):
        said = "; ".join(_few(found, kind) for kind, found in problems.items() if found)
        raise ValueError(f"{source} does not fit {_describe(model)}: {said}. {_advice(problems)}")
    return {k: state[k] for k in expected}


def _check_meaning(model: SetModel) -> None:
    """Raise ValueError for what official files cannot say, where the same weights would answer differently there."""
    kind = "softmax" if isinstance(model, Detr) else "focal"
    if model.loss.kind != kind:
        raise ValueError(
            f"this {type(model).__name__} has the class loss {model.loss.kind!r}, the official one {kind!r}: "
            "its class head would mean something else there, so it cannot be converted"
        )
    config = model.config
    official = DeformableDetrConfig.anchor_size
    if isinstance(config, DeformableDetrConfig) and config.two_stage and config.anchor_size != official:
        raise ValueError(
            f"this {type(model).__name__} has anchor_size={config.anchor_size}, the official one {official}: its first stage "
            f"would propose other boxes there, so it cannot be converted; train with --anchor-size {official}"
        )
    if isinstance(config, DeformableDetrConfig) and config.own_level:
        raise ValueError(
            "this DeformableDetr has own_level=True, an ablation that the official one does not know: it cannot be converted"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.is_meta or torch.equal(a, b)  # a tensor without values has only a shape


def _describe(model: SetModel) -> str:
    config = model.config
    if isinstance(config, DetrConfig):
        return f"DETR ({config.backbone.name}, {model.classes} classes)"
    kind = "two-stage " if config.two_stage else "refined " if config.refine else ""
    return f"{kind}Deformable DETR ({config.backbone.name}, {config.levels} levels, {model.classes} classes)"


def _few(found: list[str], kind: str) -> str:
    shown = ", ".join(sorted(found)[:3])
    return f"{len(found)} {kind} ({shown}{', ...' if len(found) > 3 else ''})"


def _advice(problems: Mapping[str, list[str]]) -> str:
    shapes = problems["of another shape"]
    if shapes and all("class_embed" in p for p in shapes):
        return "Only the classes differ: build the model with as many, or see to_contiguous and to_coco91"
    if problems["not equal"]:
        return "The file was trained with refinement (build the model with refine=True), or is damaged"
    return "Build the model that the file was made from; read_official finds it out"
