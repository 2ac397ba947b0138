"""Kernels for ONNX Runtime compute what their operator's body says, for every shape, type and set of inputs that is declared."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx.inliner import inline_local_functions

pytest.importorskip("triton")
pytest.importorskip("torch")

from tests.plugin_csrc import contract
from tests.plugin_csrc.contract import KINDS, Drawn, model_of, values_of
from tests.plugin_csrc.onnxruntime.built import library, library_with, session, told

Array = np.ndarray

NAMES = sorted(told(library())["operators"])
AVAILABLE = told(library())["available"]
ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""One rounding to T, and where the exact number is close to the middle between two, the neighbour."""
SUMS = 1e-5
"""What the order of sums in float32 costs, and what a softmax makes of that, of the greatest number of an output."""
GUARD = 64
"""Bytes of NaN on either side of a tensor."""


class Guarded:
    """An array in the middle of NaN, as ONNX Runtime takes it: what a kernel reads or writes beside it shows."""

    def __init__(self, shape: Sequence[int], kind: str, value: Array | None = None, offset: int = 16) -> None:
        dtype = contract.dtype_of(kind)
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.full(2 * GUARD + size + 64, 255, dtype=np.uint8)
        first = -self.memory.ctypes.data % 64 + GUARD + offset - 64
        self.inside = slice(first, first + size)
        self.array = self.memory[self.inside].view(dtype).reshape(shape)
        if value is not None:
            self.array[...] = value
        raw = self.array.view(np.uint16) if dtype == ml_dtypes.bfloat16 else self.array
        kinds = {**KINDS, **contract.INTEGERS}
        self.value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, kinds[kind])

    def is_intact(self) -> bool:
        outside = np.concatenate([self.memory[: self.inside.start], self.memory[self.inside.stop :]])
        return bool((outside == 255).all())


def by_kernels(opened: ort.InferenceSession, node: Drawn, values: Mapping[str, Array]) -> dict[str, Array]:
    """What a session makes of the node, among tensors that lie in NaN."""
    binding = opened.io_binding()
    given = {name: Guarded(value.shape, node.inputs[name][0], value) for name, value in values.items()}
    made = {name: Guarded(made_shape(node, name), node.element) for name in node.outputs}
    for name, item in given.items():
        binding.bind_ortvalue_input(name, item.value)
    for name, item in made.items():
        binding.bind_ortvalue_output(name, item.value)
    opened.run_with_iobinding(binding)
    assert all(item.is_intact() for item in (*given.values(), *made.values())), f"it writes beside a tensor: {node}"
    return {name: item.array.astype(np.float32) for name, item in made.items()}


def made_shape(node: Drawn, name: str) -> tuple[int, ...]:
    """The shape of an output. InteractionTritonFast's declaration has no name for the number of pairs."""
    if node.operator != "InteractionTritonFast":
        (output,) = (item for item in model_of(node).graph.output if item.name == name)
        return tuple(axis.dim_value for axis in output.type.tensor_type.shape.dim)
    count, attributes = node.sizes["F"], node.attributes
    pairs = count * (count + (1 if attributes["self_interaction"] else -1)) // 2
    return node.sizes["B"], pairs + (node.sizes["D"] if attributes["concat_dense"] != "none" else 0)


def by_body(node: Drawn, values: Mapping[str, Array]) -> dict[str, Array] | None:
    """What the body makes, in float32 all the way; None where ONNX Runtime cannot run it: some take no empty axis."""
    wide = replace(
        node,
        element="float32",
        inputs={name: ("float32" if kind in KINDS else kind, shape) for name, (kind, shape) in node.inputs.items()},
    )
    given = {
        name: value.astype(np.float32) if node.inputs[name][0] in KINDS else value for name, value in values.items()
    }
    try:
        return contract.run(inline_local_functions(model_of(wide)), given)
    except Exception as error:  # of ONNX Runtime's, which have no class of their own
        assert 0 in node.sizes.values(), f"{node}: {error}"
        return None


