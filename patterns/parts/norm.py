"""What every fusion that ends in a LayerNorm or RMSNorm needs to ask of it."""

from __future__ import annotations

from onnx_fuse.patterns.language.interface import Match, View


def affine_problem(match: Match, view: View, value: str) -> str | None:
    """Why gamma or beta is not one vector over the last axis of `value`; None where both are, or are absent."""
    whole = view.shape(value)
    for name, what in (("gamma", "scale"), ("beta", "shift")):
        if name not in match:
            continue
        shape = view.shape(match[name])
        if whole is None or shape is None or len(shape) != 1 or shape[0] != whole[-1]:
            found = "unknown" if shape is None else f"[{', '.join(map(str, shape))}]"
            return f"the {what} {match[name]} has shape {found}, pattern wants [{whole[-1] if whole else '?'}]"
    return None


def norm_of(match: Match) -> str:
    """The attribute `norm` of a match whose alternatives are named "layer" and "rms"."""
    return "layer" if "layer" in match else "rms" if "rms" in match else "none"
