"""Transformer blocks against torch's own, positions against the published formulas."""

import math

import pytest
import torch
from torch import nn

from models.layers import (
    Attention,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    grid_positions,
    sequence_positions,
)

DIM, HEADS, FEEDFORWARD = 16, 4, 24


def copy_attention(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    """Give torch's attention our weights."""
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in projections])
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in projections])
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def randomise(module: nn.Module) -> nn.Module:
    """Random values for every parameter: fresh layer norms and biases would hide a mistaken one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def padding(*lengths: int, total: int) -> torch.Tensor:
    return torch.arange(total) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_torch(pre_norm):
    torch.manual_seed(0)
    ours = randomise(EncoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, pre_norm))
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=pre_norm)
    copy_attention(theirs.self_attn, ours.attention)
    theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feedforward[3].state_dict())
    theirs.norm1.load_state_dict(ours.attention_residual.norm.state_dict())
    theirs.norm2.load_state_dict(ours.feedforward_residual.norm.state_dict())
    tokens, is_pad = torch.randn(2, 5, DIM), padding(5, 3, total=5)

    expected = theirs(tokens, src_key_padding_mask=is_pad)

    torch.testing.assert_close(ours(tokens, torch.zeros(5, DIM), is_pad), expected)
    first_two = ours(tokens, torch.zeros(5, DIM), is_pad, 2)
    torch.testing.assert_close(first_two, expected[:, :2])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_equals_torch(pre_norm):
    torch.manual_seed(0)
    ours = randomise(DecoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, pre_norm))
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=pre_norm)
    copy_attention(theirs.self_attn, ours.self_attention)
    copy_attention(theirs.multihead_attn, ours.cross_attention)
    theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feedforward[3].state_dict())
    residuals = (ours.self_residual, ours.cross_residual, ours.feedforward_residual)
    for norm, residual in zip((theirs.norm1, theirs.norm2, theirs.norm3), residuals, strict=True):
        norm.load_state_dict(residual.norm.state_dict())
    targets, memory = torch.randn(1, 6, DIM), torch.randn(3, 5, DIM)
    no_positions = torch.zeros(6, DIM), torch.zeros(5, DIM)

    expected = theirs(targets.expand(3, -1, -1), memory)

    torch.testing.assert_close(ours(targets.expand(3, -1, -1), memory, *no_positions), expected)
    torch.testing.assert_close(ours(targets, memory, *no_positions), expected)  # one row for all samples


def test_positions_reach_queries_and_keys_but_not_values():
    torch.manual_seed(0)
    layer = EncoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, pre_norm=True)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    copy_attention(theirs, layer.attention)
    tokens, positions = torch.randn(2, 5, DIM), torch.randn(5, DIM)
    normed = layer.attention_residual.norm(tokens)

    attended = theirs(normed + positions, normed + positions, normed)[0] + tokens

    expected = attended + layer.feedforward(layer.feedforward_residual.norm(attended))
    torch.testing.assert_close(layer(tokens, positions), expected)


def test_attention_drops_only_in_training():
    torch.manual_seed(0)
    attention, tokens = Attention(DIM, HEADS, dropout=0.5), torch.randn(1, 8, DIM)
    assert not torch.equal(attention(tokens, tokens, tokens), attention(tokens, tokens, tokens))
    attention.eval()
    assert torch.equal(attention(tokens, tokens, tokens), attention(tokens, tokens, tokens))


def test_encoder_ignores_padded_tokens():
    torch.manual_seed(0)
    encoder = Encoder(2, DIM, HEADS, FEEDFORWARD, 0.0, pre_norm=True)
    tokens, positions, is_pad = torch.randn(1, 5, DIM), torch.randn(5, DIM), padding(3, total=5)

    expected = encoder(tokens[:, :3], positions[:3])

    torch.testing.assert_close(encoder(tokens, positions, is_pad)[:, :3], expected)


def test_sequence_positions_follow_the_formula():
    table = sequence_positions(7, 6)
    for position in range(7):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_grid_positions_follow_the_formula():
    height, width, dim = 3, 5, 8
    table = grid_positions(height, width, dim).view(height, width, dim)
    for row in range(height):
        for column in range(width):
            axes = (2 * math.pi * (row + 1) / height, 2 * math.pi * (column + 1) / width)
            expected = [
                function(axis / 10000 ** (2 * i / (dim // 2)))
                for axis in axes
                for i in range(dim // 4)
                for function in (math.sin, math.cos)
            ]
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-6)
