"""Runs models where there is memory for that: estimated before, and limited where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.graph.confined import Exceeded, confined
from onnx_fuse.runtime.device.memory import available_bytes, needed_bytes, shortage
from onnx_fuse.runtime.onnxruntime import sessions

T = TypeVar("T")
REMEDY = "Give smaller inputs, or use a larger machine."


def with_room(work: Callable[[], T], needed: int | None, *, remedy: str = REMEDY) -> T:
    """Does something that runs models; in a child process of limited memory if nobody can tell how much they need.

    Args:
        work: what to do; its result may have to be pickled.
        needed: what `needed_bytes` says.
        remedy: what to do where there is too little.

    Raises:
        ModelError: there is not enough memory.
        OnnxFuseError: what the work raises.
    """
    available = available_bytes()
    short = shortage(needed, available)
    if short is not None:
        raise ModelError(short[0].upper() + short[1:], remedy)
    if needed is not None or available is None:
        return work()
    try:
        return limited(work, available)
    except Exceeded as error:
        raise ModelError(f"Running the models: {error}", remedy) from error


def limited(work: Callable[[], T], available: int, seconds: float | None = None) -> T:
    """Does something that runs models of which nobody can tell what they need: in a process of its own, with half of the memory
    that is available.

    Raises:
        Exceeded: that was too little, or it took too long; the sentence says so.
        OnnxFuseError: what the work raises.
    """
    memory = available // 2
    try:
        return confined(work, memory=memory, seconds=seconds)
    except Exceeded as error:
        how = "some sizes in the model are known only as it runs, so it ran in a process of its own"
        raise Exceeded(f"{how}, with {memory / 1e9:.1f} GB of memory: {error}") from error


def require_room(
    model: ModelProto,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    base_dir: str | Path | None = None,
    optimise: bool = False,
) -> None:
    """Asks for the memory to run a model on these inputs. Where nobody can tell how much it takes, it is run once to find out.

    Args:
        model, inputs: what is to be run, on what.
        base_dir: folder of external data.
        optimise: it will be run with ONNX Runtime's optimisations, which work out what is constant while it is opened.

    Raises:
        ModelError: there is not enough memory.
    """
    needed = needed_bytes(model, model, {name: array.shape for name, array in inputs.items()})

    def run_once() -> None:
        sessions.run(sessions.session(model, base_dir=base_dir, optimise=optimise), inputs)

    with_room(run_once if needed is None else lambda: None, needed)
