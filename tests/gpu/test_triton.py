"""The Triton kernels against the readable loop, in float64, on fresh random input.

On a machine with a GPU they run there. Without one they run in Triton's interpreter, which has to be asked for before
Triton is imported: `TRITON_INTERPRET=1 python -m pytest tests/gpu` (tests/test_triton_interpreter.py does it).
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ddetr_lite.benchmarks.msda import Setting, make_input
from ddetr_lite.kernels import (
    backends_for,
    choose_backend,
    fused_deformable_attention,
    multi_scale_deformable_attention,
    reference,
    triton,
)
from ddetr_lite.layers.deformable_attention import MultiScaleDeformableAttention, sampling_locations

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET is not 1")
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")

LEVELS = [(3, 5), (4, 2)]  # the interpreter takes as long as there are levels times points
TOKENS = sum(height * width for height, width in LEVELS)
POINTS = 3  # of the fused form: no power of two
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def random_input(
    batch: int = 2,
    queries: int = 7,
    heads: int = 2,
    channels: int = 8,
    points: int = 2,
    levels: list[tuple[int, int]] = LEVELS,
    dtype: torch.dtype = torch.float32,
    low: float = -0.4,
    high: float = 1.4,
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    value = torch.randn(batch, sum(h * w for h, w in levels), heads, channels).to(DEVICE, dtype)
    shape = (batch, queries, heads, len(levels), points)
    locations = (low + (high - low) * torch.rand(*shape, 2)).to(DEVICE)
    return value, levels, away_from_whole_cells(locations, levels), torch.randn(shape, device=DEVICE)


def away_from_whole_cells(locations: Tensor, levels: list[tuple[int, int]], margin: float = 0.02) -> Tensor:
    """The gradient of a location jumps there, and float32 may fall on either side."""
    sizes = torch.tensor([(w, h) for h, w in levels], device=DEVICE)[:, None]
    pixels = locations * sizes - 0.5
    whole = pixels.floor()
    return (whole + (pixels - whole).clamp(margin, 1 - margin) + 0.5) / sizes


def relative(ours: Tensor, exact: Tensor) -> float:
    """The largest difference, in parts of the largest exact value."""
    if exact.numel() == 0:
        return 0.0
    return ((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-12)).item()


CASES: dict[str, dict] = {
    "outside too": {"levels": [(3, 5), (1, 1), (4, 2)], "points": 3},
    "far outside": {"low": -30.0, "high": 30.0},
    "one cell": {"levels": [(1, 1)]},
    "one row, one column": {"levels": [(1, 6), (7, 1)]},
    "one of everything": {"batch": 1, "queries": 1, "heads": 1, "points": 1, "channels": 8, "levels": [(2, 3)]},
    "four levels": {"levels": [(6, 8), (3, 4), (2, 2), (1, 1)], "points": 4},
    "odd width": {"channels": 13},
    "width 20, an odd block of queries": {"channels": 20, "queries": 37, "batch": 1},
    "width 32": {"channels": 32, "queries": 17, "batch": 1},
    "width 128": {"channels": 128, "batch": 1},
    "width 200, a query a program": {"channels": 200, "batch": 1, "queries": 2, "levels": [(3, 5)]},
    "width 3, without a second piece": {"channels": 3, "batch": 1, "levels": [(3, 5)]},
    "many pictures": {"batch": 40, "queries": 1, "heads": 1, "levels": [(2, 2)], "points": 1},
    "many queries": {"queries": 300, "batch": 1, "heads": 1, "levels": [(2, 2)], "points": 1},
}


@pytest.mark.parametrize("case", list(CASES))
def test_forward_equals_the_loop(case: str) -> None:
    value, levels, locations, weights = random_input(**CASES[case])
    ours = multi_scale_deformable_attention(value, levels, locations, weights, "triton")
    exact = reference.loop(value.double().cpu(), levels, locations.double().cpu(), weights.double().cpu())
    assert ours.dtype == value.dtype
    assert relative(ours.cpu(), exact) <= 1e-5


def gradients(backend: str, arguments: tuple, sensitivity: Tensor) -> tuple[Tensor, ...]:
    value, levels, locations, weights = arguments
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    output = multi_scale_deformable_attention(leaves[0], levels, leaves[1], leaves[2], backend)
    return torch.autograd.grad(output, leaves, sensitivity.to(output.dtype))


@pytest.mark.parametrize("sorted_sum", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("case", list(CASES))
def test_gradients_equal_those_of_the_reference(case: str, sorted_sum: bool) -> None:
    value, levels, locations, weights = random_input(**CASES[case])
    sensitivity = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3], device=DEVICE)
    exact = gradients("reference", (value.double(), levels, locations.double(), weights.double()), sensitivity)
    torch.use_deterministic_algorithms(sorted_sum)
    for name, one, other in zip(
        ("value", "locations", "weights"),
        gradients("triton", (value, levels, locations, weights), sensitivity),
        exact,
    ):
        assert relative(one, other) <= 1e-5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_have_float32_inside(dtype: torch.dtype) -> None:
    """Against the exact result from the same rounded values: only the output is rounded."""
    value, levels, locations, weights = random_input(channels=32, dtype=dtype)
    exact = reference.loop(value.double().cpu(), levels, locations.double().cpu(), weights.double().cpu())
    ours = multi_scale_deformable_attention(value, levels, locations, weights, "triton")
    assert ours.dtype == dtype
    assert relative(ours.cpu(), exact) <= TOLERANCE[dtype]
    sensitivity = torch.randn_like(ours)
    exact_gradients = gradients(
        "reference", (value.double(), levels, locations.double(), weights.double()), sensitivity.double()
    )
    ours_gradients = gradients("triton", (value, levels, locations, weights), sensitivity)
    assert [g.dtype for g in ours_gradients] == [dtype, torch.float32, torch.float32]
    for one, other in zip(ours_gradients, exact_gradients):
        assert relative(one, other) <= TOLERANCE[dtype]


def test_values_need_not_be_contiguous() -> None:
    value, levels, locations, weights = random_input(points=1)
    exact = multi_scale_deformable_attention(value, levels, locations, weights, "triton")
    exact_gradient = gradients("triton", (value, levels, locations, weights), torch.ones_like(exact))[0]
    turned = value.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)  # heads outside tokens
    channels_apart = value.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    for other in (turned, channels_apart):
        assert not other.is_contiguous()
        again = multi_scale_deformable_attention(other, levels, locations.transpose(0, 1).contiguous().transpose(0, 1),
                                                 weights, "triton")  # fmt: skip
        torch.testing.assert_close(again, exact, rtol=0, atol=0)
        gradient = gradients("triton", (other, levels, locations, weights), torch.ones_like(exact))[0]
        torch.testing.assert_close(gradient, exact_gradient)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_location_that_is_not_finite_gives_nan_to_its_query_alone(broken: float) -> None:
    value, levels, locations, weights = random_input()
    expected = multi_scale_deformable_attention(value, levels, locations, weights, "triton")
    locations[1, 2, 1, 0, 0, 1] = broken
    output = multi_scale_deformable_attention(value, levels, locations, weights, "triton").unflatten(-1, (2, -1))
    hit = torch.zeros(output.shape[:3], dtype=torch.bool, device=DEVICE)
    hit[1, 2, 1] = True
    assert output[hit].isnan().all()
    torch.testing.assert_close(output[~hit], expected.unflatten(-1, (2, -1))[~hit], rtol=0, atol=0)


def test_enormous_locations_read_nothing() -> None:
    value, levels, locations, weights = random_input()
    locations = torch.full_like(locations, 1e30)
    locations[..., 0] = -1e30
    for gradient in gradients("triton", (value, levels, locations, weights), torch.ones(2, 7, 16, device=DEVICE)):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}, {"points": 0}])
def test_nothing_in_nothing_out(empty: dict[str, Any]) -> None:
    value, levels, locations, weights = random_input(**empty)
    output = multi_scale_deformable_attention(value, levels, locations, weights, "triton")
    assert output.shape == (value.shape[0], locations.shape[1], 16)
    assert output.abs().sum() == 0
    for gradient, tensor in zip(
        gradients("triton", (value, levels, locations, weights), output), (value, locations, weights)
    ):
        assert gradient.shape == tensor.shape


# --- the fused form --------------------------------------------------------------------------------------


def fused_input(kind: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    shape = (2, 7, 2, len(LEVELS), POINTS)
    boxes = 0.2 + 0.6 * torch.rand(2, 7, len(LEVELS), kind)
    offsets = torch.randn(*shape, 2) * 2
    value = torch.randn(2, TOKENS, 2, 8)
    return value.to(DEVICE, dtype), boxes.to(DEVICE), offsets.to(DEVICE, dtype), torch.randn(shape).to(DEVICE, dtype)


def unfused(value: Tensor, box: Tensor, offsets: Tensor, scores: Tensor) -> Tensor:
    weights = scores.flatten(3).softmax(-1).view_as(scores)
    return reference.grid_sample(value, LEVELS, sampling_locations(box, offsets, LEVELS), weights)


@pytest.mark.parametrize("sorted_sum", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("moving", [False, True], ids=["fixed reference", "learned reference"])
@pytest.mark.parametrize("kind", [2, 4], ids=["points", "boxes"])
def test_fused_equals_its_parts(kind: int, moving: bool, sorted_sum: bool) -> None:
    arguments = fused_input(kind)
    needed = (0, 1, 2, 3) if moving else (0, 2, 3)
    ours = [t.clone().requires_grad_(i in needed) for i, t in enumerate(arguments)]
    exact = [t.double().requires_grad_(i in needed) for i, t in enumerate(arguments)]
    expected = unfused(*exact)
    sensitivity = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [exact[i] for i in needed], sensitivity)
    torch.use_deterministic_algorithms(sorted_sum)  # only now: the reference has no such gradient on a GPU
    output = fused_deformable_attention(ours[0], LEVELS, *ours[1:])
    assert relative(output, expected) <= 1e-5
    found = torch.autograd.grad(output, [ours[i] for i in needed], sensitivity.float())
    for i, one, other in zip(needed, found, wanted):
        assert relative(one, other) <= 2e-5, ("value", "reference", "offsets", "scores")[i]


def test_fused_takes_halves_and_gives_their_gradients() -> None:
    arguments = fused_input(2, torch.bfloat16)
    ours = [t.clone().requires_grad_() for t in arguments]
    exact = [t.double().requires_grad_() for t in arguments]
    output, expected = fused_deformable_attention(ours[0], LEVELS, *ours[1:]), unfused(*exact)
    assert relative(output, expected) <= 1e-2
    found = torch.autograd.grad(output, ours, torch.ones_like(output))
    wanted = torch.autograd.grad(expected, exact, torch.ones_like(expected))
    for one, tensor, other in zip(found, ours, wanted, strict=True):
        assert one.dtype == tensor.dtype
        assert relative(one, other) <= 2e-2


def test_fused_scores_may_be_large() -> None:
    value, boxes, offsets, scores = fused_input(2)
    scores = scores * 200
    assert relative(
        fused_deformable_attention(value, LEVELS, boxes, offsets, scores),
        unfused(value.double(), boxes.double(), offsets.double(), scores.double()),
    ) <= 1e-4  # fmt: skip


def test_fused_refuses_a_reference_that_does_not_fit() -> None:
    value, boxes, offsets, scores = fused_input(2)
    with pytest.raises(ValueError, match=r"reference must be \(2, 7, 2, 2\) or \(2, 7, 2, 4\)"):
        fused_deformable_attention(value, LEVELS, boxes[:, :, :1], offsets, scores)


@pytest.mark.parametrize("kind", [2, 4])
def test_layer_gives_the_same_on_both_ways(kind: int) -> None:
    """What a model takes on a GPU (fused) against the reference: output, and all gradients of parameters."""
    layer = MultiScaleDeformableAttention(16, heads=2, levels=len(LEVELS), points=2, backend="triton").to(DEVICE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other = copy.deepcopy(layer).double()
    other.backend = "reference"
    query, tokens = torch.randn(2, 7, 16, device=DEVICE), torch.randn(2, TOKENS, 16, device=DEVICE)
    boxes = 0.2 + 0.6 * torch.rand(2, 7, len(LEVELS), kind, device=DEVICE)
    hidden = torch.zeros(2, TOKENS, dtype=torch.bool, device=DEVICE)
    hidden[0, 20:] = True
    ours = layer(query, boxes, tokens, LEVELS, hidden)
    exact = other(query.double(), boxes.double(), tokens.double(), LEVELS, hidden)
    assert relative(ours, exact) <= 1e-5
    ours.square().sum().backward()
    exact.square().sum().backward()
    for (name, one), two in zip(layer.named_parameters(), other.parameters()):
        assert one.grad is not None
        assert two.grad is not None
        assert relative(one.grad, two.grad) <= 1e-4, name


def test_tiles_of_other_sizes_do_the_same() -> None:
    from ddetr_lite.benchmarks.tiles import sweep  # imports the kernels, which need Triton

    setting = Setting(((2, 2),), dim=8, heads=1, points=1, batch=1)
    inputs = make_input(setting, "model-like", torch.device(DEVICE), torch.float32, seed=0)
    before = triton.tile
    found = list(sweep(setting, inputs, (1, 4), (1,), repeats=1))
    assert [block for block, _, _ in found] == [1, 4]
    assert all(times["both"] > 0 for _, _, times in found)
    assert triton.tile is before


# --- as an operation of torch ----------------------------------------------------------------------------


def test_torch_accepts_the_operation() -> None:
    """Schema, fake tensors, autograd registration: what `torch.compile` relies on."""
    from ddetr_lite.kernels import triton

    value, _, locations, weights = random_input(points=1)
    arguments = [t.requires_grad_() for t in (value, locations, weights)]
    sizes = [size for shape in LEVELS for size in shape]
    torch.library.opcheck(triton._attend, (*arguments, None, sizes))


def test_what_it_refuses() -> None:
    value, levels, locations, weights = random_input()
    with pytest.raises(ValueError, match=r"takes values in torch.float32, .*got torch.float64"):
        multi_scale_deformable_attention(value.double(), levels, locations, weights, "triton")
    assert "triton" in backends_for(value)
    assert "triton" not in backends_for(value.double())
    output = multi_scale_deformable_attention(value.requires_grad_(), levels, locations, weights, "triton")
    (gradient,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradients of gradients: use backend='reference'"):
        gradient.sum().backward()


@on_a_gpu
def test_auto_takes_it_on_a_gpu() -> None:
    value, *_ = random_input()
    assert choose_backend(value) == choose_backend(value.bfloat16()) == "triton"
    assert choose_backend(value.double()) == "reference"
    assert choose_backend(value.cpu()) != "triton"


@on_a_gpu
def test_compiled_whole_and_in_a_graph() -> None:
    layer = MultiScaleDeformableAttention(16, heads=2, levels=len(LEVELS), points=3).cuda()
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.3)
    query, tokens = torch.randn(2, 7, 16, device="cuda"), torch.randn(2, TOKENS, 16, device="cuda")
    boxes = torch.rand(2, 7, len(LEVELS), 2, device="cuda")
    eager = layer(query, boxes, tokens, LEVELS)
    compiled = torch.compile(layer, fullgraph=True)(query, boxes, tokens, LEVELS)
    torch.testing.assert_close(compiled, eager)
    compiled.sum().backward()
    boxes.requires_grad_()  # a learned reference has a way of its own backward
    (expected,) = torch.autograd.grad(layer(query, boxes, tokens, LEVELS).sum(), boxes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(query, boxes, tokens, LEVELS)
        (gradient,) = torch.autograd.grad(captured.sum(), boxes)
    graph.replay()
    torch.testing.assert_close(captured, eager)
    torch.testing.assert_close(gradient, expected)


@on_a_gpu
def test_autocast_keeps_places_in_float32() -> None:
    layer = MultiScaleDeformableAttention(16, heads=2, levels=len(LEVELS), points=3).cuda()
    query, tokens = torch.randn(2, 7, 16, device="cuda"), torch.randn(2, TOKENS, 16, device="cuda")
    boxes = torch.rand(2, 7, len(LEVELS), 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(query, boxes, tokens, LEVELS)
    assert output.dtype == torch.bfloat16
    assert relative(output, layer(query, boxes, tokens, LEVELS).double()) <= 3e-2


@on_a_gpu
def test_deterministic_gradients_are_the_same_to_the_last_bit() -> None:
    value, levels, locations, weights = random_input(queries=5000, channels=32)
    sensitivity = torch.randn(2, 5000, 64, device="cuda")
    torch.use_deterministic_algorithms(True)
    first, second = (gradients("triton", (value, levels, locations, weights), sensitivity) for _ in range(2))
    for one, other in zip(first, second):
        assert torch.equal(one, other)


def test_location_gradients_are_rounded_after_they_are_summed() -> None:
    """Halves for offsets, and a learned reference: its gradient is a sum of float32 numbers, far beyond what halves hold."""
    value, boxes, offsets, scores = fused_input(2, torch.float16)
    ours = [value, boxes.clone().requires_grad_(), offsets.clone().requires_grad_(), scores]
    exact = [value.double(), boxes.double().requires_grad_(), offsets.double().requires_grad_(), scores.double()]
    sensitivity = torch.full((2, 7, 16), 3e4, device=DEVICE)
    output, expected = fused_deformable_attention(ours[0], LEVELS, *ours[1:]), unfused(*exact)
    found = torch.autograd.grad(output, ours[1:3], sensitivity.half())
    wanted = torch.autograd.grad(expected, exact[1:3], sensitivity.double())
    assert wanted[0].abs().max() > 65504
    assert found[0].isfinite().all()
    assert relative(found[0], wanted[0]) <= 1e-2
