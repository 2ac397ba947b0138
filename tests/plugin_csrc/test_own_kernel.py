"""Kernels of a user's own: what is compiled of a folder, what it enqueues, what is refused, and what the check finds."""

from __future__ import annotations

import ctypes
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
from onnx_fuse.own_kernels import build as own_kernels
from onnx_fuse.own_kernels import check as kernel_check
from onnx_fuse.own_kernels.check import Checked
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.runtime.plugins import (
    aot,
    harness,
    plugin_library,
)
from onnx_fuse.runtime.plugins.own_operator import Launch
from tests.plugin_csrc.built import ROOT
from tests.plugin_csrc.built import library as builtin_library
from tests.plugin_csrc.own import MIXED, NARROW, enqueued, library, written


def read(folder: Path, **files: str) -> own_kernels.Own:
    return own_kernels.read(written(folder, **files))[0]


# --- what is enqueued -------------------------------------------------------------------------------------------------


def run_of(
    own: own_kernels.Own, sizes: dict[str, int], dtype: str, **attributes: Any
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


# --- what is said wrongly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, line, reason",
    [
        ("grid=", "grids=", 38, "TypeError"),
        ("import triton\n", "import triton, nothing_of_that_name\n", 2, "ModuleNotFoundError"),
        ("KERNEL = OwnKernel(", "KERNEL = OwnKernel((", 38, "was never closed"),
        ("operator=MIXED", "operator=3", 39, "operator: 3 is neither the path of a learned fusion nor a FusedOp"),
        ("operator=MIXED", 'operator="mixed.onnx"', 40, "inputs: mixed.onnx says what they are"),
        ('"MixedRows"', '"Gelu"', 39, "operator: .* TensorRT would take it for an operator of its own"),
        ('domain="my.ops"', 'domain="ai.onnx.ml"', 39, "operator: .* is ONNX's own"),
        ("int64[B] ids", "int64[B ids", 40, "inputs: .* are no inputs"),
        ("int64[B] ids", "int64[] ids", 40, "inputs: the shape of ids is not given in full"),
        ("int64[B] ids, float[B, S, D] x", "float[B, S, D] x, int64[B] ids", 40, "inputs: the order .* is ids, x"),
        ("int64[B] ids", "int64[B] idx", 40, "inputs: MixedRows has no input 'idx'"),
        ("float[R, D] table", "double[R, D] table", 39, "operator: input table is double"),
        ('"scale": 0.5, ', "", 39, "operator: MixedRows lacks its attribute 'scale'"),
        ('"mode": "add"}', '"mode": [1]}', 39, "operator: the attribute mode is .1., no number or string"),
        ('"add", "multiply"]', '"multiply"]', 42, "choices: the attribute mode is a string, and 'add' is none"),
        ('choices={', 'choices={"scale": ["a"], ', 42, "choices: MixedRows has no string attribute scale"),
        ("function=mixed_rows", "function=body", 43, "function: .* is no function decorated with triton.jit"),
        ("table, keep, y, total, S", "table, keep, y, other, S", 43, "function: its argument other is none of ids, x"),
        ("keep, y, total, S", "keep, y, S", 43, "function: it has no argument total, which MixedRows has"),
        ("D: tl.int32", "D: tl.int16", 43, "function: D is int16; sizes are int32 or int64"),
        ("LOOP: tl.constexpr", "R: tl.constexpr", 46, "configs: .* has what is no constant of the kernel, LOOP"),
        ('"(ceil_div', '"(ceil', 44, "sizes: 'ceil.*: the functions are ceil_div, min, max"),
        ('sizes={', 'sizes={"even": "B", ', 44, "sizes: even is no size among the arguments of the kernel"),
        ('grid=["B * S", 1]', 'grid=["B * S / 2"]', 45, "grid: 'B . S / 2': a size is an integer; write // or ceil_div"),
        ('grid=["B * S", 1]', "grid=[]", 45, "grid: it has 0 axes"),
        ('grid=["B * S", 1]', 'grid=["C"]', 45, "grid: 'C' is none of B, S, D, R, factor, BLOCK, LOOP"),
        ('{"BLOCK": 16, "LOOP": 0}', '{"BLOCK": 16}', 46, "configs: .* lacks the kernel's constant LOOP"),
        ('"LOOP": 0}', '"LOOP": 0, "WIDE": 1}', 46, "configs: .* has what is no constant of the kernel, WIDE"),
        ("num_warps=1", "num_warps=1, num_ctas=2", 46, "configs: num_ctas is not supported"),
        ("triton.Config({\"BLOCK\": 16, \"LOOP\": 0}, num_warps=1)", "16", 46, "configs: 16 is no triton.Config"),
        ("D <= BLOCK or", "D + BLOCK or", 50, "when: 'D . BLOCK' is no condition"),
        ("D <= BLOCK or LOOP == 1", "LOOP == 1", 50, "when: it is never met for .'BLOCK': 16"),
        ("D <= BLOCK or LOOP == 1", "D <= BLOCK or BLOCK // LOOP == 1", 50, "when: it divides by 0"),
        ('multiples_of_16=["D"]', 'multiples_of_16=["x"]', 51, "multiples_of_16: x is no integer argument"),
        ('multiples_of_16=["D"]', 'types=["float64"]', 51, "types: .'float64',. are not among float32"),
        ('multiples_of_16=["D"]', 'outputs={"z": ["B"]}', 51, "outputs: z is none of y, total"),
        ('multiples_of_16=["D"]', 'outputs={"total": ["B + C"]}', 51, "outputs: 'C' is none of"),
        ("return y, op.Reshape", "return y, op.NonZero(y) or op.Reshape", 39, "operator: output total is int64"),
        ("op.Gather(table", "op.Gather(tables", 39, "operator: the body of MixedRows fails: NameError: name 'tables'"),
        ("op.ints(-1))", "op.NonZero(y))", 38, "outputs: the .* of total does not follow from the body"),
    ],
)  # fmt: skip
def test_what_is_said_wrongly_is_told_with_its_line(old: str, new: str, line: int, reason: str, tmp_path: Path) -> None:
    assert MIXED.count(old) == 1
    with pytest.raises(UsageError, match=reason) as error:
        read(tmp_path, mixed=MIXED.replace(old, new))
    assert error.value.cause.startswith(f"{tmp_path / 'mixed.py'}, line {line}: ")


