"""The version of onnx-fuse, and the versions of what is installed beside it."""

from __future__ import annotations

from collections.abc import Iterable

__version__ = "0.1.0"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those of the distributions that are installed."""
    import importlib.metadata

    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
