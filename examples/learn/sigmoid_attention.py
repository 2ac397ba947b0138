"""Attention with a sigmoid in place of the Softmax (arXiv 2409.04431), by a Triton kernel on a GPU and in plain torch elsewhere.

    onnx-fuse learn examples/learn/sigmoid_attention.py:SigmoidAttention -o sigmoid_attention.onnx

An exporter sees the plain torch form, and so does whoever learns a fusion from it. The operator that comes of it has that form
as its body; the Triton kernel is what a plugin for it would hold.
"""

from __future__ import annotations

import math

import torch
from torch import nn

try:
    import triton
    import triton.language as tl
except ImportError:  # without Triton there is the plain form
    triton = None


if triton is not None:

    @triton.jit
    def attend(q, k, v, bias, mask, out, heads, length, scale, SIZE: tl.constexpr, BLOCK: tl.constexpr):
        """One block of queries of one head; q, k, v, out: [batch * heads, length, SIZE], mask: [batch, length]."""
        pair, block = tl.program_id(0), tl.program_id(1)
        rows, columns = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SIZE)
        base = pair * length * SIZE
        inside = rows[:, None] < length
        queries = tl.load(q + base + rows[:, None] * SIZE + columns[None, :], mask=inside, other=0.0)
        shift = tl.load(bias + pair % heads)
        total = tl.zeros((BLOCK, SIZE), dtype=tl.float32)
        for start in range(0, length, BLOCK):
            keys = start + tl.arange(0, BLOCK)
            there = keys[:, None] < length
            place = base + keys[:, None] * SIZE + columns[None, :]
            key, value = tl.load(k + place, mask=there, other=0.0), tl.load(v + place, mask=there, other=0.0)
            keep = tl.load(mask + (pair // heads) * length + keys, mask=keys < length, other=0.0)
            scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale + shift
            total += tl.dot(tl.sigmoid(scores) * keep[None, :], value, input_precision="ieee")
        tl.store(out + base + rows[:, None] * SIZE + columns[None, :], total, mask=inside)


class SigmoidAttention(nn.Module):
    """Multi-head sigmoid attention with a learned shift for each head: x [B, S, width], mask [B, S] of 0 and 1 -> [B, S, width]."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.full((heads, 1, 1), -2.0))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, self.size).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        heads = self.by_kernel if triton is not None and x.is_cuda else self.reference
        context = heads(q, k, v, mask)
        return self.out(context.transpose(1, 2).reshape(batch, length, width))

    def reference(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The definition. q, k, v: [B, heads, S, size]."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size) + self.bias
        return (torch.sigmoid(scores) * mask[:, None, None, :]) @ v

    def by_kernel(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The same by the Triton kernel, for float32 and sizes that are a power of two, 16 or more."""
        batch, heads, length, size = q.shape
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        grid = (batch * heads, triton.cdiv(length, 32))
        arguments = (q, k, v, self.bias, mask.contiguous(), out, heads, length, 1.0 / math.sqrt(size))
        attend[grid](*arguments, SIZE=size, BLOCK=32)
        return out

    @staticmethod
    def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs to learn from."""
        return torch.randn(2, 6, 32), torch.ones(2, 6)

    dynamic_shapes = {"x": {0: "B", 1: "S"}, "mask": {0: "B", 1: "S"}}  # noqa: RUF012
