"""How the cost of a rewrite grows with the model: load, fuse SiLU and residual + LayerNorm, save, on 1k to 100k nodes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --irregular

Beside onnx-fuse: onnxscript's rewriter with the same two rules, onnx-graphsurgeon with a loop written by hand, and plain onnx
load + save, below which nothing that uses onnx can go. Every measurement has a process of its own. A second part fuses a model
with more than 2 GB of external weights, and a third verifies it. With `--irregular` no block repeats another, and all fusions are
on: each node is searched. That is compared with plain load + save alone.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks import common
from onnx_fuse import installation
from onnx_fuse.versions import installed_versions

DOMAIN = "gr.ml.infra"
FUSED = ("FusedSwish", "FusedSkipLayerNorm")
TOOLS = ("onnx-fuse", "onnxscript", "onnx-graphsurgeon", "onnx load+save")
FLOOR = TOOLS[-1]
SIZES = (1_000, 10_000, 100_000)
NODES_PER_BLOCK = 16

_EPSILONS = {"epsilon_6": 1e-6, "epsilon_5": 1e-5, "epsilon_12": 1e-12}

LARGE_HIDDEN, LARGE_BLOCKS = 4096, 20  # 2.7 GB of weights

TARGETS = {
    "times_faster_than_onnxscript": 4.0,
    "memory_of_onnxscript": 0.5,
    "exponent": 1.15,
    "large_seconds": 1.5,
    "large_above_mb": 150.0,
}


# -- the models ----------------------------------------------------------------------------------------------------------


def synthetic_model(blocks: int, hidden: int = 4, seed: int = 0, irregular: bool = False) -> ModelProto:
    """Blocks of LayerNorm(x + Linear(SiLU(Linear(x)))), SiLU and LayerNorm written out: 16 nodes each.

    Irregular ones differ in their inner width, in epsilon and in the order of operands, so that no block repeats another.
    """
    random = np.random.default_rng(seed)
    initializers = _scalars()
    if irregular:
        initializers += [numpy_helper.from_array(np.float32(value), name) for name, value in _EPSILONS.items()]
    nodes: list[NodeProto] = []
    value = "x"
    for index in range(blocks):
        width = int(random.integers(hidden, 4 * hidden)) if irregular else hidden
        for name, shape in _weights(index, hidden, width).items():
            initializers.append(numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32), name))
        first = len(nodes)
        value = _block(nodes, index, value)
        if irregular:
            _vary(nodes[first:], random)
    return _model(nodes, initializers, hidden, value)


def _vary(block: Sequence[NodeProto], random: np.random.Generator) -> None:
    """Gives a block an epsilon of its own, and its sums and products operands in any order."""
    epsilon = str(random.choice(list(_EPSILONS)))
    for node in block:
        inputs = [epsilon if name == "epsilon" else name for name in node.input]
        if node.op_type in ("Add", "Mul") and random.integers(2):
            inputs.reverse()
        node.input[:] = inputs


def large_model(folder: Path, blocks: int = LARGE_BLOCKS, hidden: int = LARGE_HIDDEN) -> Path:
    """The same blocks with all weights in external data.

    The matrices are holes in the data file, read as zeros, which take no room on the disk; the vectors are random, so that
    the outputs tell something.
    """
    random = np.random.default_rng(0)
    initializers = _scalars()
    nodes: list[NodeProto] = []
    value, offset = "x", 0
    path = folder / "large.onnx"
    with (folder / f"{path.name}.data").open("wb") as data:
        for index in range(blocks):
            for name, shape in _weights(index, hidden, hidden).items():
                size = 4 * math.prod(shape)
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, entry in (("location", f"{path.name}.data"), ("offset", offset), ("length", size)):
                    tensor.external_data.add(key=key, value=str(entry))
                initializers.append(tensor)
                if len(shape) == 1:
                    data.seek(offset)
                    data.write(random.standard_normal(shape, dtype=np.float32).tobytes())
                offset += size
            value = _block(nodes, index, value)
        data.truncate(offset)
    onnx.save(_model(nodes, initializers, hidden, value), path)
    return path


def _scalars() -> list[TensorProto]:
    return [numpy_helper.from_array(np.float32(value), name) for name, value in (("two", 2), ("epsilon", 1e-5))]


def _weights(index: int, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "fc1.weight": (hidden, width),
        "fc2.weight": (width, hidden),
        "fc1.bias": (width,),
        **dict.fromkeys(("fc2.bias", "norm.weight", "norm.bias"), (hidden,)),
    }
    return {f"layers.{index}.{name}": shape for name, shape in shapes.items()}


def _block(nodes: list[NodeProto], index: int, x: str) -> str:
    """Appends one block; returns its output. The operators and names are those that torch's exporter writes."""

    def add(op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        path = f"/layers.{index}/{name}"
        output = f"{path}_output_0"
        nodes.append(helper.make_node(op_type, list(inputs), [output], name=path, **attributes))
        return output

    first, second, first_bias, second_bias, gamma, beta = _weights(index, 1, 1)
    wide = add("Add", "fc1/Add", add("MatMul", "fc1/MatMul", x, first), first_bias)
    silu = add("Mul", "act/Mul", wide, add("Sigmoid", "act/Sigmoid", wide))
    narrow = add("Add", "fc2/Add", add("MatMul", "fc2/MatMul", silu, second), second_bias)
    total = add("Add", "Add", narrow, x)
    centred = add("Sub", "norm/Sub", total, add("ReduceMean", "norm/ReduceMean", total, axes=[-1]))
    variance = add("ReduceMean", "norm/ReduceMean_1", add("Pow", "norm/Pow", centred, "two"), axes=[-1])
    deviation = add("Sqrt", "norm/Sqrt", add("Add", "norm/Add", variance, "epsilon"))
    scaled = add("Mul", "norm/Mul", add("Div", "norm/Div", centred, deviation), gamma)
    return add("Add", "norm/Add_1", scaled, beta)


def _model(nodes: Sequence[NodeProto], initializers: Sequence[TensorProto], hidden: int, output: str) -> ModelProto:
    shape: list[str | int | None] = ["batch", hidden]
    graph = helper.make_graph(
        nodes,
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        initializers,
    )
    # Opset 17: ReduceMean has its axes as an attribute, which every tool here knows.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def count_fused(path: Path) -> dict[str, int]:
    """Number of fused nodes of each kind in a file."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes if node.domain == DOMAIN)
    return {name: counts[name] for name in FUSED}


# -- the tools: each returns the task to be measured, with all it needs imported ----------------------------------------


def _with_onnx_fuse(source: Path, target: Path, all_fusions: bool = False) -> Callable[[], Any]:
    import onnx_fuse.api

    chosen = onnx_fuse.api.fusions() if all_fusions else FUSED

    def task() -> None:
        result = onnx_fuse.api.fuse(source, fusions=chosen, verify=False)
        result.save(target)

    return task


def _with_onnxscript(source: Path, target: Path) -> Callable[[], Any]:
    import onnx_ir
    from onnxscript.rewriter import pattern, rewrite

    def silu(op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def fused_silu(op: Any, x: Any) -> Any:
        return op.FusedSwish(x, beta=1.0, _domain=DOMAIN)

    def skip_layer_norm(op: Any, x: Any, skip: Any, exponent: Any, epsilon: Any, gamma: Any, beta: Any) -> Any:
        total = op.Add(x, skip)
        centred = op.Sub(total, op.ReduceMean(total, axes=[-1]))
        variance = op.ReduceMean(op.Pow(centred, exponent), axes=[-1])
        normed = op.Div(centred, op.Sqrt(op.Add(variance, epsilon)))
        return op.Add(op.Mul(normed, gamma), beta)

    def fused_skip_layer_norm(op: Any, x: Any, skip: Any, epsilon: Any, gamma: Any, beta: Any, **_: Any) -> Any:
        number = float(epsilon.const_value.numpy())
        return op.FusedSkipLayerNorm(x, skip, gamma, beta, norm="layer", epsilon=number, _domain=DOMAIN)

    def is_square(_: Any, exponent: Any, epsilon: Any, **__: Any) -> bool:
        constants = exponent.const_value, epsilon.const_value
        return all(item is not None and item.size == 1 for item in constants) and constants[0].numpy() == 2.0

    rules = [
        pattern.RewriteRule(silu, fused_silu),
        pattern.RewriteRule(skip_layer_norm, fused_skip_layer_norm, is_square),
    ]

    def task() -> None:
        onnx_ir.save(rewrite(onnx_ir.load(source), rules), target)

    return task


def _with_graphsurgeon(source: Path, target: Path) -> Callable[[], Any]:
    import onnx_graphsurgeon as gs

    def scalar(tensor: Any) -> float | None:
        return float(tensor.values) if isinstance(tensor, gs.Constant) and math.prod(tensor.shape) == 1 else None

    def fuse_silu(node: Any) -> None:
        x, gate = node.inputs
        if (
            not gate.inputs
            or gate.inputs[0].op != "Sigmoid"
            or gate.inputs[0].inputs[0] is not x
            or len(gate.outputs) != 1
        ):
            return
        node.op, node.domain, node.attrs = "FusedSwish", DOMAIN, {"beta": 1.0}
        node.inputs = [x]

    def fuse_skip_layer_norm(node: Any) -> None:
        chain = [node]
        for op in ("Mul", "Div", "Sub", "Add"):
            producers = chain[-1].inputs[0].inputs
            if not producers or producers[0].op != op:
                return
            chain.append(producers[0])
        _, scale, divide, centre, total = chain
        sqrt = divide.i(1)
        if sqrt.op != "Sqrt" or sqrt.i().op != "Add" or sqrt.i().i().op != "ReduceMean":
            return
        power, mean = sqrt.i().i().i(), centre.i(1)
        if power.op != "Pow" or power.i() is not centre or scalar(power.inputs[1]) != 2.0:
            return
        epsilon = scalar(sqrt.i().inputs[1])
        if mean.op != "ReduceMean" or mean.i() is not total or epsilon is None:
            return
        if any(item.attrs.get("axes") != [-1] for item in (mean, sqrt.i().i())):
            return
        gamma, beta = scale.inputs[1], node.inputs[1]
        node.op, node.domain, node.attrs = "FusedSkipLayerNorm", DOMAIN, {"norm": "layer", "epsilon": epsilon}
        node.inputs = [*total.inputs, gamma, beta]

    def task() -> None:
        graph = gs.import_onnx(onnx.load(source))
        for node in graph.nodes:
            if node.op == "Mul" and len(node.inputs) == 2:
                fuse_silu(node)
            elif node.op == "Add":
                fuse_skip_layer_norm(node)
        graph.cleanup()
        onnx.save(gs.export_onnx(graph), target)

    return task


def _load_and_save(source: Path, target: Path) -> Callable[[], Any]:
    return lambda: onnx.save(onnx.load(source), target)


_TASKS: dict[str, Callable[[Path, Path], Callable[[], Any]]] = dict(
    zip(TOOLS, (_with_onnx_fuse, _with_onnxscript, _with_graphsurgeon, _load_and_save), strict=True)
)


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    """What a child process does: one measurement."""
    source, target = Path(job["source"]), Path(job["target"])
    if job["kind"] == "verify":
        return _verify(source, target)
    task = _with_onnx_fuse(source, target, True) if job.get("all_fusions") else _TASKS[job["tool"]](source, target)
    cost, _ = common.measured(task)
    return {**cost, "fused": count_fused(target)}


def _verify(original: Path, fused: Path) -> dict[str, Any]:
    import onnxruntime  # noqa: F401  (its memory belongs to the baseline)

    from onnx_fuse.runtime.verify.verification import verify

    cost, result = common.measured(lambda: verify(original, fused))
    outcome = f"skipped: {result.skipped}" if result.skipped else "passed" if result.passed else "failed"
    return {**cost, "outcome": outcome, "cases": len(result.to_dict()["cases"])}


# -- measuring -----------------------------------------------------------------------------------------------------------


def measure_scaling(
    sizes: Sequence[int], repeats: int, tools: Sequence[str], folder: Path, irregular: bool = False
) -> list[dict[str, Any]]:
    """One row per tool and size: the medians of several processes."""
    rows = []
    for size in sizes:
        blocks = max(1, round(size / NODES_PER_BLOCK))
        source = folder / f"{size}.onnx"
        onnx.save(synthetic_model(blocks, irregular=irregular), source)
        for tool in tools:
            job = {"kind": "scaling", "tool": tool, "source": str(source), "target": str(folder / f"{size}.out.onnx")}
            row = _median_row({**job, "all_fusions": irregular and tool == TOOLS[0]}, repeats)
            wanted = 0 if tool == FLOOR else blocks
            if any(count != wanted for count in row["fused"].values()):
                raise SystemExit(f"{tool} fused {row['fused']} at {size} nodes, expected {wanted} of each")
            rows.append({"tool": tool, "nodes": blocks * NODES_PER_BLOCK, "blocks": blocks, **row})
            print(f"{tool} at {size} nodes: {row['cpu_seconds']:.2f} s, {row['above_mb']:.0f} MB", file=sys.stderr)
    return rows


def _median_row(job: dict[str, Any], repeats: int) -> dict[str, Any]:
    runs = [common.run_child(__file__, job) for _ in range(repeats)]
    row: dict[str, Any] = {
        name: round(statistics.median(run[name] for run in runs), 4)
        for name in ("cpu_seconds", "process_cpu_seconds", "wall_seconds", "baseline_mb", "peak_mb", "above_mb")
    }
    row["cpu_seconds_of_each"] = [run["cpu_seconds"] for run in runs]
    row.update({name: runs[0][name] for name in runs[0] if name not in row})
    return row


def exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """Slope of the straight line through the logarithms: the n in cost ~ size^n."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points if cost > 0]
    if len(logs) < 2:
        return None
    return round(statistics.linear_regression(*zip(*logs, strict=True)).slope, 3)


def exponents(rows: Sequence[dict[str, Any]], tools: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Per tool: fitted over all sizes, and between the two largest, where fixed costs weigh least."""
    result = {}
    for tool in tools:
        points = [(row["nodes"], row["cpu_seconds"]) for row in rows if row["tool"] == tool]
        result[tool] = {"all": exponent(points), "largest_two": exponent(points[-2:])}
    return result


def measure_large(folder: Path, repeats: int, blocks: int, hidden: int) -> dict[str, Any]:
    """Fusing a model with large external weights, and verifying it apart."""
    source = large_model(folder, blocks, hidden)
    target = folder / "large.fused.onnx"
    data = Path(f"{source}.data")
    job = {"source": str(source), "target": str(target)}
    fuse = _median_row({"kind": "scaling", "tool": TOOLS[0], **job}, repeats)
    return {
        "nodes": blocks * NODES_PER_BLOCK,
        "weights_gb": round(data.stat().st_size / 1e9, 3),
        "weights_on_disk_mb": round(data.stat().st_blocks * 512 / 2**20, 3),
        "fuse": fuse,
        "verify": common.run_child(__file__, {"kind": "verify", **job}),
    }


def compare(rows: Sequence[dict[str, Any]], fitted: dict[str, Any], large: dict[str, Any] | None) -> dict[str, Any]:
    """The figures that have a target, at the largest size."""
    last = {row["tool"]: row for row in rows if row["nodes"] == max(item["nodes"] for item in rows)}
    found: dict[str, float | None] = {}
    ours, peer = last.get(TOOLS[0]), last.get(TOOLS[1])
    if ours and peer:
        found["times_faster_than_onnxscript"] = round(peer["cpu_seconds"] / ours["cpu_seconds"], 2)
        found["memory_of_onnxscript"] = round(ours["peak_mb"] / peer["peak_mb"], 3)
        found["memory_of_onnxscript_above_imports"] = round(ours["above_mb"] / peer["above_mb"], 3)
    if ours:
        found["exponent"] = fitted[TOOLS[0]]["all"]
    if large:
        found["large_seconds"] = large["fuse"]["cpu_seconds"]
        found["large_above_mb"] = large["fuse"]["above_mb"]
    verdicts = {}
    for name, value in found.items():
        goal = TARGETS.get(name)
        met = None if goal is None or value is None else value >= goal if name.startswith("times") else value <= goal
        verdicts[name] = {"value": value, "target": goal, "met": met}
    return verdicts


# -- showing -------------------------------------------------------------------------------------------------------------


def print_tables(content: dict[str, Any]) -> None:
    """The results as tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="load + fuse + save")
    for name in ("tool", "nodes", "CPU s", "MB above imports", "MB in all", "fused"):
        table.add_column(name, justify="left" if name == "tool" else "right")
    for row in content["results"]:
        costs = (f"{row['cpu_seconds']:.2f}", f"{row['above_mb']:.0f}", f"{row['peak_mb']:.0f}")
        table.add_row(row["tool"], f"{row['nodes']:,}", *costs, str(sum(row["fused"].values())))
    console.print(table)
    table = Table(title="growth: CPU seconds ~ nodes^n")
    for name in ("tool", "n, all sizes", "n, largest two"):
        table.add_column(name, justify="left" if name == "tool" else "right")
    for tool, fitted in content["exponents"].items():
        table.add_row(tool, *("" if value is None else f"{value:.2f}" for value in fitted.values()))
    console.print(table)
    if content["large"]:
        large = content["large"]
        fuse, verify = large["fuse"], large["verify"]
        console.print(
            f"{large['weights_gb']} GB of external weights, {large['nodes']} nodes: "
            f"fused in {fuse['cpu_seconds']:.2f} CPU s ({fuse['process_cpu_seconds']:.2f} with Python and its imports) "
            f"and {fuse['above_mb']:.0f} MB above the imports; "
            f"verification {verify['outcome']}: {verify['cpu_seconds']:.1f} CPU s, {verify['above_mb']:.0f} MB"
        )
    for name, verdict in content["targets"].items():
        if verdict["met"] is not None:
            word = "met" if verdict["met"] else "MISSED"
            console.print(f"{name.replace('_', ' ')}: {verdict['value']} (target {verdict['target']}): {word}")


def plot(content: dict[str, Any], path: Path) -> None:
    """CPU seconds and memory over the number of nodes, both axes logarithmic; nothing where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"no plot: matplotlib is not installed; install it: {installation.add_extra('bench')}", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, field, title in (
        (axes[0], "cpu_seconds", "CPU seconds"),
        (axes[1], "above_mb", "peak MB above the imports"),
    ):
        for tool in dict.fromkeys(row["tool"] for row in content["results"]):
            points = [(row["nodes"], row[field]) for row in content["results"] if row["tool"] == tool]
            style = {"color": "0.6", "linestyle": "--"} if tool == FLOOR else {}
            axis.plot(*zip(*points, strict=True), marker="o", label=tool, **style)
        axis.set(xscale="log", yscale="log", xlabel="nodes", title=title)
        axis.grid(True, which="both", alpha=0.2)
    axes[0].legend()
    figure.suptitle("load + SiLU and residual/LayerNorm fusions + save")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measures, prints, and writes scaling.json and scaling.png, or scaling_irregular.json and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of nodes")
    parser.add_argument("--repeats", type=int, default=5, help="processes per measurement; the median counts")
    parser.add_argument("--irregular", action="store_true", help="blocks that all differ, and all fusions on")
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, help="all by default; with --irregular only ours and the last"
    )
    parser.add_argument(
        "--large-blocks", type=int, default=LARGE_BLOCKS, help="blocks with external weights; 0 for none"
    )
    parser.add_argument("--large-hidden", type=int, default=LARGE_HIDDEN, help="their width")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder for scaling.json and scaling.png")
    arguments = parser.parse_args()
    irregular = arguments.irregular
    possible = (TOOLS[0], FLOOR) if irregular else TOOLS
    tools = arguments.tools or list(possible)
    if not set(tools) <= set(possible):
        parser.error(f"--irregular compares {' and '.join(possible)} alone")
    with tempfile.TemporaryDirectory(prefix="onnx-fuse-scaling-") as name:
        folder = Path(name)
        rows = measure_scaling(sorted(arguments.sizes), arguments.repeats, tools, folder, irregular)
        large = None
        if arguments.large_blocks and not irregular:
            large = measure_large(folder, arguments.repeats, arguments.large_blocks, arguments.large_hidden)
    fitted = exponents(rows, tools)
    content = {
        "what": f"load + fuse ({'all' if irregular else 'SiLU, residual + LayerNorm'}) + save; medians over processes",
        "irregular": irregular,
        "command": common.command_line(),
        "machine": common.machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": installed_versions(
            ("onnx-fuse", "onnx", "onnx-ir", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "numpy", "protobuf")
        ),
        "repeats": arguments.repeats,
        "results": rows,
        "exponents": fitted,
        "large": large,
        "targets": compare(rows, fitted, large),
    }
    name = "scaling_irregular" if irregular else "scaling"
    common.write_json(arguments.out / f"{name}.json", content)
    plot(content, arguments.out / f"{name}.png")
    print_tables(content)


if __name__ == "__main__":
    child = common.child_job()
    if child is None:
        main()
    else:
        common.deliver(_run_job(child))
