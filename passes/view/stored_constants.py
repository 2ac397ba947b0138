"""Constants that are written down: those that the model stores, decoded when they are asked for, and those of the view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.files.external_data import read_small
from onnx_fuse.passes.graph.constants import CONSTANT_LIMIT, decode
from onnx_fuse.passes.graph.shapes.inference import Info, array_info
from onnx_fuse.passes.graph.spans import is_external
from onnx_fuse.passes.view.overlay import Overlay

# Element types and number of elements of what may say a shape, whose content is worth following.
_SHAPE_TYPES = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
_SHAPE_LIMIT = 64


class StoredConstants:
    """The constants of a view that nothing has to compute.

    Args:
        overlay: the view's structure, with its own constants.
        folder: where the model's external data lies, from which small constants are read; None: they stay unknown.

    Attributes:
        looked_at: names of the model's tensors whose content was asked for.
    """

    def __init__(self, overlay: Overlay, folder: Path | None) -> None:
        self._overlay = overlay
        self._folder = folder
        self.looked_at: set[str] = set()

    def array(self, value: str, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """The array; None where the value is not stored, or is the model's and has more elements than `limit`."""
        own = self._overlay.array_of(value)
        if own is not None:
            return own
        tensor = self._overlay.graph.tensor(value)
        return None if tensor is None else self.decoded(tensor, limit)

    def has(self, value: str) -> bool:
        """Whether the value is stored, of whatever size and wherever it lies."""
        return self._overlay.is_array(value) or self._overlay.graph.tensor(value) is not None

    def info(self, value: str) -> Info | None:
        """Type and shape, and the content of what may say a shape; None where the value is not stored."""
        own = self._overlay.array_of(value)
        if own is not None:
            return array_info(own, helper.np_dtype_to_tensor_dtype(own.dtype))
        tensor = self._overlay.graph.tensor(value)
        if tensor is None:
            return None
        if len(tensor.dims) <= 1 and tensor.data_type in _SHAPE_TYPES:
            array = self.decoded(tensor, _SHAPE_LIMIT)
            if array is not None:
                return array_info(array, tensor.data_type)
        return Info(tensor.data_type, tuple(tensor.dims))

    def content(self, value: str) -> tuple[Any, ...] | None:
        """What a constant holds, to be compared with that of another; None where it cannot be read."""
        array = self.array(value)
        return None if array is None else (array.dtype, array.shape, array.tobytes())

    def decoded(self, tensor: TensorProto, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """A tensor of the model as an array; None where it has more elements than `limit` or cannot be read."""
        self.looked_at.add(tensor.name)
        if self._folder is not None and is_external(tensor):
            return read_small(tensor, self._folder, limit)
        return decode(tensor, limit)
