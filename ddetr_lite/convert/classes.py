"""Class names for models from elsewhere, and COCO's 91 ids for models that go there."""

from dataclasses import replace

from ddetr_lite.convert.coco_ids import COCO91_NAMES, COCO_CATEGORIES, to_coco91, to_contiguous
from ddetr_lite.convert.official import Converted
from ddetr_lite.models.presets import SetModel, build

COCO_LOGITS = 91  # the highest category id and one, as official models count


def with_class_names(found: Converted, coco: bool = True) -> tuple[SetModel, list[str]]:
    """The model, and the names of its classes.

    A model with COCO's 91 logits is cut down to the 80 ids that exist, unless its names say that they are other classes;
    where the source names no classes they are called "class 0", "class 1" and so on. coco: False takes no 91 logits for
    COCO's: official files name no classes, and those of a data set of one's own may be as many.
    """
    names = found.names or COCO91_NAMES
    is_coco = found.classes == COCO_LOGITS and all(
        a == b for a, b in zip(names, COCO91_NAMES, strict=True) if b != "N/A"
    )
    if is_coco and not coco:
        found = replace(found, names=None)
    elif is_coco:
        cut = replace(found, classes=len(COCO_CATEGORIES), state=to_contiguous(found.state))
        return cut.model(), list(COCO_CATEGORIES)
    return found.model(), list(found.names or (f"class {i}" for i in range(found.classes)))


def with_coco_ids(model: SetModel, names: list[str]) -> SetModel:
    """A model of COCO's 80 classes with a logit for each of the 91 ids; any other model as it is."""
    if names != list(COCO_CATEGORIES):
        return model
    spread = build(model.config, COCO_LOGITS, load_backbone=False)
    spread.load_state_dict(to_coco91(model.state_dict()))
    return spread.eval()
