"""Boxes: two ways to write them, and two ways to say how well they agree.

A model predicts (cx, cy, w, h) in 0..1 of the picture; overlap is computed on corners (x0, y0, x1, y1).
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to (..., 4) corners, in whatever unit they are."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to (..., 4) centre and size."""
    upper_left, lower_right = boxes.split(2, dim=-1)
    return torch.cat(((upper_left + lower_right) / 2, lower_right - upper_left), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) corners → (...) area; a box whose corners are in the wrong order has none."""
    return _product((boxes[..., 2:] - boxes[..., :2]).clamp(min=0))


def _product(sides: Tensor) -> Tensor:
    """(..., 2) → (...). `prod` would synchronise with a GPU in its backward, to ask for zeros."""
    width, height = sides.unbind(-1)
    return width * height


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other: (..., 4) and (..., 4) corners → (...).

    For every pair of n and m boxes: `box_iou(a[:, None], b)`. Two boxes without any area give 0.
    """
    intersection, union = _intersection_and_union(a, b)
    return _share(intersection, union)


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the share of the smallest enclosing box that neither fills (Rezatofighi et al. 2019, algorithm 1).

    Broadcasts like `box_iou`. In −1..1; unlike IoU it has a gradient where the boxes do not touch.
    """
    intersection, union = _intersection_and_union(a, b)
    hull = torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), dim=-1)
    hull_area = box_area(hull)
    return _share(intersection, union) - _share(hull_area - union, hull_area)


FLAT = 1e-16  # an area below this is none: the square of a gradient that is divided by less would be infinite


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0, without a gradient, where the whole is flat."""
    return torch.where(whole > FLAT, part / whole.clamp(min=FLAT), 0.0)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    upper_left = torch.maximum(a[..., :2], b[..., :2])
    lower_right = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = _product((lower_right - upper_left).clamp(min=0))
    return intersection, box_area(a) + box_area(b) - intersection


def clip_to_picture(boxes: Tensor, height: float, width: float) -> Tensor:
    """Corners (..., 4) in pixels, kept inside a picture of this size."""
    limits = boxes.new_tensor((width, height, width, height))
    return torch.minimum(boxes.clamp(min=0), limits)
