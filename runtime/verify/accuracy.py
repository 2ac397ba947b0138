"""How far a model in a narrower type is from the float32 model: both run in ONNX Runtime on the same random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.precision import Converted, rounded
from onnx_fuse.runtime.device.memory import needed_bytes
from onnx_fuse.runtime.onnxruntime import room, sessions
from onnx_fuse.runtime.verify.compare import Comparison, compare
from onnx_fuse.runtime.verify.random_inputs import DRAWS, InputSpec, draw_shapes, input_specs
from onnx_fuse.runtime.verify.record import Rejected
from onnx_fuse.runtime.verify.reference import Original, as_arrays, drawn_evidence


@dataclass(frozen=True)
class Accuracy:
    """What was measured.

    Attributes:
        relative: output -> its largest difference, relative to its largest magnitude.
        cases: number of sets of inputs.
        broken: a sentence for each output that is NaN or infinite where the float32 model's is not.
        skipped: why nothing was measured; None where something was.
    """

    relative: dict[str, float]
    cases: int = 0
    broken: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def worst(self) -> float:
        """The largest of the differences."""
        return max(self.relative.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def measure(original: ModelProto, converted: Converted, precision: str, base_dir: str | Path | None = None) -> Accuracy:
    """Compares a model that `passes.precision.convert` made with the model it was made of.

    Args:
        original, converted: both with bodies for their fused nodes.
        precision: what it was converted to. Its arithmetic is emulated, see `passes.precision.rounded`: ONNX Runtime's CPU provider
            has few kernels for bfloat16, and runs float16 in float32 without rounding from node to node.
        base_dir: folder of external data.
    """
    narrow = rounded(converted, precision)
    try:
        specs = input_specs(original)
        shapes = draw_shapes(specs, max(DRAWS, key=lambda draw: draw.batch * draw.length))
        needed = needed_bytes(original, narrow, shapes)
        return room.with_room(lambda: _measured(original, narrow, specs, base_dir), needed)
    except ModelError as error:
        return Accuracy({}, skipped=error.cause)


def _measured(
    original: ModelProto, narrow: ModelProto, specs: Sequence[InputSpec], base_dir: str | Path | None
) -> Accuracy:
    try:
        reference = Original(original, base_dir, ())
        reference.open()
        session = sessions.session(narrow, base_dir=base_dir)
        rejected: list[Rejected] = []
        found: list[Comparison] = []
        cases = 0
        for evidence in drawn_evidence(reference, specs, 0, rejected):
            cases += 1
            outputs = as_arrays(sessions.run(session, evidence.inputs))
            found += [compare(name, want, outputs[name], float("inf")) for name, want in evidence.expected.items()]
    except ModelError as error:
        return Accuracy({}, skipped=error.cause)
    if not cases:
        return Accuracy({}, skipped=f"the model runs on no random inputs: {rejected[-1].reason}")
    return Accuracy(_worst(found), cases, _broken(found))


def _worst(found: Sequence[Comparison]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for one in found:
        worst[one.output] = max(worst.get(one.output, 0.0), one.relative)
    return worst


def _broken(found: Sequence[Comparison]) -> tuple[str, ...]:
    """Differences that no tolerance covers: other NaN or infinite values, other integers."""
    first: dict[str, str] = {}
    for one in found:
        if one.problem is not None:
            first.setdefault(one.output, f"output {one.output} {one.problem}")
    return tuple(first.values())
