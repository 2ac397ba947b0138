"""Nodes with what their bodies make of them, worked out where there is no GPU and kept in a folder.

Reading them takes numpy and torch alone: ONNX Runtime is needed where they are written.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnx_fuse.runtime.plugins.torch_harness import Node
from tests.gpu.names import BROADCASTING, DRAWN, ELEMENTS, OPERATORS

FOLDER = "ONNX_FUSE_TEST_CASES"
"""Environment variable: the folder of cases; they are worked out anew unless it is set."""
SEED = 2026
ALLOWED = {"float32": 2e-5, "float16": 8e-3, "bfloat16": 6e-2}
"""As `tests.plugin_csrc.contract.ALLOWED`."""


@dataclass(frozen=True)
class Case:
    """A node with its inputs, the element type T, and what it has to make, in float64."""

    node: Node
    element: str
    wanted: Mapping[str, Any]


def folder() -> Path:
    """The folder of cases; they are written first where the environment names none."""
    given = os.environ.get(FOLDER)
    return Path(given) if given else _written_here()


@cache
def _written_here() -> Path:
    target = Path(__file__).parents[2] / ".cache" / "gpu" / "cases"
    write(target)
    return target


def read(name: str) -> Case:
    """The case of that name."""
    facts = json.loads((folder() / f"{name}.json").read_text())
    with np.load(folder() / f"{name}.npz") as arrays:
        inputs = {
            key: torch.from_numpy(arrays[f"input_{key}"]).view(getattr(torch, kind))
            for key, kind in facts["inputs"].items()
        }
        wanted = {key: torch.from_numpy(arrays[f"output_{key}"]) for key in facts["outputs"]}
    shaped = {key: item.reshape(facts["shapes"][key]) for key, item in inputs.items()}
    node = Node(facts["operator"], facts["attributes"], shaped, tuple(facts["outputs"]))
    return Case(node, facts["element"], wanted)


def write(target: Path) -> None:
    """Works out all cases."""
    from onnx.inliner import inline_local_functions

    from tests.plugin_csrc import contract

    target.mkdir(parents=True, exist_ok=True)
    for number, (name, node) in enumerate(_drawn()):
        values = contract.values_of(node, SEED + number)
        made = contract.run(inline_local_functions(contract.model_of(node)), values)
        facts = {
            "operator": node.operator,
            "element": node.element,
            "attributes": dict(node.attributes),
            "inputs": {key: kind for key, (kind, _) in node.inputs.items()},
            "shapes": {key: list(shape) for key, (_, shape) in node.inputs.items()},
            "outputs": list(node.outputs),
        }
        # numpy keeps no bfloat16: bytes have no type.
        arrays = {f"input_{key}": np.frombuffer(item.tobytes(), np.uint8) for key, item in values.items()}
        arrays |= {f"output_{key}": made[key].astype(np.float64) for key in node.outputs}
        np.savez(target / f"{name}.npz", **arrays)
        (target / f"{name}.json").write_text(json.dumps(facts))


def _drawn() -> Iterator[tuple[str, Any]]:
    """Name -> node, in the order of `names`."""
    from tests.plugin_csrc import contract

    assert sorted(OPERATORS) == sorted(contract.RULES) and list(ELEMENTS) == list(contract.KINDS)
    for operator in OPERATORS:
        for element in ELEMENTS:
            draws = random.Random(f"{operator} {element} {SEED}")
            while (node := contract.draw(operator, draws)).element != element or 0 in node.sizes.values():
                pass
            yield f"{operator}-{element}", node
    for operator, count in DRAWN.items():
        kept = 0
        for node in contract.drawn_pairwise([operator], 4 * count, SEED):
            # An axis of 0 is for `tests.plugin_csrc`: there is nothing to compare.
            broadcasts = operator not in BROADCASTING or any("broadcasts" in fact for fact in node.facts)
            if kept < count and broadcasts and 0 not in node.sizes.values():
                kept += 1
                yield f"{operator}-{kept}", node
        assert kept == count, operator
