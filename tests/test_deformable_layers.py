"""Deformable attention, encoder and decoder against slow loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddetr_lite.kernels import multi_scale_deformable_attention
from ddetr_lite.layers.deformable_attention import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    compass_offsets,
    record_samples,
    sampling_locations,
)
from ddetr_lite.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    cell_centres,
    encoder_reference_points,
    inverse_sigmoid,
    refine_boxes,
    valid_ratios,
)

LEVELS = [(3, 5), (2, 3), (1, 1)]
TOKENS = sum(h * w for h, w in LEVELS)


def randomise(module: nn.Module, std: float = 0.5) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)


def test_eight_heads_look_in_eight_directions() -> None:
    offsets = compass_offsets(8, 3, 4)
    assert offsets.shape == (8, 3, 4, 2)
    #            east    s-east  south   s-west   west     n-west    north    n-east   (y grows downwards)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for m, (x, y) in enumerate(compass):
        for level in range(3):
            for p in range(4):
                expected = torch.tensor([x * (p + 1.0), y * (p + 1.0)])
                torch.testing.assert_close(offsets[m, level, p], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [1, 3, 4, 6])
def test_points_are_at_kings_distances(heads: int) -> None:
    offsets = compass_offsets(heads, 2, 5)
    distances = torch.arange(1.0, 6.0).expand(heads, 2, 5)
    torch.testing.assert_close(offsets.abs().amax(-1), distances)
    for m in range(heads):
        angle = math.atan2(float(offsets[m, 0, 0, 1]), float(offsets[m, 0, 0, 0])) % (2 * math.pi)
        assert angle == pytest.approx(2 * math.pi * m / heads, abs=1e-5)


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_sampling_locations_one_by_one(kind: str) -> None:
    reference = torch.rand(2, 4, 3, 2 if kind == "points" else 4)
    offsets = torch.randn(2, 4, 2, 3, 5, 2)
    locations = sampling_locations(reference, offsets, LEVELS)
    assert locations.shape == offsets.shape
    for b in range(2):
        for q in range(4):
            for m in range(2):
                for level, (h, w) in enumerate(LEVELS):
                    for p in range(5):
                        dx, dy = offsets[b, q, m, level, p].tolist()
                        anchor = reference[b, q, level].tolist()
                        if kind == "points":
                            expected = (anchor[0] + dx / w, anchor[1] + dy / h)
                        else:
                            cx, cy, width, height = anchor
                            expected = (cx + dx / 5 * width * 0.5, cy + dy / 5 * height * 0.5)
                        assert locations[b, q, m, level, p].tolist() == pytest.approx(expected, abs=1e-5)


def test_reference_must_be_a_point_or_a_box() -> None:
    with pytest.raises(ValueError, match=r"must end in 2 \(points\) or 4 \(boxes\), got \(1, 1, 3, 3\)"):
        sampling_locations(torch.rand(1, 1, 3, 3), torch.rand(1, 1, 2, 3, 4, 2), LEVELS)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


@torch.no_grad()
def slow_module(
    module: MultiScaleDeformableAttention,
    query: Tensor,
    reference: Tensor,
    tokens: Tensor,
    levels: list[tuple[int, int]],
    padding: Tensor | None,
) -> Tensor:
    """Equation 3 of the paper, one query, head, level, point and cell at a time."""
    batch, queries, dim = query.shape
    heads, points, width = module.heads, module.points, dim // module.heads
    result = torch.zeros(batch, queries, dim)
    for b in range(batch):
        values = torch.stack([linear(module.value_proj, t) for t in tokens[b]])
        if padding is not None:
            values[padding[b]] = 0
        for q in range(queries):
            offsets = linear(module.sampling_offsets, query[b, q]).view(heads, len(levels), points, 2)
            logits = linear(module.attention_weights, query[b, q]).view(heads, len(levels) * points)
            heads_out = []
            for m in range(heads):
                weights = logits[m].exp() / logits[m].exp().sum()
                total, first = torch.zeros(width), 0
                for level, (h, w) in enumerate(levels):
                    for p in range(points):
                        place, offset = reference[b, q, level], offsets[m, level, p]
                        if len(place) == 2:
                            x, y = (
                                float(place[0] * w + offset[0] - 0.5),
                                float(place[1] * h + offset[1] - 0.5),
                            )
                        else:
                            x = float(place[0] + offset[0] / points * place[2] / 2) * w - 0.5
                            y = float(place[1] + offset[1] / points * place[3] / 2) * h - 0.5
                        for row in range(h):
                            for column in range(w):
                                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                                cell = values[first + row * w + column, m * width : (m + 1) * width]
                                total = total + weights[level * points + p] * share * cell
                    first += h * w
                heads_out.append(total)
            result[b, q] = linear(module.output_proj, torch.cat(heads_out))
    return result


@pytest.mark.parametrize("kind", ["points", "boxes"])
@pytest.mark.parametrize("backend", ["auto", "reference", "loop", "cpu"])
@torch.no_grad()
def test_module_equals_a_slow_loop(kind: str, backend: str) -> None:
    module = MultiScaleDeformableAttention(8, heads=2, levels=3, points=2, backend=backend)
    randomise(module)
    query, tokens = torch.randn(2, 3, 8), torch.randn(2, TOKENS, 8)
    reference = torch.rand(2, 3, 3, 2 if kind == "points" else 4)
    padding = torch.rand(2, TOKENS) < 0.3
    for mask in (None, padding):
        expected = slow_module(module, query, reference, tokens, LEVELS, mask)
        torch.testing.assert_close(module(query, reference, tokens, LEVELS, mask), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_level_is_the_case_of_one_level() -> None:
    module = DeformableAttention(8, heads=2, points=3)
    assert (module.levels, module.points, module.heads) == (1, 3, 2)
    randomise(module)
    query, tokens, reference = torch.randn(1, 4, 8), torch.randn(1, 15, 8), torch.rand(1, 4, 1, 2)
    expected = slow_module(module, query, reference, tokens, [(3, 5)], None)
    torch.testing.assert_close(module(query, reference, tokens, [(3, 5)]), expected, atol=1e-4, rtol=1e-4)


def test_initial_state_is_the_compass_with_equal_weights() -> None:
    module = MultiScaleDeformableAttention(16, heads=8, levels=3, points=4)
    query, reference = torch.randn(2, 5, 16), torch.rand(2, 5, 3, 2)
    locations, weights = module.samples(query, reference, LEVELS)
    torch.testing.assert_close(weights, torch.full((2, 5, 8, 3, 4), 1 / 12))
    expected = sampling_locations(reference, compass_offsets(8, 3, 4).expand(2, 5, -1, -1, -1, -1), LEVELS)
    torch.testing.assert_close(locations, expected)
    for projection in (module.value_proj, module.output_proj):
        assert 0.9 * (6 / 32) ** 0.5 < projection.weight.abs().max() <= (6 / 32) ** 0.5
        assert projection.bias.abs().max() == 0


def test_weights_sum_to_one_over_levels_and_points() -> None:
    module = MultiScaleDeformableAttention(8, heads=2, levels=3, points=2)
    randomise(module)
    _, weights = module.samples(torch.randn(2, 3, 8), torch.rand(2, 3, 3, 2), LEVELS)
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(2, 3, 2))


def test_locations_stay_float32_under_autocast() -> None:
    module = MultiScaleDeformableAttention(8, heads=2, levels=3, points=2)
    randomise(module)
    query, reference, tokens = torch.randn(1, 3, 8), torch.rand(1, 3, 3, 2), torch.randn(1, TOKENS, 8)
    exact = module(query, reference, tokens, LEVELS)
    with torch.autocast("cpu", torch.bfloat16):
        offsets = module.sampling_offsets(query).unflatten(-1, (2, 3, 2, 2))
        locations, _ = module.samples(query, reference, LEVELS)
        output = module(query, reference, tokens, LEVELS)
    assert offsets.dtype == torch.bfloat16
    assert locations.dtype == torch.float32
    assert torch.equal(locations, sampling_locations(reference, offsets.float(), LEVELS)), (
        "no rounding after the linear"
    )
    torch.testing.assert_close(output.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("backend", ["loop", "reference", "cpu"])
def test_module_uses_the_backend_it_was_told(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MultiScaleDeformableAttention(8, heads=2, levels=3, points=2, backend=backend)
    monkeypatch.setattr("ddetr_lite.kernels.BACKENDS", {backend: lambda value, *_: value[:, :4].flatten(2)})
    value = module.value_proj(tokens := torch.randn(1, TOKENS, 8))
    output = module(torch.randn(1, 4, 8), torch.rand(1, 4, 3, 2), tokens, LEVELS)
    torch.testing.assert_close(output, module.output_proj(value[:, :4]))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=10 does not divide by heads=4"):
        MultiScaleDeformableAttention(10, heads=4)


def test_record_samples() -> None:
    stack = nn.ModuleDict({"one": MultiScaleDeformableAttention(8, 2, 3, 2), "two": DeformableAttention(8, 2, 2)})
    for module in stack.values():
        randomise(module)
    query, reference, tokens = torch.randn(1, 4, 8), torch.rand(1, 4, 3, 4), torch.randn(1, TOKENS, 8)
    with record_samples(stack) as found:
        stack["one"](query, reference, tokens, LEVELS)
        stack["two"](query=query, reference=reference[:, :, :1], tokens=tokens[:, :15], level_shapes=[(3, 5)])
    assert set(found) == {"one", "two"}
    torch.testing.assert_close(found["one"], stack["one"].samples(query, reference, LEVELS))  # type: ignore[operator]
    assert found["two"][0].shape == (1, 4, 2, 1, 2, 2)
    assert not any(t.requires_grad for pair in found.values() for t in pair)
    found.clear()
    stack["one"](query, reference, tokens, LEVELS)
    assert not found


def test_inverse_sigmoid() -> None:
    x = torch.rand(100)
    torch.testing.assert_close(inverse_sigmoid(x), torch.special.logit(x, eps=1e-5))
    logits = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits, atol=2e-3, rtol=0)
    ends = inverse_sigmoid(torch.tensor([-0.5, 0.0, 1.0, 1.5]))
    torch.testing.assert_close(ends, torch.tensor([-1.0, -1.0, 1.0, 1.0]) * math.log(1e5))


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_refine_boxes(kind: str) -> None:
    delta, reference = torch.randn(3, 4), torch.rand(3, 2 if kind == "points" else 4)
    boxes = refine_boxes(delta, reference)
    for n in range(3):
        for i in range(4):
            shift = math.log(float(reference[n, i]) / (1 - float(reference[n, i]))) if i < reference.shape[1] else 0.0
            assert float(boxes[n, i]) == pytest.approx(1 / (1 + math.exp(-(float(delta[n, i]) + shift))), abs=1e-5)
    if kind == "boxes":
        torch.testing.assert_close(refine_boxes(torch.zeros(3, 4), reference), reference)


PICTURES = [[(3, 5), (2, 3), (1, 1)], [(2, 5), (1, 3), (1, 1)], [(3, 2), (2, 1), (1, 1)]]
"""The (H, W) that is real on each level, for three pictures."""


def padded_masks() -> list[Tensor]:
    masks = [torch.ones(3, h, w, dtype=torch.bool) for h, w in LEVELS]
    for picture, sizes in enumerate(PICTURES):
        for level, (h, w) in enumerate(sizes):
            masks[level][picture, :h, :w] = False
    return masks


def test_valid_ratios() -> None:
    ratios = valid_ratios(padded_masks())
    assert ratios.shape == (3, 3, 2)
    for picture, sizes in enumerate(PICTURES):
        for level, (h, w) in enumerate(sizes):
            expected = (w / LEVELS[level][1], h / LEVELS[level][0])
            assert ratios[picture, level].tolist() == pytest.approx(expected)


def test_cell_centres() -> None:
    for (h, w), centres in zip(LEVELS, cell_centres(LEVELS)):
        assert centres.tolist() == [[column + 0.5, row + 0.5] for row in range(h) for column in range(w)]


def test_encoder_reference_points_cell_by_cell() -> None:
    points = encoder_reference_points(LEVELS, valid_ratios(padded_masks()))
    assert points.shape == (3, TOKENS, 3, 2)
    for picture, sizes in enumerate(PICTURES):
        token = 0
        for (h, w), (real_h, real_w) in zip(LEVELS, sizes):
            for row in range(h):
                for column in range(w):
                    x, y = (column + 0.5) / real_w, (row + 0.5) / real_h  # of the real picture
                    for other, (other_h, other_w) in enumerate(LEVELS):
                        expected = (x * sizes[other][1] / other_w, y * sizes[other][0] / other_h)
                        assert points[picture, token, other].tolist() == pytest.approx(expected, abs=1e-6)
                    token += 1


def test_without_padding_every_cell_refers_to_itself() -> None:
    levels = [(4, 6), (2, 3)]
    points = encoder_reference_points(levels, torch.ones(1, 2, 2))
    value = torch.randn(1, 24 + 6, 1, 2)
    own = points[:, :24, None, :1, None, :]
    out = multi_scale_deformable_attention(value[:, :24], [(4, 6)], own, torch.ones(1, 24, 1, 1, 1), "reference")
    torch.testing.assert_close(out, value[:, :24, 0], atol=1e-5, rtol=1e-5)


def encoder_input() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masks = padded_masks()
    padding = torch.cat([m.flatten(1) for m in masks], dim=1)
    return torch.randn(3, TOKENS, 8), torch.randn(3, TOKENS, 8), valid_ratios(masks), padding


def test_encoder_layer_by_hand() -> None:
    layer: Any = DeformableEncoderLayer(8, 2, 12, 3, 2, dropout=0.0)
    randomise(layer)
    x, position, ratios, padding = encoder_input()
    reference = encoder_reference_points(LEVELS, ratios)
    attended = slow_module(layer.self_attn, x + position, reference, x, LEVELS, padding)
    hidden = layer.norm1(x + attended)
    expected = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).relu()))
    torch.testing.assert_close(layer(x, position, reference, LEVELS, padding), expected, atol=1e-4, rtol=1e-4)


def test_encoder_runs_its_layers_in_turn() -> None:
    encoder: Any = DeformableEncoder(8, 2, 12, 3, 2, layers=2, dropout=0.0)
    randomise(encoder)
    x, position, ratios, padding = encoder_input()
    reference = encoder_reference_points(LEVELS, ratios)
    expected = encoder.layers[1](
        encoder.layers[0](x, position, reference, LEVELS, padding), position, reference, LEVELS, padding
    )
    torch.testing.assert_close(encoder(x, position, LEVELS, ratios, padding), expected)


def test_padding_has_no_influence_on_real_tokens() -> None:
    encoder: Any = DeformableEncoder(8, 2, 12, 3, 2, layers=2, dropout=0.0)
    randomise(encoder)
    x, position, ratios, padding = encoder_input()
    changed = torch.where(padding[..., None], 50 * torch.randn_like(x), x)
    before, after = (encoder(t, position, LEVELS, ratios, padding) for t in (x, changed))
    assert not torch.equal(x, changed)
    torch.testing.assert_close(after[~padding], before[~padding])


def test_attention_on_the_own_level_is_the_single_level_one_on_each() -> None:
    """With the weights of one single-level attention, level by level, padding included."""
    torch.manual_seed(0)
    layer = DeformableEncoderLayer(16, heads=2, hidden=8, levels=3, points=2, dropout=0.0, own_level=True)
    randomise(layer)
    alone = DeformableAttention(16, heads=2, points=2)
    alone.load_state_dict(layer.self_attn.state_dict())
    x, position = torch.randn(2, 2, TOKENS, 16)
    mask = torch.rand(2, TOKENS) < 0.3
    reference = torch.rand(2, TOKENS, 3, 2)
    attended, start = [], 0
    for level, (h, w) in enumerate(LEVELS):
        own = slice(start, start + h * w)
        start += h * w
        query = x[:, own] + position[:, own]
        attended.append(alone(query, reference[:, own, level : level + 1], x[:, own], [(h, w)], mask[:, own]))
    expected = layer.norm1(x + torch.cat(attended, dim=1))
    expected = layer.norm2(expected + layer.feed_forward(expected))
    torch.testing.assert_close(layer(x, position, reference, LEVELS, mask), expected)


def test_on_the_own_level_nothing_comes_from_the_others() -> None:
    torch.manual_seed(0)
    x, position = torch.randn(2, 1, TOKENS, 16)
    changed = x.clone()
    changed[:, 15:] += 1  # the second and third level
    for own_level in (True, False):
        encoder = DeformableEncoder(16, 2, 8, levels=3, points=2, layers=2, dropout=0.0, own_level=own_level)
        randomise(encoder)
        first, second = (
            encoder(tokens, position, LEVELS, torch.ones(1, 3, 2), None)[:, :15] for tokens in (x, changed)
        )
        assert torch.equal(first, second) == own_level


def test_scattered_offsets_lie_anywhere_within_the_compass() -> None:
    attention = MultiScaleDeformableAttention(32, heads=8, levels=2, points=3)
    attention.scatter_offsets()
    offsets = attention.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    assert offsets.abs().max() <= 3
    assert offsets.abs().max() > 2  # of 96 numbers, all would be this small once in 10^17
    assert offsets.unique().numel() == offsets.numel()
    assert attention.sampling_offsets.weight.eq(0).all()  # every query starts from them


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_decoder_layer_by_hand(kind: str) -> None:
    """Self-attention first, whose norm is called norm2."""
    layer: Any = DeformableDecoderLayer(8, 2, 12, 3, 2, dropout=0.0)
    randomise(layer)
    x, where = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    memory, _, _, padding = encoder_input()
    reference = torch.rand(3, 4, 3, 2 if kind == "points" else 4)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.load_state_dict(layer.self_attn.state_dict())
    hidden = layer.norm2(x + attention(x + where, x + where, x)[0])
    hidden = layer.norm1(hidden + slow_module(layer.cross_attn, hidden + where, reference, memory, LEVELS, padding))
    expected = layer.norm3(hidden + layer.linear2(layer.linear1(hidden).relu()))
    torch.testing.assert_close(layer(x, where, reference, memory, LEVELS, padding), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [2, 4])
def test_decoder_scales_references_by_the_valid_ratios(width: int) -> None:
    decoder: Any = DeformableDecoder(8, 2, 12, 3, 2, layers=2, dropout=0.0)
    randomise(decoder)
    x, where, reference = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.rand(3, 4, width)
    memory, _, ratios, padding = encoder_input()
    outputs, references = decoder(x, where, reference, memory, LEVELS, ratios, padding)
    assert outputs.shape == (2, 3, 4, 8)
    assert len(references) == 2
    assert all(torch.equal(r, reference) for r in references)
    scaled = torch.empty(3, 4, 3, width)
    for b in range(3):
        for q in range(4):
            for level in range(3):
                for i in range(width):
                    scaled[b, q, level, i] = reference[b, q, i] * ratios[b, level, i % 2]
    hidden = decoder.layers[0](x, where, scaled, memory, LEVELS, padding)
    torch.testing.assert_close(outputs[0], hidden)
    torch.testing.assert_close(outputs[1], decoder.layers[1](hidden, where, scaled, memory, LEVELS, padding))


def test_decoder_refines_with_detached_references() -> None:
    decoder: Any = DeformableDecoder(8, 2, 12, 3, 2, layers=3, dropout=0.0)
    randomise(decoder)
    x, where, reference = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.rand(3, 4, 2, requires_grad=True)
    memory, _, ratios, padding = encoder_input()
    made: list[Tensor] = []
    seen: list[tuple[int, Tensor, Tensor]] = []
    head = nn.Linear(8, 4)

    def refine(k: int, hidden: Tensor, reference: Tensor) -> Tensor:
        seen.append((k, hidden, reference))
        made.append(refine_boxes(head(hidden), reference))
        return made[-1]

    outputs, references = decoder(x, where, reference, memory, LEVELS, ratios, padding, refine)
    assert [k for k, _, _ in seen] == [0, 1, 2]
    assert references[0] is reference
    for k in range(3):
        assert torch.equal(seen[k][1], outputs[k])
        assert torch.equal(seen[k][2], references[k])
    for k in (1, 2):
        assert torch.equal(references[k], made[k - 1])
        assert made[k - 1].requires_grad
        assert not references[k].requires_grad
    by_hand = torch.cat([made[0] * ratios[:, level].repeat(1, 2)[:, None] for level in range(3)], dim=-1)
    expected = decoder.layers[1](outputs[0], where, by_hand.unflatten(-1, (3, 4)), memory, LEVELS, padding)
    torch.testing.assert_close(outputs[1], expected)
