"""What there is to do with torch: exporting a module, quietly, by either exporter."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import io
import logging
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import ModelProto, numpy_helper

from onnx_fuse import installation
from onnx_fuse.errors import LearnError, ModelError, UsageError

DYNAMO_OPSET = 18
SCRIPT_OPSET = 17
_ATTENTION_OPSET = 23
_EMBEDDED_BYTES = 1 << 30

Axes = dict[str, dict[int, str]]


class Export(NamedTuple):
    """One export of an example.

    Attributes:
        label: what it is called in messages.
        weights: names of the initializers that are parameters.
        inputs: arrays that the model runs on; None where random ones must do.
    """

    label: str
    model: ModelProto
    weights: Collection[str]
    inputs: Mapping[str, Any] | None = None


def require_torch() -> Any:
    """The module torch.

    Raises:
        UsageError: it is not installed.
    """
    installation.require("onnxscript", extra="torch", purpose="export modules")  # torch needs it too, and says so late
    return installation.require("torch", extra="torch", purpose="export modules")


def examples(
    module: Any,
    inputs: Sequence[Any],
    dynamic_shapes: Any,
    input_names: Sequence[str] | None,
    exporters: Sequence[str],
    fixed: Collection[str],
) -> tuple[list[Export], list[tuple[str, str]]]:
    """A module's exports with their weights as initializers that no exporter has folded, and why some failed.

    Returns:
        The exports, and (exporter, reason) of those that failed.

    Raises:
        LearnError: no exporter takes the module.
        UsageError: an argument does not fit.
    """
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{module!r} is no torch.nn.Module.", "Give an instance of the module to learn from.")
    inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    # A tensor that is given twice would be taken for one input.
    inputs = tuple(item.clone() if torch.is_tensor(item) else item for item in inputs)
    module = copy.deepcopy(module).eval()
    names = list(input_names or _parameter_names(module, len(inputs)))
    if len(names) != len(inputs):
        raise UsageError(f"{len(names)} names for {len(inputs)} inputs.", "Name each of the inputs.")
    axes = dynamic_axes(names, dynamic_shapes)
    weights = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    weights = {name: value for name, value in weights.items() if value.is_floating_point() and name not in fixed}
    _randomise(torch, weights)
    found, failed = [], []
    for exporter in exporters:
        if exporter not in ("dynamo", "script"):
            raise UsageError(f"There is no exporter {exporter!r}.", "They are dynamo and script.")
        try:
            if exporter == "script":
                found.append(_scripted(torch, module, inputs, names, axes, weights))
            else:
                found.extend(_captured(torch, module, inputs, names, axes, weights))
        except Exception as error:  # exporters raise whatever their parts raise
            failed.append((exporter, _sentence(error)))
    if not found:
        told = "; ".join(f"{name}: {reason}" for name, reason in failed)
        raise LearnError(f"{type(module).__name__} cannot be exported ({told})", "Try torch.onnx.export on it first.")
    return found, failed


def module_at(path: Path, name: str, types: str | None) -> tuple[Any, Sequence[Any], Any, Sequence[str] | None]:
    """A module in a Python file, with inputs to export it with.

    Args:
        path: the file; it is run.
        name: a module class or another factory without arguments, or a module.
        types: "float[B, S, 64] x, int64[B] lengths"; None for `example_inputs` and `dynamic_shapes` beside or in the class.

    Returns:
        Module, example inputs, dynamic shapes, and names of the inputs (None: those of forward).

    Raises:
        UsageError: the file cannot be run, or lacks one of these.
    """
    # What is wrong at first sight is told at once; importing torch takes seconds.
    if not os.path.isfile(path):
        raise UsageError(f"{path} does not exist.", "Give a Python file and a class in it: module.py:Class")
    try:
        ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"{path} is not Python: {error}.", "Give a Python file and a class in it: module.py:Class"
        ) from error
    values = None if types is None else typed(types)
    torch = require_torch()
    sys.path.insert(0, str(path.resolve().parent))
    try:
        names = runpy.run_path(str(path), run_name=path.stem)
        made = names.get(name)
        module = made() if callable(made) and not isinstance(made, torch.nn.Module) else made
    except Exception as error:
        raise UsageError(
            f"{path}:{name} cannot be made: {_sentence(error)}.", "It must be made without arguments."
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, torch.nn.Module):
        what = "holds no" if made is None else "makes no torch.nn.Module from"
        raise UsageError(f"{path} {what} {name}.", "Name a module class, or a function that returns a module.")
    if values is not None:
        axes = {
            value.name: {axis: d.dim_param for axis, d in enumerate(value.type.tensor_type.shape.dim) if d.dim_param}
            for value in values
        }
        return module, tuple(_drawn(torch, value, values) for value in values), axes, [value.name for value in values]
    inputs = getattr(made, "example_inputs", names.get("example_inputs"))
    if inputs is None:
        raise UsageError(
            f"{path} has no example_inputs for {name}.",
            'Define example_inputs (a tuple, or a function that returns one), or say --inputs "float[B, 64] x".',
        )
    shapes = getattr(made, "dynamic_shapes", names.get("dynamic_shapes"))
    return module, inputs() if callable(inputs) else inputs, shapes, None


def typed(types: str) -> Sequence[onnx.ValueInfoProto]:
    """Inputs in ONNX's text form, "float[B, S, 64] x, int64[B] lengths".

    Raises:
        UsageError: they are none.
    """
    try:
        return list(onnx.parser.parse_graph(f"example ({types}) => () {{ }}").input)
    except onnx.parser.ParseError as error:
        raise UsageError(f"{types!r} are no inputs.", 'For example: "float[B, S, 64] x, int64[B] lengths"') from error


def _drawn(torch: Any, value: onnx.ValueInfoProto, others: Sequence[onnx.ValueInfoProto]) -> Any:
    """A tensor of this type; dimensions that may vary get sizes of their own."""
    symbols = dict.fromkeys(d.dim_param for item in others for d in item.type.tensor_type.shape.dim if d.dim_param)
    sizes = dict(zip(symbols, range(3, 3 + len(symbols)), strict=True))
    shape = [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if kind.kind == "f":
        return torch.rand(shape) + 0.5
    return torch.ones(shape, dtype=getattr(torch, kind.name))


def dynamic_axes(names: Sequence[str], dynamic_shapes: Any) -> Axes:
    """Input -> {axis: dimension}, from a mapping by name or a sequence by position; torch.export.Dim counts as its name.

    Raises:
        UsageError: it does not fit the inputs.
    """
    if dynamic_shapes is None:
        return {}
    if not isinstance(dynamic_shapes, Mapping):
        if len(dynamic_shapes) != len(names):
            raise UsageError(f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(names)} inputs.", "")
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=True))
    unknown = [name for name in dynamic_shapes if name not in names]
    if unknown:
        raise UsageError(f"dynamic_shapes names {unknown[0]!r}, which is no input.", f"They are {', '.join(names)}.")
    axes: Axes = {}
    for name, entry in dynamic_shapes.items():
        items = entry.items() if isinstance(entry, Mapping) else enumerate(entry or ())
        axes[name] = {axis: str(getattr(dim, "__name__", dim)) for axis, dim in items if dim is not None}
    return axes


def named_inputs(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], input_names: Sequence[str] | None
) -> dict[str, Any]:
    """The tensors a module is given, by name: those of forward's parameters unless `input_names` says otherwise.

    Raises:
        UsageError: an input is no tensor, or the names do not fit.
    """
    given = dict(zip(_parameter_names(module, len(args)), args, strict=True)) | dict(kwargs)
    given = {name: value for name, value in given.items() if value is not None}
    odd = [name for name, value in given.items() if not hasattr(value, "is_floating_point")]
    if odd:
        raise UsageError(f"The input {odd[0]} is no tensor.", "Wrap the module so that it takes tensors alone.")
    if input_names is None:
        return given
    if len(input_names) != len(given):
        raise UsageError(f"{len(input_names)} names for {len(given)} inputs.", "Name each of the inputs.")
    return dict(zip(input_names, given.values(), strict=True))


def leaves(torch: Any, result: Any) -> list[Any]:
    """The tensors in what a module returned, in the order of the exported outputs."""
    return [item for item in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(item)]


def write(
    torch: Any,
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    path: Path,
    names: list[str],
    output_names: list[str],
    axes: Axes,
    opset: int,
    dynamo: bool,
    table: Mapping[Any, Any] | None,
) -> None:
    """Writes the ONNX model of a module.

    Raises:
        ModelError: torch cannot export it.
    """
    options: dict[str, Any] = {"input_names": names, "output_names": output_names, "opset_version": opset}
    attempts: list[dict[str, Any]] = [{"dynamo": False, "dynamic_axes": axes}]
    if dynamo:
        options |= {"dynamo": True, "verbose": False, "custom_translation_table": table}
        options |= {"external_data": _is_large(module)}
        dims = dimensions(torch, axes)
        # A module that does not take every size, such as 1, is exported for those it does take: names alone say so.
        attempts = [
            {"dynamic_shapes": _by_parameter(module, args, kwargs, names, axes, kinds)}
            for kinds in (dims, {label: label for label in dims})
        ]
    problem: Exception | None = None
    for attempt in attempts:
        try:
            with quiet():
                torch.onnx.export(module, tuple(args), str(path), kwargs=dict(kwargs), **options, **attempt)
            return
        except Exception as error:  # exporters raise whatever their parts raise
            problem = problem or error
    raise ModelError(
        f"torch cannot export {type(module).__name__}: {_sentence(problem)}", "Try torch.onnx.export on it alone."
    ) from problem


def _by_parameter(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
    axes: Axes,
    kinds: Mapping[str, Any],
) -> dict[str, Any]:
    """The dynamic shapes by forward's parameters, with None for those that are given None."""
    shapes = iter([{axis: kinds[label] for axis, label in axes.get(name, {}).items()} for name in names])
    given = dict(zip(_parameter_names(module, len(args)), args, strict=True)) | dict(kwargs)
    return {name: None if value is None else next(shapes) for name, value in given.items()}


