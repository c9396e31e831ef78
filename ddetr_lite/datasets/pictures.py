"""Picture files as tensors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"})
"""Endings, in lower case, of the files of a folder that are taken for pictures."""

ORIENTATION = 0x0112  # EXIF's tag: 1 upright, 2..4 mirrored or upside down, 5..8 with width and height exchanged


def is_turned(path: Path) -> bool:
    """Whether a picture's file says that it is to be shown turned or mirrored."""
    with Image.open(path) as picture:
        return picture.getexif().get(ORIENTATION, 1) in range(2, 9)


def is_picture(path: Path) -> bool:
    """Whether a folder's file is taken for a picture: by its ending, and macOS's hidden "._x.jpg" are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


# A picture so large that Pillow takes it for an attack is no OSError; a damaged head may be a ValueError.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_picture(path: str | Path, upright: bool = False) -> Tensor:
    """(3, H, W), uint8, RGB, as the pixels lie in the file (`as_rgb`). Raises FileNotFoundError or ValueError naming the file.

    upright: turned as the file says that it is to be shown (EXIF's orientation), which is not what boxes of a data set
    in COCO's format refer to.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"picture {path} does not exist")
    try:
        with Image.open(path) as picture:
            shown = ImageOps.exif_transpose(picture) if upright else picture
            return torch.from_numpy(np.array(as_rgb(shown))).permute(2, 0, 1).contiguous()
    except UNREADABLE as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB of 8 bits. Raises ValueError for 32 bits and floats, which say nowhere what is white.

    Of greyscale with 16 bits the upper eight are taken, as decoders do with colours of 16 bits (white is 65,535): Pillow by
    itself would make all above 255 white.
    """
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        kind = "32-bit numbers" if picture.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, and what is white is not said: save it with 8 bits a channel")
    return picture.convert("RGB")


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from the head of a picture file, without decoding it. Raises as `read_picture`."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"picture {path} does not exist")
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except UNREADABLE as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error
