"""Four detectors on real pictures, at one budget."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ddetr_lite.benchmarks.studies.method import COST, END, SEARCH, sized, text
from ddetr_lite.benchmarks.studies.plan import Ordering, Row, Side, Study
from ddetr_lite.benchmarks.studies.tables import LABELS, PAPER
from ddetr_lite.engine.recipes import Recipe, recipe

_FOUR = {
    "faster-rcnn": LABELS["faster-rcnn"],
    "detr": "DETR",
    "deformable-detr": "Deformable DETR",
    "deformable-detr-two-stage": "Deformable DETR ++ two-stage",
}
_ORDERINGS = (
    Ordering(Side("deformable-detr"), Side("detr")),
    Ordering(Side("deformable-detr"), Side("faster-rcnn")),
    Ordering(Side("deformable-detr-two-stage"), Side("deformable-detr")),
)
_FEATURES = "data/weights/mobilenet_v2-imagenet-features.pth"
_COCO_MINI = (
    "- **Data**: coco-mini, 1,780 pictures of COCO for training and 198 for validation, 80 classes, longer side 384 px; "
    "scores compare models trained on it with one another, never with published ones.",
    "- **Equal in all**: MobileNetV2 with its ImageNet features, whose rate is a twentieth of the rest's; pictures, "
    "augmentation, batches, optimizer, schedule; width 128. Faster R-CNN is torchvision's.",
    "- **Hints**: the two-stage form once more, with four queries for each object in training that start near its box and "
    "need no match, as in DN-DETR; in `lead-cpu` they close about half of Faster R-CNN's lead.",
)


def _on_coco_mini(row: str, **options: Any) -> Recipe:
    chosen = recipe("coco-mini", row)
    features: Any = replace(chosen.model.backbone, weights=_FEATURES)
    train = replace(
        recipe("coco-mini").train,
        optimizer="muon", lr=1e-3, muon_lr=1e-2, backbone_lr=0.05, sampling_lr=1.0, schedule="linear",
        warmup_steps=100, evaluate_every=4, log_every=50, forecast=False, batch=16, **options,
    )  # fmt: skip
    sizes = {"dim": 128, "heads": 8, "hidden": 512, "encoder_layers": 2, "decoder_layers": 3, "queries": 100}
    return replace(chosen, model=sized(chosen.model, backbone=features, **sizes), train=train)


def _smaller(chosen: Recipe) -> Recipe:
    """Pictures for a CPU, fewer proposals for them, and the learning rate that `table1-cpu` has."""
    augment = replace(chosen.augment, short_sides=(128, 144, 160), eval_short_side=160, max_side=208)
    model = sized(chosen.model, proposals=300, sampled=64)
    return replace(chosen, model=model, augment=augment, train=replace(chosen.train, workers=0, lr=2e-3))


def _rows(recipe_of: Callable[[str], Recipe], epochs: int, rate: float = 0.0) -> tuple[Row, ...]:
    """`rate`: of all rows, where it is known."""
    rows = tuple(
        Row(
            row,
            label,
            recipe_of(row),
            (epochs,),
            rate_of="deformable-detr" if "stage" in row and not rate else "",
            rate=rate,
            paper=PAPER[row],
        )
        for row, label in _FOUR.items()
    )
    best = rows[-1]
    hinted: Any = replace(best.recipe, model=sized(best.recipe.model, hints=4))
    return (*rows, replace(best, name="hints", label=f"{best.label}, hints", recipe=hinted, paper={}))


COCO_MINI = Study(
    name="coco-mini",
    title="Four detectors on real pictures at one budget",
    method=text(
        *_COCO_MINI,
        SEARCH.format(epochs="ten", shared="; the two-stage form takes that of Deformable DETR"),
        END,
        COST,
    ),
    rows=_rows(lambda row: _on_coco_mini(row, workers=12), epochs=60),
    baseline="faster-rcnn",
    search_epochs=10,
    seeds=1,
    orderings=_ORDERINGS,
)

COCO_MINI_CPU = Study(
    name="coco-mini-cpu",
    title="Four detectors on real pictures at one budget, at the size of a CPU",
    method=text(
        *_COCO_MINI,
        "- **Size**: short side of 128 to 160 px, no side above 208. Faster R-CNN makes 300 proposals a picture (600 in "
        "training) and learns from 64 of them, instead of torchvision's 1,000 (2,000) and 512, which are meant for larger "
        "pictures.",
        "- **Learning rates**: AdamW's 0.002 and Muon's 0.01 for all, which the search of `table1-cpu` chose for Faster "
        "R-CNN, for DETR and for Deformable DETR, with the same batches, optimizers and schedule. A search on these pictures "
        "would take longer than all the runs that count.",
        END,
        COST,
    ),
    rows=_rows(lambda row: _smaller(_on_coco_mini(row)), epochs=8, rate=1.0),
    baseline="faster-rcnn",
    search_epochs=8,
    seeds=1,
    orderings=_ORDERINGS,
)
