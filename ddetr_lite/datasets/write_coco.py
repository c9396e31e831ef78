"""Pictures and boxes of one's own, wherever they come from, written as a split in COCO's layout."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ddetr_lite.datasets.fields import LARGEST, leads_outside
from ddetr_lite.datasets.pictures import as_rgb, is_turned, picture_size, read_picture
from ddetr_lite.writing import write_bytes

Sample = tuple[Any, Any, Any]
"""A picture, its boxes and their labels: see `write_coco`."""
UNFINISHED = ".unfinished"
"""A file in the folder of pictures as long as their annotations are not written."""
MOST_WRONG = 20
"""How many wrong samples one error names; those after them are not looked at, for all may have the same mistake."""


def write_coco(
    folder: str | Path,
    split: str,
    samples: Iterable[Sample],
    classes: Sequence[str] | Mapping[int, str],
    upright: bool = False,
) -> Path:
    """Write `folder/annotations/instances_SPLIT.json` and the pictures, in `folder/SPLIT/`. Returns the annotation file.

    samples: for each picture (picture, boxes, labels), from a generator as well as from a list, so that they need not be in
    memory at once. picture: the path of a file, which is copied as it is; or PIL's, a tensor (3, H, W) or an array (H, W, 3) of
    uint8, which become a PNG. boxes: (T, 4), corners (x0, y0, x1, y1) in pixels (torchvision's "xyxy"; tv_tensors say
    themselves what they are), T may be 0. labels: (T,), positions in `classes` from 0 on, or names that are in it.
    upright: boxes are in pixels of a photo as it is shown, where its file says that it is to be turned (EXIF), as labelling
    tools have it; then it is turned. Else they are in pixels as they lie in the file.

    The annotations are written last: a split without them was not finished, and is written anew. A split that is there, or a
    folder with other pictures, is left as it is. Raises FileExistsError for them, ValueError naming samples, by their
    positions, and what is wrong with each: all of them, or the first twenty.
    """
    names = _checked(classes)
    if not split or "/" in split or leads_outside(split):
        raise ValueError(f"split={split!r} must be a name, such as 'train'")
    annotations, pictures = Path(folder) / "annotations" / f"instances_{split}.json", Path(folder) / split
    if annotations.exists():
        raise FileExistsError(f"{annotations} is there already: write to another folder, or move it away")
    if pictures.exists() and any(pictures.iterdir()) and not (pictures / UNFINISHED).exists():
        raise FileExistsError(f"{pictures} holds other files: write to another folder")
    for path in (annotations.parent, pictures):
        if (file := next((part for part in (path, *path.parents) if part.is_file()), None)) is not None:
            raise FileExistsError(f"{file} is a file: name a folder")
        path.mkdir(parents=True, exist_ok=True)
    (pictures / UNFINISHED).touch()
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
    }
    wrong: list[str] = []
    for index, sample in enumerate(samples):
        if len(wrong) == MOST_WRONG:
            wrong.append("what comes after was not looked at")
            break
        try:
            picture, boxes, labels = sample
            objects = list(_objects(boxes, labels, names))
            name, (height, width) = _write_picture(index, picture, pictures, upright)
            _check_inside(objects, height, width)
        except (TypeError, ValueError, RuntimeError, OSError) as error:  # of whatever a sample is made of
            wrong.append(f"sample {index}: {error}")
            continue
        content["images"].append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for label, (x0, y0, x1, y1) in objects:
            bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
            number = len(content["annotations"]) + 1
            ids = {"id": number, "image_id": index + 1, "category_id": label + 1}
            content["annotations"].append({**ids, "bbox": bbox, "area": area, "iscrowd": 0})
    if wrong:
        raise ValueError("\n".join(wrong))
    if not content["images"]:
        raise ValueError("there are no samples: give at least one picture")
    write_bytes(annotations, json.dumps(content, separators=(",", ":")).encode())
    (pictures / UNFINISHED).unlink()
    return annotations


def _checked(classes: Any) -> list[str]:
    """The names in the order of their labels."""
    if isinstance(classes, Mapping):
        if sorted(classes) != list(range(len(classes))):
            raise ValueError(f"classes={classes!r} must be a list of names, or name 0, 1, ... without a gap")
        classes = [classes[label] for label in range(len(classes))]
    names = list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"classes={classes!r} must be names, at least one, and none twice")
    return names


def _write_picture(index: int, picture: Any, folder: Path, upright: bool) -> tuple[str, tuple[int, int]]:
    """The name of the picture's file, and its height and width."""
    name = f"{index:06d}.png"
    if isinstance(picture, str | Path):
        source = Path(picture).expanduser()
        size = picture_size(source)
        if not (upright and is_turned(source)):
            name = f"{index:06d}-{source.name[-200:]}"
            shutil.copyfile(source, folder / name)
            return name, size
        picture = read_picture(source, upright=True)
    if isinstance(picture, Image.Image):
        picture = np.asarray(as_rgb(picture))
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3:
        picture = torch.from_numpy(picture.copy()).permute(2, 0, 1)  # PIL lends arrays that may not be written to
    fits = isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.dim() == 3 and len(picture) == 3
    if not fits or picture.numel() == 0:
        given = type(picture).__name__
        if isinstance(picture, Tensor | np.ndarray):
            given = f"{picture.dtype} {tuple(picture.shape)}"
        floats = "; of floats in 0..1 make (255 * picture).byte()" if "float" in given else ""
        raise ValueError(
            f"the picture is {given}: give a path, PIL's, a tensor (3, H, W) or an array (H, W, 3) of uint8{floats}"
        )
    Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy()).save(folder / name)
    return name, (picture.shape[1], picture.shape[2])


