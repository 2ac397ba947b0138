"""FMInteraction, the second-order term of factorization machines: 0.5 * ((sum_f e_f)^2 - sum_f e_f^2), each e read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import element_of, load, start, store, table, variant
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant

SAMPLES = 8
BLOCK = 128


@triton.jit
def pairs(e, output, batch, features, size, reduce, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    present = sample < batch
    reduced = tl.zeros([SAMPLES], tl.float32)
    for first in range(0, size, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = present[:, None] & (columns < size)[None, :]
        pointers = (sample * features * size)[:, None] + columns[None, :]
        total = tl.zeros([SAMPLES, BLOCK], tl.float32)
        square = tl.zeros([SAMPLES, BLOCK], tl.float32)
        for feature in range(features):
            value = load(e, pointers + tl.cast(feature, tl.int64) * size, mask)
            total += value
            square += value * value
        value = 0.5 * (total * total - square)
        if reduce:
            reduced += tl.sum(value, 1)
        else:
            store(output, (sample * size)[:, None] + columns[None, :], value, mask)
    if reduce:
        store(output, sample, reduced, present)


@triton.jit
def fm_interaction(e, output, batch, features, size, reduce, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    if size % 16 == 0:  # which the compiler then knows, so that rows are read in vectors
        pairs(e, output, batch, features, size // 16 * 16, reduce, SAMPLES, BLOCK)
    else:
        pairs(e, output, batch, features, size, reduce, SAMPLES, BLOCK)


def pick(element: str) -> Variant:
    """The variant for a type; every shape is accepted."""
    types = table(("*T", "e output"), ("i64", "batch"))
    constants = {"SAMPLES": SAMPLES, "BLOCK": BLOCK}
    return variant(f"fm_interaction.{element}", fm_interaction, element, types, constants)


def variants() -> Iterator[Variant]:
    return map(pick, TYPES)


def launch(e: Any, *, reduce: bool = False) -> Any:
    """[B, D], or with `reduce` its sum over D, [B, 1], of the type of e [B, F, D].

    Arguments: e, output, batch = B (int64), features = F, size = D, reduce. Grid: ceil(B / SAMPLES).
    """
    batch, features, size = e.shape
    output = e.new_empty((batch, 1 if reduce else size))
    start(pick(element_of(e)), triton.cdiv(batch, SAMPLES), e, output, batch, features, size, int(reduce))
    return output
