"""A tiny data set in COCO's format with everything that real folders have: gaps, crowds, empty pictures, bad borders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def content() -> dict[str, Any]:
    """The annotations: ids with gaps and out of order, a crowd, a picture without objects, boxes beyond the border."""
    return {
        "images": [
            {"id": 42, "file_name": "a.jpg", "height": 40, "width": 60},
            {"id": 7, "file_name": "b.png", "height": 50, "width": 30},
            {"id": 1000, "file_name": "c.png", "height": 32, "width": 32},
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 42, "category_id": 90, "bbox": [50, 30, 20, 20], "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 42, "category_id": 3, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 3, "image_id": 42, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
            {"id": 4, "image_id": 1000, "category_id": 3, "bbox": [8, 8, 0, 4], "area": 0, "iscrowd": 0},
            {"id": 5, "image_id": 1000, "category_id": 3, "bbox": [-5, -5, 20, 20], "area": 225},
        ],
    }


def write(folder: Path, annotations: dict[str, Any] | None = None, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Write it as `folder/train2017/`, `folder/val2017/` and `folder/annotations/instances_*2017.json`."""
    annotations = annotations or content()
    noise = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"{split}2017").mkdir(exist_ok=True)
        text = json.dumps(annotations)
        (folder / "annotations" / f"instances_{split}2017.json").write_text(text, encoding="utf-8")
        for image in annotations["images"]:
            pixels = noise.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}2017" / image["file_name"])
    return folder
