"""Device time of every plugin, through the harness and without TensorRT, beside torch, the unfused ONNX subgraph and a prediction.

    python benchmarks/kernels.py                 # on a machine with an NVIDIA GPU; --library if one is built already
    python benchmarks/kernels.py --dry-run       # anywhere: all but the timing, at small sizes

Each time is the median over replays of a CUDA graph that goes through several sets of buffers, together larger than the L2 cache.
The limit of a case is the longest of: the bytes that have to be moved at the bandwidth of a copy, the products at the rate of a
large matrix product of that type, and the launch of an empty kernel, all measured on the same GPU.

The cases that tell most come first, and each line is written as soon as it is measured: a run that is stopped, or whose time is up,
loses nothing. What has to be compiled first (torch.compile) or needs another library (ONNX Runtime) comes after all else.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx
from onnx import helper

from benchmarks import common, jsonl, kernel_costs
from benchmarks.kernel_cases import CASES, TYPES, Case, fused_op
from onnx_fuse.passes.select import cost_model, kernel_table
from onnx_fuse.versions import installed_versions

NO_GPU = 2  # exit code
RESULT = common.RESULTS / "kernels.jsonl"
MINUTES = 8.0
DEVICE = "cuda"
REPLAYS, FEWEST_REPLAYS, RUNS_OF_A_GRAPH = 30, 5, 20
SECONDS_OF_ONE = 0.4
"""How long the replays of one measurement may take, unless they are the fewest."""
STREAMING = (
    *("FusedSwish", "FusedSkipLayerNorm", "FusedEmbedLayerNorm"),
    *("FMInteraction", "HierarchicalSequenceFusion"),
)


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

    def replayed() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end) / 1e3)

    longest = max(replayed() for _ in range(3))
    count = min(REPLAYS, max(FEWEST_REPLAYS, int(SECONDS_OF_ONE / max(longest, 1e-9))))
    return statistics.median(replayed() for _ in range(count)) / total


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
    try:
        import onnxruntime
    except ImportError:
        return None
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


@dataclass(frozen=True)
class Measurement:
    """A case in a type, with its tensors on the device.

    Attributes:
        inputs: sets of buffers, together larger than the cache.
    """

    torch: Any
    case: Case
    dtype: str
    inputs: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, torch: Any, case: Case, dtype: str) -> Measurement:
        sets = min(max(2, math.ceil(3 * cache_bytes(torch) / case.bytes(dtype))), 64)
        return cls(torch, case, dtype, [drawn(torch, case, dtype, DEVICE, seed) for seed in range(sets)])

    def peer(self, function: Callable[..., Any] | None) -> float | None:
        """Seconds of a form in torch; None where there is none, or it does not run here."""
        torch = self.torch
        if function is None:
            return None
        try:
            return seconds(torch, [lambda item=item: results(torch, self.case, function, item) for item in self.inputs])
        except Exception as error:  # torch's own, one class for each: memory that is full, a compiler that is not there
            self._tell("torch", error)
            return None

    def plugin(self, library: Path, rates: Mapping[str, Any], device: cost_model.Device | None) -> dict[str, Any]:
        """The plugin beside the limit, the prediction (None without a `device`), and torch without compiling."""
        from onnx_fuse.runtime.plugins.torch_harness import Node, bind

        torch, case, dtype = self.torch, self.case, self.dtype
        nodes = [Node(case.operator, case.attributes, item, tuple(case.outputs)) for item in self.inputs]
        bound = [bind(library, node, DEVICE) for node in nodes]
        plugin = seconds(torch, [lambda item=item: item.enqueue(stream(torch)) for item in bound])
        limit, by = case.limit(dtype, rates)
        told = None
        if device is not None:
            told = kernel_costs.predicted(case, device, kernel_table.kernels(device.capability), dtype)
        return {
            "case": case.name,
            "operator": case.operator,
            "sizes": dict(case.sizes),
            "dtype": dtype,
            "bytes": case.bytes(dtype),
            "flops": case.flops(case.sizes),
            "kernels": list(bound[0].kernels),
            "seconds": plugin,
            "predicted_seconds": told and told["predicted_seconds"],
            "predicted_kernels": told and [launch["variant"] for launch in told["launches"]],
            "limit_seconds": limit,
            "limited_by": by,
            "of_limit": limit / plugin,
            "sdpa_seconds": self.peer(case.fast),
            "eager_seconds": self.peer(case.eager),
        }

    def peers(self) -> dict[str, Any]:
        """What has to be compiled first, or needs ONNX Runtime."""
        row: dict[str, Any] = {"case": self.case.name, "dtype": self.dtype}
        row["compiled_seconds"] = self.peer(self.torch.compile(self.case.eager, dynamic=False))
        try:
            row["onnxruntime_seconds"] = onnxruntime_seconds(self.torch, self.case, self.dtype, self.inputs[0])
        except Exception as error:  # ONNX Runtime's own: it lacks an operator for this type
            self._tell("ONNX Runtime", error)
            row["onnxruntime_seconds"] = None
        return row

    def _tell(self, where: str, error: Exception) -> None:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        print(f"{self.case.name} {self.dtype}: not in {where}: {line}", file=sys.stderr)


def run(
    torch: Any,
    cases: Sequence[Case],
    dtypes: Sequence[str],
    library: Path,
    out: Path,
    *,
    minutes: float,
    device: cost_model.Device | None,
    about: Mapping[str, Any],
) -> None:
    """Measures cases in their order and writes each line as it comes; begins nothing more once the time is up."""
    begun = time.monotonic()
    planned = [(case, dtype) for dtype in dtypes for case in cases]
    jsonl.begin(out, {**about, "planned": [f"{case.name} {dtype}" for case, dtype in planned]})
    rates = device_rates(torch, sorted({"bfloat16", *dtypes}))
    jsonl.write(out, {"measured": rates})
    for step in ("plugin", "peers"):
        for case, dtype in planned:
            if time.monotonic() - begun > 60 * minutes:
                return
            measurement = Measurement.of(torch, case, dtype)
            row = measurement.plugin(library, rates, device) if step == "plugin" else measurement.peers()
            jsonl.write(out, row)
            if step == "plugin":
                print(f"{case.name} {dtype}: {in_words(row)}", flush=True)
            del measurement
            torch.cuda.empty_cache()


def in_words(row: Mapping[str, Any]) -> str:
    told = f"{row['seconds'] * 1e6:.1f} us, {row['of_limit']:.0%} of the limit"
    if row["predicted_seconds"] is None:
        return told
    return f"{told}, predicted {row['predicted_seconds'] * 1e6:.1f} us"


def read(file: Path) -> dict[str, Any]:
    """What a run has written so far: the facts about it, and a row for each case that was measured."""
    content: dict[str, Any] = {"planned": [], "measured": {}}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in jsonl.read(file):
        if "case" in line:
            rows.setdefault((line["case"], line["dtype"]), {}).update(line)
        else:
            content |= line
    found = [row for row in rows.values() if "seconds" in row]
    return {**content, "results": found, "aims": aims(found, content["measured"])}


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
        unfused = row.get("onnxruntime_seconds") or row["eager_seconds"]
        return math.inf if unfused is None else float(unfused / row["seconds"])

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


def errors_of_prediction(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each operator, and for all: how many cases were predicted, the measured by the predicted time (geometric mean, least and
    largest), and in how many of them the kernels were those that were predicted."""
    found = []
    known = [row for row in rows if row["predicted_seconds"] is not None]
    for operator in dict.fromkeys([*(row["operator"] for row in known), *(["all"] if known else [])]):
        mine = [row for row in known if operator in (row["operator"], "all")]
        ratios = [row["seconds"] / row["predicted_seconds"] for row in mine]
        found.append(
            {
                "operator": operator,
                "cases": len(mine),
                "mean": statistics.geometric_mean(ratios),
                "least": min(ratios),
                "largest": max(ratios),
                "as_predicted": sum(row["kernels"] == row["predicted_kernels"] for row in mine),
            }
        )
    return found


