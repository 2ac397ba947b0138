"""Numbers that constants are computed to reach a fused node as ONNX Runtime computes them, or the fusion does without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import Array
from tests.trust import graphs
from tests.trust.graphs import ATTENTION, DECOMPOSED, SKIP, build

SCALES: dict[str, tuple[str, dict[str, Array], float | None]] = {
    "a remainder of the sign of the dividend": (
        "whole = Mod <fmod = 1> (a, b)\nscale = Cast <to = 1> (whole)",
        {"a": np.array([-7]), "b": np.array([3])},
        -1.0,
    ),
    "a cast that wraps": (
        "narrow = Cast <to = 6> (a)\nscale = Cast <to = 1> (narrow)",
        {"a": np.array([2**32 + 5])},
        5.0,
    ),
    "a cast of the largest integer": (
        "narrow = Cast <to = 6> (a)\nscale = Cast <to = 1> (narrow)",
        {"a": np.array([2**63 - 1])},
        -1.0,
    ),
    "a product that wraps": (
        "whole = Mul(a, b)\nscale = Cast <to = 1> (whole)",
        {"a": np.array([2**62 + 1]), "b": np.array([4])},
        4.0,
    ),
    "a division that truncates": (
        "whole = Div(a, b)\nscale = Cast <to = 1> (whole)",
        {"a": np.array([-7]), "b": np.array([2])},
        -3.0,
    ),
    "an integer that is no float": (
        "whole = Sub(a, b)\nscale = Cast <to = 1> (whole)",
        {"a": np.array([2**53 + 1]), "b": np.array([2**53])},
        1.0,
    ),
    "a dropout in training": (
        "scale = Dropout <seed = 3> (a, ratio, yes)",
        {"a": np.array([0.5], np.float32), "ratio": np.array(0.5, np.float32), "yes": np.array(True)},
        None,
    ),
    "a cast that no standard tells": (
        "whole = Cast <to = 6> (a)\nscale = Cast <to = 1> (whole)",
        {"a": np.array([3e9], np.float32)},
        None,
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_of_attention(name: str) -> None:
    text, weights, wanted = SCALES[name]
    original = build(ATTENTION, scale=f"{text}\nscaled = Mul(product, scale)", weights=weights)
    made = graphs.fused(original, [ATTENTION])
    if wanted is not None:
        graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 2, "S": 5}, {"B": 1, "S": 3}))
    # A scale that only a run knows goes into the query.
    assert [made.attributes(node)["scale"] for node in made.nodes(ATTENTION)] == [1.0 if wanted is None else wanted]


@pytest.mark.parametrize(("exponent", "count"), [(2.0, 1), (2.0000019, 0), (1.9999999, 0)])
def test_the_power_of_a_written_out_norm(exponent: float, count: int) -> None:
    weights: dict[str, Any] = {"two": np.array([exponent], np.float32)}
    original = build(SKIP, norm=DECOMPOSED, weights=weights)
    made = graphs.fused(original, [SKIP])
    graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 2, "S": 5}))
    assert len(made.nodes(SKIP)) == count
