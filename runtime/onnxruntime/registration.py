"""Registering the kernel library in session options of the user's own."""

from __future__ import annotations

import os
from typing import Any

from onnx import ModelProto

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.onnxruntime.kernel_library import BUILD, KIND, Choice, Kernels, choose

_MARK = "onnx_fuse.kernel_library"
"""An entry of the options: ONNX Runtime takes a domain once, and says so only where a session is opened."""


def register(
    options: Any, model: ModelProto | str | os.PathLike[str] | None = None, *, library: Choice = None
) -> Kernels:
    """Lets sessions run fused nodes by the kernel library, if there is one. Doing so again changes nothing.

        options = onnxruntime.SessionOptions()
        register(options, "fused.onnx")
        session = onnxruntime.InferenceSession("fused.onnx", options)

    Args:
        options: an `onnxruntime.SessionOptions`.
        model: what the session is for. Where the library lacks something that it needs, nothing is registered, and bodies run.
            Without it the library is registered as it is, and a session of a model for which it lacks something fails.
        library: see `Choice`: by default the library that is found.

    Returns:
        What will run the fused nodes; as text it is a sentence for people.

    Raises:
        UsageError: a library that was asked for is not there, damaged, or lacks what the model needs; or these options have
            one registered already, and the model needs another, or none.
    """
    kernels = choose(model, library)
    there = _registered(options)
    if there is not None and there != kernels.sha256 and (kernels.library is not None or kernels.bodies):
        why = (
            f"and another one is wanted, {kernels.library}" if kernels.library else f"and the model is to run {kernels}"
        )
        raise UsageError(
            f"These session options have a {KIND} already, {why}.", "Use SessionOptions of their own for it."
        )
    if kernels.library is not None and there is None:
        try:
            options.register_custom_ops_library(str(kernels.library))
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types, none of them public
            raise UsageError(
                f"ONNX Runtime does not take the {KIND} {kernels.library}: {sessions.message(error)}",
                f"Build it again: {BUILD}.",
            ) from error
        options.add_session_config_entry(_MARK, kernels.sha256)
    return kernels


def _registered(options: Any) -> str | None:
    try:
        return str(options.get_session_config_entry(_MARK))
    except RuntimeError:  # there is no such entry
        return None
