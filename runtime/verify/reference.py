"""What the original computes: run once on every set of inputs, so that fused models can be compared with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.onnxruntime.sessions import Deadline
from onnx_fuse.runtime.verify.random_inputs import (
    DRAWS,
    FALLBACK_LENGTHS,
    Array,
    Draw,
    InputSpec,
    draw_inputs,
    draw_shapes,
    extremes,
    further_draw,
    has_floats,
    has_mask,
    lengths_left,
    long_lengths,
)
from onnx_fuse.runtime.verify.record import Case, Rejected

ENOUGH_CASES = 2
"""Sets of inputs without which a comparison is worth little."""
_MOST_TRIES = 4
_LONG_ELEMENTS = 1 << 17
_MOST_HINTS = 24
_INNER_BYTES = 512 << 20
_OUT_OF_BOUNDS = re.compile(
    r"out of (data )?(bounds|range)|out-of-(bounds|range)|indices element|index .* (must be|bounds)"
)


@dataclass(frozen=True)
class Evidence:
    """Inputs of one case and what the original makes of them.

    Attributes:
        case, inputs: what they are called, and they themselves.
        expected, inner: the original's outputs, and values inside it.
        spread: rows have very different magnitudes: what rounding does to them says how far they may be off.
        undefined: where the original is not finite, as it divides by a length of 0 or overflows, NaN is as good as infinity.
        redraw: the inputs with other magnitudes (`Draw.reach`), where they reach to the end of the type: where the original is not
            finite then, it is of no account.
    """

    case: Case
    inputs: dict[str, Array]
    expected: dict[str, Array]
    inner: dict[str, Array]
    spread: bool = False
    undefined: bool = False
    redraw: Callable[[Sequence[float]], dict[str, Array]] | None = None


@dataclass
class Original:
    """The original in ONNX Runtime, with some of the values inside it as further outputs.

    Attributes:
        model, base_dir: the model, and the folder of its external data.
        inner: names of values inside it.
        deadline: when to stop running it.
        library: the kernel library that runs its fused nodes; None: their bodies.
        session: set by `open`.
        kept: bytes of inner values handed out so far; beyond a limit there are no more.
    """

    model: ModelProto
    base_dir: str | Path | None
    inner: Sequence[str]
    deadline: Deadline | None = None
    library: Path | None = None
    session: Any = None
    kept: int = 0

    def open(self) -> None:
        """Raises:
        ModelError: ONNX Runtime cannot load it.
        """
        self.session = sessions.session(
            self.model, base_dir=self.base_dir, extra_outputs=self.inner, library=self.library
        )

    def run(self, case: Case, inputs: dict[str, Array]) -> Evidence:
        """Raises:
        ModelError: it does not run on these inputs.
        OutOfTime: the deadline passed.
        """
        outputs = sessions.run(self.session, inputs, self.deadline)
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
    *,
    further: bool = False,
    nothing: bool = False,
    samples: int = 0,
    fits: Callable[[Mapping[str, tuple[int, ...]]], bool] = lambda shapes: True,
) -> Iterator[Evidence]:
    """What the original makes of random inputs, as far as it runs on them; what it refuses is added to `rejected`.

    Args:
        original, specs, seed, rejected: the model, its inputs, the seed, and the list that grows.
        draws: what to draw.
        further: after these draw extreme magnitudes and a long length, as far as the original takes them.
        nothing: with `further`, draw empty inputs and lengths of 0, too: for models that `may_be_empty`.
        samples: sets of inputs to reach by drawing more, of any size.
        fits: whether there is memory for such shapes; asked for further draws and samples.
    """
    trial = _Trial(original, specs, seed, rejected)
    ran = 0
    for draw in draws:
        evidence = trial.run(draw)
        if evidence is not None:
            ran += 1
            yield evidence
    if ran < ENOUGH_CASES:
        # Exporters now and then write one length down; the refusals tell which: "requested shape: {7,12,16}".
        told = sorted({int(size) for refusal in rejected for size in re.findall(r"\b\d{1,4}\b", refusal.reason)})
        for length in (*FALLBACK_LENGTHS, *told[:_MOST_HINTS]):
            evidence = trial.run(Draw(1, max(length, 1), "right"))
            if evidence is not None:
                yield evidence
                ran += 1
                if ran >= ENOUGH_CASES:
                    break
    if ran == 1 and trial.worked is not None:  # other data in the same shapes
        evidence = trial.run(replace(trial.worked, batch=3, padding="left"), again=True)
        if evidence is not None:
            ran += 1
            yield evidence
    if further and ran:
        for more in _further(trial, nothing, fits):
            ran += 1
            yield more
    random = np.random.default_rng((seed, samples))
    for _ in range(_MOST_TRIES * samples):
        if ran >= samples:
            return
        draw = further_draw(random)
        found = trial.run(draw, again=True) if fits(draw_shapes(specs, draw)) else None
        if found is not None:
            ran += 1
            yield found


def _further(trial: _Trial, nothing: bool, fits: Callable[[Mapping[str, tuple[int, ...]]], bool]) -> Iterator[Evidence]:
    for draw in extremes(trial.specs, nothing=nothing):
        evidence = trial.run(draw)
        if evidence is not None:
            yield evidence
    lengths, tries = list(long_lengths(trial.original.model)), 0
    usual = max(draw.length for draw in DRAWS)
    while lengths and tries < _MOST_TRIES:
        length = lengths.pop(0)
        draw = Draw(1, length, "right", equal=True, optional=True)
        shapes = draw_shapes(trial.specs, draw)
        if max(map(math.prod, shapes.values()), default=0) > _LONG_ELEMENTS or not fits(shapes):
            continue
        tries += 1
        trial.refusal = ""
        evidence = trial.run(draw)
        if evidence is not None:
            yield evidence
            return
        if not trial.refusal:  # the model has no length: these are shapes that were tried before
            return
        lengths = [one for one in lengths_left(lengths, length, trial.refusal) if one > usual]


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
    refusal: str = ""
    seen: set[Any] = field(default_factory=set)

    def run(self, draw: Draw, again: bool = False) -> Evidence | None:
        """None: refused, or (unless `again`) no different from what was tried before."""
        self.draws += 1
        out_of_bounds = False
        for step in range(self.first, self.first + 1 if draw.optional else 4):
            equal, narrow = divmod(step, 2)
            if narrow and not out_of_bounds and step != self.first:
                continue
            attempt = replace(draw, equal=draw.equal or bool(equal), narrow=bool(narrow))
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
                self.refusal = error.cause
                if not draw.optional:
                    self.rejected.append(Rejected(case.name, shapes, error.cause))
                out_of_bounds = _OUT_OF_BOUNDS.search(error.cause) is not None
                continue
            self.first, self.worked = step, draw
            return replace(
                evidence,
                spread=draw.spread or bool(draw.reach),
                undefined=draw.spread or bool(draw.reach) or draw.empty,
                redraw=self._redraw(attempt) if draw.reach else None,
            )
        return None

    def _redraw(self, draw: Draw) -> Callable[[Sequence[float]], dict[str, Array]]:
        seed = (self.seed, self.draws)
        return lambda parts: draw_inputs(self.specs, replace(draw, reach=tuple(parts)), seed)

    def _kind(self, draw: Draw) -> tuple[str, ...]:
        """What the data is like, in words, as far as it matters for this model."""
        kinds = []
        if has_mask(self.specs):
            kinds.append({"none": "no padding", "row": "a row masked out"}.get(draw.padding, f"{draw.padding} padding"))
        if has_floats(self.specs) and draw.spread:
            kinds.append("rows of very different magnitudes")
        elif has_floats(self.specs) and draw.reach:
            kinds.append("magnitudes to the ends of the type")
        elif has_floats(self.specs) and draw.scale != 1.0:
            kinds.append(f"data x {draw.scale:g}")
        if draw.ends:
            kinds.append("the first and the last ids")
        if draw.empty:
            kinds.append("a length of 0")
        return tuple(kinds)


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays: of a sequence its length and each element, of a map its keys and its values."""
    flat: dict[str, Array] = {}
    pending = list(outputs.items())[::-1]
    while pending:
        name, value = pending.pop()
        if isinstance(value, list):
            flat[f"{name} length"] = np.asarray(len(value))
            pending.extend(reversed([(f"{name}[{index}]", one) for index, one in enumerate(value)]))
        elif isinstance(value, dict):
            flat[f"{name} keys"] = np.asarray(list(value))
            flat[f"{name} values"] = np.asarray(list(value.values()))
        else:
            flat[name] = value if isinstance(value, np.ndarray) else np.asarray(repr(value))
    return flat
