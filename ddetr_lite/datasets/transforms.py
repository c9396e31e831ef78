"""Augmentation with torchvision's v2 transforms, and the resize rule of DETR's authors.

Every transform takes and returns (image, target): a `tv_tensors.Image` and a dict whose "boxes" are
`tv_tensors.BoundingBoxes`. Draws come from torch's global generator, which the data set seeds for each sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

DETR_SHORT_SIDES = tuple(range(480, 801, 32))

# Matrices (3, 3) for (red, green, blue): no change, luminance in every channel, and the cross product with the grey axis.
_AS_IT_IS = torch.eye(3)
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
_AROUND_GREY = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)


@dataclass(frozen=True)
class AugmentConfig:
    """How pictures are resized, flipped and cropped. The defaults are those of DETR and Deformable DETR."""

    short_sides: tuple[int, ...] = DETR_SHORT_SIDES
    """Training: the shorter side, in pixels, is drawn from these. Empty: pictures keep their size."""
    eval_short_side: int = 800
    """Evaluation: the shorter side. 0: pictures keep their size."""
    max_side: int = 1333
    """The longer side should not be longer than this. It can be by some pixels where a picture is many times as long as high,
    since it is the shorter side that is rounded, as in the official code: 1000×32 becomes 1343×43."""
    crop: bool = True
    """In half of the cases cut a random part out first, its sides 60 to 94 % of the middle one of `short_sides`."""
    flip: bool = True
    """Mirror left and right in half of the cases."""
    flip_vertical: bool = False
    """Turn upside down in half of the cases: for pictures without an up, such as the generated ones."""
    quarter_turn: bool = False
    """Turn by 90° in half of the cases; with both flips, a picture is seen in all of its eight ways."""
    color: bool = False
    """Change brightness, contrast, saturation and hue, and exchange colour channels in half of the cases."""


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) after DETR's rule: the shorter side becomes `short_side`, unless the longer would exceed `max_side`.

    The other side is truncated, and only the cap is rounded, as in the official code: one or two pixels away from
    torchvision's own `resize` in a third of all sizes. It is the shorter side that is rounded, so the longer one may exceed
    `max_side` by up to half of longer / shorter: 32×1000 becomes 43×1343. What is already resized may be resized again by
    a pixel or two: with 208 as `max_side` 303×640 becomes 98×206, and that 99×208. Where the shorter side would
    round to 0 it stays 1, and the longer one becomes `max_side`.
    """
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * short_side > max_side:
        short_side = round(max_side * shorter / longer)
        if short_side == 0:
            return (max_side, 1) if width < height else (1, max_side)
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


class SizeDraw(float):
    """A number in 0..1 that a target may carry: which of its short sides `ResizeShortSide` takes.

    Where all pictures of a batch carry the same number, less of the batch is padding.
    """


@dataclass(frozen=True)
class FileSize:
    """A picture's (height, width) on the disk, that a target may carry where the picture itself is kept smaller.

    `ResizeShortSide` goes by it, so that a picture becomes as large as one that is read from its file: `resized_size` of what
    it has made already may be another size. Where a transform has resized or cut the picture, it says nothing any more, and
    None takes its place.
    """

    height: int
    width: int


class ResizeShortSide(v2.Transform):
    """Resize by `resized_size`, the short side drawn from a list; by the sample's `SizeDraw` where it has one.

    The size is that of the sample's `FileSize` where it has one. free: draw always, whatever the sample carries.
    """

    # Else `make_params` would not see them.
    _transformed_types = (*v2.Transform._transformed_types, SizeDraw, FileSize)

    def __init__(self, short_sides: Sequence[int], max_side: int, free: bool = False):
        super().__init__()
        self.short_sides, self.max_side, self.free = tuple(short_sides), max_side, free

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the size for this sample."""
        height, width = _size_of(flat_inputs)
        file = next((i for i in flat_inputs if isinstance(i, FileSize)), FileSize(height, width))
        draw = next((i for i in flat_inputs if isinstance(i, SizeDraw)), None)
        if draw is None or self.free:
            place = int(torch.randint(len(self.short_sides), ()))
        else:
            place = min(int(draw * len(self.short_sides)), len(self.short_sides) - 1)
        short = self.short_sides[place]
        return {"size": list(resized_size(file.height, file.width, short, self.max_side))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures and boxes; all else passes."""
        if isinstance(inpt, SizeDraw):
            return inpt
        if isinstance(inpt, FileSize):
            return None
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


class RandomSizeCrop(v2.Transform):
    """Cut out a rectangle whose sides are drawn between `smallest` and `largest`, or the picture's where it is smaller."""

    _transformed_types = (*v2.Transform._transformed_types, FileSize)

    def __init__(self, smallest: int, largest: int):
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the rectangle for this sample."""
        height, width = _size_of(flat_inputs)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(min(low, high), high + 1, ()))

        h, w = draw(self.smallest, min(height, self.largest)), draw(self.smallest, min(width, self.largest))
        return {"top": draw(0, height - h), "left": draw(0, width - w), "height": h, "width": w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures and boxes; all else passes."""
        return None if isinstance(inpt, FileSize) else self._call_kernel(F.crop, inpt, **params)


