"""A recommender on the CPU: an HSTU model, original against fused, in ONNX Runtime. `make demo` ends with it.

Where the kernel library is installed it runs the fused nodes, else their bodies do. Neither a compiler nor torch is needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository, for examples.hstu.model

import numpy as np
import onnx

import onnx_fuse
from examples.hstu.model import histories, recommender
from onnx_fuse import runtime
from onnx_fuse.cli import render
from onnx_fuse.cli.common import open_console
from onnx_fuse.errors import OnnxFuseError

ITEMS, LENGTH, LAYERS, USERS, SHOWN = 5000, 512, 3, 4, 3
LARGEST_DIFFERENCE = 1e-4  # of the largest score

console = open_console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuses an HSTU recommender and runs it in ONNX Runtime.")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the models [%(default)s]")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each model [%(default)s]")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    original, fused = folder / "hstu.onnx", folder / "hstu.fused.onnx"
    console.print(
        f"\nA recommender on this CPU: HSTU, {LAYERS} layers, histories of {LENGTH} items\n", style="bold cyan"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(recommender(ITEMS, LENGTH, LAYERS), original)
        started = time.perf_counter()
        result = onnx_fuse.fuse(original, require={"HSTUHierarchicalAttention": LAYERS})
        result.save(fused)
        render.fuse_result(console, result.report, str(original), str(fused), time.perf_counter() - started)
        compare(original, fused, arguments.rounds)
    except OnnxFuseError as error:
        sys.exit(f"error: {error.cause}\nhint: {error.remedy}")
    except OSError as error:
        sys.exit(f"error: {error}\nhint: --out names the folder for the models.")


def compare(original: Path, fused: Path, rounds: int) -> None:
    """Both models on the same histories: what they recommend, and how long it takes them."""
    before, after = runtime.OrtSession(original, threads=1), runtime.OrtSession(fused, threads=1)
    history = {"history": histories(ITEMS, LENGTH, USERS)}
    expected, found = (model.infer(history)["scores"] for model in (before, after))
    table = render.table("user", "item", "original", "fused", numbers=(0, 1, 2, 3))
    for user in range(USERS):
        for item in np.argsort(-expected[user], kind="stable")[:SHOWN]:
            render.row(table, user, item, f"{expected[user, item]:.4f}", f"{found[user, item]:.4f}")
    console.print()
    console.print(table)
    difference = float(np.abs(expected - found).max() / np.abs(expected).max())
    console.print(f"\nLargest difference of a score: {difference:.1e} of the largest (allowed {LARGEST_DIFFERENCE:g}).")
    check(difference <= LARGEST_DIFFERENCE, "the fused model scores items differently")
    best = [np.argsort(-scores, axis=1, kind="stable")[:, 0] for scores in (expected, found)]
    check(np.array_equal(*best), "the fused model recommends other items")

    # In turns, so that what slows the machine for a while slows both.
    pairs = [[model.timed(history)[1].latency for model in (before, after)] for _ in range(rounds + 2)][2:]
    kernels = after.kernels
    by = f"by the kernel library ({kernels.instructions})" if kernels.library else "by their bodies"
    table = render.table("one thread", "ms", "fused nodes", numbers=(1,))
    for name, times, how in zip(("original", "fused"), zip(*pairs, strict=True), ("", by), strict=True):
        render.row(table, name, f"{statistics.median(times) * 1e3:.1f}", how)
    console.print()
    console.print(table)
    ratio = statistics.median(fused / original for original, fused in pairs)
    console.print(f"\nThe fused model takes {ratio:.2f} of the original's time ({rounds} calls of each, in turns).")
    if kernels.library is None:
        console.print(f"Why no kernels: {kernels.reason}.", soft_wrap=True)
        console.print(
            "With the kernel library the same file runs faster. `onnx-fuse plugins build --for onnxruntime` compiles it in about "
            "a minute, with g++ and CMake; then run this again.",
        )


def check(fact: bool, otherwise: str) -> None:
    if not fact:
        sys.exit(f"error: {otherwise}")


if __name__ == "__main__":
    main()
