"""How fast a model runs: latency and its parts, throughput, layers, and the ratio of two models that take turns."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.files import io
from onnx_fuse.runtime.device import engine_file
from onnx_fuse.runtime.device.executor import LayerTime
from onnx_fuse.runtime.engine import Engine, Timing
from onnx_fuse.runtime.onnxruntime import room
from onnx_fuse.runtime.verify import random_inputs
from onnx_fuse.runtime.verify.random_inputs import Draw, InputSpec
from onnx_fuse.runtime.verify.user_inputs import given_inputs

_CONFIDENCE = 1.96  # standard deviations that hold 95% of a normal distribution
_FEWEST_PAIRS = 10  # fewer give no interval of 95%

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Summary:
    """Seconds of many calls."""

    min: float
    max: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Summary:
        """The summary of at least one measurement; percentiles are interpolated."""
        p90, p95, p99 = np.percentile(seconds, (90, 95, 99))
        mean = statistics.fmean(seconds)
        return Summary(min(seconds), max(seconds), mean, statistics.median(seconds), float(p90), float(p95), float(p99))


@dataclass(frozen=True)
class Measurement:
    """How fast a model ran.

    Attributes:
        description: what ran where.
        shapes: of the inputs.
        streams: calls at the same time.
        runs: calls that counted.
        seconds: how long these took together.
        throughput: calls a second.
        phases: a summary for each field of `Timing` that there is on this device.
    """

    description: str
    shapes: Mapping[str, tuple[int, ...]]
    streams: int
    runs: int
    seconds: float
    throughput: float
    phases: Mapping[str, Summary]

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON, times in seconds."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """How many times as long another model takes: the median of the pairs, and between what it lies with 95% confidence."""

    median: float
    low: float
    high: float
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether the two differ by more than noise."""
        return not self.low <= 1 <= self.high


def measure(
    engine: Engine, inputs: Arrays, *, streams: int = 1, warm_up: float = 0.2, duration: float = 3, iterations: int = 10
) -> Measurement:
    """Calls an engine again and again.

    Args:
        engine: opened with as many streams.
        inputs: input name -> array, the same for every call.
        streams: threads that call at the same time.
        warm_up: seconds of calls that do not count.
        duration: seconds of calls that do.
        iterations: how often each thread calls at least.
    """
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda _: _calls(engine, inputs, warm_up, 2), range(streams)))
        start = time.perf_counter()
        found = list(pool.map(lambda _: _calls(engine, inputs, duration, iterations), range(streams)))
        seconds = time.perf_counter() - start
    timings = [timing for of_thread in found for timing in of_thread]
    phases = {
        name: Summary.of([getattr(timing, name) for timing in timings])
        for name in ("latency", "enqueue", "h2d", "compute", "d2h")
        if getattr(timings[0], name) is not None
    }
    shapes = {name: array.shape for name, array in inputs.items()}
    return Measurement(engine.description, shapes, streams, len(timings), seconds, len(timings) / seconds, phases)


def _calls(engine: Engine, inputs: Arrays, seconds: float, fewest: int) -> list[Timing]:
    timings: list[Timing] = []
    end = time.perf_counter() + seconds
    while len(timings) < fewest or time.perf_counter() < end:
        timings.append(engine.timed(inputs)[1])
    return timings


def compare(
    engine: Engine, other: Engine, inputs: Arrays, *, warm_up: float = 0.2, duration: float = 3, iterations: int = 10
) -> Ratio:
    """How many times as long `other` takes on the same inputs.

    The two take turns, so that what slows the machine for a while slows both; each pair of calls gives a ratio of latencies.

    Raises:
        UsageError: `other` does not take these inputs.
    """
    for each in (engine, other):
        _calls(each, inputs, warm_up, 2)
    ratios: list[float] = []
    end = time.perf_counter() + duration
    while len(ratios) < max(iterations, _FEWEST_PAIRS) or time.perf_counter() < end:
        pair = (engine, other) if len(ratios) % 2 else (other, engine)
        latency = {each: each.timed(inputs)[1].latency for each in pair}
        ratios.append(latency[other] / latency[engine])
    return ratio_of(ratios)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The median of the pairs' ratios, with the order statistics that hold the true median with 95% confidence (the sign test's
    interval, in its normal approximation): no outlier moves it far, whatever the distribution."""
    ordered, count = sorted(ratios), len(ratios)
    reach = _CONFIDENCE * math.sqrt(count) / 2
    low, high = max(math.floor(count / 2 - reach), 0), min(math.ceil(count / 2 + reach), count - 1)
    return Ratio(statistics.median(ordered), ordered[low], ordered[high], count)


def share_of_products(layers: Sequence[LayerTime]) -> float | None:
    """The part of the layers' time spent in matrix products, where that is known of the layers that take half of it or more."""
    total = sum(layer.seconds for layer in layers)
    known = [layer for layer in layers if layer.products is not None]
    covered = sum(layer.seconds for layer in known)
    if not total or covered < total / 2:
        return None
    return sum(layer.products or 0.0 for layer in known) / covered


