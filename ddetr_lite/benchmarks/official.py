"""The authors' Deformable DETR from a checkout of their repository, as a peer of `bench step`.

On a GPU it needs their operation, built with nvcc. On a CPU, where that refuses to work, it runs with the form in PyTorch
that they keep for their tests.
"""

import importlib
import math
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

from ddetr_lite.convert.official import to_official
from ddetr_lite.models.deformable_detr import DeformableDetr
from ddetr_lite.set_prediction.losses import Outputs

OPERATION = "MultiScaleDeformableAttention"  # the module that their setup.py builds


def official_model(checkout: Path, ours: DeformableDetr, device: torch.device) -> nn.Module:
    """Their model with our weights. Raises ValueError saying what is missing."""
    if not (checkout / "models" / "deformable_detr.py").is_file():
        raise ValueError(
            f"{checkout} is no checkout of the authors' Deformable-DETR: models/deformable_detr.py is missing"
        )
    modules = _import(checkout, device)
    config = ours.config
    arguments = Namespace(
        backbone=config.backbone.name, dilation=config.backbone.dilation, lr_backbone=1e-5, masks=False,
        position_embedding="sine", position_embedding_scale=2 * math.pi, num_feature_levels=config.levels,
        hidden_dim=config.dim, nheads=config.heads, enc_layers=config.encoder_layers, dec_layers=config.decoder_layers,
        dim_feedforward=config.hidden, dropout=config.dropout, dec_n_points=config.points, enc_n_points=config.points,
        two_stage=config.two_stage, num_queries=config.queries,
    )  # fmt: skip
    # The first process would download weights.
    with mock.patch.object(modules["models.backbone"], "is_main_process", return_value=False):
        backbone = modules["models.backbone"].build_backbone(arguments)
    model: nn.Module = modules["models.deformable_detr"].DeformableDETR(
        backbone,
        modules["models.deformable_transformer"].build_deforamble_transformer(arguments),
        num_classes=ours.classes,
        num_queries=config.queries,
        num_feature_levels=config.levels,
        aux_loss=True,
        with_box_refine=config.refine,
        two_stage=config.two_stage,
    )
    model.load_state_dict(to_official(ours))
    return model


def official_outputs(model: nn.Module, pixels: Tensor, mask: Tensor) -> Outputs:
    """Their model's outputs for a padded batch (B, 3, H, W) and its mask (B, H, W), in the form of ours."""
    nested = sys.modules["util.misc"].NestedTensor(pixels, mask)
    found: dict[str, Any] = model(nested)
    layers = [*found["aux_outputs"], found]
    outputs = Outputs(*(torch.stack([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes")))
    if "enc_outputs" not in found:
        return outputs
    first = found["enc_outputs"]
    return outputs._replace(encoder_logits=first["pred_logits"], encoder_boxes=first["pred_boxes"])


def _import(checkout: Path, device: torch.device) -> dict[str, types.ModuleType]:
    """Their modules, whose top names are as common as "models" and "util"."""
    names = ("models.backbone", "models.deformable_transformer", "models.deformable_detr")
    on_cpu = device.type != "cuda"
    if on_cpu:
        sys.modules.setdefault(OPERATION, types.ModuleType(OPERATION))
    sys.path.insert(0, str(checkout.resolve()))
    try:
        # Their code compares the first three letters of this, as a number, with 0.7.
        with mock.patch.object(torchvision, "__version__", "0.9"):
            modules = {name: importlib.import_module(name) for name in names}
    except ImportError as error:
        raise ValueError(
            f"{checkout} cannot be imported ({error}): build its operation first, in models/ops, with nvcc and a version of "
            "its source for this torch"
        ) from error
    finally:
        sys.path.remove(str(checkout.resolve()))
    if on_cpu:
        functions = importlib.import_module("models.ops.functions.ms_deform_attn_func")
        layer = importlib.import_module("models.ops.modules.ms_deform_attn")
        layer.MSDeformAttnFunction = _OnCpu(functions.ms_deform_attn_core_pytorch)  # type: ignore[attr-defined]
    return modules


class _OnCpu:
    """What their layer calls, with the form for tests behind it."""

    def __init__(self, form: Any):
        self.form = form

    def apply(
        self, value: Tensor, shapes: Tensor, _starts: Tensor, places: Tensor, weights: Tensor, _step: int
    ) -> Tensor:
        """Arguments as those of their operation."""
        output: Tensor = self.form(value, shapes, places, weights)
        return output
