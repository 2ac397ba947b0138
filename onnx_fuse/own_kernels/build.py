"""Folders of a user's own kernels: reading them, building a plugin library of them, and checking them without a GPU."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx import TensorProto
from onnx.inliner import inline_local_functions

from onnx_fuse import learning, torch_export
from onnx_fuse.errors import OnnxFuseError, UsageError
from onnx_fuse.learning import learned_file
from onnx_fuse.own_kernels.declaration import OwnKernel
from onnx_fuse.passes.fuse.fuse_pass import inferred_types
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.patterns.language.operator import FusedOp
from onnx_fuse.runtime.plugins import aot, plugin_library
from onnx_fuse.runtime.plugins.expressions import Expression, parse
from onnx_fuse.runtime.plugins.own_operator import ELEMENTS, Argument, Config, Input, OwnOperator

_INPUTS: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
_INTEGERS = {"i32": "i32", "int32": "i32", "i64": "i64", "int64": "i64", "": "i64"}


@dataclass(frozen=True)
class Own:
    """An operator of a folder.

    Attributes:
        file: the Python file of its kernel.
        description: the operator, which makes bodies.
        tensors: its inputs.
        attributes: attribute -> example value.
    """

    operator: OwnOperator
    file: Path
    description: FusedOp
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Any]


def build(
    folder: str | os.PathLike[str],
    output: Path | None = None,
    *,
    architectures: Sequence[int] = aot.ARCHITECTURES,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> plugin_library.Library:
    """Compiles the kernels of a folder (see `OwnKernel`) and a plugin library of them.

    Args:
        folder: with Python files that hold `OwnKernel`s; the library is called after it.
        output: where to put the library; with the others of the user's cache, where it is found, if None.
        architectures, jobs, progress: as for `onnx_fuse.runtime.plugins.plugin_library.build`.

    Raises:
        UsageError: what the files say is wrong (with file and line), or something does not compile.
    """
    name = re.sub(r"\W+", "_", Path(folder).resolve().name.lower())
    operators: dict[str, list[OwnOperator]] = {}
    for own in read(folder):
        operators.setdefault(str(own.file), []).append(own.operator)
    return plugin_library.build_own(name, operators, output, architectures=architectures, jobs=jobs, progress=progress)


def read(folder: str | os.PathLike[str]) -> list[Own]:
    """The operators of a folder. Its Python files that mention OwnKernel are run.

    Raises:
        UsageError: what they say is wrong, with file and line; triton is not installed; there are none.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is no folder.", "Give the folder with the Python files of your kernels.")
    aot.require_triton()
    found: dict[str, Own] = {}
    for file in sorted(Path(folder).glob("*.py")):
        if "OwnKernel" not in file.read_text(encoding="utf-8"):
            continue
        module = _module(file)
        kernels = [item for item in vars(module).values() if isinstance(item, OwnKernel)]
        for kernel in dict.fromkeys(map(id, kernels)):
            own = _Reading(next(item for item in kernels if id(item) == kernel), file, module).own()
            if own.operator.name in found:
                raise UsageError(
                    f"{file} and {found[own.operator.name].file} both have a kernel for {own.operator.name}.",
                    "A library has one kernel for an operator, in as many configs as it needs.",
                )
            found[own.operator.name] = own
    if not found:
        raise UsageError(
            f"No Python file in {folder} holds an OwnKernel.",
            "See the section on your own kernel in docs/plugins.md.",
        )
    return list(found.values())


def _module(file: Path) -> ModuleType:
    try:
        return aot.loaded(str(file))
    except OnnxFuseError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}.", "Correct the file.") from error
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.resolve())
        ]
        text = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file}, line {lines[-1] if lines else 1}: {text}.", "Correct the file.") from error


