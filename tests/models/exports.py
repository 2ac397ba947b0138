"""Real architectures, exported with torch from configurations with random weights.

Every model is small (4 layers, hidden size 64, 4 heads) and gets biases and gammas that are neither 0 nor 1, so that a fusion
that swaps or forgets one of them cannot go unnoticed. Nothing is downloaded.
"""

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
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LAYERS = 4
HIDDEN = 64
HEADS = 4
VOCABULARY = 101
BATCH, SEQUENCE = 2, 7

TRANSFORMERS = ("bert", "distilbert", "roberta", "vit", "gpt2")
TORCH = ("encoder_post", "encoder_pre")
EXPORTERS = (("script", 14), ("script", 17), ("dynamo", 18), ("dynamo", 20), ("dynamo", 23))

Axes = dict[str, dict[int, str]]
Built = tuple[torch.nn.Module, dict[str, torch.Tensor], Axes]


@dataclass(frozen=True)
class Export:
    """One cell of the export matrix."""

    architecture: str
    exporter: str
    opset: int
    attention: str
    dynamic: bool

    @property
    def name(self) -> str:
        shapes = "dynamic" if self.dynamic else "static"
        return f"{self.architecture}-{self.exporter}{self.opset}-{self.attention}-{shapes}"

    @property
    def source(self) -> tuple[str, str, str, bool]:
        """What one run of the exporter's front end serves: dynamo captures a module once for all opsets."""
        return self.exporter, self.architecture, self.attention, self.dynamic


def matrix() -> list[Export]:
    """Every architecture x exporter x attention implementation x static/dynamic shapes."""
    implementations = {**dict.fromkeys(TRANSFORMERS, ("eager", "sdpa")), **dict.fromkeys(TORCH, ("native",))}
    return [
        Export(architecture, exporter, opset, attention, dynamic)
        for architecture, attentions in implementations.items()
        for attention, dynamic in itertools.product(attentions, (False, True))
        for exporter, opset in EXPORTERS
    ]


def pairwise(cells: list[Export]) -> list[Export]:
    """A small sample in which every pair of settings that occurs in `cells` occurs at least once.

    Greedy and deterministic. Among the cells that bring a new pair it prefers those that share their source with one it has,
    since these are cheap, then those that keep attention implementations and kinds of shape even.
    """

    def pairs(cell: Export) -> set[tuple[Any, ...]]:
        settings = [
            ("architecture", cell.architecture),
            ("exporter", cell.exporter, cell.opset),
            ("attention", cell.attention),
            ("dynamic", cell.dynamic),
        ]
        return set(itertools.combinations(settings, 2))

    missing = set().union(*(pairs(cell) for cell in cells))
    sample: list[Export] = []
    while missing:
        sources = {cell.source for cell in sample if cell.exporter == "dynamo"}
        uses = Counter((cell.attention, cell.dynamic) for cell in sample)
        useful = [cell for cell in cells if pairs(cell) & missing]
        best = max(
            useful,
            key=lambda cell: (cell.source in sources, -uses[cell.attention, cell.dynamic], len(pairs(cell) & missing)),
        )
        sample.append(best)
        missing -= pairs(best)
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
    module, inputs, axes = _built(cell.architecture, cell.attention)
    arguments = tuple(inputs.values())
    options: dict[str, Any] = {"input_names": list(inputs), "opset_version": cell.opset, "verbose": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_exporter():
        warnings.simplefilter("ignore")
        if cell.exporter == "dynamo":
            program, shapes = _captured(cell.architecture, cell.attention, cell.dynamic)
            torch.onnx.export(program, arguments, str(path), dynamo=True, dynamic_shapes=shapes, **options)
        else:
            dynamic_axes = axes if cell.dynamic else None
            torch.onnx.export(module, arguments, str(path), dynamo=False, dynamic_axes=dynamic_axes, **options)
    return path


def build(architecture: str, attention: str) -> Built:
    """The module (eval mode), example inputs by name, and the dynamic axes of each input."""
    torch.manual_seed((*TRANSFORMERS, *TORCH).index(architecture))
    module, inputs, axes = _BUILDERS[architecture](attention)
    with torch.no_grad():
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                if parameter.dim() == 1:
                    gamma = isinstance(child, torch.nn.LayerNorm) and name == "weight"
                    parameter.normal_(float(gamma), 0.2)
                elif parameter.dim() == 2 and not isinstance(child, torch.nn.Embedding):
                    # Models are initialised so that all scores are nearly zero: then attention is a mean, whatever its scale.
                    parameter.normal_(0.0, HIDDEN**-0.5)
    return module.eval(), inputs, axes


@functools.lru_cache(maxsize=1)
def _built(architecture: str, attention: str) -> Built:
    return build(architecture, attention)


@functools.lru_cache(maxsize=1)
def _captured(architecture: str, attention: str, dynamic: bool) -> tuple[torch.export.ExportedProgram, Any]:
    """The module as torch.onnx.export would capture it, once for all opsets, and its dynamic shapes."""
    module, inputs, axes = _built(architecture, attention)
    shapes: Any = None
    if dynamic:
        dims = {label: torch.export.Dim(label, min=1, max=64) for of in axes.values() for label in of.values()}
        shapes = tuple({axis: dims[label] for axis, label in axes[name].items()} for name in inputs)
    return torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False), shapes


