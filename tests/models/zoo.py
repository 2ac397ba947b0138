"""The architectures: for each one how to build it, and what its configuration says a fuser should find.

Models of transformers come from configurations, with random weights; so do those of keras, on torch. The others are written here
as their authors write the attention: timm and vit-pytorch need torchvision, whose builds on PyPI do not load beside the CPU build
of torch, and keras-hub needs tensorflow. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

os.environ.setdefault("KERAS_BACKEND", "torch")

LAYERS = 2
HIDDEN = 32
HEADS = 4
VOCABULARY = 101
BATCH, SEQUENCE, TARGET = 2, 7, 5
IMAGE, PATCH = 32, 8

RIM = ("projection", "residual", "norm")

Axes = dict[str, dict[int, str]]
Built = tuple[nn.Module, dict[str, Tensor], Axes]


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        build: attention implementation -> module, example inputs by name, and the dynamic axes of each input.
        blocks: its attention blocks.
        rim: what follows the attention of each block and belongs into the fused node.
        half_rim: the same in float16, where it differs.
        stays: why the rest of the rim, if it has one, stays outside: part of a sentence that the report gives.
        attentions: the implementations of attention it has.
        half: whether it can be had in float16.
        heads, hidden: of each block; 0 where blocks differ.
        fails: settings of exports that cannot be had (a glob of what follows in a cell's name) -> part of the error with which
            the exporter fails, or ONNX Runtime on what it wrote.
    """

    build: Callable[[str], Built]
    blocks: int = LAYERS
    rim: tuple[str, ...] = RIM
    half_rim: tuple[str, ...] | None = None
    stays: str = ""
    attentions: tuple[str, ...] = ("eager", "sdpa")
    half: bool = True
    heads: int = HEADS
    hidden: int = HIDDEN
    fails: Mapping[str, str] = field(default_factory=dict)


def build(architecture: str, attention: str) -> Built:
    """The module (eval mode), example inputs by name, and the dynamic axes of each input.

    Biases and gammas are neither 0 nor 1, so that a fusion that swaps or forgets one of them cannot go unnoticed.
    """
    torch.manual_seed(list(ARCHITECTURES).index(architecture))
    module, inputs, axes = ARCHITECTURES[architecture].build(attention)
    with torch.no_grad():
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                if parameter.dim() == 1:
                    gamma = "Norm" in type(child).__name__ and name == "weight"
                    parameter.normal_(float(gamma), 0.2)
                elif parameter.dim() == 2 and not isinstance(child, nn.Embedding):
                    # Models are initialised so that all scores are nearly zero: then attention is a mean, whatever its scale.
                    parameter.normal_(0.0, HIDDEN**-0.5)
    return module.eval(), inputs, axes


class FirstOutput(nn.Module):
    """A model of transformers that takes inputs by position and returns its first output."""

    def __init__(self, model: nn.Module, names: list[str], **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.fixed = fixed

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False, **self.fixed)[0]


def _model(kind: str, attention: str, inputs: dict[str, Tensor], axes: Axes, settings: Any, **fixed: Any) -> Built:
    """A model of transformers (`kind` as in KindModel and KindConfig)."""
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}Model")._from_config(config, attn_implementation=attention)
    return FirstOutput(model, list(inputs), **fixed), inputs, axes


def _ids(length: int = SEQUENCE) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length))


def _tokens() -> tuple[dict[str, Tensor], Axes]:
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    mask[1, -2:] = 0
    inputs = {"input_ids": _ids(), "attention_mask": mask}
    return inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


# -- transformers --------------------------------------------------------------------------------------------------------

_SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * HIDDEN,
}
# Positions of RoBERTa and its kin begin behind the padding id: the first of them are never looked up.
_TEXT = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 72}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_TEXT, **_SPECIAL, "num_key_value_heads": HEADS // 2}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_IMAGES = {**_SIZES, "image_size": IMAGE, "patch_size": PATCH}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * HIDDEN,
    "decoder_ffn_dim": 2 * HIDDEN,
    **_SPECIAL,
}
_SEQ2SEQ_BLOCKS = 3 * LAYERS
"""The encoder's own, the decoder's own, and the decoder's of the encoder's output."""


