"""Transformer layers against torch's, and what DETR changes: where the position goes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddetr_lite.layers.attention import causal_mask
from ddetr_lite.layers.deformable_transformer import DeformableDecoderLayer, DeformableEncoderLayer
from ddetr_lite.layers.transformer import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    Transformer,
    with_position,
)

D, M, HIDDEN = 16, 4, 24


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def padding_of(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layer_equals_torch(masked: bool) -> None:
    theirs = nn.TransformerEncoderLayer(D, M, HIDDEN, dropout=0.0, batch_first=True)
    randomise(theirs)
    ours = EncoderLayer(D, M, HIDDEN, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    x, padding = torch.randn(2, 6, D), padding_of([6, 4], 6)
    mask = causal_mask(6) if masked else None
    expected = theirs(x, src_mask=mask, src_key_padding_mask=padding)
    torch.testing.assert_close(ours(x, padding_mask=padding, mask=mask), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_decoder_layer_equals_torch(masked: bool) -> None:
    theirs = nn.TransformerDecoderLayer(D, M, HIDDEN, dropout=0.0, batch_first=True)
    randomise(theirs)
    ours = DecoderLayer(D, M, HIDDEN, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    x, memory, padding = torch.randn(2, 5, D), torch.randn(2, 6, D), padding_of([6, 3], 6)
    mask = causal_mask(5) if masked else None
    expected = theirs(x, memory, tgt_mask=mask, memory_key_padding_mask=padding)
    torch.testing.assert_close(ours(x, memory, padding_mask=padding, mask=mask), expected)


def test_stacks_equal_torch() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, M, HIDDEN, 0.0, batch_first=True), 3, enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, M, HIDDEN, 0.0, batch_first=True), 3, nn.LayerNorm(D))
    for stack in (encoder, decoder):
        randomise(stack)
    our_encoder, our_decoder = Encoder(D, M, HIDDEN, 3, 0.0), Decoder(D, M, HIDDEN, 3, 0.0)
    our_encoder.load_state_dict(encoder.state_dict())
    our_decoder.load_state_dict(decoder.state_dict())
    x, queries, padding = torch.randn(2, 6, D), torch.randn(2, 4, D), padding_of([6, 4], 6)
    memory = our_encoder(x, padding_mask=padding)
    torch.testing.assert_close(memory, encoder(x, src_key_padding_mask=padding))
    outputs = our_decoder(queries, memory, padding_mask=padding)
    assert outputs.shape == (3, 2, 4, D)
    torch.testing.assert_close(outputs[-1], decoder(queries, memory, memory_key_padding_mask=padding))
    hidden = queries  # every layer's output is normed, but what the next layer gets is not
    for k, layer in enumerate(decoder.layers):
        hidden = layer(hidden, memory, memory_key_padding_mask=padding)
        assert decoder.norm is not None
        torch.testing.assert_close(outputs[k], decoder.norm(hidden))


class Attention(nn.Module):
    """torch's multi-head attention under our argument order."""

    def __init__(self, like: nn.Module):
        super().__init__()
        self.inner = nn.MultiheadAttention(D, M, batch_first=True)
        self.inner.load_state_dict(like.state_dict())

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.inner(query, key, value, key_padding_mask=padding, need_weights=False)[0]


def test_encoder_adds_the_position_to_queries_and_keys_only() -> None:
    layer: Any = EncoderLayer(D, M, HIDDEN, 0.0)
    randomise(layer)
    x, position, padding = torch.randn(2, 6, D), torch.randn(2, 6, D), padding_of([6, 4], 6)
    attention = Attention(layer.self_attn)
    hidden = layer.norm1(x + attention(x + position, x + position, x, padding))
    expected = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).relu()))
    torch.testing.assert_close(layer(x, position, padding), expected)


def test_decoder_adds_positions_to_queries_and_keys_only() -> None:
    layer: Any = DecoderLayer(D, M, HIDDEN, 0.0)
    randomise(layer)
    x, memory, padding = torch.randn(2, 5, D), torch.randn(2, 6, D), padding_of([6, 3], 6)
    where, memory_where = torch.randn(2, 5, D), torch.randn(2, 6, D)
    self_attention, cross_attention = Attention(layer.self_attn), Attention(layer.multihead_attn)
    hidden = layer.norm1(x + self_attention(x + where, x + where, x))
    hidden = layer.norm2(hidden + cross_attention(hidden + where, memory + memory_where, memory, padding))
    expected = layer.norm3(hidden + layer.linear2(layer.linear1(hidden).relu()))
    torch.testing.assert_close(layer(x, memory, where, memory_where, padding), expected)


