"""Pictures of different sizes in one tensor: pad at the right and at the bottom, and remember where."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageBatch(NamedTuple):
    """B pictures in one tensor.

    pixels: (B, 3, H, W), zero on padding; mask: (B, H, W), True on padding; sizes: the (height, width) of each picture.
    """

    pixels: Tensor
    mask: Tensor
    sizes: list[tuple[int, int]]


def batch_images(images: Sequence[Tensor], mean: Tensor, std: Tensor) -> ImageBatch:
    """Normalise pictures and pad them to the largest height and width among them.

    images: each (3, H, W), uint8 in 0..255 or float in 0..1; mean, std: (3,), in units of 0..1, on the device to use.
    Padding is zero *after* normalising, i.e. the mean colour. Raises ValueError for another shape or an empty list.
    """
    if not images:
        raise ValueError("no pictures: give a list with at least one (3, H, W) tensor")
    for i, image in enumerate(images):
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"picture {i} is {image.dtype}: give uint8 in 0..255, or floating point in 0..1")
        if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(
                f"picture {i} must be (3, H, W), got {tuple(image.shape)}: convert it to RGB, channels first"
            )
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels = mean.new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=mean.device)
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        scaled = image.to(mean.device, mean.dtype, non_blocking=True) / (1 if image.is_floating_point() else 255)
        pixels[i, :, :h, :w] = (scaled - mean[:, None, None]) / std[:, None, None]
        mask[i, :h, :w] = False
    return ImageBatch(pixels, mask, sizes)


def mask_for(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The padding mask (B, H, W) seen at a feature map's size: (B, h, w), by nearest cell, as in the official code."""
    return F.interpolate(mask[:, None].float(), size=shape)[:, 0].bool()


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps (B, d, H_l, W_l) to tokens (B, N, d), level after level, each row by row."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
