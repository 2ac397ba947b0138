"""What `--select auto` predicts for the recommender examples is what the result file says."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from benchmarks import predictions
from benchmarks.recommenders import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_the_result_is_current(name: str) -> None:
    """If not: `python benchmarks/predictions.py`, and then `python docs/generate.py`."""
    content = json.loads(predictions.RESULT.read_text())
    rows = [row for row in content["results"] if row["model"].removesuffix(f", {predictions.WIDE}") == name]
    assert rows == predictions.predicted(name)
    assert bool(rows) == bool(MODELS[name][1])


def test_table() -> None:
    told = {"kept": 1, "before_us": 5.0, "after_us": 2.5, "reasons": []}
    row = {"model": "M", "operator": "F", "nodes": 2, "batch": 16, "length": 30, "devices": {"H100": told}}
    found = predictions.table({"precision": "float16", "devices": ["H100"], "results": [row]})
    assert found.splitlines()[-1] == "| M | 2 F | 16 | 30 | 5.0 to 2.5, keep 1 |"
