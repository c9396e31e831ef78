"""Every backend of multi-scale deformable attention against one more formula, and against torchvision."""

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from ddetr_lite.kernels import BACKENDS, backends_for, choose_backend, multi_scale_deformable_attention
from ddetr_lite.kernels.cpu import pad_levels
from ddetr_lite.kernels.reference import bilinear_sample

DIFFERENTIABLE = ["reference", "cpu"]
HERE = backends_for(torch.zeros(1, 1, 1, 16))  # those that run without a GPU; tests/gpu has the others
LEVELS = [(3, 5), (1, 1), (4, 2)]


def by_tents(value: Tensor, level_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Σ over all cells of all levels: weight · max(0, 1 − |x − column|) · max(0, 1 − |y − row|) · feature.

    No corners, no borders and no clamps: what is far from a cell, or outside, is zero by itself.
    """
    output, start = torch.zeros(()), 0
    for level, (h, w) in enumerate(level_shapes):
        feature = value[:, start : start + h * w].unflatten(1, (h, w))  # (B, H, W, M, D)
        start += h * w
        x = locations[:, :, :, level, :, 0] * w - 0.5  # (B, N_q, M, P)
        y = locations[:, :, :, level, :, 1] * h - 0.5
        tent_x = (1 - (x[..., None] - torch.arange(w)).abs()).clamp(min=0)  # (B, N_q, M, P, W)
        tent_y = (1 - (y[..., None] - torch.arange(h)).abs()).clamp(min=0)
        output = output + torch.einsum("bqmph,bqmpw,bqmp,bhwmd->bqmd", tent_y, tent_x, weights[:, :, :, level], feature)
    return output.flatten(2)


def random_input(
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 4,
    points: int = 3,
    levels: list[tuple[int, int]] = LEVELS,
    dtype: torch.dtype = torch.float64,
    low: float = -0.4,
    high: float = 1.4,
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Fresh numbers; locations reach beyond the picture."""
    value = torch.randn(batch, sum(h * w for h, w in levels), heads, channels, dtype=dtype)
    shape = (batch, queries, heads, len(levels), points)
    locations = low + (high - low) * torch.rand(*shape, 2, dtype=dtype)
    return value, levels, locations, torch.randn(shape, dtype=dtype)


def off_the_grid(locations: Tensor, levels: list[tuple[int, int]], margin: float = 0.05) -> Tensor:
    """Move samples at least `margin` pixels away from whole pixel coordinates, where the gradient jumps."""
    sizes = torch.tensor([(w, h) for h, w in levels], dtype=locations.dtype)[:, None]
    pixels = locations * sizes - 0.5
    whole = pixels.floor()
    return (whole + (pixels - whole).clamp(margin, 1 - margin) + 0.5) / sizes


CASES: dict[str, dict] = {
    "outside too": {},
    "far outside": {"low": -30.0, "high": 30.0},
    "inside": {"low": 0.0, "high": 1.0},
    "one cell": {"levels": [(1, 1)]},
    "one row, one column": {"levels": [(1, 6), (7, 1)]},
    "one of everything": {
        "batch": 1,
        "queries": 1,
        "heads": 1,
        "points": 1,
        "channels": 1,
        "levels": [(2, 3)],
    },
    "more samples than cells": {"batch": 1, "heads": 1, "points": 8, "levels": [(2, 2), (1, 1)]},
    "one query": {"queries": 1},
    "one point": {"points": 1},
    "wide heads": {"channels": 32},
    "four levels": {"levels": [(6, 8), (3, 4), (2, 2), (1, 1)], "points": 4, "heads": 4},
}


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("case", list(CASES))
def test_forward(case: str, backend: str) -> None:
    arguments = random_input(**CASES[case])
    output = multi_scale_deformable_attention(*arguments, backend=backend)
    value, _, locations, _ = arguments
    assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    torch.testing.assert_close(output, by_tents(*arguments))


@pytest.mark.parametrize("backend", HERE)
def test_whole_pixels_edges_and_corners(backend: str) -> None:
    """Coordinates exactly on cell centres, on the picture's edge, and half a pixel and one pixel beyond."""
    h, w = 3, 5
    pixels = list(
        itertools.product((-1.5, -1.0, -0.5, 0.0, 2.0, 4.0, 4.5, 5.0, 5.5), (-1.0, -0.5, 0.0, 1.0, 2.0, 2.5, 3.0))
    )
    locations = torch.tensor([((x + 0.5) / w, (y + 0.5) / h) for x, y in pixels], dtype=torch.float64)
    locations = locations.view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, h * w, 1, 3, dtype=torch.float64)
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64)
    output = multi_scale_deformable_attention(value, [(h, w)], locations, weights, backend)[0]
    torch.testing.assert_close(output[None], by_tents(value, [(h, w)], locations, weights))
    feature = value.view(h, w, 3)
    for (x, y), row in zip(pixels, output):
        if not (-1 < x < w and -1 < y < h):
            assert row.abs().max() < 1e-12
        elif x == int(x) and y == int(y):
            torch.testing.assert_close(row, feature[int(y), int(x)])


