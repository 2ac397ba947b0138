"""What a kernel can reach on a GPU, from what its compiled code tells: a model, of which nothing has been measured.

Nothing here knows a kernel or a compiler; `benchmarks/kernel_costs.py` fills in what machine code and launches say.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fuse.errors import UsageError


@dataclass(frozen=True)
class Multiprocessor:
    """One multiprocessor of an architecture, by NVIDIA's programming guide and the whitepapers.

    Attributes:
        threads, blocks: that can be resident.
        shared: bytes of shared memory for all of them; each block takes `RESERVED` more than it asks for.
        products: multiplications and additions of 16-bit matrices a cycle, summed in float32.
    """

    threads: int
    blocks: int
    shared: int
    products: int


MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 * 1024, 2048),
    86: Multiprocessor(1536, 16, 100 * 1024, 1024),
    89: Multiprocessor(1536, 24, 100 * 1024, 1024),
    90: Multiprocessor(2048, 32, 228 * 1024, 4096),
    100: Multiprocessor(2048, 32, 228 * 1024, 8192),
    120: Multiprocessor(1536, 24, 100 * 1024, 1024),
}
"""Compute capability, 90 for sm_90 -> what one of its multiprocessors has."""
RESERVED = 1024
REGISTERS = 65536
_REGISTERS_OF_A_WARP = 256
"""Registers are given out to a warp in these portions."""
_ISSUED, _SPECIAL = 4, 0.5
"""Instructions of a warp that are issued in a cycle, and those of the special function unit that run in one."""

HIGHEST_SHARE = 0.93
"""Part of the bandwidth that a copy reaches at best."""
LATENCY, START = 0.75, 0.5
"""Microseconds that a load waits for memory, and that a block takes beside its loads."""
KILOBYTES = 32.6
"""Kilobytes in a microsecond: what one multiprocessor of an H200 has of the bandwidth of a copy, 4.3 TB/s over 132."""


def _multiprocessor(capability: int) -> Multiprocessor:
    if capability not in MULTIPROCESSORS:
        known = ", ".join(f"sm_{item}" for item in MULTIPROCESSORS)
        raise UsageError(f"Nothing is known of the multiprocessors of sm_{capability}.", f"Choose among {known}.")
    return MULTIPROCESSORS[capability]


def resident_blocks(capability: int, threads: int, registers: int, shared: int) -> int:
    """Blocks that run on one multiprocessor at a time.

    Args:
        capability: 90 for sm_90.
        threads: of a block.
        registers: of a thread.
        shared: bytes of shared memory of a block.

    Raises:
        UsageError: the architecture is not known.
    """
    found = _multiprocessor(capability)
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // _REGISTERS_OF_A_WARP) * _REGISTERS_OF_A_WARP
    limits = (
        found.blocks,
        found.threads // (32 * warps),
        REGISTERS // (of_a_warp * warps),
        found.shared // (shared + RESERVED),
    )
    return min(limits)


def share_of_bandwidth(blocks: float, bytes_of_a_block: float, serial_loads: int) -> float:
    """Part of an H200's bandwidth that a kernel reaches which streams: what is in flight on a multiprocessor, by how long a block
    takes.

    Args:
        blocks: resident on a multiprocessor, on average over all of them.
        bytes_of_a_block: that it reads from memory and writes.
        serial_loads: loads that wait for another, and the first: of look-ups the ids and then the rows.
    """
    microseconds = serial_loads * LATENCY + START
    return min(HIGHEST_SHARE, blocks * bytes_of_a_block / 1024 / microseconds / KILOBYTES)


def share_of_products(capability: int, products: float, instructions: float, special: float) -> float:
    """Part of the rate of matrix products that a loop reaches at best: its instructions have to be issued as well.

    Args:
        capability: 90 for sm_90.
        products: multiplications and additions on tensor cores, of a warp, once through the loop.
        instructions: of a warp, once through the loop.
        special: those among them of the special function unit.

    Raises:
        UsageError: the architecture is not known.
    """
    busy = products / _multiprocessor(capability).products
    return busy / max(busy, instructions / _ISSUED, special / _SPECIAL)