def test_every_layer_gets_the_position_again() -> None:
    encoder, decoder = Encoder(D, M, HIDDEN, 2, 0.0), Decoder(D, M, HIDDEN, 2, 0.0)
    encoder_layers, decoder_layers = list(encoder.layers), list(decoder.layers)
    x, position, queries, where = (torch.randn(2, n, D) for n in (6, 6, 4, 4))
    by_hand = encoder_layers[1](encoder_layers[0](x, position), position)
    torch.testing.assert_close(encoder(x, position), by_hand)
    hidden = decoder_layers[0](queries, x, where, position)
    hidden = decoder_layers[1](hidden, x, where, position)
    torch.testing.assert_close(decoder(queries, x, where, position)[-1], decoder.norm(hidden))


def test_padding_has_no_influence_on_real_tokens() -> None:
    transformer = Transformer(D, M, HIDDEN, 2, 2, dropout=0.0)
    tokens, position, queries = torch.randn(2, 7, D), torch.randn(2, 7, D), torch.randn(3, D)
    padding = padding_of([7, 4], 7)
    outputs = transformer(tokens, padding, position, queries)
    changed = tokens.clone()
    changed[1, 4:] = 30 * torch.randn(3, D)
    moved = position.clone()
    moved[1, 4:] = 30 * torch.randn(3, D)
    torch.testing.assert_close(transformer(changed, padding, moved, queries), outputs)
    alone = transformer(tokens[1:, :4], padding[1:, :4], position[1:, :4], queries)
    torch.testing.assert_close(outputs[:, 1:], alone)
    assert outputs.shape == (2, 2, 3, D)


def test_queries_are_positions_and_their_content_starts_at_zero() -> None:
    transformer = Transformer(D, M, HIDDEN, 1, 2, dropout=0.0)
    tokens, position, queries = torch.randn(2, 5, D), torch.randn(2, 5, D), torch.randn(3, D)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    memory = transformer.encoder(tokens, position, padding)
    expected = transformer.decoder(torch.zeros(2, 3, D), memory, queries.repeat(2, 1, 1), position, padding)
    torch.testing.assert_close(transformer(tokens, padding, position, queries), expected)


def test_xavier_initialisation_and_zero_biases_of_attention() -> None:
    transformer = Transformer(64, 4, 128, 1, 1)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1:
            limit = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * limit < parameter.abs().max() <= limit, name
        elif "in_proj_bias" in name or "out_proj.bias" in name:
            assert parameter.abs().max() == 0, name


def test_dropout_only_in_training() -> None:
    transformer = Transformer(D, M, HIDDEN, 1, 1, dropout=0.5)
    arguments = (
        torch.randn(1, 5, D),
        torch.zeros(1, 5, dtype=torch.bool),
        torch.randn(1, 5, D),
        torch.randn(3, D),
    )
    assert not torch.equal(transformer(*arguments), transformer(*arguments))
    transformer.eval()
    assert torch.equal(transformer(*arguments), transformer(*arguments))


def test_with_position() -> None:
    x, position = torch.randn(3), torch.randn(3)
    assert with_position(x, None) is x
    assert torch.equal(with_position(x, position), x + position)


@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer, DeformableEncoderLayer, DeformableDecoderLayer])
def test_every_branch_and_the_hidden_layer_have_their_dropout(kind: Any) -> None:
    """With a share of 1 nothing but the residual is left."""
    x, memory = torch.randn(2, 6, 32), torch.randn(2, 6, 32)
    shapes, reference = [(2, 3)], torch.rand(2, 6, 1, 2)
    sizes, given = {
        EncoderLayer: ((), (x,)),
        DecoderLayer: ((), (x, memory)),
        DeformableEncoderLayer: ((1, 2), (x, x, reference, shapes, None)),
        DeformableDecoderLayer: ((1, 2), (x, x, reference, memory, shapes, None)),
    }[kind]
    layer = kind(32, 2, 48, *sizes, 1.0).train()
    for name, parameter in layer.named_parameters():  # what is not dropped is then seen
        if name.endswith(("linear2.bias", "out_proj.bias", "output_proj.bias")):
            nn.init.normal_(parameter)
    expected = x
    for norm in (module for module in layer.modules() if isinstance(module, nn.LayerNorm)):
        expected = norm(expected)
    torch.testing.assert_close(layer(*given), expected)
    assert torch.equal(layer.feed_forward(x), layer.linear2.bias.expand_as(x))
