"""Real architectures, exported with torch from configurations with random weights.

Every model is small (4 layers, hidden size 64, 4 heads) and gets biases and gammas that are neither 0 nor 1, so that a fusion
that swaps or forgets one of them cannot go unnoticed. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
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


def matrix() -> list[Export]:
    """Every architecture x exporter x attention implementation x static/dynamic shapes."""
    cells = [
        Export(architecture, exporter, opset, attention, dynamic)
        for architecture, (exporter, opset), attention, dynamic in itertools.product(
            TRANSFORMERS, EXPORTERS, ("eager", "sdpa"), (False, True)
        )
    ]
    cells += [
        Export(architecture, exporter, opset, "native", dynamic)
        for architecture, (exporter, opset), dynamic in itertools.product(TORCH, EXPORTERS, (False, True))
    ]
    return cells


def pairwise(cells: list[Export]) -> list[Export]:
    """A small sample in which every pair of settings that occurs in `cells` occurs at least once (greedy, deterministic)."""

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
        best = max(cells, key=lambda cell: (len(pairs(cell) & missing), -cells.index(cell)))
        sample.append(best)
        missing -= pairs(best)
    return sorted(sample, key=cells.index)


def build(architecture: str, attention: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """The module (eval mode), example inputs by name, and the dynamic axes of each input."""
    torch.manual_seed(len(architecture))
    module, inputs, axes = _BUILDERS[architecture](attention)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return module.eval(), inputs, axes


def export(cell: Export, path: Path) -> Path:
    """Exports one cell to `path`."""
    module, inputs, axes = build(cell.architecture, cell.attention)
    kwargs: dict[str, Any] = {}
    if cell.exporter == "dynamo":
        kwargs["dynamo"] = True
        if cell.dynamic:
            dims: dict[str, Any] = {}
            kwargs["dynamic_shapes"] = tuple(
                {axis: dims.setdefault(label, torch.export.Dim(label, min=1, max=64)) for axis, label in axes[name].items()}
                for name in inputs
            )
    else:
        kwargs["dynamo"] = False
        if cell.dynamic:
            kwargs["dynamic_axes"] = axes
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_exporter():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            opset_version=cell.opset,
            verbose=False,
            **kwargs,
        )
    return path


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


class _Transformer(torch.nn.Module):
    """A transformers model that takes positional tensors and returns its first output."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]


def _text_inputs() -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    ids = torch.randint(2, VOCABULARY, (BATCH, SEQUENCE))
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    mask[1, -2:] = 0
    axes = {0: "batch", 1: "sequence"}
    return {"input_ids": ids, "attention_mask": mask}, {"input_ids": dict(axes), "attention_mask": dict(axes)}


class _TextModel(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.fixed = fixed

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False, **self.fixed)[0]


def _bert(attention: str) -> tuple[torch.nn.Module, Any, Any]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    return _TextModel(BertModel(config)), *_text_inputs()


def _roberta(attention: str) -> tuple[torch.nn.Module, Any, Any]:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=72,
        attn_implementation=attention,
    )
    return _TextModel(RobertaModel(config)), *_text_inputs()


def _distilbert(attention: str) -> tuple[torch.nn.Module, Any, Any]:
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
    return _TextModel(DistilBertModel(config)), *_text_inputs()


def _gpt2(attention: str) -> tuple[torch.nn.Module, Any, Any]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=64, attn_implementation=attention
    )
    return _TextModel(GPT2Model(config), use_cache=False), *_text_inputs()


class _VisionModel(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, return_dict=False)[0]


def _vit(attention: str) -> tuple[torch.nn.Module, Any, Any]:
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


class _Encoder(torch.nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(
            HIDDEN, HEADS, 2 * HIDDEN, dropout=0.1, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


def _encoder(norm_first: bool) -> tuple[torch.nn.Module, Any, Any]:
    return _Encoder(norm_first), {"x": torch.randn(BATCH, SEQUENCE, HIDDEN)}, {"x": {0: "batch", 1: "sequence"}}


_BUILDERS = {
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "vit": _vit,
    "encoder_post": lambda _: _encoder(norm_first=False),
    "encoder_pre": lambda _: _encoder(norm_first=True),
}
