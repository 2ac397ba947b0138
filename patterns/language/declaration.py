"""What an operator's inputs and outputs may be: element types, and the sizes of each axis, as plain data.

    DECLARATION = declare(
        "q: T [B, N, h*d]",
        "bias?: T|float32 [1|B, 1|h, 1|N, 1|N] # added to the scores",
        "gamma?: T|float32 [h*dv] or [h] if norm=group",
        "-> y: T [B, N, h*dv]",
        sizes={"h": "num_heads"},
    )

A line is a name, `?` where the tensor may be absent, its types and its shapes; what stands behind `#` is for people. `T` is the
element type of the node. `->` is before an output. A name that ends in `*` stands for any number of tensors name1, name2, ...

An axis is a number, a size (`B`), a product of sizes (`h*dv`), or one of these with a number added (`F-1`). `1|B` may also be 1,
and is then the same along the whole axis. `...` is any number of axes, the same for all tensors of the node. A size whose name
ends in `*` is another one for each tensor of its line. Several shapes are separated by `or`. With `if ATTRIBUTE=VALUE` behind it
a shape is only for nodes of that kind; `if INPUT=given` and `if INPUT=absent` ask for an input. A size may be 0 unless `least`
says otherwise.

The tables in docs/operators.md, what `fuse` writes, what plugins accept, and the shapes that are tested come from here.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Sizes = Mapping[str, int]
Found = Sequence[int | None]
"""The axes of a tensor; None where a size is not known."""

REST = "..."
_LINE = re.compile(r"(?P<name>\w+\*?)(?P<optional>\??): (?P<types>[\w|]+) (?P<shapes>\[[^#]*)(?:# (?P<meaning>.*))?")
_SHAPE = re.compile(r"\[(?P<axes>[^]]*)\](?: if (?P<name>\w+)=(?P<value>\w+))?")
_AXIS = re.compile(r"(?P<one>1\|)?(?P<product>[A-Za-z]\w*(?:\*[A-Za-z]\w*)*\*?)?(?P<plus>[+-]?\d+)?")


class Misfit(ValueError):
    """A shape that a declaration does not allow; the text says of which tensor, what it is, and what is allowed."""


@dataclass(frozen=True)
class Axis:
    """The product of the sizes `factors`, plus `plus`; or 1 where it broadcasts."""

    factors: tuple[str, ...]
    plus: int = 0
    broadcasts: bool = False

    def size(self, sizes: Sizes) -> int | None:
        """What it is where it does not broadcast; None where that is not known."""
        if any(factor not in sizes for factor in self.factors):
            return None
        return (math.prod(sizes[factor] for factor in self.factors) if self.factors else 0) + self.plus

    def solve(self, found: int, sizes: dict[str, int]) -> None:
        """Adds the one size that is missing, where `found` tells it."""
        missing = [factor for factor in self.factors if factor not in sizes]
        by = math.prod(sizes[factor] for factor in self.factors if factor in sizes)
        if len(missing) == 1 and by > 0 and (found - self.plus) % by == 0:
            sizes[missing[0]] = (found - self.plus) // by

    def fits(self, found: int | None, sizes: Sizes) -> bool:
        """Whether it may be of this size."""
        if found is None or (self.broadcasts and found == 1):
            return True
        wanted = self.size(sizes)
        if wanted is not None:
            return found == wanted
        by = math.prod(sizes[factor] for factor in self.factors if factor in sizes)
        return found == self.plus if by == 0 else (found - self.plus) % by == 0


@dataclass(frozen=True)
class Shape:
    """One shape that a tensor may have, with any number of axes before these where `rest` says so.

    Attributes:
        text: as it is declared, without its condition.
        condition: (attribute or input, value) of the nodes that it is for; None for all.
    """

    text: str
    axes: tuple[Axis, ...]
    rest: bool = False
    condition: tuple[str, str] | None = None

    def takes(self, rank: int) -> bool:
        """Whether it may have so many axes."""
        return rank >= len(self.axes) if self.rest else rank == len(self.axes)

    def fits(self, found: Found, sizes: Sizes, rest: Found) -> bool:
        """Whether a tensor may have it; `rest` are the axes that `...` stands for."""
        first = len(found) - len(self.axes)
        if self.rest:
            known = first == len(rest) and all(None in pair or pair[0] == pair[1] for pair in zip(found, rest))  # noqa: B905
            if not known:
                return False
        return all(axis.fits(size, sizes) for axis, size in zip(self.axes, found[first:], strict=True))

    def numbered(self, ending: str) -> Shape:
        """The same for the tensor name1, name2, ... whose name ends so."""
        axes = (
            replace(axis, factors=tuple(item[:-1] + ending if item[-1] == "*" else item for item in axis.factors))
            for axis in self.axes
        )
        return replace(self, axes=tuple(axes))


@dataclass(frozen=True)
class Tensor:
    """An input or output."""

    name: str
    types: tuple[str, ...]
    shapes: tuple[Shape, ...]
    optional: bool = False
    meaning: str = ""

    def shapes_of(self, given: Mapping[str, str], name: str) -> list[Shape]:
        """The shapes that it may have in a node of this kind, where its name is `name`."""
        chosen = [
            item for item in self.shapes if item.condition is None or given.get(item.condition[0]) == item.condition[1]
        ]
        return [item.numbered(name[len(self.name) - 1 :]) for item in chosen] if self.name[-1] == "*" else chosen


@dataclass(frozen=True)
class Declaration:
    """All inputs and outputs of an operator. `declare` makes one.

    Attributes:
        sizes: size -> the integer attribute that it is.
        least: size -> the least that it may be, where that is more than 0.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sizes: Mapping[str, str]
    least: Mapping[str, int]

    def tensor(self, name: str) -> Tensor:
        """The input or output that a name of a node stands for."""
        return next(item for item in (*self.inputs, *self.outputs) if fnmatch.fnmatchcase(name, item.name))

    def given(self, attributes: Mapping[str, Any], inputs: Iterable[str]) -> dict[str, str]:
        """What conditions ask for: the attributes as text, and whether each input is given."""
        present = set(inputs)
        told = {tensor.name: "given" if tensor.name in present else "absent" for tensor in self.inputs}
        return {**{name: str(value) for name, value in attributes.items()}, **told}

    def bound(self, shapes: Mapping[str, Found], attributes: Mapping[str, Any], inputs: Iterable[str] = ()) -> Sizes:
        """The sizes that tensors of these shapes have.

        Args:
            shapes: tensors of the node whose rank is known.
            inputs: names of all inputs of the node, where `shapes` lacks some.

        Raises:
            Misfit: a shape is not allowed.
        """
        given = self.given(attributes, [*shapes, *inputs])
        sizes = {size: int(attributes[name]) for size, name in self.sizes.items() if name in attributes}
        allowed = {name: self.tensor(name).shapes_of(given, name) for name in shapes}
        forms = {name: [form for form in allowed[name] if form.takes(len(found))] for name, found in shapes.items()}
        single = [(found, forms[name][0]) for name, found in shapes.items() if len(forms[name]) == 1]
        rest = next((found[: len(found) - len(form.axes)] for found, form in single if form.rest), ())
        axes = [
            (axis, size)
            for found, form in single
            for axis, size in zip(form.axes, found[len(found) - len(form.axes) :], strict=True)
        ]
        known = -1
        while known < len(sizes):  # what a round finds may make another size known
            known = len(sizes)
            for axis, size in axes:
                if not axis.broadcasts and size is not None:
                    axis.solve(size, sizes)
        for axis, _ in axes:  # of those that no axis must have, it is the one that is not 1
            alike = [size for other, size in axes if other == axis]
            larger = next((size for size in alike if size not in (None, 1)), None)
            if axis.broadcasts and (larger is not None or None not in alike):
                axis.solve(1 if larger is None else larger, sizes)
        for letter, least in self.least.items():
            if sizes.get(letter, least) < least:
                raise Misfit(f"{letter} is {sizes[letter]}, allowed is {least} or more")
        for name, found in shapes.items():
            if not any(form.fits(found, sizes, rest) for form in forms[name]):
                raise Misfit(_sentence(name, found, allowed[name], sizes, rest))
        return sizes


