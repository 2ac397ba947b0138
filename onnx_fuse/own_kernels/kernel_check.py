"""Runs the kernels of a folder in Triton's interpreter and holds them against the bodies of their operators.

Whether Triton interprets is settled when a kernel is defined, and a kernel that reads astray may end its process: so this is
a process of its own, which `check` starts: `python -m onnx_fuse.own_kernels.kernel_check` with TRITON_INTERPRET=1, JSON in and out.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from subprocess import PIPE
from typing import Any

import numpy as np

from onnx_fuse import torch_export
from onnx_fuse.errors import ModelError, OnnxFuseError, UsageError
from onnx_fuse.learning import learned_file
from onnx_fuse.own_kernels.read_folder import ResolvedKernel, read_folder
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.plugins.own_operator import Config, OwnOperator
from onnx_fuse.runtime.verify.compare import TOLERANCES, Array, compare
from onnx_fuse.runtime.verify.random_inputs import Draw, draw_inputs, input_specs

ALLOWED = {**TOLERANCES, "bfloat16": 2 * TOLERANCES["float16"]}
"""Element type -> difference allowed, relative to the largest magnitude of the output."""
_SIZES = (1, 2, 3, 5, 16, 17, 32, 33, 48)
_DRAWS = 500
_MOST_ELEMENTS = 1 << 13
_MOST_PROGRAMS = 8
_MARGIN = 64
"""Elements on either side of a tensor that are not its own: NaN where it is float."""


@dataclass(frozen=True)
class Checked:
    """One run of a kernel.

    Attributes:
        kernel: the variant; the operator where there is nothing to launch.
        sizes: name -> size.
        dtype: element type.
        relative: largest difference from the body, relative to the largest magnitude of the output.
        informative: the body's outputs have values that are not all the same.
        problem: the sentence that says what is wrong; None where nothing is.
    """

    kernel: str
    sizes: Mapping[str, int]
    dtype: str
    relative: float = 0.0
    informative: bool = False
    problem: str | None = None

    @property
    def told(self) -> str:
        """Its sizes and type in words."""
        return (
            ", ".join([*(f"{name}={size}" for name, size in self.sizes.items()), self.dtype]).strip(", ") or "any sizes"
        )


def check(
    folder: str | os.PathLike[str],
    sizes: Sequence[Mapping[str, int]] = (),
    *,
    progress: Callable[[str], None] | None = None,
) -> list[Checked]:
    """Runs the kernels of a folder in Triton's interpreter, and the bodies of their operators in ONNX Runtime.

    Every config is run in every type, over small sizes and sizes around its constants. Tensors lie in NaN, so that what reads
    or writes outside of them is found. What a GPU does otherwise is not: shared memory, races, the rounding of tensor cores.

    Args:
        folder: with Python files that hold `OwnKernel`s.
        sizes: dimension -> size, instead of the sizes that are drawn.
        progress: called with a word on what is being done.

    Raises:
        UsageError: what the files say is wrong (with file and line), sizes are missing, or torch or triton is.
    """
    torch_export.require_torch()
    results: list[Checked] = []
    running = Checked("the kernels", {}, "")
    command = [sys.executable, "-m", "onnx_fuse.own_kernels.kernel_check"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        json.dump({"folder": str(folder), "sizes": [dict(item) for item in sizes]}, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            answer = json.loads(line)
            if "cause" in answer:
                raise UsageError(answer["cause"], answer["remedy"])
            if "starts" in answer:
                running = Checked(**answer["starts"])
                if progress is not None:
                    progress(f"checking {running.kernel}")
            else:
                results.append(Checked(**answer["result"]))
        status = process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if status:
        # An address far off ends the interpreter.
        told = (
            f"the interpreter ended with status {status}: {' '.join(said[-1:]) or 'it may read or write far outside'}"
        )
        results.append(replace(running, problem=told))
    return results


def main() -> None:
    """Reads {"folder", "sizes"}; writes {"starts"} and {"result"} for each run, or {"cause", "remedy"} of an error."""
    given = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # kernels may print
    try:
        for resolved in read_folder(given["folder"]):
            for kind, checked in checks(resolved, given["sizes"]):
                print(json.dumps({kind: asdict(checked)}), file=out, flush=True)
    except OnnxFuseError as error:
        print(json.dumps({"cause": error.cause, "remedy": error.remedy}), file=out, flush=True)


def checks(resolved: ResolvedKernel, sizes: Sequence[Mapping[str, int]] = ()) -> Iterator[tuple[str, Checked]]:
    """Runs an operator's kernel in every config, over several sizes and its types: ("starts", ...) and ("result", ...) of each.

    Raises:
        UsageError: sizes of dimensions are missing.
    """
    operator = resolved.operator
    integers = {name: int(resolved.attributes[name]) for name in operator.integers}
    for item in sizes:
        if missing := [name for name in operator.dims if name not in item]:
            raise UsageError(f"The sizes {dict(item)} lack {missing[0]} of {operator.name}.", "Give all of them.")
    cases = [{name: item[name] for name in operator.dims} for item in sizes] or drawn(operator, integers)
    reached = {config.name for case in cases if (config := operator.pick({**integers, **case})) is not None}
    for config in operator.configs if not sizes else ():
        if config.name not in reached:
            yield (
                "result",
                Checked(f"{operator.name}.*.{config.name}", {}, "", problem="no sizes were drawn that it takes"),
            )
    informative = False
    for number, case in enumerate(cases):
        for dtype in operator.types:
            yield "starts", Checked(operator.name, case, dtype)
            result = run(resolved, {**integers, **case}, dtype, number)
            informative |= result.informative
            yield "result", result
    if not informative:
        told = "the body gives one value everywhere, which proves nothing"
        yield "result", Checked(operator.name, {}, "", problem=told)


def drawn(operator: OwnOperator, integers: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes that reach every config, twice: the smallest there are, and, if that is not too much to interpret, sizes that
    differ from one another; also all ones, and none at all along the first axis."""
    numbers = {value for config in operator.configs for value in config.constants.values() if type(value) is int}
    around = {value + step for value in numbers for step in (-1, 0, 1)}
    candidates = sorted(size for size in {*_SIZES, *around} if size > 0)
    generator = random.Random(0)
    found: dict[str, list[tuple[tuple[int, int], dict[str, int]]]] = {config.name: [] for config in operator.configs}
    for _ in range(_DRAWS):
        # One size of them all at most is large, or hardly any draw would be small enough.
        case = {name: generator.choice(_SIZES) for name in operator.dims}
        if case:
            case[generator.choice(operator.dims)] = generator.choice(candidates)
        config = operator.pick({**integers, **case})
        if config is not None:
            found[config.name].append((_cost(operator, config, {**integers, **case}), case))
    cases = []
    for draws in found.values():
        draws.sort(key=lambda item: item[0])
        cases += [case for _, case in draws[:1]]
        small = [case for (programs, most), case in draws if programs <= _MOST_PROGRAMS and most <= _MOST_ELEMENTS]
        cases += sorted(small, key=lambda case: len(set(case.values())))[-1:]
    ones = dict.fromkeys(operator.dims, 1)
    cases += [ones, {**ones, **dict.fromkeys(operator.dims[:1], 0)}]
    return [
        case for index, case in enumerate(cases) if case not in cases[:index] and operator.pick({**integers, **case})
    ]


