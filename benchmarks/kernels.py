"""Device time of every plugin, through the harness and without TensorRT, beside torch and the unfused ONNX subgraph.

    python benchmarks/kernels.py                 # on a machine with an NVIDIA GPU; --library if one is built already
    python benchmarks/kernels.py --dry-run       # anywhere: all but the timing, at small sizes

Each time is the median over replays of a CUDA graph that goes through several sets of buffers, together larger than the L2 cache.
The limit of a case is the longest of: the bytes that have to be moved at the bandwidth of a copy, the products at the rate of a
large matrix product of that type, and the launch of an empty kernel, all measured on the same GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx
from onnx import TensorProto, helper

import onnx_fuse
from benchmarks import common
from onnx_fuse.versions import installed_versions

NO_GPU = 2  # exit code
RESULT = common.RESULTS / "kernels.json"
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
DEVICE = "cuda"
REPLAYS, RUNS_OF_A_GRAPH = 30, 20
STREAMING = (
    *("FusedSwish", "FusedSkipLayerNorm", "FusedEmbedLayerNorm"),
    *("FMInteraction", "HierarchicalSequenceFusion"),
)
SMALL = {"B": 2, "R": 6, "S": 12, "V": 50}
"""The sizes of a dry run, where those of a case are larger."""


# -- the cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        sizes: name of a dimension -> its size.
        inputs: name -> shape, in names of dimensions or numbers; "ids_1" and the like are int64, below V.
        attributes: of the node.
        eager: from the inputs and attributes to the outputs, as one writes it in torch.
        flops: of the matrix products, 2 for each multiplication.
        outputs: names and shapes.
        gathered: inputs of which only rows are read -> how many.
        fast: as `eager`, with torch's scaled_dot_product_attention.
    """

    operator: str
    sizes: Mapping[str, int]
    inputs: Mapping[str, Sequence[str | int]]
    attributes: Mapping[str, Any]
    eager: Callable[..., Any]
    outputs: Mapping[str, Sequence[str | int]]
    flops: Callable[[Mapping[str, int]], float] = lambda _: 0.0
    gathered: Mapping[str, Callable[[Mapping[str, int]], int]] = field(default_factory=dict)
    fast: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return " ".join([self.operator, *(f"{key}={size}" for key, size in self.sizes.items())])

    def shrunk(self) -> Case:
        """The case at the sizes of a dry run."""
        sizes = {name: min(size, SMALL.get(name, size)) for name, size in self.sizes.items()}
        return Case(**{**self.__dict__, "sizes": sizes})

    def shape(self, dims: Sequence[str | int]) -> tuple[int, ...]:
        return tuple(self.sizes[dim] if isinstance(dim, str) else dim for dim in dims)

    def type_of(self, name: str, dtype: str) -> str:
        return "int64" if name.startswith("ids") else dtype

    def onnx_type(self, name: str, dtype: str) -> int:
        return {**TYPES, "int64": TensorProto.INT64}[self.type_of(name, dtype)]

    def node(self) -> onnx.NodeProto:
        """The fused node, whose values have the operator's names."""
        names = ({name: name for name in self.inputs}, {name: name for name in self.outputs})
        return fused_op(self.operator).make_node(*names, self.attributes, "node")

    def bytes(self, dtype: str) -> int:
        """What has to be read and written at least: every input and output once, of tables the rows that are looked up."""
        moved = 0
        for name, dims in {**self.inputs, **self.outputs}.items():
            shape = self.shape(dims)
            count = math.prod(shape)
            if name in self.gathered:
                count = min(count, self.gathered[name](self.sizes) * shape[-1])
            moved += count * BYTES[self.type_of(name, dtype)]
        return moved

    def limit(self, dtype: str, measured: Mapping[str, Any]) -> tuple[float, str]:
        """Seconds that no kernel can go below on a GPU, and what sets them: memory, products or launch."""
        seconds = {
            "memory": self.bytes(dtype) / measured["copy_bytes_per_second"],
            "products": self.flops(self.sizes) / measured["matrix_flops_per_second"][dtype],
            "launch": measured["launch_seconds"],
        }
        what = max(seconds, key=lambda name: seconds[name])
        return seconds[what], what


def fused_op(name: str) -> Any:
    (operator,) = [item.operator for item in onnx_fuse.fusions() if item.operator.name == name]
    return operator


