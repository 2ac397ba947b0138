"""The export step: a PyTorch module becomes a standard and a fused ONNX model, both held against it, with what TensorRT needs.

    done = onnx_fuse.export(model, (input_ids, mask), "model.onnx",
                            dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}},
                            sizes={"batch": [1, 8, 32], "sequence": [16, 128, 512]})

`finish_export` does the same from an ONNX file that an export script has just written.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from onnx_fuse import torch_export
from onnx_fuse.api import Attention, FuseResult, fuse
from onnx_fuse.choice import Chosen
from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.exporting.custom_ops import CustomOps
from onnx_fuse.fusing import Progress
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.staging import write_file
from onnx_fuse.passes.files.temporary import temporary_folder
from onnx_fuse.passes.graph.function_bodies import Functions
from onnx_fuse.passes.precision import precision_of
from onnx_fuse.passes.report import Report
from onnx_fuse.passes.select.decisions import Method
from onnx_fuse.runtime.onnxruntime import room, sessions
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.verify.compare import TOLERANCES, Comparison, compare
from onnx_fuse.runtime.verify.precision import tolerance
from onnx_fuse.runtime.verify.random_inputs import DRAWS, draw_inputs, input_specs

BUILD_FORMAT = 1
SUMMARY_FORMAT = 1
_TRIED = (DRAWS[0], DRAWS[1], DRAWS[5])
_PRECISIONS = ("float32", "float16", "bfloat16")

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exported:
    """The files of an export.

    Attributes:
        standard: the model of standard ONNX operators.
        fused: the same with the fused operators.
        build: JSON for a TensorRT build: inputs with their ranges of shapes, precision, plugin libraries, operators.
        trtexec: the trtexec lines for both models.
        summary: JSON on all of it: what fused, what was compared with what, and how far it was apart.
        report: the report of fusing.
    """

    standard: Path
    fused: Path
    build: Path
    trtexec: Path
    summary: Path
    report: Report


def export(
    module: Any,
    args: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    precision: str | None = None,
    opset: int = torch_export.DYNAMO_OPSET,
    dynamo: bool = True,
    custom_translation_table: Mapping[Any, Any] | None = None,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
    disable: Iterable[str] = (),
    require: Mapping[str, int] | None = None,
    select: Method = "auto",
    device: str | None = None,
    attention: Attention = "fused",
    functions: Functions = "keep",
    plugin_libraries: Sequence[str | os.PathLike[str]] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Exports a module, fuses the model, and proves both equal to the module in eval mode.

    Beside `path` (the standard model) it writes `NAME.fused.onnx`, `NAME.build.json`, `NAME.trtexec.sh` and
    `NAME.summary.json`. Nothing is written where something differs.

    Args:
        module: it is put into eval mode on a copy.
        args, kwargs: what its forward takes; tensors, or None where an input is left out.
        dynamic_shapes: input -> {axis: name of the dimension}.
        sizes: name of a dimension -> sizes it will have, such as batch sizes or sequence lengths: the smallest, the one in
            the middle and the largest become TensorRT's min, opt and max. Left out: that of the example.
        output_names: None for the names where the module returns a mapping or named tuple, else output, or output_1, output_2, ...
        precision: "float32", "float16" or "bfloat16" converts the module and its inputs first; None leaves them.
        dynamo: the exporter of torch.export; False for TorchScript.
        custom_translation_table: as for torch.onnx.export; `onnx_fuse.custom_op` makes one.
        fusions, enable, disable, require, attention, functions: as for `fuse`.
        select, device: as for `fuse`; the sizes that it is chosen for are the opt sizes.
        plugin_libraries: for the build and the trtexec line of the fused model; those that
            `onnx_fuse.runtime.plugins.plugin_library.find` finds if None.
        progress: called with a word on what is being done.

    Raises:
        UsageError: an argument is wrong, or torch is missing.
        ModelError: torch cannot export the module.
        RequirementError, VerificationError: as for `fuse`, and if a model does not compute what the module does.
        OutputError: a file cannot be written.
    """
    torch = torch_export.require_torch()
    path = Path(path)
    io.check_output(path)
    say = progress or (lambda _: None)
    module, args, kwargs = _prepared(torch, module, args, kwargs or {}, precision)
    given = torch_export.named_inputs(module, args, kwargs, input_names)
    axes = torch_export.dynamic_axes(list(given), dynamic_shapes)
    names = list(output_names) if output_names is not None else _output_names(torch, module, args, kwargs)
    _check_sizes(sizes or {}, {label for of in axes.values() for label in of.values()})
    with temporary_folder(path.parent) as folder:
        written = folder / path.name
        say("exporting")
        torch_export.write(
            torch, module, args, kwargs, written, list(given), names, axes, opset, dynamo, custom_translation_table
        )
        if isinstance(custom_translation_table, CustomOps):
            custom_translation_table.attach(written)
        done = finish_export(
            written, module, args, kwargs=kwargs, sizes=sizes, fusions=fusions, enable=enable, disable=disable,
            require=require, select=select, device=device, attention=attention, functions=functions,
            plugin_libraries=plugin_libraries, progress=progress,
        )  # fmt: skip
        for item in sorted(folder.iterdir()):
            os.replace(item, path.parent / item.name)
    moved = {
        name: path.parent / getattr(done, name).name for name in ("standard", "fused", "build", "trtexec", "summary")
    }
    return Exported(**moved, report=done.report)


