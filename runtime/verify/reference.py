"""What the original computes: run once on every set of inputs, so that fused models can be compared with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.verify.random_inputs import (
    DRAWS,
    FALLBACK_LENGTHS,
    Array,
    Draw,
    InputSpec,
    draw_inputs,
    draw_shapes,
    has_floats,
    has_mask,
)
from onnx_fuse.runtime.verify.record import Case, Rejected

_ENOUGH_CASES = 2
_MOST_HINTS = 24
_INNER_BYTES = 512 << 20
_OUT_OF_BOUNDS = re.compile(
    r"out of (data )?(bounds|range)|out-of-(bounds|range)|indices element|index .* (must be|bounds)"
)


@dataclass(frozen=True)
class Evidence:
    """Inputs of one case and what the original makes of them: its outputs, and values inside it."""

    case: Case
    inputs: dict[str, Array]
    expected: dict[str, Array]
    inner: dict[str, Array]


@dataclass
class Original:
    """The original in ONNX Runtime, with some of the values inside it as further outputs.

    Attributes:
        model, base_dir: the model, and the folder of its external data.
        inner: names of values inside it.
        session: set by `open`.
        kept: bytes of inner values handed out so far; beyond a limit there are no more.
    """

    model: ModelProto
    base_dir: str | Path | None
    inner: Sequence[str]
    session: Any = None
    kept: int = 0

    def open(self) -> None:
        """Raises:
        ModelError: ONNX Runtime cannot load it.
        """
        self.session = sessions.session(self.model, base_dir=self.base_dir, extra_outputs=self.inner)

    def run(self, case: Case, inputs: dict[str, Array]) -> Evidence:
        """Raises:
        ModelError: it does not run on these inputs.
        """
        outputs = sessions.run(self.session, inputs)
        inner = as_arrays({name: outputs.pop(name) for name in self.inner})
        self.kept += sum(array.nbytes for array in inner.values())
        return Evidence(case, inputs, as_arrays(outputs), inner if self.kept <= _INNER_BYTES else {})


def given_evidence(original: Original, inputs: dict[str, Array]) -> Evidence:
    """What the original makes of the user's inputs.

    Raises:
        UsageError: it does not run on them.
    """
    case = Case("given inputs", {name: array.shape for name, array in inputs.items()})
    try:
        return original.run(case, inputs)
    except ModelError as error:
        raise UsageError(
            f"the original does not run on the given inputs: {error.cause}", "Give inputs that it runs on."
        ) from error


def drawn_evidence(
    original: Original,
    specs: Sequence[InputSpec],
    seed: int,
    rejected: list[Rejected],
    draws: Iterable[Draw] = DRAWS,
) -> Iterator[Evidence]:
    """What the original makes of random inputs, as far as it runs on them; what it refuses is added to `rejected`."""
    trial = _Trial(original, specs, seed, rejected)
    ran = 0
    for draw in draws:
        evidence = trial.run(draw)
        if evidence is not None:
            ran += 1
            yield evidence
    if ran < _ENOUGH_CASES:
        # Exporters now and then write one length down; the refusals tell which: "requested shape: {7,12,16}".
        told = sorted({int(size) for refusal in rejected for size in re.findall(r"\b\d{1,4}\b", refusal.reason)})
        for length in (*FALLBACK_LENGTHS, *told[:_MOST_HINTS]):
            evidence = trial.run(Draw(1, max(length, 1), "right"))
            if evidence is not None:
                yield evidence
                ran += 1
                if ran >= _ENOUGH_CASES:
                    return
    if ran == 1 and trial.worked is not None:  # other data in the same shapes
        evidence = trial.run(replace(trial.worked, batch=3, padding="left"), again=True)
        if evidence is not None:
            yield evidence


@dataclass
class _Trial:
    """Tries draws on the original. One that it refuses is tried with ids of 0 and 1 (if it was their range), then with
    equal numbers for symbols of one kind; what was needed once is what the next draw begins with."""

    original: Original
    specs: Sequence[InputSpec]
    seed: int
    rejected: list[Rejected]
    first: int = 0
    draws: int = 0
    worked: Draw | None = None
    seen: set[Any] = field(default_factory=set)

    def run(self, draw: Draw, again: bool = False) -> Evidence | None:
        """None: refused, or (unless `again`) no different from what was tried before."""
        self.draws += 1
        out_of_bounds = False
        for step in range(self.first, 4):
            equal, narrow = divmod(step, 2)
            if narrow and not out_of_bounds and step != self.first:
                continue
            attempt = replace(draw, equal=bool(equal), narrow=bool(narrow))
            shapes = draw_shapes(self.specs, attempt)
            kind = self._kind(attempt)
            key = (tuple(shapes.items()), kind, narrow)
            if key in self.seen and not again:
                continue
            self.seen.add(key)
            case = Case(", ".join([*(f"{name} {list(shape)}" for name, shape in shapes.items()), *kind]), shapes)
            inputs = draw_inputs(self.specs, attempt, (self.seed, self.draws))
            try:
                evidence = self.original.run(case, inputs)
            except ModelError as error:
                self.rejected.append(Rejected(case.name, shapes, error.cause))
                out_of_bounds = _OUT_OF_BOUNDS.search(error.cause) is not None
                continue
            self.first, self.worked = step, draw
            return evidence
        return None

    def _kind(self, draw: Draw) -> tuple[str, ...]:
        """What the data is like, in words, as far as it matters for this model."""
        kinds = []
        if has_mask(self.specs):
            kinds.append({"none": "no padding", "row": "a row masked out"}.get(draw.padding, f"{draw.padding} padding"))
        if has_floats(self.specs) and draw.scale != 1.0:
            kinds.append(f"data x {draw.scale:g}")
        return tuple(kinds)


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays: a sequence becomes one array for each element, anything else that is no array its text."""
    flat: dict[str, Array] = {}
    for name, value in outputs.items():
        parts = {f"{name}[{i}]": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
        flat.update({key: one if isinstance(one, np.ndarray) else np.asarray(repr(one)) for key, one in parts.items()})
    return flat
