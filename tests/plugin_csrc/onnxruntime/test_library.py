"""The kernel library as a whole: what it exports and tells, what it says of nodes that do not fit, old and new ONNX Runtimes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.patterns.language.operator import DOMAIN
from tests.plugin_csrc import contract
from tests.plugin_csrc.contract import Drawn, model_of, values_of
from tests.plugin_csrc.onnxruntime.built import INSTRUCTIONS, ROOT, library, session, told
from tests.plugin_csrc.onnxruntime.test_kernels import NAMES, hstu, made_shape

WITHOUT_KERNELS = {"FusedAttentionLayerNorm", "FusedLinearLayerNorm"}
"""ONNX Runtime's own kernels, which their bodies come down to, are faster."""


def test_it_holds_every_operator() -> None:
    found = told(library())
    assert set(NAMES) == set(contract.OPERATORS) - WITHOUT_KERNELS
    assert all(set(item["types"]) == set(contract.KINDS) for item in found["operators"].values())
    assert found["operators"]["HSTUHierarchicalAttention"]["attributes"] == {"mode": ["silu", "level_softmax"]}
    assert found["instructions"] in found["available"] and found["available"][0] == "plain"
    assert found["advised"] == (found["instructions"] != "plain") and found["api"] == 18


def test_it_exports_three_functions_and_nothing_else() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(line.split()[-1] for line in listed.splitlines()) == [
        "RegisterCustomOps",
        "gr_ml_infra_onnxruntime_describe",
        "gr_ml_infra_onnxruntime_no_cuda",
    ]


def test_it_needs_no_other_library_than_those_of_the_system() -> None:
    needed = subprocess.run(["readelf", "-d", library()], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"NEEDED.*\[(.*?)\]", needed)
    assert all(re.match(r"lib(c|m|pthread)\.so|ld-linux", name) for name in names), names


