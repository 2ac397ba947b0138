"""Models drawn at random, of what transformers are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from tests.helpers import Builder


def transformer(data: st.DataObject, opset: int = 17, *, half: bool = False) -> ModelProto:
    """A model of x [B, S, 8] and mask [B, 1, 1, S], as an exporter (of opset 17 or before) may write it.

    Args:
        half: in float16, with norms and Softmax in float32 between casts.
    """
    draw = _Draw(data, half)
    for _ in range(data.draw(st.integers(2, 9))):
        draw.step()
    outputs: dict[str, list[int | str]] = {name: ["B", heads, "S", 8 // heads] for name, heads in draw.heads[-1:]}
    outputs[draw.flat[-1] if draw.flat[-1] != "x" else draw.node("Abs", "x")] = ["B", "S", 8]
    made = draw.builder.model(*outputs, opset=opset)
    for value, dims in zip(made.graph.output, outputs.values(), strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, draw.dtype, dims))
    return made


class _Draw:
    def __init__(self, data: st.DataObject, half: bool) -> None:
        self.data = data
        self.half = half
        self.dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        self.builder = Builder(self.dtype, x=["B", "S", 8], mask=["B", 1, 1, "S"])
        self.random = np.random.default_rng(0)
        # Values of [B, S, 8], and of [B, h, S, d] with their h.
        self.flat = ["x"]
        self.heads: list[tuple[str, int]] = []

    def pick(self, options: Any) -> Any:
        return self.data.draw(st.sampled_from(list(options)))

    def weight(self, *shape: int) -> str:
        return self.builder.array(self.random.uniform(-0.5, 0.5, shape).astype(self.kind))

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return str(self.builder.node(op_type, *inputs, **attributes))

    def step(self) -> None:
        kinds = ["attention", "linear", "norm", "scale", "cast", "activation", "residual", "rows", "turned", "split"]
        kinds += ["scores", "merge", "turn"] * bool(self.heads)
        getattr(self, self.pick(kinds))()

    def scalar(self) -> str:
        return self.builder.array(np.array(self.pick([0.5, 2.0, 0.25]), self.kind))

    def linear(self) -> None:
        product = self.node("MatMul", self.pick(self.flat[-2:]), self.weight(8, 8))
        self.flat.append(self.node("Add", *self.pick([(product, self.weight(8)), (self.weight(8), product)])))

    def rows(self) -> None:
        """A linear layer on rows."""
        value = self.pick(self.flat[-2:])
        rows = self.node("Reshape", value, self.builder.constant(-1, 8))
        product = self.node("Gemm", rows, self.weight(8, 8), self.weight(8), transB=self.pick([0, 1]))
        self.flat.append(self.node("Reshape", product, self.node("Shape", value)))

    def turned(self) -> None:
        """A linear layer on [S, B, 8]."""
        value = self.node("Transpose", self.pick(self.flat[-2:]), perm=[1, 0, 2])
        product = self.node("Add", self.node("MatMul", value, self.weight(8, 8)), self.weight(8))
        self.flat.append(self.node("Transpose", product, perm=[1, 0, 2]))

    def norm(self) -> None:
        value = self.wide(self.pick(self.flat[-2:]))
        centred = self.node("Sub", value, self.node("ReduceMean", value, axes=[-1]))
        variance = self.node("ReduceMean", self.node("Mul", centred, centred), axes=[-1])
        root = self.node("Sqrt", self.node("Add", variance, self.builder.array(np.array(0.1, np.float32))))
        normed = self.node("Div", centred, root)
        if self.half and self.pick([True, False]):
            normed = self.narrow(normed)
            self.flat.append(self.node("Add", self.node("Mul", normed, self.weight(8)), self.weight(8)))
            return
        scale, shift = (self.builder.array(self.random.uniform(0.5, 1.5, 8).astype(np.float32)) for _ in range(2))
        self.flat.append(self.narrow(self.node("Add", self.node("Mul", normed, scale), shift)))

    def wide(self, value: str) -> str:
        return self.node("Cast", value, to=TensorProto.FLOAT) if self.half else value

    def narrow(self, value: str) -> str:
        return self.node("Cast", value, to=TensorProto.FLOAT16) if self.half else value

    def scale(self) -> None:
        self.flat.append(self.node(self.pick(["Mul", "Div"]), self.pick(self.flat[-2:]), self.scalar()))

    def cast(self) -> None:
        wide = self.node("Cast", self.pick(self.flat[-2:]), to=TensorProto.DOUBLE)
        self.flat.append(self.node("Cast", wide, to=self.dtype))

    def activation(self) -> None:
        value = self.pick(self.flat[-2:])
        self.flat.append(self.node("Mul", value, self.node("Sigmoid", value)))

    def residual(self) -> None:
        self.flat.append(self.node("Add", self.pick(self.flat[-2:]), self.pick(self.flat)))

    def split_heads(self, value: str, heads: int) -> str:
        size = 8 // heads
        if self.pick([True, False]):
            opened = self.node("Reshape", value, self.builder.constant(0, 0, heads, size))
            return self.node("Transpose", opened, perm=[0, 2, 1, 3])
        turned = self.node("Transpose", value, perm=[1, 0, 2])
        opened = self.node("Reshape", turned, self.builder.constant(0, -1, heads, size))
        return self.node("Transpose", opened, perm=[1, 2, 0, 3])

    def split(self) -> None:
        heads = self.pick([2, 4])
        self.heads.append((self.split_heads(self.pick(self.flat[-2:]), heads), heads))

    def turn(self) -> None:
        """[B, h, S, d] with a scale, or through [B*h, S, d] and back."""
        value, heads = self.pick(self.heads[-2:])
        if self.pick([True, False]):
            self.heads.append((self.node("Mul", value, self.scalar()), heads))
            return
        shape = self.node("Shape", value)
        tail = self.node("Slice", shape, self.builder.constant(2), self.builder.constant(4))
        merged = self.node("Reshape", value, self.node("Concat", self.builder.constant(-1), tail, axis=0))
        self.heads.append((self.node("Reshape", merged, shape), heads))

    def scores(self) -> None:
        value, heads = self.pick(self.heads[-2:])
        key = self.node("Transpose", self.split_heads(self.pick(self.flat[-2:]), heads), perm=[0, 1, 3, 2])
        query = self.pick([value, self.node("Mul", value, self.scalar())])
        scores = self.node("MatMul", query, self.pick([key, self.node("Div", key, self.scalar())]))
        if self.pick([True, False]):
            scores = self.node("Add", scores, "mask")
        if self.pick([True, False]):
            probabilities = self.narrow(self.node("Softmax", self.wide(scores), axis=-1))
        else:
            probabilities = self.node("Softmax", scores, axis=-1)
        self.heads.append((self.node("MatMul", probabilities, value), heads))

    def attention(self) -> None:
        """Scores, and as much of what follows them in a transformer as is drawn."""
        self.split()
        for kind in self.pick([(), ("turn",)]):
            getattr(self, kind)()
        self.scores()
        self.merge()
        for kind in self.pick(
            [(), ("linear",), ("turned", "residual"), ("linear", "residual", "norm"), ("residual", "norm")]
        ):
            getattr(self, kind)()

    def merge(self) -> None:
        value, _ = self.pick(self.heads[-2:])
        turned = self.node("Transpose", value, perm=[0, 2, 1, 3])
        self.flat.append(self.node("Reshape", turned, self.builder.constant(0, 0, 8)))
