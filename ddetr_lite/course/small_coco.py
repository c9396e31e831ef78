"""A small set of generated pictures in the very layout of COCO 2017, and a site on this machine that hands it out.

What makes COCO's files awkward is in it: category ids with gaps, ids of pictures that are no positions, wide and upright
pictures, objects that a border cuts, and crowds.
"""

import functools
import http.server
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddetr_lite.datasets.shapes import ShapesConfig, render_picture

Record = dict[str, Any]

CATEGORIES = {1: "circle", 3: "square", 18: "star", 90: "arrow"}
"""Category id → name. In COCO these ids are person, car, dog and toothbrush."""

SIDES = (96, 128)  # shorter and longer side of a picture
SEEN = 0.5  # of an object's box: what the cut has to leave of it
GROUP = 3  # so many objects of a kind in a picture are annotated as one crowd


def write_small_coco(folder: str | Path, train: int = 280, val: int = 60) -> Path:
    """Write `train2017/`, `val2017/`, `annotations/instances_{train,val}2017.json`, and the archive of these two files.

    train, val: pictures in the two splits, the same ones each time. Returns the folder.
    """
    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    look = ShapesConfig(
        size=SIDES[1], min_size=0.18, max_size=0.5, max_objects=4, classes=tuple(CATEGORIES.values()), seed=11
    )
    with zipfile.ZipFile(folder / "annotations" / "annotations_trainval2017.zip", "w") as archive:
        for split, count in (("train", train), ("val", val)):
            content = _write_split(folder / f"{split}2017", look, split, count)
            path = folder / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(content), encoding="utf-8")
            archive.write(path, f"annotations/{path.name}")
    return folder


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """A web server for the files of a folder, on this machine and for it alone, as long as the context lasts: its address."""
    handler = functools.partial(_Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Silent(http.server.SimpleHTTPRequestHandler):
    """Without a line on the terminal for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _write_split(folder: Path, look: ShapesConfig, split: str, count: int) -> Record:
    """Write the pictures of a split, and return what its annotation file says."""
    folder.mkdir(exist_ok=True)
    images: list[Record] = []
    annotations: list[Record] = []
    for index in range(count):
        pixels, objects = _cut(*render_picture(look, split, index), upright=index % 4 == 3)
        height, width = pixels.shape[:2]
        image_id = (200_000 if split == "val" else 0) + 37 * index + 9  # no position, and none twice
        name = f"{image_id:012d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=95)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += [{"id": 0, "image_id": image_id, **found} for found in _with_crowds(objects)]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    categories = [{"supercategory": "shape", "id": i, "name": name} for i, name in CATEGORIES.items()]
    return {
        "info": {"description": f"generated shapes in COCO's layout, {split}2017"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _cut(pixels: NDArray[np.uint8], objects: list[Record], upright: bool) -> tuple[NDArray[np.uint8], list[Record]]:
    """The middle of a square picture, wide or upright, and those objects of which enough is left."""
    start = (SIDES[1] - SIDES[0]) // 2
    axis = 0 if upright else 1  # of (x, y), the one that is cut
    part = slice(start, start + SIDES[0])
    kept = []
    for found in objects:
        corner, size = list(found["bbox"][:2]), list(found["bbox"][2:])
        low, high = max(corner[axis] - start, 0), min(corner[axis] + size[axis] - start, SIDES[0])
        share = (high - low) / size[axis]
        if share < SEEN:
            continue
        corner[axis], size[axis] = low, high - low
        kept.append(
            {
                "category_id": list(CATEGORIES)[found["category_id"] - 1],
                "bbox": [round(side, 2) for side in (*corner, *size)],
                "area": round(found["area"] * share, 1),
                "iscrowd": 0,
            }
        )
    return (pixels[:, part] if upright else pixels[part]), kept


def _with_crowds(objects: list[Record]) -> list[Record]:
    """Many of a kind become one box around all of them, which bears the mark of a crowd."""
    counts = Counter(found["category_id"] for found in objects)
    crowded = [category for category, count in counts.items() if count >= GROUP]
    result = [found for found in objects if found["category_id"] not in crowded]
    for category in crowded:
        group = [found for found in objects if found["category_id"] == category]
        x0, y0 = (min(found["bbox"][i] for found in group) for i in (0, 1))
        x1, y1 = (max(found["bbox"][i] + found["bbox"][i + 2] for found in group) for i in (0, 1))
        box = [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)]
        area = round(sum(found["area"] for found in group), 1)
        result.append({"category_id": category, "bbox": box, "area": area, "iscrowd": 1})
    return result