def check(node: Drawn, values: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    wanted = by_body(node, values)
    for name, result in found.items():
        if wanted is None:
            continue
        assert result.shape == wanted[name].shape, f"{name} of {node}"
        scale = np.abs(wanted[name]).max(initial=0.0)
        limit = ROUNDING[node.element] * np.abs(wanted[name]) + SUMS * scale
        limit = np.maximum(limit, 1e-7 if node.element == "float16" else 0.0)  # half of its least number
        error = np.abs(result - wanted[name])
        assert (error <= limit).all(), f"{name} is wrong by {error.max()} of {scale}: {node}"


@pytest.fixture(scope="session", params=AVAILABLE)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with each instruction set that this machine has."""
    return library_with(request.param, tmp_path_factory.getbasetemp())


def compare(names: Sequence[str], count: int, seed: int, kernels: Path) -> None:
    for number, node in enumerate(contract.drawn_pairwise(names, count, seed)):
        values = values_of(node, seed + number)
        check(node, values, by_kernels(session(model_of(node), kernels), node, values))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample(name: str, kernels: Path) -> None:
    compare([name], 6, 3, kernels)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_many(name: str, kernels: Path) -> None:
    compare([name], 300, 4, kernels)


# --- at the edges of tiles: groups of 6 rows, blocks of 64 keys, tasks of 48 rows and more ----------------------------


def hstu(length: int, batch: int = 1, heads: int = 2, size: int = 16, value_size: int = 16, **changed: Any) -> Drawn:
    """A node of HSTU attention. What is no attribute is an input: its type and shape, or None for none."""
    attributes = {
        "num_heads": heads,
        "alpha": 0.3,
        "bias_order": "outside_alpha",
        "norm_length": 0.0,
        "causal": 0,
        "norm": "layer",
        "gate_activation": "silu",
        "epsilon": 1e-5,
        "mode": "silu",
        "num_levels": 1,
        "decay": 1.0,
    }
    width = (batch, length, heads * value_size)
    element = changed.pop("element", "float32")
    inputs = {
        "q": (element, (batch, length, heads * size)),
        "k": (element, (batch, length, heads * size)),
        "v": (element, width),
        "bias": (element, (1, 1, length, length)),
        "mask": None,
        "lengths": None,
        "u": (element, width),
    }
    attributes |= {key: value for key, value in changed.items() if key in attributes}
    inputs |= {key: value for key, value in changed.items() if key not in attributes}
    present = {name: told for name, told in inputs.items() if told is not None}
    sizes = {"B": batch, "N": length, "d": size, "dv": value_size, "h": heads}
    return Drawn("HSTUHierarchicalAttention", element, present, ("y",), attributes, sizes)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 47, 48, 49, 63, 64, 65, 127, 128, 129, 193, 385])
def test_lengths_at_the_edges_of_tiles(length: int, kernels: Path) -> None:
    for causal, lengths in ((0, None), (1, None), (1, ("int64", (3,)))):
        node = hstu(length, batch=3, causal=causal, lengths=lengths)
        values = values_of(node, length)
        check(node, values, by_kernels(session(model_of(node), kernels), node, values))


@pytest.mark.parametrize("size", [1, 4, 7, 15, 16, 17, 31, 33, 64, 72, 129, 260])
def test_sizes_at_the_edges_of_vectors(size: int, kernels: Path) -> None:
    for element in KINDS:
        other = 260 - size or 1
        node = hstu(70, size=size, value_size=other, element=element, causal=1)
        values = values_of(node, size)
        check(node, values, by_kernels(session(model_of(node), kernels), node, values))


@pytest.mark.parametrize("kind", ["causal", "mask of float32", "mask of bool", "bias", "bias inside"])
def test_what_a_triangle_masks_is_left_out_whole(kind: str, kernels: Path) -> None:
    """Tiles that it masks are not even computed, so that it costs as little as `causal` does: infinite values change nothing."""
    shape = (1, 1, 256, 256)
    triangle = np.tril(np.ones(shape, dtype=bool))
    order = "inside_alpha" if kind == "bias inside" else "outside_alpha"
    node = hstu(256, causal=int(kind == "causal"), bias_order=order)
    if kind.startswith("mask"):
        node = hstu(256, mask=(kind.split()[-1], shape))
    values = values_of(node, 1)
    if kind.startswith("mask"):
        values["mask"] = triangle.astype(values["mask"].dtype)
    elif kind.startswith("bias"):
        values["bias"] = np.where(triangle, values["bias"], np.float32(-1e9))
    opened = session(model_of(node), kernels)
    clean = by_kernels(opened, node, values)["y"]
    check(node, values, {"y": clean})
    values["v"][:, 192:] = np.inf
    np.testing.assert_array_equal(by_kernels(opened, node, values)["y"][:, :192], clean[:, :192])


def test_a_low_bias_that_scores_make_up_for_masks_nothing(kernels: Path) -> None:
    node = hstu(128)
    values = values_of(node, 1)
    triangle = np.tril(np.ones((1, 1, 128, 128), dtype=bool))
    values["bias"] = np.where(triangle, values["bias"], np.float32(-2e4))
    for name in "qk":
        values[name] = np.abs(values[name]) * 200
    found = by_kernels(session(model_of(node), kernels), node, values)["y"]
    check(node, values, {"y": found})
    # The last keys score above the bias: leaving them out would show.
    values["v"][:, 64:] = 0
    assert not np.allclose(by_kernels(session(model_of(node), kernels), node, values)["y"][:, :64], found[:, :64])


@pytest.mark.parametrize("lowest", [-88.0, -1e9, -3.4028235e38, -np.inf])
@pytest.mark.parametrize("length", [5, 70])
@pytest.mark.parametrize("triangle", [True, False])
def test_a_bias_as_low_as_float32_goes_masks(lowest: float, length: int, triangle: bool, kernels: Path) -> None:
    """It has no weight, not even beside a value near the end of float32; and -inf gives NaN, as in the body: SiLU has no limit
    there that is computed."""
    node = hstu(length, norm="none", gate_activation="none", alpha=0.5)
    values = values_of(node, 1)
    kept = np.tril(np.ones((length, length), dtype=bool))
    kept[:, -1] &= not triangle
    kept[2, 1] = False
    values["bias"] = np.where(kept, values["bias"], np.float32(lowest))
    found = by_kernels(session(model_of(node), kernels), node, values)["y"]
    if np.isfinite(lowest):
        check(node, values, {"y": found})
    else:
        wanted = by_body(node, values)
        assert wanted is not None and np.isnan(found).any()
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted["y"]))


def test_gates_of_numbers_near_the_end_of_float32(kernels: Path) -> None:
    node = replace(contract.drawn_pairwise(["FusedSwish"], 1, 3)[0], element="float32", attributes={"beta": 1.0})
    node = replace(node, inputs={name: ("float32", shape) for name, (_, shape) in node.inputs.items()})
    values = values_of(node, 1)
    for array in values.values():
        array[...] = np.resize(np.array([-3.4028235e38, -1e30, -90.0, 0.0, 90.0, 1e30, -1e36], np.float32), array.shape)
    (found,) = by_kernels(session(model_of(node), kernels), node, values).values()
    (array,) = values.values()
    np.testing.assert_allclose(found, np.maximum(array, 0.0), atol=1e-30)


@pytest.mark.parametrize("levels", [1, 2, 5, 40])
def test_levels_whose_ends_are_no_ends_of_blocks(levels: int, kernels: Path) -> None:
    node = hstu(
        150,
        mask=("bool", (1, 2, 150, 150)),
        bias=None,
        u=None,
        mode="level_softmax",
        norm="none",
        gate_activation="none",
        num_levels=levels,
        decay=0.9,
    )
    values = values_of(node, levels)
    values["mask"][:, 0, :20] = False  # rows without any key
    check(node, values, by_kernels(session(model_of(node), kernels), node, values))


# --- masked places, threads -------------------------------------------------------------------------------------------


def test_what_lengths_leave_out_is_not_read(kernels: Path) -> None:
    """NaN there changes nothing, and rows there are 0."""
    node = hstu(100, batch=2, lengths=("int32", (2,)), causal=1)
    values = {**values_of(node, 1), "lengths": np.array([70, 0], dtype=np.int32)}
    opened = session(model_of(node), kernels)
    clean = by_kernels(opened, node, values)["y"]
    for name in "qkvu":
        values[name][0, 70:], values[name][1] = np.nan, np.nan
    found = by_kernels(opened, node, values)["y"]
    np.testing.assert_array_equal(found, clean)
    assert not found[0, 70:].any() and not found[1].any()


def test_a_negative_length_is_none_at_all(kernels: Path) -> None:
    node = hstu(10, batch=2, lengths=("int64", (2,)))
    values = {**values_of(node, 1), "lengths": np.array([-4, 1000])}
    found = by_kernels(session(model_of(node), kernels), node, values)["y"]
    check(node, values, {"y": found})
    assert not found[0].any() and found[1].any()


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_bit(name: str, kernels: Path) -> None:
    (node,) = contract.drawn_pairwise([name], 1, 8)
    if name == "HSTUHierarchicalAttention":
        node = hstu(300, batch=3, causal=1)
    values = values_of(node, 1)
    alone = by_kernels(session(model_of(node), kernels), node, values)
    many = by_kernels(session(model_of(node), kernels, threads=3), node, values)
    for output, result in alone.items():
        np.testing.assert_array_equal(result, many[output])


def test_one_session_serves_several_threads(kernels: Path) -> None:
    node = hstu(150, batch=2, causal=1)
    opened = session(model_of(node), kernels, threads=2)
    given = [values_of(node, seed) for seed in range(4)]
    wanted = [opened.run(None, values)[0] for values in given]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not np.array_equal(opened.run(None, given[number])[0], wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