def test_a_namespace_in_which_the_name_is_taken(tmp_path: Path) -> None:
    text = MIXED.replace("MixedRows", "FusedSwish").replace('="my.ops"', '="my.ops", plugin_namespace="gr.ml.infra"')
    with pytest.raises(UsageError, match=r"line 39: operator: .* onnx-fuse has an operator of that name"):
        read(tmp_path, mixed=text)


def test_folders_without_kernels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        own_kernels.read(tmp_path / "missing")
    with pytest.raises(UsageError, match="holds an OwnKernel"):
        read(tmp_path, helper="raise SystemExit  # is not run, since it names no kernel of the user's")
    with pytest.raises(UsageError, match=r"b.py and .*a.py both have a kernel for TwiceNarrow"):
        read(tmp_path, a=NARROW, b=NARROW)


def test_a_learned_fusion_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    text = NARROW.replace("operator=TWICE", 'operator="twice.onnx"').replace('    inputs="float[M, 2, N] x",\n', "")
    with pytest.raises(UsageError, match=r"narrow.py, line \d+: operator: .*twice.onnx"):
        read(tmp_path, narrow=text)
    (tmp_path / "twice.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"narrow.py, line \d+: operator: .*twice.onnx"):
        read(tmp_path, narrow=text)


# --- the check --------------------------------------------------------------------------------------------------------


def results(own: own_kernels.Own, *sizes: dict[str, int]) -> list[Checked]:
    return [result for kind, result in kernel_check.checks(own, sizes) if kind == "result"]


def test_the_check_runs_every_kernel(tmp_path: Path) -> None:
    own = read(tmp_path, mixed=MIXED)
    found = results(own)
    assert [item for item in found if item.problem] == []
    assert {item.kernel for item in found} == {item.name for item in own.operator.variants()} | {"MixedRows"}
    assert any(item.sizes["B"] == 0 for item in found)


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("a + b, a * b", "a + b, a - b", "of its largest magnitude"),
        ("* scale * factor", "* scale * scale", "of its largest magnitude"),
        ("D + column, value.to(y.dtype.element_ty), mask=column < D)", "D + column, value.to(y.dtype.element_ty))", "writes outside of y"),
        ("column < D, other=0.0).to(tl.float32)\n        value", "column <= D, other=0.0).to(tl.float32)\n        value", "NaN"),
        ("tl.store(total + row, tl", "tl.store(total + row // 2, tl", "were never written"),
        ("value = tl.where", "value = nothing + tl.where", "name 'nothing' is not defined"),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_wrong(old: str, new: str, problem: str, tmp_path: Path) -> None:
    assert MIXED.count(old) == 1
    cases = [{"B": 2, "S": 3, "D": 5, "R": 4}, {"B": 3, "S": 2, "D": 5, "R": 4}]
    found = results(read(tmp_path, mixed=MIXED.replace(old, new)), *cases)
    assert any(problem in (item.problem or "") for item in found), found


def test_the_check_says_what_it_could_not_reach(tmp_path: Path) -> None:
    text = NARROW.replace('when="N <= BLOCK"', 'when="N <= BLOCK and M == 1009"')
    assert "no sizes were drawn that it takes" in [item.problem for item in results(read(tmp_path, narrow=text))]
    with pytest.raises(UsageError, match="lack N of TwiceNarrow"):
        results(read(tmp_path, narrow=text), {"M": 1})
    wrong = NARROW.replace('when="N', 'outputs={"output": ["M", 2, "N + 1"]}, when="N')
    assert any("its outputs are" in (item.problem or "") for item in results(read(tmp_path, narrow=wrong)))


def test_a_kernel_that_ends_the_interpreter(tmp_path: Path) -> None:
    astray = NARROW.replace("x + place, mask", "x + place + (N // 8).to(tl.int64) * 1099511627776, mask")
    found = kernel_check.check(written(tmp_path, narrow=astray), [{"M": 1, "N": 7}, {"M": 1, "N": 8}])
    assert [item.problem is None for item in found] == [True, True, False]
    assert found[-1].kernel == "TwiceNarrow" and found[-1].sizes["N"] == 8
    assert "the interpreter ended with status" in (found[-1].problem or "")


# --- building, and TensorRT -------------------------------------------------------------------------------------------


def test_a_kernel_that_does_not_compile(tmp_path: Path) -> None:
    folder = written(tmp_path, narrow=NARROW.replace("value + value", "value + tl.nothing"))
    with pytest.raises(UsageError, match=r"The kernel TwiceNarrow.fp16.0 of .*narrow.py does not compile for sm_80"):
        own_kernels.build(folder, tmp_path / "lib.so", architectures=[80], jobs=1)
    assert not (tmp_path / "lib.so").exists()


def node_model(own: own_kernels.Own, path: Path, *, fixed: dict[str, int]) -> Path:
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
        digest = plugin_library.hashlib.sha256(item.read_bytes()).hexdigest()
        item.with_name(f"{item.name}.json").write_text(json.dumps({**record, "sha256": digest}))
    assert f"{second} and {first} both have a plugin for my.ops::MixedRows version 1" in loading(first, second)


def test_libraries_share_no_symbols() -> None:
    """Loaded where all see them, each still has its own plugins."""
    path, owns = library()
    loaded = [ctypes.CDLL(str(item), mode=ctypes.RTLD_GLOBAL) for item in (builtin_library(), path)]
    assert [item.get_num_registered_plugins() for item in loaded][1] == len(owns)
    assert loaded[0].get_num_registered_plugins() > len(owns)


def test_signatures_are_those_that_are_compiled(tmp_path: Path) -> None:
    own = read(tmp_path, mixed=MIXED)
    variants = {item.name: item for item in own.operator.variants()}
    assert aot.letters(variants["MixedRows.bf16.0"]) == "pppppplilfii"
    assert variants["MixedRows.bf16.0"].signature["keep"] == "*i1"
    assert variants["MixedRows.fp16.1.x16"].divisible == {"D"} and variants["MixedRows.fp16.1"].divisible == set()
