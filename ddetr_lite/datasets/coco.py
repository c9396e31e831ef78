"""Folders in COCO's format, wherever they come from, as a torch data set.

Category ids may have gaps, pictures may lack objects, boxes may reach beyond the border; crowds are left out of training.
Labels are 0..C−1 in the order of the category ids, and `classes` has their names.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from ddetr_lite.datasets.fields import crowd_problem, four_numbers, is_crowd, is_id, is_whole, leads_outside, size_of
from ddetr_lite.datasets.picture_cache import PictureCache
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.datasets.transforms import FileSize, SizeDraw, drop_empty_boxes

Key = tuple[int, int] | tuple[int, int, float]
"""(epoch, index): which picture, and which draw of its augmentation; a third number, in 0..1, says how large it becomes."""


@dataclass(frozen=True)
class CocoFolder:
    """Where a split lies on the disk: its annotation file and the folder of its pictures."""

    annotations: Path
    images: Path

    @classmethod
    def find(cls, root: str | Path, split: str) -> "CocoFolder":
        """Look in `root` for a split such as "train" or "val2017".

        Annotations: annotations/instances_SPLIT*.json, annotations/SPLIT*.json, or SPLIT*/_annotations.coco.json.
        Pictures: beside the latter, else SPLIT*/, images/SPLIT*/ or images/, SPLIT being the split or what the annotation
        file is called. A name without the * is preferred. Raises FileNotFoundError saying what was looked for, and where
        several names fit.
        """
        root = Path(root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(
                f"data folder {root} does not exist: name another with --folder; `ddetr-lite data coco` fetches a part of "
                "COCO, `ddetr-lite data shapes` makes pictures of shapes"
            )
        patterns = [
            f"annotations/instances_{split}*.json",
            f"annotations/{split}*.json",
            f"{split}*/_annotations.coco.json",
        ]
        found: list[Path] = []
        for pattern in patterns:
            exact = root / pattern.replace("*", "")
            found = found or ([exact] if exact.is_file() else sorted(root.glob(pattern)))
        if len(found) != 1:
            names = ", ".join(f.relative_to(root).as_posix() for f in found)
            problem = f"several files fit: {names}" if found else "no file fits"
            raise FileNotFoundError(f"no annotations for split {split!r} in {root}: {problem} ({', '.join(patterns)})")
        if found[0].name == "_annotations.coco.json":
            return cls(found[0], found[0].parent)
        return cls(found[0], _pictures(root, split, found[0].stem.removeprefix("instances_")))


def _pictures(root: Path, split: str, named: str) -> Path:
    """The folder of a split's pictures. named: the split as its annotation file calls it. Raises FileNotFoundError."""
    # Of instances_train2017.json the pictures of 2017, not of 2014; of `train` those in train/, not in train_logs/.
    exact = [root / place / name for name in (named, split) for place in ("", "images")]
    if folder := next((p for p in exact if p.is_dir()), None):
        return folder
    folders = [p for place in (f"{split}*", f"images/{split}*") for p in sorted(root.glob(place)) if p.is_dir()]
    if len(folders) > 1:
        fit = ", ".join(p.relative_to(root).as_posix() + "/" for p in folders)
        raise FileNotFoundError(
            f"no pictures for split {split!r} in {root}: several folders fit: {fit}; rename the one that has them to {split}/"
        )
    if not folders and not (root / "images").is_dir():
        raise FileNotFoundError(f"no pictures for split {split!r} in {root}: expected a folder {split}*/ or images/")
    return folders[0] if folders else root / "images"


