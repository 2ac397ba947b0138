"""The model of what a kernel reaches: its worked values, and where it stops growing."""

from __future__ import annotations

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import roofline


@pytest.mark.parametrize(
    ("blocks", "moved", "serial", "share"),
    [
        (6, 8 * 3 * 256 * 2, 1, 0.93),  # residual + norm of 256 columns, 8 rows a block
        (9, 2 * 2 * 256 * 2, 6, 0.11),  # three embeddings + norm of 256 columns, one table of which is in memory
        (12, 8 * 26 * 16 * 2, 7, 0.42),  # 26 features of 16 numbers, four at a time
    ],
)
def test_share_of_bandwidth(blocks: float, moved: float, serial: int, share: float) -> None:
    assert roofline.share_of_bandwidth(blocks, moved, serial) == pytest.approx(share, abs=0.005)


def test_share_of_bandwidth_grows_with_what_is_in_flight() -> None:
    shares = [roofline.share_of_bandwidth(blocks, 4096, 2) for blocks in (1, 2, 4, 8, 16, 32)]
    assert shares == sorted(shares) and shares[0] * 2 == pytest.approx(shares[1])
    assert shares[-1] == roofline.HIGHEST_SHARE
    assert roofline.share_of_bandwidth(1, 4096, 3) < shares[0]


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "blocks"),
    [
        (90, 256, 32, 0, 8),  # threads
        (90, 32, 16, 0, 32),  # blocks
        (90, 256, 255, 0, 1),  # registers: 255 are given out as 256
        (90, 128, 168, 0, 3),
        (80, 128, 64, 40 * 1024, 4),  # shared memory, with the kilobyte that each block takes beside
        (90, 128, 64, 227 * 1024, 1),
        (86, 128, 32, 0, 12),
    ],
)
def test_resident_blocks(capability: int, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert roofline.resident_blocks(capability, threads, registers, shared) == blocks


@pytest.mark.parametrize(
    ("size", "instructions", "share"),
    [(32, 32.1, 0.12), (64, 32.2, 0.25), (128, 32.9, 0.49), (64, 8, 1.0), (32, 4, 0.5)],
)
def test_share_of_products(size: int, instructions: float, share: float) -> None:
    """Attention on sm_90: a score of `size` takes 4 * size operations on tensor cores, one special instruction, and so many others."""
    scores = 128 * 128 // 8
    found = roofline.share_of_products(90, 4 * size * scores, instructions * scores / 32, scores / 32)
    assert found == pytest.approx(share, abs=0.005)


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="sm_61"):
        roofline.resident_blocks(61, 128, 32, 0)
