"""Mistakes made by hand in fused models, each of which a verification must notice: in the wiring, in sizes, in magnitudes.

    python -m tests.trust.edits FOLDER

makes all of them in the fused form of every ONNX file below a folder, says which a verification misses, and whether it passes the
fused models as they are.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.external_data import external_tensors, read_small
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.verify.random_inputs import Draw, draw_inputs, input_specs
from onnx_fuse.runtime.verify.verification import verify
from tests.helpers import copied

Change = tuple[str, Callable[[ModelProto], None]]
DOMAIN = "gr.ml.infra"
_SWAPPED = (("query", "key"), ("key", "value"), ("gamma", "beta"))
_DROPPED = ("mask", "attention_bias", "residual", "out_bias", "gamma", "beta")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _fused(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN]


def _names(node: NodeProto) -> list[str]:
    """What each input of a fused node is."""
    return next(item.s.decode() for item in node.attribute if item.name == "inputs").split(",")


def _node(model: ModelProto, output: str) -> NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def _weight(model: ModelProto, name: str) -> np.ndarray | None:
    return next((numpy_helper.to_array(item) for item in model.graph.initializer if item.name == name), None)


def wiring(model: ModelProto) -> Iterator[Change]:
    """Two inputs of the same shape the wrong way round."""
    for node in _fused(model)[:2]:
        names = _names(node)
        for pair in _SWAPPED:
            if not set(pair) <= set(names):
                continue
            places = [names.index(name) for name in pair]
            first, second = (_weight(model, node.input[place]) for place in places)
            if node.input[places[0]] == node.input[places[1]] or (first is not None and np.array_equal(first, second)):
                continue

            def change(made: ModelProto, output: str = node.output[0], places: list[int] = places) -> None:
                inputs = _node(made, output).input
                inputs[places[0]], inputs[places[1]] = inputs[places[1]], inputs[places[0]]

            yield f"{' and '.join(pair)} of {node.op_type} the wrong way round", change


def left_out(model: ModelProto) -> Iterator[Change]:
    """A mask, a bias, a residual that the fused node should read."""
    for node in _fused(model)[:2]:
        for name in _DROPPED:
            names = _names(node)
            if name not in names:
                continue
            held = _weight(model, node.input[names.index(name)])
            if name in ("mask", "attention_bias") and not any(
                re.search("mask|len", value.name) for value in model.graph.input
            ):
                continue  # it may mask nothing at all
            neutral = 1.0 if name == "gamma" else 0.0
            if held is not None and (held == neutral).all():
                continue

            def change(made: ModelProto, output: str = node.output[0], name: str = name) -> None:
                node = _node(made, output)
                names = _names(node)
                del node.input[names.index(name)]
                names.remove(name)
                next(item for item in node.attribute if item.name == "inputs").s = ",".join(names).encode()
                # Without a body of this form verification writes the one that the attributes call for.
                node.overload = ""
                del made.functions[:]

            yield f"{name} of {node.op_type} left out", change


def transposed(model: ModelProto) -> Iterator[Change]:
    """A square weight the other way round, under another name."""
    for tensor in list(model.graph.initializer)[:40]:
        if len(tensor.dims) == 2 and tensor.dims[0] == tensor.dims[1] > 1 and tensor.data_type in _FLOATS:

            def change(made: ModelProto, name: str = tensor.name) -> None:
                tensor = next(item for item in made.graph.initializer if item.name == name)
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), f"{name}_turned"))
                for node in made.graph.node:
                    node.input[:] = [f"{name}_turned" if item == name else item for item in node.input]

            yield f"{tensor.name} transposed", change
            return


def table_rows(model: ModelProto) -> Iterator[Change]:
    """The first, or the last, row of a table another one."""
    for node in model.graph.node:
        names = _names(node) if node.domain == DOMAIN else []
        tables = [node.input[place] for place, name in enumerate(names) if name.startswith("table")]
        tables += [node.input[0]] if node.op_type == "Gather" and not node.domain else []
        for table in tables[:1]:
            held = _weight(model, table)
            if held is None or held.ndim != 2 or held.dtype.kind != "f":
                continue
            for row in (0, -1):

                def change(made: ModelProto, table: str = table, row: int = row) -> None:
                    tensor = next(item for item in made.graph.initializer if item.name == table)
                    array = np.array(numpy_helper.to_array(tensor))
                    array[row] = array[1] + 0.1
                    tensor.CopyFrom(numpy_helper.from_array(array, f"{table}_other"))
                    for node in made.graph.node:
                        node.input[:] = [f"{table}_other" if item == table else item for item in node.input]

                yield f"row {row} of {table} another one", change
            return


def words(model: ModelProto) -> Iterator[Change]:
    """The causal mask on, or off, or aligned with the other end; another norm."""
    other = {"upper_left": ("none",), "none": ("upper_left",), "layer": ("rms",), "rms": ("layer",)}
    for node in _fused(model)[:1]:
        for attribute in node.attribute:
            if attribute.name not in ("causal", "norm") or attribute.type != AttributeProto.STRING:
                continue
            for word in other.get(attribute.s.decode(), ()):

                def change(
                    made: ModelProto, output: str = node.output[0], name: str = attribute.name, word: str = word
                ) -> None:
                    node = _node(made, output)
                    next(item for item in node.attribute if item.name == name).s = word.encode()
                    node.overload = ""
                    del made.functions[:]

                yield f"{attribute.name} = {word} in {node.op_type}", change


def _times(made: ModelProto, output: str, nodes: list[NodeProto], factor: str) -> None:
    """Multiplies what makes a value by a factor that the nodes make."""
    node = _node(made, output)
    places = [place for place, name in enumerate(node.output) if name == output]
    node.output[places[0]] = f"{output}_right"
    made.graph.node.extend([*nodes, helper.make_node("Mul", [f"{output}_right", factor], [output])])
    _sort(made)


def _sort(made: ModelProto) -> None:
    """Puts what was added at the end before what reads it."""
    nodes, done, left = list(made.graph.node), set(), []
    produced = {name for node in nodes for name in node.output}
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    while copies:
        ready = [node for node in copies if all(name in done or name not in produced for name in node.input)]
        left += ready
        done.update(name for node in ready for name in node.output)
        ids = {id(node) for node in ready}
        copies = [node for node in copies if id(node) not in ids]
    del made.graph.node[:]
    made.graph.node.extend(left)


def _takes(model: ModelProto, axis: int, size: int) -> bool:
    """Whether a model runs with that size: a table of positions may end before."""
    draw = Draw(1, size, equal=True) if axis else Draw(size, 7, equal=True)
    try:
        sessions.run(sessions.session(model), draw_inputs(input_specs(model), draw))
    except ModelError:
        return False
    return True


def sizes(model: ModelProto) -> Iterator[Change]:
    """Right for a small batch and a short sequence, and a hundredth off beyond."""
    value = next((item for item in model.graph.input if len(item.type.tensor_type.shape.dim) > 1), None)
    fused = _fused(model)
    if value is None or not fused:
        return
    half = value.type.tensor_type.elem_type == TensorProto.FLOAT16 or any(
        item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer
    )
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    limits = ((0, 3), (1, 33), (1, 128))
    for axis, limit in limits:
        if value.type.tensor_type.shape.dim[axis].HasField("dim_value") or not _takes(model, axis, limit + 1):
            continue

        def change(made: ModelProto, axis: int = axis, limit: int = limit) -> None:
            numbers = {"e_axis": np.array(axis), "e_limit": np.array(limit)}
            made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in numbers.items())
            for name, number in (("e_off", 1.1), ("e_one", 1.0)):
                array = np.array(number, helper.tensor_dtype_to_np_dtype(kind))
                made.graph.initializer.append(numpy_helper.from_array(array, name))
            nodes = [
                helper.make_node("Shape", [value.name], ["e_shape"]),
                helper.make_node("Gather", ["e_shape", "e_axis"], ["e_size"]),
                helper.make_node("Greater", ["e_size", "e_limit"], ["e_more"]),
                helper.make_node("Where", ["e_more", "e_off", "e_one"], ["e_factor"]),
            ]
            _times(made, made.graph.output[0].name, nodes, "e_factor")

        yield f"wrong where axis {axis} is above {limit}", change


def masks(model: ModelProto) -> Iterator[Change]:
    """The last position of the mask always kept, or never."""
    value = next((item for item in model.graph.input if "mask" in item.name), None)
    if value is None or len(value.type.tensor_type.shape.dim) != 2:
        return
    for kept in (0, 1):

        def change(made: ModelProto, kept: int = kept) -> None:
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for node in made.graph.node:
                node.input[:] = ["e_mask" if name == value.name else name for name in node.input]
            numbers = {"e_zero": np.array([0]), "e_end": np.array([-1]), "e_ax": np.array([1]),
                       "e_many": np.array([2**31]), "e_all": np.array([1 - kept], kind)}  # fmt: skip
            made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in numbers.items())
            made.graph.node.extend(
                [
                    helper.make_node("Slice", [value.name, "e_zero", "e_end", "e_ax"], ["e_head"]),
                    helper.make_node("Slice", [value.name, "e_end", "e_many", "e_ax"], ["e_tail"]),
                    helper.make_node("Mul", ["e_tail", "e_all"], ["e_none"]),
                    helper.make_node("Sub", ["e_tail", "e_none"], ["e_drop" if kept else "e_same"]),
                ]
            )
            if kept:  # 1 wherever it was 0: mask - mask * 0 + (1 - mask)
                made.graph.initializer.append(numpy_helper.from_array(np.array([1], kind), "e_1"))
                made.graph.node.append(helper.make_node("Max", ["e_drop", "e_1"], ["e_same"]))
            made.graph.node.append(helper.make_node("Concat", ["e_head", "e_same"], ["e_mask"], axis=1))
            _sort(made)

        yield f"the last position of the mask {'always' if kept else 'never'} kept", change


def magnitudes(model: ModelProto) -> Iterator[Change]:
    """Numbers in between that overflow early, or vanish early."""
    floats = [item for item in model.graph.input if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    for given in [item.name for item in floats if "mask" not in item.name][:1]:
        for factor in (1e25, 1e30):

            def change(made: ModelProto, given: str = given, factor: float = factor) -> None:
                for node in made.graph.node:
                    node.input[:] = ["e_back" if name == given else name for name in node.input]
                numbers = {"e_up": np.float32(factor), "e_down": np.float32(1 / factor)}
                made.graph.initializer.extend(
                    numpy_helper.from_array(np.array(array), name) for name, array in numbers.items()
                )
                made.graph.node.extend(
                    [
                        helper.make_node("Mul", [given, "e_up"], ["e_large"]),
                        helper.make_node("Mul", ["e_large", "e_down"], ["e_back"]),
                    ]
                )
                _sort(made)

            yield f"{given} overflows from {3.4e38 / factor:.0e} on", change


EDITS = (wiring, left_out, transposed, table_rows, words, sizes, masks, magnitudes)


def _whole(path: Path) -> ModelProto:
    """The model with its weights in it. (onnx.load refuses data files with several names.)"""
    model = onnx.load(path, load_external_data=False)
    for tensor, _ in external_tensors(model):
        array = read_small(tensor, path.parent, 1 << 30)
        assert array is not None, tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def missed(original: ModelProto, fused: ModelProto) -> tuple[int, list[str]]:
    """How many edits a fused model allows, and those that a verification does not notice."""
    count, found = 0, []
    for edits in EDITS:
        for what, change in edits(fused):
            spoiled = copied(fused)
            change(spoiled)
            count += 1
            result = verify(original, spoiled)
            if result.passed or result.problem is None or result.inconclusive:
                found.append(f"{what}: {result.summary()[0]}")
    return count, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="of the folder's files, those whose path matches")
    given = parser.parse_args()
    start, total, lost, wrong, models = time.monotonic(), 0, 0, 0, 0
    for path in sorted(given.folder.rglob("*.onnx")):
        if not fnmatchcase(str(path), given.only):
            continue
        original = _whole(path)
        fused = onnx_fuse.fuse(original, verify=False).model
        if not _fused(fused):
            continue
        models += 1
        found = verify(original, fused)
        if not found.passed:
            wrong += 1
            print(f"{path}: {found.problem}")
        count, gone = missed(original, fused)
        total, lost = total + count, lost + len(gone)
        for what in gone:
            print(f"{path.parent.name}/{path.name}: {what}", flush=True)
    seconds = time.monotonic() - start
    print(f"{models} models, {wrong} false alarms; {total} edits, {lost} missed; {seconds:.0f} s")


if __name__ == "__main__":
    main()
