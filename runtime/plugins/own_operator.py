"""An operator with a kernel of the user's own, as data: what is compiled, and what one launch of it is.

own_cpp.py writes the plugin of the same data, so that what is checked here is what TensorRT runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnx_fuse.errors import UsageError
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.runtime.plugins.expressions import Expression

ELEMENTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Element type -> Triton's word for it."""
POINTERS = {"int32": "*i32", "int64": "*i64", "bool": "*i1"}
ALIGNMENT = 16


@dataclass(frozen=True)
class Input:
    """An input: "float" (the operator's type T), "int32", "int64" or "bool", and its dimensions, sizes or names."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Argument:
    """A run-time argument of the kernel.

    Attributes:
        kind: "pointer" to the input or output `name`; "i32" or "i64", the value of `size`; "fp32", the attribute `name`; or
            "choice", the place of the attribute `name` among its choices.
    """

    name: str
    kind: str
    size: Expression | None = None


@dataclass(frozen=True)
class Config:
    """One way of compiling the kernel.

    Attributes:
        name: of its variants, after the operator and the type.
        when: the condition on sizes and int attributes under which it is taken; None: always.
        divisible: arguments that have to be multiples of 16 for it.
    """

    name: str
    constants: Mapping[str, Any]
    when: Expression | None
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Launch:
    """What one run starts: a variant, its grid, and its arguments in order; a str is the pointer of that input or output."""

    variant: Variant
    grid: tuple[int, ...]
    arguments: tuple[str | int | float, ...]


@dataclass(frozen=True)
class OwnOperator:
    """An operator with its kernel.

    Attributes:
        outputs: output -> its sizes, as expressions of dimensions and int attributes; all are of type T.
        attributes: attribute -> "int", "float", or the strings it may be.
        grid: sizes, as expressions of dimensions, int attributes and the integer constants of a config.
        configs: in the order in which they are tried.
        types: what T may be, keys of `ELEMENTS`.
        source: the files it was read from, for a person.
    """

    name: str
    namespace: str
    version: str
    inputs: tuple[Input, ...]
    outputs: Mapping[str, tuple[Expression, ...]]
    attributes: Mapping[str, str | tuple[str, ...]]
    function: Any
    arguments: tuple[Argument, ...]
    grid: tuple[Expression, ...]
    configs: tuple[Config, ...]
    types: tuple[str, ...]
    source: str

    @property
    def plugin(self) -> str:
        """What TensorRT finds a plugin by, in words: "namespace::name version 1"."""
        return f"{self.namespace}::{self.name} version {self.version}"

    @property
    def dims(self) -> list[str]:
        """The named dimensions, in the order of the inputs."""
        return list(dict.fromkeys(dim for item in self.inputs for dim in item.dims if isinstance(dim, str)))

    @property
    def integers(self) -> list[str]:
        """The attributes that sizes may be computed from."""
        return [name for name, kind in self.attributes.items() if kind == "int"]

    def variants(self) -> Iterator[Variant]:
        """What is compiled."""
        for element in self.types:
            for config in self.configs:
                yield self.variant(config, element)

    def variant(self, config: Config, element: str) -> Variant:
        """A config for an element type."""
        short = ELEMENTS[element]
        types = {item.name: POINTERS.get(item.dtype, f"*{short}") for item in self.inputs}
        types |= dict.fromkeys(self.outputs, f"*{short}")
        signature = {
            item.name: types[item.name] if item.kind == "pointer" else "i32" if item.kind == "choice" else item.kind
            for item in self.arguments
        }
        name = f"{self.name}.{short}.{config.name}"
        return Variant(
            name,
            self.function,
            signature,
            config.constants,
            frozenset(config.divisible),
            config.num_warps,
            config.num_stages,
        )

    def sizes(self, shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Any]) -> dict[str, int]:
        """What the names of sizes stand for, given the shapes of the inputs.

        Raises:
            UsageError: an input has another rank, another fixed size, or two sizes for one name.
        """
        found = {name: int(attributes[name]) for name in self.integers}
        for item in self.inputs:
            shape = shapes[item.name]
            if len(shape) != len(item.dims):
                raise UsageError(
                    f"{self.name}: input {item.name} has {len(shape)} axes, not {len(item.dims)}",
                    "See its description.",
                )
            for axis, (dim, size) in enumerate(zip(item.dims, shape, strict=True)):
                wanted = found.setdefault(dim, size) if isinstance(dim, str) else dim
                if size != wanted:
                    raise UsageError(
                        f"{self.name}: axis {axis} of input {item.name} is {size}, not {wanted}", "See its description."
                    )
        return found

    def output_shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Output -> shape."""
        return {name: tuple(item.value(sizes) for item in dims) for name, dims in self.outputs.items()}

    def pick(self, sizes: Mapping[str, int]) -> Config | None:
        """The first config that fits; None where no kernel takes these sizes."""
        by_name = {item.name: item.size for item in self.arguments}
        for config in self.configs:
            aligned = [by_name[name] for name in config.divisible]
            if (config.when is None or config.when.value(sizes)) and all(
                size is not None and size.value(sizes) % ALIGNMENT == 0 for size in aligned
            ):
                return config
        return None

    def launch(self, element: str, sizes: Mapping[str, int], attributes: Mapping[str, Any]) -> Launch | None:
        """What a run with these sizes and attributes starts; None where the outputs have no elements.

        Raises:
            UsageError: no kernel takes these sizes.
        """
        if all(0 in shape for shape in self.output_shapes(sizes).values()):
            return None
        config = self.pick(sizes)
        if config is None:
            told = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise UsageError(f"{self.name}: no kernel takes {told}", "Add a config.")
        numbers = {name: int(value) for name, value in config.constants.items() if isinstance(value, int)}
        grid = tuple(item.value({**sizes, **numbers}) for item in self.grid)
        arguments = tuple(self._argument(item, sizes, attributes) for item in self.arguments)
        return Launch(self.variant(config, element), grid, arguments)

    def _argument(
        self, argument: Argument, sizes: Mapping[str, int], attributes: Mapping[str, Any]
    ) -> str | int | float:
        if argument.kind == "pointer":
            return argument.name
        if argument.size is not None:
            return argument.size.value(sizes)
        value = attributes[argument.name]
        return self.attributes[argument.name].index(value) if argument.kind == "choice" else float(value)
