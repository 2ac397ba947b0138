"""Names that are no text: protobuf reads them without complaint and then gives bytes, over which any code may stumble.

Looking at every string of a large model takes longer than fusing it, so it is done only once something has gone wrong.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from onnx_fuse.errors import ModelError, OnnxFuseError
from onnx_fuse.passes.files.io import load_lazily

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def blames_text(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Lets an unexpected exception of a function on models be a ModelError if a model holds a name that is no text."""

    @functools.wraps(function)
    def wrapped(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        try:
            return function(*args, **options)
        except OnnxFuseError:
            raise
        except Exception as error:
            for item in (*args, *options.values()):
                where = _broken(item)
                if where is not None:
                    raise _damaged(where) from error
            raise

    return wrapped


def require_text(model: Message) -> None:
    """Raises ModelError if the model holds a name that is no text."""
    where = broken_text(model)
    if where is not None:
        raise _damaged(where)


def _damaged(where: str) -> ModelError:
    return ModelError(f"{where} is no text in UTF-8: the model is damaged.", "Copy or download it again.")


def _broken(item: Any) -> str | None:
    if isinstance(item, Message):
        return broken_text(item)
    if isinstance(item, (str, os.PathLike)) and os.path.isfile(item):
        try:
            return broken_text(load_lazily(item)[0])
        except OnnxFuseError:
            return None
    return None


def broken_text(message: Message) -> str | None:
    """The field of a string that is not UTF-8, in words; None where all are."""
    pending: list[Any] = [message]
    while pending:
        one = pending.pop()
        for field, value in one.ListFields():
            items = [value] if isinstance(value, (str, bytes, Message)) else value
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                pending.extend(items)
            elif field.type == FieldDescriptor.TYPE_STRING and any(isinstance(text, bytes) for text in items):
                return f"The {field.name} of a {one.DESCRIPTOR.name}"
    return None