@pytest.mark.parametrize("instructions", ["fast", "AVX2", "neon"])
def test_an_instruction_set_that_there_is_not(instructions: str) -> None:
    script = (
        "import sys, onnxruntime as ort\n"
        "try: ort.SessionOptions().register_custom_ops_library(sys.argv[1])\n"
        "except Exception as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, library()],
        env={**os.environ, INSTRUCTIONS: instructions},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{INSTRUCTIONS} is '{instructions}'; this machine has plain" in result.stdout


def test_an_operator_without_a_kernel_runs_by_its_body() -> None:
    node = next(item for item in contract.drawn_pairwise(["FusedLinearLayerNorm"], 20, 1) if item.element == "float32")
    values = values_of(node, 1)
    found = session(model_of(node), library()).run(None, values)[0]
    np.testing.assert_allclose(found, contract.run(model_of(node), values)["output"], rtol=1e-5, atol=1e-5)


# --- models whose sizes are not known when they are loaded ------------------------------------------------------------


@pytest.mark.parametrize("known", ["sizes", "ranks", "nothing"])
@pytest.mark.parametrize("name", NAMES)
def test_it_loads_whatever_is_known_of_the_shapes(name: str, known: str) -> None:
    for node in contract.drawn_pairwise([name], 4, 5):
        model = model_of(node)
        for value in (*model.graph.input, *model.graph.output):
            kind = value.type.tensor_type
            if known == "nothing" or (value in model.graph.output and known == "ranks"):
                kind.ClearField("shape")
            elif known == "ranks":
                for number, axis in enumerate(kind.shape.dim):
                    axis.dim_param = f"{value.name}_{number}"
        opened = session(model, library())
        # A rank that is not known would count as that of a scalar, which what reads it may refuse to load.
        ranks = [len(output.shape) for output in opened.get_outputs()]
        if known != "nothing" or name not in ("FusedSkipLayerNorm", "FusedSwish"):
            assert ranks == [len(made_shape(node, output)) for output in node.outputs], node
        if node.element != "bfloat16":
            assert len(opened.run(None, values_of(node, 1))) == len(node.outputs)


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(
    node: Drawn, values: dict[str, np.ndarray] | None = None, edit: Callable[[Any], object] | None = None
) -> str:
    """What is said of a node whose shapes the model does not tell; nothing else may happen."""
    model = model_of(node)
    del model.functions[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    if edit is not None:
        edit(model.graph.node[0])
    with pytest.raises(Exception) as caught:
        given = values_of(node, 1) if values is None else values
        session(model, library()).run(None, {name: np.asarray(value) for name, value in given.items()})
    return str(caught.value)


def drawn(name: str, inputs: dict[str, tuple[str, tuple[int, ...]]], **attributes: Any) -> Drawn:
    (output, *_) = contract.OPERATORS[name].outputs
    sizes = {"B": 2, "S": 5, "N": 5, "V": 4, "F": 3, "D": 8, "L": 3, "H": 8, "...": 2}
    return Drawn(name, "float32", inputs, (output,), attributes, sizes)


def f32(*shape: int) -> tuple[str, tuple[int, ...]]:
    return "float32", shape


NORM = {"norm": "layer", "epsilon": 1e-5}
LEVELS = {"mode": "level_softmax", "norm": "none", "gate_activation": "none", "num_levels": 2}
FUSION = {"temperature": 1.0, "windows": [1], "window_weights": [0.0], "pad": "zero"}
SEQUENCE = {"short_window": 2, "decay": 0.1, "normalize": 0}
PAIRS = {"triangle": "lower", "self_interaction": 0, "concat_dense": "none"}
WRONG = [
    (hstu(8, bias=f32(1, 3, 8, 8)), "input bias is [1, 3, 8, 8]; it must be [1, 1 or 2, 1 or 8, 1 or 8]"),
    (hstu(8, mask=("bool", (8, 8))), "input mask is [8, 8]; it must be [1, 1 or 2, 1 or 8, 1 or 8]"),
    (hstu(8, k=f32(1, 9, 32)), "input k is [1, 9, 32]; it must be [1, 8, 32]"),
    (hstu(8, v=f32(1, 8, 33), u=None), "input v is [1, 8, 33]; its last axis must be a multiple of the 2 heads"),
    (hstu(8, q=f32(8, 32)), "input q is [8, 32]; it must have 3 axes"),
    (hstu(8, u=f32(1, 8, 16)), "input u is [1, 8, 16]; it must be [1, 8, 32]"),
    (hstu(8, lengths=("int64", (2,))), "input lengths is [2]; it must be [1]"),
    (hstu(8, lengths=("bool", (1,))), "input lengths is bool; it must be int32 or int64"),
    (hstu(8, gamma=f32(2)), "input gamma is [2]; it must be [32]"),
    (hstu(8, num_heads=0), "attribute num_heads is 0; it must be positive"),
    (hstu(8, u=None, **LEVELS), "the mode level_softmax takes no input bias"),
    (hstu(8, u=None, bias=None, causal=1, **LEVELS), "the mode level_softmax takes no causal mask"),
    (
        drawn("InteractionTritonFast", {"dense": f32(2, 8), "sparse": f32(2, 2, 7)}, **PAIRS),
        "input sparse is [2, 2, 7]; it",
    ),
    (drawn("InteractionTritonFast", {"E": f32(2, 8)}, **PAIRS), "input E is [2, 8]; it must have 3 axes"),
    (drawn("FMInteraction", {"E": f32(8)}, reduce=0), "input E is [8]; it must have 3 axes"),
    (
        drawn("FusedSkipLayerNorm", {"x": f32(2, 8), "skip": f32(1, 8)}, **NORM),
        "input skip is [1, 8]; it must be [2, 8]",
    ),
    (drawn("FusedSkipLayerNorm", {"x": f32(), "skip": f32()}, **NORM), "input x is a scalar; it must have a last axis"),
    (
        drawn("FusedSkipLayerNorm", {"x": f32(2, 8), "skip": ("bool", (2, 8))}, **NORM),
        "input skip is bool; it must be float32",
    ),
    (
        drawn("HierarchicalSequenceFusion", {"x": f32(2, 5, 8), "level_embeddings": f32(3, 7)}, **FUSION),
        "input level_embeddings is [3, 7]; it must be [3, 8]",
    ),
    (
        drawn(
            "HierarchicalSequenceFusion",
            {"x": f32(2, 5, 8), "level_embeddings": f32(3, 8)},
            **{**FUSION, "windows": [2]},
        ),
        "attribute windows has 2; a window must be odd and positive",
    ),
    (drawn("SequenceRecommendationInteraction", {"items": f32(2, 5, 8)}, **SEQUENCE), "input user is absent"),
    (
        drawn("SequenceRecommendationInteraction", {"items": f32(2, 5, 8), "user": f32(1, 8)}, **SEQUENCE),
        "input user is [1, 8]; it must be [2, 8]",
    ),
]


@pytest.mark.parametrize("node, sentence", WRONG, ids=[f"{node.operator}-{sentence[:40]}" for node, sentence in WRONG])
def test_what_does_not_fit_is_said_in_a_sentence(node: Drawn, sentence: str) -> None:
    edit = None
    if node.operator == "SequenceRecommendationInteraction":
        assert node.outputs == ("scores",)
    if node.attributes.get("windows") == [2]:
        # The body of such a window would be one of its own.
        node, edit = replace(node, attributes=FUSION), lambda found: _set(found, "windows", [2])
    assert f"{DOMAIN} {node.operator}: {sentence}" in refused(node, edit=edit)


def _set(node: Any, name: str, value: Any) -> None:
    (found,) = (item for item in node.attribute if item.name == name)
    found.CopyFrom(onnx.helper.make_attribute(name, value))


@pytest.mark.parametrize("identifier", [4, -5, 2**40, -(2**40)])
def test_ids_out_of_range(identifier: int) -> None:
    node = drawn("FusedEmbedLayerNorm", {"ids_1": ("int64", (2, 5)), "table_1": f32(4, 8)}, num_tables=1, **NORM)
    values = values_of(node, 1)
    values["ids_1"][1, 2] = identifier
    said = refused(node, values)
    assert f"input ids_1 has the id {identifier}; table_1 has 4 rows, so it must be from -4 to 3" in said


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("mode", "softmax", "attribute mode is 'softmax'; it must be silu or level_softmax"),
        ("norm", "rms", "attribute norm is 'rms'; it must be none or layer or group"),
        ("inputs", "q,k,v,bias,w", "attribute inputs names 'w', which is no input of it"),
        ("inputs", "q,k,v", "attribute inputs names 3 inputs, the node has 5"),
        ("outputs", "y,z", "attribute outputs names 2 outputs, the node has 1"),
    ],
)
def test_attributes_that_are_none(name: str, value: str, sentence: str) -> None:
    assert f"{DOMAIN} HSTUHierarchicalAttention: {sentence}" in refused(
        hstu(8), edit=lambda node: _set(node, name, value)
    )