def _objects(boxes: Any, labels: Any, names: list[str]) -> Iterator[tuple[int, list[float]]]:
    """Label and corners of each object. Raises ValueError naming the object."""
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    corners = torch.as_tensor(np.asarray(boxes) if isinstance(boxes, list | tuple) else boxes).detach().double().cpu()
    labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else [_plain(label) for label in labels]
    corners = corners.reshape(-1, 4) if corners.numel() == 0 else corners
    if corners.dim() != 2 or corners.shape[1] != 4 or len(corners) != len(labels):
        raise ValueError(f"boxes must be (T, 4) and labels (T,), got {tuple(corners.shape)} and ({len(labels)},)")
    for number, (box, label) in enumerate(zip(corners.tolist(), labels, strict=True)):
        where, (x0, y0, x1, y1) = f"object {number}", box
        if not all(abs(value) <= LARGEST for value in box):  # NaN is not
            raise ValueError(f"{where}: box {box} must be four finite numbers")
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{where}: box {box} has no area: corners (x0, y0, x1, y1) are expected, not [x, y, width, height]"
            )
        if x1 < 1 and y1 < 1:
            raise ValueError(f"{where}: box {box} lies within the first pixel: give pixels, not shares of the picture")
        if isinstance(label, str):
            if label not in names:
                raise ValueError(f"{where}: label {label!r} is not among the classes ({', '.join(names[:8])})")
            label = names.index(label)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
            first = ": they begin at 0; where 0 is the background, subtract 1" if label == len(names) else ""
            raise ValueError(
                f"{where}: label {label!r} must be a whole number in 0..{len(names) - 1}, a position in classes{first}"
            )
        yield label, box


def _plain(label: Any) -> Any:
    """A number of NumPy's, or a tensor with one, as Python's."""
    return label.item() if isinstance(label, np.generic | Tensor) else label


def _check_inside(objects: Sequence[tuple[int, list[float]]], height: int, width: int) -> None:
    for number, (_, (x0, y0, x1, y1)) in enumerate(objects):
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise ValueError(
                f"object {number}: box {[x0, y0, x1, y1]} lies outside the picture, which is {width} wide and {height} high"
            )
