"""A part of a set in COCO's format: some classes, some pictures, chosen the same way each time.

Which pictures is a function of the options and the annotation file alone. They are ordered by a hash of the seed and their
id, so that a larger count keeps all those of a smaller one, and the first n of them are a fair sample.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddetr_lite.datasets.fields import Record, crowd_problem, four_numbers, is_crowd, is_id
from ddetr_lite.wording import did_you_mean
from ddetr_lite.writing import write_bytes

SPLITS: tuple[str, ...] = ("train", "val")
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # of a file directly in the folder, on any system


@dataclass(frozen=True)
class CocoSubset:
    """Which pictures and classes of COCO to take. A bad value raises ValueError, naming field, value and remedy."""

    images: int = 5000
    """Pictures for training; 0 takes all that fit."""
    val_images: int = 500
    """Pictures for validation; 0 takes all that fit."""
    classes: tuple[str, ...] = ()
    """Names with commas between: person,car or "person,traffic light". By default all of COCO's."""
    seed: int = 0
    """Another seed, other pictures. A larger count keeps those of a smaller one."""
    min_objects: int = 1
    """Objects of these classes that a picture has at least; crowds do not count. 0 also takes pictures without any."""
    max_objects: int = 0
    """Objects of these classes that a picture has at most; 0 sets no limit."""
    min_size: float = 0.0
    """Leave out pictures with an object of these classes smaller than this: √(area of its box / area of the picture)."""

    def __post_init__(self) -> None:
        names = tuple(name.strip() for words in self.classes for name in words.split(","))
        object.__setattr__(self, "classes", names)
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"--classes {','.join(names)!r}: name each class once, with single commas between")
        for option in ("images", "val_images", "seed", "min_objects", "max_objects"):
            if getattr(self, option) < 0:
                raise ValueError(f"--{option.replace('_', '-')} is {getattr(self, option)}: give 0 or more")
        if 0 < self.max_objects < self.min_objects:
            raise ValueError(
                f"--max-objects is {self.max_objects}: give at least --min-objects, {self.min_objects}, or 0"
            )
        if not 0 <= self.min_size < 1:
            raise ValueError(f"--min-size is {self.min_size}: give a share of the picture's side, from 0 to below 1")

    def count(self, split: str) -> int:
        """Pictures wanted of "train" or "val"; 0 for all."""
        return self.images if split == "train" else self.val_images

    def fits(self, image: Record, objects: list[Record]) -> bool:
        """Whether a picture with these objects, of the subset's classes, may be chosen."""
        boxes = [a["bbox"] for a in objects if not is_crowd(a)]
        if len(boxes) < self.min_objects or 0 < self.max_objects < len(boxes):
            return False
        area = image["width"] * image["height"]
        return all(math.sqrt(max(0, width * height) / area) >= self.min_size for _, _, width, height in boxes)


def choose(content: Record, subset: CocoSubset, split: str, source: str) -> Record:
    """The subset of a split, itself in COCO's format: the chosen pictures and classes, and what belongs to both.

    content: of an annotation file, called `source` in messages; all of it but "images", "annotations" and "categories" is
    kept as it is. Pictures come in the order of the hash, crowds are kept. Raises ValueError naming source, record, field
    and value where the file is broken or has not enough pictures.
    """
    _check_lists(content, source)
    categories = _find_categories(content["categories"], subset.classes, source)
    images = _check_images(content["images"], source)
    wanted = {c["id"] for c in categories}
    objects: dict[int, list[Record]] = {number: [] for number in images}
    for annotation in content["annotations"]:
        if annotation.get("category_id") in wanted:
            _check_annotation(annotation, images, source)
            objects[annotation["image_id"]].append(annotation)
    fit = [image for number, image in images.items() if subset.fits(image, objects[number])]
    if len(fit) < max(1, subset.count(split)):
        option = "images" if split == "train" else "val-images"
        limits = "with these classes" + (" and limits" if subset.min_size or subset.max_objects else "")
        raise ValueError(
            f"--{option} is {subset.count(split)}, but {source} has {len(fit)} pictures {limits}: ask for at most so many"
            if fit
            else f"{source} has no picture {limits}: allow more classes, or wider limits"
        )
    fit.sort(key=lambda image: _rank(subset.seed, image["id"]))
    chosen = fit[: subset.count(split) or None]
    _check_names(chosen, source)
    return {
        **content,
        "images": chosen,
        "annotations": [a for image in chosen for a in objects[image["id"]]],
        "categories": categories,
    }


