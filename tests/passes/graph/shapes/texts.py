"""Small graphs as text, and shapes as words."""

from __future__ import annotations

from onnx_fuse.passes.graph.dims import Dim, Shape, symbol
from tests.helpers import model, view_of

B, S = symbol("B"), symbol("S")


def shape_of(body: str, value: str = "y", opset: int = 17, inputs: str = "float[B,S,64] x") -> Shape | None:
    return view_of(model(f"({inputs}) => (float[n] out) {{ {body} out = Identity({value}) }}", opset=opset)).shape(
        value
    )


def text(shape: Shape | None) -> str:
    """The shape as words, with ? for a size of which nothing is known but that it is some size."""
    return "unknown" if shape is None else " ".join("?" if nameless(dim) else str(dim) for dim in shape)


def nameless(dim: Dim) -> bool:
    return any("#" in name or "unk__" in name for name in getattr(dim, "symbols", ()))


def ints(*values: int) -> str:
    """A constant in onnx's text form."""
    return f"Constant<value = int64[{len(values)}] {{{', '.join(map(str, values))}}}>()"
