"""The version of onnx-fuse, and the versions of what is installed beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

__version__ = "0.1.0"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those of the distributions that are installed, as it was when it was first asked for."""
    found = ((name, _installed(name)) for name in names)
    return {name: version for name, version in found if version is not None}


@cache  # finding a distribution reads folders and files
def _installed(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
