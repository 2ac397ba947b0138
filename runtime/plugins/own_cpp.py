"""Writes the plugins of operators with kernels of the user's own as C++, on the same base as those of `plugin_csrc`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from onnx_fuse.runtime.plugins.expressions import Expression
from onnx_fuse.runtime.plugins.own_operator import ALIGNMENT, Config, OwnOperator

_ROLES = {"float": "kData", "int32": "kInt32", "int64": "kInt64", "bool": "kBool"}
_TYPES = {"float32": "kFLOAT", "float16": "kHALF", "bfloat16": "kBF16"}


def source(operators: Sequence[OwnOperator]) -> str:
    """The C++ file of all operators of a library."""
    classes = "\n".join(_Writer(item, f"Operator{index}").text() for index, item in enumerate(operators))
    entries = "\n".join(f"      {_entry(item, f'Operator{index}')}," for index, item in enumerate(operators))
    return f"""// Written by `onnx-fuse plugins build --from`.
#include "base/sizes.h"

namespace gr {{
namespace {{

{classes}
}}  // namespace

std::vector<Entry> const& operators() {{
  static std::vector<Entry> const all = {{
{entries}
  }};
  return all;
}}

}}  // namespace gr
"""


def _entry(operator: OwnOperator, name: str) -> str:
    inputs = _braced(f"{{{_quoted(item.name)}, Role::{_ROLES[item.dtype]}}}" for item in operator.inputs)
    outputs = _braced(_quoted(item) for item in operator.outputs)
    kinds = {"int": "kInt", "float": "kFloat"}
    attributes = _braced(
        f"{{{_quoted(item)}, Kind::{kinds.get(kind, 'kString') if isinstance(kind, str) else 'kString'}}}"
        for item, kind in operator.attributes.items()
    )
    types = _braced(f"nvinfer1::DataType::{_TYPES[item]}" for item in operator.types)
    words = [operator.name, operator.namespace, operator.version]
    named, space, version = (_quoted(item) for item in words)
    return f"{{{{{named}, {inputs}, {outputs}, {attributes}, {types}, {space}, {version}}}, makeOperator<{name}>}}"


class _Writer:
    """The class of one operator. What a name of the user's is called here ends in _, which no keyword does."""

    def __init__(self, operator: OwnOperator, name: str) -> None:
        self.operator = operator
        self.name = name
        self.sizes = [*operator.dims, *operator.integers]

    def text(self) -> str:
        """The struct of its sizes and the class."""
        fields = "".join(f"  N {item}_;\n" for item in self.sizes)
        body = "\n\n".join(
            ["\n".join(part) for part in (self._read(), self._shapes(), self._run(), [" private:"], self._bind())]
            + ["\n".join(self._pick())]
        ).replace(" private:\n\n", " private:\n")
        members = "".join(f"  {_member(kind)} {item}_{{}};\n" for item, kind in self.operator.attributes.items())
        return f"""template <typename N>
struct Sizes{self.name} {{
{fields}}};

// {self.operator.plugin}, of {self.operator.source}
class {self.name} final : public Operator {{
 public:
{body}
{chr(10) + members if members else ""}}};
"""

    def _read(self) -> Iterator[str]:
        yield "  void read(Node const& node) override {"
        yield f"    requireOutputs(node, {_braced(_quoted(item) for item in self.operator.outputs)});"
        for name, kind in self.operator.attributes.items():
            if kind == "int":
                yield f"    {name}_ = node.integer({_quoted(name)});"
            elif kind == "float":
                yield f"    {name}_ = node.number({_quoted(name)});"
            else:
                yield f"    {name}_ = node.choice({_quoted(name)}, {_braced(_quoted(item) for item in kind)});"
        yield "  }"

    def _shapes(self) -> Iterator[str]:
        yield "  std::vector<nvinfer1::DimsExprs> shapes(Node const&, Shapes const& shapes) const override {"
        yield "    [[maybe_unused]] auto const d = bind<Size>(shapes);"
        outputs = []
        deciding = set().union(*(item.when.names for item in self.operator.configs if item.when))
        if all(item.when for item in self.operator.configs):  # else there is a kernel for any size
            values = [
                f"d.{item}_.value({_quoted(item)})" if item in deciding else f"d.{item}_.valueOr(1)"
                for item in self.sizes
            ]
            yield f"    pick({_braced(values)});"
        for dims in self.operator.outputs.values():
            sizes = _braced(f"{self._cpp(item, 'Size')}.expression(shapes)" for item in dims)
            outputs.append(f"Shapes::of({sizes})")
        yield f"    return {_braced(outputs)};"
        yield "  }"

    def _run(self) -> Iterator[str]:
        yield "  void run(Run const& run) const override {"
        yield "    [[maybe_unused]] auto const d = bind<int64_t>(run);"
        empty = " && ".join(f"run.output({_quoted(item)}).elements() == 0" for item in self.operator.outputs)
        yield f"    if ({empty}) {{"
        yield "      return;"
        yield "    }"
        stem = _quoted(f"{self.operator.name}.")
        yield f"    KernelVariant const& kernel = findKernel(std::string({stem}) + run.type() + pick(d));"
        yield "    Arguments arguments;"
        inputs = {item.name for item in self.operator.inputs}
        for item in self.operator.arguments:
            if item.kind == "pointer":
                place = "input" if item.name in inputs else "output"
                yield f"    arguments.pointer(run.{place}({_quoted(item.name)}).data);"
            elif item.size is not None:
                yield f"    arguments.integer({self._cpp(item.size)});"
            else:
                yield f"    arguments.{'integer' if item.kind == 'choice' else 'float32'}({item.name}_);"
        constants = {
            name: f"kernel.constant({_quoted(name)})"
            for config in self.operator.configs
            for name, value in config.constants.items()
            if isinstance(value, int)
        }
        grid = _braced(self._cpp(item, constants=constants) for item in self.operator.grid)
        yield f"    run.launch(kernel, {grid}, arguments);"
        yield "  }"

    def _bind(self) -> Iterator[str]:
        """Reads the sizes off the inputs and holds the rest of them against the description."""
        known: set[str] = set()
        yield "  template <typename N, typename Source>"
        yield f"  Sizes{self.name}<N> bind(Source const& source) const {{"
        for item in self.operator.inputs:
            yield f"    requireRank(source, {_quoted(item.name)}, {len(item.dims)});"
        for item in self.operator.inputs:
            name = _quoted(item.name)
            for axis, dim in enumerate(item.dims):
                found = f"sizeOf<N>(source, {name}, {axis})"
                if isinstance(dim, str) and dim not in known:
                    known.add(dim)
                    yield f"    N const {dim}_ = {found};"
                elif isinstance(dim, str):
                    yield f"    requireSize({found}, {dim}_, {name}, {axis}, {_quoted(dim)});"
                else:
                    yield f"    requireSize({found}, {dim}, {name}, {axis}, nullptr);"
        values = [f"{item}_" if item in known else f"N(this->{item}_)" for item in self.sizes]
        yield f"    return {_braced(values)};"
        yield "  }"

    def _pick(self) -> Iterator[str]:
        """The end of the name of the first kernel that fits."""
        yield f"  static char const* pick([[maybe_unused]] Sizes{self.name}<int64_t> const& d) {{"
        for config in self.operator.configs:
            conditions = list(self._conditions(config))
            if conditions:
                yield f"    if ({' && '.join(conditions)}) {{"
                yield f"      return {_quoted('.' + config.name)};"
                yield "    }"
            else:
                yield f"    return {_quoted('.' + config.name)};"
                yield "  }"
                return
        told = [f"{_quoted(f' {item} = ')}, d.{item}_" for item in self.sizes]
        yield f"    refuse({', '.join([_quoted('no kernel takes'), *told])});"
        yield "  }"

    def _conditions(self, config: Config) -> Iterator[str]:
        if config.when is not None:
            yield self._cpp(config.when)
        for item in self.operator.arguments:
            if item.name in config.divisible and item.size is not None:
                yield f"modulo({self._cpp(item.size)}, {ALIGNMENT}) == 0"

    def _cpp(self, expression: Expression, number: str = "int64_t", constants: dict[str, str] | None = None) -> str:
        return expression.cpp({**{item: f"d.{item}_" for item in self.sizes}, **(constants or {})}, number)


def _member(kind: str | tuple[str, ...]) -> str:
    return "float" if kind == "float" else "int64_t"


def _braced(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"


def _quoted(text: str) -> str:
    return json.dumps(text)
