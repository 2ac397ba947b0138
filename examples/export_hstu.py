"""A generative recommender on its way to TensorRT: export, fuse, prove equal to PyTorch, write the build configuration.

    python examples/export_hstu.py [FOLDER]

Needs the extra `torch`. At the end it does the same for a model that a script of its own has exported: three lines more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import onnx_fuse
from examples.models.generative_recommender import GenerativeRecommender

ITEMS, DENSE, LENGTH = 1000, 6, 64
NAMES = ("input_ids", "attention_mask", "position_ids", "dense_features", "timestamps")
SEQUENCES = {name: {0: "batch", 1: "sequence"} for name in NAMES if name != "dense_features"}


def example(batch: int = 3, length: int = 12) -> tuple[torch.Tensor, ...]:
    """Padded sequences of item ids with their positions and times, and the users' dense features."""
    input_ids = torch.randint(1, ITEMS, (batch, length))
    attention_mask = torch.ones(batch, length, dtype=torch.long)
    attention_mask[0, length // 2 :] = 0
    position_ids = torch.arange(length).repeat(batch, 1)
    timestamps = torch.randint(1, 600, (batch, length)).cumsum(1)
    return input_ids, attention_mask, position_ids, torch.randn(batch, DENSE), timestamps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/hstu"), help="where the files go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = GenerativeRecommender(ITEMS, DENSE, max_length=LENGTH).eval()

    done = onnx_fuse.export(
        model,
        example(),
        folder / "recommender.onnx",
        dynamic_shapes={**SEQUENCES, "dense_features": {0: "batch"}},
        sizes={"batch": [1, 8, 32], "sequence": [8, 32, LENGTH]},
        select="all",  # by default it fuses what is predicted to pay, and at sizes as small as these nothing is
    )
    compared = json.loads(done.summary.read_text())["verification"]["pytorch"]["fused"]
    print(f"fused: {done.report.fused}, {done.report.nodes_before} nodes before, {done.report.nodes_after} after")
    print(
        f"apart from PyTorch, of the largest value: {max(compared['worst'].values()):.1e}, {len(compared['cases'])} cases"
    )
    print(done.trtexec.read_text())

    own = folder / "own.onnx"
    torch.onnx.export(model, example(), str(own), dynamo=False, opset_version=17, input_names=list(NAMES))
    # The three lines: a model that is exported already is fused, proven equal to PyTorch, and gets its build configuration.
    done = onnx_fuse.finish_export(own, model, example(), select="all")
    print(f"exported by a script of its own: {done.report.fused}")
    print("\n".join(str(path) for path in (done.standard, done.fused, done.build, done.trtexec, done.summary)))


if __name__ == "__main__":
    main()
