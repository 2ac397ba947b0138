"""Settings of every test, made before any of them imports anything.

No library is found unless a test says so, whatever this user has built; what tests build stays in the checkout. Triton
decides between interpreting and compiling when it is imported, its own functions included: here it interprets.
"""

import os
from pathlib import Path

import pytest

os.environ["ONNX_FUSE_PLUGINS"] = ""
os.environ["ONNX_FUSE_KERNEL_LIBRARY"] = ""
os.environ["TRITON_INTERPRET"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".cache")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests drew, so that a run can be repeated."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    for report in reports:
        for name, value in report.user_properties:
            if name == "drawn" and report.when == "call":
                terminalreporter.write_line(f"drawn: {value}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker ends with one while the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
