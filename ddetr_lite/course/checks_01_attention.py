"""The exercise of notebook 01 that plugs in: the whole scaled dot-product attention, with mask."""

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import attention

attention_weights = attention.attention_weights  # the package's own, also while a learner's is plugged in


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return attention_weights(query, key, mask) @ value


def _raw(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


def _variant(
    scale: Callable[[Tensor, Tensor], float] = lambda q, k: q.shape[-1] ** 0.5,
    dim: int = -1,
    hide: Callable[[Tensor, Tensor], Tensor] = lambda scores, mask: scores.masked_fill(mask, -torch.inf),
    after: Callable[[Tensor, Tensor], Tensor] = lambda weights, mask: weights,
) -> Callable[..., Tensor]:
    """Attention with one step done in another way."""

    def changed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = q @ k.transpose(-2, -1) / scale(q, k)
        scores = scores if mask is None else hide(scores, mask)
        weights = scores.softmax(dim)
        return (weights if mask is None else after(weights, mask)) @ v

    return changed


def _attention_cases() -> list[Case]:
    query, key = torch.tensor([[1.0, 0, 2, 1]]), torch.tensor([[1.0, 1, 0, 2], [0, 2, 1, 0], [3, 0, 1, 1]])
    value = torch.tensor([[1.0, 0], [0, 1], [2, 2]])
    middle = (normal(6, 3, 9), normal(7, 4, 9), normal(8, 4, 5))
    causal = (normal(9, 4, 9), normal(10, 4, 9), normal(11, 4, 3))
    large = (normal(12, 2, 3, 5, 8), normal(13, 2, 3, 6, 8), normal(14, 2, 3, 6, 8))
    padding = (torch.arange(6) >= torch.tensor([[6], [4]]))[:, None, None, :]  # (2, 1, 1, 6)
    return [
        Case("one query, three keys, no mask", (query, key, value)),
        Case("three queries, four keys, no mask", middle),
        Case("four words with a causal mask", (*causal, torch.ones(4, 4, dtype=torch.bool).triu(1))),
        Case("two pictures, three heads, no mask", large),
        Case("two pictures, three heads, the second padded", (*large, padding)),
    ]


def _adapt_attention(learner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The package asks for dropout of weights as well. A learner's function keeps its weights to itself,
    but shows them when the values are the rows of an identity matrix: then the output *is* the weights.
    """

    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        if not dropout:
            return learner(query, key, value, mask)
        identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
        weights = learner(query, key, identity.expand(*key.shape[:-2], -1, -1), mask)  # (..., N_q, N_k)
        return torch.dropout(weights, dropout, True) @ value

    return scaled_dot_product_attention


ATTENTION = Exercise(
    name="scaled_dot_product_attention",
    notebook="01",
    task="Score, divide by √D, hide what the mask hides, softmax over the keys, weigh the values and sum.",
    reference=attend,
    cases=_attention_cases,
    differentiable=True,
    part=attention.scaled_dot_product_attention,
    adapt=_adapt_attention,
    hints=(
        "Four lines: scores, mask, softmax, product with the values. Only the mask is optional: `if mask is not None`.",
        "Inputs may have dimensions in front (pictures, heads): key.transpose(-2, -1) swaps the last two "
        "alone, and -1 is the dimension of the keys in the scores.",
        "scores.masked_fill(mask, float('-inf')) before the softmax gives weight zero, and the others "
        "still sum to one.",
    ),
    mistakes=(
        Mistake("the scores are not divided by √D", _variant(scale=lambda q, k: 1.0)),
        Mistake("the scores are divided by D, not by √D", _variant(scale=lambda q, k: q.shape[-1])),
        Mistake(
            "the root is taken of the values' width; D is that of queries and keys (query.shape[-1])",
            lambda q, k, v, mask=None: _variant(scale=lambda q, k: v.shape[-1] ** 0.5)(q, k, v, mask),
        ),
        Mistake(
            "the square root is taken of the number of keys, not of the number of channels D (query.shape[-1])",
            _variant(scale=lambda q, k: k.shape[-2] ** 0.5),
        ),
        Mistake(
            "the softmax runs over the queries: the columns sum to one, where the rows should",
            _variant(dim=-2),
        ),
        Mistake(
            "the softmax runs over dimension 1, the keys of a single matrix; with pictures and heads in "
            "front the keys are dimension -1",
            _variant(dim=1),
        ),
        Mistake(
            "keys are turned with .T or transpose(0, 1), right for a single matrix only; with pictures "
            "and heads in front, swap the last two: transpose(-2, -1)",
            lambda q, k, v, mask=None: (
                (q @ k.transpose(0, 1) / q.shape[-1] ** 0.5)
                .masked_fill(torch.tensor(False) if mask is None else mask, -torch.inf)
                .softmax(-1)
                @ v
            ),
        ),
        Mistake("there is no softmax: the raw scores weigh the values", lambda q, k, v, mask=None: _raw(q, k) @ v),
        Mistake("the mask is not applied", _variant(hide=lambda scores, mask: scores)),
        Mistake(
            "the mask is inverted: True hides a key, and you hid where it is False",
            _variant(hide=lambda scores, mask: scores.masked_fill(~mask, -torch.inf)),
        ),
        Mistake(
            "you gave the mask to torch's own function, which means the opposite by it: there True lets a key be seen. Give it "
            "~mask",
            lambda q, k, v, mask=None: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        ),
        Mistake(
            "hidden scores are set to 0, not to −∞: exp(0) = 1 is still a weight",
            _variant(hide=lambda scores, mask: scores.masked_fill(mask, 0.0)),
        ),
        Mistake(
            "the mask is applied after the softmax: the weights that stay no longer sum to one",
            _variant(hide=lambda scores, mask: scores, after=lambda weights, mask: weights.masked_fill(mask, 0.0)),
        ),
        Mistake(
            "you returned the weights: they still have to weigh the values",
            lambda q, k, v, m=None: attention_weights(q, k, m),
        ),
    ),
)
