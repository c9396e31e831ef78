"""COCO's category ids, 1 to 90 with ten gaps, and labels 0 to 79 without gaps.

The official models index their logits by category id: 91 of them, eleven of which (0 and the gaps) stand for
nothing, and DETR's 92nd for "no object". Here labels are 0..C−1. Only this file knows of ids.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _GAPS)
"""The id of each label 0..79."""

_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball
    bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
    couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone,
    microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
    toothbrush
"""
COCO_CATEGORIES: tuple[str, ...] = tuple(" ".join(_NAMES.split()).split(", "))
"""The name of each label 0..79."""

_LABELS = {category: label for label, category in enumerate(COCO_CATEGORY_IDS)}
COCO91_NAMES: tuple[str, ...] = tuple(COCO_CATEGORIES[_LABELS[i]] if i in _LABELS else "N/A" for i in range(91))
"""The name of each of an official model's 91 logits."""

ABSENT = -100.0
"""Bias of a class that does not exist: its probability is below 1e-43, and gradients stay finite."""

_CLASS_HEAD = re.compile(r"(?:^|\.)class_embed\.(?:(\d+)\.)?(?:weight|bias)$")


def coco_id_to_label(category_id: int) -> int:
    """The label 0..79 of a COCO category id. Raises ValueError for an id that COCO does not have."""
    if category_id not in _LABELS:
        raise ValueError(
            f"category id {category_id} is none of COCO's 80 (1 to 90, without {', '.join(map(str, _GAPS))})"
        )
    return _LABELS[category_id]


def label_to_coco_id(label: int) -> int:
    """The COCO category id of a label. Raises ValueError when it is not in 0..79."""
    if not 0 <= label < len(COCO_CATEGORY_IDS):
        raise ValueError(f"label {label} is not in 0..79")
    return COCO_CATEGORY_IDS[label]


def to_contiguous(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Class heads with 91 logits (92 with DETR's "no object") cut down to COCO's 80 (81), label by label.

    state_dict: a whole model's, under our names or the official ones; everything else stays. The logits of
    the 80 classes and of "no object" are untouched. Sigmoid scores are therefore the same; under DETR's
    softmax the share of the eleven logits that stand for nothing goes to the others. The encoder's head of a
    two-stage model chooses proposals by its logit 0 ("any object", an id that COCO does not use): that row
    stays row 0, and displaces the one of person. Raises ValueError when there is no class head, or one of
    another size.
    """
    return _map_class_heads(state_dict, {91: 80, 92: 81}, _cut, "COCO's 91 category ids")


def to_coco91(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: 80 logits (81 with "no object") spread over 91 (92).

    Rows that stand for nothing get zero weight and the bias `ABSENT`, and therefore a probability of zero.
    The encoder's head of a two-stage model keeps its row 0 there. Raises ValueError as `to_contiguous` does.
    """
    return _map_class_heads(state_dict, {80: 91, 81: 92}, _spread, "COCO's 80 classes")


def _cut(rows: Tensor, encoder: bool) -> Tensor:
    index = list(COCO_CATEGORY_IDS) + ([91] if len(rows) == 92 else [])
    if encoder:
        index[0] = 0
    return rows[index].clone()


def _spread(rows: Tensor, encoder: bool) -> Tensor:
    count, index = (91, list(COCO_CATEGORY_IDS)) if len(rows) == 80 else (92, [*COCO_CATEGORY_IDS, 91])
    if encoder:
        index[0] = 0
    result = rows.new_full((count, *rows.shape[1:]), ABSENT if rows.dim() == 1 else 0.0)
    result[torch.tensor(index, device=rows.device)] = rows
    return result


def _map_class_heads(
    state_dict: Mapping[str, Tensor],
    sizes: Mapping[int, int],
    convert: Callable[[Tensor, bool], Tensor],
    wanted: str,
) -> dict[str, Tensor]:
    heads = {key: found[1] for key in state_dict if (found := _CLASS_HEAD.search(key))}
    if not heads:
        raise ValueError("the state dict has no 'class_embed': give that of a whole detector")
    # The official layout, ours and two-stage's all number the encoder's head last.
    last = max((int(i) for i in heads.values() if i is not None), default=None)
    two_stage = any(key.startswith("transformer.enc_output.") for key in state_dict)
    result = dict(state_dict)
    for key, index in heads.items():
        rows = state_dict[key]
        if len(rows) not in sizes:
            raise ValueError(
                f"{key!r} has {len(rows)} logits, expected {' or '.join(map(str, sizes))} "
                f'(with "no object"): this is no model of {wanted}'
            )
        result[key] = convert(rows, two_stage and index is not None and int(index) == last)
    return result
