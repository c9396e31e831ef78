"""What the fields of COCO's format may hold, for those who read a file and those who check one."""

import os
import sys
from typing import Any

Record = dict[str, Any]
"""An entry of "images", "annotations" or "categories"."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and neither a string nor true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    """Whether an id is a whole number that a tensor can hold, which is one of 64 bits."""
    return is_whole(value) and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a number, and neither a string nor true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold, neither infinite nor NaN."""
    return is_number(value) and abs(value) <= sys.float_info.max  # math.isfinite raises for a whole number beyond that


LARGEST = 1e18  # of a bbox: beyond, sums and products of a float32 come near its end


def four_numbers(bbox: Any) -> bool:
    """Whether a bbox is four finite numbers, none of them absurdly large."""
    return isinstance(bbox, list) and len(bbox) == 4 and all(is_number(v) and abs(v) <= LARGEST for v in bbox)


def area_of(annotation: Record) -> float | None:
    """The area that an annotation names, in square pixels; None where that is no finite number above 0: take its box's."""
    area: Any = annotation.get("area")
    return area if is_finite(area) and area > 0 else None


def is_crowd(annotation: Record) -> bool | None:
    """Whether an annotation is a crowd: its iscrowd is 1 or true, and not 0, false, null or missing. None: it is neither."""
    value = annotation.get("iscrowd")
    if value is None:
        return False
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def crowd_problem(annotation: Record) -> str:
    """What is wrong with an annotation's iscrowd, with the remedy; "" where nothing is."""
    if is_crowd(annotation) is not None:
        return ""
    return f"iscrowd must be 0 for an object or 1 for a crowd, got {annotation['iscrowd']!r}: write one of them, or drop it"


def size_of(image: Record) -> tuple[float, float] | None:
    """(height, width) that a picture's record names, None where it names none."""
    height, width = image.get("height"), image.get("width")
    if is_finite(height) and is_finite(width) and height > 0 and width > 0:  # type: ignore[operator]
        return height, width  # type: ignore[return-value]
    return None


def check_size_bands(bands: tuple[float, float]) -> None:
    """Raise ValueError for limits of small and large, as √area, that cannot be meant: two of pixels, or two shares below 1."""
    small, large = bands
    if not 0 < small < large:
        raise ValueError(f"size_bands={bands} must be positive and rising, for example --size-bands 32 96")
    if small < 1 <= large:
        raise ValueError(f"size_bands={bands}: give both in pixels, or both below 1, as shares of the picture's side")


def leads_outside(file_name: str) -> bool:
    """Whether a path that should lie in a folder leaves it: absolute, or by way of "..". Links are not followed."""
    flat = os.path.normpath(file_name.replace("\\", "/"))
    return flat.startswith(("/", "../")) or flat == ".." or flat[1:2] == ":"
