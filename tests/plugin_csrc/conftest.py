"""Memory that kernels are tested on, and how they see it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and never written is NaN."""
    torch = pytest.importorskip("torch")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def compiled_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels see a pointer as the type they are compiled with, which for masks, biases and tables may not be the tensor's."""
    pytest.importorskip("triton")
    from onnx_fuse.plugin_csrc.operators import catalogue
    from tests.plugin_csrc import reference

    for module in catalogue.MODULES:
        monkeypatch.setattr(module, "start", reference.start)
