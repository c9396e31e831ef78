"""The Transformer's encoder and decoder, in the form that DETR uses (Carion et al. 2020, appendix A.3).

Two things differ from the original Transformer: the position is added to queries and keys at *every* attention, never
to the values, and the decoder is not causal unless a mask says so. Layer norm comes after each residual sum.
Parameters bear the official names. Letters: B pictures, N tokens, N_q queries, d channels, K decoder layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddetr_lite.layers.attention import MultiHeadAttention


def with_position(x: Tensor, position: Tensor | None) -> Tensor:
    """x + position; x itself where there is no position."""
    return x if position is None else x + position


class FeedForward(nn.Module):
    """Base of every layer: two linear maps with a ReLU between, applied to each token alone (Vaswani et al. 2017,
    section 3.3), and its norms.

    The official code has `linear1` and `linear2` directly in the layer, so this is a parent and not a child.
    """

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm

    def __init__(self, dim: int, hidden: int, dropout: float, norms: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)
        for i in range(1, norms + 1):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(..., d) → (..., d), before dropout, residual and norm."""
        return self.linear2(self.drop(F.relu(self.linear1(x))))


class EncoderLayer(FeedForward):
    """Every token looks at every token, then thinks alone."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.1):
        super().__init__(dim, hidden, dropout, norms=2)
        self.self_attn = MultiHeadAttention(dim, heads, dropout)

    def forward(
        self, x: Tensor, position: Tensor | None = None, padding_mask: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x, position: (B, N, d); padding_mask: (B, N), True on padding; mask: (N, N). Returns (B, N, d)."""
        q = k = with_position(x, position)
        x = self.norm1(x + self.drop(self.self_attn(q, k, x, padding_mask, mask)))
        return self.norm2(x + self.drop(self.feed_forward(x)))


class DecoderLayer(FeedForward):
    """Queries look at one another, then at the encoder's memory, then each thinks alone."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.1):
        super().__init__(dim, hidden, dropout, norms=3)
        self.self_attn = MultiHeadAttention(dim, heads, dropout)
        self.multihead_attn = MultiHeadAttention(dim, heads, dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        query_position: Tensor | None = None,
        memory_position: Tensor | None = None,
        padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x, query_position: (B, N_q, d); memory, memory_position: (B, N, d); padding_mask: (B, N), True where the
        memory is padding; mask: (N_q, N_q) among the queries, such as `causal_mask`. Returns (B, N_q, d).
        """
        q = k = with_position(x, query_position)
        x = self.norm1(x + self.drop(self.self_attn(q, k, x, mask=mask)))
        q, k = with_position(x, query_position), with_position(memory, memory_position)
        x = self.norm2(x + self.drop(self.multihead_attn(q, k, memory, padding_mask)))
        return self.norm3(x + self.drop(self.feed_forward(x)))


class Encoder(nn.Module):
    """A stack of `EncoderLayer`."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout) for _ in range(layers))

    def forward(
        self, x: Tensor, position: Tensor | None = None, padding_mask: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Shapes as in `EncoderLayer`; the position is added again in each layer."""
        for layer in self.layers:
            x = layer(x, position, padding_mask, mask)
        return x


class Decoder(nn.Module):
    """A stack of `DecoderLayer` whose every output, normed, is kept for the auxiliary losses."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        query_position: Tensor | None = None,
        memory_position: Tensor | None = None,
        padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Shapes as in `DecoderLayer`. Returns (K, B, N_q, d), the last layer last."""
        outputs = []
        for layer in self.layers:
            x = layer(x, memory, query_position, memory_position, padding_mask, mask)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


class Transformer(nn.Module):
    """Encoder and decoder of DETR: picture tokens in, one vector for each object query and decoder layer out."""

    def __init__(
        self, dim: int, heads: int, hidden: int, encoder_layers: int, decoder_layers: int, dropout: float = 0.1
    ):
        super().__init__()
        self.encoder = Encoder(dim, heads, hidden, encoder_layers, dropout)
        self.decoder = Decoder(dim, heads, hidden, decoder_layers, dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor, padding_mask: Tensor, position: Tensor, query_embed: Tensor) -> Tensor:
        """tokens, position: (B, N, d); padding_mask: (B, N); query_embed: (N_q, d), used as the queries' position:
        their content starts at zero. Returns (K, B, N_q, d).
        """
        memory = self.encoder(tokens, position, padding_mask)
        query_position = query_embed.expand(tokens.shape[0], -1, -1)
        return self.decoder(torch.zeros_like(query_position), memory, query_position, position, padding_mask)
