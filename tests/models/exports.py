"""Exports of the architectures of `zoo.py`, by both exporters of torch and at many opsets, kept in a cache on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from tests.models import zoo
from tests.models.zoo import ARCHITECTURES, HEADS, HIDDEN, LAYERS, SEQUENCE, Built

__all__ = ["HEADS", "HIDDEN", "LAYERS", "SEQUENCE"]

TRANSFORMERS = ("bert", "distilbert", "roberta", "vit", "gpt2")
TORCH = ("encoder_post", "encoder_pre")
EXPORTERS = (("script", 14), ("script", 17), ("dynamo", 18), ("dynamo", 20), ("dynamo", 23))
WIDE_EXPORTERS = (("script", 13), ("script", 17), ("script", 20), ("dynamo", 18), ("dynamo", 23))
SINGLE_EXPORTERS = (("script", 17), ("dynamo", 18))
BETWEEN = (
    (("script", 14), ("script", 15), ("script", 16), ("script", 18), ("script", 19)),
    (("dynamo", 19), ("dynamo", 20), ("dynamo", 21), ("dynamo", 22)),
)
"""Of each of these an architecture has one, in turn."""


@dataclass(frozen=True)
class Export:
    """One cell of the export matrix.

    Attributes:
        single: whether the batch is 1, as engines for one request at a time have it; only with static shapes.
    """

    architecture: str
    exporter: str
    opset: int
    attention: str
    dynamic: bool
    half: bool = False
    single: bool = False

    @property
    def name(self) -> str:
        shapes = "dynamic" if self.dynamic else "single" if self.single else "static"
        return f"{self.architecture}-{self.exporter}{self.opset}-{self.attention}-{shapes}" + "-float16" * self.half

    @property
    def settings(self) -> str:
        """What follows the architecture in the name."""
        return self.name.removeprefix(f"{self.architecture}-")

    @property
    def rim(self) -> tuple[str, ...]:
        """What should be fused with the attention of each block."""
        architecture = ARCHITECTURES[self.architecture]
        return architecture.half_rim if self.half and architecture.half_rim is not None else architecture.rim

    @property
    def error(self) -> str | None:
        """Part of the error with which it is known to fail, in the exporter or in ONNX Runtime."""
        fails = ARCHITECTURES[self.architecture].fails
        return next((error for glob, error in fails.items() if fnmatchcase(self.settings, glob)), None)

    @property
    def source(self) -> tuple[str, str, str, bool, bool, bool]:
        """What one run of the exporter's front end serves: dynamo captures a module once for all opsets."""
        return self.exporter, self.architecture, self.attention, self.dynamic, self.half, self.single


def matrix() -> list[Export]:
    """The best-known architectures x exporter x attention implementation x static/dynamic shapes, in float32."""
    return [
        Export(architecture, exporter, opset, attention, dynamic)
        for architecture in (*TRANSFORMERS, *TORCH)
        for attention, dynamic in itertools.product(ARCHITECTURES[architecture].attentions, (False, True))
        for exporter, opset in EXPORTERS
    ]


def wide() -> list[Export]:
    """All other architectures, in float16 too, as far as they can be exported; not every combination, but every pair."""
    names = [name for name in ARCHITECTURES if name not in (*TRANSFORMERS, *TORCH)]
    return pairwise([cell for name in names for cell in settings_of(name) if cell.error is None])


def single() -> list[Export]:
    """Every architecture with a batch of 1, by one exporter and the other in turn, where that one can."""
    cells = []
    for turn, (name, architecture) in enumerate(ARCHITECTURES.items()):
        either = [
            Export(name, exporter, opset, architecture.attentions[-1], dynamic=False, single=True)
            for exporter, opset in SINGLE_EXPORTERS[:: 1 if turn % 2 else -1]
        ]
        cells.append(next(cell for cell in either if cell.error is None))
    return cells


def settings_of(name: str) -> list[Export]:
    """Every export of one architecture that a user might try."""
    architecture = ARCHITECTURES[name]
    turn = list(ARCHITECTURES).index(name)
    exporters = (*WIDE_EXPORTERS, *(between[turn % len(between)] for between in BETWEEN))
    return [
        Export(name, exporter, opset, attention, dynamic, half)
        for attention, dynamic in itertools.product(architecture.attentions, (False, True))
        for half in (False, True)[: 1 + architecture.half]
        for exporter, opset in exporters
        if opset > 13 or attention == "eager"  # sdpa came with opset 14
    ]


def _pairs(cell: Export) -> set[tuple[Any, ...]]:
    settings = [
        ("architecture", cell.architecture),
        ("exporter", cell.exporter, cell.opset),
        ("attention", cell.attention),
        ("dynamic", cell.dynamic),
        ("half", cell.half),
    ]
    return set(itertools.combinations(settings, 2))


