"""FMInteraction, the second-order term of factorization machines: 0.5 * ((sum_f e_f)^2 - sum_f e_f^2), each e read once.

A block is one warp, and a thread has the same columns of all features of a sample: it adds without asking another, and has AHEAD
features on their way at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import VECTOR, element_of, start, store, table, variant
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant

AHEAD = tl.constexpr(8)
"""Features that are loaded before one is used."""
HELD = (16, 64, 256)
"""Columns that the variants for aligned rows hold."""


@triton.jit
def fm_interaction(
    e, output, batch, features, size, reduce, SAMPLES: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr
):
    size = size // STEP * STEP  # as the compiler then knows
    sample = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    present = sample < batch
    reduced = tl.zeros([SAMPLES], tl.float32)
    for first in range(0, size, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        total = tl.zeros([SAMPLES, BLOCK], tl.float32)
        square = tl.zeros([SAMPLES, BLOCK], tl.float32)
        for begin in range(0, features, AHEAD):
            read = ()
            for step in tl.static_range(AHEAD):
                row = sample * features + (begin + step)
                mask = present[:, None] & (columns < tl.where(begin + step < features, size, 0))[None, :]
                read += (tl.load(e + row[:, None] * size + columns[None, :], mask=mask, other=0.0),)
            for step in tl.static_range(AHEAD):
                value = read[step].to(tl.float32)
                total += value
                square += value * value
        value = 0.5 * (total * total - square)
        if reduce:
            reduced += tl.sum(value, 1)
        else:
            mask = present[:, None] & (columns < size)[None, :]
            store(output, (sample * size)[:, None] + columns[None, :], value, mask)
    if reduce:
        store(output, sample, reduced, present)


def pick(element: str, size: int) -> Variant:
    """The variant for embeddings of `size`; every one is accepted.

    Those that begin at multiples of 16 bytes have the smallest of `HELD` that they fit in, or the largest, in several steps; `.any`
    takes the rest.
    """
    step = VECTOR[element]
    odd = size % step != 0
    block = 64 if odd else next((held for held in HELD if size <= held), HELD[-1])
    constants = {"SAMPLES": max(1, 32 * step // block), "BLOCK": block, "STEP": 1 if odd else step}
    types = table(("*T", "e output"), ("i64", "batch"))
    name = f"fm_interaction.{element}." + ("any" if odd else str(block))
    return variant(name, fm_interaction, element, types, constants, num_warps=1, aligned=not odd)


def variants() -> Iterator[Variant]:
    return (pick(element, size) for element in TYPES for size in (*HELD, 1))


def launch(e: Any, *, reduce: bool = False) -> Any:
    """[B, D], or with `reduce` its sum over D, [B, 1], of the type of e [B, F, D].

    Arguments: e, output, batch = B (int64), features = F, size = D, reduce. Grid: ceil(B / SAMPLES).
    """
    batch, features, size = e.shape
    output = e.new_empty((batch, 1 if reduce else size))
    chosen = pick(element_of(e), size)
    start(chosen, triton.cdiv(batch, chosen.constants["SAMPLES"]), e, output, batch, features, size, int(reduce))
    return output