class RandomColor(v2.Transform):
    """Changes of colour drawn as in torchvision's `RandomPhotometricDistort` (Liu et al. 2016, SSD), as one matrix product.

    Each of them maps (red, green, blue) linearly, so all together are a matrix and an offset: one pass over the pixels
    instead of five. Two of them differ a little from torchvision's: contrast changes about mid-grey instead of the picture's
    mean, and hue turns about the grey axis instead of HSV's.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws a matrix (3, 3), and the number that is added to each channel after it."""

        def draw(low: float, high: float, otherwise: float = 1.0) -> float:
            value, chosen = torch.rand(2).tolist()
            return low + (high - low) * value if chosen < 0.5 else otherwise

        brightness, contrast = draw(0.875, 1.125), draw(0.5, 1.5)
        saturation, hue = draw(0.5, 1.5), draw(-0.05, 0.05, otherwise=0.0)
        matrix = hue_matrix(hue) @ saturation_matrix(saturation)
        if torch.rand(()) < 0.5:
            matrix = matrix[torch.randperm(3)]
        return {"matrix": brightness * contrast * matrix, "offset": 127.5 * brightness * (1 - contrast)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures, uint8; all else passes."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        pixels = inpt.as_subclass(Tensor).flatten(1).float()  # (3, H·W)
        changed = (params["matrix"] @ pixels).add_(params["offset"] + 0.5).clamp_(0, 255).to(torch.uint8)
        return tv_tensors.wrap(changed.view(inpt.shape), like=inpt)


def saturation_matrix(factor: float) -> Tensor:
    """(3, 3): from grey (factor 0) over the colour as it is (1) to more of it; grey is the usual luminance."""
    return factor * _AS_IT_IS + (1 - factor) * _LUMINANCE


def hue_matrix(turn: float) -> Tensor:
    """(3, 3): a rotation about the grey axis by `turn` of a full circle; a third takes red to green."""
    angle = 2 * math.pi * turn
    return math.cos(angle) * _AS_IT_IS + (1 - math.cos(angle)) / 3 + math.sin(angle) * _AROUND_GREY


class RandomQuarterTurn(v2.Transform):
    """Turn by 90° counter-clockwise in half of the cases."""

    _transformed_types = (*v2.Transform._transformed_types, FileSize)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether this sample is turned."""
        return {"turned": bool(torch.randint(2, ())), "size": _size_of(flat_inputs)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures, and boxes as corners; all else passes."""
        height, width = params["size"]
        if not params["turned"]:
            return inpt
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(inpt.as_subclass(Tensor).rot90(1, (-2, -1)), like=inpt)
        if isinstance(inpt, tv_tensors.BoundingBoxes):  # torchvision turns them by sines, at many times the cost
            x0, y0, x1, y1 = inpt.as_subclass(Tensor).unbind(-1)
            turned = torch.stack((y0, width - x1, y1, width - x0), dim=-1)
            return tv_tensors.BoundingBoxes(turned, format="XYXY", canvas_size=(width, height))
        if isinstance(inpt, FileSize):
            return FileSize(inpt.width, inpt.height)
        return inpt


def _size_of(flat_inputs: list[Any]) -> tuple[int, int]:
    image = next(i for i in flat_inputs if isinstance(i, tv_tensors.Image))
    return image.shape[-2], image.shape[-1]


def train_transform(config: AugmentConfig) -> v2.Transform:
    """Flip, then either resize, or resize, crop and resize (section A.4 of DETR), by `config`."""
    steps: list[v2.Transform] = []
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.flip_vertical:
        steps.append(v2.RandomVerticalFlip())
    if config.quarter_turn:
        steps.append(RandomQuarterTurn())
    if config.color:
        steps.append(RandomColor())
    if config.short_sides:
        resize = ResizeShortSide(config.short_sides, config.max_side)
        if config.crop:
            # The authors resize to 400, 500 or 600, crop 384 to 600, and resize to 480..800: the same shares here.
            middle = sorted(config.short_sides)[len(config.short_sides) // 2]
            before = [round(middle * share / 640) for share in (400, 500, 600)]
            # There is no largest side here; but a picture like a thread would take gigabytes.
            cropped = v2.Compose(
                [
                    ResizeShortSide(before, max_side=50 * before[-1], free=True),
                    RandomSizeCrop(round(middle * 384 / 640), round(middle * 600 / 640)),
                    resize,
                ]
            )
            steps.append(v2.RandomChoice([resize, cropped]))
        else:
            steps.append(resize)
    return v2.Compose(steps) if steps else v2.Identity()


def eval_transform(config: AugmentConfig) -> v2.Transform:
    """Resize only."""
    if not config.eval_short_side:
        return v2.Identity()
    return ResizeShortSide((config.eval_short_side,), config.max_side)


def drop_empty_boxes(target: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Clip boxes (T, 4) to a picture of this (height, width) and drop those without area, and their labels."""
    height, width = size
    boxes: Tensor = target["boxes"]
    # In NumPy, since a handful of boxes costs less than torch's calls.
    clipped = np.minimum(
        boxes.as_subclass(Tensor).numpy().clip(min=0), np.array((width, height, width, height), np.float32)
    )
    keep = (clipped[:, 2:] > clipped[:, :2]).all(1)
    result = dict(target)
    result["boxes"] = tv_tensors.wrap(torch.from_numpy(clipped[keep]), like=boxes)
    if not keep.all():
        result["labels"] = target["labels"][torch.from_numpy(keep)]
    return result
