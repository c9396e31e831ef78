"""What the fields of COCO's format may hold, for those who read a file and those who check one."""

import os
from math import isfinite
from typing import Any

Record = dict[str, Any]
"""An entry of "images", "annotations" or "categories"."""


def is_id(value: Any) -> bool:
    """Whether an id is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and neither a string nor true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def four_numbers(bbox: Any) -> bool:
    """Whether a bbox is four finite numbers."""
    return isinstance(bbox, list) and len(bbox) == 4 and all(is_number(v) and isfinite(v) for v in bbox)


def size_of(image: Record) -> tuple[float, float] | None:
    """(height, width) that a picture's record names, None where it names none."""
    height, width = image.get("height"), image.get("width")
    if is_number(height) and is_number(width) and height > 0 and width > 0:  # type: ignore[operator]
        return height, width  # type: ignore[return-value]
    return None


def leads_outside(file_name: str) -> bool:
    """Whether a path that should lie in a folder leaves it: absolute, or by way of "..". Links are not followed."""
    flat = os.path.normpath(file_name.replace("\\", "/"))
    return flat.startswith(("/", "../")) or flat == ".." or flat[1:2] == ":"
