"""Which plugin libraries are loaded without being named: those whose record is beside them, and says what they are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from onnx_fuse.errors import OutputError, UsageError
from onnx_fuse.runtime.device.library_file import cache_folder
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.versions import __version__

FACTS: dict[str, Any] = {"version": "1", "architectures": [80], "variants": 2, "size": 7, "seconds": 1.0}


def library(path: Path, *, record: bool = True, **changed: Any) -> Path:
    """A file that stands for a library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())
    if record:
        facts = {**FACTS, "sha256": sha256(path), **changed}
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(plugin_library.VARIABLE)
    (tmp_path / "site" / "onnx_fuse_plugins").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return cache_folder()


@pytest.mark.parametrize("value", ["cache", "./cache", "", "~/cache"])
def test_a_relative_cache_is_ignored(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder().is_relative_to(tmp_path / "home" / ".cache")


def test_only_libraries_with_a_record_are_found(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "site" / "onnx_fuse_plugins" / plugin_library.LIBRARY
    for path in (packaged, cache / plugin_library.LIBRARY):
        library(path, record=False)
    stray = library(cache / "own" / "stray.so", record=False)
    assert plugin_library.find() == []
    own = library(cache / "own" / "mine.so")
    built = library(cache / plugin_library.LIBRARY)
    assert plugin_library.find() == [built, own]
    # The package comes before the cache, if it is of this version.
    library(packaged, version="0.0")
    assert plugin_library.find() == [built, own]
    packaged.with_name(f"{packaged.name}.json").write_text("{")
    assert plugin_library.find() == [built, own]
    library(packaged, version=__version__)
    assert plugin_library.find() == [packaged, own]
    # Who names it, wants it.
    assert plugin_library.find([stray]) == [stray]
    monkeypatch.setenv(plugin_library.VARIABLE, str(stray))
    assert plugin_library.find() == [stray]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[]", "no JSON object"),
        ('"text"', "no JSON object"),
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{}", "'version' is missing"),
        (json.dumps({**FACTS, "sha256": 1}), "'sha256' is missing or of the wrong type"),
        (json.dumps({**FACTS, "sha256": "0", "architectures": "80"}), "'architectures'"),
        (json.dumps({**FACTS, "sha256": "0", "architectures": [[80]]}), "int"),
        (json.dumps({**FACTS, "sha256": "0", "operators": None}), "'operators'"),
        (json.dumps({**FACTS, "sha256": "0", "path": "/else"}), "path"),
        (json.dumps({**FACTS, "sha256": "0", "more": 1}), "more"),
    ],
)
def test_records_that_are_none(tmp_path: Path, text: str, cause: str) -> None:
    path = library(tmp_path / "lib.so")
    path.with_name("lib.so.json").write_text(text)
    with pytest.raises(UsageError, match=r"lib\.so\.json is no record") as caught:
        plugin_library.described(path)
    assert cause in caught.value.cause and caught.value.remedy


def test_a_huge_record_is_not_read(tmp_path: Path) -> None:
    path = library(tmp_path / "lib.so")
    os.truncate(path.with_name("lib.so.json"), 1 << 40)
    with pytest.raises(UsageError, match="more than 64 MB"):
        plugin_library.described(path)


def test_a_damaged_record_does_not_stop_who_only_asks_for_operators(cache: Path) -> None:
    library(cache / "own" / "a.so", operators=["mine::A version 1"])
    library(cache / "own" / "b.so").with_name("b.so.json").write_text("[" * 100_000)
    library(cache / "own" / "c.so", operators=None)
    assert plugin_library.recorded() == {"mine::A version 1"}


class TestOfAnEngine:
    def test_by_the_hash(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        there, moved = library(tmp_path / "there.so"), library(tmp_path / "moved.so", record=False)
        monkeypatch.setenv(plugin_library.VARIABLE, str(moved))
        wanted = {str(there): sha256(there), "/elsewhere/moved.so": sha256(moved)}
        assert plugin_library.of_engine("The engine e", wanted) == [there, moved]
        with pytest.raises(UsageError, match=r"The engine e needs .* is another one"):
            plugin_library.of_engine("The engine e", {str(there): "0" * 64})
        monkeypatch.setenv(plugin_library.VARIABLE, "")
        with pytest.raises(UsageError, match="it is not there"):
            plugin_library.of_engine("The engine e", wanted)

    def test_the_record_of_an_engine_does_not_name_a_library_for_the_user(self, tmp_path: Path) -> None:
        stray = library(tmp_path / "stray.so", record=False)
        with pytest.raises(UsageError, match="not there with its record") as caught:
            plugin_library.of_engine("The engine e", {str(stray): sha256(stray)})
        assert plugin_library.VARIABLE in caught.value.remedy
        assert plugin_library.of_engine("The engine e", {str(stray): sha256(stray)}, [stray]) == [stray]


@pytest.mark.parametrize("output", ["folder", "file/lib.so", "x" * 300, "y" * 253, "/dev/null"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(plugin_library.aot, "kernel_modules", lambda: pytest.fail("it begins to compile"))
    with pytest.raises(OutputError):
        plugin_library.build(tmp_path / output)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ((80,), 80, "machine code"),
        ((80,), 87, "machine code"),
        ((80,), 90, "PTX"),
        ((80,), 75, None),
        ((86,), 80, None),
        ((86,), 89, "machine code"),
        ((86,), 90, None),
        ((120,), 121, None),
    ],
)
def test_which_gpus_a_library_runs_on(architectures: tuple[int, ...], capability: int, runs: str | None) -> None:
    assert plugin_library.of_architectures(architectures).runs_on(capability) == runs