class CocoDetection(Dataset):
    """Pictures and their objects.

    `dataset[epoch, index]` gives `(image, target)`: image (3, H, W) uint8; target "boxes" (T, 4), corners in pixels of
    the image; "labels" (T,) in 0..C−1; "image_id"; "original_size" (2,), height and width on the disk. The augmentation
    is a pure function of (seed, epoch, index). `dataset[index]` is epoch 0.

    classes: names to use instead of the file's own order, such as a checkpoint's; categories of other names are an error.
    cache: keep decoded pictures in memory, as they are read, in the process that reads them. limit: only the first pictures
    (by position in the file). `pictures` may be set to a `PictureCache`, from which all processes read.
    Raises ValueError naming file, image id and field where the annotations are broken.
    """

    def __init__(
        self,
        folder: CocoFolder,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        cache: bool = False,
        limit: int | None = None,
    ):
        self.folder, self.transform, self.seed = folder, transform, seed
        content = _read(folder.annotations)
        self.categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        self.classes = list(classes) if classes is not None else list(self.categories.values())
        self.label_of_category = self._labels()
        self.images: list[dict[str, Any]] = content["images"][:limit]
        self.info: dict[str, Any] = content.get("info", {})
        self.annotations = self._group(content["annotations"])
        self.pictures: PictureCache | None = None
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def _labels(self) -> dict[int, int]:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"{self.folder.annotations}: two categories have the same name; rename one: {self.classes}"
            )
        place = {name: i for i, name in enumerate(self.classes)}
        unknown = [name for name in self.categories.values() if name not in place]
        if unknown:
            raise ValueError(
                f"{self.folder.annotations}: category {unknown[0]!r} is not among the model's classes "
                f"({', '.join(self.classes[:8])}{' ...' if len(self.classes) > 8 else ''})"
            )
        return {category: place[name] for category, name in self.categories.items()}

    def _group(self, annotations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """For each picture its objects, checked; crowds stay in, `__getitem__` leaves them out."""
        place = {image["id"]: i for i, image in enumerate(self.images)}
        grouped: list[list[dict[str, Any]]] = [[] for _ in self.images]
        for annotation in annotations:
            index = place.get(annotation["image_id"])
            if index is None:
                continue
            where = f"{self.folder.annotations}: annotation {annotation.get('id')} of image id {annotation['image_id']}"
            if annotation.get("category_id") not in self.categories:
                raise ValueError(f"{where}: category_id {annotation.get('category_id')} is not in 'categories'")
            if not four_numbers(annotation.get("bbox")):
                raise ValueError(
                    f"{where}: bbox must be four finite numbers [x, y, width, height], got {annotation.get('bbox')}"
                )
            if problem := crowd_problem(annotation):
                raise ValueError(f"{where}: {problem}")
            grouped[index].append(annotation)
        return grouped

    def first(self, count: int) -> "CocoDetection":
        """The same set with its first pictures only."""
        return self._part(range(len(self))[:count])

    def with_objects(self, count: int) -> "CocoDetection":
        """The same set with the first pictures that have an object, at most `count`: without one there is nothing to learn."""
        return self._part([index for index in range(len(self)) if self.objects(index)][:count])

    def _part(self, kept: Sequence[int]) -> "CocoDetection":
        """The same set with the pictures at these positions only. What is kept of pictures goes by positions, the new ones."""
        part = copy.copy(self)
        part.images, part.annotations = [self.images[i] for i in kept], [self.annotations[i] for i in kept]
        part._cache = None if self._cache is None else {}
        part.pictures = None if self.pictures is None else self.pictures.part(kept)
        return part

    def __len__(self) -> int:
        return len(self.images)

    def orientations(self) -> list[int]:
        """For each picture 1 where it is upright, 0 where it is wide, or where the file does not say."""
        sizes = [size_of(image) or (0, 0) for image in self.images]
        return [int(height > width) for height, width in sizes]

    def objects(self, index: int) -> list[dict[str, Any]]:
        """The annotations of a picture that are single objects, not crowds."""
        return [a for a in self.annotations[index] if not is_crowd(a)]

    def truth(self, index: int) -> tuple[Tensor, Tensor]:
        """What is true of a picture: its objects' corners (T, 4) in pixels of the file, as they stand there, beyond the border
        too; and their labels (T,).
        """
        own = self.objects(index)
        xywh = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([self.label_of_category[a["category_id"]] for a in own], dtype=torch.int64)
        return box_convert(xywh, "xywh", "xyxy"), labels

    def file_of(self, index: int) -> Path:
        """Where a picture lies."""
        return self.folder.images / self.images[index]["file_name"]

    def check_files(self) -> None:
        """Raise ValueError, naming the first, where pictures are missing. Files are not opened."""
        files = [self.file_of(i) for i in range(len(self))]
        # A folder is listed once: asking for a hundred thousand files one by one takes minutes on a network's disk.
        listed = {f for folder in {f.parent for f in files} if folder.is_dir() for f in folder.iterdir()}
        missing = [i for i, f in enumerate(files) if f not in listed and not f.is_file()]
        if missing:
            first = self.images[missing[0]]
            slashes = "; in a file_name write / instead of \\" if "\\" in first["file_name"] else ""
            raise ValueError(
                f"{self.folder.annotations}: image id {first['id']}: picture {files[missing[0]]} does not exist "
                f"({len(missing)} of {len(self)} are missing): restore them, or drop their records{slashes}"
            )

    def read_image(self, index: int) -> Tensor:
        """The picture as it lies on the disk, or in `pictures`: (3, H, W), uint8, RGB."""
        if self.pictures is not None:
            return self.pictures[index]
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = self.images[index]
        try:
            pixels = read_picture(self.file_of(index))
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"image id {record['id']}: {error}; restore it or drop its record") from error
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def __getitem__(self, key: int | Key) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, index, *draw = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}: {self.folder.annotations} has them from 0 on")
        pixels = self.read_image(index)
        height, width = pixels.shape[1:]
        corners, labels = self.truth(index)
        on_disk = (height, width) if self.pictures is None else self.pictures.on_disk[index]
        self._check_size(index, on_disk)
        target = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=on_disk),
            "labels": labels,
            "image_id": torch.tensor(self.images[index]["id"]),
            "original_size": torch.tensor(on_disk),
        }
        image: Tensor = tv_tensors.Image(pixels)
        target = drop_empty_boxes(target, on_disk)
        carried: dict[str, Any] = {"size": SizeDraw(*draw)} if draw else {}
        if on_disk != (height, width):  # kept smaller than it is: from here on as if the first step had resized it
            target["boxes"] = F.resize(target["boxes"], [height, width])
            carried["file"] = FileSize(*on_disk)
        if self.transform is not None:
            # The draw depends on nothing but these numbers: neither on the workers nor on what was drawn before.
            with torch.random.fork_rng(devices=[]):
                seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1
                torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would also seed every GPU
                image, target = self.transform(image, {**target, **carried})
                target = {name: value for name, value in target.items() if name not in carried}
            target = drop_empty_boxes(target, (image.shape[-2], image.shape[-1]))
        return image.as_subclass(Tensor), {k: v.as_subclass(Tensor) for k, v in target.items()}

    def _check_size(self, index: int, on_disk: tuple[int, int]) -> None:
        """Boxes are in pixels of the size that the record names: of a file of another size they would be wrong, unnoticed."""
        record = self.images[index]
        if (named := size_of(record) or on_disk) != on_disk:
            raise ValueError(
                f"{self.folder.annotations}: image id {record['id']} says width {named[1]:g}, height {named[0]:g}, but "
                f"{self.file_of(index)} has width {on_disk[1]}, height {on_disk[0]}: its boxes would be in the wrong places; "
                "`ddetr-lite data check` lists all such pictures, and what to do"
            )


