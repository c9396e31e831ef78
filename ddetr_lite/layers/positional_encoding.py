"""Encodings of position: sines in one and two dimensions, and a learned table.

Attention treats its input as a set; a vector that depends on the position is added to each token (or, in DETR, to each
query and key) so that order and place can be seen. Letters: B pictures, N positions, H × W feature map, d channels.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn


def sine_encoding_1d(
    length: int,
    dim: int,
    layout: Literal["interleaved", "halves"] = "interleaved",
    temperature: float = 10000.0,
    start: int = 0,
) -> Tensor:
    """Sines and cosines of the positions start .. start+length−1 at dim/2 wavelengths. Returns (N, d), float32.

    `interleaved` is section 3.5 of "Attention Is All You Need": channel 2i is sin(p / T^(2i/d)), 2i+1 its cosine.
    `halves` is Tensor2Tensor's form, drawn in many tutorials: all sines left, all cosines right, and exponents
    i/(d/2 − 1), so that the last wavelength is exactly 2π·T. Raises ValueError for an odd `dim`.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim={dim} must be even and positive: every wavelength takes a sine and a cosine")
    positions = torch.arange(start, start + length, dtype=torch.float64)
    if layout == "interleaved":
        return sine_encoding_of(positions, dim, temperature).float()
    if layout != "halves":
        raise ValueError(f"layout={layout!r} is unknown: choose 'interleaved' or 'halves'")
    exponents = torch.arange(dim // 2, dtype=torch.float64) / max(dim // 2 - 1, 1)
    angles = positions[:, None] / temperature**exponents  # (N, d/2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


def sine_encoding_of(values: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sine encoding of real numbers (already multiplied by 2π where wanted): (...) → (..., d)."""
    steps = torch.arange(dim // 2, dtype=values.dtype, device=values.device)
    angles = values[..., None] / temperature ** (2 * steps / dim)  # (..., d/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def sine_encoding_2d(
    padding: Tensor, dim: int, convention: Literal["detr", "deformable"] = "detr", temperature: float = 10000.0
) -> Tensor:
    """The encoding of every cell of a feature map: d/2 channels for y, then d/2 for x.

    padding: (B, H, W), True where a cell is padding; coordinates are counted over real cells only and scaled so that
    each picture spans 0..2π, whatever its size. Returns (B, H, W, d), float32.
    `detr` puts cell i at (i+1)/H; `deformable` subtracts a half first, so that cells sit at their centres.
    Source: `models/position_encoding.py` of both official repositories. Raises ValueError when d is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be a multiple of 4: half for y, half for x, each in sines and cosines")
    if convention not in ("detr", "deformable"):
        raise ValueError(f"convention={convention!r} is unknown: choose 'detr' or 'deformable'")
    shift = 0.5 if convention == "deformable" else 0.0
    real = ~padding
    # Whole numbers: only of them CUDA has a deterministic sum.
    y, x = real.cumsum(1).float(), real.cumsum(2).float()  # (B, H, W): 1, 2, 3 ... over the real cells
    y = (y - shift) / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = (x - shift) / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    return torch.cat([sine_encoding_of(y, dim // 2, temperature), sine_encoding_of(x, dim // 2, temperature)], dim=-1)


class LearnedEncoding2d(nn.Module):
    """One trained vector for each row and one for each column, side by side (x first, as in DETR's official code).

    Parameters: `row_embed.weight`, `col_embed.weight`, each (max_size, d/2).
    """

    def __init__(self, dim: int, max_size: int = 50):
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} must be even: half for the column, half for the row")
        self.row_embed = nn.Embedding(max_size, dim // 2)
        self.col_embed = nn.Embedding(max_size, dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """padding: (B, H, W), whose shape alone matters. Returns (B, H, W, d)."""
        batch, height, width = padding.shape
        if max(height, width) > self.row_embed.num_embeddings:
            raise ValueError(
                f"feature map {height}×{width} is larger than the {self.row_embed.num_embeddings} learned rows and "
                "columns: enlarge max_size"
            )
        column = self.col_embed.weight[:width].expand(height, -1, -1)  # (H, W, d/2)
        row = self.row_embed.weight[:height, None].expand(-1, width, -1)  # (H, W, d/2)
        return torch.cat([column, row], dim=-1).expand(batch, -1, -1, -1)