def _sentence(name: str, found: Found, forms: Sequence[Shape], sizes: Sizes, rest: Found) -> str:
    names = dict.fromkeys(factor for form in forms for axis in form.axes for factor in axis.factors if factor in sizes)
    known = [f"{size} = {sizes[size]}" for size in names]
    known += [f"{REST} = [{_text(rest)}]"] if any(form.rest for form in forms) else []
    if not forms:
        return f"{name} is [{_text(found)}], a node of this kind has no {name}"
    allowed = " or ".join(form.text for form in forms)
    return f"{name} is [{_text(found)}], allowed is {allowed}" + (f" with {', '.join(known)}" if known else "")


def _text(found: Found) -> str:
    return ", ".join("?" if size is None else str(size) for size in found)


def declare(*lines: str, sizes: Mapping[str, str] | None = None, least: Mapping[str, int] | None = None) -> Declaration:
    """Reads a declaration; see the top of this file.

    Args:
        sizes: size -> the integer attribute that it is.
        least: size -> the least that it may be, where that is more than 0.

    Raises:
        ValueError: a line is none.
    """
    inputs = tuple(_tensor(line) for line in lines if not line.startswith("-> "))
    outputs = tuple(_tensor(line.removeprefix("-> ")) for line in lines if line.startswith("-> "))
    return Declaration(inputs, outputs, dict(sizes or {}), dict(least or {}))


def _tensor(line: str) -> Tensor:
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"{line!r} declares no tensor; write one such as 'mask?: bool [1|B, N]'")
    shapes = tuple(_shapes(found["shapes"].strip()))
    types = tuple(found["types"].split("|"))
    return Tensor(found["name"], types, shapes, bool(found["optional"]), (found["meaning"] or "").strip())


def _shapes(text: str) -> Iterator[Shape]:
    for part in text.split(" or "):
        found = _SHAPE.fullmatch(part)
        if found is None:
            raise ValueError(f"{part!r} is no shape")
        axes = [item.strip() for item in found["axes"].split(",") if item.strip()]
        condition = (found["name"], found["value"]) if found["name"] else None
        rest = axes[:1] == [REST]
        yield Shape(f"[{', '.join(axes)}]", tuple(map(_axis, axes[rest:])), rest, condition)


def _axis(text: str) -> Axis:
    found = _AXIS.fullmatch(text)
    if found is None or text.endswith("|"):
        raise ValueError(f"{text!r} is no size")
    factors = re.findall(r"[A-Za-z_]\w*(?:\*$)?", found["product"] or "")
    return Axis(tuple(factors), int(found["plus"] or 0), bool(found["one"]))
