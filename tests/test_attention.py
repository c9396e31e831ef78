"""Attention against an explicit loop, and against torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddetr_lite.layers.attention import (
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    combine_masks,
    merge_heads,
    record_attention,
    scaled_dot_product_attention,
    split_heads,
)


def weights_by_hand(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """(N_q, D), (N_k, D) → (N_q, N_k), one number after the other; a row without any key is zero."""
    result = torch.zeros(len(query), len(key), dtype=query.dtype)
    for i in range(len(query)):
        seen = [j for j in range(len(key)) if mask is None or not mask[i, j]]
        scores = {j: sum(float(a) * float(b) for a, b in zip(query[i], key[j])) for j in seen}
        total = sum(math.exp(s / math.sqrt(query.shape[1])) for s in scores.values())
        for j in seen:
            result[i, j] = math.exp(scores[j] / math.sqrt(query.shape[1])) / total
    return result


@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_attention_equal_a_loop(masked: bool) -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    mask = torch.rand(2, 3, 5, 7) < 0.4 if masked else None
    weights = attention_weights(query, key, mask)
    attended = scaled_dot_product_attention(query, key, value, mask)
    for b in range(2):
        for m in range(3):
            expected = weights_by_hand(query[b, m], key[b, m], None if mask is None else mask[b, m])
            torch.testing.assert_close(weights[b, m], expected)
            torch.testing.assert_close(attended[b, m], expected @ value[b, m])


def test_mask_means_hidden_and_torch_means_visible() -> None:
    query, key, value = torch.randn(3, 4, 8), torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    mask = torch.rand(3, 4, 6) < 0.5
    mask[..., 0] = False
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=~mask)
    torch.testing.assert_close(scaled_dot_product_attention(query, key, value, mask), expected)
    torch.testing.assert_close(attention_weights(query, key, mask) @ value, expected)


def test_query_that_sees_no_key_gets_zeros_and_finite_gradients() -> None:
    query, key = torch.randn(1, 3, 8, requires_grad=True), torch.randn(1, 5, 8, requires_grad=True)
    value = torch.randn(1, 5, 8, requires_grad=True)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1] = True
    weights = attention_weights(query, key, mask)
    attended = scaled_dot_product_attention(query, key, value, mask)
    assert weights[0, 1].abs().max() == 0
    assert attended[0, 1].abs().max() == 0
    torch.testing.assert_close(weights[0, [0, 2]].sum(-1), torch.ones(2))
    torch.testing.assert_close(attended, weights @ value)
    (attended.square().sum() + weights.square().sum()).backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_dropout_drops_weights_and_rescales_the_rest() -> None:
    query, key = torch.randn(1, 400, 8), torch.randn(1, 20, 8)
    value = torch.ones(1, 20, 1)
    dropped = scaled_dot_product_attention(query, key, value, dropout=0.5)
    assert dropped.std() > 0.05
    assert abs(float(dropped.mean()) - 1) < 0.1
    assert torch.equal(scaled_dot_product_attention(query, key, value), scaled_dot_product_attention(query, key, value))


def test_heads_are_slices_side_by_side() -> None:
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    for m in range(3):
        assert torch.equal(heads[:, m], x[:, :, 4 * m : 4 * m + 4])
    assert torch.equal(merge_heads(heads), x)


def both(dim: int, heads: int) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    ours, theirs = (
        MultiHeadAttention(dim, heads).eval(),
        nn.MultiheadAttention(dim, heads, batch_first=True).eval(),
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("use_padding", [False, True])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "position"])
def test_multi_head_attention_equals_torch(use_padding: bool, use_mask: bool, kind: str) -> None:
    ours, theirs = both(12, 3)
    query = torch.randn(2, 5, 12)
    key = query if kind == "self" else torch.randn(2, 5 if kind == "position" else 7, 12)
    if kind == "position":  # as in DETR: queries and keys are one tensor, values another
        query = key
    value = torch.randn_like(key) if kind == "position" else key
    padding = torch.zeros(2, key.shape[1], dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.rand(5, key.shape[1]) < 0.3
    mask[:, 0] = False
    padding_arg, mask_arg = (padding if use_padding else None), (mask if use_mask else None)
    expected, expected_weights = theirs(
        query, key, value, key_padding_mask=padding_arg, attn_mask=mask_arg, average_attn_weights=False
    )
    torch.testing.assert_close(ours(query, key, value, padding_arg, mask_arg), expected)
    torch.testing.assert_close(ours.weights(query, key, padding_arg, mask_arg), expected_weights)


def test_gradients_equal_torch() -> None:
    ours, theirs = (module.double() for module in both(8, 2))
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    ours(x, x, x).square().sum().backward()
    theirs(x, x, x)[0].square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


def test_mask_of_each_head_broadcasts() -> None:
    ours, _ = both(8, 2)
    x = torch.randn(3, 4, 8)
    mask = torch.rand(3, 2, 4, 4) < 0.4
    weights = ours.weights(x, x, mask=mask)
    assert weights[mask].abs().max() == 0
    values = split_heads(F.linear(x, ours.in_proj_weight[16:], ours.in_proj_bias[16:]), 2)
    torch.testing.assert_close(ours(x, x, x, mask=mask), ours.out_proj(merge_heads(weights @ values)))


def test_permuting_tokens_permutes_the_output() -> None:
    ours, _ = both(12, 3)
    x, order = torch.randn(2, 6, 12), torch.randperm(6)
    assert not torch.equal(order, torch.arange(6))
    torch.testing.assert_close(ours(x[:, order], x[:, order], x[:, order]), ours(x, x, x)[:, order])
    other = torch.randn(2, 9, 12)
    shuffled = other[:, torch.randperm(9)]
    torch.testing.assert_close(ours(x, shuffled, shuffled), ours(x, other, other))


def test_causal_mask_hides_the_future() -> None:
    mask = causal_mask(5)
    assert mask.tolist() == [[j > i for j in range(5)] for i in range(5)]
    ours, _ = both(8, 2)
    x = torch.randn(1, 5, 8)
    before = ours(x, x, x, mask=mask)
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 2, 8)
    after = ours(changed, changed, changed, mask=mask)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-2)


def test_padded_keys_have_no_influence() -> None:
    ours, _ = both(8, 2)
    query, key = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[:, 4:] = True
    changed = key.clone()
    changed[:, 4:] = 1e3
    torch.testing.assert_close(ours(query, key, key, padding), ours(query, changed, changed, padding))
    torch.testing.assert_close(ours(query, key, key, padding), ours(query, key[:, :4], key[:, :4]))


def test_combine_masks() -> None:
    assert combine_masks(None, None) is None
    padding, mask = torch.rand(2, 4) < 0.5, torch.rand(3, 4) < 0.5
    assert combine_masks(None, mask) is mask
    for b in range(2):
        joined = combine_masks(padding, mask)
        assert joined is not None
        assert torch.equal(joined[b, 0], mask | padding[b])


def test_dropout_only_in_training() -> None:
    attention = MultiHeadAttention(8, 2, dropout=0.5)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.eval()
    assert torch.equal(attention(x, x, x), attention(x, x, x))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=10 does not divide by heads=3"):
        MultiHeadAttention(10, 3)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MultiHeadAttention(8, 2), MultiHeadAttention(8, 4)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.first(x, x, x, padding)
        return self.second(
            query=x[:, :2],
            key=x,
            value=2 * x,
            mask=torch.zeros(2, 5, dtype=torch.bool).index_fill(1, torch.tensor([1]), True),
        )


def test_record_attention() -> None:
    model = Two()
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 4] = True
    expected = model(x, padding)
    with record_attention(model) as found:
        assert torch.equal(model(x, padding), expected)
    assert {name: tuple(w.shape) for name, w in found.items()} == {
        "first": (3, 2, 5, 5),
        "second": (3, 4, 2, 5),
    }
    torch.testing.assert_close(found["first"], model.first.weights(x, x, padding).detach())
    assert found["first"][..., 4].abs().max() == 0
    assert found["second"][..., 1].abs().max() == 0
    assert not any(w.requires_grad for w in found.values())
    found.clear()
    model(x, padding)
    assert not found, "the hooks must be gone behind the context"


def test_record_attention_removes_its_hooks_after_an_error() -> None:
    model = Two()
    with pytest.raises(RuntimeError), record_attention(model):
        raise RuntimeError
    assert not model.first._forward_hooks
