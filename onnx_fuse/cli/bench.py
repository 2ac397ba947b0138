"""The command `onnx-fuse bench`: how fast a model or an engine runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_fuse.cli.common import WITH_LIBRARY, open_console, show_progress
from onnx_fuse.cli.paths import ENGINE_OR_MODEL, INPUT
from onnx_fuse.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_fuse.runtime.device.executor import LayerTime
    from onnx_fuse.runtime.engine import Engine
    from onnx_fuse.runtime.measure.profile import Measurement, Ratio, Summary

_SHOWN = 20  # layers, those that take longest
_TITLES = {
    "latency": "Latency",
    "enqueue": "Enqueue Time",
    "h2d": "H2D Latency",
    "compute": "GPU Compute Time",
    "d2h": "D2H Latency",
}


def bench(
    model: Annotated[Path, ENGINE_OR_MODEL] = typer.Argument(
        metavar="ENGINE_OR_MODEL", help="An engine, or an ONNX model for ONNX Runtime."
    ),
    compare: Annotated[Path | None, ENGINE_OR_MODEL] = typer.Option(
        None, metavar="OTHER", help="Compare with another model or engine."
    ),
    shapes: list[str] = typer.Option([], metavar="NAME:1x64", help="Shape of an input; may be repeated."),
    batch: int = typer.Option(1, min=0, help="Size of open first dimensions."),
    length: int = typer.Option(64, min=0, help="Size of other open dimensions."),
    inputs: Annotated[Path | None, INPUT] = typer.Option(None, metavar="X.npz", help="Inputs, instead of random ones."),
    seed: int = typer.Option(0, min=0, help="Seed of the random inputs."),
    warm_up: float = typer.Option(200, min=0, metavar="MS", help="Milliseconds that do not count."),
    duration: float = typer.Option(3, min=0, metavar="S", help="Seconds that count."),
    iterations: int = typer.Option(10, min=1, metavar="N", help="Calls that count, at least."),
    streams: int = typer.Option(1, min=1, metavar="N", help="Calls at the same time."),
    threads: int | None = typer.Option(None, min=1, metavar="N", help="Threads of a call in ONNX Runtime."),
    cuda_graphs: bool = typer.Option(False, "--cuda-graphs", help="Capture the engine in a CUDA graph."),
    no_optimise: bool = typer.Option(False, "--no-optimise", help="Let ONNX Runtime run the graph as it is."),
    library: bool | None = typer.Option(
        None, WITH_LIBRARY, help="Run fused nodes by the kernel library. [default: if there is one]", show_default=False
    ),
    layers: bool = typer.Option(False, "--layers", help="Times of the layers, by node of the model."),
    nvtx: bool = typer.Option(False, "--nvtx", help="Mark the calls for NVIDIA's profilers."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure how fast a model or an engine runs."""
    from onnx_fuse import runtime
    from onnx_fuse.runtime.measure import profile

    given = _shapes(shapes)
    options: dict[str, Any] = {"streams": streams, "cuda_graphs": int(cuda_graphs), "nvtx": nvtx}
    options |= {"optimise": not no_optimise, "threads": threads, "library": library}
    effort: dict[str, Any] = {"warm_up": warm_up / 1e3, "duration": duration, "iterations": iterations}
    with show_progress(as_json, f"opening {model.name}") as progress:
        # A model in ONNX Runtime is opened once it is known that there is memory for it; what is no file says so here.
        engine = None if profile.is_model(model) else runtime.open(model, **options)
        other = None if compare is None or profile.is_model(compare) else runtime.open(compare, **options)
        specs = profile.with_shapes(profile.specs_of(model), given)
        sizes = profile.best_sizes(model, specs)
        arrays = profile.inputs_for(specs, given=inputs, sizes=sizes, batch=batch, length=length, seed=seed)
        if engine is None:
            profile.require_room(model, arrays, optimise=not no_optimise)
            engine = runtime.open(model, **options)
        if compare is not None and other is None:
            profile.require_room(compare, arrays, optimise=not no_optimise)
            other = runtime.open(compare, **options)
        progress(f"running {model.name}")
        measured = profile.measure(engine, arrays, streams=streams, **effort)
        ratio = second = None
        if other and compare:
            progress(f"running {model.name} and {compare.name} in turns")
            second = profile.measure(other, arrays, streams=streams, **effort)
            ratio = profile.compare(engine, other, arrays, **effort)
        found = engine.layers(arrays) if layers else []
    if as_json:
        typer.echo(json.dumps({**_facts(measured, second, ratio, found), **_kernels(engine)}, indent=2))
        return
    console = open_console()
    _show(console, measured)
    if second and ratio and compare:
        _show(console, second)
        _show_ratio(console, ratio, model.name, compare.name)
    if found:
        _show_layers(console, found)


