"""A gated cross layer as in GDCN (arXiv 2311.04635): every feature times a learned mix of all, as far as a gate lets it.

onnx-fuse learn examples/learn/gated_cross.py:GatedCross -o gated_cross.onnx
"""

from __future__ import annotations

import torch
from torch import nn


class GatedCross(nn.Module):
    """x0 * (W x + b) * sigmoid(V x) + x, on [B, width]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cross = nn.Linear(width, width)
        self.gate = nn.Linear(width, width, bias=False)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x0 * self.cross(x) * torch.sigmoid(self.gate(x)) + x

    @staticmethod
    def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs to learn from."""
        return torch.randn(3, 32), torch.randn(3, 32)

    dynamic_shapes = {"x0": {0: "B"}, "x": {0: "B"}}  # noqa: RUF012
