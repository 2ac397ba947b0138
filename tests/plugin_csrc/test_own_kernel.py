"""Plugins of a user's own kernels: what they enqueue, what they refuse, and that TensorRT takes them."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, save

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.learning import learned_file
from onnx_fuse.own_kernels.read_folder import ResolvedKernel
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.runtime.plugins import (
    harness,
)
from onnx_fuse.runtime.plugins.own_operator import Launch
from tests.plugin_csrc.built import ROOT
from tests.plugin_csrc.built import library as builtin_library
from tests.plugin_csrc.own import enqueued, library

# --- what is enqueued -------------------------------------------------------------------------------------------------


def run_of(
    own: ResolvedKernel, sizes: dict[str, int], dtype: str, **attributes: Any
) -> tuple[dict[str, Any], Launch | None]:
    """A run for the worker, and what the kernel's own launch is."""
    operator = own.operator
    values = {**own.attributes, **attributes}
    every = {**sizes, **{name: values[name] for name in operator.integers}}
    launch = operator.launch(dtype, every, values)
    shapes = {item.name: [sizes[dim] if isinstance(dim, str) else dim for dim in item.dims] for item in operator.inputs}
    kinds = {item.name: dtype if item.dtype == "float" else item.dtype for item in operator.inputs}
    made = operator.output_shapes(every)
    addresses = {name: 4096 * (index + 1) for index, name in enumerate([*shapes, *made])}
    return {
        "name": operator.name,
        "attributes": {**values, "inputs": ",".join(shapes), "outputs": ",".join(made)},
        "inputs": [[kinds[name], shape, addresses[name]] for name, shape in shapes.items()],
        "outputs": [[dtype, list(shape), addresses[name]] for name, shape in made.items()],
    }, launch and Launch(launch.variant, launch.grid, tuple(addresses.get(item, item) for item in launch.arguments))


def test_plugins_launch_what_the_kernels_launch(tmp_path: Path) -> None:
    """Output shapes, variant, grid and arguments, of which one is an expression with every operation there is."""
    _, owns = library()
    mixed, narrow = owns["MixedRows"], owns["TwiceNarrow"]
    cases = [
        run_of(
            mixed, {"B": batch, "S": length, "D": width, "R": 5}, dtype, mode=mode, factor=factor, scale=0.25 * factor
        )
        for (batch, length), width in itertools.product([(1, 1), (2, 7), (9, 4)], [1, 16, 17, 48, 100])
        for dtype, mode, factor in [("float32", "add", 3), ("float16", "multiply", -2), ("bfloat16", "multiply", 1)]
    ]
    cases += [run_of(narrow, {"M": 3, "N": width}, dtype) for width in (1, 32) for dtype in narrow.operator.types]
    cases += [run_of(mixed, {"B": 0, "S": 4, "D": 16, "R": 5}, "float16"), run_of(narrow, {"M": 2, "N": 0}, "float32")]
    shaped = owns["Shaped"]
    cases += [run_of(shaped, {"M": 5 + index, "N": 11}, dtype) for index, dtype in enumerate(shaped.operator.types)]
    kernels = set()
    for (run, launch), answer in zip(cases, enqueued([run for run, _ in cases], tmp_path), strict=True):
        told = f"{run}: {answer}"
        assert "error" not in answer and answer["workspace"] == 0, told
        if launch is None:
            assert answer["kernels"] == answer["launches"] == [], told
            continue
        assert answer["kernels"] == [launch.variant.name], told
        (found,) = answer["launches"]
        assert found["grid"] == [*launch.grid, 1, 1][:3], told
        *arguments, hidden, also_hidden = found["arguments"]
        assert arguments == pytest.approx(list(launch.arguments)) and hidden == also_hidden == 0, told
        kernels.add(launch.variant.name)
    assert kernels == {item.name for own in owns.values() for item in own.operator.variants()}


@pytest.mark.parametrize(
    "sizes, changed, reason",
    [
        ({"M": 1, "N": 8}, [1, 3, 8], "axis 1 of input x is 3, not 2"),
        ({"M": 1, "N": 8}, [1, 2], "input x has 2 axes, not 3"),
        ({"M": 1, "N": 8}, [1, 2, 33], "no kernel takes M = 1 N = 33"),
    ],
)
def test_shapes_that_are_refused(sizes: dict[str, int], changed: list[int], reason: str) -> None:
    path, owns = library()
    run, _ = run_of(owns["TwiceNarrow"], sizes, "float16")
    plugin = harness.Plugin(path, "TwiceNarrow", run["attributes"])
    with pytest.raises(UsageError, match=reason):
        plugin.outputs([harness.Tensor("float16", tuple(changed))])
    with pytest.raises(UsageError, match=reason):
        plugin.prepare([harness.Tensor("float16", tuple(changed))], [harness.Tensor("float16", tuple(changed))])
    plugin.close()


