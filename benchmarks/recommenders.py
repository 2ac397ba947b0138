"""What fuses in recommender models, and what that does to them in ONNX Runtime on the CPU.

    python benchmarks/recommenders.py

Every model of examples/models, exported with random weights: fused nodes beside those expected, nodes before and after, and the
latency of original and fused model, run in turns. ONNX Runtime executes the bodies of fused nodes, so the latency says what
fusing costs where there is no plugin, not what it gains where there is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

import onnx_fuse
from benchmarks import common
from examples.models.bert4rec import BERT4Rec
from examples.models.deepfm import DeepFM
from examples.models.din import DIN
from examples.models.dlrm import DLRM
from examples.models.generative_recommender import GenerativeRecommender, Recommendation
from examples.models.hstu import OpsHSTU, ResearchHSTU
from examples.models.sasrec import SASRec
from examples.models.two_tower import TwoTower
from onnx_fuse.versions import installed_versions
from tests.models.torch_export import EXPORTERS, Source

BATCH, LENGTH, ITEMS = 16, 30, 500

ATTENTION, EMBEDDING = "FusedAttentionLayerNorm", "FusedEmbedLayerNorm"
HSTU, DOT = "HSTUHierarchicalAttention", "InteractionTritonFast"
SEQUENCE, FM = "SequenceRecommendationInteraction", "FMInteraction"


def _history() -> torch.Tensor:
    drawn = torch.randint(1, ITEMS, (BATCH, LENGTH))
    drawn[1, -3:] = 0
    return drawn


def _times() -> torch.Tensor:
    return torch.randint(0, 10**6, (BATCH, LENGTH)).sort(-1).values


def _source(module: torch.nn.Module, outputs: Sequence[str] = ("out",), **inputs: torch.Tensor) -> Source:
    """The module with its inputs; what is as long as a history is as long as it in every run."""
    axes = {
        name: {0: "B", **({1: "N"} if tensor.dim() > 1 and tensor.shape[1] == LENGTH else {})}
        for name, tensor in inputs.items()
    }
    return Source(module.eval(), inputs, axes, outputs)


def _generative() -> Source:
    history = _history()
    return _source(
        GenerativeRecommender(ITEMS),
        Recommendation._fields,
        input_ids=history,
        attention_mask=(history != 0).long(),
        position_ids=torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous(),
        dense_features=torch.randn(BATCH, 6),
    )


def _ops_hstu() -> Source:
    lengths = torch.randint(4, LENGTH, (BATCH,))
    return _source(OpsHSTU(), x=torch.randn(BATCH, LENGTH, 32), lengths=lengths, candidates=torch.ones_like(lengths))


def _dlrm() -> Source:
    ids = torch.stack([torch.randint(0, 50, (BATCH,)) for _ in range(3)], dim=1)
    return _source(DLRM(), dense=torch.randn(BATCH, 13), ids=ids)


def _din() -> Source:
    return _source(
        DIN(), history=_history(), candidate=torch.randint(1, ITEMS, (BATCH,)), profile=torch.randn(BATCH, 16)
    )


def _two_tower() -> Source:
    return _source(
        TwoTower(),
        history=_history(),
        time_weights=torch.rand(BATCH, LENGTH),
        profile=torch.randn(BATCH, 32),
        candidates=torch.randint(1, ITEMS, (BATCH, 5)),
    )


MODELS: dict[str, tuple[Callable[[], Source], dict[str, int]]] = {
    "SASRec": (lambda: _source(SASRec(ITEMS), input_ids=_history()), {ATTENTION: 2}),
    "BERT4Rec": (lambda: _source(BERT4Rec(ITEMS), input_ids=_history()), {ATTENTION: 2, EMBEDDING: 1}),
    "HSTU, research": (
        lambda: _source(ResearchHSTU(ITEMS), input_ids=_history(), timestamps=_times()),
        {HSTU: 2},
    ),
    "HSTU, ops": (_ops_hstu, {HSTU: 2}),
    "generative recommender": (_generative, {HSTU: 2}),
    "DLRM": (_dlrm, {DOT: 1}),
    "DeepFM": (lambda: _source(DeepFM(), ids=torch.randint(0, 100, (BATCH, 6))), {FM: 1}),
    "DIN": (_din, {}),
    "two-tower": (_two_tower, {SEQUENCE: 1}),
}
"""Model -> (how it is made, operators expected). docs/recommenders.md says why the pooling of DIN stays."""


def latency(models: Sequence[ModelProto], inputs: Mapping[str, np.ndarray], runs: int) -> list[float]:
    """Median milliseconds of each model, run in turns on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for model in models
    ]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(runs + 3):
        for session, taken in zip(sessions, times, strict=True):
            known = {item.name for item in session.get_inputs()}
            started = time.perf_counter()
            session.run(None, {name: array for name, array in inputs.items() if name in known})
            taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(taken[3:]) for taken in times]


def measure(names: Sequence[str], exporters: Sequence[tuple[str, int]], runs: int) -> list[dict[str, Any]]:
    """One row for each model and export."""
    rows = []
    for name in names:
        torch.manual_seed(0)
        make, expected = MODELS[name]
        source = make()
        inputs = {key: value.numpy() for key, value in source.inputs.items()}
        for exporter, opset in exporters:
            original = source.export(exporter, opset)
            result = onnx_fuse.fuse(original, enable=[FM])
            report = result.report
            before, after = latency([original, result.model], inputs, runs)
            rows.append(
                {
                    "model": name,
                    "exporter": exporter,
                    "opset": opset,
                    "expected": expected,
                    "fused": dict(report.fused),
                    "verified": not report.fused or bool(report.verification["passed"]),
                    "nodes_before": report.nodes_before,
                    "nodes_after": report.nodes_after,
                    "ms_before": round(before, 4),
                    "ms_after": round(after, 4),
                }
            )
            print(f"{name}, {exporter} {opset}: {rows[-1]['fused']}", file=sys.stderr)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | export | expected | fused | equal | nodes | ONNX Runtime CPU, after / before |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]

    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    for row in rows:
        cells = [
            row["model"],
            f"{row['exporter']} {row['opset']}",
            counted(row["expected"]),
            "as expected" if row["fused"] == row["expected"] else counted(row["fused"]),
            "yes" if row["verified"] else "NO",
            f"{row['nodes_before']} to {row['nodes_after']}",
            f"{row['ms_after'] / row['ms_before']:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, and writes recommenders.json and recommenders.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runs", type=int, default=30, help="runs of each model, whose median is told")
    parser.add_argument("--script-only", action="store_true", help="leave the slower dynamo exporter out")
    parser.add_argument(
        "--out", type=Path, default=common.RESULTS, help="folder for recommenders.json and recommenders.md"
    )
    arguments = parser.parse_args()
    exporters = [item for item in EXPORTERS if not arguments.script_only or item[0] == "script"]
    rows = measure(arguments.models, exporters, arguments.runs)
    text = table(rows)
    content = {
        "what": "recommender models: what fuses, and their latency in ONNX Runtime on the CPU, one thread",
        "command": common.command_line(),
        "machine": common.machine(),
        "versions": installed_versions(("onnx-fuse", "onnx", "onnxruntime", "onnxscript", "torch", "numpy")),
        "batch": BATCH,
        "length": LENGTH,
        "results": rows,
    }
    common.write_json(arguments.out / "recommenders.json", content)
    (arguments.out / "recommenders.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
