"""Generalised-mean pooling (GeM, arXiv 1711.02512) over sequences of unequal length, its power learned.

onnx-fuse learn examples/learn/power_pooling.py:PowerPooling -o power_pooling.onnx
"""

from __future__ import annotations

import torch
from torch import nn


class PowerPooling(nn.Module):
    """(mean over the first `lengths` positions of max(x, 1e-6)^p)^(1/p): x [B, S, 32], lengths [B] -> [B, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        keep = (positions[None, :] < lengths[:, None]).to(x.dtype)[:, :, None]
        total = (x.clamp(min=1e-6) ** self.p * keep).sum(1)
        return (total / keep.sum(1).clamp(min=1.0)) ** (1.0 / self.p)

    @staticmethod
    def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs to learn from."""
        return torch.rand(2, 6, 32), torch.tensor([4, 6])

    dynamic_shapes = {"x": {0: "B", 1: "S"}, "lengths": {0: "B"}}  # noqa: RUF012
