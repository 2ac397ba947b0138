"""Which fused nodes of a model are worth it: as the cost model predicts, or as timing their model says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse.passes.select.decisions import Selection
from onnx_fuse.passes.select.measured import Verdicts, by_measurement, choose
from onnx_fuse.passes.select.opened_model import Alternative
from onnx_fuse.passes.select.predicted import select_fused
from onnx_fuse.runtime.device.library_file import cache_folder


def selected(
    method: str,
    fused: ModelProto,
    build: Callable[[Selection, Sequence[str]], ModelProto],
    *,
    among: Set[str],
    build_engine: Callable[..., Any],
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    device: str | None = None,
    precision: str | None = None,
    alternative: Alternative = "body",
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Decides for each fused node of the main graph.

    Args:
        method: "auto" or "measured".
        fused: the model with all of them.
        build: for "measured", the model in which only some operators are fused, of a prediction and their names.
        build_engine: makes a TensorRT engine of a model, for "measured".
        among: names of the nodes to decide on; others stay.
        sizes, device, precision, alternative: as for `select_fused`; "measured" takes "cpu" for a device, or the GPU there is.
        folder: of the external data.
        progress: called with a word on what is being done.

    Raises:
        UsageError: a size, device or precision is not known; the model does not take the sizes; or nothing can be timed here.
    """
    of_device = None if method == "measured" else device
    assumed: tuple[str, ...] | None = None
    if method == "measured":
        from onnx_fuse.runtime.measure.taken_sizes import taken_sizes  # brings onnxruntime along

        sizes, assumed = taken_sizes(fused, sizes or {}, folder)
    predicted = select_fused(fused, sizes=sizes, device=of_device, precision=precision, alternative=alternative)
    predicted = replace(predicted, assumed=predicted.assumed if assumed is None else assumed)
    predicted = replace(predicted, decisions=tuple(item for item in predicted.decisions if item.node in among))
    if method == "auto":
        return predicted
    from onnx_fuse.runtime.measure.timers import timer_for  # brings onnxruntime along

    timer = timer_for(device, predicted.sizes, folder, build_engine)
    gains: dict[str, float] = {}
    for item in predicted.decisions:
        gains[item.operator] = gains.get(item.operator, 0.0) + (item.before_us or 0.0) - (item.after_us or 0.0)
    verdicts = choose(
        sorted(gains, key=lambda name: -gains[name]),
        lambda kept: build(predicted, kept),
        timer,
        verdicts=Verdicts(cache_folder() / "verdicts"),
        sizes=predicted.sizes,
        progress=progress,
    )
    return by_measurement(predicted, verdicts, timer.name)
