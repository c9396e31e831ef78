"""Encodings of position against their formulas, cell by cell."""

import math

import pytest
import torch
from torch import Tensor

from ddetr_lite.layers.positional_encoding import (
    LearnedEncoding2d,
    sine_encoding_1d,
    sine_encoding_2d,
    sine_encoding_of,
)


@pytest.mark.parametrize(
    ("length", "dim", "temperature", "start"), [(7, 8, 10000.0, 0), (5, 6, 50.0, 11), (3, 2, 9.0, 1)]
)
def test_interleaved_is_the_papers_formula(length: int, dim: int, temperature: float, start: int) -> None:
    encoding = sine_encoding_1d(length, dim, temperature=temperature, start=start)
    assert encoding.shape == (length, dim)
    assert encoding.dtype == torch.float32
    for n in range(length):
        for i in range(dim // 2):
            angle = (start + n) / temperature ** (2 * i / dim)
            assert abs(float(encoding[n, 2 * i]) - math.sin(angle)) < 1e-6
            assert abs(float(encoding[n, 2 * i + 1]) - math.cos(angle)) < 1e-6


@pytest.mark.parametrize(
    ("length", "dim", "temperature", "start"), [(7, 8, 10000.0, 0), (5, 6, 50.0, 11), (3, 2, 9.0, 1)]
)
def test_halves_is_tensor2tensors_formula(length: int, dim: int, temperature: float, start: int) -> None:
    encoding = sine_encoding_1d(length, dim, "halves", temperature, start)
    half = dim // 2
    for n in range(length):
        for i in range(half):
            timescale = math.exp(i * math.log(temperature) / max(half - 1, 1))
            assert abs(float(encoding[n, i]) - math.sin((start + n) / timescale)) < 1e-6
            assert abs(float(encoding[n, half + i]) - math.cos((start + n) / timescale)) < 1e-6


def test_a_window_of_a_longer_table() -> None:
    for layout in ("interleaved", "halves"):
        whole = sine_encoding_1d(50, 16, layout)
        assert torch.equal(sine_encoding_1d(10, 16, layout, start=40), whole[40:])


def test_far_positions_stay_exact() -> None:
    place = 20_000_001  # float32 would make it even, and be off by radians in the angles
    encoding = sine_encoding_1d(1, 12, start=place)[0]
    for i in range(6):
        assert abs(float(encoding[2 * i]) - math.sin(place / 10000 ** (i / 6))) < 1e-6


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_a_shift_is_a_rotation_that_does_not_depend_on_the_position(layout: str) -> None:
    dim, shift = 12, 5
    encoding = sine_encoding_1d(40, dim, layout, temperature=100.0).double()  # type: ignore[arg-type]
    pairs = (
        encoding.unflatten(1, (-1, 2)) if layout == "interleaved" else encoding.unflatten(1, (2, -1)).transpose(1, 2)
    )
    exponents = [i / (dim / 2) if layout == "interleaved" else i / (dim / 2 - 1) for i in range(dim // 2)]
    for i, exponent in enumerate(exponents):
        angle = shift / 100.0**exponent
        rotation = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        torch.testing.assert_close(pairs[:-shift, i] @ rotation.T, pairs[shift:, i], atol=1e-6, rtol=0)


def test_sine_encoding_of_numbers() -> None:
    values = torch.randn(2, 3) * 4
    encoding = sine_encoding_of(values, 8, temperature=20.0)
    assert encoding.shape == (2, 3, 8)
    for b in range(2):
        for n in range(3):
            for i in range(4):
                angle = float(values[b, n]) / 20.0 ** (2 * i / 8)
                assert abs(float(encoding[b, n, 2 * i]) - math.sin(angle)) < 1e-5
                assert abs(float(encoding[b, n, 2 * i + 1]) - math.cos(angle)) < 1e-5


def padded_masks() -> Tensor:
    """Three pictures in maps of 5 × 7: full, 3 × 7 and 4 × 2."""
    mask = torch.ones(3, 5, 7, dtype=torch.bool)
    for picture, (h, w) in enumerate([(5, 7), (3, 7), (4, 2)]):
        mask[picture, :h, :w] = False
    return mask


@pytest.mark.parametrize("convention", ["detr", "deformable"])
def test_two_dimensions_cell_by_cell(convention: str) -> None:
    mask, dim = padded_masks(), 16
    encoding = sine_encoding_2d(mask, dim, convention)  # type: ignore[arg-type]
    assert encoding.shape == (3, 5, 7, dim)
    assert encoding.dtype == torch.float32
    half, shift = dim // 2, 0.5 if convention == "deformable" else 0.0
    for picture, (h, w) in enumerate([(5, 7), (3, 7), (4, 2)]):
        for row in range(h):
            for column in range(w):
                place = {
                    "y": (row + 1 - shift) / (h + 1e-6) * 2 * math.pi,
                    "x": (column + 1 - shift) / (w + 1e-6) * 2 * math.pi,
                }
                expected = []
                for axis in ("y", "x"):
                    for i in range(half // 2):
                        angle = place[axis] / 10000 ** (2 * i / half)
                        expected += [math.sin(angle), math.cos(angle)]
                torch.testing.assert_close(encoding[picture, row, column], torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("convention", ["detr", "deformable"])
def test_padding_does_not_move_real_cells(convention: str) -> None:
    alone = sine_encoding_2d(torch.zeros(1, 4, 2, dtype=torch.bool), 8, convention)  # type: ignore[arg-type]
    padded = sine_encoding_2d(padded_masks(), 8, convention)  # type: ignore[arg-type]
    assert torch.equal(padded[2, :4, :2], alone[0])
    assert padded.isfinite().all()


def test_learned_in_two_dimensions() -> None:
    encoding = LearnedEncoding2d(6, max_size=5)
    assert sorted(encoding.state_dict()) == ["col_embed.weight", "row_embed.weight"]
    out = encoding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert out.shape == (2, 3, 5, 6)
    for row in range(3):
        for column in range(5):
            expected = torch.cat([encoding.col_embed.weight[column], encoding.row_embed.weight[row]])
            assert torch.equal(out[0, row, column], expected)
            assert torch.equal(out[1, row, column], expected)
    with pytest.raises(ValueError, match="3×6 is larger than the 5 learned"):
        encoding(torch.zeros(1, 3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="6×3"):
        encoding(torch.zeros(1, 6, 3, dtype=torch.bool))


def test_errors() -> None:
    for dim in (0, 7):
        with pytest.raises(ValueError, match=f"dim={dim} must be even"):
            sine_encoding_1d(3, dim)
    with pytest.raises(ValueError, match="'spiral' is unknown"):
        sine_encoding_1d(3, 4, "spiral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim=6 must be a multiple of 4"):
        sine_encoding_2d(padded_masks(), 6)
    with pytest.raises(ValueError, match="'yolo' is unknown"):
        sine_encoding_2d(padded_masks(), 8, "yolo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim=5 must be even"):
        LearnedEncoding2d(5)


def test_the_temperature_reaches_both_axes() -> None:
    found = sine_encoding_2d(torch.zeros(1, 2, 4, dtype=torch.bool), 16, temperature=20.0)
    y, x = torch.arange(1, 3) / 2 * 2 * math.pi, torch.arange(1, 5) / 4 * 2 * math.pi
    torch.testing.assert_close(found[0, :, 0, :8], sine_encoding_of(y, 8, 20.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0, 0, :, 8:], sine_encoding_of(x, 8, 20.0), atol=1e-4, rtol=0)