def test_sizes_that_differ_types_and_sizes_that_must_be_known() -> None:
    path, owns = library()
    run, _ = run_of(owns["MixedRows"], {"B": 2, "S": 3, "D": 16, "R": 5}, "float16")
    plugin = harness.Plugin(path, "MixedRows", run["attributes"])
    inputs = [harness.Tensor(kind, tuple(shape)) for kind, shape, _ in run["inputs"]]
    outputs = [harness.Tensor(kind, tuple(shape)) for kind, shape, _ in run["outputs"]]
    assert plugin.refused_position(inputs, outputs) == -1
    for place, kind in [(0, "int32"), (1, "int64"), (2, "float32"), (3, "float16")]:
        other = [harness.Tensor(kind, item.sizes) if index == place else item for index, item in enumerate(inputs)]
        assert plugin.refused_position(other, outputs) == (1 if place == 1 else place)
    assert [item.sizes for item in plugin.outputs(inputs, known=False)] == [(2, 3, 16), (6,)]
    with pytest.raises(UsageError, match="axis 0 of input x is 3, not B = 2"):
        plugin.outputs([inputs[0], harness.Tensor("float16", (3, 3, 16)), *inputs[2:]])
    plugin.close()

    narrow, _ = run_of(owns["TwiceNarrow"], {"M": 3, "N": 8}, "float16")
    plugin = harness.Plugin(path, "TwiceNarrow", narrow["attributes"])
    with pytest.raises(
        UsageError, match="N has to be known when the engine is built, since it decides which kernel runs"
    ):
        plugin.outputs([harness.Tensor("float16", (3, 2, 8))], known=False)
    with pytest.raises(UsageError, match="no kernels for data type"):
        plugin.outputs([harness.Tensor("bfloat16", (3, 2, 8))])
    plugin.close()
    for wrong, reason in [
        ({"mode": "max"}, '"max", which is not known'),
        ({"outputs": "y"}, "writes the outputs y total"),
    ]:
        with pytest.raises(UsageError, match=reason):
            harness.Plugin(path, "MixedRows", {**run["attributes"], **wrong})


@pytest.mark.parametrize("sizes, shape", [((5, 9), (3, 6, 3, 4)), ((8, 3), (4, 3, 2, 4)), ((1, 1), (1, 2, 0, 4))])
def test_output_shapes_are_expressions_whether_sizes_are_known_or_not(
    sizes: tuple[int, int], shape: tuple[int, ...]
) -> None:
    path, owns = library()
    run, _ = run_of(owns["Shaped"], dict(zip("MN", sizes, strict=True)), "float32")
    plugin = harness.Plugin(path, "Shaped", run["attributes"])
    x = harness.Tensor("float32", sizes)
    for known in (False, True):
        assert [item.sizes for item in plugin.outputs([x], known=known)] == [shape]
    plugin.close()


def test_fields_are_those_of_the_operator() -> None:
    path, _ = library()
    assert harness.fields(path, "MixedRows") == {
        "scale": "float",
        "factor": "int",
        "mode": "str",
        "inputs": "str",
        "outputs": "str",
    }


# --- TensorRT -------------------------------------------------------------------------------------------------------


def node_model(own: ResolvedKernel, path: Path, *, fixed: dict[str, int]) -> Path:
    """A model of one node; dimensions not in `fixed` are left open."""
    tensors = {
        name: Tensor(tensor.dtype, tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.dims))
        for name, tensor in own.tensors.items()
    }
    model = learned_file.of_operator(own.description, tensors, own.attributes)
    for output in model.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    save(model, path)
    return path


def test_tensorrt_takes_both_libraries_and_builds_engines(tmp_path: Path) -> None:
    path, owns = library()
    models = [
        node_model(owns["MixedRows"], tmp_path / "mixed.onnx", fixed={}),
        node_model(owns["TwiceNarrow"], tmp_path / "narrow.onnx", fixed={"N": 8}),
        node_model(owns["TwiceNarrow"], tmp_path / "unknown.onnx", fixed={}),
    ]
    given = {
        "libraries": [str(builtin_library()), str(path)],
        "models": list(map(str, models)),
        "capabilities": ["SM80"],
    }
    command = [sys.executable, "-m", "tests.plugin_csrc.tensorrt_worker"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    mixed, narrow, unknown = json.loads(done.stdout)
    assert mixed["plugins"] == ["MixedRows"] and isinstance(mixed["engines"]["SM80"], int), mixed
    assert narrow["plugins"] == ["TwiceNarrow"] and isinstance(narrow["engines"]["SM80"], int), narrow
    assert not unknown["accepted"] and "N has to be known when the engine is built" in done.stderr


def loading(*libraries: Path) -> str:
    script = (
        f"from onnx_fuse.runtime.tensorrt import binding; binding.load_plugins({[str(item) for item in libraries]!r})"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT).stderr


def test_two_libraries_with_one_operator(tmp_path: Path) -> None:
    path, owns = library()
    first, second = (Path(shutil.copy(path, tmp_path / f"{name}.so")) for name in ("first", "second"))
    assert "no other library has registered the same ones" in loading(first, second)
    operators = [own.operator.plugin for own in owns.values()]
    record = {"version": "1", "architectures": [80], "variants": 1, "size": 1, "seconds": 1.0, "operators": operators}
    for item in (first, second):
        digest = hashlib.sha256(item.read_bytes()).hexdigest()
        item.with_name(f"{item.name}.json").write_text(json.dumps({**record, "sha256": digest}))
    assert f"{second} and {first} both have a plugin for my.ops::MixedRows version 1" in loading(first, second)


def test_libraries_share_no_symbols() -> None:
    """Loaded where all see them, each still has its own plugins."""
    path, owns = library()
    loaded = [ctypes.CDLL(str(item), mode=ctypes.RTLD_GLOBAL) for item in (builtin_library(), path)]
    assert [item.get_num_registered_plugins() for item in loaded][1] == len(owns)
    assert loaded[0].get_num_registered_plugins() > len(owns)
