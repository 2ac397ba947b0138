"""The gated norm of Mamba-2 (arXiv 2405.21060): RMSNorm of x * silu(gate), as a module to learn a fusion from."""

from __future__ import annotations

import torch
from torch import nn


class GatedRMSNorm(nn.Module):
    """x, gate [B, S, H], weight [H] -> [B, S, H]. The weight is an argument so that H may be any size."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gated = x * nn.functional.silu(gate)
        return gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    @staticmethod
    def example_inputs() -> tuple[torch.Tensor, ...]:
        """Inputs to learn from."""
        return torch.randn(2, 6, 32), torch.randn(2, 6, 32), torch.rand(32)

    dynamic_shapes = {name: {0: "B", 1: "S", 2: "H"} for name in ("x", "gate")} | {"weight": {0: "H"}}