def _is_large(module: Any) -> bool:
    """Whether the weights need a file of their own."""
    return sum(item.numel() * item.element_size() for item in module.state_dict().values()) > _EMBEDDED_BYTES


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the exporters print and log away from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def dimensions(torch: Any, axes: Axes) -> dict[str, Any]:
    """Name -> torch.export.Dim, for every dynamic dimension."""
    return {label: torch.export.Dim(label, min=1) for of in axes.values() for label in of.values()}


def _opened(torch: Any, module: Any, weights: Sequence[str]) -> Any:
    """A module that takes the weights as inputs too, so that no exporter folds them into other constants."""

    class Opened(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.holder = (module,)  # in a tuple its parameters are not this module's

        def forward(self, inputs: Any, values: Any) -> Any:
            return torch.func.functional_call(self.holder[0], dict(zip(weights, values, strict=True)), inputs)

    return Opened().eval()


def _scripted(torch: Any, module: Any, inputs: Any, names: list[str], axes: Axes, weights: Mapping[str, Any]) -> Export:
    options = {"dynamo": False, "dynamic_axes": axes, "do_constant_folding": False}
    model = _to_onnx(torch, module, inputs, names, SCRIPT_OPSET, options)
    return Export(f"script, opset {SCRIPT_OPSET}", model, tuple(weights), _arrays(model, inputs, names))


def _captured(
    torch: Any, module: Any, inputs: Any, names: list[str], axes: Axes, weights: Mapping[str, Any]
) -> Iterator[Export]:
    # The names of weights must not be those of inputs.
    labels = [f"{name}.weight" if name in names else name for name in weights]
    arguments = (inputs, tuple(weights.values()))

    def shapes(dims: Mapping[str, Any]) -> tuple[Any, Any]:
        of_inputs = ({axis: dims[label] for axis, label in axes.get(name, {}).items()} for name in names)
        return tuple(of_inputs), tuple({} for _ in weights)

    dims = dimensions(torch, axes)
    with quiet():
        opened = _opened(torch, module, list(weights))
        try:
            program = torch.export.export(opened, arguments, dynamic_shapes=shapes(dims), strict=False)
        except Exception:
            # The module does not take every size, such as 1: torch finds out which, and is told the names afterwards.
            found = dict.fromkeys(dims, torch.export.Dim.AUTO)
            program = torch.export.export(opened, arguments, dynamic_shapes=shapes(found), strict=False)
            dims = {label: label for label in dims}
    attention = any("scaled_dot_product" in str(node.target) for node in program.graph.nodes)
    # Here the shapes only carry names, which are lost if torch counts an empty tuple as an input.
    named = shapes(dims) if weights else shapes(dims)[:1]
    options = {"dynamo": True, "dynamic_shapes": named, "verbose": False}
    for opset in (DYNAMO_OPSET, *((_ATTENTION_OPSET,) if attention else ())):
        model = _to_onnx(torch, program, arguments, [*names, *labels], opset, options)
        closed = _closed(model, dict(zip(labels, weights.values(), strict=True)))
        yield Export(f"dynamo, opset {opset}", closed, tuple(labels), _arrays(closed, inputs, names))


def _arrays(model: ModelProto, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """The example inputs that the exporter has kept."""
    kept = {value.name for value in model.graph.input}
    return {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in kept}


def _randomise(torch: Any, weights: Mapping[str, Any]) -> None:
    """Gives parameters other values: of those that are equal, as fresh biases are, an exporter keeps only one."""
    generator = torch.Generator().manual_seed(0)
    for value in weights.values():
        spread = torch.rand(value.shape, generator=generator).to(value.device) + 0.5
        value.copy_(spread * value.shape[-1] ** -0.5 if value.dim() > 1 else spread)


def _to_onnx(
    torch: Any, module: Any, arguments: Any, names: list[str], opset: int, options: Mapping[str, Any]
) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "example.onnx"
        torch.onnx.export(module, arguments, str(path), input_names=names, opset_version=opset, **options)
        return onnx.load(path)


def _closed(model: ModelProto, weights: Mapping[str, Any]) -> ModelProto:
    """The model with its weights as initializers in place of inputs."""
    kept = [value for value in model.graph.input if value.name not in weights]
    used = {name for node in model.graph.node for name in node.input}
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, tensor in weights.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(tensor.cpu().numpy(), name))
    return model


def _parameter_names(module: Any, count: int) -> list[str]:
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return names[:count] if len(names) >= count else [f"input_{number + 1}" for number in range(count)]


def _sentence(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(": .")


def with_numbers(torch: Any, reference: Any, names: Sequence[str], numbers: Mapping[str, Any]) -> Any:
    """A module that takes the tensors among the arguments of `reference`; the others are these numbers."""

    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reference = reference

        def forward(self, *tensors: Any) -> Any:
            remaining = iter(tensors)
            return self.reference(*(numbers[name] if name in numbers else next(remaining) for name in names))

    return Reference()
