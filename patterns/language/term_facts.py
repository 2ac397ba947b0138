"""What terms say before anything is matched: where a match may start, how large it may be, which operators it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from onnx_fuse.patterns.language.terms import AnyOf, Named, Number, Op, Output, Shaped, Term, Tree, Variable

Key = tuple[str, str]
"""Domain and type of an operator."""
Keys = frozenset[Key]
Operands = tuple["Keys | None", ...]
"""What can make each operand of a node; None where anything can."""


def root_keys(term: Term) -> Iterator[Key]:
    """(domain, operator type) of every node that can be the outermost one of a term."""
    for leaf in _outermost(term):
        if isinstance(leaf, Op):
            yield from ((leaf.domain, op_type) for op_type in leaf.op_types)
        elif isinstance(leaf, Tree):
            yield ("", leaf.op_type)


def _outermost(term: Term, through: tuple[type[Term], ...] = (AnyOf, Output, Named, Shaped)) -> Iterator[Term]:
    """What can make a term's value: operators, trees, variables and numbers, each once, those of earlier alternatives first.

    Args:
        through: kinds of terms in whose place comes what they hold.
    """
    seen: set[int] = set()
    pending = [term]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, through):
            pending.extend(reversed(_parts(item)))
        else:
            yield item


def _inner_first(roots: Sequence[Term]) -> list[Term]:
    """All that terms are made of, each once, and after what it is made of itself."""
    found: dict[int, Term] = {}
    pending = [*reversed(roots)]
    while pending:
        term = pending[-1]
        missing = [item for item in _parts(term) if id(item) not in found]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        found[id(term)] = term
    return list(found.values())


def size_of(*roots: Term) -> int:
    """Most nodes that terms can match together; a shared node counts once, of alternatives the largest counts."""
    weights: dict[int, int] = {}
    for term in _inner_first(roots):
        parts = [weights[id(item)] for item in _parts(term)]
        weights[id(term)] = _own_size(term) + (max(parts) if isinstance(term, AnyOf) else sum(parts))
    seen: set[int] = set()
    total, pending = 0, list(roots)
    while pending:
        term = pending.pop()
        if id(term) in seen:
            continue
        seen.add(id(term))
        total += _own_size(term)
        pending.extend(
            [max(term.alternatives, key=lambda item: weights[id(item)])] if isinstance(term, AnyOf) else _inner(term)
        )
    return total


def _own_size(term: Term) -> int:
    if isinstance(term, Tree):
        return term.least - 1 + term.least * size_of(term.leaf)
    return int(isinstance(term, Op))


def needed_keys(*roots: Term) -> Keys:
    """(domain, operator type) of nodes that terms match whichever alternatives are taken; a shared term is looked at once."""
    found: dict[int, Keys] = {}
    for term in _inner_first(roots):
        parts = [found[id(item)] for item in _parts(term)]
        if isinstance(term, AnyOf):
            found[id(term)] = frozenset.intersection(*parts)
        else:
            own = {(term.domain, term.op_types[0])} if isinstance(term, Op) and len(term.op_types) == 1 else ()
            found[id(term)] = frozenset(own).union(*parts)
    return frozenset().union(*(found[id(root)] for root in roots))


def _parts(term: Term) -> tuple[Term, ...]:
    return term.alternatives if isinstance(term, AnyOf) else _inner(term)


def _inner(term: Term) -> tuple[Term, ...]:
    if isinstance(term, Op):
        return term.inputs
    if isinstance(term, Output):
        return (term.op,)
    if isinstance(term, (Shaped, Named)):
        return (term.inner,)
    if isinstance(term, (Variable, Number, Tree)):
        return ()
    raise TypeError(f"{term!r} stands where a pattern wants a term, such as a variable, a number or an operator.")


def _operand_keys(term: Term) -> Keys | None:
    """(domain, operator type) of what can make an operand; None where anything can."""
    if any(isinstance(leaf, (Variable, Number, Tree)) for leaf in _outermost(term)):
        return None
    return frozenset(root_keys(term))


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


@lru_cache(maxsize=1 << 16)
def _other_ops(term: Term, key: Key | None) -> tuple[Op, ...] | None:
    """The operators that a term wants, if a node of this key is none of them; None where the term may fit."""
    found = list(_outermost(term, (AnyOf, Output, Named)))
    ops = tuple(item for item in found if isinstance(item, Op) and key not in item.keys)
    return ops if len(ops) == len(found) else None


def operators(*roots: Term) -> list[Op]:
    """All operators that terms are made of, each once."""
    return [term for term in _inner_first(roots) if isinstance(term, Op)]


def reads(op: Op, operand: Op) -> bool:
    """Whether one term has the other as an operand."""
    return any(leaf is operand for item in op.inputs for leaf in _outermost(item))


def all_operands_fit(op: Op, makers: Sequence[Key | None]) -> bool:
    """Whether each operand of an operator is made by what the term wants, as far as it wants something."""
    wanted = [_operand_keys(item) for item in op.inputs]
    orders = (makers, makers[::-1]) if op.commutative else (makers,)
    return any(all(keys is None or key in keys for keys, key in zip(wanted, order, strict=False)) for order in orders)


def root_operands(root: Term) -> dict[Key, list[tuple[Operands, bool]]]:
    """For each key a root can have: what its operands must be made by, and whether they may be swapped."""
    operands: dict[Key, list[tuple[Operands, bool]]] = {}
    for op in _outermost(root):
        if isinstance(op, Tree):
            operands.setdefault(("", op.op_type), []).append(((), False))
        if not isinstance(op, Op):
            continue
        wanted = tuple(_operand_keys(item) for item in op.inputs)
        for op_type in op.op_types:
            operands.setdefault((op.domain, op_type), []).append((wanted, op.commutative))
    return operands


def operands_fit(wanted: Operands, makers: Sequence[Key | None]) -> bool:
    """Whether one operand at least is made by what is wanted: it is then worth saying what is wrong with the others."""
    constrained = [key in keys for keys, key in zip(wanted, makers, strict=False) if keys is not None]
    return not constrained or any(constrained)
