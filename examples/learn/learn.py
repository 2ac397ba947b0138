"""Three modules nobody wrote a fusion for: learned from examples, then found in a model that uses all of them.

    python examples/learn/learn.py

The model is exported by the other exporter than the one that was learned from, and has other weights. Needs the extra `torch`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from gated_cross import GatedCross
from power_pooling import PowerPooling
from sigmoid_attention import SigmoidAttention

import onnx_fuse
from onnx_fuse.learning import from_torch


class Ranker(nn.Module):
    """Two attention layers, a pooling, two cross layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleList(SigmoidAttention() for _ in range(2))
        self.norm = nn.LayerNorm(32)
        self.pooling = PowerPooling()
        self.crosses = nn.ModuleList(GatedCross() for _ in range(2))
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for attention in self.attention:
            x = self.norm(x + attention(x, mask))
        pooled = self.pooling(torch.sigmoid(x), lengths)
        crossed = torch.relu(pooled)
        for cross in self.crosses:
            crossed = cross(pooled, crossed)
        return self.head(crossed)


def main() -> None:
    torch.manual_seed(0)
    fusions = []
    for module in (SigmoidAttention, GatedCross, PowerPooling):
        fusion = from_torch(
            module(), module.example_inputs(), dynamic_shapes=module.dynamic_shapes, exporters=("dynamo",)
        )
        fusions.append(fusion)
        print(f"{fusion.name}({', '.join(fusion.operator.inputs)})")
        for note in fusion.notes:
            if note.kind == "fixed":
                print(f"  fixed: {note.name}: {note.text}")

    inputs = (torch.randn(3, 5, 32), torch.ones(3, 5), torch.tensor([2, 5, 1]))
    axes = {"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}, "lengths": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranker.onnx"
        done = onnx_fuse.export(
            Ranker(), inputs, path, dynamic_shapes=axes, sizes={"batch": [1, 8]}, dynamo=False, opset=17, enable=fusions
        )
        print(f"fused: {done.report.fused}; {done.report.nodes_before} nodes before, {done.report.nodes_after} after")
        print(done.trtexec.read_text())


if __name__ == "__main__":
    main()
