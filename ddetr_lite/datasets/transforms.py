"""Augmentation with torchvision's v2 transforms, and the resize rule of DETR's authors.

Every transform takes and returns (image, target): a `tv_tensors.Image` and a dict whose "boxes" are
`tv_tensors.BoundingBoxes`. Draws come from torch's global generator, which the data set seeds for each sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

DETR_SHORT_SIDES = tuple(range(480, 801, 32))


@dataclass(frozen=True)
class AugmentConfig:
    """How pictures are resized, flipped and cropped. The defaults are those of DETR and Deformable DETR."""

    short_sides: tuple[int, ...] = DETR_SHORT_SIDES
    """Training: the shorter side, in pixels, is drawn from these. Empty: pictures keep their size."""
    eval_short_side: int = 800
    """Evaluation: the shorter side. 0: pictures keep their size."""
    max_side: int = 1333
    """The longer side is never longer than this."""
    crop: bool = True
    """In half of the cases cut a random part out first, its sides 60 to 94 % of the middle one of `short_sides`."""
    flip: bool = True
    """Mirror left and right in half of the cases."""
    flip_vertical: bool = False
    """Turn upside down in half of the cases: for pictures without an up, such as the generated ones."""
    color: bool = False
    """Change brightness, contrast, saturation and hue a little."""


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) after DETR's rule: the shorter side becomes `short_side`, unless the longer would exceed `max_side`.

    The other side is truncated, and only the cap is rounded, as in the official code: one or two pixels away from
    torchvision's own `resize` in a third of all sizes.
    """
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * short_side > max_side:
        short_side = round(max_side * shorter / longer)
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


class ResizeShortSide(v2.Transform):
    """Resize by `resized_size`, the short side drawn from a list."""

    def __init__(self, short_sides: Sequence[int], max_side: int):
        super().__init__()
        self.short_sides, self.max_side = tuple(short_sides), max_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the size for this sample."""
        height, width = _size_of(flat_inputs)
        short = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        return {"size": list(resized_size(height, width, short, self.max_side))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures and boxes; all else passes."""
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


class RandomSizeCrop(v2.Transform):
    """Cut out a rectangle whose sides are drawn between `smallest` and `largest`, or the picture's where it is smaller."""

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
        return self._call_kernel(F.crop, inpt, **params)


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
    if config.color:
        steps.append(v2.RandomPhotometricDistort())
    if config.short_sides:
        resize = ResizeShortSide(config.short_sides, config.max_side)
        if config.crop:
            # The authors resize to 400, 500 or 600, crop 384 to 600, and resize to 480..800: the same shares here.
            middle = sorted(config.short_sides)[len(config.short_sides) // 2]
            before = [round(middle * share / 640) for share in (400, 500, 600)]
            cropped = v2.Compose(
                [
                    ResizeShortSide(before, max_side=10**6),
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
    plain = boxes.as_subclass(Tensor)
    clipped = torch.minimum(plain.clamp(min=0), plain.new_tensor((width, height, width, height)))
    keep = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1)
    result = dict(target)
    result["boxes"] = tv_tensors.wrap(clipped[keep], like=boxes)
    result["labels"] = target["labels"][keep]
    return result
