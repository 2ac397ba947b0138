"""Memory that kernels are tested on."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and never written is NaN."""
    torch = pytest.importorskip("torch")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
