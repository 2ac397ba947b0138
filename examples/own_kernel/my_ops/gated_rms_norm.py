"""A Triton kernel for the operator that was learned of GatedRMSNorm: a program takes ROWS rows, each held in registers."""

import triton
import triton.language as tl

from onnx_fuse import OwnKernel


@triton.jit
def gated_rms_norm(x, gate, weight, output, rows, H, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < H)[None, :]
    place = row[:, None] * H + column[None, :]
    gated = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    gated = gated * tl.sigmoid(gated) * tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(gated * gated, 1) / H + epsilon)
    factor = tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(output + place, (gated * scale[:, None] * factor[None, :]).to(output.dtype.element_ty), mask=inside)


GATED_RMS_NORM = OwnKernel(
    operator="gated_rms_norm.onnx",
    function=gated_rms_norm,
    sizes={"rows": "B * S"},
    grid="ceil_div(B * S, ROWS)",
    configs=[
        triton.Config({"ROWS": 4, "BLOCK": 256}, num_warps=4),
        triton.Config({"ROWS": 1, "BLOCK": 1024}, num_warps=4),
        triton.Config({"ROWS": 1, "BLOCK": 8192}, num_warps=8),
    ],
    when="H <= BLOCK",
    multiples_of_16=["H"],
)
