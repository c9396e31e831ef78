"""How the checks write numbers: few, rounded, and the same on every machine."""

import inspect
import reprlib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

WIDTH = 88  # characters of a line: JupyterLab, 900 pixels wide, breaks longer ones anywhere, also within a word
FEW = 16  # numbers that a reader can still compare by eye
DIGITS = range(3, 9)  # decimals: as few as show a difference


def say(text: str) -> None:
    """Print, with long lines broken between words and what follows of them indented."""
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())] + "  "
        print(
            *textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False),
            sep="\n",
        )


def number(value: float | bool, digits: int = DIGITS[0]) -> str:
    """So many decimals; no minus before a zero."""
    if isinstance(value, bool | int):
        return str(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def numbers(tensor: Tensor, digits: int = DIGITS[0]) -> str:
    """A tensor in brackets, such as [[0.500, 0.500]]."""

    def write(x: Any) -> str:
        return f"[{', '.join(map(write, x))}]" if isinstance(x, list) else number(x, digits)

    return write(tensor.detach().tolist())


def names(function: Callable[..., Any], which: Iterable[int]) -> str:
    """The names of some parameters of a function, by position."""
    parameters = list(inspect.signature(function).parameters)
    return ", ".join(f"`{parameters[i]}`" for i in which)


def shapes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """Each argument with the name that `function` gives it: tensors by their shape, numbers as they are."""
    written = []
    for name, x in zip(inspect.signature(function).parameters, arguments):
        if isinstance(x, Tensor):
            written.append(f"{name} {tuple(x.shape)}")
        elif isinstance(x, bool | int | float):
            written.append(f"{name} {x}")
    return ", ".join(written)


def comparison(got: Any, expected: Any) -> list[str]:
    """What came and what should have: the numbers themselves when they are few, else the worst of them."""
    if not isinstance(expected, Tensor):
        return [f"expected {expected!r}", f"got      {reprlib.repr(got)}"]
    if not isinstance(got, Tensor):
        return []
    if got.shape != expected.shape:
        return [f"expected shape {tuple(expected.shape)}", f"got shape      {tuple(got.shape)}"]
    if expected.numel() <= FEW:
        one, other = _apart(expected, got)
        return [f"expected {one}", f"got      {other}"]
    difference = (got.detach().double() - expected.double()).abs().nan_to_num(torch.inf)
    place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    at = f"largest difference at {list(place)}"
    one, other = _apart(expected[place], got[place])
    return [f"{at}: expected {one}, got {other}"]


def _apart(expected: Tensor, got: Tensor) -> tuple[str, str]:
    """Both written with as few decimals as tell them apart; where none do, with the fewest."""
    for digits in DIGITS:
        one, other = numbers(expected, digits), numbers(got, digits)
        if one != other:
            return one, other
    return numbers(expected), numbers(got)
