"""The memory estimate: rough, but of the right order, and never in need of the weights."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnx_fuse.runtime.device import memory
from onnx_fuse.runtime.device.footprint import largest_value
from tests import helpers
from tests.trust.test_bounded import calling

MEGA = 1 << 20


def model(weights: list[TensorProto], body: str = "y = MatMul(x, w)") -> ModelProto:
    header = '<ir_version: 9, opset_import: ["" : 18]>'
    made = parser.parse_model(f"{header} g (float[n,1024] x) => (float[n,m] y) {{ {body} }}")
    made.graph.initializer.extend(weights)
    return made


def external(rows: int, columns: int) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="not.there")
    return tensor


def needed(made: ModelProto, **shapes: tuple[int, ...]) -> int:
    found, base = memory.needed_bytes(made, made, shapes), memory.needed_bytes(model([]), model([]), {})
    assert found is not None and base is not None
    return found - base


def test_weights_inside_count_their_copies_and_mapped_ones_once() -> None:
    inside = numpy_helper.from_array(np.zeros((1024, 1024), np.float32), "w")
    assert needed(model([inside])) == 3 * 4 * MEGA
    assert needed(model([external(1024, 1024)])) == 4 * MEGA
    assert needed(model([external(1 << 20, 1 << 20)])) == 4 << 40


def test_the_larger_of_the_two_models_counts() -> None:
    small, large = model([external(1024, 1024)]), model([external(1024, 2048)])
    assert memory.needed_bytes(small, large, {}) == memory.needed_bytes(large, small, {})


def test_large_values_follow_from_the_inputs() -> None:
    square = "t = Transpose <perm = [1, 0]> (x) y = MatMul(x, t)"
    assert needed(model([], square), x=(8192, 1024)) == 4 * 256 * MEGA
    assert needed(model([], square)) == 0  # shapes not known: weights alone


def test_nobody_can_tell_what_an_unknown_operator_takes() -> None:
    made = model([external(1024, 1024)], "y = Unheard(x, w)")
    assert memory.needed_bytes(made, made, {"x": (2, 1024)}) is None
    assert memory.needed_bytes(made, made, {}) is not None  # without shapes there is nothing to tell


@pytest.mark.parametrize("numbers", ["0, 100000000000, 1", "0, 100000000000, 3"])
def test_a_size_that_the_content_says_is_worked_out_and_not_made(numbers: str) -> None:
    values = dict(zip(("start", "end", "step"), (np.array(int(item)) for item in numbers.split(",")), strict=True))
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    made = model(weights, "r = Range(start, end, step) c = Cast <to = 1> (r) m = ReduceMean(c) y = Mul(x, m)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert needed(made, x=(2, 1024)) > 1 << 39
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 << 10  # KiB


UNKNOWN = {
    "filled": "n = NonZero(x) l = ReduceMax <axes = [1], keepdims = 0> (n) r = ConstantOfShape(l) y = Identity(x)",
    "resized": "s = ReduceMax <axes = [0], keepdims = 0> (x) t = Slice(s, zero, two) r = Resize(x, , t) y = Identity(x)",
    "expanded": "n = NonZero(x) l = ReduceMax <axes = [1], keepdims = 0> (n) r = Expand(some, l) y = Identity(x)",
    "counted": "m = ReduceMax <keepdims = 0> (x) r = Range(none, m, some) y = Identity(x)",
    "in a branch": "b = Cast <to = 9> (none) y = If (b) <then_branch = t () => (u) { m = ReduceMax <keepdims = 0> (x) "
    "u = Range(none, m, some) }, else_branch = e () => (v) { v = Identity(x) }>",
    "declared, and grown in a loop": "b = Cast <to = 9> (some) y = Loop (three, b, x) <body = l (int64 i, bool c, "
    "float[2, 1024] v) => (bool d, float[2, 1024] w) { d = Identity(c) w = Concat <axis = 0> (v, v) }>",
    "grown in a loop": "b = Cast <to = 9> (some) y = Loop (three, b, x) <body = l (int64 i, bool c, float[a, 1024] v) "
    "=> (bool d, w) { d = Identity(c) w = Concat <axis = 0> (v, v) }>",
}
BOUNDED = {
    "what is not zero": ("n = NonZero(x) t = Transpose(n) g = GatherND(x, t) y = Mul(g, g)", 2 * 2048 * 8),
    "a part": (
        "m = ReduceMax <keepdims = 0> (x) i = Cast <to = 7> (m) j = Unsqueeze(i, zero) y = Slice(x, zero, j)",
        8192,
    ),
    "compressed": ("p = Cast <to = 9> (x) f = Flatten <axis = 0> (p) q = Squeeze(f, zero) y = Compress(x, q)", 8192),
    "in a branch": (
        "b = Cast <to = 9> (none) y = If (b) <then_branch = t () => (u) { u = Transpose(x) w = MatMul(x, u) }, "
        "else_branch = e () => (v) { n = Transpose(x) v = MatMul(n, x) }>",
        4 * 1024 * 1024,
    ),
    "in a loop": (
        "b = Cast <to = 9> (some) y = Loop (three, b, x) <body = l (int64 i, bool c, float[2, 1024] v) => (bool d, float[2, 1024] w)"
        " { d = Identity(c) t = Transpose(v) m = MatMul(t, v) w = MatMul(v, m) }>",
        4 * 1024 * 1024,
    ),
    "gathered in a loop": (
        "b = Cast <to = 9> (some) s, y = Loop (three, b, x) <body = l (int64 i, bool c, float[2, 1024] v) => "
        "(bool d, float[2, 1024] w, float[2, 1024] g) { d = Identity(c) w = Relu(v) g = Identity(v) }>",
        3 * 2 * 1024 * 4,
    ),
    "in a function": ("y = my.Square(x)", 4 * 1024 * 1024),
}
SQUARE = """<domain: "my", opset_import: ["" : 18]> Square (a) => (b) { t = Transpose(a) b = MatMul(t, a) }"""


def of_content(body: str) -> ModelProto:
    text = f"""(float[n,1024] x) => (y) <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64 three = {{3}}, float none = {{0}},
        float some = {{1}}> {{ {body} }}"""
    return helpers.model(text, opset=18, functions=SQUARE if "my." in body else "")


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_size_that_only_running_tells_is_not_known(kind: str) -> None:
    made = of_content(UNKNOWN[kind])
    assert memory.needed_bytes(made, made, {"x": (2, 1024)}) is None
    assert memory.shortage(None, 1) is None


@pytest.mark.parametrize("kind", BOUNDED)
def test_a_size_that_follows_from_that_of_an_input_is_known(kind: str) -> None:
    body, largest = BOUNDED[kind]
    assert largest_value(of_content(body), {"x": (2, 1024)}) == largest


def test_more_than_any_machine_has() -> None:
    made = calling(60)
    assert "more memory than any machine has" in (memory.shortage(memory.needed_bytes(made, made, {}), 1 << 50) or "")


def test_the_shortage_is_a_sentence() -> None:
    assert memory.shortage(10, 10) is None
    assert memory.shortage(3 * 10**9, 10**9) == "running the models takes about 3.0 GB of memory, 1.0 GB is available."


def test_available_memory_is_that_of_the_machine_or_less() -> None:
    available = memory.available_bytes()
    assert available is None or 0 < available < 1 << 50


@pytest.mark.parametrize(
    ("line", "folder", "files", "left"),
    [
        ("0::/box", "box", {"memory.max": "1000", "memory.current": "400"}, 600),
        ("0::/box/inner", "box", {"memory.max": "1000", "memory.current": "1200"}, 0),
        ("0::/box", "box", {"memory.max": "1000", "memory.current": "900", "memory.stat": "inactive_file 300"}, 400),
        ("0::/box", "box", {"memory.max": "max", "memory.current": "400"}, None),
        ("4:memory:/box", "memory/box", {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "1"}, 999),
        (
            "4:memory:/box",
            "memory/box",
            {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "1"},
            None,
        ),
        ("2:cpu:/box", "cpu/box", {"memory.max": "1", "memory.current": "1"}, None),
    ],
)
def test_control_groups_limit_what_is_available(
    tmp_path: Path, line: str, folder: str, files: dict[str, str], left: int | None
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / folder / name).write_text(content + "\n")
    (tmp_path / "self").write_text(line + "\n")
    assert memory.group_bytes(tmp_path / "self", tmp_path) == ([] if left is None else [left])


def test_half_bytes_are_counted_as_such() -> None:
    weight = helper.make_tensor("w", TensorProto.INT4, [4], [1, 2, 3, 4])
    weight.dims[:] = [MEGA]
    assert needed(model([weight])) == 3 * MEGA // 2