def test_an_attribute_that_is_missing() -> None:
    def edit(node: Any) -> None:
        node.attribute.remove(next(item for item in node.attribute if item.name == "alpha"))

    said = refused(hstu(8), edit=edit)
    assert "HSTUHierarchicalAttention" in said and "alpha" in said


# --- other ONNX Runtimes ----------------------------------------------------------------------------------------------

RUN = """
import json, sys
import numpy as np, onnxruntime as ort
folder, library = sys.argv[1:]
for number in range(int(np.load(f"{folder}/count.npy"))):
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(f"{folder}/{number}.onnx", options, providers=["CPUExecutionProvider"])
    given, wanted = np.load(f"{folder}/{number}.given.npz"), np.load(f"{folder}/{number}.wanted.npz")
    found = session.run(None, dict(given))
    for output, result in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_array_equal(result, wanted[output.name])
print(ort.__version__)
"""


@pytest.mark.long
@pytest.mark.parametrize("release", ["1.18.0", "1.23.0", "newest"])
def test_one_binary_serves_old_and_new(release: str, tmp_path: Path) -> None:
    """1.18 is the oldest whose interface it asks for, 1.23 the oldest that onnx-fuse supports."""
    nodes = [node for node in contract.drawn_pairwise(NAMES, 6, 6) if node.element != "bfloat16"]
    for number, node in enumerate(nodes):
        model, values = model_of(node), values_of(node, number)
        # Without the body, which releases of those days need not know how to read.
        del model.functions[:]
        onnx.save(model, tmp_path / f"{number}.onnx")
        found = session(model, library()).run(None, values)
        np.savez(tmp_path / f"{number}.given.npz", **values)
        np.savez(tmp_path / f"{number}.wanted.npz", **dict(zip(node.outputs, found, strict=True)))
    np.save(tmp_path / "count.npy", len(nodes))
    wanted = "onnxruntime" if release == "newest" else f"onnxruntime=={release}"
    numpy = ["numpy<2"] if release == "1.18.0" else []
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-compile", wanted, *numpy], check=True)
    ran = subprocess.run(
        [python, "-c", RUN, tmp_path, library()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert release in ("newest", ran.stdout.strip()) and ort.__version__
    assert str(ROOT) not in ran.stdout
