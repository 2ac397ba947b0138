"""The model of what a kernel reaches: its worked values, and where it stops growing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import cost_model, roofline
from onnx_fuse.passes.select.kernel_table import Kernel


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


NORM = Kernel("norm", {"ROWS": 8}, 40, 0, 128, False, 0, 0, 0, 0)
SCORES = Kernel(
    "scores", {"ROWS": 128, "COLUMNS": 128, "SIZE": 64}, 228, 80 * 1024, 256, False, 4 * 32 * 64, 5.7, 1, 9.4
)
H100, H200 = cost_model.DEVICES["H100"], cost_model.DEVICES["H200"]


def test_a_launch_that_streams() -> None:
    launch = roofline.Launch(NORM, 4096, 100_000_000)
    found = roofline.predict(launch, H200)
    copied = 100_000_000 / (roofline.HIGHEST_SHARE * 4.3e12)
    assert found.limited_by == "memory" and found.share_of_bandwidth == roofline.HIGHEST_SHARE
    assert found.seconds == pytest.approx(cost_model.LAUNCH + copied)
    assert found.waves == pytest.approx(4096 / (12 * 132))
    assert roofline.predict(launch, H100).seconds == pytest.approx(cost_model.LAUNCH + copied * 4.8 / 3.35)
    # A slow memory needs fewer loads in flight.
    few = replace(launch, programs=64, bytes=64 * 4096)
    assert roofline.predict(few, H200).share_of_bandwidth < roofline.predict(few, H100).share_of_bandwidth


def test_a_launch_that_multiplies() -> None:
    """Tiles are counted whole, those at the rim by their own loop, and waves too."""
    tiles = roofline.Launch(SCORES, 264, 1000, 1e9, tiles=(10_000, 0))
    found = roofline.predict(tiles, H200)
    work = 4.0 * 64 * 128 * 128 * 10_000
    share = found.share_of_products
    assert share is not None and found.limited_by == "products"
    assert found.seconds == pytest.approx(cost_model.LAUNCH + work / (share * cost_model.PRODUCT_SHARE * H200.half))
    rim = roofline.predict(replace(tiles, tiles=(0, 10_000)), H200)
    assert rim.seconds - cost_model.LAUNCH == pytest.approx((found.seconds - cost_model.LAUNCH) * share * 9.4 / 8)
    half_full = roofline.predict(replace(tiles, programs=133), H200)
    assert half_full.seconds - cost_model.LAUNCH == pytest.approx((found.seconds - cost_model.LAUNCH) * 264 / 133)


def test_plain_products_are_slower_than_those_of_tensor_cores() -> None:
    plain = replace(SCORES, is_float32=True, instructions=200)
    launches = [roofline.Launch(kernel, 132, 1000, 1e12) for kernel in (SCORES, plain)]
    fast, slow = (roofline.predict(launch, H200) for launch in launches)
    assert slow.share_of_products == pytest.approx(64 * 2 / 200, abs=0.01)
    assert slow.seconds > 10 * fast.seconds
