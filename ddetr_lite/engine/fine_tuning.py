"""Starting from a trained detector instead of from random weights: what carries over, and what is made anew.

All that does not depend on the classes carries over. Of the heads, the rows of classes with the same name do; a class that
the checkpoint does not know starts as in a new model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ddetr_lite.engine.checkpoint import LoadedModel, load_model, sizes_of
from ddetr_lite.engine.recipes import Recipe, recipe
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.faster_rcnn import FasterRcnn
from ddetr_lite.models.presets import Model, config_to_dict, row_of

BOX_PREDICTOR = "roi_heads.box_predictor."


def start_from(model: Model, classes: Sequence[str], path: str | Path) -> str:
    """Fill a new model of these classes with a checkpoint's weights, and say in a sentence what became of its heads.

    Raises ValueError, naming the first option that differs, when the checkpoint's model is another one.
    """
    loaded = load_model(path)
    _same_model(model, loaded.model, path)
    old, new = loaded.model.state_dict(), model.state_dict()
    place = {name: i for i, name in enumerate(loaded.classes)}
    kept = [name for name in classes if name in place]
    if list(classes) == loaded.classes:
        model.load_state_dict(old)
        return f"Started from {path}: the same {len(kept)} classes, all weights carry over."
    rows = [(new_row, place[name]) for new_row, name in enumerate(classes) if name in place]
    for key, value in new.items():
        if key not in old:  # what a batch norm that is trained counts, and a frozen one does not
            continue
        if value.shape == old[key].shape and not _is_class_head(key):
            value.copy_(old[key])
        elif _is_encoder_head(model, key):  # its first row stands for "any object", whatever the classes are
            value[0] = old[key][0]
        else:
            _carry_rows(value, old[key], rows, len(classes), len(loaded.classes), first=key.startswith(BOX_PREDICTOR))
    model.load_state_dict(new)
    fresh = [name for name in classes if name not in place]
    some = f"{', '.join(fresh[:6])}{' ...' if len(fresh) > 6 else ''}"
    made = f"the heads of {len(fresh)} ({some}) are made anew" if fresh else "no head is made anew"
    return f"Started from {path}, which knows {len(kept)} of the {len(classes)} classes: {made}; all else carries over."


def recipe_for(path: str | Path, name: str = "coco") -> Recipe:
    """The recipe `name` for fine-tuning a checkpoint: its model, and pictures of the size that it learned from.

    Raises as `load_model`.
    """
    return recipe_of(load_model(path), path, name)


def recipe_of(loaded: LoadedModel, path: str | Path, name: str = "coco") -> Recipe:
    """`recipe_for` a checkpoint that has been read."""
    chosen = with_model_of(loaded, name)
    augment = replace(chosen.augment, **sizes_of(loaded.about))
    return replace(chosen, augment=augment, train=replace(chosen.train, start_from=str(path)))


def with_model_of(loaded: LoadedModel, name: str) -> Recipe:
    """The recipe `name` as it is for models of this kind, with this one."""
    config = loaded.model.config
    return replace(recipe(name, row_of(config_to_dict(config))), model=config)


def _carry_rows(
    new: Tensor, old: Tensor, rows: Sequence[tuple[int, int]], classes: int, old_classes: int, first: bool
) -> None:
    """Copy the rows of shared classes, and that of "no object" or background where a head has one.

    first: Faster R-CNN's background is row 0, and its box head has four rows for each; DETR's "no object" is the last row.
    """
    each = 1 if not first or new.shape[0] == classes + 1 else new.shape[0] // (classes + 1)
    if first:
        rows = [(0, 0), *((a + 1, b + 1) for a, b in rows)]
    elif new.shape[0] == classes + 1:
        rows = [*rows, (classes, old_classes)]
    for a, b in rows:
        new[a * each : (a + 1) * each] = old[b * each : (b + 1) * each]


def _is_class_head(key: str) -> bool:
    return key.startswith(("class_embed.", BOX_PREDICTOR))


def _is_encoder_head(model: Model, key: str) -> bool:
    config = model.config
    two_stage = isinstance(config, DeformableDetrConfig) and config.two_stage
    return two_stage and key.startswith(f"class_embed.{getattr(config, 'decoder_layers', 0)}.")


def _same_model(model: Model, source: Model, path: str | Path) -> None:
    if isinstance(model, FasterRcnn) != isinstance(source, FasterRcnn) or type(model.config) is not type(source.config):
        raise ValueError(
            f"{path} holds a {type(source).__name__}, the recipe a {type(model).__name__}: leave --model out"
        )
    ours, theirs = (config_to_dict(m.config) for m in (model, source))
    # These change no weight.
    free = ["dropout", "hints", "anchor_size", "sampled", "proposals"]
    if ours.get("two_stage"):
        free.append("queries")  # the encoder's best proposals, however many: only queries that are learned are weights
    for config in (ours, theirs):
        for name in free:
            config.pop(name, None)
        config["loss"] = config.get("loss", {}).get("kind")
        config["backbone"] = {k: v for k, v in config["backbone"].items() if k not in ("weights", "frozen")}
    for name, value in ours.items():
        if value != theirs[name]:
            remedy = "use the checkpoint's (it is where --model is left out)"
            if name == "queries":
                remedy = "use the checkpoint's, since queries are weights, or train without --start-from"
            raise ValueError(f"{path} was made with {name}={theirs[name]}, this recipe says {value}: {remedy}")
