"""Codes of refusals: every sentence that the code can give has one, and every code has sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from docs.generate import ROOT, template
from onnx_fuse.passes.refusals import BY_CODE, KINDS, OWN, Kind, kind_of

SAID_BY = ("note", "settle", "NearMiss", "partial", "Refusal", "Refused")
FILES = [
    *(ROOT / "patterns").glob("*.py"),
    *(ROOT / "patterns" / "parts").glob("*.py"),
    *(ROOT / "patterns" / "language").glob("learned_pattern.py"),
    *(ROOT / "passes" / "normalize").glob("*.py"),
    *(ROOT / "passes" / "view").glob("*.py"),
    *(ROOT / "passes" / "fuse" / name for name in ("plan.py", "body_check.py", "near_misses.py")),
]


def sentences() -> Iterator[tuple[str, str]]:
    """(place, sentence with its gaps filled) of what refusals are made of: returned, noted, or kept beside a node."""
    for path in FILES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or "str" not in ast.unparse(
                function.returns or ast.Constant("")
            ):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    for item in whole(node.value):
                        yield f"{path.name}:{node.lineno}", item


def whole(node: ast.expr) -> Iterator[str]:
    """The sentences of several words in an expression that is returned."""
    if isinstance(node, ast.IfExp):
        yield from whole(node.body)
        yield from whole(node.orelse)
    elif isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
        text = template(node)
        if text is not None and len(text.split()) > 2:
            yield re.sub(r"<[^>]*>", "x", text)


FOUND = sorted(set(sentences()))


def test_there_are_sentences() -> None:
    assert len(FOUND) > 60


@pytest.mark.parametrize(("place", "sentence"), FOUND)
def test_every_sentence_has_a_code(place: str, sentence: str) -> None:
    assert kind_of(sentence) is not OWN, sentence


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_every_code_says_what_it_is(kind: Kind) -> None:
    assert kind_of(kind.example) is kind
    assert re.fullmatch(r"OF[1-5]\d\d", kind.code) and re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.name)
    assert kind.meaning.endswith(".") and (not kind.advice or kind.advice.endswith((".", ")")))


def test_codes_and_names_are_given_once() -> None:
    assert len(BY_CODE) == len(KINDS) + 1 == len({kind.name for kind in (*KINDS, OWN)})


def test_what_a_fusion_of_your_own_says() -> None:
    assert kind_of("x is divided by 2 and multiplied by 3") is OWN