def test_cell_centres_give_the_cells_back_x_first() -> None:
    """The smallest picture that tells (x, y) from (y, x): 1 row, 2 columns."""
    value = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    locations = torch.tensor([(0.25, 0.5), (0.75, 0.5), (0.5, 0.5)]).view(1, 3, 1, 1, 1, 2)
    for backend in HERE:
        output = multi_scale_deformable_attention(value, [(1, 2)], locations, torch.ones(1, 3, 1, 1, 1), backend)
        torch.testing.assert_close(output.flatten(), torch.tensor([10.0, 20.0, 15.0]), msg=backend)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("case", list(CASES))
def test_gradients(case: str, backend: str) -> None:
    value, levels, locations, weights = random_input(**CASES[case])
    locations = off_the_grid(locations, levels)
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    output = multi_scale_deformable_attention(leaves[0], levels, leaves[1], leaves[2], backend)
    sensitivity = torch.randn_like(output)
    expected = torch.autograd.grad(by_tents(leaves[0], levels, leaves[1], leaves[2]), leaves, sensitivity)
    for name, ours, theirs in zip(
        ("value", "locations", "weights"), torch.autograd.grad(output, leaves, sensitivity), expected
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_loop_has_gradients_of_value_and_weights() -> None:
    value, levels, locations, weights = random_input()
    value.requires_grad_()
    weights.requires_grad_()
    output = multi_scale_deformable_attention(value, levels, locations, weights, "loop")
    sensitivity = torch.randn_like(output)
    expected = torch.autograd.grad(by_tents(value, levels, locations, weights), (value, weights), sensitivity)
    torch.testing.assert_close(torch.autograd.grad(output, (value, weights), sensitivity), expected)


def test_training_warns_of_nothing() -> None:
    """In a fresh process, since torch gives most of its warnings only once."""
    program = """
import warnings

import torch
from ddetr_lite.kernels import multi_scale_deformable_attention
warnings.resetwarnings()  # as pytest and notebooks do
shapes = ((1, 4, 1, 16), (1, 2, 1, 1, 3, 2), (1, 2, 1, 1, 3))
value, locations, weights = (torch.rand(shape, requires_grad=True) for shape in shapes)
multi_scale_deformable_attention(value, [(2, 2)], locations, weights).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("where", ["inside", "outside", "one cell"])
def test_gradcheck(where: str, backend: str) -> None:
    low, high = (-0.6, 1.6) if where == "outside" else (0.0, 1.0)
    levels = [(1, 1)] if where == "one cell" else [(3, 4), (1, 1), (2, 2)]
    value, _, locations, weights = random_input(1, 3, 2, 2, 2, levels, low=low, high=high)
    locations = off_the_grid(locations, levels)
    if where == "outside":
        assert ((locations < 0) | (locations > 1)).any()

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, levels, locations, weights, backend)

    assert torch.autograd.gradcheck(attend, [t.requires_grad_() for t in (value, locations, weights)])


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_gradients_at_whole_pixels_are_those_of_the_cell_to_the_right(backend: str) -> None:
    """Training starts there: compass offsets are whole pixels. Sizes are powers of two: nothing is rounded.

    Within a cell the result is linear in x and in y: a difference over a part of a pixel is the gradient.
    """
    levels = [(4, 8), (2, 2), (1, 4)]
    places = [(x, y) for x in range(-2, 10) for y in range(-2, 6)]
    pixels = torch.tensor(places, dtype=torch.float64).view(1, -1, 1, 1, 1, 2)
    sizes = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64)[:, None]
    locations = (pixels + 0.5) / sizes  # (1, N_q, 1, L, 1, 2)
    value = torch.randn(1, 40, 1, 16, dtype=torch.float64)
    weights = torch.randn(locations.shape[:-1], dtype=torch.float64)
    leaf = locations.clone().requires_grad_()
    output = multi_scale_deformable_attention(value, levels, leaf, weights, backend)
    sensitivity = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, leaf, sensitivity)
    for level in range(3):
        for axis in range(2):
            step = torch.zeros_like(locations)
            step[:, :, :, level, :, axis] = 0.25 / sizes[level, 0, axis]
            change = by_tents(value, levels, locations + step, weights) - by_tents(value, levels, locations, weights)
            expected = (change * sensitivity).sum(-1) * 4 * sizes[level, 0, axis]
            torch.testing.assert_close(gradient[:, :, 0, level, 0, axis], expected)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3))[1:])
def test_gradients_of_a_part_of_the_inputs(needed: tuple[bool, bool, bool], backend: str) -> None:
    value, levels, locations, weights = random_input()
    leaves = [t.requires_grad_(n) for t, n in zip((value, off_the_grid(locations, levels), weights), needed)]
    multi_scale_deformable_attention(leaves[0], levels, leaves[1], leaves[2], backend).square().sum().backward()
    everything = [t.detach().clone().requires_grad_() for t in leaves]
    by_tents(everything[0], levels, everything[1], everything[2]).square().sum().backward()
    for ours, expected, is_needed in zip(leaves, everything, needed):
        if is_needed:
            torch.testing.assert_close(ours.grad, expected.grad)
        else:
            assert ours.grad is None


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_samples_beyond_the_border_pull_nothing(backend: str) -> None:
    value, levels, locations, weights = random_input(low=2.5, high=4.0)
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    output = multi_scale_deformable_attention(value, levels, locations, weights, backend)
    output.sum().backward()
    assert output.abs().max() == 0
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.abs().max() == 0


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_location_that_is_not_finite_gives_nan_there_and_nowhere_else(bad: float, axis: int, backend: str) -> None:
    value, levels, locations, weights = random_input(channels=3)
    expected = by_tents(value, levels, locations, weights)
    locations[1, 2, 1, 0, 2, axis] = bad
    output = multi_scale_deformable_attention(value, levels, locations, weights, backend).unflatten(2, (2, 3))
    assert output[1, 2, 1].isnan().all()
    output[1, 2, 1] = expected.unflatten(2, (2, 3))[1, 2, 1]
    torch.testing.assert_close(output.flatten(2), expected)


def test_reference_does_not_rely_on_grid_sample_to_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU grid_sample happens to give NaN by itself; on CUDA it takes such a place for the outside."""
    value, levels, locations, weights = random_input()
    locations[0, 1, 0, 1, 0, 0] = math.nan
    original = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        torch.nn.functional, "grid_sample", lambda *args, **kwargs: original(*args, **kwargs).nan_to_num(0.0)
    )
    output = multi_scale_deformable_attention(value, levels, locations, weights, "reference")
    assert output[0, 1, :4].isnan().all()
    assert output.isnan().sum() == 4


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_gradient_shows_a_location_that_is_not_finite(backend: str) -> None:
    value, levels, locations, weights = random_input()
    locations[0, 1, 0, 1, 0, 0] = math.nan
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    multi_scale_deformable_attention(value, levels, locations, weights, backend).sum().backward()
    assert any(not leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("backend", HERE)
def test_input_need_not_be_contiguous(backend: str) -> None:
    value, levels, locations, weights = random_input()
    scattered = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (value, locations, weights)]
    assert not any(t.is_contiguous() for t in scattered)
    leaves = [t.requires_grad_() for t in scattered]
    output = multi_scale_deformable_attention(leaves[0], levels, leaves[1], leaves[2], backend)
    torch.testing.assert_close(output, by_tents(value, levels, locations, weights))
    if backend in DIFFERENTIABLE:
        sensitivity = torch.randn(5, 2, 8, dtype=torch.float64).transpose(0, 1)
        ours = torch.autograd.grad(output, leaves, sensitivity)
        expected = torch.autograd.grad(by_tents(leaves[0], levels, leaves[1], leaves[2]), leaves, sensitivity)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_with_exact_locations(dtype: torch.dtype, backend: str) -> None:
    """A map 400 wide: locations rounded to half precision would be off by more than a pixel."""
    value, levels, locations, weights = random_input(1, 6, 2, 16, 2, [(2, 400), (1, 1)], torch.float32, 0.5, 1.0)
    value = value.to(dtype)
    weights = weights.abs() / weights.abs().sum((-2, -1), keepdim=True)
    output = multi_scale_deformable_attention(value, levels, locations, weights, backend)
    assert output.dtype == dtype
    expected = by_tents(value.double(), levels, locations.double(), weights.double())
    torch.testing.assert_close(
        output.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps
    )
    if backend in DIFFERENTIABLE:
        leaves = [t.requires_grad_() for t in (value, locations, weights)]
        multi_scale_deformable_attention(value, levels, locations, weights, backend).float().sum().backward()
        assert [t.grad.dtype for t in leaves if t.grad is not None] == [dtype, torch.float32, torch.float32]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "points"])
