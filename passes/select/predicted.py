"""`--select auto`: decides which fused nodes are worth a plugin by what cost_model.py predicts with it against without it.

Without the plugin counts what the node's body adds to the kernels next to it, some of which it may be chained with: a plugin
takes that from TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.graph.onnx_inference import without_weights
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.decisions import Decision, Selection
from onnx_fuse.passes.select.kernel_table import kernels
from onnx_fuse.passes.select.neighbourhood import Neighbourhood
from onnx_fuse.passes.select.opened_model import PRECISIONS, Alternative, OpenedModel
from onnx_fuse.passes.select.plugin_facts import PluginFacts, plugin_facts
from onnx_fuse.passes.select.roofline import Prediction, predict
from onnx_fuse.passes.select.sizes import LENGTH, write_sizes

MARGIN = 0.05
"""A fusion is kept if it is predicted to save at least this part of the time."""


def select_fused(
    model: ModelProto,
    *,
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    device: str | None = None,
    precision: str | None = None,
    alternative: Alternative = "body",
) -> Selection:
    """Predicts for each fused node of the main graph whether its plugin is faster than what TensorRT does without.

    Args:
        model: a fused model with the bodies in it (not changed).
        sizes: name of a dimension -> size, or name of an input -> shape; what is missing is assumed, and named in the result.
        device: name of a GPU (`cost_model.DEVICES`), as a driver gives it or as in the table; `cost_model.DEFAULT_DEVICE` if None.
        precision: "float32", "float16" or "bfloat16" where the model will be converted to it; None: as it is.
        alternative: what TensorRT gets instead of a plugin: the "body" of the node, which computes in float32, or the "original"
            nodes, which compute in the type of the model.

    Raises:
        UsageError: the device or precision is not known, or a size is given for something that the inputs do not have.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"The precision {precision!r} is not known.", f"Choose among {', '.join(PRECISIONS)}.")
    found = cost_model.device_of(device or cost_model.DEFAULT_DEVICE)
    sized = without_weights(model)
    known, assumed = write_sizes(sized, sizes or {})
    opened = OpenedModel(sized, precision, alternative)
    neighbourhood = Neighbourhood(opened)
    decisions = tuple(_decide(node, opened, neighbourhood, found) for node in opened.fused)
    notes = [] if device else [f"no device was named: {found.name} is assumed."]
    if opened.unknown:
        notes.append(f"sizes that depend on data are taken to be {LENGTH}: {', '.join(sorted(opened.unknown)[:5])}.")
    return Selection(
        "auto", found.name, precision or opened.precision(), known, tuple(assumed), decisions, tuple(notes)
    )


def _decide(node: NodeProto, opened: OpenedModel, near: Neighbourhood, device: cost_model.Device) -> Decision:
    name, operator = node.name, node.op_type
    around = near.around(name)
    rest = cost_model.cost(near.steps(around), device, near.is_read_outside(around))
    whole = [*opened.body(name), *around]
    before = cost_model.cost(near.steps(whole), device, near.is_read_outside(whole)).beside(rest)
    facts = plugin_facts(node, opened.tensor, device, kernels(device.capability))
    if facts is None:
        return Decision(name, operator, True, None, None, 0, 0, 0.0, 0.0, "kept: nothing is known of its plugin")
    predictions = [predict(launch, device) for launch in facts.launches]
    after = cost_model.Cost(
        len(predictions),
        sum(launch.bytes for launch in facts.launches),
        sum(prediction.seconds for prediction in predictions),
    )
    keep = facts.refusal is None and after.seconds <= before.seconds * (1 - MARGIN)
    return Decision(
        name,
        operator,
        keep,
        round(1e6 * before.seconds, 2),
        round(1e6 * after.seconds, 2),
        before.launches,
        after.launches,
        round(before.bytes / 1e6, 3),
        round(after.bytes / 1e6, 3),
        _reason(facts, before, after, keep, predictions),
    )


def _reason(
    facts: PluginFacts, before: cost_model.Cost, after: cost_model.Cost, keep: bool, predictions: Sequence[Prediction]
) -> str:
    if facts.refusal is not None:
        return f"the plugin has no kernel for it: {facts.refusal}"
    plugin = f"the plugin takes {_kernels(after.launches)}, {_figures(after)}{_held_up(facts, predictions)}"
    figures = f"{_added(before)}; {plugin}"
    if keep:
        return figures
    if after.seconds < before.seconds:
        return f"it saves less than {MARGIN:.0%}: {figures}"
    is_less = after.bytes <= before.bytes and after.launches <= before.launches
    why = "its kernels are no faster than TensorRT's" if is_less else "TensorRT chains it with its neighbours"
    return f"{why}: {figures}"


def _held_up(facts: PluginFacts, predictions: Sequence[Prediction]) -> str:
    """Which kernel takes longest, and what it waits for."""
    if not predictions:
        return ""
    launch, longest = max(zip(facts.launches, predictions, strict=True), key=lambda pair: pair[1].seconds)
    reached = {
        "memory": f", which reaches {longest.share_of_bandwidth:.0%} of the bandwidth of a copy",
        "products": f", whose loop leaves {longest.share_of_products or 0:.0%} of the rate of products",
        "launch": ", which takes little beside its launch",
    }
    return f", most in {launch.kernel.name}{reached[longest.limited_by]}"


def _added(before: cost_model.Cost) -> str:
    if before.launches >= 0:
        return f"TensorRT adds {_kernels(before.launches)}, {_figures(before)}"
    return f"with it TensorRT joins its neighbours and needs {_kernels(-before.launches)} less, {_figures(before)}"


def _figures(cost: cost_model.Cost) -> str:
    return f"{cost.bytes / 1e6:.1f} MB and {1e6 * cost.seconds:.1f} us"


def _kernels(count: int) -> str:
    return f"{count} {'kernel' if count == 1 else 'kernels'}"
