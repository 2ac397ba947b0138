"""What was decided for each fused node of a model, whoever decided it, and the model without those that are not worth it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from onnx import ModelProto

from onnx_fuse.passes.graph import inlining

Method = Literal["all", "auto", "measured"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How to choose: every fusion, those predicted to pay, those that make the model faster when it is timed."""


@dataclass(frozen=True)
class Decision:
    """What was decided for one fused node.

    Attributes:
        node, operator: the fused node.
        keep: whether it stays a fused node.
        before_us: microseconds that TensorRT without the plugin is predicted to need beyond those for the kernels next to it
            (less than 0 where the node lets it join them); None where nothing was predicted.
        after_us: microseconds predicted for the plugin, or None.
        launches_before, launches_after: kernels in these times.
        megabytes_before, megabytes_after: what these move.
        reason: the sentence that a person reads.
        ratio: where it was measured: time of the model with the operator by that without.
    """

    node: str
    operator: str
    keep: bool
    before_us: float | None
    after_us: float | None
    launches_before: int
    launches_after: int
    megabytes_before: float
    megabytes_after: float
    reason: str
    ratio: float | None = None


@dataclass(frozen=True)
class Selection:
    """The decisions for a model, and what they were made for.

    Attributes:
        method: "auto" (predicted) or "measured".
        device: the GPU.
        precision: of the floating-point values.
        sizes: dimension -> size.
        assumed: the dimensions among them that nobody gave.
        decisions: one for each fused node of the main graph.
        notes: what a reader should know.
    """

    method: str
    device: str
    precision: str
    sizes: Mapping[str, int]
    assumed: tuple[str, ...]
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> set[str]:
        """Names of the fused nodes that are not worth it."""
        return {item.node for item in self.decisions if not item.keep}

    def keeping(self, names: Set[str]) -> Selection:
        """The same, with these fused nodes kept though they do not pay."""
        decisions = [
            replace(item, keep=True, reason=f"kept because it is required; {item.reason}")
            if item.node in names and not item.keep
            else item
            for item in self.decisions
        ]
        return replace(self, decisions=tuple(decisions))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def leave_out(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with the bodies of these fused nodes in their places; the rest as it is."""
    unwanted = set(names)
    return inlining.inline_nodes(model, lambda node: (node.name or node.output[0]) in unwanted)
