"""The sum of embedding look-ups with the LayerNorm after it: BERT, RoBERTa, DistilBERT, GPT-2, SASRec, BERT4Rec."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Constant, Optional, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.norm import affine_problem, norm_of

MOST_TABLES = 8
"""That the operator's kernel takes."""
_MOST_SUMMANDS = 32
"""Up to here a sum is read at all: more than `MOST_TABLES` are refused in words."""


@pattern
def embed_layer_norm(op, table, ids, rows: Constant, gamma: Optional, beta: Optional, epsilon: Attribute):  # type: ignore[no-untyped-def]
    look_up = op.Gather(op.shape(table, "_ H"), ids, axis=0)
    # An exporter that knows the positions has looked them up already: a constant [1, S, H].
    term = op.any_of(look_up, op.shape(rows, "1 _ H"))
    total = op.named("total", op.tree("Add", term, least=1, most=_MOST_SUMMANDS, count="num_tables"))
    return op.any_of(
        op.named("layer", op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=epsilon)),
        op.named("rms", op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)),
    )


@embed_layer_norm.require
def there_are_not_too_many_tables(match: Match, view: View) -> str | None:
    count = match["num_tables"]
    return None if count <= MOST_TABLES else f"{count} look-ups are summed, the operator takes {MOST_TABLES} tables"


@embed_layer_norm.require
def looks_something_up(match: Match, view: View) -> str | None:
    if not any(f"ids_{number}" in match for number in range(1, match["num_tables"] + 1)):
        return "nothing is looked up"
    return None


@embed_layer_norm.require
def ids_make_rows(match: Match, view: View) -> str | None:
    total = view.shape(match["total"])
    if total is None or len(total) != 3:
        shape = "unknown" if total is None else f"[{', '.join(map(str, total))}]"
        return f"the sum {match['total']} has shape {shape}, pattern wants [B, S, H]"
    whole = False
    for number in range(1, match["num_tables"] + 1):
        ids = match.get(f"ids_{number}")
        if ids is None:
            continue
        found = view.shape(ids)
        rows = (1, *found) if found is not None and len(found) == 1 else found  # [S] is [1, S]
        if rows is None or len(rows) != 2 or (rows[1] == 1 != total[1]) or not view.broadcasts_to(ids, total[:2]):
            named = "unknown" if found is None else f"[{', '.join(map(str, found))}]"
            return f"the ids {ids} have shape {named}, pattern wants [{total[0]} or 1, {total[1]}]"
        whole = whole or rows[0] == total[0]
    return None if whole else "no ids have the batch axis of the sum"


@embed_layer_norm.require
def affine_spans_the_last_axis(match: Match, view: View) -> str | None:
    return affine_problem(match, view, match["total"])


def embed_body(
    op: Body, gamma: Any, beta: Any, num_tables: Any, norm: str, epsilon: Any, tables: int, **pairs: str
) -> Any:
    """Sum of table_k[ids_k], each row in float32, in the listed order; then the norm."""
    total = None
    for number in range(1, tables + 1):
        rows = op.float32(op.Gather(pairs[f"table_{number}"], pairs[f"ids_{number}"], axis=0))
        total = rows if total is None else op.Add(total, rows)
    normed = op.normalise(str(total), norm, gamma, beta, epsilon)
    return op.like(normed, pairs["table_1"]), op.like(str(total), pairs["table_1"])


DECLARATION = declare(
    "ids_*: int32|int64 [1|B, 1|S] # as many pairs as `num_tables` says",
    "table_*: T|float32 [V*, H] # T is the type of the first; V may be another one for each",
    "gamma?: T|float32 [H]",
    "beta?: T|float32 [H]",
    "-> output: T [B, S, H]",
    "-> embedding_sum?: T [B, S, H] # the sum before the norm",
)

FusedEmbedLayerNorm = FusedOp.declared(
    "FusedEmbedLayerNorm",
    DECLARATION,
    attributes=("num_tables", "norm", "epsilon"),
    body=embed_body,
    structure=lambda attributes: {"tables": attributes["num_tables"]},
)


def build(match: Match, view: View) -> Fused:
    inputs: dict[str, str | None] = {}
    first = view.array(np.zeros(1, dtype=np.int64), match.root.outputs[0])
    for number in range(1, match["num_tables"] + 1):
        rows = match.get(f"rows_{number}")
        if rows is None:
            ids = match[f"ids_{number}"]
            if view.rank(ids) == 1:
                ids = view.add("Unsqueeze", [ids, first], like=match.root)
            inputs[f"ids_{number}"], inputs[f"table_{number}"] = ids, match[f"table_{number}"]
            continue
        length = (view.shape(rows) or (1, 0))[1]
        inputs[f"ids_{number}"] = view.array(np.arange(length, dtype=np.int64)[None], rows)
        inputs[f"table_{number}"] = view.add("Squeeze", [rows, first], like=match.root)
    attributes = {
        "num_tables": match["num_tables"],
        "norm": norm_of(match),
        "epsilon": float(match["epsilon"]),
    }
    inputs.update(gamma=match.get("gamma"), beta=match.get("beta"))
    return Fused(inputs, {"output": match.root.outputs[0]}, attributes, {"embedding_sum": match["total"]}, ("norm",))


FUSION = Fusion(
    name="FusedEmbedLayerNorm",
    pattern=embed_layer_norm,
    operator=FusedEmbedLayerNorm,
    build=build,
    summary="sum of embedding look-ups (words, positions, token types, ...) with the LayerNorm/RMSNorm after it",
    anchor="Gather",
)
