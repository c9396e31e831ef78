"""The exercises of notebook 03: sines of positions, both layouts, the shift as a rotation, and two dimensions."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import positional_encoding as package

# The package's own, also while a learner's are plugged in.
_of, _in_1d, _in_2d = package.sine_encoding_of, package.sine_encoding_1d, package.sine_encoding_2d


# --- sine_encoding_of: numbers → sines and cosines, interleaved -----------------------------------------------


def _reference_of(values: Tensor, dim: int) -> Tensor:
    return _of(values, dim)


def _angles(values: Tensor, dim: int, base: float = 10000.0, last: float = 0.0) -> Tensor:
    """(..., d/2): the values divided by the powers of the base; last: 1 where the exponents reach 1."""
    half = dim // 2
    exponents = torch.arange(half) / max(half - last, 1)
    return values[..., None] / base**exponents


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack((first, second), -1).flatten(-2)


def _side_by_side(angles: Tensor) -> Tensor:
    """All sines, then all cosines."""
    return torch.cat((angles.sin(), angles.cos()), -1)


def _of_cases() -> list[Case]:
    return [
        Case("six channels of the positions 0, 1, 2", (torch.arange(3.0), 6)),
        Case("twelve channels of five numbers", (3 * normal(40, 5), 12)),
        Case("eight channels of a 3 × 4 table of numbers", (3 * normal(41, 3, 4), 8)),
    ]


def _adapt_of(learner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The package may ask for another base."""

    def sine_encoding_of(values: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
        return learner(values, dim) if temperature == 10000.0 else _of(values, dim, temperature)

    return sine_encoding_of


SINE_ENCODING_OF = Exercise(
    name="sine_encoding_of",
    notebook="03",
    task="For every number p return sin(p / 10000^(2i/d)) in channel 2i and its cosine in channel 2i + 1.",
    reference=_reference_of,
    cases=_of_cases,
    differentiable=True,
    part=package.sine_encoding_of,
    adapt=_adapt_of,
    hints=(
        "There are d/2 divisors: 10000 ** (2 * torch.arange(dim // 2) / dim).",
        "values[..., None] / divisors gives the angles, (..., d/2), for values of any shape.",
        "torch.stack((angles.sin(), angles.cos()), dim=-1) has shape (..., d/2, 2): .flatten(-2) lays the pairs in a row.",
    ),
    mistakes=(
        Mistake(
            "the sines stand left and the cosines right: here they alternate, sine, cosine, sine, cosine",
            lambda p, d: _side_by_side(_angles(p, d)),
        ),
        Mistake(
            "cosine comes before sine: sine belongs into the even channels",
            lambda p, d: _interleave(_angles(p, d).cos(), _angles(p, d).sin()),
        ),
        Mistake(
            "the exponent is i/d, where 2i/d is meant: the wavelengths reach only 2π · √10000 = 2π · 100",
            lambda p, d: _interleave(_angles(p, d, 100.0).sin(), _angles(p, d, 100.0).cos()),
        ),
        Mistake(
            "2 is counted twice: torch.arange(0, d, 2) gives 0, 2, 4 ..., which is 2i already",
            lambda p, d: _interleave(_angles(p, d, 1e8).sin(), _angles(p, d, 1e8).cos()),
        ),
        Mistake(
            "the angles are multiplied by the powers of 10000, where they should be divided",
            lambda p, d: _interleave(_angles(p, d, 1e-4).sin(), _angles(p, d, 1e-4).cos()),
        ),
        Mistake(
            "the exponents run up to 1, over d/2 − 1: that is Tensor2Tensor's form; the paper's 2i/d stops before 1",
            lambda p, d: _interleave(_angles(p, d, last=1).sin(), _angles(p, d, last=1).cos()),
        ),
        Mistake(
            "every channel has a frequency of its own; channels 2i and 2i + 1 share one",
            lambda p, d: torch.where(
                torch.arange(d) % 2 == 0,
                (p[..., None] / 10000 ** (torch.arange(d) / d)).sin(),
                (p[..., None] / 10000 ** (torch.arange(d) / d)).cos(),
            ),
        ),
    ),
)

# --- timing_signal: Tensor2Tensor's layout --------------------------------------------------------------------


def _timing_signal(length: int, dim: int) -> Tensor:
    return _in_1d(length, dim, "halves")


TIMING_SIGNAL = Exercise(
    name="timing_signal",
    notebook="03",
    task="Tensor2Tensor's form: d/2 sines, then their cosines; the angle of hand i is p / 10000^(i / (d/2 − 1)).",
    reference=_timing_signal,
    cases=lambda: [
        Case("three positions, six channels", (3, 6)),
        Case("five positions, ten channels", (5, 10)),
        Case("seven positions, sixteen channels", (7, 16)),
    ],
    hints=(
        "Exponents: torch.arange(n) / (n - 1) with n = dim // 2. The first is 0, the last is 1.",
        "angles = positions[:, None] / 10000 ** exponents, then torch.cat((angles.sin(), angles.cos()), dim=-1).",
    ),
    mistakes=(
        Mistake("sines and cosines alternate; here all sines stand left, all cosines right", lambda n, d: _in_1d(n, d)),
        Mistake(
            "the exponents are the paper's, 2i/d; here they run over n − 1, so that the last wavelength is exactly "
            "2π · 10000",
            lambda n, d: _side_by_side(_angles(torch.arange(n).float(), d)),
        ),
        Mistake(
            "the exponents are right, but sines and cosines alternate: here all sines stand left, all cosines right",
            lambda n, d: _timing_signal(n, d)[:, _to_halves(d).argsort()],
        ),
        Mistake(
            "the exponents divide by d − 1; there are d/2 hands, so it is d/2 − 1",
            lambda n, d: _side_by_side(torch.arange(n)[:, None] / 10000 ** (torch.arange(d // 2) / (d - 1))),
        ),
        Mistake(
            "the cosines stand left of the sines",
            lambda n, d: _timing_signal(n, d).roll(d // 2, -1),
        ),
        Mistake(
            "positions begin at 1; the first word has position 0",
            lambda n, d: _in_1d(n, d, "halves", start=1),
        ),
        Mistake(
            "the table lies on its side: one row for each position, one column for each channel",
            lambda n, d: _timing_signal(n, d).T,
        ),
    ),
)

# --- shift_matrix: a step of k positions as a rotation --------------------------------------------------------


def _rotation(
    step: float, dim: int, sign: float = 1.0, same: bool = False, upper: float = -1.0, base: float = 10000.0
) -> Tensor:
    """Block-diagonal (d, d) so that PE(p) @ R = PE(p + step)."""
    matrix = torch.zeros(dim, dim)
    for i in range(dim // 2):
        angle = sign * step / (1.0 if same else base ** (2 * i / dim))
        sine, cosine = math.sin(angle), math.cos(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[cosine, upper * sine], [sine, cosine]])
    return matrix


def _shift_matrix(step: int, dim: int) -> Tensor:
    return _rotation(step, dim)


SHIFT_MATRIX = Exercise(
    name="shift_matrix",
    notebook="03",
    task="Return R of shape (d, d) with encoding(p) @ R = encoding(p + step), for every p, in the interleaved layout.",
    reference=_shift_matrix,
    cases=lambda: [
        Case("two channels, one step", (1, 2)),
        Case("six channels, three steps", (3, 6)),
        Case("eight channels, five steps back", (-5, 8)),
    ],
    hints=(
        "sin(a + b) = sin a cos b + cos a sin b, and cos(a + b) = cos a cos b − sin a sin b. Here a is the angle of "
        "position p, and b = step / 10000^(2i/d).",
        "A row times a matrix: the first *column* of a block makes the new sine from (sin a, cos a): it is (cos b, sin b).",
        "Begin with torch.zeros(dim, dim) and fill R[2i, 2i], R[2i + 1, 2i], R[2i, 2i + 1], R[2i + 1, 2i + 1].",
    ),
    mistakes=(
        Mistake(
            "it turns the wrong way: this leads from p to p − step. (A row times a matrix: the columns make the results)",
            lambda k, d: _rotation(k, d, sign=-1.0),
        ),
        Mistake(
            "all pairs turn by the same angle; pair i turns by step / 10000^(2i/d)",
            lambda k, d: _rotation(k, d, same=True),
        ),
        Mistake(
            "the exponent is i/d, where 2i/d is meant",
            lambda k, d: _rotation(k, d, base=100.0),
        ),
        Mistake(
            "the two sines of a block have the same sign; one of them is negative",
            lambda k, d: _rotation(k, d, upper=1.0),
        ),
        Mistake(
            "the blocks belong to the layout with sines left and cosines right: here a pair stands in neighbouring channels",
            lambda k, d: _rotation(k, d)[_to_halves(d)][:, _to_halves(d)],
        ),
        Mistake(
            "the diagonal alone is filled: a new sine is made of the old sine *and* the old cosine",
            lambda k, d: _rotation(k, d) * torch.eye(d),
        ),
    ),
)


def _to_halves(dim: int) -> Tensor:
    return torch.cat((torch.arange(0, dim, 2), torch.arange(1, dim, 2)))


# --- sine_encoding_2d: for pictures, with padding -------------------------------------------------------------


def _reference_2d(padding: Tensor, dim: int, shift: float) -> Tensor:
    real = (~padding).float()
    return _encode(_places(real, shift), dim)


def _places(real: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """y and x of every cell, 0..1 over the real cells."""
    y, x = real.cumsum(1), real.cumsum(2)
    return (y - shift) / (y[:, -1:] + 1e-6), (x - shift) / (x[:, :, -1:] + 1e-6)


def _encode(places: Iterable[Tensor], dim: int, turn: float = 2 * math.pi) -> Tensor:
    y, x = places
    return torch.cat((_of(turn * y, dim // 2), _of(turn * x, dim // 2)), -1)


def _real_cells(padding: Tensor) -> Callable[[Any], Any]:
    """Sets a result on padding to 0: by the formula its places are some millions there, where float32 has no digits left."""

    def compared(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:-1] != padding.shape:
            return value
        return value.masked_fill(padding[..., None], 0)

    return compared


def _cases_2d() -> list[Case]:
    small = torch.zeros(1, 2, 3, dtype=torch.bool)
    padded = torch.zeros(2, 3, 4, dtype=torch.bool)
    padded[1, 2:], padded[1, :, 3:] = True, True
    return [
        Case("a map of 2 × 3 cells without padding, DETR's places", (small, 8, 0.0)),
        Case("a map of 3 × 5 cells without padding, Deformable DETR's places", (small.new_zeros(1, 3, 5), 8, 0.5)),
        Case("two pictures, the second padded below and on the right", (padded, 8, 0.5), _real_cells(padded)),
        Case("the same with DETR's places", (padded, 16, 0.0), _real_cells(padded)),
    ]


def _adapt_2d(learner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The package names the two conventions."""

    def sine_encoding_2d(padding: Tensor, dim: int, convention: Any = "detr", temperature: float = 10000.0) -> Tensor:
        if temperature != 10000.0 or dim % 4 or convention not in ("detr", "deformable"):
            return _in_2d(padding, dim, convention, temperature)
        return learner(padding, dim, 0.5 if convention == "deformable" else 0.0)

    return sine_encoding_2d


def _shifted_twice(count: Tensor, dim: int, shift: float) -> Tensor:
    count = count - shift
    return count / (count.select(dim, -1).unsqueeze(dim) + 1e-6)


def _whole_map(padding: Tensor, dim: int, shift: float) -> Tensor:
    return _reference_2d(torch.zeros_like(padding), dim, shift)


SINE_ENCODING_2D = Exercise(
    name="sine_encoding_2d",
    notebook="03",
    task="Count the real cells down and across, scale to 0..2π, and encode y in the first d/2 channels, x in the others.",
    reference=_reference_2d,
    cases=_cases_2d,
    part=package.sine_encoding_2d,
    adapt=_adapt_2d,
    hints=(
        "(~padding).float().cumsum(1) counts 1, 2, 3 ... down the real cells of each column; cumsum(2) counts across.",
        "The last row of the count says how many real cells there are: y[:, -1:]. Add 1e-6, for it may be zero.",
        "y = (y − shift) / (y[:, -1:] + 1e-6) · 2π, x likewise; then package.sine_encoding_of(y, dim // 2), the same for "
        "x, and torch.cat with y first.",
    ),
    mistakes=(
        Mistake(
            "x comes first: the first d/2 channels belong to y, the row",
            lambda m, d, s: _reference_2d(m, d, s).roll(d // 2, -1),
        ),
        Mistake(
            "padding is counted like real cells, or the counts are divided by the size of the map: each picture has its own "
            "number of real cells, the last count, whatever its neighbours in the batch",
            _whole_map,
        ),
        Mistake(
            "the shift is not used: subtract it from the counts before you scale",
            lambda m, d, s: _reference_2d(m, d, 0.0),
        ),
        Mistake(
            "the shift is subtracted after the division: it is a share of a cell, so it comes off the count",
            lambda m, d, s: _encode((place - s for place in _places((~m).float(), 0.0)), d),
        ),
        Mistake(
            "the shift is also in the number of cells that you divide by: there it does not belong",
            lambda m, d, s: _encode((_shifted_twice((~m).float().cumsum(k), k, s) for k in (1, 2)), d),
        ),
        Mistake("the places run to π, not to 2π", lambda m, d, s: _encode(_places((~m).float(), s), d, math.pi)),
        Mistake("the places run to 1, not to 2π", lambda m, d, s: _encode(_places((~m).float(), s), d, 1.0)),
        Mistake(
            "the places are not scaled: each picture should span 0..2π, whatever its size",
            lambda m, d, s: _encode(((~m).float().cumsum(1) - s, (~m).float().cumsum(2) - s), d, 1.0),
        ),
        Mistake(
            "the mask is read the wrong way round: True is padding, so real cells are ~padding",
            lambda m, d, s: _encode(_places(m.float(), s), d),
        ),
    ),
)

EXERCISES = (SINE_ENCODING_OF, TIMING_SIGNAL, SHIFT_MATRIX, SINE_ENCODING_2D)
