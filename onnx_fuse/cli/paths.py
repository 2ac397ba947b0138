"""What each path on the command line is: something that a command reads, or something that it writes.

A parameter says it in its type, `Annotated[Path, MODEL]`. Before a command begins, `guarded` compares all that it writes with all
that it reads; a test walks over the commands and fails where a parameter says nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ParameterInfo

Files = Callable[[Any], Iterable[Path]]


@dataclass(frozen=True)
class Role:
    """What a parameter is.

    Attributes:
        files: value of the parameter -> the files that it stands for.
        written: whether the command writes them; else it reads them.
        data: whether the files may be models, whose data files are read, too.
    """

    files: Files
    written: bool = False
    data: bool = False


def _itself(path: Path) -> list[Path]:
    return [path]


def _with_record(path: Path) -> list[Path]:
    return [path, path.with_name(f"{path.name}.json")]


def _report(value: str) -> list[Path]:
    return [] if value == "-" else [Path(value)]


def _named(value: str) -> list[Path]:
    return [Path(name.strip()) for name in value.split(",")]


def _example(value: str) -> list[Path]:
    module, colon, _ = value.rpartition(":")
    return [Path(module if colon and module.endswith(".py") else value)]


def _configuration(path: Path) -> list[Path]:
    from onnx_fuse.runtime.tensorrt.config import EngineConfig

    return [path, *map(Path, EngineConfig.from_json(path).plugins or ())]


def _kernels(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


# What is read
INPUT = Role(_itself)
MODEL = Role(_itself, data=True)
ENGINE_OR_MODEL = Role(_with_record, data=True)
LEARNED = Role(_named, data=True)
"""Names of fusions or paths of learned ones, separated by commas."""
EXAMPLE = Role(_example, data=True)
LIBRARY = Role(_with_record)
CONFIGURATION = Role(_configuration)
KERNELS = Role(_kernels)

# What is written
OUTPUT = Role(_itself, written=True)
REPORT = Role(_report, written=True)
NEW_ENGINE = Role(_with_record, written=True)
NEW_LIBRARY = Role(_with_record, written=True)


def roles(command: Callable[..., object]) -> dict[str, Role]:
    """Parameter -> its role, of the parameters that have one."""
    hints = get_type_hints(command, include_extras=True)
    told = {name: get_args(hint)[-1] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {name: role for name, role in told.items() if isinstance(role, Role)}


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which fails before it begins where it would write over what it reads, or two outputs into one file.

    That a file cannot be read is for its reader to say, whose errors have their own exit codes, not for Typer.

    Raises:
        UsageError: which parameter, and which file.
    """

    for parameter in inspect.signature(command).parameters.values():
        if isinstance(parameter.default, ParameterInfo):
            parameter.default.readable = False

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = [(name, role, values[name]) for name, role in roles(command).items()]
        outputs = [(_option(name), file) for name, role, value in given if role.written for file in _files(role, value)]
        if outputs:
            _compare(outputs, [(role, value) for _, role, value in given])
        command(**values)

    return run


def _compare(outputs: list[tuple[str, Path]], given: list[tuple[Role, Any]]) -> None:
    from onnx_fuse.passes.files import io, staging
    from onnx_fuse.runtime.onnxruntime import kernel_library
    from onnx_fuse.runtime.plugins import plugin_library

    reads = [(role, value) for role, value in given if not role.written]
    inputs = [file for role, value in reads for file in _files(role, value)]
    if all(role is not NEW_LIBRARY for role, _ in given):
        libraries = [*plugin_library.find(), *filter(None, [kernel_library.find()])]
        inputs += [file for library in libraries for file in _with_record(library)]
    # Data files are there, or the model is refused: an output that is not there yet is none of them.
    if any(os.path.exists(file) for _, file in outputs):
        models = [file for role, value in reads if role.data for file in _files(role, value)]
        inputs += [file.parent / location for file in models for location in io.data_files(file)]
    staging.require_apart(outputs, inputs)


def _files(role: Role, value: Any) -> list[Path]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [file for item in values if item not in (None, "") for file in role.files(item)]


def _option(name: str) -> str:
    return {"out": "--output"}.get(name, f"--{name.replace('_', '-')}")
