"""DIN: the user's history, pooled by how much each item has to do with the candidate.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (arXiv 1706.06978). The weights come from a small network
and are not normalised, unlike attention's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ActivationUnit(nn.Module):
    """Weights of history items for a candidate: a network on both, their difference and their product."""

    def __init__(self, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4 * width, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        """history [B, S, D], candidate [B, D] -> [B, S]."""
        repeated = candidate.unsqueeze(1).expand_as(history)
        together = torch.cat([history, repeated, history - repeated, history * repeated], dim=2)
        return self.network(together).squeeze(2)


class DIN(nn.Module):
    """The whole model.

    Args:
        items: number of items; 0 is padding.
        width: D, the size of an embedding.
    """

    def __init__(self, items: int = 1000, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items, width, padding_idx=0)
        self.activation = ActivationUnit(width)
        self.top = nn.Sequential(nn.Linear(3 * width, 32), nn.PReLU(), nn.Linear(32, 1))

    def forward(self, history: Tensor, candidate: Tensor, profile: Tensor) -> Tensor:
        """history [B, S] and candidate [B] item ids, profile [B, D] -> probability of a click [B, 1]."""
        items, target = self.embedding(history), self.embedding(candidate)
        weights = self.activation(items, target) * (history > 0)
        interest = (weights.unsqueeze(2) * items).sum(dim=1)
        return torch.sigmoid(self.top(torch.cat([interest, target, profile], dim=1)))
