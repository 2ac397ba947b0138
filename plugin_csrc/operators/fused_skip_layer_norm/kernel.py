"""FusedSkipLayerNorm: output = norm(x + bias + skip) over the last axis, in one pass. Its kernel is that of norm_rows."""

from __future__ import annotations

from typing import Any

from onnx_fuse.plugin_csrc.kernels import norm_rows


def launch(
    x: Any,
    skip: Any,
    bias: Any = None,
    gamma: Any = None,
    beta: Any = None,
    *,
    norm: str,
    epsilon: float,
    residual_sum: bool = False,
) -> tuple[Any, Any]:
    """(output, residual_sum or None), both of the shape and type of x [..., H]; every shape is accepted.

    bias, gamma and beta [H] are T or float32. One launch of norm_rows: x of type T, no gate, no lengths, total = residual_sum.
    """
    output = x.new_empty(x.shape)
    total = x.new_empty(x.shape) if residual_sum else None
    norm_rows.launch(x, output, norm=norm, epsilon=epsilon, bias=bias, skip=skip, gamma=gamma, beta=beta, total=total)
    return output, total
