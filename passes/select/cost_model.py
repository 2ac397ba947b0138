"""A model of what TensorRT's kernels cost: which nodes it runs as one kernel, and how long that takes on a GPU.

A kernel takes the longer of moving its bytes and computing its products, and a launch. All constants are here; docs/selection.md
says where the published ones come from. The others are assumptions: nothing of it has been measured.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from onnx_fuse.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A GPU, by its published figures.

    Attributes:
        name, capability: 90 for sm_90.
        multiprocessors: how many it has.
        bandwidth: of its memory, bytes a second.
        float32: operations a second in IEEE float32.
        tf32: dense products of float32 rounded to TF32.
        half: dense products of float16 or bfloat16, summed in float32.
    """

    name: str
    capability: int
    multiprocessors: int
    bandwidth: float
    float32: float
    tf32: float
    half: float


DEVICES = {
    device.name: device
    for device in (
        Device("A100", 80, 108, 2.039e12, 19.5e12, 156e12, 312e12),
        Device("A10", 86, 72, 0.600e12, 31.2e12, 62.5e12, 125e12),
        Device("L4", 89, 58, 0.300e12, 30.3e12, 60e12, 121e12),
        Device("RTX 4090", 89, 128, 1.008e12, 82.6e12, 82.6e12, 165.2e12),
        Device("H100", 90, 132, 3.35e12, 67e12, 494.7e12, 989.4e12),
        Device("H200", 90, 132, 4.8e12, 67e12, 494.7e12, 989.4e12),
        Device("B200", 100, 148, 8.0e12, 75e12, 1100e12, 2250e12),
        Device("RTX 5090", 120, 170, 1.792e12, 104.8e12, 104.8e12, 209.5e12),
    )
}
"""T4 (sm_75) is not among them: the plugins need sm_80."""
DEFAULT_DEVICE = "H100"

COPY_SHARE = 4.3 / 4.8
"""Part of the published bandwidth that a copy of 1 GB reaches, as others measured it on an H200."""

# Assumptions, not measured:
LAUNCH = 2.5e-6
"""Seconds that a kernel takes beside its work: its start, and the tail in which the GPU drains."""
HIGHEST_SHARE = 0.93
"""Part of the bandwidth of a copy that a kernel reaches at best; TensorRT's do."""
PRODUCT_SHARE = 0.7
"""Part of the published rate of products that a kernel reaches whose other instructions do not hold it up; TensorRT's do."""


def _named(operators: str) -> frozenset[str]:
    return frozenset(operators.split())


FREE = _named("Constant ConstantOfShape Dropout Flatten Identity Range Reshape Shape Size Squeeze Unsqueeze")
"""Operators that move nothing: another look at the same bytes, or sizes worked out on the host."""
MATRIX = _named("MatMul Gemm Conv ConvTranspose Einsum")
REDUCTION = _named(
    """ArgMax ArgMin CumSum GroupNormalization InstanceNormalization LayerNormalization LogSoftmax LpNormalization ReduceL1
    RMSNormalization ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Softmax TopK"""
)
GATHER = _named("Gather GatherElements GatherND")
POINTWISE = _named(
    """Abs Add And BatchNormalization Cast CastLike Ceil Celu Clip Concat Cos DequantizeLinear Div Elu Equal Erf Exp Expand Floor
    Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not
    Or PRelu Pad Pow QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Sin Slice Softplus Softsign Split Sqrt Sub Sum Swish
    Tan Tanh ThresholdedRelu Tile Transpose Trilu Where Xor"""
)
"""Operators that TensorRT chains; moves of elements are counted among them, in its favour."""


@dataclass(frozen=True)
class Step:
    """A node as the cost model sees it.

    Attributes:
        kind: "pointwise", "gather", "reduction", "matrix", "attention" (one of a chain that is a kernel), or "other" (by itself).
        reads: value -> bytes read.
        makes: value -> bytes.
        products: multiplications and additions of its matrix products.
        half: whether these are of 16-bit types.
        chain: of "attention": which.
    """

    kind: str
    reads: Mapping[str, int]
    makes: Mapping[str, int]
    products: float = 0.0
    half: bool = False
    chain: int = -1


@dataclass
class Kernel:
    """Steps that run in one launch.

    Attributes:
        kind: as of a step; what was joined by a reduction is one.
        order: place among the kernels; each reads only of earlier ones.
        is_read: whether another kernel reads what it makes.
    """

    kind: str
    order: int
    steps: list[Step] = field(default_factory=list)
    is_read: bool = False


@dataclass(frozen=True)
class Cost:
    """Kernels, bytes they move, and seconds they take."""

    launches: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def beside(self, other: Cost) -> Cost:
        """What this costs more than the other."""
        return Cost(self.launches - other.launches, self.bytes - other.bytes, self.seconds - other.seconds)


