"""The declarations of the operators as C++: what plugin_csrc/operators/declared.cpp holds.

`python docs/generate.py` writes it, with all else that is made from code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from onnx_fuse.patterns.language.declaration import Axis, Declaration, Shape, Tensor
from onnx_fuse.patterns.language.operator import FusedOp

_ROLES = {
    ("T",): "kData",
    ("T", "float32"): "kAffine",
    ("int32", "int64"): "kIndex",
    ("bool", "T"): "kMask",
    ("bool",): "kBool",
}


def source(operators: Sequence[FusedOp]) -> str:
    """The C++ file with the declarations of these operators, those that have one."""
    declared = [_declaration(item.name, item.declaration) for item in operators if item.declaration is not None]
    return f"""// Written by docs/generate.py from the operators' declarations in patterns/.
// clang-format off
#include "base/declaration.h"
#include "base/refusal.h"

namespace gr {{

Declaration const& declarationOf(std::string_view name) {{
  static std::vector<Declaration> const all = {{
{"".join(declared)}  }};
  for (Declaration const& item : all) {{
    if (name == item.name) {{
      return item;
    }}
  }}
  refuse("no operator ", name, " is declared");
}}

}}  // namespace gr
"""


def _declaration(name: str, declaration: Declaration) -> str:
    inputs, outputs = (
        "{" + "".join(f"\n      {_tensor(item)}," for item in tensors) + "\n     }"
        for tensors in (declaration.inputs, declaration.outputs)
    )
    sizes = _braced(f"{{{_quoted(size)}, {_quoted(attribute)}}}" for size, attribute in declaration.sizes.items())
    least = _braced(f"{{{_quoted(size)}, {count}}}" for size, count in declaration.least.items())
    return f"    {{{_quoted(name)},\n     {inputs},\n     {outputs},\n     {sizes}, {least}}},\n"


def _tensor(tensor: Tensor) -> str:
    shapes = _braced(_shape(item) for item in tensor.shapes)
    return f"{{{_quoted(tensor.name)}, Role::{_ROLES[tensor.types]}, {_bool(tensor.optional)}, {shapes}}}"


def _shape(shape: Shape) -> str:
    condition = "nullptr, nullptr" if shape.condition is None else ", ".join(map(_quoted, shape.condition))
    return f"{{{_quoted(shape.text)}, {_bool(shape.rest)}, {_braced(map(_axis, shape.axes))}, {condition}}}"


def _axis(axis: Axis) -> str:
    return f"{{{_braced(map(_quoted, axis.factors))}, {axis.plus}, {_bool(axis.broadcasts)}}}"


def _braced(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _bool(value: bool) -> str:
    return str(value).lower()
