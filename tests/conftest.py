"""Settings of every test, made before any of them imports anything.

No plugin library is found unless a test says so, whatever this user has built; what tests build stays in the checkout. Triton
decides between interpreting and compiling when it is imported, its own functions included: here it interprets.
"""

import os
from pathlib import Path

import pytest

os.environ["ONNX_FUSE_PLUGINS"] = ""
os.environ["TRITON_INTERPRET"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker ends with one while the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