@functools.lru_cache(maxsize=1)
def _cache() -> Path:
    """The folder of this version of the cache."""
    root = os.environ.get("ONNX_FUSE_EXPORT_CACHE") or Path(__file__).parents[2] / ".cache" / "exports"
    state = hashlib.sha256(Path(__file__).read_bytes())
    for package in ("torch", "transformers", "onnx", "onnxscript"):
        state.update(f"{package} {metadata.version(package)};".encode())
    return Path(root) / state.hexdigest()[:16]


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


class _TextModel(torch.nn.Module):
    """A transformers model of text that returns its first output."""

    def __init__(self, model: torch.nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.fixed = fixed

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False, **self.fixed)[0]


class _VisionModel(torch.nn.Module):
    """A transformers model of images that returns its first output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, return_dict=False)[0]


def _text(model: torch.nn.Module, **fixed: Any) -> Built:
    ids = torch.randint(2, VOCABULARY, (BATCH, SEQUENCE))
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    mask[1, -2:] = 0
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    return _TextModel(model, **fixed), {"input_ids": ids, "attention_mask": mask}, axes


def _bert(attention: str) -> Built:
    from transformers import BertConfig, BertModel

    return _text(BertModel(BertConfig(**_sizes(), max_position_embeddings=64, attn_implementation=attention)))


def _roberta(attention: str) -> Built:
    from transformers import RobertaConfig, RobertaModel

    # Its positions begin behind the padding id: the first of them are never looked up.
    return _text(RobertaModel(RobertaConfig(**_sizes(), max_position_embeddings=72, attn_implementation=attention)))


def _sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
    }


def _distilbert(attention: str) -> Built:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=2 * HIDDEN,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    return _text(DistilBertModel(config))


def _gpt2(attention: str) -> Built:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return _text(GPT2Model(config), use_cache=False)


def _vit(attention: str) -> Built:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * HIDDEN,
        image_size=32,
        patch_size=8,
        attn_implementation=attention,
    )
    model = _VisionModel(ViTModel(config, add_pooling_layer=False))
    return model, {"pixel_values": torch.randn(BATCH, 3, 32, 32)}, {"pixel_values": {0: "batch"}}


def _encoder(norm_first: bool) -> Built:
    layer = torch.nn.TransformerEncoderLayer(
        HIDDEN, HEADS, 2 * HIDDEN, dropout=0.1, batch_first=True, norm_first=norm_first, activation="gelu"
    )
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return encoder, {"src": torch.randn(BATCH, SEQUENCE, HIDDEN)}, {"src": {0: "batch", 1: "sequence"}}


_BUILDERS = {
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "vit": _vit,
    "encoder_post": lambda _: _encoder(norm_first=False),
    "encoder_pre": lambda _: _encoder(norm_first=True),
}