def check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError with the nearest known names for one that is not among them."""
    for name in classes:
        if name not in known:
            hint = did_you_mean(name.lower(), known, most=3) or f"choose from {', '.join(known)}"
            raise ValueError(f"--classes: {name!r} is unknown: {hint}")


def write_subset(path: Path, content: Record) -> None:
    """Write an annotation file in one step. The same content gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(content, separators=(",", ":")).encode())


def describe(content: Record) -> str:
    """Its pictures and its objects by class, most frequent first, such as: 20 pictures; person 35, car 4."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    found = Counter(names[a["category_id"]] for a in content["annotations"] if not is_crowd(a))
    parts = [f"{name} {count}" for name, count in found.most_common(8)]
    parts += (
        [f"{len(names) - 8} more classes"] if len(names) > 8 else [f"{n} 0" for n in names.values() if n not in found]
    )
    return f"{len(content['images'])} pictures; {', '.join(parts)}"


def _rank(seed: int, number: int) -> bytes:
    return hashlib.sha256(f"{seed} {number}".encode()).digest()


def _check_lists(content: Any, source: str) -> None:
    for field in ("images", "annotations", "categories"):
        records = content.get(field) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise ValueError(f"{source} lacks the list {field!r}: it is not in COCO's detection format")


def _find_categories(categories: list[Record], classes: tuple[str, ...], source: str) -> list[Record]:
    """The categories of these names, in the file's order; all where no name is given."""
    for category in categories:
        if not is_id(category.get("id")) or not isinstance(category.get("name"), str):
            raise ValueError(f"{source}: a category needs a whole number as id and a text as name, got {category}")
    check_classes(classes, [c["name"] for c in categories])
    return [c for c in categories if not classes or c["name"] in classes]


def _check_images(records: list[Record], source: str) -> dict[int, Record]:
    """The pictures by id."""
    images: dict[int, Record] = {}
    for record in records:
        where = f"{source}: image id {record.get('id')!r}"
        for field in ("id", "width", "height"):
            if not is_id(record.get(field)) or (field != "id" and record[field] < 1):
                raise ValueError(f"{where}: {field} is {record.get(field)!r}, and should be a whole number below 2**63")
        if record["id"] in images:
            raise ValueError(f"{where} occurs twice")
        images[record["id"]] = record
    return images


def _check_names(images: list[Record], source: str) -> None:
    """The names become paths and addresses: nothing that could lead out of the folder, and none twice."""
    seen: dict[str, int] = {}
    for image in images:
        name, where = image.get("file_name"), f"{source}: image id {image['id']}"
        if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            raise ValueError(
                f"{where}: file_name {name!r} is refused: a plain name of letters, digits, '_', '-' and '.' was expected"
            )
        if name.lower() in seen:  # one file, where the disk does not tell capitals apart
            raise ValueError(f"{where}: file_name {name!r} is that of image id {seen[name.lower()]} too")
        seen[name.lower()] = image["id"]


def _check_annotation(annotation: Record, images: dict[int, Record], source: str) -> None:
    where = f"{source}: annotation {annotation.get('id')}"
    if annotation.get("image_id") not in images:
        raise ValueError(f"{where}: image_id {annotation.get('image_id')!r} is not in 'images'")
    if not four_numbers(annotation.get("bbox")):
        raise ValueError(
            f"{where} of image id {annotation['image_id']}: bbox must be four finite numbers [x, y, width, height], got "
            f"{annotation.get('bbox')}"
        )
    if problem := crowd_problem(annotation):
        raise ValueError(f"{where} of image id {annotation['image_id']}: {problem}")
