"""Optimisation profiles of a model: the ranges of shapes that were given, and ranges for the dimensions that were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.engine_file import ShapeRange
from onnx_fuse.runtime.tensorrt.config import EngineConfig, Profile
from onnx_fuse.runtime.verify.random_inputs import InputSpec, symbols, with_sums

ASSUMED = {True: (1, 8, 32), False: (1, 128, 512)}
"""Min, opt and max of a dimension that nobody gave: of a batch, and of any other."""

_KINDS = ("min", "opt", "max")

Sizes = dict[str, tuple[int, int, int]]


def profiles_for(specs: Sequence[InputSpec], config: EngineConfig) -> tuple[tuple[Profile, ...], tuple[str, ...]]:
    """The profiles of an engine, each with a range for every input, and the sentences on what had to be assumed.

    What is given for a dimension of one input holds for every input that has a dimension of that name.

    Raises:
        UsageError: the given shapes do not fit the model.
    """
    for spec in specs:
        if spec.dims is None:
            raise UsageError(
                f"Input {spec.name} has no shape in the model.", "Export the model with the shapes of its inputs."
            )
    profiles = []
    assumed: dict[str, None] = dict.fromkeys(config.assumed)
    for given in config.profiles or ({},):
        sizes = _given(specs, given)
        for symbol, is_batch in symbols(specs).items():
            if symbol not in sizes:
                sizes[symbol] = _missing(symbol, is_batch, config.max_batch_size, assumed)
        if config.max_batch_size is not None and not any(symbols(specs).values()):
            raise UsageError("max_batch_size is given, and no input has a batch that may change.", "Leave it out.")
        profiles.append(_profile(specs, given, sizes))
    return tuple(profiles), tuple(assumed)


def _given(specs: Sequence[InputSpec], given: Profile) -> Sizes:
    """Symbol -> sizes, of the shapes that were given."""
    known = {spec.name: spec for spec in specs}
    sizes: Sizes = {}
    for name, ranges in given.items():
        if name not in known:
            raise UsageError(f"The model has no input {name!r}.", f"It takes: {', '.join(known) or 'nothing'}.")
        dims = known[name].dims or ()
        if len(ranges.min) != len(dims):
            raise UsageError(
                f"Input {name} was given shapes of rank {len(ranges.min)}, the model has [{', '.join(map(str, dims))}].",
                "Give one size for each dimension.",
            )
        for dim, *of in zip(dims, ranges.min, ranges.opt, ranges.max, strict=True):
            triple = (of[0], of[1], of[2])
            if isinstance(dim, int) and triple != (dim, dim, dim):
                raise UsageError(
                    f"Input {name} was given {':'.join(map(str, of))} for a dimension that is always {dim}.",
                    f"Its shape is [{', '.join(map(str, dims))}].",
                )
            if isinstance(dim, str) and sizes.setdefault(dim, triple) != triple:
                raise UsageError(
                    f"The dimension {dim} of input {name} was given {':'.join(map(str, of))}, of another input "
                    f"{':'.join(map(str, sizes[dim]))}.",
                    "Dimensions of one name have one size: give the same range for both.",
                )
    return sizes


def _missing(symbol: str, is_batch: bool, max_batch_size: int | None, assumed: dict[str, None]) -> tuple[int, int, int]:
    if is_batch and max_batch_size is not None:
        return 1, max_batch_size, max_batch_size
    low, best, high = ASSUMED[is_batch]
    assumed[f"{symbol} is {low} to {high}, optimised for {best}"] = None
    return low, best, high


def _profile(specs: Sequence[InputSpec], given: Profile, sizes: Sizes) -> Profile:
    full = [with_sums(specs, {symbol: of[index] for symbol, of in sizes.items()}) for index in range(len(_KINDS))]

    def shape(dims: Sequence[int | str], chosen: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else chosen[dim] for dim in dims)

    return {
        spec.name: given.get(spec.name) or ShapeRange(*(shape(spec.dims or (), chosen) for chosen in full))
        for spec in specs
    }
