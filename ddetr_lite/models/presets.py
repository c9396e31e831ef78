"""Named models: the rows of the paper's table 1, at three sizes; and how a model is built from its dataclass.

A row says what is special about a model (dilated, how many levels, refinement, two stages), a size says how large it is.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetr, DeformableDetrConfig
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.models.faster_rcnn import FasterRcnn, FasterRcnnConfig
from ddetr_lite.wording import known_names

SetModelConfig = DetrConfig | DeformableDetrConfig
ModelConfig = SetModelConfig | FasterRcnnConfig
SetModel = Detr | DeformableDetr
Model = SetModel | FasterRcnn
Size = Literal["paper", "mobile", "small"]

ARCHITECTURES: dict[str, type[DetrConfig] | type[DeformableDetrConfig] | type[FasterRcnnConfig]] = {
    "faster-rcnn": FasterRcnnConfig,
    "detr": DetrConfig,
    "deformable-detr": DeformableDetrConfig,
}

# What each row of the table changes, beside its architecture.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "faster-rcnn": ("faster-rcnn", {}),
    "detr": ("detr", {}),
    "detr-dc5": ("detr", {"dilation": True}),
    "deformable-detr-single-scale": ("deformable-detr", {"levels": 1}),
    "deformable-detr-single-scale-dc5": ("deformable-detr", {"levels": 1, "dilation": True}),
    "deformable-detr": ("deformable-detr", {}),
    "deformable-detr-refine": ("deformable-detr", {"refine": True}),
    "deformable-detr-two-stage": ("deformable-detr", {"refine": True, "two_stage": True}),
}

_MOBILE = BackboneConfig("mobilenet_v2", weights="imagenet")
_SMALL = BackboneConfig("small", frozen=False)

SIZES: dict[str, dict[str, ModelConfig]] = {
    # ResNet-50 from ImageNet, as published.
    "paper": {
        "faster-rcnn": FasterRcnnConfig(BackboneConfig("resnet50", weights="imagenet")),
        "detr": DetrConfig(BackboneConfig("resnet50", weights="imagenet")),
        "deformable-detr": DeformableDetrConfig(BackboneConfig("resnet50", weights="imagenet")),
    },
    # A few million parameters on ImageNet features: small COCO subsets, one GPU, or a patient CPU.
    "mobile": {
        "faster-rcnn": FasterRcnnConfig(_MOBILE, dim=128, hidden=512, anchor_strides=4.0, sampled=256),
        "detr": DetrConfig(_MOBILE, dim=128, hidden=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
        "deformable-detr": DeformableDetrConfig(
            _MOBILE, levels=3, queries=100, dim=128, hidden=512, encoder_layers=2, decoder_layers=3, dropout=0.0
        ),
    },
    # For generated pictures of about 100 px: learns from nothing in minutes on a laptop.
    "small": {
        "faster-rcnn": FasterRcnnConfig(_SMALL, dim=96, hidden=256, anchor_strides=3.0, proposals=200, sampled=64),
        "detr": DetrConfig(
            _SMALL, stride=8, queries=20, dim=96, hidden=256, encoder_layers=2, decoder_layers=3, dropout=0.0
        ),
        "deformable-detr": DeformableDetrConfig(
            _SMALL,
            levels=3,
            points=2,
            queries=20,
            dim=96,
            heads=4,
            hidden=192,
            encoder_layers=1,
            decoder_layers=2,
            dropout=0.0,
            anchor_size=0.1,
        ),
    },
}


def model_config(row: str, size: Size = "paper") -> ModelConfig:
    """The configuration of a row of `ROWS` at a size of `SIZES`. An unknown name raises ValueError with the nearest."""
    if row not in ROWS:
        raise ValueError(f"model {row!r} is unknown: {known_names(row, ROWS)}")
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown: choose {', '.join(SIZES)}")
    architecture, changes = ROWS[row]
    config = SIZES[size][architecture]
    changes = dict(changes)
    if changes.pop("dilation", False):
        config = replace(config, backbone=replace(config.backbone, dilation=True))
    return replace(config, **changes)


def row_of(model: Mapping[str, Any]) -> str:
    """The row of `ROWS` whose changes a configuration, as plain values, has all made: of several the one with the most."""
    architecture = str(model.get("architecture", "unknown"))
    values = {**model, "dilation": model.get("backbone", {}).get("dilation", False)}
    fitting = [
        (len(changes), row)
        for row, (kind, changes) in ROWS.items()
        if kind == architecture and all(values.get(name) == value for name, value in changes.items())
    ]
    return max(fitting)[1] if fitting else architecture


def build(config: ModelConfig, classes: int, load_backbone: bool = True) -> Model:
    """A new model with `classes` classes (without "no object").

    load_backbone: fill the backbone with the weights that its configuration names; not when a checkpoint follows. Warns where
    it names none, and random values would be kept as they are.
    """
    if load_backbone and config.backbone.frozen and config.backbone.weights == "none":
        warnings.warn(
            f"a frozen backbone without weights: stem, first stage and batch norms of {config.backbone.name} would stay "
            "random; give weights='imagenet' or a file, or frozen=False, or load_backbone=False where a checkpoint follows",
            stacklevel=2,
        )
    if not load_backbone:
        config = replace(config, backbone=replace(config.backbone, weights="none"))
    if classes < 1:
        raise ValueError(f"classes={classes}: a detector needs at least one class")
    if isinstance(config, FasterRcnnConfig):
        return FasterRcnn(config, classes)
    return Detr(config, classes) if isinstance(config, DetrConfig) else DeformableDetr(config, classes)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Plain strings and numbers, for a checkpoint; `config_from_dict` is the way back."""
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))
    return {"architecture": name, **asdict(config)}


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The dataclass that `config_to_dict` wrote. Unknown names raise ValueError: the file is of another version."""
    values = dict(values)
    architecture = values.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown: known are {', '.join(ARCHITECTURES)}")
    return dataclass_from_dict(ARCHITECTURES[architecture], values)


def dataclass_from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass, nested ones included, from the plain values that `dataclasses.asdict` gives."""
    hints, names = get_type_hints(kind), {f.name for f in fields(kind)}
    unknown = sorted(values.keys() - names)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}: the file comes from another version")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if is_dataclass(hint) and isinstance(value, dict):
            value = dataclass_from_dict(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)
