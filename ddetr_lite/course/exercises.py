"""An exercise: a function to write, inputs to try it on, a reference, and the mistakes that people make."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One input to try a function on. `what` says in a few words why it is there."""

    what: str
    arguments: tuple[Any, ...]
    compared: Callable[[Any], Any] | None = None
    """What of a result is compared, where not all of it has a right answer."""


@dataclass(frozen=True)
class Mistake:
    """A known mistake: what to tell the learner who makes it, and a function that makes it.

    The function serves twice: its results are compared with the learner's, and a test runs it as if a learner
    had written it. `message` begins in lower case and completes "it looks as if ...".
    """

    message: str
    wrong: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """A function for the learner to write.

    name: of that function, and of the exercise. notebook: the number of the notebook where it stands.
    task: what the function must do, in one line. reference: a function that does it right.
    cases: makes the inputs, always the same ones, the smallest first.
    mistakes: the known ones, three at least. hints: from a nudge to nearly everything.
    differentiable: whether gradients must flow through it, to all its arguments of floating point.
    noted: whether a function that is right but lets no gradient through is told so.
    part: the package's function that a solution can replace; None where there is none.
    adapt: turns the learner's function into one that takes all that the package hands to `part`.
    fused: whether the package's kernel for GPUs does the work of `part`, without calling it.
    """

    name: str
    notebook: str
    task: str
    reference: Callable[..., Any]
    cases: Callable[[], list[Case]]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    differentiable: bool = False
    noted: bool = False
    tolerance: float = 1e-5
    part: Callable[..., Any] | None = None
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    fused: bool = False


def normal(seed: int, *shape: int) -> Tensor:
    """Normally distributed numbers that depend on the seed and the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding(height: int, width: int, *sizes: tuple[int, int]) -> Tensor:
    """A mask (B, height, width), True beyond each picture's own (height, width)."""
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        mask[i, :h, :w] = False
    return mask
