"""Tables 1 and 2 of Deformable DETR: which model is ahead of which, and what its parts bring.

Those whose name ends in `-cpu` ask the same at a size that a CPU answers in hours; the others are made for a GPU.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ddetr_lite.benchmarks.studies.method import COST, END, EQUAL, SEARCH, sized, text
from ddetr_lite.benchmarks.studies.plan import Ordering, Row, Side, Study
from ddetr_lite.datasets.shapes import HARD, ShapesConfig
from ddetr_lite.engine.recipes import DataConfig, Recipe, TrainConfig, recipe

LABELS = {
    "faster-rcnn": "Faster R-CNN + FPN",
    "detr": "DETR",
    "detr-dc5": "DETR-DC5",
    "deformable-detr-single-scale": "Deformable DETR, single scale",
    "deformable-detr-single-scale-dc5": "Deformable DETR, single scale, DC5",
    "deformable-detr": "Deformable DETR",
    "deformable-detr-refine": "+ iterative refinement",
    "deformable-detr-two-stage": "++ two-stage",
}
_PAPER_1 = {
    "faster-rcnn": (42.0, 26.6, 45.4, 53.4),
    "detr": (42.0, 20.5, 45.8, 61.1),
    "detr-dc5": (43.3, 22.5, 47.3, 61.1),
    "deformable-detr-single-scale": (39.4, 20.6, 43.0, 55.5),
    "deformable-detr-single-scale-dc5": (41.5, 24.1, 45.3, 56.0),
    "deformable-detr": (44.5, 27.1, 47.6, 59.6),
    "deformable-detr-refine": (46.2, 28.3, 49.2, 61.5),
    "deformable-detr-two-stage": (46.9, 29.6, 50.1, 61.6),
}
_METRICS = ("AP", "AP_small", "AP_medium", "AP_large")
PAPER = {row: dict(zip(_METRICS, values, strict=True)) for row, values in _PAPER_1.items()}
"""AP, and AP of small, medium and large objects, on COCO in percent: DETR after 500 epochs, Deformable DETR after 50, Faster
R-CNN after 109 (Zhu et al. 2021, table 1, with the figures of the authors' released code)."""
_PAPER_SHORT = {"detr-dc5": {"AP": 35.3, "AP_small": 15.2, "AP_medium": 37.5, "AP_large": 53.6}}
"""After 50 epochs."""

_ORDERINGS_1 = (
    Ordering(Side("deformable-detr"), Side("detr-dc5", short=True)),
    Ordering(Side("deformable-detr"), Side("detr")),
    Ordering(Side("deformable-detr"), Side("detr"), "AP_small"),
    Ordering(Side("faster-rcnn"), Side("detr"), "AP_small"),
    Ordering(Side("detr"), Side("faster-rcnn"), "AP_large"),
    Ordering(Side("deformable-detr"), Side("faster-rcnn")),
    Ordering(Side("detr-dc5"), Side("detr")),
    Ordering(Side("deformable-detr-single-scale-dc5"), Side("deformable-detr-single-scale")),
    Ordering(Side("deformable-detr"), Side("deformable-detr-single-scale-dc5")),
    Ordering(Side("deformable-detr-refine"), Side("deformable-detr")),
    Ordering(Side("deformable-detr-two-stage"), Side("deformable-detr-refine")),
)
_ORDERINGS_2 = (
    Ordering(Side("full"), Side("own-level")),
    Ordering(Side("own-level"), Side("own-level-one-point")),
    Ordering(Side("own-level-one-point"), Side("single-map-one-point")),
)

_FAMILY = {"detr-dc5": "detr"} | {row: "deformable-detr" for row in LABELS if row.startswith("deformable-detr-")}
_SHARED = "; DETR-DC5 takes DETR's, and all forms of Deformable DETR that of the multi-scale one"


def _for_table(row: str, name: str, data: DataConfig, train: TrainConfig, **sizes: Any) -> Recipe:
    """A row of table 1 or 2: strides as in the papers, so DETR sees C5 alone."""
    chosen = recipe(name, row)
    model = sized(chosen.model, stride=32, **sizes)
    return replace(chosen, model=model, data=data, train=train)


def _table_1_rows(lengths: dict[str, tuple[int, ...]], usual: tuple[int, ...], **settings: Any) -> tuple[Row, ...]:
    return tuple(
        Row(
            row,
            label,
            _for_table(row, levels=1 if "single" in row else 4, **settings),
            lengths.get(row, usual),
            rate_of=_FAMILY.get(row, ""),
            paper=PAPER[row],
            paper_short=_PAPER_SHORT.get(row, {}),
        )
        for row, label in LABELS.items()
    )


_TABLE_1 = (
    "- **Models**: Faster R-CNN with a feature pyramid is torchvision's. DETR and the single-scale forms see the map at "
    "stride 32 alone, DC5 the same stage dilated, at stride 16; the multi-scale forms maps at strides 8, 16, 32 and 64. "
    "Queries, width, heads, feed-forward and depth are the same in all. No hints, no dropout."
)

_LENGTHS = (
    " DETR and DETR-DC5 also get a schedule four times as long (in the paper ten times), and Deformable DETR one half as "
    "long, between whose ends the factor in epochs is found as in `convergence`."
)


def _table_train(lr: float, batch: int, **options: Any) -> TrainConfig:
    base = recipe("shapes").train
    return replace(base, lr=lr, muon_lr=1e-2, batch=batch, log_every=50, forecast=False, evaluate_every=2, **options)


CPU_SHAPES = ShapesConfig(size=128, max_objects=6, min_size=0.08, max_size=0.5)
_CPU: dict[str, Any] = {
    "name": "shapes",
    "data": DataConfig("data/shapes-128", cache="memory", size_bands=(0.14, 0.23)),
    "train": _table_train(2e-3, 16),
    "dim": 96, "heads": 8, "hidden": 256, "encoder_layers": 2, "decoder_layers": 3, "queries": 20, "points": 4,
}  # fmt: skip


def _tiny(rows: Sequence[Row]) -> tuple[Row, ...]:
    """With a backbone of half the width, so that the many cells of larger pictures fit into the time."""
    return tuple(
        replace(row, recipe=replace(row.recipe, model=sized(
            row.recipe.model, backbone=replace(row.recipe.model.backbone, name="tiny")
        )))
        for row in rows
    )  # fmt: skip


_CPU_DATA = (
    "- **Data**: 4,000 generated pictures of 128 px for training, 300 for validation, with one to six objects of eight "
    "classes, 8 to 50 % of the side long. Small means a √area below 14 % of the side, large above 23 %: a third of the "
    "objects each."
)

TABLE_1_CPU = Study(
    name="table1-cpu",
    title="Table 1 of Deformable DETR at the size of a CPU",
    method="Which row is ahead of which, at one budget, on pictures that a CPU can train on.\n\n"
    + text(
        _CPU_DATA,
        _TABLE_1,
        "- **Sizes**: width 96, 8 heads, 2 encoder and 3 decoder layers, feed-forward of 256, 20 queries, 4 points; a "
        "residual backbone of 16, 32, 64 and 64 channels.",
        EQUAL,
        SEARCH.format(epochs="six", shared=_SHARED),
        END + _LENGTHS + " (This one was added when the runs of DETR were finished.)",
        COST,
    ),
    rows=_tiny(_table_1_rows({"detr": (6, 24), "detr-dc5": (6, 24), "deformable-detr": (3, 6)}, (6,), **_CPU)),
    baseline="detr",
    search_epochs=6,
    seeds=1,
    shapes=CPU_SHAPES,
    orderings=_ORDERINGS_1,
)

_GPU: dict[str, Any] = {
    "name": "shapes-hard",
    "data": recipe("shapes-hard").data,
    "train": _table_train(1e-3, 32, workers=8),
    "dim": 128, "heads": 8, "hidden": 512, "encoder_layers": 3, "decoder_layers": 3, "queries": 40, "points": 4,
}  # fmt: skip
_GPU_DATA = (
    "- **Data**: `shapes-hard`, 8,000 pictures of 256 px for training, 500 for validation, with one to twelve objects of "
    "sixteen classes, 6 to 50 % of the side long. Small means a √area below 11 % of the side, large above 19 %: a third "
    "of the objects each."
)
_GPU_SIZES = (
    "- **Sizes**: width 128, 8 heads, 3 encoder and 3 decoder layers, feed-forward of 512, 40 queries, 4 points; a residual "
    "backbone of 32, 64, 128 and 128 channels. bfloat16."
)

TABLE_1 = Study(
    name="table1",
    title="Table 1 of Deformable DETR at small scale",
    method="Which row is ahead of which, at one budget, on a GPU.\n\n"
    + text(
        _GPU_DATA,
        _TABLE_1,
        _GPU_SIZES,
        EQUAL,
        SEARCH.format(epochs="twelve", shared=_SHARED),
        END + _LENGTHS,
        COST,
    ),
    rows=_table_1_rows({"detr": (12, 48), "detr-dc5": (12, 48), "deformable-detr": (6, 12)}, (12,), **_GPU),
    baseline="detr",
    search_epochs=12,
    shapes=HARD,
    orderings=_ORDERINGS_1,
)


# --- table 2 -----------------------------------------------------------------------------------------------------------

_VARIANTS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    # label, what it changes, the paper's AP (table 2, without a feature pyramid)
    "full": ("multi-scale attention, 4 points", {}, 43.8),
    "one-point": ("multi-scale attention, 1 point", {"points": 1}, None),
    "own-level": ("four maps, attention within each, 4 points", {"own_level": True}, 42.3),
    "own-level-one-point": ("four maps, attention within each, 1 point", {"own_level": True, "points": 1}, 41.4),
    "single-map": ("one map (stride 32), 4 points", {"levels": 1}, None),
    "single-map-one-point": ("one map (stride 32), 1 point", {"levels": 1, "points": 1}, 39.7),
    "scattered": ("as the first, offsets scattered at the start", {"scattered": True}, None),
}
_TABLE_2 = text(
    "- **Rows**: Deformable DETR without refinement. Where attention stays within each map, this is so in the encoder; "
    "queries of the decoder always see all maps, since otherwise they would have to be told which. Scattered: the offsets "
    "start anywhere in the square that the compass reaches to, instead of at the compass.",
    "- **Learning rates**: found for the first row, as in table 1, and the same in all.",
)


