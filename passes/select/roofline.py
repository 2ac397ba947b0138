"""What a kernel can reach on a GPU, from what its compiled code tells: a model, of which nothing has been measured.

Nothing here knows an operator or a compiler: `kernel_table.py` has what machine code tells, `plugin_facts.py` what plugins launch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.cost_model import HIGHEST_SHARE, Device
from onnx_fuse.passes.select.kernel_table import Kernel


@dataclass(frozen=True)
class Multiprocessor:
    """One multiprocessor of an architecture, by NVIDIA's programming guide and the whitepapers.

    Attributes:
        threads, blocks: that can be resident.
        shared: bytes of shared memory for all of them; each block takes `RESERVED` more than it asks for.
        products: multiplications and additions of 16-bit matrices a cycle, summed in float32.
        float32: multiplications and additions of plain float32 a cycle.
    """

    threads: int
    blocks: int
    shared: int
    products: int
    float32: int


MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 * 1024, 2048, 128),
    86: Multiprocessor(1536, 16, 100 * 1024, 1024, 256),
    89: Multiprocessor(1536, 24, 100 * 1024, 1024, 256),
    90: Multiprocessor(2048, 32, 228 * 1024, 4096, 256),
    100: Multiprocessor(2048, 32, 228 * 1024, 8192, 256),
    120: Multiprocessor(1536, 24, 100 * 1024, 1024, 256),
}
"""Compute capability, 90 for sm_90 -> what one of its multiprocessors has."""
RESERVED = 1024
REGISTERS = 65536
_REGISTERS_OF_A_WARP = 256
"""Registers are given out to a warp in these portions."""
_ISSUED, _SPECIAL = 4, 0.5
"""Instructions of a warp that are issued in a cycle, and those of the special function unit that run in one."""

LATENCY, START = 0.75, 0.5
"""Microseconds that a load waits for memory, and that a block takes beside its loads."""
KILOBYTES = 32.6
"""Kilobytes in a microsecond: what one multiprocessor of an H200 has of the bandwidth of a copy, 4.3 TB/s over 132."""
ALONE = 3.0
"""How much more than its part of the bandwidth a multiprocessor draws while others are idle: 64 bytes a cycle come from the L2."""


@dataclass(frozen=True)
class Launch:
    """A kernel that is started.

    Attributes:
        kernel: what its machine code tells.
        programs: its blocks.
        bytes: that it reads and writes at least.
        products: multiplications and additions of its matrix products.
        serial_loads: loads of a block that wait for one another.
        pieces: that its blocks make; more than blocks where these stay, and take one piece after the other.
        tiles: of attention, all blocks together: those in which every key counts, and those with the diagonal or the end of the
            keys.
    """

    kernel: Kernel
    programs: int
    bytes: int
    products: float = 0.0
    serial_loads: int = 1
    pieces: int = 0
    tiles: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a launch is predicted to take.

    Attributes:
        seconds: all of it, with the launch.
        share_of_bandwidth: part of the bandwidth of a copy that it can use.
        share_of_products: part of the rate of matrix products that its main loop leaves; None where it has none.
        waves: how often the blocks that are resident on the whole GPU are replaced, and the last time counts in parts.
        limited_by: "memory", "products" or "launch".
    """

    seconds: float
    share_of_bandwidth: float
    share_of_products: float | None
    waves: float
    limited_by: str


def predict(launch: Launch, device: Device) -> Prediction:
    """How long a launch takes on a device: its bytes or its products, whichever take longer, and the launch.

    Raises:
        UsageError: the architecture is not known.
    """
    kernel, capability = launch.kernel, device.capability
    blocks = resident_blocks(capability, kernel.threads, kernel.registers, kernel.shared)
    waves = launch.programs / (max(blocks, 1) * device.multiprocessors)
    per_multiprocessor = launch.programs / device.multiprocessors
    share = None
    if launch.products and kernel.products:
        share = share_of_products(
            capability, kernel.products, kernel.instructions, kernel.special, is_float32=kernel.is_float32
        )
        # What it reads is loaded ahead; a multiprocessor without a block reads nothing.
        bandwidth = HIGHEST_SHARE * min(1.0, ALONE * per_multiprocessor)
    else:
        pieces = launch.pieces or launch.programs
        of_the_h200 = device.bandwidth / device.multiprocessors / _BANDWIDTH_OF_ONE
        bandwidth = share_of_bandwidth(
            min(float(blocks), per_multiprocessor), launch.bytes / pieces, launch.serial_loads, KILOBYTES * of_the_h200
        )
    seconds = {
        "memory": launch.bytes / (bandwidth * cost_model.COPY_SHARE * device.bandwidth),
        "products": _seconds_of_products(launch, device, share) * math.ceil(waves) / waves,
        "launch": cost_model.LAUNCH,
    }
    what = max(seconds, key=lambda name: seconds[name])
    total = cost_model.LAUNCH + max(seconds["memory"], seconds["products"])
    return Prediction(total, bandwidth, share, waves, what)


_H200 = cost_model.DEVICES["H200"]
_BANDWIDTH_OF_ONE = _H200.bandwidth / _H200.multiprocessors


def _seconds_of_products(launch: Launch, device: Device, share: float | None) -> float:
    """How long its products take, all blocks together: whole tiles, and each at the share that its loop leaves."""
    if share is None:
        return 0.0
    kernel = launch.kernel
    rate = cost_model.PRODUCT_SHARE * (device.float32 if kernel.is_float32 else device.half)
    if launch.tiles is None:
        return launch.products / (share * rate)
    full, rim = launch.tiles
    of_a_tile = 4.0 * kernel.tile["SIZE"] * kernel.tile["ROWS"] * kernel.tile["COLUMNS"]
    rim_share = share_of_products(
        device.capability, kernel.products, kernel.rim, kernel.special, is_float32=kernel.is_float32
    )
    return of_a_tile * (full / share + rim / rim_share) / rate


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


def share_of_bandwidth(
    blocks: float, bytes_of_a_block: float, serial_loads: int, kilobytes: float = KILOBYTES
) -> float:
    """Part of the bandwidth of a copy that a kernel reaches which streams: what is in flight on a multiprocessor, by how long a
    block takes.

    Args:
        blocks: resident on a multiprocessor, on average over all of them.
        bytes_of_a_block: that it reads from memory and writes.
        serial_loads: loads that wait for another, and the first: of look-ups the ids and then the rows.
        kilobytes: a microsecond that a multiprocessor has of that bandwidth.
    """
    microseconds = serial_loads * LATENCY + START
    return min(HIGHEST_SHARE, blocks * bytes_of_a_block / 1024 / microseconds / kilobytes)


def share_of_products(
    capability: int, products: float, instructions: float, special: float, *, is_float32: bool = False
) -> float:
    """Part of the rate of matrix products that a loop reaches at best: its instructions have to be issued as well.

    Args:
        capability: 90 for sm_90.
        products: multiplications and additions, of a warp, once through the loop.
        instructions: of a warp, once through the loop.
        special: those among them of the special function unit.
        is_float32: they are plain instructions, and not those of tensor cores.

    Raises:
        UsageError: the architecture is not known.
    """
    found = _multiprocessor(capability)
    busy = products / (found.float32 if is_float32 else found.products)
    return busy / max(busy, instructions / _ISSUED, special / _SPECIAL)