# --- inputs ----------------------------------------------------------------------------------------------------------


def specs_of(path: Path) -> tuple[InputSpec, ...]:
    """What a model or engine takes. An engine's specs are those of the ONNX model beside it, which tells ids from other numbers."""
    if not os.path.isfile(engine_file.record_path(path)):
        return random_inputs.input_specs(io.load(path))
    record = engine_file.read(path)
    model = path.parent / record.model
    if os.path.isfile(model):
        return random_inputs.input_specs(io.load(model))
    return tuple(InputSpec(item.name, _elem_type(item.dtype), item.shape, "data") for item in record.inputs)


def is_model(path: Path) -> bool:
    """Whether there is a file that ONNX Runtime is to open."""
    return os.path.isfile(path) and not engine_file.is_engine(path)


def require_room(path: Path, inputs: Arrays, *, optimise: bool = True) -> None:
    """Asks for the memory to run a model in ONNX Runtime, before it is opened.

    Raises:
        ModelError: there is not enough memory, or the model cannot be read.
    """
    room.require_room(io.load(path), inputs, base_dir=path.parent, optimise=optimise)


def best_sizes(path: Path, specs: Sequence[InputSpec]) -> dict[str, int]:
    """Symbol -> the size that an engine's first profile was optimised for; nothing for a model."""
    if not os.path.isfile(engine_file.record_path(path)):
        return {}
    best = {name: of.opt for profile in engine_file.read(path).profiles[:1] for name, of in profile.items()}
    pairs = (pair for spec in specs for pair in zip(spec.dims or (), best.get(spec.name, ()), strict=False))
    return {dim: size for dim, size in pairs if isinstance(dim, str)}


def _elem_type(dtype: str) -> int:
    from onnx import helper

    from onnx_fuse.runtime.device.arrays import numpy_dtype

    return helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))


def with_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[InputSpec, ...]:
    """The specs with some inputs' shapes given; a symbol that they share with other inputs has its number there too.

    Raises:
        UsageError: there is no such input, or its shape cannot be that.
    """
    sizes: dict[str, int] = {}
    wanted = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        if name not in wanted:
            raise UsageError(f"The model has no input {name!r}.", f"It takes: {', '.join(wanted)}.")
        dims = wanted[name].dims
        fits = dims is None or (
            len(dims) == len(shape)
            and all(
                sizes.setdefault(dim, size) == size if isinstance(dim, str) else dim == size
                for dim, size in zip(dims, shape, strict=True)
            )
        )
        if not fits:
            raise UsageError(
                f"Input {name!r} cannot have the shape {list(shape)}.",
                f"The model says {list(dims or ())}{_of_others(dims, sizes)}.",
            )
    return tuple(
        replace(spec, dims=tuple(shapes[spec.name])) if spec.name in shapes else _sized(spec, sizes) for spec in specs
    )


def _sized(spec: InputSpec, sizes: Mapping[str, int]) -> InputSpec:
    """The spec with the sizes of symbols that are known."""
    if spec.dims is None:
        return spec
    return replace(spec, dims=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims))


def _of_others(dims: Sequence[random_inputs.Dim] | None, sizes: Mapping[str, int]) -> str:
    known = [f"{dim} = {sizes[dim]}" for dim in dims or () if isinstance(dim, str) and dim in sizes]
    return f", with {', '.join(known)}" if known else ""


def inputs_for(
    specs: Sequence[InputSpec],
    *,
    given: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    batch: int = 1,
    length: int = 64,
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays to measure with: those of an .npz file, or random ones; open sizes are those of `sizes`, by symbol, else `batch` on
    first axes and `length` elsewhere.

    Raises:
        UsageError: the file does not fit the model.
        ModelError: there are no random data for an input.
    """
    if given is None:
        return random_inputs.draw_inputs(
            [_sized(spec, sizes or {}) for spec in specs], Draw(batch, length, equal=True), seed
        )
    arrays = given_inputs(given, specs)
    return {spec.name: arrays[spec.name].astype(random_inputs.numpy_type(spec), copy=False) for spec in specs}
