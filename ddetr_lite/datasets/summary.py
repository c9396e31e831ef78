"""The numbers of a split: pictures, objects by class, their sizes, and how many there are in a picture."""

from dataclasses import dataclass

import numpy as np

from ddetr_lite.datasets.check_annotations import Split, class_counts
from ddetr_lite.datasets.check_boxes import usable_boxes
from ddetr_lite.datasets.fields import area_of, size_of

SMALL, LARGE = 32, 96  # √area in pixels where COCO's small ends, and where its large begins


@dataclass(frozen=True)
class Summary:
    """Crowds are not counted, nor objects whose box or picture cannot be read."""

    name: str
    pictures: int
    objects: int
    crowds: int
    classes: dict[str, int]
    """Class name → objects, in the order of the category ids, which is that of the labels."""
    sides: np.ndarray
    """(objects,), √area in pixels; the area is COCO's field where it is a number above 0, else that of the box."""
    shares: np.ndarray
    """(objects,), `sides` as a share of √(height·width) of the picture."""
    per_picture: np.ndarray
    """(pictures,), objects in each."""
    sizes: np.ndarray
    """(pictures with a size, 2), height and width."""

    def bands(self) -> dict[str, int]:
        """Objects that are small, medium and large by COCO's 32² and 96² pixels."""
        small, large = int((self.sides < SMALL).sum()), int((self.sides >= LARGE).sum())
        return {"small": small, "medium": len(self.sides) - small - large, "large": large}


def summarise(split: Split) -> Summary:
    """The numbers of a split, which may have any of the faults that `check` finds."""
    boxes = usable_boxes(split)
    areas = [
        area_of(record) or max(w, 0) * max(h, 0) for record, (_, _, w, h) in zip(boxes.records, boxes.bbox, strict=True)
    ]
    sides = np.sqrt(np.array(areas, dtype=float))
    numbers = dict.fromkeys((repr(image.get("id")) for image in split.images), 0)
    objects = 0
    for annotation in split.objects():
        image = repr(annotation.get("image_id"))
        objects += 1
        if image in numbers:
            numbers[image] += 1
    sizes = [size for image in split.images if (size := size_of(image)) is not None]
    return Summary(
        name=split.name,
        pictures=len(split.images),
        objects=objects,
        crowds=len(split.annotations) - objects,
        classes=class_counts(split),
        sides=sides,
        shares=sides / np.sqrt(boxes.size.prod(1)),
        per_picture=np.array([numbers[repr(image.get("id"))] for image in split.images], dtype=int),
        sizes=np.array(sizes, dtype=float).reshape(-1, 2),
    )
