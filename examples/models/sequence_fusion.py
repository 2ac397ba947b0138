"""Hierarchical sequence fusion: each position of a sequence enriched by the levels of a hierarchy that it belongs to.

A level (session, day, week, long-term interest, ...) is a learnt vector E_l. Each position attends to the levels with a
Softmax, and a gate says how much of the mixture it takes; means over windows of several widths may be added. This is additive
attention over a small memory ("End-to-End Memory Networks", arXiv 1503.08895) behind a highway gate (arXiv 1505.00387).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HierarchicalSequenceFusion(nn.Module):
    """f = sum_l softmax(<x, E_l> / temperature) E_l,  g = sigmoid(<f, x> / H),  y = g f + (1 - g) x.

    Args:
        hidden: H.
        levels: L.
        temperature: of the Softmax.
        windows: odd widths of windows; the mean of x over each is added to y, times its weight.
        count_padding: whether positions beyond the ends count as zeros, rather than not at all.
    """

    def __init__(
        self,
        hidden: int,
        levels: int,
        temperature: float = 1.0,
        windows: Sequence[int] = (),
        window_weights: Sequence[float] = (),
        *,
        count_padding: bool = False,
    ) -> None:
        super().__init__()
        if any(width % 2 == 0 for width in windows):
            raise ValueError(f"windows are {tuple(windows)}, they must be odd")
        self.levels = nn.Parameter(torch.randn(levels, hidden))
        self.temperature = temperature
        self.windows = tuple(zip(windows, window_weights, strict=True))
        self.count_padding = count_padding

    def forward(self, x: Tensor, level_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, S, H], level_mask [B, S, L] (bool: which levels a position belongs to) -> y [B, S, H], weights [B, S, L].

        A position without any level has the weights 0, and y = x / 2.
        """
        scores = x @ self.levels.T / self.temperature
        if level_mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~level_mask, float("-inf")).softmax(-1)
            weights = weights.masked_fill(~level_mask, 0.0)
        mixed = weights @ self.levels
        gate = torch.sigmoid((mixed * x).sum(-1, keepdim=True) / x.shape[-1])
        y = gate * mixed + (1 - gate) * x
        for width, weight in self.windows:
            pooled = F.avg_pool1d(
                x.transpose(1, 2), width, stride=1, padding=width // 2, count_include_pad=self.count_padding
            )
            y = y + weight * pooled.transpose(1, 2)
        return y, weights
