"""How the checks write numbers: few, rounded, and the same on every machine."""

import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

FEW = 16  # numbers that a reader can still compare by eye


def number(value: float | bool) -> str:
    """Three decimals; no minus before a zero."""
    if isinstance(value, bool | int):
        return str(value)
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def numbers(tensor: Tensor) -> str:
    """A tensor in brackets, such as [[0.500, 0.500]]."""

    def write(x: Any) -> str:
        return f"[{', '.join(map(write, x))}]" if isinstance(x, list) else number(x)

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
        return [f"expected {numbers(expected)}", f"got      {numbers(got)}"]
    difference = (got.detach().double() - expected.double()).abs().nan_to_num(torch.inf)
    place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    at = f"largest difference at {list(place)}"
    return [f"{at}: expected {number(expected[place].item())}, got {number(got[place].item())}"]