def table(content: Mapping[str, Any] | None) -> str:
    """The aims, the cases, and how good the predictions were, in Markdown."""
    found = (content or {}).get("aims") or aims([], {})
    lines = ["| aim | wanted | measured |", "| --- | --- | --- |"]
    for aim in found:
        value = "not yet measured" if aim["worst"] is None else f"{aim['worst']:.2f}"
        lines.append(f"| {aim['aim']} | {aim['wanted']:g} | {value} |")
    if content is None:
        return "\n".join([*lines, "", "Times: not yet measured."])
    told, rows = content["device"], content["results"]
    lines += [
        "",
        f"Measured on one {told['name']}, driver {told['driver']}, at commit {content['commit']}: {len(rows)} of "
        f"{len(content['planned'])} cases. Microseconds.",
        "",
        "| case | type | plugin | predicted | of the limit | limited by | torch eager | torch.compile | sdpa | ONNX Runtime |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        peers = ("eager_seconds", "compiled_seconds", "sdpa_seconds", "onnxruntime_seconds")
        times = [row["seconds"], row["predicted_seconds"], *(row.get(name) for name in peers)]
        plugin, predicted, *others = ("" if time is None else f"{time * 1e6:.1f}" for time in times)
        cells = [row["case"], row["dtype"], plugin, predicted, f"{row['of_limit']:.0%}", row["limited_by"], *others]
        lines.append(f"| {' | '.join(cells)} |")
    if errors := errors_of_prediction(rows):
        lines += [
            "",
            "Measured by predicted time:",
            "",
            "| operator | cases | mean | least | largest | with the kernels that were predicted |",
            "| --- " + "| ---: " * 5 + "|",
        ]
        lines += [
            f"| {item['operator']} | {item['cases']} | {item['mean']:.2f} | {item['least']:.2f} | {item['largest']:.2f} "
            f"| {item['as_predicted']} |"
            for item in errors
        ]
    return "\n".join(lines)


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def commit() -> str:
    if not shutil.which("git"):
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=common.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--library", type=Path, help="the plugin library; one is built for this GPU if not given")
    arguments.add_argument("--operators", nargs="+", help="only these")
    arguments.add_argument("--dtypes", nargs="+", choices=TYPES, default=["bfloat16", "float16"])
    arguments.add_argument("--minutes", type=float, default=MINUTES, help="begin no measurement after so long")
    arguments.add_argument("--out", type=Path, default=RESULT, help="the result file, of JSON lines")
    arguments.add_argument("--dry-run", action="store_true", help="all but the timing, at small sizes, on the CPU")
    given = arguments.parse_args()
    import torch

    cases = [case for case in CASES if given.operators is None or case.operator in given.operators]
    if given.dry_run:
        for case in {case.shrunk().name: case for case in reversed(cases)}.values():  # many have the same small size
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
    name = torch.cuda.get_device_name()
    about = {
        "command": common.command_line(),
        "machine": common.machine(),
        "device": {"name": name, "driver": driver_version(), "cuda": torch.version.cuda},
        "commit": commit(),
        "versions": installed_versions(["onnx-fuse", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu"]),
    }
    device = cost_model.device_for([name, f"sm_{_capability(torch)}"])
    run(torch, cases, given.dtypes, library, given.out, minutes=given.minutes, device=device, about=about)
    print(table(read(given.out)))
    return 0


def _capability(torch: Any) -> int:
    return int("".join(map(str, torch.cuda.get_device_capability())))


def _built(torch: Any) -> Path:
    from onnx_fuse.runtime.plugins import aot, plugin_library

    architecture = _capability(torch)
    chosen = [architecture] if architecture in aot.ARCHITECTURES else [aot.PTX_ARCHITECTURE]
    target = plugin_library.cache_folder() / f"sm_{chosen[0]}" / plugin_library.LIBRARY
    return plugin_library.build(target, architectures=chosen, progress=print).path


if __name__ == "__main__":
    sys.exit(main())
