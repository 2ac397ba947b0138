"""What an engine is to be built for: shapes, precision, plugins, targets and builder settings, checked when they are given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_fuse.errors import UsageError, reason
from onnx_fuse.passes.files import json_object
from onnx_fuse.passes.select.decisions import METHODS
from onnx_fuse.runtime.device.engine_file import ShapeRange

Profile = Mapping[str, ShapeRange]

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "fp8"}
"""Precision on the command line -> its name everywhere else."""

_EXPORT_FORMAT = 1
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DIMS = r"\d+(?:x\d+)*"
_RANGE = re.compile(rf"(?P<name>.+?):(?P<min>{_DIMS}):(?P<opt>{_DIMS}):(?P<max>{_DIMS})")
_FIXED = re.compile(rf"(?P<name>.+):(?P<all>{_DIMS})")


@dataclass(frozen=True)
class EngineConfig:
    """How to build an engine. Everything has a default; None leaves it to the model or to TensorRT.

    Attributes:
        profiles: one mapping for each optimisation profile, input -> its range of shapes; `read_shapes` makes them of text.
            Inputs and dimensions that are left out get a range that the build says it assumed.
        max_batch_size: the range 1 to this, optimised for this, for batch dimensions without a range.
        precision: "float32", "float16", "bfloat16" ("fp32", "fp16", "bf16"); "int8" or "fp8" for models with Q/DQ nodes.
            None: that of the model.
        opt_level: 0 (fastest build) to 5 (slowest, best engine).
        workspace: bytes the engine may use for intermediate values; text such as "2G" is taken too.
        plugins: plugin libraries; those that `onnx_fuse.runtime.plugins.plugin_library.find` finds if None, none if empty.
        timing_cache: a file that TensorRT's measurements are kept in from build to build.
        targets: compute capabilities to build for ahead of time, such as "SM120".
        select: which fused nodes with a plugin stay such: "auto", those predicted to pay; "all"; or "measured", those that make
            the engine faster when it is timed here.
        verify: compare a converted model with the float32 model in ONNX Runtime.
        assumed: sentences on choices in here that nobody made, for the build to pass on.

    Raises:
        UsageError: a setting is none of these.
    """

    profiles: Sequence[Profile] = ()
    max_batch_size: int | None = None
    precision: str | None = None
    opt_level: int | None = None
    workspace: int | str | None = None
    plugins: Sequence[str | os.PathLike[str]] | None = None
    timing_cache: str | os.PathLike[str] | None = None
    targets: Sequence[str] = ()
    select: str = "auto"
    verify: bool = True
    assumed: Sequence[str] = ()

    def __post_init__(self) -> None:
        for profile in self.profiles:
            for name, sizes in profile.items():
                _check_range(name, sizes)
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise UsageError(f"max_batch_size is {self.max_batch_size}.", "Give a positive number.")
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise UsageError(
                f"The optimisation level is {self.opt_level}.", "Use 0 (fastest build) to 5 (best engine)."
            )
        if self.select not in METHODS:
            raise UsageError(f"select={self.select!r} is not known.", f"Use one of {', '.join(METHODS)}.")
        changed: dict[str, Any] = {
            "profiles": tuple(self.profiles),
            "workspace": read_size(self.workspace) if isinstance(self.workspace, str) else self.workspace,
            "plugins": None if self.plugins is None else tuple(Path(item) for item in self.plugins),
            "timing_cache": None if self.timing_cache is None else Path(self.timing_cache),
            "targets": tuple(dict.fromkeys(_target(item) for item in self.targets)),
            "assumed": tuple(self.assumed),
        }
        if self.precision is not None:
            changed["precision"] = _precision(self.precision)
        if changed["workspace"] is not None and changed["workspace"] < 1:
            raise UsageError(
                f"The workspace is {self.workspace}.", "Give a positive number of bytes, or a size such as 2G."
            )
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> EngineConfig:
        """The configuration in a `NAME.build.json` of `onnx_fuse.export`: shapes, precision and plugin libraries.

        Raises:
            UsageError: the file cannot be read, or is no such configuration.
        """
        remedy = "Give the NAME.build.json that onnx_fuse.export or finish_export wrote."
        try:
            found = json_object.read(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"The build configuration {path} cannot be read: {reason(error)}.", remedy) from error
        if found.get("format") != _EXPORT_FORMAT:
            raise UsageError(f"{path} is no build configuration of format {_EXPORT_FORMAT}.", remedy)
        try:
            profile = {item["name"]: _range(item) for item in found["inputs"] if _is_dynamic(item["shape"])}
            sizes = {name: found["sizes"][name]["opt"] for name in found.get("sizes_of_the_example", ())}
            return cls(
                profiles=[profile] if profile else (),
                precision=found["precision"],
                plugins=found["plugin_libraries"] or None,
                assumed=[f"{name} = {size}, as in the example of the export" for name, size in sizes.items()],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"The build configuration {path} is damaged: {error!r}.", remedy) from error


def read_shapes(texts: Iterable[str]) -> tuple[Profile, ...]:
    """Profiles of texts `name:min:opt:max`, or `name:shape` for just one; a shape is 1x128. A name that comes again begins the
    next profile; one that comes once is the same in all.

    Raises:
        UsageError: a text is not of that form, or two inputs have different numbers of ranges.
    """
    ranges: dict[str, list[ShapeRange]] = {}
    for text in texts:
        found = _RANGE.fullmatch(text) or _FIXED.fullmatch(text)
        if found is None:
            raise UsageError(
                f"--shapes {text!r} is not of the form NAME:MIN:OPT:MAX.", "For example: input_ids:1x16:8x128:32x512"
            )
        parts = found.groupdict()
        name = parts.pop("name")
        shapes = [tuple(int(size) for size in part.split("x")) for part in parts.values()]
        made = ShapeRange(*shapes) if len(shapes) == 3 else ShapeRange(*shapes * 3)
        _check_range(name, made)
        ranges.setdefault(name, []).append(made)
    count = max((len(of) for of in ranges.values()), default=0)
    for name, of in ranges.items():
        if len(of) not in (1, count):
            raise UsageError(
                f"{name} has {len(of)} ranges of shapes, another input has {count}.",
                "Give each input one range, or one for each profile.",
            )
    return tuple({name: of[min(index, len(of) - 1)] for name, of in ranges.items()} for index in range(count))


def read_size(text: str) -> int:
    """Bytes of a size such as 2G, 512MiB or 4096; a K is 1024.

    Raises:
        UsageError: it is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no size.", "For example: 2G, 512M, or a number of bytes.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _check_range(name: str, sizes: ShapeRange) -> None:
    shapes = (sizes.min, sizes.opt, sizes.max)
    fits = len({len(shape) for shape in shapes}) == 1 and all(
        0 <= low <= best <= high for low, best, high in zip(*shapes, strict=True)
    )
    if not fits:
        text = ":".join("x".join(map(str, shape)) for shape in shapes)
        raise UsageError(
            f"The shapes {text} of {name} are not in the order min, opt, max.",
            "Give three shapes of the same rank, each size at least as large as the one before.",
        )


def _precision(text: str) -> str:
    precision = PRECISIONS.get(text, text)
    if precision not in PRECISIONS.values():
        raise UsageError(f"The precision {text!r} is not known.", f"Use one of {', '.join(PRECISIONS)}.")
    return precision


def _target(text: str) -> str:
    found = re.fullmatch(r"(?:sm_?)?(\d+)(?:\.(\d))?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"The target {text!r} is no compute capability.", "For example: SM86, SM120.")
    return f"SM{found[1]}{found[2] or ''}"


def _is_dynamic(shape: Sequence[int | str]) -> bool:
    return any(isinstance(dim, str) for dim in shape)


def _range(item: Mapping[str, Any]) -> ShapeRange:
    return ShapeRange(**{kind: tuple(int(size) for size in item[kind]) for kind in ("min", "opt", "max")})
