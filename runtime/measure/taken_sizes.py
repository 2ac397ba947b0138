"""Sizes that a model can be timed with: those that are given, and for the rest assumed ones that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.passes.graph.onnx_inference import without_weights
from onnx_fuse.passes.select.sizes import LENGTH, write_sizes
from onnx_fuse.runtime.measure.timers import drawn
from onnx_fuse.runtime.onnxruntime import room, sessions
from onnx_fuse.runtime.verify.random_inputs import FALLBACK_LENGTHS, lengths_left

_MOST_TRIES = 12


def taken_sizes(
    model: ModelProto, given: Mapping[str, int | Sequence[int]], base_dir: Path | None = None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """All sizes that the inputs leave open, and which of them are assumed; ONNX Runtime has run the model with them.

    Where the model does not take the usual assumption (a table of 64 positions, a Reshape to a fixed size), others are tried, as
    verification does. A model that ONNX Runtime cannot load is not tried.

    Args:
        model: the model, with bodies for its fused nodes.
        given: name of a dimension -> size, or name of an input -> shape.
        base_dir: folder of its external data.

    Raises:
        UsageError: the model takes none of the sizes tried, or what is given is no dimension of it.
    """
    known, assumed = write_sizes(without_weights(model), given)
    if not known:
        return known, ()
    try:
        session = sessions.session(model, base_dir=base_dir)
    except ModelError:
        return known, tuple(assumed)
    first = _refusal(session, model, known, base_dir)
    if first is None:
        return known, tuple(assumed)
    lengths = [name for name in assumed if known[name] == LENGTH]
    batches = [name for name in assumed if name not in lengths]
    for batch in ({}, dict.fromkeys(batches, 1)):
        # With another batch, the usual length may do after all.
        left = lengths_left([LENGTH, *FALLBACK_LENGTHS], LENGTH + bool(batch), first)
        for _ in range(_MOST_TRIES):
            if not left or not assumed:
                break
            length = left.pop(0)
            sizes = {**known, **batch, **dict.fromkeys(lengths, length)}
            refusal = _refusal(session, model, sizes, base_dir)
            if refusal is None:
                return sizes, tuple(assumed)
            left = lengths_left(left, length, refusal)
    raise UsageError(
        f"the model does not run with {', '.join(f'{name}={size}' for name, size in known.items())}: {first}",
        "Give sizes that it takes, with --sizes NAME=N for each dimension.",
    )


def _refusal(session: Any, model: ModelProto, sizes: Mapping[str, int], base_dir: Path | None) -> str | None:
    """Why ONNX Runtime does not run the model with these sizes; None where it does."""
    try:
        inputs = drawn(model, sizes)
        room.require_room(model, inputs, base_dir=base_dir)
        sessions.run(session, inputs)
    except ModelError as error:
        return error.cause
    return None
