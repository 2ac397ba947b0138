"""`OwnKernel`: what a user says beside a Triton kernel, so that it becomes the TensorRT plugin of an operator."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_fuse.errors import UsageError


@dataclass(frozen=True)
class OwnKernel:
    """A Triton kernel for an operator. `onnx-fuse plugins build --from FOLDER` finds those in the Python files of a folder.

    The kernel's arguments say by their names what they are: an input or output of the operator is a pointer; an attribute
    of it a float32 or an int32; a named dimension of the inputs, or what `sizes` has, an int64 (int32 where the argument is
    annotated so); a `tl.constexpr` comes from `configs`. Sizes are expressions of dimensions, integer attributes and integer
    constants: integers, + - * // %, ceil_div, min, max.

    Args:
        operator: a fusion that `onnx-fuse learn` wrote, its path relative to the Python file; or a `FusedOp`.
        function: the kernel, decorated with `triton.jit`. It writes every element of every output.
        grid: programs along one to three axes. Nothing is launched where the outputs have no elements.
        sizes: argument -> expression.
        configs: `triton.Config`s with the constants, num_warps and num_stages; of those that fit the first is taken.
        when: a condition that sizes and constants have to meet for a config to fit, such as "H <= BLOCK".
        multiples_of_16: integer arguments for which each config is also compiled as multiples of 16, so that rows are
            read in vectors.
        types: element types of the float inputs and outputs, of "float32", "float16" and "bfloat16".
        choices: string attribute -> the values it may have; the kernel gets the place of the value as an int32.
        outputs: output -> its shape as expressions, where it does not follow from the operator's body.
        inputs: types and shapes of the inputs in ONNX's text form, `"float[B, 64] x, int64[B] ids"`, for a `FusedOp`.
        attributes: attribute -> example value, for a `FusedOp`.
    """

    operator: Any
    function: Any
    grid: str | Sequence[str]
    sizes: Mapping[str, str] = field(default_factory=dict)
    configs: Sequence[Any] = ()
    when: str | None = None
    multiples_of_16: Sequence[str] = ()
    types: Sequence[str] = ("float32", "float16", "bfloat16")
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    inputs: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    place: tuple[str, int] = field(default=("", 0), init=False, repr=False)
    """File and line of the call."""

    def __post_init__(self) -> None:
        caller = sys._getframe(2)  # 1 is the __init__ that dataclass makes
        object.__setattr__(self, "place", (caller.f_code.co_filename, caller.f_lineno))

    def wrong(self, argument: str, problem: str, remedy: str = "") -> UsageError:
        """The error that an argument is wrong, with the file and the line where it stands."""
        file, line = self.place
        return UsageError(f"{file}, line {_line(file, line, argument)}: {argument}: {problem}.", remedy)


def _line(file: str, line: int, argument: str) -> int:
    """The line of an argument of the call at `line`; `line` where that cannot be told."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return line
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.lineno == line]
    found = [item.value.lineno for call in calls for item in call.keywords if item.arg == argument]
    return found[0] if found else line
