"""The transformer of ADTR and ADTR+, which reconstructs backbone features, and how its errors are scored.

Zhiyuan You, Kai Yang, Wenhan Luo, Lei Cui, Yu Zheng, Xinyi Le; ICONIP 2022, arXiv 2209.01816, without public code. What
the paper leaves open is as in the same authors' code for their next method, UniAD (no second norm after the encoder,
dropout 0.1, Glorot's initial weights), or ours: positions are added to queries and keys, not to values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

DEVIATION = 0.02  # of initial queries and positions
PARTS = 16  # image scores are means over windows of this fraction of the image's sides: 16 of 256 pixels


class Block(nn.Module):
    """A layer of torch's encoder or decoder (norms last, ReLU), with positions added to queries and keys."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, attentions: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(width, heads, dropout, batch_first=True) for _ in range(attentions)
        )
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(attentions + 1))
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor, encoded: Tensor | None = None) -> Tensor:
        """(B, L, D) tokens, (L, D) positions -> (B, L, D); a second attention is to the encoder's tokens (B, L, D)."""
        for number, attention in enumerate(self.attentions):
            source = tokens if number == 0 or encoded is None else encoded
            found = attention(tokens + positions, source + positions, source, need_weights=False)[0]
            tokens = self.norms[number](tokens + self.drop(found))
        result: Tensor = self.norms[-1](tokens + self.drop(self.hidden(tokens)))
        return result


class FeatureTransformer(nn.Module):
    """Encoder and decoder between two linear layers, which are 1 x 1 convolutions over the grid.

    Args:
        channels: C of the features.
        tokens: L, positions of the grid.
        width: D inside; a multiple of `heads`.
        layers: of the encoder, and of the decoder.
        hidden: width between the two linear layers of each.

    Raises:
        UsageError: a width that the heads cannot share.
    """

    def __init__(
        self, channels: int, tokens: int, width: int, heads: int, layers: int, hidden: int, dropout: float
    ) -> None:
        if width < 1 or heads < 1 or width % heads:
            raise UsageError(f"method.width={width}: expected a multiple of method.heads={heads}")
        super().__init__()
        self.reduce, self.restore = nn.Linear(channels, width), nn.Linear(width, channels)
        self.encoder = nn.ModuleList(Block(width, heads, hidden, dropout, 1) for _ in range(layers))
        self.decoder = nn.ModuleList(Block(width, heads, hidden, dropout, 2) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.positions = nn.Parameter(torch.empty(tokens, width).normal_(std=DEVIATION))
        self.queries = nn.Parameter(torch.empty(tokens, width).normal_(std=DEVIATION))

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        encoded = self.reduce(features)
        for block in self.encoder:
            encoded = block(encoded, self.positions)
        decoded = self.queries.expand_as(encoded)
        for block in self.decoder:
            decoded = block(decoded, self.positions, encoded)
        restored: Tensor = self.restore(self.norm(decoded))
        return restored


def grid_features(levels: Sequence[Tensor], side: int) -> Tensor:
    """(B, C, side, side): all levels, averaged over cells, or enlarged bilinearly where the grid is finer."""
    parts = [
        F.adaptive_avg_pool2d(level, side)
        if min(level.shape[2:]) >= side
        else F.interpolate(level, (side, side), mode="bilinear")
        for level in levels
    ]
    return torch.cat(parts, dim=1)


def tokens(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return features.flatten(2).transpose(1, 2)


def scored(errors: Tensor, side: int, size: Sequence[int]) -> Scores:
    """(B, side * side, C) errors of reconstruction -> their norms, enlarged; image scores are highest local means."""
    norms = torch.linalg.vector_norm(errors, dim=2).view(-1, 1, side, side)
    maps = F.interpolate(norms, tuple(size), mode="bilinear")
    window = [max(1, length // PARTS) for length in size]
    return Scores(F.avg_pool2d(maps, window, stride=1).amax(dim=(1, 2, 3)), maps[:, 0])