def normed(torch: Any, z: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    return torch.nn.functional.layer_norm(z, z.shape[-1:], gamma, beta, epsilon)


def swish(torch: Any, x: Any, beta: float) -> Any:
    return x * torch.sigmoid(beta * x)


def skip_layer_norm(torch: Any, x: Any, skip: Any, bias: Any, gamma: Any, beta: Any, epsilon: float, **_: Any) -> Any:
    return normed(torch, x + bias + skip, gamma, beta, epsilon)


def embed_layer_norm(torch: Any, ids_1: Any, table_1: Any, ids_2: Any, table_2: Any, **how: Any) -> Any:
    return normed(torch, table_1[ids_1] + table_2[ids_2], how["gamma"], how["beta"], how["epsilon"])


def fm(torch: Any, E: Any, **_: Any) -> Any:  # the operator's name
    return 0.5 * (E.sum(1) ** 2 - (E * E).sum(1))


def interaction(torch: Any, E: Any, **_: Any) -> Any:
    count = E.shape[1]
    rows, columns = torch.tril_indices(count, count, -1, device=E.device)
    return torch.cat([E[:, 0], torch.bmm(E, E.transpose(1, 2))[:, rows, columns]], 1)


def linear_layer_norm(
    torch: Any, x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, epsilon: float, **_: Any
) -> Any:
    return normed(torch, x @ weight + bias, gamma, beta, epsilon)


def heads(x: Any, count: int) -> Any:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def hstu(torch: Any, q: Any, k: Any, v: Any, num_heads: int, alpha: float, **_: Any) -> Any:
    length = q.shape[1]
    scores = torch.nn.functional.silu(alpha * heads(q, num_heads) @ heads(k, num_heads).transpose(2, 3))
    lower = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = torch.where(lower, scores, 0.0) / length
    return (weights.to(v.dtype) @ heads(v, num_heads)).transpose(1, 2).flatten(2)


def attention(torch: Any, query: Any, key: Any, value: Any, num_heads: int, scale: float, **how: Any) -> Any:
    q, k, v = (heads(item, num_heads) for item in (query, key, value))
    weights = torch.softmax(scale * q @ k.transpose(2, 3), -1)
    return rim(torch, weights @ v, **how)


def fast_attention(torch: Any, query: Any, key: Any, value: Any, num_heads: int, scale: float, **how: Any) -> Any:
    q, k, v = (heads(item, num_heads) for item in (query, key, value))
    return rim(torch, torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale), **how)


def rim(torch: Any, context: Any, out_weight: Any, out_bias: Any, residual: Any, **how: Any) -> Any:
    z = context.transpose(1, 2).flatten(2) @ out_weight + out_bias + residual
    return normed(torch, z, how["gamma"], how["beta"], how["epsilon"])


def sequence_fusion(torch: Any, x: Any, level_embeddings: Any, temperature: float, **_: Any) -> Any:
    mixed = torch.softmax(x @ level_embeddings.T / temperature, -1) @ level_embeddings
    gate = torch.sigmoid((mixed * x).sum(-1, keepdim=True) / x.shape[-1])
    return gate * mixed + (1 - gate) * x


def sequence_interaction(torch: Any, items: Any, user: Any, short_window: int, decay: float, **_: Any) -> Any:
    length = items.shape[1]
    steps = torch.arange(length, device=items.device, dtype=torch.float32)
    later = length - steps
    recent = (later <= short_window).float()
    short = recent * (1 + 0.1 * (recent.sum() - later))
    long = 0.5 + 0.5 * torch.exp(-0.1 * (length - 1 - steps))
    distance = steps - steps[:, None]
    near = torch.where(distance > 0, torch.exp(-decay * distance), 0.0).to(items.dtype)
    return (
        (items @ user[:, :, None])[:, :, 0],
        short.to(items.dtype) @ items,
        long.to(items.dtype) @ items,
        (items @ items.transpose(1, 2)) * near,
    )


def hstu_case(batch: int, length: int, count: int, size: int) -> Case:
    settings = {"norm_length": 0.0, "bias_order": "outside_alpha", "norm": "none", "gate_activation": "none"}
    return Case(
        "HSTUHierarchicalAttention",
        {"B": batch, "S": length, "heads": count, "W": count * size},
        dict.fromkeys(("q", "k", "v"), ("B", "S", "W")),
        {
            "num_heads": count,
            "alpha": size**-0.5,
            "causal": 1,
            "epsilon": 1e-6,
            "mode": "silu",
            "num_levels": 1,
            "decay": 1.0,
            **settings,
        },
        hstu,
        {"y": ("B", "S", "W")},
        lambda n: 4 * n["B"] * n["W"] * n["S"] * (n["S"] + 1) / 2,
    )


