"""Pictures of different sizes in one tensor: pad at the right and at the bottom, and remember where."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Of ImageNet's pictures in 0..1: what every backbone here was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RawBatch(NamedTuple):
    """B pictures as bytes in one tensor, padded but not normalised: what a loading process hands over in one piece.

    pixels: (B, 3, H, W), uint8, zero on padding; sizes: the (height, width) of each picture.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> "RawBatch":
        """Pad pictures (3, H, W), uint8, to the largest height and width among them."""
        return cls(*_pad(images, images[0].device))

    def pictures(self) -> list[Tensor]:
        """The pictures (3, H_i, W_i) one by one, without their padding: views, not copies."""
        return [pixels[:, :h, :w] for pixels, (h, w) in zip(self.pixels, self.sizes, strict=True)]


class ImageBatch(NamedTuple):
    """B pictures in one tensor.

    pixels: (B, 3, H, W), zero on padding; mask: (B, H, W), True on padding; sizes: the (height, width) of each picture.
    """

    pixels: Tensor
    mask: Tensor
    sizes: list[tuple[int, int]]


def batch_images(images: Sequence[Tensor] | RawBatch, mean: Tensor, std: Tensor) -> ImageBatch:
    """Normalise pictures and pad them to the largest height and width among them.

    images: each (3, H, W), uint8 in 0..255 or float in 0..1, or a `RawBatch`; mean, std: (3,), in units of 0..1, on the
    device to use. Padding is zero *after* normalising, i.e. the mean colour. Raises ValueError for another shape or an
    empty list.
    """
    if isinstance(images, RawBatch):
        raw, sizes = images.pixels.to(mean.device, non_blocking=True), images.sizes
    else:
        check_images(images)
        if len({image.dtype for image in images}) > 1:
            images = [image.to(mean.dtype) / (1 if image.is_floating_point() else 255) for image in images]
        raw, sizes = _pad(images, mean.device)
    height, width = raw.shape[-2:]
    pixels = raw.to(mean.dtype) / (1 if raw.is_floating_point() else 255)
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    if all(size == (height, width) for size in sizes):
        return ImageBatch(pixels, torch.zeros(raw.shape[0], height, width, dtype=torch.bool, device=raw.device), sizes)
    # One small copy and three kernels, however many pictures there are.
    heights, widths = torch.tensor(sizes).to(raw.device, non_blocking=True).unbind(1)
    rows, columns = (torch.arange(n, device=raw.device) for n in (height, width))
    mask = (rows[:, None] >= heights[:, None, None]) | (columns >= widths[:, None, None])
    return ImageBatch(pixels.masked_fill(mask[:, None], 0.0), mask, sizes)


def check_images(images: Sequence[Tensor]) -> None:
    """Raise ValueError, with the remedy, where there is no picture, or one is not (3, H, W) of bytes or floats."""
    if len(images) == 0:
        raise ValueError("no pictures: give a list with at least one (3, H, W) tensor")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(
                f"picture {i} is a {type(image).__name__}: give a tensor (3, H, W), such as torchvision's pil_to_tensor makes; "
                "of an array (H, W, 3) torch.from_numpy(array).permute(2, 0, 1)"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"picture {i} is {image.dtype}: give uint8 in 0..255, or floating point in 0..1")
        if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(
                f"picture {i} must be (3, H, W), got {tuple(image.shape)}: convert it to RGB, channels first"
            )
        # To look at a value on a GPU would synchronise with it.
        if image.is_floating_point() and image.device.type == "cpu" and image.detach().max() > 10:
            raise ValueError(
                f"picture {i} is floating point with values up to {float(image.max()):.0f}: give 0..1, or uint8 in 0..255"
            )


def _pad(images: Sequence[Tensor], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pictures (3, H, W) in one tensor on the device, and the size of each. Bytes stay bytes, so that few have to travel."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    raw = torch.zeros(len(images), 3, height, width, dtype=images[0].dtype, device=device)
    for place, image, (h, w) in zip(raw, images, sizes, strict=True):
        place[:, :h, :w].copy_(image, non_blocking=True)
    return raw, sizes


def mask_for(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The padding mask (B, H, W) seen at a feature map's size: (B, h, w), by nearest cell, as in the official code."""
    return F.interpolate(mask[:, None].float(), size=shape)[:, 0].bool()


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps (B, d, H_l, W_l) to tokens (B, N, d), level after level, each row by row."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
