"""Reading a folder of a user's own kernels: its Python files are run, and each `OwnKernel` in them is resolved to an operator."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx_fuse.errors import OnnxFuseError, UsageError
from onnx_fuse.own_kernels.declaration import OwnKernel
from onnx_fuse.own_kernels.read_kernel import read_kernel
from onnx_fuse.own_kernels.read_operator import read_operator
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.patterns.language.operator import FusedOp
from onnx_fuse.runtime.plugins import aot
from onnx_fuse.runtime.plugins.own_operator import ELEMENTS, OwnOperator


@dataclass(frozen=True)
class ResolvedKernel:
    """What an `OwnKernel` comes to.

    Attributes:
        operator: the operator with its kernel, which a library is built of.
        file: the Python file of the kernel.
        description: the operator, which makes bodies.
        tensors: its inputs.
        attributes: attribute -> example value.
    """

    operator: OwnOperator
    file: Path
    description: FusedOp
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Any]


def read_folder(folder: str | os.PathLike[str]) -> list[ResolvedKernel]:
    """The kernels of a folder. Its Python files that mention OwnKernel are run.

    Raises:
        UsageError: what they say is wrong, with file and line; triton is not installed; there are none.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is no folder.", "Give the folder with the Python files of your kernels.")
    aot.require_triton()
    found: dict[str, ResolvedKernel] = {}
    for file in sorted(Path(folder).glob("*.py")):
        try:
            mentioned = b"OwnKernel" in file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}.", "Check its permissions.") from error
        if not mentioned:
            continue
        module = _module(file)
        kernels = {id(item): item for item in vars(module).values() if isinstance(item, OwnKernel)}
        for kernel in kernels.values():
            resolved = _resolved(kernel, file, module)
            if resolved.operator.name in found:
                raise UsageError(
                    f"{file} and {found[resolved.operator.name].file} both have a kernel for {resolved.operator.name}.",
                    "A library has one kernel for an operator, in as many configs as it needs.",
                )
            found[resolved.operator.name] = resolved
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


def _resolved(kernel: OwnKernel, file: Path, module: ModuleType) -> ResolvedKernel:
    declared = read_operator(kernel, file.parent)
    description = declared.description
    compiled = read_kernel(kernel, module, declared)
    operator = OwnOperator(
        name=description.name,
        namespace=description.domain if description.plugin_namespace is None else description.plugin_namespace,
        version=description.plugin_version,
        inputs=declared.inputs,
        outputs=declared.outputs,
        attributes=declared.kinds,
        function=kernel.function,
        arguments=compiled.arguments,
        grid=compiled.grid,
        configs=compiled.configs,
        types=_types(kernel),
        source=file.name,
    )
    return ResolvedKernel(operator, file.resolve(), description, declared.tensors, declared.attributes)


def _types(kernel: OwnKernel) -> tuple[str, ...]:
    types = tuple(kernel.types)
    if not types or not set(types) <= set(ELEMENTS):
        raise kernel.wrong("types", f"{types!r} are not among {', '.join(ELEMENTS)}")
    return types
