"""The exercises of notebook 00: box formats, pixel positions, thresholds, and how large a picture goes in."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake
from ddetr_lite.datasets import transforms
from ddetr_lite.set_prediction import boxes as package_boxes

# --- cxcywh_to_xyxy: centre and size to corners -------------------------------------------------------------


def _corners(boxes: Tensor) -> Tensor:
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def _rearranged(build: Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]) -> Callable[[Tensor], Tensor]:
    """Four other numbers made of (cx, cy, w, h)."""

    def changed(boxes: Tensor) -> Tensor:
        return torch.stack(build(*boxes.unbind(-1)), dim=-1)

    return changed


def _one_box_only(boxes: Tensor) -> Tensor:
    cx, cy, w, h = boxes
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))


def _one_list_only(boxes: Tensor) -> Tensor:
    cx, cy, w, h = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=1)


def _box_cases() -> list[Case]:
    several = torch.tensor([[0.5, 0.25, 1.0, 0.5], [0.31, 0.72, 0.24, 0.1], [0.9, 0.8, 0.05, 0.35]])
    return [
        Case("one box", (torch.tensor([[5.0, 3.0, 4.0, 2.0]]),)),
        Case("three boxes", (several,)),
        Case("two pictures with three boxes each", (torch.stack((several, several.flip(0) / 2)),)),
    ]


CORNERS = Exercise(
    name="cxcywh_to_xyxy",
    notebook="00",
    task="Turn (cx, cy, w, h) into (x0, y0, x1, y1): half of the size to each side of the centre.",
    reference=_corners,
    cases=_box_cases,
    differentiable=True,
    part=package_boxes.cxcywh_to_xyxy,
    hints=(
        "Draw a box on paper: centre (5, 3), width 4, height 2. Where are its left and its right edge?",
        "boxes.unbind(-1) gives the four columns cx, cy, w, h, whatever dimensions stand in front.",
        "x0 = cx - w / 2. With all four, torch.stack((x0, y0, x1, y1), dim=-1) puts them side by side again.",
    ),
    mistakes=(
        Mistake(
            "the whole width and height are taken to each side: half of them reaches the edge",
            _rearranged(lambda cx, cy, w, h: [cx - w, cy - h, cx + w, cy + h]),
        ),
        Mistake(
            "the centre is taken for the upper left corner: x0 is cx - w/2, not cx",
            _rearranged(lambda cx, cy, w, h: [cx, cy, cx + w, cy + h]),
        ),
        Mistake(
            "the last two numbers are still width and height (COCO's files write boxes so): corners are asked for",
            _rearranged(lambda cx, cy, w, h: [cx - w / 2, cy - h / 2, w, h]),
        ),
        Mistake(
            "the order is x0, x1, y0, y1: one corner should come after the other, x0, y0, x1, y1",
            _rearranged(lambda cx, cy, w, h: [cx - w / 2, cx + w / 2, cy - h / 2, cy + h / 2]),
        ),
        Mistake(
            "the lower right corner comes first: the upper left one should, and y grows downwards",
            _rearranged(lambda cx, cy, w, h: [cx + w / 2, cy + h / 2, cx - w / 2, cy - h / 2]),
        ),
        Mistake(
            "width and height are swapped: x goes with the width, y with the height",
            _rearranged(lambda cx, cy, w, h: [cx - h / 2, cy - w / 2, cx + h / 2, cy + w / 2]),
        ),
        Mistake(
            "boxes is unpacked along its first dimension, box by box; its four numbers are the last one: "
            "boxes.unbind(-1)",
            _one_box_only,
        ),
        Mistake(
            "[:, 0] and dim=1 count dimensions from the front, which fits one list of boxes only; with several "
            "pictures write [..., 0] and dim=-1",
            _one_list_only,
        ),
    ),
)

# --- location_to_pixel: where a location in 0..1 falls on a map ---------------------------------------------


def _pixel(location: Tensor, height: int, width: int) -> Tensor:
    return location * location.new_tensor((width, height)) - 0.5


def _location_cases() -> list[Case]:
    points = torch.tensor([[0.0, 1.0], [0.1, 0.62], [0.5, 0.5]])
    return [
        Case("one location on a map of 4 × 8 cells", (torch.tensor([[0.25, 0.75]]), 4, 8)),
        Case("three locations on a map of 3 × 6 cells", (points, 3, 6)),
        Case("two heads with three locations on 12 × 5 cells", (torch.stack((points, points / 3)), 12, 5)),
        Case("a map of a single cell", (torch.tensor([[0.5, 0.25]]), 1, 1)),
    ]


PIXEL = Exercise(
    name="location_to_pixel",
    notebook="00",
    task="Turn locations (x, y) in 0..1 into positions on a map whose first cell has its centre at 0.",
    reference=_pixel,
    cases=_location_cases,
    differentiable=True,
    hints=(
        "Take a map of 4 cells in a row. Its middle, location 0.5, is the border between cells 1 and 2. Which "
        "number lies half-way between them?",
        "Location · width counts cells from the left edge of the map. The centre of cell 0 is half a cell "
        "further right.",
        "x belongs to width, y to height: location * torch.tensor([width, height]) - ...",
    ),
    mistakes=(
        Mistake(
            "half a cell is missing: 0 should be the centre of the first cell, and location · size is 0 at its edge",
            lambda p, h, w: p * torch.tensor([w, h]),
        ),
        Mistake(
            "locations 0 and 1 fall on the centres of the outermost cells (align_corners=True); they are the "
            "edges of the map",
            lambda p, h, w: p * torch.tensor([w - 1, h - 1]),
        ),
        Mistake(
            "x is multiplied by the height and y by the width; a location is (x, y), and x runs along the width",
            lambda p, h, w: p * torch.tensor([h, w]) - 0.5,
        ),
        Mistake(
            "the half is taken off the location, before the product: half a cell is ½ after it",
            lambda p, h, w: (p - 0.5) * torch.tensor([w, h]),
        ),
        Mistake(
            "the half is added: the centre of the first cell, location 0.5/size, should come out as 0",
            lambda p, h, w: p * torch.tensor([w, h]) + 0.5,
        ),
        Mistake(
            "this is the number of the cell, whole; a location between two cells must keep its fraction",
            lambda p, h, w: (p * torch.tensor([w, h])).long(),
        ),
    ),
)

# --- keep_confident: what is above a threshold, best first --------------------------------------------------


def _confident(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True)
    return boxes[order][scores[order] >= threshold]


def _stacked(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True)
    return torch.stack([boxes[i] for i in order if scores[i] >= threshold])


def _confident_cases() -> list[Case]:
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 0, 6, 9], [3, 2, 7, 8]])
    many = torch.arange(24.0).reshape(6, 4)
    return [
        Case("four boxes, one at the threshold itself", (boxes, torch.tensor([0.5, 0.2, 0.9, 0.7]), 0.5)),
        Case("six boxes", (many, torch.tensor([0.31, 0.8, 0.05, 0.62, 0.9, 0.4]), 0.3)),
        Case("nothing is sure enough", (boxes, torch.tensor([0.4, 0.2, 0.3, 0.1]), 0.5)),
    ]


CONFIDENT = Exercise(
    name="keep_confident",
    notebook="00",
    task="Return the boxes whose score is at least the threshold, the best one first.",
    reference=_confident,
    cases=_confident_cases,
    hints=(
        "Two steps: put the boxes in order of their scores, then keep those that are sure enough.",
        "order = scores.argsort(descending=True) gives places; boxes[order] and scores[order] go together.",
        "A comparison such as scores >= threshold gives True and False, and boxes[...] takes it as an index.",
    ),
    mistakes=(
        Mistake(
            "the boxes are still in the order in which they came: the best one comes first",
            lambda b, s, t: b[s >= t],
        ),
        Mistake(
            "the worst comes first: argsort and sort go upwards unless descending=True",
            lambda b, s, t: b[s.argsort()][s.sort().values >= t],
        ),
        Mistake(
            "a box whose score equals the threshold is dropped: at least means >=",
            lambda b, s, t: b[s.argsort(descending=True)][s.sort(descending=True).values > t],
        ),
        Mistake(
            "the unsure boxes are kept and the sure ones dropped",
            lambda b, s, t: b[s.argsort(descending=True)][s.sort(descending=True).values < t],
        ),
        Mistake(
            "the scores are sorted and the boxes are not, so each box meets another one's score",
            lambda b, s, t: b[s.sort(descending=True).values >= t],
        ),
        Mistake(
            "the order counts all boxes, but some of them were dropped before: sort first, or sort the scores "
            "that stay",
            lambda b, s, t: b[s >= t][s.argsort(descending=True)],
        ),
        Mistake(
            "these are the scores: the boxes that belong to them are asked for",
            lambda b, s, t: s[s >= t].sort(descending=True).values,
        ),
        Mistake(
            "an empty list cannot be stacked: where nothing is sure enough the result has shape (0, 4); an "
            "index of True and False gives that by itself",
            _stacked,
        ),
        Mistake(
            "where nothing is sure enough you return an empty row; the result has shape (0, 4), no box of four numbers. An "
            "index of True and False gives that by itself",
            lambda b, s, t: _stacked(b, s, t) if (s >= t).any() else torch.tensor([]),
        ),
    ),
)

# --- resized_size: DETR's rule for the size of the input ----------------------------------------------------


def _scaled(
    height: int,
    width: int,
    short_side: int,
    max_side: int,
    whole: Callable[[float], float] = int,
    cap: Callable[[float], float] = round,
) -> tuple[float, float]:
    """The rule, with what makes numbers whole as a choice; `cap` for the shorter side of a very long picture."""
    shorter, longer = min(height, width), max(height, width)
    short: float = short_side
    if longer / shorter * short_side > max_side:
        short = cap(max_side * shorter / longer)
    return (whole(short * height / width), short) if width < height else (short, whole(short * width / height))


def _uncapped(height: int, width: int, short_side: int, max_side: int) -> tuple[float, float]:
    return _scaled(height, width, short_side, 10**9)


def _clipped(height: int, width: int, short_side: int, max_side: int) -> tuple[float, float]:
    high, wide = _uncapped(height, width, short_side, max_side)
    return min(high, max_side), min(wide, max_side)


def _by_scale(height: int, width: int, short_side: int, max_side: int) -> tuple[float, float]:
    """Both sides times one number, which is rounded, and so may be their product with the shorter side."""
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * short_side > max_side:
        short_side = round(max_side * shorter / longer)
    scale = short_side / shorter
    return int(height * scale), int(width * scale)


def _landscape_only(height: int, width: int, short_side: int, max_side: int) -> tuple[float, float]:
    if width / height * short_side > max_side:
        short_side = round(max_side * height / width)
    return short_side, int(short_side * width / height)


def _adapt_size(learner: Callable[[int, int, int, int], tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    """The package needs whole numbers that are of type int: 337.0 passes the check as well."""

    def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
        high, wide = learner(height, width, short_side, max_side)
        return int(high), int(wide)

    return resized_size


SIZE = Exercise(
    name="resized_size",
    notebook="00",
    task="Return (height, width) with the shorter side short_side, or less if the longer exceeded max_side.",
    reference=_scaled,
    cases=lambda: [
        Case("a photo that should become 337 × 288", (600, 512, 288, 384)),
        Case("a photo that should become 800 × 1066", (480, 640, 800, 1333)),
        Case("a square that should become 800 × 800", (500, 500, 800, 1333)),
        Case("a wide one that should become 445 × 1333", (427, 1280, 800, 1333)),
        Case("a tower that should become 1332 × 333", (1600, 400, 800, 1333)),
        Case("one whose scale, 800 / 335, a computer cannot hold exactly: 800 × 955", (335, 400, 800, 1333)),
        Case("one whose longer side would be 12.8, a little more than allowed: 9 × 11", (25, 32, 10, 12)),
    ],
    part=transforms.resized_size,
    adapt=_adapt_size,
    hints=(
        "Which side is shorter, height or width? That one becomes short_side; the other keeps the proportion.",
        "The longer side would be longer / shorter * short_side. If that is more than max_side, take another "
        "short_side: round(max_side * shorter / longer).",
        "int(...) cuts the fraction off. Return (height, width), in this order.",
    ),
    mistakes=(
        Mistake(
            "the order is (width, height): a size is (height, width) here, like the shape of a picture",
            lambda h, w, s, m: _scaled(h, w, s, m)[::-1],
        ),
        Mistake("the longer side is not held at max_side", _uncapped),
        Mistake(
            "both sides are multiplied by one scale: in a computer 335 · (800 / 335) comes out a little below 800, and int "
            "makes it 799. Give the shorter side its number as it is",
            _by_scale,
        ),
        Mistake(
            "the longer side is cut at max_side and the shorter one stays: that squeezes the picture; both must shrink",
            _clipped,
        ),
        Mistake(
            "the longer side becomes short_side, where the shorter one should",
            lambda h, w, s, m: (s, int(s * w / h)) if h > w else (int(s * h / w), s),
        ),
        Mistake("both sides become short_side: the picture loses its proportions", lambda h, w, s, m: (s, s)),
        Mistake("the height is always taken for the shorter side: photos stand upright too", _landscape_only),
        Mistake(
            "the sides are not whole numbers: int(...) cuts the fraction off",
            lambda h, w, s, m: _scaled(h, w, s, m, float, float),
        ),
        Mistake(
            "the longer side is rounded; the rule cuts its fraction off with int(...)",
            lambda h, w, s, m: _scaled(h, w, s, m, round),
        ),
        Mistake(
            "the fraction of the longer side is cut off before it is compared with max_side; compare first",
            lambda h, w, s, m: _scaled(h, w, s, m if int(max(h, w) / min(h, w) * s) > m else 10**9),
        ),
        Mistake(
            "the new short_side of a long picture is cut off; the rule rounds it, round(max_side * shorter / longer)",
            lambda h, w, s, m: _scaled(h, w, s, m, int, int),
        ),
    ),
)

EXERCISES = (CORNERS, PIXEL, CONFIDENT, SIZE)
