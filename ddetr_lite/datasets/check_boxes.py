"""What is wrong with the boxes of an annotation file, one by one and as a whole."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddetr_lite.datasets.check_annotations import Split
from ddetr_lite.datasets.fields import Record, four_numbers, size_of
from ddetr_lite.datasets.findings import Finding

ROUNDING = 1.0  # pixels by which a box may leave the picture: annotators and exporters round
FEW = 4  # boxes below which nothing is said about their form


@dataclass(frozen=True)
class Boxes:
    """The objects whose bbox is four finite numbers and whose picture has a size."""

    records: list[Record]
    bbox: np.ndarray  # (n, 4)
    size: np.ndarray  # (n, 2), the picture's width and height


def check_boxes(split: Split, queries: int | None = None) -> list[Finding]:
    """Everything about the boxes of a split, and about pictures with no objects or more than `queries`."""
    boxes = usable_boxes(split)
    form = _form(split, boxes)
    found = [*_not_numbers(split), *form]
    if not form:  # boxes of another form would make nearly each one a finding of its own
        found += _single(split, boxes)
    return [*found, *_duplicates(split), *_numbers_of_objects(split, queries)]


def usable_boxes(split: Split) -> Boxes:
    """What the checks of boxes, and the statistics, look at."""
    sizes = {repr(image.get("id")): size_of(image) for image in split.images}
    records = [
        a for a in split.objects() if four_numbers(a.get("bbox")) and sizes.get(repr(a.get("image_id"))) is not None
    ]
    bbox = np.array([a["bbox"] for a in records], dtype=float).reshape(-1, 4)
    size = np.array([sizes[repr(a["image_id"])] for a in records], dtype=float).reshape(-1, 2)[:, ::-1]
    return Boxes(records, bbox, size)


def _not_numbers(split: Split) -> Iterator[Finding]:
    for annotation in split.annotations:
        if not four_numbers(annotation.get("bbox")):
            yield Finding("bbox-not-numbers", split.annotation(annotation), f"bbox {annotation.get('bbox')!r:.60}")


def _form(split: Split, boxes: Boxes) -> list[Finding]:
    """Whether the boxes as a whole are not [x, y, width, height] in pixels.

    One box cannot tell: many read well either way. But among boxes that are corners, or have their centre first, many reach
    beyond the border when read as COCO's, while nearly all fit when read as what they are; among COCO's own, few do.
    """
    (x, y, w, h), (width, height) = boxes.bbox.T, boxes.size.T
    n = len(x)
    if n < FEW:
        return []
    first = boxes.records[0]
    example = f"such as {split.annotation(first).removeprefix(split.file + ': ')}: bbox {first['bbox']}"
    positive = (w > 0) & (h > 0)
    normalised = positive & (boxes.bbox >= 0).all(1) & (boxes.bbox <= 1).all(1)
    if normalised.mean() >= 0.9:
        return [
            Finding("boxes-normalised", split.file, f"{normalised.sum()} of {n} have all values in 0..1, {example}")
        ]
    beyond = (x + w > width + ROUNDING) | (y + h > height + ROUNDING)
    corners = (w > x) & (h > y) & (w <= width + ROUNDING) & (h <= height + ROUNDING)
    beyond_as_centre = (x + w / 2 > width + ROUNDING) | (y + h / 2 > height + ROUNDING)
    centres = positive & (x - w / 2 >= -ROUNDING) & (y - h / 2 >= -ROUNDING) & ~beyond_as_centre
    for kind, fits, reading in (
        ("boxes-as-corners", corners, "corners"),
        ("boxes-as-centres", centres, "centre and size"),
    ):
        if beyond.mean() >= 0.2 and fits.mean() >= 0.95:
            counts = f"{beyond.sum()} of {n} reach beyond the border, but {fits.sum()} fit as {reading}"
            return [Finding(kind, split.file, f"{counts}, {example}")]
    return []


def _single(split: Split, boxes: Boxes) -> Iterator[Finding]:
    for record, (x, y, w, h), (width, height) in zip(boxes.records, boxes.bbox, boxes.size, strict=True):
        values = f"bbox {record['bbox']} in {width:g}×{height:g}"
        excess = max(-x, -y, x + w - width, y + h - height)
        if w <= 0 or h <= 0:
            kind = "box-without-area"
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            kind = "box-outside"
        elif excess > ROUNDING:
            kind, values = "box-partly-outside", f"{values}, by {excess:.4g} px"
        else:
            kind = ""
        if kind:
            yield Finding(kind, split.annotation(record), values)
        if 0 < min(w, h) < 2:
            yield Finding("tiny-box", split.annotation(record), f"bbox {record['bbox']}")


def _duplicates(split: Split) -> Iterator[Finding]:
    seen: dict[str, Any] = {}
    for annotation in split.objects():
        if four_numbers(annotation.get("bbox")):
            box = [float(v) for v in annotation["bbox"]]
            key = repr((annotation.get("image_id"), annotation.get("category_id"), box))
            if key in seen:
                values = f"bbox {annotation['bbox']}, category_id {annotation.get('category_id')}"
                yield Finding("duplicate-box", split.annotation(annotation), f"{values}, as annotation {seen[key]}")
            seen.setdefault(key, annotation.get("id"))


def _numbers_of_objects(split: Split, queries: int | None) -> Iterator[Finding]:
    objects = Counter(repr(a.get("image_id")) for a in split.objects())
    for image in split.images:
        number = objects[repr(image.get("id"))]
        if number == 0:
            yield Finding("picture-without-objects", split.image(image), "no annotation has its id")
        elif queries is not None and number > queries:
            yield Finding("many-objects", split.image(image), f"{number} objects, {queries} queries")