def test_nothing_to_do(empty: str, backend: str) -> None:
    value, levels, locations, weights = random_input(**{empty: 0})  # type: ignore[arg-type]
    output = multi_scale_deformable_attention(value, levels, locations, weights, backend)
    assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    assert output.abs().sum() == 0


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "points"])
@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_gradient_of_nothing_is_zero(empty: str, backend: str) -> None:
    value, levels, locations, weights = random_input(**{empty: 0})  # type: ignore[arg-type]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    multi_scale_deformable_attention(value, levels, locations, weights, backend).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() == 0


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_torchvisions_deformable_convolution(heads: int, backend: str) -> None:
    """A modulated deformable convolution whose kernel is 1 × P ones on the diagonal sums over P points."""
    h, w, points, channels = 4, 7, 3, 2
    columns = w - points + 1
    feature = torch.randn(2, heads * channels, h, w, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(2, heads, points, 2, h, columns, dtype=torch.float64, requires_grad=True)  # (y, x) in pixels
    weights = torch.randn(2, heads, points, h, columns, dtype=torch.float64, requires_grad=True)
    kernel = torch.eye(heads * channels, dtype=torch.float64)[:, :, None, None].expand(-1, -1, 1, points)
    expected = deform_conv2d(feature, offset.flatten(1, 3), kernel, mask=weights.flatten(1, 2))
    expected = expected.flatten(2).transpose(1, 2)  # (B, N_q, M·D): each output cell is a query

    row, column = torch.meshgrid(torch.arange(h), torch.arange(columns), indexing="ij")
    y = (row + offset[:, :, :, 0] + 0.5) / h  # (B, M, P, H, columns)
    x = (column + torch.arange(points)[:, None, None] + offset[:, :, :, 1] + 0.5) / w
    locations = torch.stack((x, y), dim=-1).permute(0, 3, 4, 1, 2, 5).flatten(1, 2)[:, :, :, None]
    value = feature.flatten(2).transpose(1, 2).unflatten(2, (heads, channels))
    shares = weights.permute(0, 3, 4, 1, 2).flatten(1, 2)[:, :, :, None]
    output = multi_scale_deformable_attention(value, [(h, w)], locations, shares, backend)
    torch.testing.assert_close(output, expected)
    if backend in DIFFERENTIABLE:
        sensitivity, leaves = torch.randn_like(output), (feature, offset, weights)
        torch.testing.assert_close(
            torch.autograd.grad(output, leaves, sensitivity),
            torch.autograd.grad(expected, leaves, sensitivity),
        )


def test_float32_inputs_give_float32() -> None:
    for backend in HERE:
        arguments = random_input(dtype=torch.float32)
        output = multi_scale_deformable_attention(*arguments, backend=backend)
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, by_tents(*arguments), atol=1e-5, rtol=1e-5)