def sparse(cells: list[Export]) -> list[Export]:
    """One cell of each architecture: that with most new pairs of the other settings, then by the cheap exporter, then the rarest."""
    uses: Counter[tuple[Any, ...]] = Counter()

    def worth(cell: Export) -> tuple[Any, ...]:
        pairs = _pairs(cell)
        return sum(pair not in uses for pair in pairs), cell.exporter == "script", -sum(uses[pair] for pair in pairs)

    sample = []
    for _, group in itertools.groupby(cells, key=lambda cell: cell.architecture):
        sample.append(max(group, key=worth))
        uses.update(_pairs(sample[-1]))
    return sample


def pairwise(cells: list[Export]) -> list[Export]:
    """A small sample in which every pair of settings that occurs in `cells` occurs at least once.

    Greedy and deterministic. Among the cells that bring a new pair it prefers those that share their source with one it has,
    since these are cheap, then those that keep attention implementations, kinds of shape and types even.
    """
    pairs = {cell: _pairs(cell) for cell in cells}
    missing = set().union(*pairs.values())
    sample: list[Export] = []
    while missing:
        sources = {cell.source for cell in sample if cell.exporter == "dynamo"}
        uses = Counter((cell.attention, cell.dynamic, cell.half) for cell in sample)
        useful = [cell for cell in cells if not missing.isdisjoint(pairs[cell])]
        best = max(
            useful,
            key=lambda cell: (
                cell.source in sources,
                -uses[cell.attention, cell.dynamic, cell.half],
                len(pairs[cell] & missing),
            ),
        )
        sample.append(best)
        missing -= pairs[best]
    return sorted(sample, key=cells.index)


def cached(cell: Export) -> Path:
    """The cell's model in a cache on disk, exported unless it is there.

    The cache is `.cache/exports` of the repository, or where ONNX_FUSE_EXPORT_CACHE says; what another version of this file
    or of an exporter wrote into it does not count.
    """
    folder = _cache() / cell.name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whole folders appear at once, whoever else is exporting the same.
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        export(cell, making / f"{cell.name}.onnx")
        try:
            making.rename(folder)
        except OSError:
            shutil.rmtree(making)
            if not folder.exists():
                raise
    return folder / f"{cell.name}.onnx"


def export(cell: Export, path: Path) -> Path:
    """Exports one cell to `path`."""
    module, inputs, axes = _built(cell.architecture, cell.attention, cell.half, cell.single)
    arguments = tuple(inputs.values())
    options: dict[str, Any] = {"input_names": list(inputs), "opset_version": cell.opset, "verbose": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _exporter_ready():
        warnings.simplefilter("ignore")
        if cell.exporter == "dynamo":
            program, shapes = _captured(cell.architecture, cell.attention, cell.dynamic, cell.half, cell.single)
            torch.onnx.export(program, arguments, str(path), dynamo=True, dynamic_shapes=shapes, **options)
        else:
            dynamic_axes = axes if cell.dynamic else None
            torch.onnx.export(module, arguments, str(path), dynamo=False, dynamic_axes=dynamic_axes, **options)
    return path


@functools.lru_cache(maxsize=1)
def _built(architecture: str, attention: str, half: bool, single: bool) -> Built:
    module, inputs, axes = zoo.build(architecture, attention)
    if single:
        inputs = {name: value[:1] for name, value in inputs.items()}
    if half:
        inputs = {name: value.half() if value.is_floating_point() else value for name, value in inputs.items()}
    return module.half() if half else module, inputs, axes


@functools.lru_cache(maxsize=1)
def _captured(
    architecture: str, attention: str, dynamic: bool, half: bool, single: bool
) -> tuple[torch.export.ExportedProgram, Any]:
    """The module as torch.onnx.export would capture it, once for all opsets, and its dynamic shapes."""
    module, inputs, axes = _built(architecture, attention, half, single)
    shapes: Any = None
    if dynamic:
        dims = {label: torch.export.Dim(label, min=1, max=64) for of in axes.values() for label in of.values()}
        shapes = tuple({axis: dims[label] for axis, label in axes[name].items()} for name in inputs)
        if any(
            parameter.kind is parameter.VAR_POSITIONAL for parameter in signature(module.forward).parameters.values()
        ):
            shapes = (shapes,)
    return torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False), shapes


@functools.lru_cache(maxsize=1)
def _cache() -> Path:
    """The folder of this version of the cache."""
    root = os.environ.get("ONNX_FUSE_EXPORT_CACHE") or Path(__file__).parents[2] / ".cache" / "exports"
    state = hashlib.sha256(b"".join(Path(module).read_bytes() for module in (__file__, zoo.__file__)))
    for package in ("torch", "transformers", "onnx", "onnxscript"):
        state.update(f"{package} {metadata.version(package)};".encode())
    return Path(root) / state.hexdigest()[:16]


@contextlib.contextmanager
def _exporter_ready() -> Iterator[None]:
    level, fast = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.WARNING)
    # The fast path of torch.nn's encoders is one operator that no exporter knows.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)
