"""FusedLinearLayerNorm: norm(x weight + bias) over the last axis. Its kernel is that of linear."""

from __future__ import annotations

from typing import Any

from onnx_fuse.plugin_csrc.kernels import linear


def launch(
    x: Any, weight: Any, bias: Any = None, gamma: Any = None, beta: Any = None, *, norm: str, epsilon: float
) -> Any:
    """output [..., H] of the type of x [..., K] and weight [K, H]; bias, gamma and beta [H] are T or float32.

    linear without residual and without total: every shape is accepted.
    """
    return linear.launch(x, weight, norm=norm, epsilon=epsilon, bias=bias, gamma=gamma, beta=beta)[0]