class _Reading:
    """Works out an `OwnOperator` from what a user says, and refuses what is wrong with it."""

    def __init__(self, kernel: OwnKernel, file: Path, module: ModuleType) -> None:
        self.kernel = kernel
        self.file = file
        self.module = module
        self.description, self.tensors, self.attributes = self._described()
        self.inputs = tuple(self._inputs())
        self.kinds = dict(self._kinds())
        self.integers = [name for name, kind in self.kinds.items() if kind == "int"]
        self.sized = [*dict.fromkeys(dim for item in self.inputs for dim in item.dims if isinstance(dim, str))]
        self.sized += self.integers
        self.constants = self._constants()
        self.arguments = tuple(self._arguments())

    def own(self) -> Own:
        """The operator."""
        description = self.description
        operator = OwnOperator(
            name=description.name,
            namespace=description.domain if description.plugin_namespace is None else description.plugin_namespace,
            version=description.plugin_version,
            inputs=self.inputs,
            outputs=self._outputs(),
            attributes=self.kinds,
            function=self.kernel.function,
            arguments=self.arguments,
            grid=tuple(self._grid()),
            configs=tuple(self._configs()),
            types=self._types(),
            source=self.file.name,
        )
        return Own(operator, self.file.resolve(), description, self.tensors, self.attributes)

    # -- the operator --------------------------------------------------------------------------------------------------

    def _described(self) -> tuple[FusedOp, Mapping[str, Tensor], Mapping[str, Any]]:
        kernel = self.kernel
        if isinstance(kernel.operator, FusedOp):
            description, tensors = kernel.operator, self._typed(kernel.operator)
            try:
                for space in (description.domain, description.plugin_namespace or description.domain):
                    learning.require_name(description.name, space)
                learned_file.of_operator(description, tensors, kernel.attributes)
            except OnnxFuseError as error:
                raise kernel.wrong("operator", error.cause, error.remedy) from error
            except Exception as error:  # the body is the user's own code
                told = f"the body of {description.name} fails: {type(error).__name__}: {error}"
                raise kernel.wrong("operator", told, "Correct it.") from error
            return description, tensors, kernel.attributes
        if not isinstance(kernel.operator, str):
            raise kernel.wrong("operator", f"{kernel.operator!r} is neither the path of a learned fusion nor a FusedOp")
        for name in ("inputs", "attributes"):
            if getattr(kernel, name):
                raise kernel.wrong(name, f"{kernel.operator} says what they are", "Leave them out.")
        try:
            learned = learning.load(self.file.parent / kernel.operator)
        except OnnxFuseError as error:
            raise kernel.wrong("operator", error.cause, error.remedy) from error
        definition = learned.definition
        return definition.operator(widen=False), definition.inputs, definition.example_attributes

    def _typed(self, description: FusedOp) -> dict[str, Tensor]:
        example = 'For example: inputs="float[B, S, 64] x, int64[B] lengths".'
        if self.kernel.inputs is None:
            raise self.kernel.wrong("operator", f"the types of the inputs of {description.name} are not given", example)
        try:
            values = torch_export.typed(self.kernel.inputs)
            present = description.present({value.name: value.name for value in values})
        except OnnxFuseError as error:
            raise self.kernel.wrong("inputs", error.cause, error.remedy) from error
        tensors = {}
        for value in values:
            kind = value.type.tensor_type
            dims = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
            if not kind.HasField("shape") or 0 in dims:
                raise self.kernel.wrong("inputs", f"the shape of {value.name} is not given in full", example)
            tensors[value.name] = Tensor(kind.elem_type, tuple(dims))
        if present != list(tensors):
            raise self.kernel.wrong("inputs", f"the order of {description.name} is {', '.join(present)}")
        return tensors

    def _inputs(self) -> Iterator[Input]:
        for name, tensor in self.tensors.items():
            kind = _INPUTS.get(tensor.dtype)
            if kind is None:
                raise self.kernel.wrong(
                    "operator",
                    f"input {name} is {tensor}, and plugins here take float, int32, int64 and bool",
                    "Cast it outside of the operator.",
                )
            for text in (name, *(dim for dim in tensor.dims if isinstance(dim, str))):
                if not (text.isidentifier() and text.isascii()):
                    raise self.kernel.wrong("operator", f"{text!r} of {tensor} {name} is no identifier", "Rename it.")
            yield Input(name, kind, tensor.dims)
        if not any(tensor.dtype == TensorProto.FLOAT for tensor in self.tensors.values()):
            raise self.kernel.wrong("operator", "no input is float, whose type the outputs have", "Give it one.")

    def _kinds(self) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        for name, value in self.attributes.items():
            choices = tuple(self.kernel.choices.get(name, ()))
            if isinstance(value, str):
                if value not in choices:
                    raise self.kernel.wrong(
                        "choices",
                        f"the attribute {name} is a string, and {value!r} is none of its choices",
                        f'For example: choices={{"{name}": ("{value}", ...)}}.',
                    )
                yield name, choices
            elif isinstance(value, (bool, int)):
                yield name, "int"
            elif isinstance(value, float):
                yield name, "float"
            else:
                raise self.kernel.wrong("operator", f"the attribute {name} is {value!r}, no number or string")
        for name in self.kernel.choices:
            if not isinstance(self.attributes.get(name), str):
                raise self.kernel.wrong("choices", f"{self.description.name} has no string attribute {name}")

    def _outputs(self) -> dict[str, tuple[Expression, ...]]:
        outputs = self.description.outputs
        for name in self.kernel.outputs:
            if name not in outputs:
                raise self.kernel.wrong("outputs", f"{name} is none of {', '.join(outputs)}")
        model = inline_local_functions(learned_file.of_operator(self.description, self.tensors, self.attributes))
        graph = Graph(model.graph, model)
        view = View(graph, inferred_types(graph))
        return {name: self._output(name, view) for name in outputs}

    def _output(self, name: str, view: View) -> tuple[Expression, ...]:
        if (found := view.dtype(name)) not in (0, TensorProto.FLOAT):
            kind = TensorProto.DataType.Name(found).lower()
            raise self.kernel.wrong("operator", f"output {name} is {kind}, and outputs here have the type of the data")
        given = self.kernel.outputs.get(name)
        if given is not None:
            return tuple(self._expression("outputs", str(dim), self.sized) for dim in given)
        remedy = f'Say it: outputs={{"{name}": ("B", "2 * S")}}, one expression an axis.'
        shape = view.shape(name)
        if shape is None:
            raise self.kernel.wrong("outputs", f"the rank of {name} does not follow from the body", remedy)
        try:
            return tuple(parse(str(dim), self.sized) for dim in shape)
        except ValueError as error:
            raise self.kernel.wrong(
                "outputs", f"the shape of {name} does not follow from the body: {error}", remedy
            ) from error

    # -- the kernel ----------------------------------------------------------------------------------------------------

    def _expression(self, argument: str, text: Any, names: Collection[str], *, condition: bool = False) -> Expression:
        try:
            return parse(str(text), names, condition=condition)
        except ValueError as error:
            raise self.kernel.wrong(argument, str(error)) from error

    def _annotations(self) -> dict[str, str]:
        """Argument -> the last word of its annotation: "constexpr", "int32"."""
        function = self.kernel.function
        names, inner = (getattr(function, name, None) for name in ("arg_names", "fn"))
        if names is None or not callable(inner):
            raise self.kernel.wrong("function", f"{function!r} is no function decorated with triton.jit")
        if getattr(self.module, function.__name__, None) is not function:
            raise self.kernel.wrong("function", f"{function.__name__} is not at the top of {self.file.name}")
        given = inspect.get_annotations(inner)
        return {name: _word(given.get(name, "")).rpartition(".")[2] for name in names}

    def _constants(self) -> list[str]:
        """Names of the kernel's constants, once they are found in every config."""
        self.annotations = self._annotations()
        constants = [name for name, kind in self.annotations.items() if kind == "constexpr"]
        if constants and not self.kernel.configs:
            raise self.kernel.wrong(
                "function", f"the kernel has the constants {', '.join(constants)}", "Give configs with their values."
            )
        for config in self.kernel.configs:
            if not isinstance(getattr(config, "kwargs", None), dict):
                raise self.kernel.wrong("configs", f"{config!r} is no triton.Config")
            for name in sorted({*constants} ^ {*config.kwargs}):
                what = "lacks the kernel's constant" if name in constants else "has what is no constant of the kernel,"
                raise self.kernel.wrong("configs", f"{config.kwargs} {what} {name}")
            odd = [name for name in ("maxnreg", "pre_hook", "ir_override") if getattr(config, name, None) is not None]
            if odd or getattr(config, "num_ctas", 1) != 1:
                raise self.kernel.wrong("configs", f"{odd[0] if odd else 'num_ctas'} is not supported")
        if taken := [name for name in constants if name in self.sized or name in self.tensors]:
            raise self.kernel.wrong("function", f"{taken[0]} is a constant of the kernel, and a size of the operator")
        return constants

    def _arguments(self) -> Iterator[Argument]:
        description, sizes = self.description, self.kernel.sizes
        pointers = [*self.tensors, *description.outputs]
        names = [name for name in self.annotations if name not in self.constants]
        for name in names:
            if name in pointers:
                yield Argument(name, "pointer")
            elif name in self.kinds and name not in sizes:
                kind = {"int": "i32", "float": "fp32"}.get(str(self.kinds[name]), "choice")
                yield Argument(name, kind, parse(name, [name]) if kind == "i32" else None)
            elif name in sizes or name in self.sized:
                kind = _INTEGERS.get(self.annotations[name], "")
                if not kind:
                    raise self.kernel.wrong("function", f"{name} is {self.annotations[name]}; sizes are int32 or int64")
                yield Argument(name, kind, self._expression("sizes", sizes.get(name, name), self.sized))
            else:
                known = ", ".join([*pointers, *self.kinds, *self.sized])
                raise self.kernel.wrong(
                    "function", f"its argument {name} is none of {known}", f'Say what it is: sizes={{"{name}": "..."}}.'
                )
        read = {name for text in sizes.values() for name in self._expression("sizes", text, self.sized).names}
        for name in [*pointers, *self.kinds]:
            if name not in names and name not in read:
                raise self.kernel.wrong("function", f"it has no argument {name}, which {description.name} has")
        for name in sizes:
            if name not in names or name in pointers:
                raise self.kernel.wrong("sizes", f"{name} is no size among the arguments of the kernel")

    def _grid(self) -> Iterator[Expression]:
        axes = [self.kernel.grid] if isinstance(self.kernel.grid, (str, int)) else list(self.kernel.grid)
        if not 1 <= len(axes) <= 3:
            raise self.kernel.wrong("grid", f"it has {len(axes)} axes, not one to three")
        for axis in axes:
            yield self._expression("grid", axis, [*self.sized, *self._numbers()])

    def _numbers(self, config: Any = None) -> dict[str, int]:
        """The constants that are integers, of a config or of the first one."""
        configs = [config] if config is not None else self.kernel.configs[:1]
        return {name: int(value) for item in configs for name, value in item.kwargs.items() if isinstance(value, int)}

    def _configs(self) -> Iterator[Config]:
        for name in self.kernel.multiples_of_16:
            if not any(item.name == name and item.kind in ("i32", "i64") for item in self.arguments):
                raise self.kernel.wrong("multiples_of_16", f"{name} is no integer argument of the kernel")
        import triton

        configs = self.kernel.configs or [triton.Config({})]
        for index, config in enumerate(configs):
            when = self._when(config)
            values = (dict(config.kwargs), when)
            options = (config.num_warps, config.num_stages)
            if self.kernel.multiples_of_16:
                yield Config(f"{index}.x16", *values, tuple(self.kernel.multiples_of_16), *options)
            yield Config(str(index), *values, (), *options)

    def _when(self, config: Any) -> Expression | None:
        if self.kernel.when is None:
            return None
        numbers = self._numbers(config)
        condition = self._expression("when", self.kernel.when, [*self.sized, *numbers], condition=True)
        try:
            left = condition.known(numbers)
            if left.names:
                return left
            if left.value({}):
                return None
        except ZeroDivisionError as error:
            raise self.kernel.wrong("when", f"it divides by 0 for {config.kwargs}") from error
        raise self.kernel.wrong("when", f"it is never met for {config.kwargs}", "Leave that config out.")

    def _types(self) -> tuple[str, ...]:
        types = tuple(self.kernel.types)
        if not types or not set(types) <= set(ELEMENTS):
            raise self.kernel.wrong("types", f"{types!r} are not among {', '.join(ELEMENTS)}")
        return types


def _word(annotation: Any) -> str:
    """An annotation as it was written: text, a type of Triton's, or a class."""
    return annotation if isinstance(annotation, str) else str(getattr(annotation, "name", None) or annotation.__name__)
