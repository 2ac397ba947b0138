"""Writes model.onnx: two layers with a gated norm each, in other words and with other weights than the module that was learned.

python examples/own_kernel/model.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn


class Layer(nn.Module):
    """x + W norm(silu(G x) * V x), on [B, S, 64]."""

    def __init__(self, width: int = 64, inner: int = 96) -> None:
        super().__init__()
        self.value = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner)
        self.weight = nn.Parameter(torch.rand(inner) + 0.5)
        self.out = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x)
        gated = self.value(x) * (gate * torch.sigmoid(gate))
        normed = gated / torch.sqrt((gated * gated).mean(-1, keepdim=True) + 1e-6)
        return x + self.out(self.weight * normed)


def main() -> None:
    torch.manual_seed(0)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    axes = {"x": {0: "batch", 1: "sequence"}}
    model = nn.Sequential(Layer(), Layer()).eval()
    torch.onnx.export(
        model, (torch.randn(2, 5, 64),), folder / "model.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes
    )


if __name__ == "__main__":
    main()