def test_bilinear_sample_by_hand() -> None:
    feature = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert bilinear_sample(feature, 0.0, 0.0).item() == 1
    assert bilinear_sample(feature, 1.0, 0.0).item() == 2
    assert bilinear_sample(feature, 0.0, 1.0).item() == 3
    assert bilinear_sample(feature, 0.25, 0.5).item() == 0.5 * (0.75 * 1 + 0.25 * 2) + 0.5 * (0.75 * 3 + 0.25 * 4)
    assert bilinear_sample(feature, -0.5, 0.0).item() == 0.5
    assert bilinear_sample(feature, 1.0, 1.75).item() == 1.0
    assert bilinear_sample(feature, math.nan, 0.0).isnan().all()


def test_padded_table_has_a_frame_of_zeros() -> None:
    value = torch.randn(2, 6 + 2, 3, 4)
    table = pad_levels(value, [(2, 3), (1, 2)])
    assert table.shape[2:] == (3, 4)
    first, second = table[:, :20].unflatten(1, (4, 5)), table[:, 20:32].unflatten(1, (3, 4))
    assert torch.equal(first[:, 1:-1, 1:-1].flatten(1, 2), value[:, :6])
    assert torch.equal(second[:, 1:-1, 1:-1].flatten(1, 2), value[:, 6:])
    assert table.abs().sum() == pytest.approx(float(value.abs().sum()))


