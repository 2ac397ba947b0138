from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def plugin() -> Iterator[Callable[..., None]]:
    """Registers a plugin of gr.ml.infra, written in Python: version "1", output like its input, with the given fields."""
    from onnx_fuse.runtime.tensorrt import binding

    trt = binding.module()

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild):
        def __init__(self, name: str) -> None:
            for base in Plugin.__bases__:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace, self.num_outputs = name, "1", "gr.ml.infra", 1

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, types: Any) -> Any:
            return [types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            return [inputs[0]]

        def clone(self) -> Any:
            return Plugin(self.plugin_name)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self, name: str, fields: dict[str, Any]) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = name, "1", "gr.ml.infra"
            kinds = [trt.PluginField(key, np.array([]), kind) for key, kind in fields.items()]
            self.field_names = trt.PluginFieldCollection(kinds)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return Plugin(self.name)

    creators: list[Any] = []

    def register(name: str, **fields: Any) -> None:
        creators.append(Creator(name, fields))
        assert trt.get_plugin_registry().register_creator(creators[-1], "gr.ml.infra")

    yield register
    for creator in creators:
        assert trt.get_plugin_registry().deregister_creator(creator)
