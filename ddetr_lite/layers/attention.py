"""Scaled dot-product attention and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

Letters: B pictures or sentences, N_q queries, N_k keys, M heads, D channels of a head, d = M·D channels of the model.
Masks are boolean and True where a key must *not* be seen, as in `torch.nn.MultiheadAttention` and in DETR's own code.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddetr_lite.layers.recording import record


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much every query looks at every key: softmax(Q Kᵀ / √D), equation 1 of "Attention Is All You Need".

    query: (..., N_q, D); key: (..., N_k, D); mask: broadcastable to (..., N_q, N_k), True where a key is hidden.
    Returns (..., N_q, N_k). Each row is ≥ 0 and sums to one; a row whose keys are all hidden is zero.
    """
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (..., N_q, N_k)
    if mask is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
    return weights.masked_fill(mask.all(-1, keepdim=True), 0.0)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """`attention_weights(query, key, mask) @ value`, without keeping the N_q × N_k weights in memory.

    query: (..., N_q, D); key: (..., N_k, D); value: (..., N_k, D_v); mask: broadcastable to (..., N_q, N_k),
    True where a key is hidden; dropout: the share of weights dropped (0 in evaluation).
    Returns (..., N_q, D_v): for each query a mean of the values, weighted by how well its key fits. A query that
    may see no key gets zeros. torch's fused kernel does the arithmetic; its masks say the opposite of ours. (With dropout on
    a CPU torch has no fused kernel, and keeps the weights.)
    """
    visible = None if mask is None else ~mask
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, M·D) → (B, M, N, D): each head gets its own slice of D channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, M, N, D) → (B, N, M·D): the heads' outputs side by side, the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """M attentions side by side, each on its own D = d/M channels, joined by W^O (section 3.2.2).

    Parameters bear the names of `torch.nn.MultiheadAttention` (`in_proj_weight` holds W^Q, W^K, W^V one below the
    other), so that state dicts go from one to the other. Raises ValueError when `dim` does not divide by `heads`.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} does not divide by heads={heads}: choose a multiple")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V of all heads: three (B, M, N, D) from inputs (B, N, d)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        if query is key:  # self-attention in DETR: Q and K share their input, so one product makes both
            q, k = F.linear(query, self.in_proj_weight[: 2 * self.dim], self.in_proj_bias[: 2 * self.dim]).chunk(2, -1)
        else:
            q, k = F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1])
        v = F.linear(value, weights[2], biases[2])
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """query: (B, N_q, d); key, value: (B, N_k, d); padding_mask: (B, N_k), True on padding; mask: (N_q, N_k) or
        broadcastable to (B, M, N_q, N_k), True where a key is hidden. Returns (B, N_q, d).
        """
        q, k, v = self.project(query, key, value)
        hidden = combine_masks(padding_mask, mask)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(merge_heads(scaled_dot_product_attention(q, k, v, hidden, dropout)))

    def weights(
        self, query: Tensor, key: Tensor, padding_mask: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The attention weights of every head, (B, M, N_q, N_k), for looking at: `forward` never needs them."""
        q, k, _ = self.project(query, key, key)
        return attention_weights(q, k, combine_masks(padding_mask, mask))


def combine_masks(padding_mask: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """One mask that broadcasts to (B, M, N_q, N_k) from padding (B, N_k) and a pattern such as `causal_mask`."""
    if padding_mask is None:
        return mask
    padding = padding_mask[:, None, None, :]  # (B, 1, 1, N_k)
    return padding if mask is None else padding | mask


def causal_mask(length: int) -> Tensor:
    """(N, N), True above the diagonal: position i sees positions 0..i and no later one."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def record_attention(model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Within this context every `MultiHeadAttention` of `model` leaves its weights in the dict that is returned.

    Keys are the modules' names, values (B, M, N_q, N_k), detached. A module that runs twice keeps its last weights.

        with record_attention(model) as attention:
            model(images)
        attention["transformer.decoder.layers.5.multihead_attn"]  # where each object query looked
    """

    def weights(module: MultiHeadAttention, given: dict[str, Any]) -> Tensor:
        return module.weights(given["query"], given["key"], given.get("padding_mask"), given.get("mask"))

    return record(model, MultiHeadAttention, ("query", "key", "value", "padding_mask", "mask"), weights)