def _read(path: Path) -> dict[str, Any]:
    """An annotation file that has all that the data set relies on. What else may be wrong, `ddetr-lite data check` finds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # also with a byte order mark
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error
    for field, ids, names in (
        ("images", ("id",), ("file_name",)),
        ("categories", ("id",), ("name",)),
        ("annotations", ("image_id", "category_id"), ()),
    ):
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise ValueError(f"{path} lacks the list {field!r}: it is not in COCO's detection format")
        for place, record in enumerate(content[field]):
            where = f"{path}: {field}[{place}]"
            if not isinstance(record, dict):
                raise ValueError(f"{where} is {record!r}, not an object: remove it")
            where += f" (id {record.get('id')})"
            if missing := [n for n in (*ids, *names) if n not in record]:
                raise ValueError(f"{where} lacks {missing[0]!r}")
            record.pop("segmentation", None)  # nine tenths of COCO's file, and nothing here reads it
            if wrong := [n for n in ids if not is_id(record[n])]:
                value = record[wrong[0]]
                if is_whole(value):
                    raise ValueError(
                        f"{where}: {wrong[0]} {value} does not fit into 64 bits: give smaller ids, below 2**63"
                    )
                raise ValueError(f"{where}: {wrong[0]} must be a whole number, got {value!r}")
    for field in ("images", "categories"):
        counts = Counter(record["id"] for record in content[field])
        if twice := [i for i, n in counts.items() if n > 1]:
            raise ValueError(f"{path}: two of {field!r} have the id {twice[0]}: give each its own")
    for image in content["images"]:
        if not isinstance(image["file_name"], str) or leads_outside(image["file_name"]):
            raise ValueError(
                f"{path}: image id {image['id']}: file_name {image['file_name']!r} must be a path inside the picture folder"
            )
    if not content["images"]:
        raise ValueError(f"{path} lists no pictures")
    if not content["categories"]:
        raise ValueError(f"{path} lists no categories: a detector needs at least one class")
    return content


def collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Lists of pictures and targets: sizes differ, so nothing is stacked."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