def attention_case(batch: int, length: int, count: int, size: int) -> Case:
    rows, vector = ("B", "S", "W"), ("W",)
    return Case(
        "FusedAttentionLayerNorm",
        {"B": batch, "S": length, "heads": count, "W": count * size},
        {
            "query": rows,
            "key": rows,
            "value": rows,
            "out_weight": ("W", "W"),
            "out_bias": vector,
            "residual": rows,
            "gamma": vector,
            "beta": vector,
        },
        {
            "num_heads": count,
            "num_key_value_heads": count,
            "scale": size**-0.5,
            "mask_value": -10000.0,
            "causal": "none",
            "masked_row": "uniform",
            "norm": "layer",
            "epsilon": 1e-5,
            "layout": "BSH",
        },
        attention,
        {"output": rows},
        lambda n: 4 * n["B"] * n["W"] * n["S"] ** 2 + 2 * n["B"] * n["S"] * n["W"] ** 2,
        fast=fast_attention,
    )


def row_cases() -> list[Case]:
    norm = {"norm": "layer", "epsilon": 1e-5}
    rows, vector = ("R", "W"), ("W",)
    return [
        Case("FusedSwish", {"R": 8192, "W": 4096}, {"x": rows}, {"beta": 1.5}, swish, {"output": rows}),
        *(
            Case(
                "FusedSkipLayerNorm",
                {"R": count, "W": width},
                {"x": rows, "skip": rows, "bias": vector, "gamma": vector, "beta": vector},
                norm,
                skip_layer_norm,
                {"output": rows},
            )
            for count, width in ((8192, 4096), (32768, 768))
        ),
        Case(
            "FusedEmbedLayerNorm",
            {"B": 64, "S": 512, "W": 768, "V": 30522},
            {"ids_1": ("B", "S"), "table_1": ("V", "W"), "ids_2": (1, "S"), "table_2": (512, "W"), "gamma": vector, "beta": vector},
            {"num_tables": 2, **norm},
            embed_layer_norm,
            {"output": ("B", "S", "W")},
            gathered={"table_1": lambda n: n["B"] * n["S"], "table_2": lambda n: n["S"]},
        ),
        *(
            Case(
                "FusedLinearLayerNorm",
                {"R": 16384, "K": 1024, "W": width},
                {"x": ("R", "K"), "weight": ("K", "W"), "bias": vector, "gamma": vector, "beta": vector},
                norm,
                linear_layer_norm,
                {"output": rows},
                lambda n: 2 * n["R"] * n["K"] * n["W"],
            )
            for width in (512, 1024)
        ),
    ]  # fmt: skip


def sequence_cases() -> list[Case]:
    return [
        Case(
            "HierarchicalSequenceFusion",
            {"B": 128, "S": 512, "W": 256, "levels": 16},
            {"x": ("B", "S", "W"), "level_embeddings": ("levels", "W")},
            {"temperature": 2.0, "windows": [1], "window_weights": [0.0], "pad": "truncate"},
            sequence_fusion,
            {"y": ("B", "S", "W")},
            lambda n: 4 * n["B"] * n["S"] * n["W"] * n["levels"],
        ),
        Case(
            "SequenceRecommendationInteraction",
            {"B": 512, "S": 200, "W": 64},
            {"items": ("B", "S", "W"), "user": ("B", "W")},
            {"short_window": 10, "decay": 0.1, "normalize": 0},
            sequence_interaction,
            {"scores": ("B", "S"), "short_term": ("B", "W"), "long_term": ("B", "W"), "cooccurrence": ("B", "S", "S")},
            lambda n: 2 * n["B"] * n["S"] ** 2 * n["W"],
        ),
    ]


