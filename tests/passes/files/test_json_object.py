"""JSON that somebody else may have written: whatever it is, one kind of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from onnx_fuse.passes.files import json_object


def test_an_object(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": [1]}')
    assert json_object.read(tmp_path / "r.json") == json_object.parse(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1]", "no JSON object"),
        ("null", "no JSON object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
        ('{"a": ' + "9" * 10_000 + "}", "digits"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_what_is_none(text: str | bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        json_object.parse(text)


def test_size_and_kind_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    os.mkfifo(tmp_path / "pipe")
    for name, cause in (("huge", "more than 64 MB"), ("pipe", "not a regular file"), (".", "not a regular file")):
        with pytest.raises(ValueError, match=cause):
            json_object.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        json_object.read(tmp_path / "missing")


@pytest.mark.parametrize(("facts", "ok"), [({"a": 1}, True), ({"a": "1"}, False), ({"a": True}, False), ({}, False)])
def test_types(facts: dict[str, Any], ok: bool) -> None:
    if ok:
        json_object.require(facts, a=int)
    else:
        with pytest.raises(ValueError, match="'a' is missing or of the wrong type"):
            json_object.require(json.loads(json.dumps(facts)), a=int)