def _table_2_rows(settings: dict[str, Any], epochs: int) -> tuple[Row, ...]:
    return tuple(
        Row(
            name,
            label,
            _for_table("deformable-detr", **{**settings, "levels": 4, **change}),
            (epochs,),
            rate_of="" if name == "full" else "full",
            paper={} if paper is None else {"AP": paper},
        )
        for name, (label, change, paper) in _VARIANTS.items()
    )


TABLE_2_CPU = Study(
    name="table2-cpu",
    title="Table 2 of Deformable DETR at the size of a CPU",
    method="What several maps, attention across them, and several points bring.\n\n"
    + text(_CPU_DATA)
    + _TABLE_2
    + text(EQUAL, END, COST),
    rows=_tiny(_table_2_rows(_CPU, 6)),
    baseline="full",
    search_epochs=6,
    seeds=1,
    shapes=CPU_SHAPES,
    orderings=_ORDERINGS_2,
)

TABLE_2 = Study(
    name="table2",
    title="Table 2 of Deformable DETR at small scale",
    method="What several maps, attention across them, and several points bring.\n\n"
    + text(_GPU_DATA, _GPU_SIZES)
    + _TABLE_2
    + text(EQUAL, END, COST),
    rows=_table_2_rows(_GPU, 12),
    baseline="full",
    search_epochs=12,
    shapes=HARD,
    orderings=_ORDERINGS_2,
)


