"""Recipes: data, model and schedule in one frozen dataclass. The command line's options are these fields.

A named recipe says what is trained on; `--model` picks a row of the paper's table at the size that suits the data.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ddetr_lite.datasets.transforms import AugmentConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import DetrConfig
from ddetr_lite.models.faster_rcnn import FasterRcnnConfig
from ddetr_lite.models.presets import (
    ModelConfig,
    Size,
    config_from_dict,
    config_to_dict,
    dataclass_from_dict,
    model_config,
)
from ddetr_lite.wording import known_names


@dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they are prepared."""

    folder: str = "data/coco"
    """A folder in COCO's format."""
    train_split: str = "train"
    val_split: str = "val"
    limit: int = 0
    """Train on the first pictures only; 0: all."""
    overfit: int = 0
    """Train and evaluate on the first so many pictures with objects, as they are: the first gate for new data. Leaves with 1
    where it is not passed (`engine.overfitting`)."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Decode pictures once, at the largest size that they are asked for: into memory, or into FOLDER/.cache, where later runs
    find them. Evaluation sees the same bits as without; in training, larger pictures are then resized twice, and so are a
    little softer."""
    size_bands: tuple[float, float] = (32, 96)
    """Where small ends and large begins, as √area: in pixels, or, when both are below 1, as a share of the picture's side."""


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained. The defaults are those of the Deformable DETR paper."""

    epochs: int = 50
    batch: int = 32
    """Pictures in a step, on all GPUs together. Where only this is changed, the learning rate follows (`engine.scaling`)."""
    accumulate: int = 1
    """Take each step in so many pieces, one after another: less memory, and the same step but for padding, a piece's own."""
    group_orientations: bool = False
    """Upright pictures share a batch, and wide ones: fewer pixels are padding."""
    one_size: bool = False
    """The pictures of a batch get the same short side: fewer pixels are padding."""
    lr: float = 2e-4
    backbone_lr: float = 0.1
    """Times `lr` for the backbone; 0 freezes it."""
    sampling_lr: float = 0.1
    """Times `lr` for sampling offsets and reference points."""
    weight_decay: float = 1e-4
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: as in the paper; muon: Muon for matrices and convolutions, AdamW for the rest (`engine.muon`)."""
    muon_lr: float = 0.01
    """Muon's learning rate, where AdamW's is `lr`; both follow the same schedule."""
    muon_weight_decay: float = 0.1
    clip_norm: float = 0.1
    """Gradients longer than this are shortened; 0: never."""
    warmup_steps: int = 0
    """The learning rate rises linearly over these steps."""
    schedule: Literal["step", "cosine", "linear", "constant"] = "step"
    """step: a tenth from `drop_epoch` on; cosine, linear: down to zero at the end."""
    drop_epoch: int = 40
    ema: float = 0.0
    """Evaluate and keep a running average of the weights, that forgets with this decay (0.999: about the last 1000 steps);
    0: the weights themselves."""
    start_from: str = ""
    """A checkpoint to fine-tune: its model with its weights; heads are made anew for classes that it does not know."""
    compile: bool = False
    """`torch.compile` for the layers of encoder and decoder: faster on a GPU, after minutes of compiling."""
    deterministic: bool = False
    """On a GPU: only operations that give the same bits in every run; slower. On a CPU all are."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 where the device is a GPU that has it, else float32."""
    device: str = "auto"
    """auto: the first GPU if there is one, else the CPU."""
    workers: int = 2
    """Processes that load pictures; 0: the training process itself."""
    seed: int = 0
    evaluate_every: int = 1
    """Epochs between evaluations; 0: only after the last."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one is also written after each epoch."""
    log_every: int = 10
    """Steps between lines of the log."""
    max_bad_steps: int = 20
    """Stop after so many steps in a row whose gradient is not finite; each of them is skipped."""
    forecast: bool = True
    """Before the first step, measure some and say how long the run will take and how much memory it needs."""


@dataclass(frozen=True)
class Recipe:
    """All that defines a run."""

    name: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


DETR_SCHEDULE = TrainConfig(epochs=300, batch=64, lr=1e-4, drop_epoch=200)
COCO_MINI = TrainConfig(
    epochs=50, batch=8, group_orientations=True, lr=4e-4, warmup_steps=200, schedule="cosine", evaluate_every=5
)
SHAPES = TrainConfig(
    epochs=6,
    batch=16,
    lr=1e-3,
    optimizer="muon",
    backbone_lr=1.0,
    sampling_lr=1.0,
    warmup_steps=100,
    schedule="linear",
    workers=0,
)
# Both rates are those that the search of `bench convergence` chose; with twice or half of them DETR learns less.
SHAPES_DETR = replace(SHAPES, epochs=36, muon_lr=0.005, evaluate_every=2)

