"""How a user's kernel is compiled and launched: its arguments, grid and configs, as an `OwnKernel` says them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx_fuse.own_kernels.declaration import OwnKernel
from onnx_fuse.own_kernels.read_operator import DeclaredOperator, expression
from onnx_fuse.runtime.plugins.expressions import Expression, parse
from onnx_fuse.runtime.plugins.own_operator import Argument, Config

_INTEGERS = {"i32": "i32", "int32": "i32", "i64": "i64", "int64": "i64", "": "i64"}


@dataclass(frozen=True)
class DeclaredKernel:
    """How a kernel is compiled and launched: run-time arguments in order, programs along each axis, ways of compiling it."""

    arguments: tuple[Argument, ...]
    grid: tuple[Expression, ...]
    configs: tuple[Config, ...]


def read_kernel(kernel: OwnKernel, module: ModuleType, operator: DeclaredOperator) -> DeclaredKernel:
    """What is compiled and launched for the operator; the kernel stands in the module.

    Raises:
        UsageError: what is said of it is wrong, with file and line.
    """
    annotations = _annotations(kernel, module)
    constants = [name for name, kind in annotations.items() if kind == "constexpr"]
    _check_constants(kernel, constants, operator)
    variables = {name: kind for name, kind in annotations.items() if name not in constants}
    arguments = tuple(_arguments(kernel, variables, operator))
    return DeclaredKernel(arguments, tuple(_grid(kernel, operator)), tuple(_configs(kernel, arguments, operator)))


def _annotations(kernel: OwnKernel, module: ModuleType) -> dict[str, str]:
    """Argument -> the last word of its annotation: "constexpr", "int32"."""
    function = kernel.function
    names, inner = (getattr(function, name, None) for name in ("arg_names", "fn"))
    if names is None or not callable(inner):
        raise kernel.wrong("function", f"{function!r} is no function decorated with triton.jit")
    if getattr(module, function.__name__, None) is not function:
        raise kernel.wrong("function", f"{function.__name__} is not at the top of {Path(str(module.__file__)).name}")
    given = inspect.get_annotations(inner)
    return {name: _word(given.get(name, "")).rpartition(".")[2] for name in names}


def _word(annotation: Any) -> str:
    """An annotation as it was written: text, a type of Triton's, or a class."""
    return annotation if isinstance(annotation, str) else str(getattr(annotation, "name", None) or annotation.__name__)


def _check_constants(kernel: OwnKernel, constants: Sequence[str], operator: DeclaredOperator) -> None:
    """Sees to it that every config has the kernel's constants, and nothing that is not supported."""
    if constants and not kernel.configs:
        raise kernel.wrong(
            "function", f"the kernel has the constants {', '.join(constants)}", "Give configs with their values."
        )
    for config in kernel.configs:
        if not isinstance(getattr(config, "kwargs", None), dict):
            raise kernel.wrong("configs", f"{config!r} is no triton.Config")
        for name in sorted({*constants} ^ {*config.kwargs}):
            what = "lacks the kernel's constant" if name in constants else "has what is no constant of the kernel,"
            raise kernel.wrong("configs", f"{config.kwargs} {what} {name}")
        odd = [name for name in ("maxnreg", "pre_hook", "ir_override") if getattr(config, name, None) is not None]
        if odd or getattr(config, "num_ctas", 1) != 1:
            raise kernel.wrong("configs", f"{odd[0] if odd else 'num_ctas'} is not supported")
    if taken := [name for name in constants if name in operator.sizes or name in operator.tensors]:
        raise kernel.wrong("function", f"{taken[0]} is a constant of the kernel, and a size of the operator")


def _arguments(kernel: OwnKernel, variables: Mapping[str, str], operator: DeclaredOperator) -> Iterator[Argument]:
    """The arguments; `variables` are those that are no constants, with the last words of their annotations."""
    sizes, kinds = kernel.sizes, operator.kinds
    pointers = [*operator.tensors, *operator.description.outputs]
    for name, annotation in variables.items():
        if name in pointers:
            yield Argument(name, "pointer")
        elif name in kinds and name not in sizes:
            kind = {"int": "i32", "float": "fp32"}.get(str(kinds[name]), "choice")
            yield Argument(name, kind, parse(name, [name]) if kind == "i32" else None)
        elif name in sizes or name in operator.sizes:
            kind = _INTEGERS.get(annotation, "")
            if not kind:
                raise kernel.wrong("function", f"{name} is {annotation}; sizes are int32 or int64")
            yield Argument(name, kind, expression(kernel, "sizes", sizes.get(name, name), operator.sizes))
        else:
            known = ", ".join([*pointers, *kinds, *operator.sizes])
            raise kernel.wrong(
                "function", f"its argument {name} is none of {known}", f'Say what it is: sizes={{"{name}": "..."}}.'
            )
    read = {name for text in sizes.values() for name in expression(kernel, "sizes", text, operator.sizes).names}
    for name in [*pointers, *kinds]:
        if name not in variables and name not in read:
            raise kernel.wrong("function", f"it has no argument {name}, which {operator.description.name} has")
    for name in sizes:
        if name not in variables or name in pointers:
            raise kernel.wrong("sizes", f"{name} is no size among the arguments of the kernel")


def _grid(kernel: OwnKernel, operator: DeclaredOperator) -> Iterator[Expression]:
    axes = [kernel.grid] if isinstance(kernel.grid, (str, int)) else list(kernel.grid)
    if not 1 <= len(axes) <= 3:
        raise kernel.wrong("grid", f"it has {len(axes)} axes, not one to three")
    numbers = _integers(kernel.configs[0]) if kernel.configs else {}
    for axis in axes:
        yield expression(kernel, "grid", axis, [*operator.sizes, *numbers])


def _integers(config: Any) -> dict[str, int]:
    """The constants of a config that are integers."""
    return {name: int(value) for name, value in config.kwargs.items() if isinstance(value, int)}


def _configs(kernel: OwnKernel, arguments: Sequence[Argument], operator: DeclaredOperator) -> Iterator[Config]:
    for name in kernel.multiples_of_16:
        if not any(item.name == name and item.kind in ("i32", "i64") for item in arguments):
            raise kernel.wrong("multiples_of_16", f"{name} is no integer argument of the kernel")
    import triton

    configs = kernel.configs or [triton.Config({})]
    for index, config in enumerate(configs):
        values = (dict(config.kwargs), _when(kernel, config, operator))
        options = (config.num_warps, config.num_stages)
        if kernel.multiples_of_16:
            yield Config(f"{index}.x16", *values, tuple(kernel.multiples_of_16), *options)
        yield Config(str(index), *values, (), *options)


def _when(kernel: OwnKernel, config: Any, operator: DeclaredOperator) -> Expression | None:
    """The condition under which a config is taken; None: always."""
    if kernel.when is None:
        return None
    numbers = _integers(config)
    condition = expression(kernel, "when", kernel.when, [*operator.sizes, *numbers], condition=True)
    try:
        left = condition.known(numbers)
        if left.names:
            return left
        if left.value({}):
            return None
    except ZeroDivisionError as error:
        raise kernel.wrong("when", f"it divides by 0 for {config.kwargs}") from error
    raise kernel.wrong("when", f"it is never met for {config.kwargs}", "Leave that config out.")
