"""What subgraphs capture."""

from __future__ import annotations

from onnx_fuse.passes.graph.subgraphs import captures
from tests.helpers import model
from tests.passes.graph.graphs import SUBGRAPHS


def test_captures_are_what_is_read_and_not_defined_inside() -> None:
    made = model(SUBGRAPHS)
    choose = made.graph.node[3]
    branches = {attribute.name: attribute.g for attribute in choose.attribute}
    assert captures(branches["then_branch"]) == {"c", "deep", "outside"}
    assert captures(branches["else_branch"]) == {"outside"}