SHAPES_AUGMENT = AugmentConfig(
    short_sides=(), eval_short_side=0, crop=False, flip_vertical=True, quarter_turn=True, color=True
)

# For each recipe the size of its models, and what it trains each architecture with.
_RECIPES: dict[str, tuple[Size, DataConfig, AugmentConfig, TrainConfig, TrainConfig]] = {
    "coco": ("paper", DataConfig(), AugmentConfig(), TrainConfig(), DETR_SCHEDULE),
    "coco-mini": (
        "mobile",
        DataConfig("data/coco-mini", cache="memory"),
        AugmentConfig(short_sides=(224, 240, 256, 272, 288, 304, 320), eval_short_side=288, max_side=384, color=True),
        COCO_MINI,
        replace(COCO_MINI, epochs=150, lr=2e-4, evaluate_every=10),
    ),
    "shapes": (
        "small",
        DataConfig("data/shapes", cache="memory", size_bands=(0.2, 0.4)),
        SHAPES_AUGMENT,
        SHAPES,
        SHAPES_DETR,
    ),
    "shapes-hard": (
        "small",
        DataConfig("data/shapes-hard", cache="memory", size_bands=(0.11, 0.19)),  # a third of the objects in each band
        SHAPES_AUGMENT,
        SHAPES,
        SHAPES_DETR,
    ),
}
# Queries, for a recipe whose pictures hold more objects than its size of model is made for.
_QUERIES = {"shapes-hard": 40}
# What a recipe trains when no row is named, and with how many hints: the rows themselves have none, as in the paper.
_DEFAULT_MODEL = {
    "coco": ("deformable-detr", 0),
    "coco-mini": ("deformable-detr-two-stage", 3),
    "shapes": ("deformable-detr-two-stage", 4),
    "shapes-hard": ("deformable-detr-two-stage", 4),
}


def recipe_names() -> list[str]:
    """The recipes that `recipe` knows."""
    return list(_RECIPES)


def recipe(name: str, model: str | None = None) -> Recipe:
    """A named recipe with a row of the paper's table as its model (its own choice where `model` is None).

    Raises ValueError naming the nearest known name.
    """
    if name not in _RECIPES:
        raise ValueError(f"recipe {name!r} is unknown: {known_names(name, _RECIPES)}")
    size, data, augment, deformable, dense = _RECIPES[name]
    row, hints = _DEFAULT_MODEL[name] if model is None else (model, 0)
    config = model_config(row, size)
    if name in _QUERIES and not isinstance(config, FasterRcnnConfig):
        config = replace(config, queries=_QUERIES[name])
    if hints and isinstance(config, DeformableDetrConfig):
        config = replace(config, hints=hints)
    return Recipe(name, config, data, augment, dense if isinstance(config, DetrConfig) else deformable)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain strings and numbers, for a file."""
    return {**asdict(recipe), "model": config_to_dict(recipe.model)}


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe of an older version as plain values of this one: fields that it did not know are at their defaults.

    As it is where it does not fit.
    """
    try:
        return recipe_to_dict(recipe_from_dict(values))
    except ValueError:
        return values


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The way back. Raises ValueError for fields of another version, and for what is missing."""
    parts = {"data": DataConfig, "augment": AugmentConfig, "train": TrainConfig}
    try:
        model = config_from_dict(values["model"])
        values = {**values, "data": _of_today(values["data"])}
        named = {key: dataclass_from_dict(kind, values[key]) for key, kind in parts.items()}
        return Recipe(name=values["name"], model=model, **named)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the recipe is not whole: {what}") from error


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run's `recipe.json` holds. Raises ValueError naming file, field and remedy."""
    try:
        return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be used: {error}; restore it, or go on with the version that wrote it, or start a new run with "
            f"--start-from {path.parent / 'best.pt'}"
        ) from error


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """Options of older versions as they are spelled now: `cache` was yes or no, and `overfit`, of `limit` pictures, too."""
    data = dict(data)
    if isinstance(data.get("cache"), bool):
        data["cache"] = "memory" if data["cache"] else "none"
    if isinstance(data.get("overfit"), bool):
        few = data["overfit"]
        data["overfit"] = data.get("limit", 0) if few else 0
        data["limit"] = 0 if few else data.get("limit", 0)
    return data