# --- the lead of Faster R-CNN in table 1 -------------------------------------------------------------------------------

_TWO_STAGE = LABELS["deformable-detr"] + " " + LABELS["deformable-detr-two-stage"]
_FROM_4: dict[str, Any] = {"finest": 4, "levels": 5, "anchor_size": 0.025}
_LEAD: dict[str, tuple[str, str, dict[str, Any]]] = {
    # label, the row of table 1 that it starts from, what it changes
    "faster-rcnn": (LABELS["faster-rcnn"], "faster-rcnn", {}),
    "faster-rcnn-from-8": (LABELS["faster-rcnn"] + ", finest map at 8", "faster-rcnn", {"finest": 8, "anchor_strides": 1.5}),
    "deformable-detr-two-stage": (_TWO_STAGE, "deformable-detr-two-stage", {}),
    "hints": (_TWO_STAGE + ", hints", "deformable-detr-two-stage", {"hints": 4}),
    "from-4": (_TWO_STAGE + ", finest map at 4", "deformable-detr-two-stage", _FROM_4),
    "from-4-hints": (
        _TWO_STAGE + ", finest map at 4 and hints", "deformable-detr-two-stage", {**_FROM_4, "hints": 4}
    ),
    "100-queries": (_TWO_STAGE + ", 100 queries", "deformable-detr-two-stage", {"queries": 100}),
}  # fmt: skip

LEAD_CPU = Study(
    name="lead-cpu",
    title="What is the lead of Faster R-CNN over Deformable DETR, at the size of a CPU?",
    method="In `table1-cpu` Faster R-CNN is ahead of Deformable DETR ++, by most on small objects. Three differences could "
    "be why: its finest map has stride 4, not 8; dozens of its proposals learn from each object, where one-to-one matching "
    "gives a decoder layer one query an object; and it looks at hundreds of proposals, not at 20. Each is taken away, or given "
    "to the other model.\n\n"
    + text(
        "- **Data, what is equal, sizes, budget, cost**: as in `table1-cpu`, whose runs the rows of Faster R-CNN and of "
        "Deformable DETR ++ are.",
        "- **Finest map**: Faster R-CNN without its map at stride 4, its anchors of the same sides (12 px and up); Deformable "
        "DETR with one more level, at stride 4, the first proposals on its other levels unchanged.",
        "- **Hints**: in training four more queries for each object, which start near its box and need no match, as in "
        "DN-DETR (`models/hints.py`). They cost nothing afterwards.",
        "- **Learning rates**: those that the search of `table1-cpu` chose, for all forms of either model.",
    ),
    rows=_tiny(
        tuple(
            Row(name, label, _for_table(row, **{**_CPU, "levels": 4, **change}), (6,), rate=1.0)
            for name, (label, row, change) in _LEAD.items()
        )
    ),
    baseline="deformable-detr-two-stage",
    search_epochs=6,
    seeds=1,
    shapes=CPU_SHAPES,
)