def finish_export(
    path: str | os.PathLike[str],
    module: Any,
    args: Sequence[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
    disable: Iterable[str] = (),
    require: Mapping[str, int] | None = None,
    select: Method = "auto",
    device: str | None = None,
    attention: Attention = "fused",
    functions: Functions = "keep",
    plugin_libraries: Sequence[str | os.PathLike[str]] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Does what `export` does once torch.onnx.export has written the model: fuse, prove equal, write the rest beside it.

    Args:
        path: the model that was exported; it stays as it is.
        module, args, kwargs: what it was exported from.
        sizes, fusions, enable, disable, require, select, device, attention, functions, plugin_libraries, progress: as for
            `export`.

    Raises:
        OnnxFuseError: as for `export`.
    """
    torch = torch_export.require_torch()
    path, say = Path(path), progress or (lambda _: None)
    libraries = [str(item) for item in (plugin_library.find() if plugin_libraries is None else plugin_libraries)]
    module, args, kwargs = _prepared(torch, module, args, kwargs or {}, None)
    standard = io.load(path)
    _check_sizes(sizes or {}, {dim for value in standard.graph.input for dim in _dims(value) if isinstance(dim, str)})
    reference = _Reference(torch, module, args, kwargs, standard)
    of_example = _example_sizes(standard, reference.example)
    chosen = {**of_example, **(sizes or {})}
    result = fuse(
        path, fusions=fusions, enable=enable, disable=disable, require=require, select=select, device=device,
        sizes=None if select == "all" else {name: _range(values)["opt"] for name, values in chosen.items()},
        attention=attention, functions=functions, progress=progress,
    )  # fmt: skip
    say("comparing with PyTorch")
    with_torch = {
        "standard": reference.check(path, path.parent, "The exported model"),
        "fused": reference.check(result.model, path.parent, "The fused model"),
    }
    files = {
        name: path.with_name(f"{path.stem}.{ending}")
        for name, ending in (
            ("fused", "fused.onnx"),
            ("build", "build.json"),
            ("trtexec", "trtexec.sh"),
            ("summary", "summary.json"),
        )
    }
    build = _build(standard, result, path, files["fused"], chosen, libraries)
    build["sizes_of_the_example"] = sorted(set(of_example) - set(sizes or {}))
    summary = {
        "format": SUMMARY_FORMAT,
        "files": {"standard": path.name, **{name: file.name for name, file in files.items()}},
        "nodes": {"standard": result.report.nodes_before, "fused": result.report.nodes_after},
        "fused": result.report.fused,
        "operators": build["operators"],
        "selection": result.report.selection,
        "verification": {"pytorch": with_torch, "onnx": result.report.verification},
        "warnings": result.report.warnings,
        "versions": {**result.report.versions, "torch": torch.__version__},
    }
    result.save(files["fused"])
    _write_json(files["build"], build)
    write_file(files["trtexec"], _script(build).encode())
    _write_json(files["summary"], summary)
    return Exported(standard=path, **files, report=result.report)


# --- PyTorch as the reference -----------------------------------------------------------------------------------------


class _Reference:
    """The module's own outputs on the example and on random inputs."""

    def __init__(self, torch: Any, module: Any, args: Any, kwargs: Any, model: ModelProto) -> None:
        self.torch = torch
        self.module = module
        self.outputs = [value.name for value in model.graph.output]
        self.rtol = max(tolerance(model), TOLERANCES["float16"] if precision_of(model) == "bfloat16" else 0.0)
        held = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in held]
        self.given = torch_export.named_inputs(module, args, kwargs, None)
        if len(names) > len(self.given):
            raise UsageError(
                f"The model takes {len(names)} inputs, the module is given {len(self.given)}.",
                "Give the args it was exported with.",
            )
        # The exporter drops inputs that nothing reads, and may rename what it keeps.
        by_name = set(names) <= set(self.given)
        self.keys = dict(zip(names, names if by_name else self.given, strict=False))
        self.example = {name: self.torch_array(self.given[key]) for name, key in self.keys.items()}
        self.cases = list(self._cases(model))

    def _cases(self, model: ModelProto) -> Iterator[tuple[str, Inputs, list[np.ndarray]]]:
        yield "the example inputs", self.example, self._run({})
        specs = input_specs(model)
        for draw in _TRIED:
            try:
                drawn = draw_inputs(specs, draw)
                yield f"random inputs, batch {draw.batch}, length {draw.length}", drawn, self._run(drawn)
            except Exception:  # the module does not take these sizes: the example is what it is sure to take
                continue

    def torch_array(self, tensor: Any) -> np.ndarray:
        """A tensor as the array that ONNX Runtime takes."""
        tensor = tensor.detach().cpu()
        if tensor.dtype == self.torch.bfloat16:
            import ml_dtypes

            return np.asarray(tensor.float().numpy().astype(ml_dtypes.bfloat16))
        return np.asarray(tensor.numpy())

    def _run(self, inputs: Inputs) -> list[np.ndarray]:
        given = dict(self.given)
        for name, array in inputs.items():
            example = given[self.keys[name]]
            wide = array.astype(np.float32) if array.dtype.kind not in "fiub" else array
            given[self.keys[name]] = self.torch.from_numpy(np.array(wide)).to(example.dtype).to(example.device)
        with self.torch.no_grad():
            result = self.module(**given)
        return [self.torch_array(item) for item in torch_export.leaves(self.torch, result)]

    def check(self, model: ModelProto | Path, folder: Path, what: str) -> dict[str, Any]:
        """Runs the model on every case; the largest relative difference of each output, JSON-ready.

        Raises:
            VerificationError: an output differs from the module's.
        """
        try:
            largest = max((inputs for _, inputs, _ in self.cases), key=lambda held: sum(map(np.size, held.values())))
            room.require_room(io.load(model) if isinstance(model, Path) else model, largest, base_dir=folder)
            session = sessions.session(model, base_dir=None if isinstance(model, Path) else folder)
        except ModelError as error:
            return {"passed": False, "skipped": error.cause}
        worst: dict[str, float] = dict.fromkeys(self.outputs, 0.0)
        for case, inputs, expected in self.cases:
            found = sessions.run(session, inputs)
            for name, want in zip(self.outputs, expected, strict=True):
                comparison: Comparison = compare(name, want, np.asarray(found[name]), self.rtol)
                worst[name] = max(worst[name], comparison.relative)
                if comparison.problem is not None:
                    raise VerificationError(
                        f"{what} does not compute what the module does: output {name} {comparison.problem} ({case}).",
                        "Nothing was written. Look at what torch.onnx.export writes, or report it with the module.",
                    )
        return {"passed": True, "cases": [case for case, _, _ in self.cases], "rtol": self.rtol, "worst": worst}


def _prepared(
    torch: Any, module: Any, args: Any, kwargs: Mapping[str, Any], precision: str | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A copy of the module in eval mode, and its arguments, in the precision asked for."""
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{type(module).__name__} is no torch.nn.Module.", "Give the module to export.")
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    if precision is None:
        return (module if not module.training else copy.deepcopy(module).eval()), args, dict(kwargs)
    if precision not in _PRECISIONS:
        raise UsageError(f"precision={precision!r} is not known.", f"Use one of {', '.join(_PRECISIONS)}.")
    dtype = getattr(torch, precision)

    def converted(item: Any) -> Any:
        return item.to(dtype) if torch.is_tensor(item) and item.is_floating_point() else item

    return (
        copy.deepcopy(module).eval().to(dtype),
        tuple(converted(item) for item in args),
        {name: converted(item) for name, item in kwargs.items()},
    )


def _output_names(torch: Any, module: Any, args: Any, kwargs: Any) -> list[str]:
    with torch.no_grad():
        result = module(*args, **kwargs)
    count = len(torch_export.leaves(torch, result))
    names = list(result) if isinstance(result, Mapping) else getattr(result, "_fields", ())
    if len(names) == count:
        return [str(name) for name in names]
    return ["output"] if count == 1 else [f"output_{number + 1}" for number in range(count)]


# --- what TensorRT needs ----------------------------------------------------------------------------------------------


def _check_sizes(sizes: Mapping[str, Sequence[int]], dimensions: set[str]) -> None:
    for name, values in sizes.items():
        if name not in dimensions:
            known = ", ".join(sorted(dimensions)) or "none"
            raise UsageError(f"sizes names {name!r}, which is no dimension of the inputs.", f"They are: {known}.")
        if not values or any(not isinstance(value, int) or value < 1 for value in values):
            raise UsageError(f"The sizes of {name} are {values!r}.", "Give positive integers, such as [1, 8, 32].")


def _example_sizes(model: ModelProto, example: Inputs) -> dict[str, list[int]]:
    """Dimension -> its size in the example."""
    values = [value for value in model.graph.input if value.name in example]
    pairs = [pair for value in values for pair in zip(_dims(value), example[value.name].shape, strict=True)]
    return {dim: [size] for dim, size in pairs if isinstance(dim, str)}


def _build(
    model: ModelProto,
    result: FuseResult,
    standard: Path,
    fused: Path,
    sizes: Mapping[str, Sequence[int]],
    libraries: list[str],
) -> dict[str, Any]:
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [_input(value, sizes) for value in model.graph.input if value.name not in held]
    shapes = [
        f"--{kind}Shapes=" + ",".join(f"{item['name']}:{'x'.join(map(str, item[kind]))}" for item in dynamic)
        for kind in ("min", "opt", "max")
        if (dynamic := [item for item in inputs if any(isinstance(dim, str) for dim in item["shape"])])
    ]
    loaded = [f"--dynamicPlugins={library}" for library in libraries]

    def line(path: Path, proto: ModelProto) -> str:
        engine = f"--saveEngine={path.with_suffix('.plan').name}"
        more = loaded if _operators(proto) else []
        return shlex.join(["trtexec", f"--onnx={path.name}", engine, "--stronglyTyped", *shapes, *more])

    return {
        "format": BUILD_FORMAT,
        "models": {"standard": standard.name, "fused": fused.name},
        "inputs": inputs,
        "outputs": [
            {"name": value.name, "dtype": _type_name(value), "shape": _dims(value)} for value in model.graph.output
        ],
        "sizes": {name: _range(values) for name, values in sizes.items()},
        "precision": precision_of(model),
        "strongly_typed": True,
        "plugin_libraries": libraries,
        "operators": _operators(result.model),
        "trtexec": {"standard": line(standard, model), "fused": line(fused, result.model)},
    }


def _input(value: onnx.ValueInfoProto, sizes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    dims = _dims(value)
    ranges = [_range(sizes[dim]) if isinstance(dim, str) else dict.fromkeys(("min", "opt", "max"), dim) for dim in dims]
    shapes = {kind: [item[kind] for item in ranges] for kind in ("min", "opt", "max")}
    return {"name": value.name, "dtype": _type_name(value), "shape": dims, **shapes}


def _range(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {"min": ordered[0], "opt": ordered[len(ordered) // 2], "max": ordered[-1]}


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(dims)
    ]


def _type_name(value: onnx.ValueInfoProto) -> str:
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _operators(model: ModelProto) -> list[dict[str, Any]]:
    """The custom operators in a model, with what a plugin must be called."""
    functions = {(item.domain, item.name) for item in model.functions}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for node in model.graph.node:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if "plugin_namespace" not in attributes:
            continue
        entry = found.setdefault(
            (node.domain, node.op_type),
            {
                "domain": node.domain,
                "name": node.op_type,
                "count": 0,
                "plugin_namespace": attributes["plugin_namespace"].decode(),
                "plugin_version": attributes.get("plugin_version", b"1").decode(),
                "has_body": (node.domain, node.op_type) in functions,
            },
        )
        entry["count"] += 1
    return list(found.values())


def _script(build: Mapping[str, Any]) -> str:
    lines = ["#!/bin/sh", "# Run in the folder of the models."]
    if taken := build["sizes_of_the_example"]:
        # Names come from the model; a line break in one would end the comment.
        names = ", ".join(ascii(name)[1:-1] for name in taken)
        lines.append(f"# No sizes were given for {names}: they are those of the example.")
    lines += ["", "# The standard model", build["trtexec"]["standard"], "", "# The fused model"]
    if build["operators"] and not build["plugin_libraries"]:
        lines.append("# (without a plugin library: TensorRT runs the function bodies)")
    return "\n".join([*lines, build["trtexec"]["fused"], ""])


def _write_json(path: Path, content: Any) -> None:
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
