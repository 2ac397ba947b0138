"""Types and shapes of what quantized models hold, as ONNX Runtime makes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.helpers import model, run, view_of

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
WEIGHTS = {
    "w": np.arange(20, dtype=np.int8).reshape(4, 5),
    "scale": np.array(0.1, np.float32),
    "half": np.array(0.1, np.float16),
    "zero": np.array(3, np.uint8),
    "signed": np.array(0, np.int8),
    "packed": np.full((5, 1, 16), 0x88, np.uint8),
    "scales": np.full(5, 0.1, np.float32),
}
ROW = "q, s, z = DynamicQuantizeLinear(x)"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = QuantizeLinear(x, scale)", "uint8 B S 4"),
        ("y = QuantizeLinear(x, scale, signed)", "int8 B S 4"),
        ("y = QuantizeLinear <output_dtype = 3> (x, scale)", "int8 B S 4"),
        (f"{ROW} y = DequantizeLinear(q, s, z)", "float32 B S 4"),
        ("q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, half, zero)", "float16 B S 4"),
        (f"{ROW} y = Identity(q)", "uint8 B S 4"),
        (f"{ROW} y = Identity(s)", "float32"),
        (f"{ROW} y = Identity(z)", "uint8"),
        (f"{ROW} y = MatMulInteger(q, w, z)", "int32 B S 5"),
        (f"{ROW} y = QLinearMatMul(q, s, z, w, scale, signed, scale, zero)", "uint8 B S 5"),
        (f"{ROW} y = com.microsoft.MatMulIntegerToFloat(q, w, s, scale, z)", "float32 B S 5"),
        ("y = com.microsoft.DynamicQuantizeMatMul(x, w, scale)", "float32 B S 5"),
        ("y = com.microsoft.MatMulNBits <K = 4, N = 5, bits = 4, block_size = 32> (x, packed, scales)", "float32 B S 5"),
    ],
)  # fmt: skip
def test_they_are_as_in_onnx_runtime(body: str, want: str) -> None:
    made = model(f"(float[B,S,4] x) => (y) {{ {body} }}", opset=21, weights=WEIGHTS)
    view = view_of(made, canonical=False)
    kind = helper.tensor_dtype_to_np_dtype(view.dtype("y")).name
    assert " ".join([kind, *map(str, view.shape("y") or ())]) == want
    (found,) = run(made, {"x": X})
    assert " ".join([found.dtype.name, *map(str, found.shape)]) == want.replace("B", "2").replace("S", "3")