def test_choose_backend() -> None:
    assert choose_backend(torch.zeros(1, 4, 2, 8)) == "cpu"
    assert choose_backend(torch.zeros(1, 4, 2, 7)) == "reference"
    assert choose_backend(torch.zeros(1, 4, 2, 64, device="meta")) == "reference"


@pytest.mark.parametrize("channels", [4, 8])
def test_auto_takes_the_chosen_backend(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = random_input(channels=channels)
    called: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def wrapper(*arguments: Any) -> Tensor:
            called.append(name)
            return function(*arguments)

        return wrapper

    for name, function in list(BACKENDS.items()):
        monkeypatch.setitem(BACKENDS, name, noted(name, function))
    torch.testing.assert_close(multi_scale_deformable_attention(*arguments), by_tents(*arguments))
    assert called == [choose_backend(arguments[0])]


def test_threads_change_no_bit_of_the_gradients() -> None:
    """Enough samples for a thread each picture (or, with one thread, none): the same sums in the same order."""
    value, levels, locations, weights = random_input(3, 700, 8, 8, 16, [(9, 7), (4, 3)], torch.float32)
    assert 4 * weights.numel() >= 2**21, "else it would not start threads"
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
            output = multi_scale_deformable_attention(leaves[0], levels, leaves[1], leaves[2], "cpu")
            found.append(torch.autograd.grad(output, leaves[0], torch.ones_like(output))[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    exact = value.double().requires_grad_()
    output = multi_scale_deformable_attention(exact, levels, locations.double(), weights.double(), "reference")
    (expected,) = torch.autograd.grad(output, exact, torch.ones_like(output))
    torch.testing.assert_close(found[0].double(), expected, atol=2e-3, rtol=1e-4)


def test_errors_say_what_does_not_fit() -> None:
    value, levels, locations, weights = random_input(2, 5, 2, 4, 3)

    def attend(
        value: Tensor = value,
        levels: list[tuple[int, int]] = levels,
        locations: Tensor = locations,
        weights: Tensor = weights,
        backend: str = "auto",
    ) -> Tensor:
        return multi_scale_deformable_attention(value, levels, locations, weights, backend)

    attend()
    with pytest.raises(ValueError, match=r"value must be \(B, N, M, D\), got \(2, 24, 8\)"):
        attend(value=value.flatten(2))
    with pytest.raises(ValueError, match=r"locations must be \(B, N_q, M, L, P, 2\)"):
        attend(locations=locations[..., 0])
    with pytest.raises(ValueError, match=r"locations must be \(B, N_q, M, L, P, 2\)"):
        attend(locations=torch.cat((locations, locations), dim=-1))
    with pytest.raises(ValueError, match=r"weights must be \(2, 5, 2, 3, 3\) like the locations, got \(2, 5, 2, 9\)"):
        attend(weights=weights.flatten(3))
    with pytest.raises(ValueError, match="value has 1 pictures and 2 heads, locations have 2 and 2"):
        attend(value=value[:1])
    with pytest.raises(ValueError, match="value has 2 pictures and 1 heads"):
        attend(value=value[:, :, :1])
    with pytest.raises(ValueError, match="locations have 3 levels, level_shapes 2"):
        attend(levels=levels[:2])
    with pytest.raises(ValueError, match="have 23 cells in all, value has 24 tokens: 1 too many"):
        attend(levels=[(3, 5), (0, 1), (4, 2)])
    with pytest.raises(ValueError, match="have 26 cells in all, value has 24 tokens: 2 too few"):
        attend(levels=[(3, 5), (1, 1), (5, 2)])
    with pytest.raises(ValueError, match="must be on one device, found"):
        attend(weights=weights.to("meta"))
    with pytest.raises(ValueError, match=r"locations must be floating point, got torch\.int64"):
        attend(locations=locations.long())
    with pytest.raises(ValueError, match=r"value must be floating point, got torch\.uint8"):
        attend(value=value.byte())
    with pytest.raises(ValueError, match="backend='fast' is unknown: choose 'auto' or one of 'loop'"):
        attend(backend="fast")
    with pytest.raises(ValueError, match="backend='cpu' needs tensors on the CPU, value is on meta"):
        attend(value.to("meta"), levels, locations.to("meta"), weights.to("meta"), "cpu")


def test_a_gradient_of_a_gradient_on_a_cpu_is_refused_and_not_wrong() -> None:
    """The reference has it; the form with a backward pass of its own says which to take."""
    levels = [(4, 5), (2, 3)]
    value = torch.randn(1, 26, 1, 8, requires_grad=True)
    locations, weights = torch.rand(1, 3, 1, 2, 2, 2), torch.rand(1, 3, 1, 2, 2).requires_grad_()
    for backend in ("cpu", "auto"):
        output = multi_scale_deformable_attention(value, levels, locations, weights, backend)
        with pytest.raises(RuntimeError, match='name backend="reference"'):
            torch.autograd.grad(output.square().sum(), value, create_graph=True)
    output = multi_scale_deformable_attention(value, levels, locations, weights, "reference")
    (once,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    try:
        (twice,) = torch.autograd.grad(once.square().sum(), weights)
    except RuntimeError as error:
        if "grid_sampler_2d_backward is not implemented" in str(error):
            pytest.skip("this torch's grid_sample has no second derivative")
        raise
    assert twice.abs().sum() > 0
