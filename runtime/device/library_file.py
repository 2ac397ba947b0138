"""A library that was built: where this user's are kept, the record beside each, and whether the two belong together."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from onnx_fuse.errors import UsageError, reason
from onnx_fuse.passes.files import digest, json_object, staging
from onnx_fuse.versions import __version__

T = TypeVar("T")

PLUGINS = "libgr_ml_infra_tensorrt_plugins.so"
"""The plugin library. The kernel library, too, runs its kernels where both are in one folder."""


def cache_folder() -> Path:
    """Where this version keeps what it builds, for this user."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored: what is loaded must not depend on the folder that one is in.
    return (base if base.is_absolute() else Path.home() / ".cache") / "onnx-fuse" / __version__


def source_folder() -> Path:
    """The sources of the libraries, in the repository or in an installed package."""
    spec = importlib.util.find_spec("onnx_fuse.plugin_csrc")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def found(name: str) -> Path | None:
    """The library of this name in the package onnx-fuse-plugins of this version, else in the user's cache; None where neither has
    it with its record."""
    spec = importlib.util.find_spec("onnx_fuse_plugins")
    places = [] if spec is None else [Path(folder) / name for folder in spec.submodule_search_locations or ()]
    packaged = [path for path in places if has_record(path) and _version(record_path(path)) == __version__]
    return next(filter(has_record, [*packaged, cache_folder() / name]), None)


def _version(record: Path) -> object:
    """What a record says; nothing where it cannot be read."""
    try:
        return json_object.read(record).get("version")
    except (OSError, ValueError):
        return None


def record_path(library: Path) -> Path:
    """The record of a library: LIBRARY.json."""
    return library.with_name(f"{library.name}.json")


def has_record(library: Path) -> bool:
    """Whether both are there: the library, and the record beside it. `checked` says whether they belong together."""
    return os.path.isfile(library) and os.path.isfile(record_path(library))


def sha256(library: Path, kind: str) -> str:
    """The hash of a library's bytes, in hexadecimal digits; `kind` is what an error calls it.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return digest.sha256(library)
    except OSError as error:
        raise UsageError(f"The {kind} {library} cannot be read: {error.strerror}.", "Check its permissions.") from error


def checked(library: Path, kind: str, build: str, read: Callable[[dict[str, Any]], T]) -> T | None:
    """What the record of a library says, once its hash was found to be the recorded one; None where there is no record.

    Args:
        library: the shared library.
        kind: what an error calls it, such as "plugin library".
        build: the command that builds it.
        read: makes the result of the facts in the record; raises ValueError or TypeError where they are not a library's.

    Raises:
        UsageError: there is no such library, its record is none, or it is not the one that was built: cut short, damaged, or
            replaced.
    """
    if not os.path.isfile(library):
        raise UsageError(f"There is no {kind} {library}.", f"Build one: {build}.")
    record = record_path(library)
    try:
        facts = json_object.read(record)
        found = read(facts)
        json_object.require(facts, sha256=str)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{record} is no record of a {kind}: {reason(error)}.", f"Build the {kind} again.") from error
    if sha256(library, kind) != facts["sha256"]:
        raise UsageError(
            f"The {kind} {library} is not the one that was built: its hash differs.", f"Build it again: {build}."
        )
    return found


def check_place(output: Path) -> None:
    """Fails now where writing would fail after minutes.

    Raises:
        OutputError: the library or its record cannot be written there.
    """
    with staging.writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    for path in (output, record_path(output)):
        staging.check_output(path)


def install(data: bytes, output: Path, facts: Mapping[str, Any]) -> None:
    """Puts a library in its place, with its record; whoever has the old one open keeps it.

    Raises:
        OutputError: it cannot be written.
    """
    with staging.Staging() as files:
        files.write(record_path(output), (json.dumps(facts, indent=2) + "\n").encode())
        files.write(output, data)
        files.commit()