def interaction_cases() -> list[Case]:
    return [
        Case("FMInteraction", {"B": 16384, "F": 32, "W": 64}, {"E": ("B", "F", "W")}, {"reduce": 0}, fm, {"output": ("B", "W")}),
        *(
            Case(
                "InteractionTritonFast",
                {"B": batch, "F": 27, "W": 128, "out": 128 + 27 * 26 // 2},
                {"E": ("B", "F", "W")},
                {"triangle": "lower", "self_interaction": 0, "concat_dense": "first"},
                interaction,
                {"output": ("B", "out")},
                lambda n: n["B"] * n["F"] * (n["F"] - 1) * n["W"],
            )
            for batch in (4096, 32768)
        ),
    ]  # fmt: skip


CASES = [
    *row_cases(),
    *interaction_cases(),
    *sequence_cases(),
    *(hstu_case(*at) for at in ((256, 200, 4, 64), (64, 512, 4, 64), (8, 2048, 4, 128), (4, 4096, 4, 128))),
    *(attention_case(*at) for at in ((128, 128, 8, 64), (32, 512, 12, 64), (4, 2048, 16, 64))),
]


# -- what a case computes ------------------------------------------------------------------------------------------------


def drawn(torch: Any, case: Case, dtype: str, device: str, seed: int = 0) -> dict[str, Any]:
    """Random inputs."""
    draw = torch.Generator(device).manual_seed(seed)
    made = {}
    for name, dims in case.inputs.items():
        shape = case.shape(dims)
        if name.startswith("ids"):
            rows = case.shape(case.inputs[name.replace("ids", "table")])[0]
            made[name] = torch.randint(0, rows, shape, generator=draw, device=device)
        else:
            scale = 1.0 if len(shape) != 2 or "weight" not in name else shape[0] ** -0.5
            made[name] = (torch.randn(shape, generator=draw, device=device) * scale).to(getattr(torch, dtype))
    return made


def results(torch: Any, case: Case, function: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    made = function(torch, **inputs, **case.attributes)
    return made if isinstance(made, tuple) else (made,)


def unfused_model(case: Case, dtype: str) -> onnx.ModelProto:
    """The node of a case with its body, which ONNX Runtime runs operator by operator."""
    operator, node = fused_op(case.operator), case.node()
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, case.onnx_type(name, dtype), case.shape(dims))
            for name, dims in tensors.items()
        ]
        for tensors in (case.inputs, case.outputs)
    )
    body = operator.make_function(list(case.inputs), list(case.outputs), case.attributes, {"": 20}, TYPES[dtype])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(operator.domain, 1)]
    graph = helper.make_graph([node], "case", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)


