"""The picture that the whole course follows."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ddetr_lite.datasets.shapes import ShapesConfig, render_picture

SPLIT, INDEX = "val", 40  # held out: no model of the course was trained on it


class Scene(NamedTuple):
    """A picture with its objects.

    pixels: (3, H, W), uint8. boxes: (n, 4), x0 y0 x1 y1 in pixels. names: the n objects' classes.
    """

    pixels: Tensor
    boxes: Tensor
    names: tuple[str, ...]


@cache
def picture() -> Scene:
    """The course's picture, 96 × 96 pixels, the same in every notebook."""
    config = ShapesConfig()
    pixels, annotations = render_picture(config, SPLIT, INDEX)
    corner = torch.tensor([note["bbox"] for note in annotations], dtype=torch.float32)  # x, y, width, height
    boxes = torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:]], dim=1)
    names = tuple(config.classes[note["category_id"] - 1] for note in annotations)
    return Scene(torch.from_numpy(pixels.copy()).permute(2, 0, 1), boxes, names)
