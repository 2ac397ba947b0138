"""What terms say before anything is matched: where a match may start, how large it may be, which operators it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

from onnx_fuse.patterns.language.terms import AnyOf, Named, Number, Op, Output, Shaped, Term, Tree, Variable

Key = tuple[str, str]
"""Domain and type of an operator."""
Keys = frozenset[Key]
Operands = tuple["Keys | None", ...]
"""What can make each operand of a node; None where anything can."""


def root_keys(term: Term) -> Iterator[Key]:
    """(domain, operator type) of every node that can be the outermost one of a term."""
    if isinstance(term, Op):
        yield from ((term.domain, op_type) for op_type in term.op_types)
    elif isinstance(term, Output):
        yield from root_keys(term.op)
    elif isinstance(term, AnyOf):
        for alternative in term.alternatives:
            yield from root_keys(alternative)
    elif isinstance(term, (Shaped, Named)):
        yield from root_keys(term.inner)
    elif isinstance(term, Tree):
        yield ("", term.op_type)


def size_of(*roots: Term) -> int:
    """Most nodes that terms can match together; a shared node counts once, of alternatives the largest counts."""
    weights: dict[int, int] = {}

    def weight(term: Term) -> int:
        if id(term) not in weights:
            weights[id(term)] = _own_size(term) + (
                max(map(weight, term.alternatives)) if isinstance(term, AnyOf) else sum(map(weight, _inner(term)))
            )
        return weights[id(term)]

    seen: set[int] = set()
    total, pending = 0, list(roots)
    while pending:
        term = pending.pop()
        if id(term) in seen:
            continue
        seen.add(id(term))
        total += _own_size(term)
        pending.extend([max(term.alternatives, key=weight)] if isinstance(term, AnyOf) else _inner(term))
    return total


def _own_size(term: Term) -> int:
    if isinstance(term, Tree):
        return term.least - 1 + term.least * size_of(term.leaf)
    return int(isinstance(term, Op))


def needed_keys(*roots: Term) -> Keys:
    """(domain, operator type) of nodes that terms match whichever alternatives are taken; a shared term is looked at once."""
    found: dict[int, Keys] = {}

    def needs(term: Term) -> Keys:
        if id(term) not in found:
            if isinstance(term, AnyOf):
                found[id(term)] = frozenset.intersection(*map(needs, term.alternatives))
            else:
                own = {(term.domain, term.op_types[0])} if isinstance(term, Op) and len(term.op_types) == 1 else ()
                found[id(term)] = frozenset(own).union(*map(needs, _inner(term)))
        return found[id(term)]

    return frozenset().union(*map(needs, roots))


def _inner(term: Term) -> tuple[Term, ...]:
    if isinstance(term, Op):
        return term.inputs
    if isinstance(term, Output):
        return (term.op,)
    return (term.inner,) if isinstance(term, (Shaped, Named)) else ()


def _operand_keys(term: Term) -> Keys | None:
    """(domain, operator type) of what can make an operand; None where anything can."""
    if isinstance(term, (Variable, Number, Tree)):
        return None
    if isinstance(term, AnyOf):
        found = [_operand_keys(alternative) for alternative in term.alternatives]
        return None if None in found else frozenset().union(*(keys for keys in found if keys is not None))
    if isinstance(term, (Shaped, Named)):
        return _operand_keys(term.inner)
    return frozenset(root_keys(term))


def _root_ops(term: Term) -> Iterator[Op | Tree]:
    if isinstance(term, (Op, Tree)):
        yield term
    elif isinstance(term, AnyOf):
        for alternative in term.alternatives:
            yield from _root_ops(alternative)
    elif isinstance(term, (Output, Shaped, Named)):
        for inner in _inner(term):
            yield from _root_ops(inner)


@lru_cache(maxsize=1 << 16)
def choices(term: AnyOf, key: Key | None) -> tuple[Term | tuple[Op, ...], ...]:
    """What to try, in order, where a node of this key makes a value (None: no node does): the alternatives that may fit, and in
    place of the others the operators that they want instead."""
    found: list[Term | tuple[Op, ...]] = []
    for item in term.alternatives:
        others = _other_ops(item, key)
        if others is not None and found and isinstance(found[-1], tuple):
            found[-1] += others
        else:
            found.append(item if others is None else others)
    return tuple(found)


@lru_cache(maxsize=1 << 16)  # alternatives may share what they are made of
def _other_ops(term: Term, key: Key | None) -> tuple[Op, ...] | None:
    """The operators that a term wants, if a node of this key is none of them; None where the term may fit."""
    if isinstance(term, Op):
        return None if key in term.keys else (term,)
    if isinstance(term, Output):
        return _other_ops(term.op, key)
    if isinstance(term, Named):
        return _other_ops(term.inner, key)
    if isinstance(term, AnyOf):
        found = [_other_ops(item, key) for item in term.alternatives]
        return None if None in found else tuple(dict.fromkeys(chain.from_iterable(filter(None, found))))
    return None


def root_operands(root: Term) -> dict[Key, list[tuple[Operands, bool]]]:
    """For each key a root can have: what its operands must be made by, and whether they may be swapped."""
    operands: dict[Key, list[tuple[Operands, bool]]] = {}
    for op in _root_ops(root):
        if isinstance(op, Tree):
            operands.setdefault(("", op.op_type), []).append(((), False))
            continue
        wanted = tuple(_operand_keys(item) for item in op.inputs)
        for op_type in op.op_types:
            operands.setdefault((op.domain, op_type), []).append((wanted, op.commutative))
    return operands


def operands_fit(wanted: Operands, makers: Sequence[Key | None]) -> bool:
    """Whether one operand at least is made by what is wanted: it is then worth saying what is wrong with the others."""
    constrained = [key in keys for keys, key in zip(wanted, makers, strict=False) if keys is not None]
    return not constrained or any(constrained)