def dry_run(torch: Any, case: Case) -> dict[str, Any]:
    """Everything about a case but its times, at a small size, in float32: torch's forms and the body agree."""
    import onnxruntime

    small = case.shrunk()
    inputs = drawn(torch, small, "float32", "cpu")
    wanted = results(torch, small, small.eager, inputs)
    session = onnxruntime.InferenceSession(
        unfused_model(small, "float32").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    peers = {"body": session.run(None, {name: item.numpy() for name, item in inputs.items()})}
    if small.fast is not None:
        peers["sdpa"] = results(torch, small, small.fast, inputs)
    for peer, made in peers.items():
        for name, got, want in zip(small.outputs, made, wanted, strict=True):
            if not torch.allclose(torch.as_tensor(got), want, rtol=1e-3, atol=1e-4):
                raise AssertionError(f"{case.name}: {name} of {peer} is not what torch computes")
    return {"case": case.name, "megabytes": case.bytes("bfloat16") / 1e6, "gigaflops": case.flops(case.sizes) / 1e9}


# -- timing --------------------------------------------------------------------------------------------------------------


def seconds(torch: Any, runs: Sequence[Callable[[], Any]]) -> float:
    """Median device time of one run, from a CUDA graph of all runs in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.synchronize()
    graph, total = torch.cuda.CUDAGraph(), max(RUNS_OF_A_GRAPH, len(runs))
    with torch.cuda.graph(graph):
        for index in range(total):
            runs[index % len(runs)]()
    times = []
    for _ in range(REPLAYS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / total)
    return statistics.median(times[3:])


def device_rates(torch: Any, dtypes: Sequence[str]) -> dict[str, Any]:
    """Bandwidth of a copy (bytes read and written), rates of matrix products, and the time of an empty kernel."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target, one = torch.empty_like(source), torch.zeros(1, device="cuda")
    rates = {}
    for dtype in dtypes:
        a, b = (torch.randn(8192, 8192, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        rates[dtype] = 2 * 8192**3 / seconds(torch, [lambda a=a, b=b, out=out: torch.mm(a, b, out=out)])
    return {
        "copy_bytes_per_second": 2 * source.numel() / seconds(torch, [lambda: target.copy_(source)]),
        "matrix_flops_per_second": rates,
        "launch_seconds": seconds(torch, [one.zero_]),
    }


def onnxruntime_seconds(torch: Any, case: Case, dtype: str, inputs: Mapping[str, Any]) -> float | None:
    """The body in ONNX Runtime's CUDA provider, between events on its stream; None where there is no such provider."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    stream = torch.cuda.Stream()
    settings = {"user_compute_stream": str(stream.cuda_stream)}
    session = onnxruntime.InferenceSession(
        unfused_model(case, dtype).SerializeToString(), providers=[("CUDAExecutionProvider", settings)]
    )
    binding = session.io_binding()
    for name, item in inputs.items():
        kind = case.onnx_type(name, dtype)
        binding.bind_input(name, "cuda", 0, kind, tuple(item.shape), item.data_ptr())
    for name in case.outputs:
        binding.bind_output(name, "cuda")
    times = []
    for _ in range(REPLAYS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        session.run_with_iobinding(binding)
        end.record(stream)
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def cache_bytes(torch: Any) -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def stream(torch: Any) -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def measured(torch: Any, case: Case, dtype: str, library: Path, rates: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the results."""
    from onnx_fuse.runtime.plugins.torch_harness import Node, bind

    sets = min(max(2, math.ceil(3 * cache_bytes(torch) / case.bytes(dtype))), 64)
    inputs = [drawn(torch, case, dtype, DEVICE, seed) for seed in range(sets)]
    nodes = [Node(case.operator, case.attributes, item, tuple(case.outputs)) for item in inputs]
    bound = [bind(library, node, DEVICE) for node in nodes]
    plugin = seconds(torch, [lambda item=item: item.enqueue(stream(torch)) for item in bound])
    compiled = torch.compile(case.eager, dynamic=False)

    def peer(function: Callable[..., Any]) -> float:
        return seconds(torch, [lambda item=item: results(torch, case, function, item) for item in inputs])

    eager = peer(case.eager)
    try:
        unfused = onnxruntime_seconds(torch, case, dtype, inputs[0])
    except (
        Exception
    ) as error:  # ONNX Runtime's own, one class for each of its codes: it lacks an operator for this type
        print(f"{case.name} {dtype}: not in ONNX Runtime: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        unfused = None
    limit, by = case.limit(dtype, rates)
    return {
        "case": case.name,
        "operator": case.operator,
        "sizes": dict(case.sizes),
        "dtype": dtype,
        "bytes": case.bytes(dtype),
        "flops": case.flops(case.sizes),
        "kernels": list(bound[0].kernels),
        "seconds": plugin,
        "limit_seconds": limit,
        "limited_by": by,
        "of_limit": limit / plugin,
        "eager_seconds": eager,
        "compiled_seconds": peer(compiled),
        "sdpa_seconds": peer(case.fast) if case.fast is not None else None,
        "unfused_seconds": eager if unfused is None else unfused,
        "unfused_is": "torch eager" if unfused is None else "onnxruntime CUDA",
    }


# -- aims, results, tables -----------------------------------------------------------------------------------------------


def aims(rows: Sequence[Mapping[str, Any]], rates: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the plugins are to reach, with the worst of the rows that it is about (None where nothing was measured)."""

    def worst(value: Callable[[Mapping[str, Any]], float], of: Callable[[Mapping[str, Any]], bool]) -> float | None:
        return min((value(row) for row in rows if of(row)), default=None)

    def bandwidth(row: Mapping[str, Any]) -> float:
        return float(row["bytes"] / row["seconds"] / rates["copy_bytes_per_second"])

    def products(row: Mapping[str, Any]) -> float:
        return float(row["flops"] / row["seconds"] / rates["matrix_flops_per_second"]["bfloat16"])

    def speedup(row: Mapping[str, Any]) -> float:
        return float(row["unfused_seconds"] / row["seconds"])

    def is_hstu(row: Mapping[str, Any]) -> bool:
        return row["operator"] == "HSTUHierarchicalAttention"

    def is_interaction(row: Mapping[str, Any]) -> bool:
        return row["operator"] == "InteractionTritonFast"

    def streams(row: Mapping[str, Any]) -> bool:
        return row["operator"] in STREAMING and row["bytes"] >= 32e6

    def is_short_hstu(row: Mapping[str, Any]) -> bool:
        return is_hstu(row) and row["sizes"]["S"] <= 512 and row["dtype"] != "float32"

    def is_long_hstu(row: Mapping[str, Any]) -> bool:
        return is_hstu(row) and row["sizes"]["S"] >= 2048 and row["dtype"] != "float32"

    def of_limit(row: Mapping[str, Any]) -> float:
        return float(row["of_limit"])

    wanted = [
        ("streaming operators of 32 MB or more: of the copy bandwidth", 0.8, bandwidth, streams),
        ("InteractionTritonFast, B >= 4096: of the limit", 0.75, of_limit, is_interaction),
        ("HSTU, S <= 512: of the copy bandwidth", 0.6, bandwidth, is_short_hstu),
        ("HSTU, S >= 2048: of the bfloat16 matrix rate", 0.4, products, is_long_hstu),
        ("HSTU: times faster than the unfused subgraph", 3.0, speedup, is_hstu),
        ("InteractionTritonFast: times faster than the unfused subgraph", 2.0, speedup, is_interaction),
    ]
    return [{"aim": text, "wanted": least, "worst": worst(value, of)} for text, least, value, of in wanted]


def table(content: Mapping[str, Any] | None) -> str:
    """The aims and the cases in Markdown."""
    found = (content or {}).get("aims") or aims([], {})
    lines = ["| aim | wanted | measured |", "| --- | --- | --- |"]
    for aim in found:
        value = "not yet measured" if aim["worst"] is None else f"{aim['worst']:.2f}"
        lines.append(f"| {aim['aim']} | {aim['wanted']:g} | {value} |")
    if content is None:
        return "\n".join([*lines, "", "Times: not yet measured."])
    told = content["device"]
    lines += [
        "",
        f"Measured on one {told['name']}, driver {told['driver']}, at commit {content['commit']}. Microseconds.",
        "",
    ]
    lines += [
        "| case | type | plugin | of the limit | limited by | torch eager | torch.compile | sdpa | unfused |",
        "| --- " * 9 + "|",
    ]
    for row in content["results"]:
        times = [row["eager_seconds"], row["compiled_seconds"], row["sdpa_seconds"], row["unfused_seconds"]]
        cells = [row["case"], row["dtype"], f"{row['seconds'] * 1e6:.1f}", f"{row['of_limit']:.0%}", row["limited_by"]]
        lines.append(
            "| " + " | ".join([*cells, *("" if time is None else f"{time * 1e6:.1f}" for time in times)]) + " |"
        )
    return "\n".join(lines)


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=common.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--library", type=Path, help="the plugin library; one is built for this GPU if not given")
    arguments.add_argument("--operators", nargs="+", help="only these")
    arguments.add_argument("--dtypes", nargs="+", choices=TYPES, default=["float16", "bfloat16"])
    arguments.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments.add_argument("--dry-run", action="store_true", help="all but the timing, at small sizes, on the CPU")
    given = arguments.parse_args()
    import torch

    cases = [case for case in CASES if given.operators is None or case.operator in given.operators]
    if given.dry_run:
        for case in cases:
            row = dry_run(torch, case)
            print(f"{row['case']}: {row['megabytes']:.1f} MB, {row['gigaflops']:.2f} GFLOP")
        return 0
    if not torch.cuda.is_available():
        print(
            "There is no NVIDIA GPU that torch can use: nothing is measured. (--dry-run runs all but the timing.)",
            file=sys.stderr,
        )
        return NO_GPU
    torch.backends.cuda.matmul.allow_tf32 = False
    library = given.library or _built(torch)
    rates = device_rates(torch, sorted({"bfloat16", *given.dtypes}))
    rows = []
    for case in cases:
        for dtype in given.dtypes:
            rows.append(measured(torch, case, dtype, library, rates))
            print(
                f"{case.name} {dtype}: {rows[-1]['seconds'] * 1e6:.1f} us, {rows[-1]['of_limit']:.0%} of the limit",
                flush=True,
            )
            torch.cuda.empty_cache()
    device = {"name": torch.cuda.get_device_name(), "driver": driver_version(), "cuda": torch.version.cuda}
    content = {
        "command": common.command_line(),
        "machine": common.machine(),
        "device": device,
        "commit": commit(),
        "versions": installed_versions(["onnx-fuse", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu"]),
        "measured": rates,
        "aims": aims(rows, rates),
        "results": rows,
    }
    common.write_json(given.out, content)
    return 0


def _built(torch: Any) -> Path:
    from onnx_fuse.runtime.plugins import aot, plugin_library

    architecture = int("".join(map(str, torch.cuda.get_device_capability())))
    chosen = [architecture] if architecture in aot.ARCHITECTURES else [aot.PTX_ARCHITECTURE]
    target = plugin_library.cache_folder() / f"sm_{chosen[0]}" / plugin_library.LIBRARY
    return plugin_library.build(target, architectures=chosen, progress=print).path


if __name__ == "__main__":
    sys.exit(main())
