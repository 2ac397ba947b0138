"""A learned fusion as an ONNX model: one node of the operator with its body as a function, and in the metadata its forms.

The model is valid ONNX and runs in ONNX Runtime. What is looked for is data, in JSON; nothing in the file is executed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files import json_object
from onnx_fuse.patterns.language.learned import Definition, Form, Reference, Step, Tensor
from onnx_fuse.patterns.language.learned_body import operator_of
from onnx_fuse.patterns.language.operator import FusedOp

KEY = "onnx_fuse.learned"
_FORMAT = 1
_OPSET = 18
_IR = 10

Notes = Sequence[tuple[str, str, str]]


def to_model(definition: Definition, summary: str, notes: Notes) -> ModelProto:
    """The model that holds a definition."""
    operator = operator_of(definition, widen=False)
    model = of_operator(operator, definition.inputs, definition.example_attributes, summary)
    del model.graph.output[:]
    model.graph.output.extend(_values(definition.outputs))
    content = {
        "format": _FORMAT,
        "summary": summary,
        "notes": notes,
        "body": _digest(model),
        "definition": {**_plain(definition), "forms": [_plain_form(form) for form in definition.forms]},
    }
    helper.set_model_props(model, {KEY: json.dumps(content)})
    return model


def of_operator(
    operator: FusedOp, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any], summary: str = ""
) -> ModelProto:
    """A model of one node of an operator with its body as a function, for float32; the outputs have no types."""
    inputs, outputs = list(tensors), list(operator.outputs)
    opsets = {"": _OPSET, operator.domain: 1}
    function = operator.make_function(inputs, outputs, attributes, opsets, onnx.TensorProto.FLOAT)
    function.doc_string = summary
    node = operator.make_node(
        dict(zip(inputs, inputs, strict=True)), dict(zip(outputs, outputs, strict=True)), attributes, operator.name
    )
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], operator.name, _values(tensors), made, doc_string=summary)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(
        graph, functions=[function], opset_imports=imports, ir_version=_IR, producer_name="onnx-fuse"
    )


def from_model(model: ModelProto, where: str) -> tuple[Definition, str, Notes]:
    """What `to_model` wrote.

    Raises:
        ModelError: the model holds no learned fusion, or was changed since.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        raise ModelError(
            f"{where} holds no learned fusion.", "Learn one first: onnx-fuse learn module.py:Class -o my_fusion.onnx"
        )
    try:
        content = json_object.parse(text)
        if content["format"] != _FORMAT:
            raise ModelError(f"{where} was written by another version of onnx-fuse.", "Learn the fusion again.")
        definition = _definition(content["definition"])
        body, summary, notes = content["body"], str(content["summary"]), content["notes"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"The learned fusion in {where} is damaged: {error!r}.", "Learn it again.") from error
    if _digest(model) != body:
        raise ModelError(
            f"The body in {where} is not the one that was learned with the pattern.",
            "Change the example and learn it again: a pattern and a body must belong together.",
        )
    return definition, summary, [(str(kind), str(name), str(text)) for kind, name, text in notes]


def _digest(model: ModelProto) -> str:
    state = hashlib.sha256()
    for function in model.functions:
        state.update(function.SerializeToString(deterministic=True))
    return state.hexdigest()


def _values(tensors: Mapping[str, Tensor]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, tensor.dtype, tensor.dims) for name, tensor in tensors.items()]


# --- to JSON and back -------------------------------------------------------------------------------------------------


def _plain(definition: Definition) -> dict[str, Any]:
    plain = {name: getattr(definition, name) for name in ("name", "domain", "plugin_version", "plugin_namespace")}
    plain["inputs"] = [(name, asdict(tensor)) for name, tensor in definition.inputs.items()]
    plain["outputs"] = [(name, asdict(tensor)) for name, tensor in definition.outputs.items()]
    return {**plain, "attributes": dict(definition.attributes), "scalars": sorted(definition.scalars)}


def _plain_form(form: Form) -> dict[str, Any]:
    return {
        "steps": [
            {**vars(step), "attributes": {name: _plain_attribute(value) for name, value in step.attributes.items()}}
            for step in form.steps
        ],
        "results": form.results,
        "tensors": {name: asdict(tensor) for name, tensor in form.tensors.items()},
        "constants": {name: _plain_array(array) for name, array in form.constants.items()},
        "references": dict(form.references),
        "sizes": dict(form.sizes),
    }


def _plain_attribute(value: Any) -> Any:
    return {"attribute": value.attribute} if isinstance(value, Reference) else value


def _plain_array(array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array)
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": array.shape, "data": data}


def _definition(plain: dict[str, Any]) -> Definition:
    tensors = {key: {str(name): _tensor(tensor) for name, tensor in plain.pop(key)} for key in ("inputs", "outputs")}
    forms = tuple(_form(form) for form in plain.pop("forms"))
    return Definition(**{**plain, **tensors, "forms": forms, "scalars": frozenset(plain["scalars"])})


def _form(plain: dict[str, Any]) -> Form:
    steps = tuple(
        Step(
            str(step["op_type"]),
            tuple(step["inputs"]),
            tuple(step["outputs"]),
            {
                name: Reference(value["attribute"]) if isinstance(value, dict) else value
                for name, value in step["attributes"].items()
            },
        )
        for step in plain["steps"]
    )
    return Form(
        steps,
        tuple(plain["results"]),
        {name: _tensor(tensor) for name, tensor in plain["tensors"].items()},
        {name: _array(array) for name, array in plain["constants"].items()},
        dict(plain["references"]),
        {name: tuple(size) if isinstance(size, list) else size for name, size in plain["sizes"].items()},
    )


def _tensor(plain: dict[str, Any]) -> Tensor:
    return Tensor(int(plain["dtype"]), tuple(plain["dims"]))


def _array(plain: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(plain["data"])
    return np.frombuffer(data, dtype=np.dtype(plain["dtype"])).reshape(plain["shape"])
