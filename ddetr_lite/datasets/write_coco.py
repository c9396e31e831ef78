"""Pictures and boxes of one's own, wherever they come from, written as a split in COCO's layout."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddetr_lite.datasets.fields import LARGEST
from ddetr_lite.datasets.pictures import picture_size
from ddetr_lite.writing import write_bytes

Sample = tuple[str | Path | Tensor, Any, Sequence[int | str] | Tensor]
"""A picture, its boxes and their labels: see `write_coco`."""


UNFINISHED = ".unfinished"
"""A file in the folder of pictures as long as their annotations are not written."""


def write_coco(folder: str | Path, split: str, samples: Iterable[Sample], classes: Sequence[str]) -> Path:
    """Write `folder/annotations/instances_SPLIT.json` and the pictures, in `folder/SPLIT/`. Returns the annotation file.

    samples: for each picture (picture, boxes, labels), from a generator as well as from a list, so that they need not be in
    memory at once. picture: the path of a file, which is copied as it is, or a tensor (3, H, W), uint8, which becomes a PNG;
    boxes: (T, 4), corners (x0, y0, x1, y1) in pixels as they lie in the file (torchvision's "xyxy"; what COCO calls
    [x, y, width, height] is made here), T may be 0; labels: (T,), positions in `classes`, or names that are in it.

    The annotations are written last: a split without them was not finished, and is written anew. One that is there is never
    overwritten. Raises FileExistsError for it, ValueError naming the sample, by its position, and what is wrong with it.
    """
    annotations, pictures = Path(folder) / "annotations" / f"instances_{split}.json", Path(folder) / split
    names = _checked(classes)
    if annotations.exists():
        raise FileExistsError(f"{annotations} is there already: write to another folder, or move it away")
    if pictures.exists() and any(pictures.iterdir()) and not (pictures / UNFINISHED).exists():
        raise FileExistsError(f"{pictures} holds other files: write to another folder")
    for path in (annotations.parent, pictures):
        path.mkdir(parents=True, exist_ok=True)
    (pictures / UNFINISHED).touch()
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
    }
    for index, (picture, boxes, labels) in enumerate(samples):
        objects = list(_objects(index, boxes, labels, names))
        name, (height, width) = _write_picture(index, picture, pictures)
        content["images"].append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for label, (x0, y0, x1, y1) in objects:
            bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    if not content["images"]:
        raise ValueError("there are no samples: give at least one picture")
    write_bytes(annotations, json.dumps(content, separators=(",", ":")).encode())
    (pictures / UNFINISHED).unlink()
    return annotations


def _checked(classes: Sequence[str]) -> list[str]:
    names = [classes] if isinstance(classes, str) else list(classes)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes={classes!r} must be names, at least one, and none twice")
    return names


def _write_picture(index: int, picture: str | Path | Tensor, folder: Path) -> tuple[str, tuple[int, int]]:
    """The name of the picture's file, and its height and width."""
    if isinstance(picture, (str, Path)):
        source = Path(picture).expanduser()
        try:
            size = picture_size(source)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"sample {index}: {error}") from error
        name = f"{index:06d}-{source.name}"
        shutil.copyfile(source, folder / name)
        return name, size
    if not (isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.dim() == 3 and len(picture) == 3):
        given = f"{picture.dtype} {tuple(picture.shape)}" if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(
            f"sample {index}: the picture is {given}: give a path, or a tensor (3, H, W) of uint8, such as torchvision's "
            "pil_to_tensor makes"
        )
    name = f"{index:06d}.png"
    Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy()).save(folder / name)
    return name, (picture.shape[1], picture.shape[2])


def _objects(index: int, boxes: Any, labels: Any, names: list[str]) -> Iterator[tuple[int, list[float]]]:
    """Label and corners of each object. Raises ValueError naming the sample and the object."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if len(boxes) == 0 else np.asarray(boxes, np.float64)
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if corners.ndim != 2 or corners.shape[1] != 4 or len(corners) != len(labels):
        raise ValueError(
            f"sample {index}: boxes must be (T, 4) and labels (T,), got {corners.shape} and ({len(labels)},)"
        )
    for number, (box, label) in enumerate(zip(corners.tolist(), labels, strict=True)):
        where, (x0, y0, x1, y1) = f"sample {index}, object {number}", box
        if not all(abs(value) <= LARGEST for value in box):  # NaN is not
            raise ValueError(f"{where}: box {box} must be four finite numbers")
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{where}: box {box} has no area: corners (x0, y0, x1, y1) are expected, not [x, y, width, height]"
            )
        if x1 <= 1 and y1 <= 1:
            raise ValueError(f"{where}: box {box} lies within the first pixel: give pixels, not shares of the picture")
        if isinstance(label, str):
            if label not in names:
                raise ValueError(f"{where}: label {label!r} is not among the classes ({', '.join(names[:8])})")
            label = names.index(label)
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < len(names):
            raise ValueError(
                f"{where}: label {label!r} must be a whole number in 0..{len(names) - 1}, a position in classes"
            )
        yield int(label), box