def _cost(operator: OwnOperator, config: Config, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Programs of the grid, and elements of the largest tensor."""
    numbers = {name: int(value) for name, value in config.constants.items() if isinstance(value, int)}
    shapes = list(operator.output_shapes(sizes).values())
    shapes += [tuple(sizes[dim] if isinstance(dim, str) else dim for dim in item.dims) for item in operator.inputs]
    programs = math.prod(item.value({**sizes, **numbers}) for item in operator.grid)
    return programs, max(math.prod(shape) for shape in shapes)


def run(resolved: ResolvedKernel, sizes: Mapping[str, int], dtype: str, number: int = 0) -> Checked:
    """Runs a kernel once, on drawn inputs, and its operator's body in float32 on the same numbers.

    Args:
        number: of the case: it chooses the inputs, attributes off their examples, and among the strings they may be.
    """
    operator = resolved.operator
    attributes = dict(_attributes(resolved, number))
    tensors = {
        name: Tensor(tensor.dtype, tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.dims))
        for name, tensor in resolved.tensors.items()
    }
    told = {name: sizes[name] for name in operator.dims}
    model = learned_file.of_operator(resolved.description, tensors, attributes)
    inputs = draw_inputs(input_specs(model), Draw(2, 7, "right"), number)
    rounded = {name: _torch(array, dtype) for name, array in inputs.items()}
    given = {
        name: array if array.dtype != np.float32 else rounded[name].float().numpy() for name, array in inputs.items()
    }
    try:
        expected = sessions.run(sessions.session(model), given)
    except ModelError as error:
        return Checked(operator.name, told, dtype, problem=f"the body does not run: {error.cause}")
    launch = operator.launch(dtype, sizes, attributes)
    kernel = operator.name if launch is None else launch.variant.name
    shapes = {name: array.shape for name, array in expected.items()}
    if shapes != operator.output_shapes(sizes):
        return Checked(
            kernel, told, dtype, problem=f"its outputs are {operator.output_shapes(sizes)}, the body's {shapes}"
        )
    if launch is None:
        return Checked(kernel, told, dtype)
    buffers = {name: _guarded(tensor) for name, tensor in rounded.items()}
    outputs = {name: _guarded(_torch(np.full(shape, np.nan, np.float32), dtype)) for name, shape in shapes.items()}
    views = {name: view for name, (_, view) in {**buffers, **outputs}.items()}
    arguments = [views[item] if isinstance(item, str) else item for item in launch.arguments]
    named = dict(zip(launch.variant.signature, arguments, strict=True))
    try:
        operator.function[launch.grid](**named, **launch.variant.constants)
    except Exception as error:
        return Checked(kernel, told, dtype, problem=" ".join(str(error).split())[:300])
    problems, worst, informative = [], 0.0, False
    for name, (buffer, view) in outputs.items():
        if not bool(buffer[:_MARGIN].isnan().all() and buffer[_MARGIN + view.numel() :].isnan().all()):
            problems.append(f"it writes outside of {name}")
        found = compare(name, _torch(expected[name], dtype).float().numpy(), view.float().numpy(), ALLOWED[dtype])
        worst, informative = max(worst, found.relative), informative or found.informative
        if found.problem is not None:
            missing = int((view.isnan().numpy() & ~np.isnan(expected[name])).sum())
            unwritten = f" ({missing} elements are NaN, or were never written)" if missing else ""
            problems.append(f"{name} {found.problem}{unwritten}".replace("the original", "the body"))
    if problems and dtype == "bfloat16":
        problems.append("Triton's interpreter computes bfloat16 wrongly, so convert what is loaded to float32 first")
    return Checked(kernel, told, dtype, worst, informative, "; ".join(problems) or None)


def _attributes(resolved: ResolvedKernel, number: int) -> Iterator[tuple[str, Any]]:
    """The example's attributes, and in every other case others, so that what ignores or confuses them is found."""
    for name, value in resolved.attributes.items():
        kind = resolved.operator.attributes[name]
        if isinstance(kind, tuple):
            yield name, kind[number % len(kind)]
        else:
            yield name, value * 1.25 if kind == "float" and number % 2 else value


def _torch(array: Array, dtype: str) -> Any:
    """A tensor of the array; float32 rounded to the element type."""
    import torch

    tensor = torch.from_numpy(np.array(array))
    return tensor.to(getattr(torch, dtype)) if array.dtype == np.float32 else tensor


def _guarded(tensor: Any) -> tuple[Any, Any]:
    """(memory, the tensor in the middle of it): around floats is NaN, which shows in what is computed of it."""
    import torch

    filler = math.nan if tensor.is_floating_point() else 0
    memory = torch.full((tensor.numel() + 2 * _MARGIN,), filler, dtype=tensor.dtype)
    view = memory[_MARGIN : _MARGIN + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return memory, view


if __name__ == "__main__":
    main()