def _shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """NAME:1x64 as name -> sizes; names may hold colons."""
    shapes = {}
    for value in (part for item in values for part in item.split(",")):
        name, _, sizes = value.rpartition(":")
        parts = sizes.split("x") if sizes else []
        if not name or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(
                f"--shapes {value!r} is not of the form NAME:SIZES.", "For example: --shapes input_ids:1x64"
            )
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _facts(
    measured: Measurement, second: Measurement | None, ratio: Ratio | None, layers: Sequence[LayerTime]
) -> dict[str, Any]:
    from onnx_fuse.runtime.measure import profile

    facts = measured.to_dict()
    if second and ratio:
        facts["other"] = second.to_dict()
        facts["ratio"] = {**asdict(ratio), "differs": ratio.differs}
    if layers:
        facts["layers"] = [asdict(layer) for layer in layers]
        facts["share_of_products"] = profile.share_of_products(layers)
    return facts


def _kernels(engine: Engine) -> dict[str, Any]:
    from onnx_fuse.runtime import OrtSession

    return {"kernels": engine.kernels.to_dict()} if isinstance(engine, OrtSession) else {}


def _show(console: Console, measured: Measurement) -> None:
    """The summary in trtexec's layout."""
    from onnx_fuse.cli.render import say

    shapes = ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in measured.shapes.items())
    say(console, measured.description)
    say(console, f"Inputs: {shapes or 'none'}")
    say(console, "=== Performance summary ===", "bold")
    say(console, f"Throughput: {measured.throughput:.6g} qps")
    for name, summary in measured.phases.items():
        title = "CPU Compute Time" if name == "compute" and "h2d" not in measured.phases else _TITLES[name]
        say(console, f"{title}: {_line(summary)}")
    say(console, f"Total Host Walltime: {measured.seconds:.6g} s, {measured.runs} runs, {measured.streams} at a time")
    say(console)


def _line(summary: Summary) -> str:
    values = asdict(summary)
    titles = {**{name: name for name in values}, **{f"p{of}": f"percentile({of}%)" for of in (90, 95, 99)}}
    return ", ".join(f"{titles[name]} = {seconds * 1e3:.6g} ms" for name, seconds in values.items())


def _show_ratio(console: Console, ratio: Ratio, model: str, other: str) -> None:
    from onnx_fuse.cli.render import say

    verdict = "" if ratio.differs else "; no difference beyond noise"
    say(
        console,
        f"{other} takes {ratio.median:.3f} times as long as {model} (95% confidence: {ratio.low:.3f} to {ratio.high:.3f}, "
        f"{ratio.pairs} pairs of calls{verdict}).",
        "bold",
    )


def _show_layers(console: Console, layers: Sequence[LayerTime]) -> None:
    from onnx_fuse.cli.render import row, say, table
    from onnx_fuse.runtime.measure import profile

    total = sum(layer.seconds for layer in layers)
    longest = sorted(layers, key=lambda layer: -layer.seconds)[:_SHOWN]
    shown = table("ms", "share", "operator", "node", numbers=(0, 1))
    for layer in longest:
        share = layer.seconds / total if total else 0.0
        names = ", ".join(layer.nodes) or f"({layer.layer})"
        row(shown, f"{layer.seconds * 1e3:.3f}", f"{share:.1%}", ", ".join(layer.operators), names)
    console.print(shown)
    if len(layers) > len(longest):
        rest = total - sum(layer.seconds for layer in longest)
        say(console, f"{len(layers) - len(longest)} more layers: {rest * 1e3:.3f} ms")
    products = profile.share_of_products(layers)
    in_products = "not known" if products is None else f"{products:.1%}"
    say(console, f"All layers: {total * 1e3:.3f} ms; in matrix products: {in_products}")