_JOINS = {
    # A step joins the kernel of what it reads where that is of one of these kinds.
    "pointwise": ("pointwise", "reduction", "matrix", "gather"),
    "reduction": ("pointwise", "reduction", "gather"),
    "gather": ("pointwise", "gather"),
    "matrix": (),
    "other": (),
}


def kernels(steps: Iterable[Step]) -> list[Kernel]:
    """Which steps (in graph order) TensorRT runs in one kernel.

    Chains of pointwise steps become one, join the reduction they feed and follow it, and follow a product as its epilogue. A
    reduction after a product starts another. Look-ups follow what makes their indices, and those that wait for nothing run
    together. Of several kernels it could join, a step takes the last, so that none waits for itself; chains that nobody
    else reads come along, and look-ups too unless it is a product. What lies around another kind of step stays outside it.
    """
    made_by: dict[str, Kernel] = {}
    chains: dict[int, Kernel] = {}
    lookups: Kernel | None = None
    found: list[Kernel] = []
    for order, step in enumerate(steps):
        sources = list({id(made_by[value]): made_by[value] for value in step.reads if value in made_by}.values())
        last = max(sources, key=lambda item: item.order, default=None)
        kernel = chains.get(step.chain) if step.kind == "attention" else None
        if step.kind != "attention" and last is not None and last.kind in _JOINS[step.kind]:
            kernel = last
        if step.kind == "gather" and not sources and lookups is not None:
            kernel = lookups
        if kernel is None:
            kernel = Kernel(step.kind, order)
            found.append(kernel)
        if step.kind == "gather" and not sources:
            lookups = kernel
        if step.kind == "attention":
            chains[step.chain], kernel.order = kernel, order
        for source in sources:
            if source is kernel:
                continue
            comes_along = step.kind in ("pointwise", "reduction") and source.kind in (
                ("pointwise",) if kernel.kind == "matrix" else ("pointwise", "gather")
            )
            if comes_along and not source.is_read:
                lookups = None if lookups is source else lookups
                kernel.steps += source.steps
                made_by.update((value, kernel) for item in source.steps for value in item.makes)
                found = [item for item in found if item is not source]
            else:
                source.is_read = True
        if step.kind == "reduction":
            kernel.kind = "reduction"
        kernel.steps.append(step)
        made_by.update((value, kernel) for value in step.makes)
    return found


def cost(steps: Iterable[Step], device: Device, is_read_outside: Callable[[str], bool]) -> Cost:
    """What these steps cost; what is neither read here nor outside need not be written."""
    launches, moved, seconds = 0, 0, 0.0
    # What makes no elements is asked for its shape alone.
    found = kernels(step for step in steps if step.kind == "other" or any(step.makes.values()))
    readers: dict[str, set[int]] = {}
    for kernel in found:
        for step in kernel.steps:
            for value in step.reads:
                readers.setdefault(value, set()).add(id(kernel))
    for kernel in found:
        made = {value: size for step in kernel.steps for value, size in step.makes.items()}
        read = {value: size for step in kernel.steps for value, size in step.reads.items() if value not in made}
        written = sum(
            size for value, size in made.items() if is_read_outside(value) or readers.get(value, set()) - {id(kernel)}
        )
        traffic = sum(read.values()) + written
        # TensorRT rounds float32 products to TF32 unless told otherwise.
        compute = sum(
            step.products / (PRODUCT_SHARE * (device.half if step.half else device.tf32)) for step in kernel.steps
        )
        launches, moved = launches + 1, moved + traffic
        seconds += LAUNCH + max(traffic / (HIGHEST_SHARE * COPY_SHARE * device.bandwidth), compute)
    return Cost(launches, moved, seconds)


def device_for(names: Iterable[str]) -> Device | None:
    """The first of these devices that the table has, as `device_of` reads their names; None if it has none of them."""
    for name in names:
        with contextlib.suppress(UsageError):
            return device_of(name)
    return None


def device_of(name: str) -> Device:
    """The device of a name: that of the table, what a driver calls it ("NVIDIA H100 80GB HBM3"), or an architecture ("sm_90").

    Raises:
        UsageError: the table has none of that name.
    """
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    for key, device in sorted(DEVICES.items(), key=lambda item: -len(item[0])):
        if re.sub(r"[^a-z0-9]", "", key.lower()) in wanted:
            return device
    for device in DEVICES.values():
        if wanted == f"sm{device.capability}":
            return device
    raise UsageError(f"Nothing is known of the speed of {name!r}.", f"The devices are: {', '.join(DEVICES)}.")