def _text(kind: str, settings: Mapping[str, Any], attention: str, **fixed: Any) -> Built:
    inputs, axes = _tokens()
    return _model(kind, attention, inputs, axes, settings, **fixed)


def _images(kind: str, settings: Mapping[str, Any], attention: str, **fixed: Any) -> Built:
    return _model(
        kind, attention, {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}, _BATCH_OF_IMAGES, settings, **fixed
    )


_BATCH_OF_IMAGES: Axes = {"pixel_values": {0: "batch"}}


def _seq2seq(kind: str, settings: Mapping[str, Any], attention: str) -> Built:
    inputs, axes = _tokens()
    inputs["decoder_input_ids"], axes["decoder_input_ids"] = _ids(TARGET), {0: "batch", 1: "target"}
    return _model(kind, attention, inputs, axes, settings, use_cache=False)


def _whisper(attention: str) -> Built:
    settings = {**_SEQ2SEQ, "max_source_positions": 10, "max_target_positions": 64, "num_mel_bins": 8}
    inputs = {"input_features": torch.randn(BATCH, 8, 20), "decoder_input_ids": _ids(TARGET)}
    axes = {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"}}
    return _model("Whisper", attention, inputs, axes, {**settings, "decoder_start_token_id": 1}, use_cache=False)


def _wav2vec2(attention: str) -> Built:
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    inputs = {"input_values": torch.randn(BATCH, 64)}
    return _model(
        "Wav2Vec2", attention, inputs, {"input_values": {0: "batch"}}, {**_SIZES, **convolutions, **positions}
    )


def _patchtst(attention: str) -> Built:
    settings = {
        "num_input_channels": 2,
        "context_length": 32,
        "patch_length": 4,
        "patch_stride": 4,
        "d_model": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": 2 * HIDDEN,
        "do_mask_input": False,
    }
    inputs = {"past_values": torch.randn(BATCH, 32, 2)}
    return _model("PatchTST", attention, inputs, {"past_values": {0: "batch"}}, settings)


def _swin(attention: str) -> Built:
    settings = {
        "image_size": IMAGE,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    return _images("Swin", settings, attention)


# -- torch.nn ------------------------------------------------------------------------------------------------------------

_SEQUENCES: Axes = {"src": {0: "batch", 1: "sequence"}}


def _encoder(_: str, norm_first: bool) -> Built:
    layer = nn.TransformerEncoderLayer(
        HIDDEN, HEADS, 2 * HIDDEN, dropout=0.1, batch_first=True, norm_first=norm_first, activation="gelu"
    )
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return encoder, {"src": torch.randn(BATCH, SEQUENCE, HIDDEN)}, _SEQUENCES


def _transformer(_: str) -> Built:
    inputs = {"src": torch.randn(BATCH, SEQUENCE, HIDDEN), "tgt": torch.randn(BATCH, TARGET, HIDDEN)}
    axes = {**_SEQUENCES, "tgt": {0: "batch", 1: "target"}}
    return nn.Transformer(HIDDEN, HEADS, LAYERS, LAYERS, 2 * HIDDEN, batch_first=True), inputs, axes


class _MultiheadAttention(nn.Module):
    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.need_weights = attention == "eager"

    def forward(self, src: Tensor) -> Tensor:
        return self.attention(src, src, src, need_weights=self.need_weights)[0]


def _multihead_attention(attention: str) -> Built:
    return _MultiheadAttention(attention), {"src": torch.randn(BATCH, SEQUENCE, HIDDEN)}, _SEQUENCES


# -- written as others write it ------------------------------------------------------------------------------------------


def _attend(attention: str, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Softmax attention over the last two axes; `hidden` is true where a key is not to be seen."""
    if attention == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return (scores if hidden is None else scores.masked_fill(hidden, -1e4)).softmax(-1) @ v


def _mlp(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(HIDDEN, 2 * HIDDEN), activation, nn.Dropout(0.1), nn.Linear(2 * HIDDEN, HIDDEN))


class _TimmBlock(nn.Module):
    """timm.models.vision_transformer.Block: one linear layer for query, key and value, taken apart along a new axis."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-6), nn.LayerNorm(HIDDEN, eps=1e-6)
        self.qkv, self.proj, self.mlp = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN), _mlp(nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.attention == "sdpa":
            heads = functional.scaled_dot_product_attention(q, k, v)
        else:
            heads = (q * (c // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(heads.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class _TimmViT(nn.Module):
    def __init__(self, attention: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.positions = nn.Parameter(torch.randn(1, (IMAGE // PATCH) ** 2 + 1, HIDDEN))
        self.blocks = nn.Sequential(*(_TimmBlock(attention) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-6)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.norm(self.blocks(x))


class _EinopsAttention(nn.Module):
    """vit_pytorch.vit.Attention: heads split and merged by einops, the norm inside."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(HIDDEN)
        self.to_qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.to_out = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=HEADS) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        return self.to_out(rearrange(_attend(self.attention, q, k, v), "b h n d -> b n (h d)"))


class _EinopsViT(nn.Module):
    """vit_pytorch.simple_vit: patches cut out by einops."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH**2, HIDDEN)
        self.positions = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2, HIDDEN))
        self.attentions = nn.ModuleList(_EinopsAttention(attention) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(nn.Sequential(nn.LayerNorm(HIDDEN), _mlp(nn.GELU())) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, pixel_values: Tensor) -> Tensor:
        from einops import rearrange

        x = rearrange(pixel_values, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=PATCH, p2=PATCH)
        x = self.patches(x) + self.positions
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = attention(x) + x
            x = mlp(x) + x
        return self.norm(x)


def _own_images(kind: Callable[[str], nn.Module], attention: str) -> Built:
    return kind(attention), {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}, _BATCH_OF_IMAGES


def _keras_encoder(_: str) -> Built:
    """Blocks like those of keras_hub.layers.TransformerEncoder; keras writes attention and dense layers as einsum."""
    import keras

    keras.utils.set_random_seed(0)
    source = keras.Input((SEQUENCE, HIDDEN), batch_size=None)
    x = source
    for _layer in range(LAYERS):
        attended = keras.layers.MultiHeadAttention(HEADS, HIDDEN // HEADS, flash_attention=False)(x, x)
        x = keras.layers.LayerNormalization(epsilon=1e-5)(keras.layers.Add()([x, attended]))
        inner = keras.layers.Dense(2 * HIDDEN, activation="gelu")(x)
        x = keras.layers.LayerNormalization(epsilon=1e-5)(keras.layers.Add()([x, keras.layers.Dense(HIDDEN)(inner)]))
    return keras.Model(source, x), {"src": torch.randn(BATCH, SEQUENCE, HIDDEN)}, {"src": {0: "batch"}}


# -- recommenders --------------------------------------------------------------------------------------------------------


class _ItemEmbedding(nn.Module):
    """Items and their positions, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(72, HIDDEN)

    def forward(self, items: Tensor) -> Tensor:
        return self.items(items) + self.positions(torch.arange(items.shape[1]))


class _SASRec(nn.Module):
    """Self-attentive sequential recommendation: only the query is normalised, padding is zeroed after each layer, causal."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.embedding = _ItemEmbedding()
        self.need_weights = attention == "eager"
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN, eps=1e-8) for _ in range(LAYERS))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(HIDDEN, HEADS, dropout=0.1) for _ in range(LAYERS))
        self.forward_norms = nn.ModuleList(nn.LayerNorm(HIDDEN, eps=1e-8) for _ in range(LAYERS))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Conv1d(HIDDEN, HIDDEN, 1), nn.ReLU(), nn.Conv1d(HIDDEN, HIDDEN, 1)) for _ in range(LAYERS)
        )
        self.last_norm = nn.LayerNorm(HIDDEN, eps=1e-8)

    def forward(self, items: Tensor) -> Tensor:
        x = self.embedding(items) * HIDDEN**0.5
        seen = (items != 0).unsqueeze(-1)
        x = x * seen
        causal = ~torch.tril(torch.ones(items.shape[1], items.shape[1], dtype=torch.bool))
        for index in range(LAYERS):
            x = x.transpose(0, 1)
            query = self.norms[index](x)
            attended, _ = self.attentions[index](query, x, x, attn_mask=causal, need_weights=self.need_weights)
            x = self.forward_norms[index]((query + attended).transpose(0, 1))
            x = (self.forwards[index](x.transpose(1, 2)).transpose(1, 2) + x) * seen
        return self.last_norm(x)


class _SplitHeads(nn.Module):
    """Multi-head attention with a linear layer for each of query, key, value and output."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.linears = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.output = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        b = x.shape[0]
        q, k, v = (linear(x).view(b, -1, HEADS, HIDDEN // HEADS).transpose(1, 2) for linear in self.linears)
        heads = _attend(self.attention, q, k, v, hidden)
        return self.output(heads.transpose(1, 2).contiguous().view(b, -1, HIDDEN))


class _BERT4Rec(nn.Module):
    """Bidirectional: pre-norm blocks, Gelu by tanh, padding hidden from every query."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.embedding = _ItemEmbedding()
        self.attentions = nn.ModuleList(_SplitHeads(attention) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(_mlp(nn.GELU("tanh")) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2 * LAYERS))
        self.output = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, items: Tensor) -> Tensor:
        hidden = (items == 0).unsqueeze(1).repeat(1, items.shape[1], 1).unsqueeze(1)
        x = self.embedding(items)
        for index in range(LAYERS):
            x = x + self.attentions[index](self.norms[2 * index](x), hidden)
            x = x + self.mlps[index](self.norms[2 * index + 1](x))
        return self.output(x)


class _BST(nn.Module):
    """Behaviour sequence transformer: the target item joins the sequence; LeakyReLU; a score by a network over all of it."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.embedding = _ItemEmbedding()
        self.attentions = nn.ModuleList(_SplitHeads(attention) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(_mlp(nn.LeakyReLU()) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2 * LAYERS))
        self.score = nn.Sequential(nn.Linear((SEQUENCE + 1) * HIDDEN, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, items: Tensor, target: Tensor) -> Tensor:
        x = self.embedding(torch.cat((items, target.unsqueeze(1)), dim=1))
        for index in range(LAYERS):
            x = self.norms[2 * index](x + self.attentions[index](x))
            x = self.norms[2 * index + 1](x + self.mlps[index](x))
        return self.score(x.flatten(1)).sigmoid()


def _bst(attention: str) -> Built:
    target = torch.randint(3, VOCABULARY, (BATCH,))
    return _BST(attention), {"items": _ids(), "target": target}, {name: {0: "batch"} for name in ("items", "target")}


class _InteractingLayer(nn.Module):
    """AutoInt: heads are split off into the first axis, scores are not scaled, the residual goes through a matrix."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.query, self.key, self.value, self.residual = (nn.Parameter(torch.empty(HIDDEN, HIDDEN)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        size = HIDDEN // HEADS
        weights = (self.query, self.key, self.value)
        q, k, v = (torch.stack(torch.split(torch.tensordot(x, w, dims=([-1], [0])), size, dim=2)) for w in weights)
        if self.attention == "sdpa":
            heads = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            heads = torch.matmul(torch.einsum("bnik,bnjk->bnij", q, k).softmax(-1), v)
        merged = torch.squeeze(torch.cat(torch.split(heads, 1), dim=-1), dim=0)
        return functional.relu(merged + torch.tensordot(x, self.residual, dims=([-1], [0])))


class _AutoInt(nn.Module):
    def __init__(self, attention: str) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(VOCABULARY, HIDDEN) for _ in range(SEQUENCE))
        self.layers = nn.Sequential(*(_InteractingLayer(attention) for _ in range(LAYERS)))
        self.score = nn.Linear(SEQUENCE * HIDDEN, 1)

    def forward(self, fields: Tensor) -> Tensor:
        embedded = [embedding(fields[:, index]) for index, embedding in enumerate(self.fields)]
        return self.score(self.layers(torch.stack(embedded, dim=1)).flatten(1)).sigmoid()


def _items(kind: Callable[[str], nn.Module], axes: dict[int, str], attention: str) -> Built:
    items = _ids()
    items[1, :2] = 0
    return kind(attention), {"items": items}, {"items": axes}


# -- all of them ---------------------------------------------------------------------------------------------------------


def _of(builder: Callable[..., Built], *arguments: Any, **fixed: Any) -> Callable[[str], Built]:
    return partial(builder, *arguments, **fixed)


def _frozen(builder: Callable[..., Built], *arguments: Any) -> Built:
    """A model without gradients: with a bias that has one, dynamo captures an sdpa that it cannot take apart."""
    module, inputs, axes = builder(*arguments)
    return module.requires_grad_(False), inputs, axes


_EAGER = ("eager",)
_NATIVE = ("native",)
# The script exporter gives sdpa's mask another type than the scores of a float16 model, and all that follows too.
_MIXED = {"script[12][07-9]-sdpa-*-float16": "bound to different types"}
_LAYER_SCALE = "Mul is no part of the pattern here"

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(_of(_text, "Bert", _TEXT)),
    "distilbert": Architecture(
        _of(
            _text,
            "DistilBert",
            {
                "vocab_size": VOCABULARY,
                "dim": HIDDEN,
                "n_layers": LAYERS,
                "n_heads": HEADS,
                "hidden_dim": 2 * HIDDEN,
                "max_position_embeddings": 64,
            },
        )
    ),
    "roberta": Architecture(_of(_text, "Roberta", _TEXT)),
    "vit": Architecture(_of(_images, "ViT", _IMAGES)),
    "gpt2": Architecture(_of(_text, "GPT2", _GPT2, use_cache=False)),
    "encoder_post": Architecture(_of(_encoder, norm_first=False), attentions=_NATIVE),
    "encoder_pre": Architecture(_of(_encoder, norm_first=True), attentions=_NATIVE),
    "albert": Architecture(_of(_text, "Albert", {**_TEXT, "embedding_size": 16}), fails=_MIXED),
    "electra": Architecture(_of(_text, "Electra", {**_TEXT, "embedding_size": 16}), fails=_MIXED),
    "mpnet": Architecture(_of(_text, "MPNet", _TEXT), attentions=_EAGER),
    "deberta_v2": Architecture(
        _of(_text, "DebertaV2", {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        attentions=_EAGER,
    ),
    "modernbert": Architecture(
        _of(_text, "ModernBert", {**_TEXT, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2}), fails=_MIXED
    ),
    "opt": Architecture(
        _of(_text, "OPT", {**_TEXT, "ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN}, use_cache=False),
        fails=_MIXED,
    ),
    "gpt_neox": Architecture(
        _of(_text, "GPTNeoX", _TEXT, use_cache=False),
        rim=("projection", "residual"),
        stays="Add",
        fails=_MIXED,
    ),
    "bloom": Architecture(
        _of(
            _text,
            "Bloom",
            {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
            use_cache=False,
        ),
        attentions=_EAGER,
    ),
    "llama": Architecture(_of(_text, "Llama", _GROUPED, use_cache=False)),
    "qwen2": Architecture(_of(_text, "Qwen2", _GROUPED, use_cache=False)),
    "mistral": Architecture(_of(_text, "Mistral", {**_GROUPED, "sliding_window": 4}, use_cache=False)),
    "gemma": Architecture(
        _of(_text, "Gemma", {**_GROUPED, "head_dim": HIDDEN // HEADS}, use_cache=False),
        fails={"dynamo23-*-float16": "bound to different types"},
    ),
    "phi3": Architecture(_of(_text, "Phi3", _GROUPED, use_cache=False)),
    "t5": Architecture(
        _of(
            _frozen,
            _seq2seq,
            "T5",
            {
                "vocab_size": VOCABULARY,
                "d_model": HIDDEN,
                "d_kv": HIDDEN // HEADS,
                "d_ff": 2 * HIDDEN,
                "num_layers": LAYERS,
                "num_heads": HEADS,
                "decoder_start_token_id": 0,
            },
        ),
        blocks=_SEQ2SEQ_BLOCKS,
        half_rim=("projection", "residual"),  # it clamps the sum in float16
        stays="the pattern",
    ),
    "bart": Architecture(
        _of(_seq2seq, "Bart", {**_SEQ2SEQ, "max_position_embeddings": 64}),
        blocks=_SEQ2SEQ_BLOCKS,
        fails={**_MIXED, "dynamo*-float16": "data-dependent expression"},
    ),
    "whisper": Architecture(_whisper, blocks=_SEQ2SEQ_BLOCKS, fails={"script*": "aten::diff"}),
    "clip_text": Architecture(_of(_text, "CLIPText", {**_TEXT, **_SPECIAL}), fails=_MIXED),
    "clip_vision": Architecture(_of(_images, "CLIPVision", _IMAGES)),
    "siglip": Architecture(_of(_images, "SiglipVision", _IMAGES)),
    "deit": Architecture(_of(_images, "DeiT", _IMAGES)),
    "beit": Architecture(
        _of(_frozen, _images, "Beit", {**_IMAGES, "use_relative_position_bias": True}),
        rim=("projection",),
        stays=_LAYER_SCALE,
    ),
    "dinov2": Architecture(
        _of(_images, "Dinov2", {**_IMAGES, "mlp_ratio": 2}), rim=("projection",), stays=_LAYER_SCALE
    ),
    "swin": Architecture(
        _of(_frozen, _swin),
        blocks=4,
        rim=("projection",),
        stays="pattern",
        heads=0,
        hidden=0,
    ),
    "wav2vec2": Architecture(_wav2vec2),
    "patchtst": Architecture(
        _patchtst,
        rim=("projection", "residual"),
        stays="the pattern",
        fails={"script*": "Incompatible dimensions"},
    ),
    "transformer": Architecture(
        _transformer, blocks=_SEQ2SEQ_BLOCKS, attentions=_NATIVE, fails={"script*": "argument 'is_causal'"}
    ),
    "multihead_attention": Architecture(_multihead_attention, blocks=1, rim=("projection",)),
    "timm_vit": Architecture(_of(_own_images, _TimmViT)),
    "einops_vit": Architecture(_of(_own_images, _EinopsViT)),
    "keras_encoder": Architecture(
        _keras_encoder, attentions=_NATIVE, half=False, fails={"script*-dynamic": "Failed to export a node"}
    ),
    "sasrec": Architecture(_of(_items, _SASRec, {0: "batch"}), fails={"script13-*": "aten::tril"}),
    "bert4rec": Architecture(_of(_items, _BERT4Rec, {0: "batch", 1: "sequence"}), fails=_MIXED),
    "bst": Architecture(_bst),
    "autoint": Architecture(
        lambda attention: (_AutoInt(attention), {"fields": _ids()}, {"fields": {0: "batch"}}),
        rim=("residual",),
        stays="Relu is no part of the pattern here",
    ),
}
