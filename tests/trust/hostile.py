"""Models of kinds that once were fused wrongly or hung: what the fuzzer starts from, beside models that fuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from onnx import ModelProto

from tests.trust.test_bounded import FLOATS, MASKS, NUMBERS, tower_of
from tests.trust.test_optional_parts import SEQUENCES

_STOREYS = {"floats": FLOATS, "masks": MASKS, "weights": MASKS, "numbers": NUMBERS}


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


HOSTILE: dict[str, Callable[[], ModelProto]] = {
    **{
        f"tower of {kind}, {name}": partial(tower_of, kind, name, 30, twice=True)
        for kind, storeys in _STOREYS.items()
        for name in storeys
    },
    **{name: partial(_copy, made) for name, (made, _) in SEQUENCES.items()},
}
