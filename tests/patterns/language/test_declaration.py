"""Declarations: what they read, which sizes they find, and what they refuse, in words."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_fuse.patterns.language.declaration import Axis, Declaration, Misfit, declare

ATTENTION = declare(
    "q: T [B, N, h*d]",
    "k: T [B, N, h*d] # as q",
    "bias?: T|float32 [1|B, 1|h, 1|N, 1|N] if mode=silu",
    "gamma?: T [h*d] or [h] if norm=group",
    "-> y: T [B, N, h*d]",
    sizes={"h": "heads"},
    least={"N": 1},
)
EMBEDDING = declare("ids_*: int64 [1|B, 1|S]", "table_*: T [V*, H]", "-> y: T [B, S, H]")
ROWS = declare("x: T [..., H]", "skip: T [..., H]", "w?: T [H, F-1] if skip=given", "-> y: T [..., H]")
SILU = {"heads": 2, "mode": "silu", "norm": "group"}


def test_a_line_says_name_types_shapes_and_meaning() -> None:
    tensor = ATTENTION.inputs[1]
    assert (tensor.name, tensor.types, tensor.optional, tensor.meaning) == ("k", ("T",), False, "as q")
    assert tensor.shapes[0].text == "[B, N, h*d]"
    assert ATTENTION.inputs[2].types == ("T", "float32") and ATTENTION.inputs[2].optional
    assert ATTENTION.inputs[2].shapes[0].axes[0] == Axis(("B",), broadcasts=True)
    assert [item.condition for item in ATTENTION.inputs[3].shapes] == [None, ("norm", "group")]
    assert [item.name for item in ATTENTION.outputs] == ["y"]


@pytest.mark.parametrize("line", ["x", "x: T", "x: T [B", "x: T [B,]x", "x: T [B;C]", "x: T [1|]", "x: T [B] when y=1"])
def test_what_is_no_declaration(line: str) -> None:
    with pytest.raises(ValueError):
        declare(line)


@pytest.mark.parametrize(
    "declaration, shapes, attributes, sizes",
    [
        (ATTENTION, {"q": [2, 7, 8], "k": [2, 7, 8]}, SILU, {"B": 2, "N": 7, "h": 2, "d": 4}),
        (ATTENTION, {"q": [2, 7, 8], "k": [2, 7, 8], "bias": [1, 2, 1, 7]}, SILU, {"B": 2, "N": 7, "h": 2, "d": 4}),
        (ATTENTION, {"q": [0, 7, 8], "k": [0, 7, 8], "gamma": [2]}, SILU, {"B": 0, "N": 7, "h": 2, "d": 4}),
        (ATTENTION, {"q": [None, 7, None], "k": [3, None, 8]}, SILU, {"B": 3, "N": 7, "h": 2, "d": 4}),
        (ATTENTION, {"q": [None, 7, 8], "bias": [4, 1, 1, 7]}, SILU, {"B": 4, "N": 7, "h": 2, "d": 4}),
        (
            EMBEDDING,
            {"ids_1": [1, 7], "table_1": [5, 8], "ids_2": [3, 1], "table_2": [6, 8]},
            {},
            {"B": 3, "S": 7, "H": 8, "V1": 5, "V2": 6},
        ),
        (EMBEDDING, {"ids_1": [0, 7], "ids_2": [1, 1]}, {}, {"B": 0, "S": 7}),
        (EMBEDDING, {"ids_1": [None, 1], "ids_2": [1, 1]}, {}, {"S": 1}),
        (ROWS, {"x": [2, 3, 4], "skip": [2, 3, 4], "w": [4, 6]}, {}, {"H": 4, "F": 7}),
        (ROWS, {"x": [4], "skip": [4]}, {}, {"H": 4}),
    ],
)
def test_the_sizes_of_a_node(declaration: Declaration, shapes: Any, attributes: Any, sizes: dict[str, int]) -> None:
    assert declaration.bound(shapes, attributes) == sizes


@pytest.mark.parametrize(
    "declaration, shapes, attributes, sentence",
    [
        (
            ATTENTION,
            {"q": [2, 7, 8], "k": [3, 7, 8]},
            SILU,
            "k is [3, 7, 8], allowed is [B, N, h*d] with B = 2, N = 7, h = 2, d = 4",
        ),
        (ATTENTION, {"q": [2, 7, 9]}, SILU, "q is [2, 7, 9], allowed is [B, N, h*d] with B = 2, N = 7, h = 2"),
        (ATTENTION, {"q": [2, 7]}, SILU, "q is [2, 7], allowed is [B, N, h*d] with h = 2"),
        (
            ATTENTION,
            {"q": [2, 7, 8], "bias": [1, 1, 5, 7]},
            SILU,
            "bias is [1, 1, 5, 7], allowed is [1|B, 1|h, 1|N, 1|N] with B = 2, h = 2, N = 7",
        ),
        (
            ATTENTION,
            {"q": [2, 7, 8], "bias": [1, 1, 7, 7]},
            {**SILU, "mode": "softmax"},
            "bias is [1, 1, 7, 7], a node of this kind has no bias",
        ),
        (ATTENTION, {"q": [2, 7, 8], "gamma": [3]}, SILU, "gamma is [3], allowed is [h*d] or [h] with h = 2, d = 4"),
        (
            ATTENTION,
            {"q": [2, 7, 8], "gamma": [2]},
            {**SILU, "norm": "layer"},
            "gamma is [2], allowed is [h*d] with h = 2, d = 4",
        ),
        (ATTENTION, {"q": [2, 0, 8]}, SILU, "N is 0, allowed is 1 or more"),
        (EMBEDDING, {"ids_1": [2, 7], "ids_2": [3, 7]}, {}, "ids_2 is [3, 7], allowed is [1|B, 1|S] with B = 2, S = 7"),
        (
            EMBEDDING,
            {"table_1": [2, 7], "table_2": [3, 8]},
            {},
            "table_2 is [3, 8], allowed is [V*, H] with V2 = 3, H = 7",
        ),
        (
            ROWS,
            {"x": [2, 3, 4], "skip": [1, 3, 4]},
            {},
            "skip is [1, 3, 4], allowed is [..., H] with H = 4, ... = [2, 3]",
        ),
        (ROWS, {"x": [], "skip": [4]}, {}, "x is [], allowed is [..., H] with H = 4, ... = []"),
    ],
)
def test_what_is_not_allowed(declaration: Declaration, shapes: Any, attributes: Any, sentence: str) -> None:
    with pytest.raises(Misfit) as error:
        declaration.bound(shapes, attributes)
    assert str(error.value) == sentence


def test_an_input_may_decide_on_the_shape_of_another() -> None:
    with pytest.raises(Misfit, match="no w"):
        ROWS.bound({"x": [2, 4], "w": [4, 6]}, {})
    assert ROWS.bound({"x": [2, 4], "w": [4, 6]}, {}, ["x", "skip", "w"])["F"] == 7
