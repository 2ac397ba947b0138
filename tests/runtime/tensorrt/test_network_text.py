"""TensorRT's network as text, from the real parser."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.tensorrt import binding

try:
    trt = binding.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from onnx_fuse.runtime.tensorrt.network_text import network_text
from onnx_fuse.runtime.tensorrt.parse import parse_network
from tests.runtime.tensorrt.test_parse import NODE, model


def test_layers_types_shapes_settings_and_plugin_fields(plugin: Callable[..., None]) -> None:
    plugin("Scale")
    made = model(
        f"""main (float[n, 4] x) => (float[4, n] y) {{
            t = gr.ml.infra.Scale <factor = 3.5, axes = [0, 1], {NODE}> (x)
            s = Mul (t, t)
            y = Transpose <perm = [1, 0]> (s) }}""",
        "scale",
        "square",
        "turn",
    )
    lines = network_text(parse_network(made, plugins=[]), made).splitlines()
    assert lines[0].endswith("3 layers, 1 of them plugins")
    assert "input  x float[-1, 4]" in lines and "output y float[4, -1]" in lines
    at = next(index for index, line in enumerate(lines) if line.startswith("0 PLUGIN") and line.endswith(" scale"))
    assert lines[at + 1 : at + 3] == ["    reads x float[-1, 4]", "    makes t float[-1, 4]"]
    assert {"    factor = 3.5", "    axes = [0, 1]", "    plugin_namespace = gr.ml.infra"} <= set(lines[at + 3 :])
    assert "1 ELEMENTWISE square" in lines and "    op = PROD" in lines
    assert "2 SHUFFLE turn" in lines and "    makes y float[4, -1]" in lines


def test_what_is_not_accepted_is_in_it() -> None:
    made = model("main (float[n] x) => (float[n] y) { y = com.example.Unknown (x) }", "mine")
    text = network_text(parse_network(made, plugins=[]), made)
    assert "error  mine (Unknown)" in text
