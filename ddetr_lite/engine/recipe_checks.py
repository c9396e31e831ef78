"""Is what a recipe says possible? Said before anything is loaded or downloaded."""

import math
from dataclasses import asdict

from ddetr_lite.datasets.fields import check_size_bands
from ddetr_lite.datasets.transforms import AugmentConfig
from ddetr_lite.engine.recipes import DataConfig, Recipe, TrainConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.faster_rcnn import FasterRcnnConfig
from ddetr_lite.models.presets import ModelConfig


def check(recipe: Recipe) -> None:
    """Raise ValueError for values that cannot be meant, naming field, value and remedy."""
    _check_train(recipe.train)
    _check_data(recipe.data)
    _check_augment(recipe.augment)
    _check_model(recipe.model)
    backbone = recipe.model.backbone
    if backbone.frozen and backbone.weights == "none" and not recipe.train.start_from:
        raise ValueError(
            f"backbone.weights='none' with backbone.frozen=True: {backbone.name} would keep random batch norms and a random "
            "stem; give weights, or train all of it with --backbone.no-frozen"
        )


def _check_train(train: TrainConfig) -> None:
    for name in ("epochs", "batch", "accumulate", "log_every", "checkpoint_every", "max_bad_steps"):
        if getattr(train, name) < 1:
            raise ValueError(f"{name}={getattr(train, name)} must be at least 1")
    for name in (
        "workers",
        "seed",
        "warmup_steps",
        "drop_epoch",
        "evaluate_every",
        "clip_norm",
        "weight_decay",
        "muon_weight_decay",
        "backbone_lr",
        "sampling_lr",
    ):
        if not 0 <= getattr(train, name) < math.inf:
            raise ValueError(f"{name}={getattr(train, name)} must be a number, and not negative")
    if train.seed >= 2**63:
        raise ValueError(f"seed={train.seed} does not fit into 64 bits: give one below 2**63")
    for name, usual in (("lr", "1e-5 to 1e-3"), ("muon_lr", "0.002 to 0.02")):
        if not 0 < getattr(train, name) < 1:
            raise ValueError(f"{name}={getattr(train, name)} must lie between 0 and 1, usually {usual}")
    if not 0 <= train.ema < 1:
        raise ValueError(f"ema={train.ema} must lie in 0..1, usually 0.999 to 0.9999; 0 keeps no average")


def _check_data(data: DataConfig) -> None:
    if data.overfit < 0:
        raise ValueError(f"overfit={data.overfit} must be a number of pictures, or 0")
    if data.limit < 0:
        raise ValueError(f"limit={data.limit} must be a number of pictures, or 0 for all")
    check_size_bands(data.size_bands)


def _check_augment(augment: AugmentConfig) -> None:
    if min(augment.short_sides, default=1) < 1 or augment.max_side < 1:
        raise ValueError(f"short_sides={augment.short_sides} and max_side={augment.max_side} must be at least 1 pixel")
    if augment.eval_short_side < 0:
        raise ValueError(
            f"eval_short_side={augment.eval_short_side} must be a number of pixels; 0 keeps pictures as they are"
        )
    for side in (*augment.short_sides, augment.eval_short_side):
        if side > augment.max_side:
            raise ValueError(
                f"a short side of {side} cannot be reached: no side may be above max_side={augment.max_side}"
            )


def _check_model(model: ModelConfig) -> None:
    for name in ("queries", "dim", "heads", "hidden", "decoder_layers", "anchor_strides", "proposals", "sampled"):
        if getattr(model, name, 1) < 1:
            raise ValueError(f"{name}={getattr(model, name)} must be at least 1")
    for name in ("encoder_layers", "hints"):
        if getattr(model, name, 0) < 0:
            raise ValueError(f"{name}={getattr(model, name)} must not be negative")
    if not isinstance(model, FasterRcnnConfig):
        weights = asdict(model.loss)
        for name, value in {**weights, **{f"matching.{k}": v for k, v in weights["matching"].items()}}.items():
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ValueError(f"loss.{name}={value} must be a number, and not negative")
    if isinstance(model, DeformableDetrConfig) and min(model.levels, model.points) < 1:
        raise ValueError(f"levels={model.levels} and points={model.points} must be at least 1")
