"""What the compiled kernels cost, told by their machine code: no GPU is needed, and nothing is measured.

    python benchmarks/kernel_costs.py                                       # all operators, sm_80 and sm_90
    python benchmarks/kernel_costs.py --operators hstu_hierarchical_attention --print

For each variant and architecture: registers, stack, shared memory, resident warps, tensor instructions, widths of loads and stores,
and the instructions of the main loop for one score or element. For each case of `benchmarks/kernels.py`: bytes, products,
launches, waves, and the share of the limit that the model of `passes/select/roofline.py` predicts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, and not this folder: see kernels.py

from benchmarks import common
from onnx_fuse.passes.files import staging
from onnx_fuse.passes.select import cost_model, roofline
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.versions import installed_versions

RESULT = common.RESULTS / "kernel_costs.json"
ARCHITECTURES = (80, 90)
DEVICE = "H200"
COPY, MATRIX = 4.3e12, 790e12
"""Of an H200: bytes a second of a copy of 1 GB, and operations a second of a large bfloat16 product, as others measured them."""


# -- variants ------------------------------------------------------------------------------------------------------------


def units(variant: Variant) -> tuple[str, float]:
    """(what the instructions of the main loop are counted for, how many a block handles once through it)."""
    constants, name = variant.constants, variant.function.__name__
    if "COLUMNS" in constants and "SIZE" in constants:
        return "score", constants["ROWS"] * constants["COLUMNS"]
    rows = constants.get("ROWS", constants.get("SAMPLES", 1))
    if name in ("linear", "interaction_triton_fast", "sequence_cooccurrence", "hierarchical_sequence_fusion"):
        return "tensor instruction", 0
    return "element", rows * constants["BLOCK"] * constants.get("PARTS", 1)


def cost(variant: Variant, architecture: int, threads: int, shared: int, cubin: bytes) -> dict[str, Any]:
    """What the machine code of a variant tells.

    "main" is about the main loop, or the whole kernel where it has no loop: instructions of its shortest and longest way, and
    special ones on the shortest, of a thread, for one `unit`; bytes of local memory that it touches. "rim" has the ways of the
    other loops with the same products: those over the diagonal and the end of the keys.
    """
    from onnx_fuse.runtime.plugins import machine_code

    code = machine_code.read(cubin)
    loop = code.main_loop()
    shortest, longest = (loop.shortest, loop.longest) if loop else (code.longest, code.longest)
    unit, handled = units(variant)
    tensor = sum(item.is_tensor for item in longest)
    if unit == "tensor instruction" and not tensor:
        unit, handled = "way", 0  # float32: its products are plain instructions
    work = loop.products if loop else 0
    if unit == "score" and work:  # the compiler may write several steps of a loop out
        handled *= max(1, round(work * (threads // 32) / (4 * variant.constants["SIZE"] * handled)))
    share = handled / threads if handled else max(tensor, 1)
    rim_share = share * variant.constants["RIM"] / variant.constants["COLUMNS"] if "RIM" in variant.constants else share
    blocks = roofline.resident_blocks(architecture, threads, code.registers, shared)
    special = sum(item.is_special for item in shortest)
    rims = [item for item in code.innermost(lambda each: each.is_tensor) if item is not loop]
    return {
        "variant": variant.name,
        "architecture": architecture,
        "registers": code.registers,
        "stack": code.stack,
        "spills": sum(item.name in machine_code.LOCAL for item in code.instructions),
        "shared": shared,
        "threads": threads,
        "resident_blocks": blocks,
        "resident_warps": blocks * threads // 32,
        "instructions": len(code.instructions),
        "tensor": kinds(code.instructions),
        "loads": widths(code.instructions, (*machine_code.LOADS, *machine_code.ASYNCHRONOUS)),
        "stores": widths(code.instructions, machine_code.STORES),
        "tma": sum(item.name in machine_code.TMA for item in code.instructions),
        "main": {
            "unit": unit,
            "is_loop": loop is not None,
            "shortest": round(len(shortest) / share, 2),
            "longest": round(len(longest) / share, 2),
            "special": round(special / share, 2),
            "local": sum(item.name in machine_code.LOCAL for item in longest),
            "loads": widths(longest, (*machine_code.LOADS, *machine_code.ASYNCHRONOUS)),
            "stores": widths(longest, machine_code.STORES),
        },
        "rim": [[round(len(way) / rim_share, 2) for way in (item.shortest, item.longest)] for item in rims],
        "share_of_products": roofline.share_of_products(architecture, work, len(shortest), special) if work else None,
    }


def remembered(variant: Variant, architecture: int, threads: int, shared: int, cubin: bytes) -> dict[str, Any]:
    """`cost`, read once for each machine code and each state of the reader."""
    from onnx_fuse.runtime.plugins import machine_code

    readers = [Path(__file__), Path(machine_code.__file__), Path(roofline.__file__)]
    facts = [repr((variant.name, dict(variant.constants), shared)).encode(), *(path.read_bytes() for path in readers)]
    key = hashlib.sha256(b"".join([*facts, cubin])).hexdigest()
    path = common.ROOT / ".cache" / "kernel_costs" / f"{key}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_file(path, json.dumps(cost(variant, architecture, threads, shared, cubin)).encode())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def kinds(instructions: Iterable[Any]) -> str:
    """ "wgmma", "mma", "tcgen05" or "": how the products are computed."""
    names = {item.name for item in instructions if item.is_tensor}
    if any(name.startswith("UTC") for name in names):
        return "tcgen05"
    return "wgmma" if any(name.endswith("GMMA") for name in names) else "mma" if names else ""


def widths(instructions: Iterable[Any], names: Sequence[str]) -> dict[str, int]:
    """Bytes for each thread -> how many instructions of these names move so many."""
    found = Counter(item.width for item in instructions if item.name in names)
    return {str(width): count for width, count in sorted(found.items(), reverse=True)}


def costs(
    wanted: Sequence[tuple[str, Variant]],
    architectures: Sequence[int],
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """`cost` of each of these variants (of a module) on each architecture. Compiles what has not been compiled."""
    from onnx_fuse.runtime.plugins import aot

    kernels = aot.compile_variants(wanted, architectures, progress=progress)
    variants = {variant.name: variant for _, variant in wanted}
    images = [(variants[kernel.name], image) for kernel in kernels for image in kernel.images if not image.ptx]

    def told(each: tuple[Variant, aot.Image]) -> dict[str, Any]:
        variant, image = each
        return remembered(variant, image.architecture, image.threads, image.shared, zlib.decompress(image.packed))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it waits for nvdisasm
        return list(pool.map(told, images))


def named(operators: Sequence[str] | None) -> list[tuple[str, Variant]]:
    """Variants, each with its module, whose names start with one of these operators' names, or all."""
    from onnx_fuse.runtime.plugins import aot

    return [
        (module, variant)
        for module in aot.kernel_modules()
        for variant in aot.variants(module)
        if operators is None or any(variant.name.startswith(f"{name}.") for name in operators)
    ]


# -- launches ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """A kernel that an operator starts: its variant, grid, and arguments by name (tensors without data)."""

    variant: Variant
    programs: int
    arguments: Mapping[str, Any]

    def bytes(self, looked_up: int) -> int:
        """What it reads and writes at least; of a table `looked_up` rows."""
        tensors = {id(item): (name, item) for name, item in self.arguments.items() if hasattr(item, "element_size")}
        moved = 0
        for name, item in tensors.values():
            count = item.numel()
            if name.startswith("table_"):
                count = min(count, looked_up * item.shape[-1])
            moved += count * item.element_size()
        return moved


def launches(case: Any, dtype: str) -> list[Launch]:
    """What the operator of a case of `kernels.py` starts, by its own `launch` on tensors without data."""
    import torch

    from onnx_fuse.plugin_csrc.operators import catalogue

    found: list[Launch] = []

    def record(chosen: Variant, programs: int, *arguments: Any) -> None:
        found.append(Launch(chosen, programs, dict(zip(chosen.signature, arguments, strict=True))))

    inputs = {
        name: torch.empty(case.shape(dims), dtype=getattr(torch, case.type_of(name, dtype)), device="meta")
        for name, dims in case.inputs.items()
    }
    before = {module: module.start for module in catalogue.MODULES}
    for module in before:
        module.start = record
    try:
        _started(case, inputs)
    finally:
        for module, start in before.items():
            module.start = start
    return found


def _started(case: Any, inputs: Mapping[str, Any]) -> None:
    """Calls the `launch` of an operator with the inputs and attributes of its node."""
    import importlib

    folder = {name.replace("_", ""): name for name in _folders()}[case.operator.lower()]
    launch = importlib.import_module(f"onnx_fuse.plugin_csrc.operators.{folder}.kernel").launch
    given = dict(case.attributes)
    if case.operator in ("HSTUHierarchicalAttention", "FusedAttentionLayerNorm"):
        given["architecture"] = cost_model.DEVICES[DEVICE].capability
    if case.operator == "FusedSwish":
        launch(inputs["x"], given["beta"])
    elif case.operator == "FusedEmbedLayerNorm":
        pairs = [(inputs[f"ids_{slot}"], inputs[f"table_{slot}"]) for slot in range(1, given.pop("num_tables") + 1)]
        launch(pairs, inputs["gamma"], inputs["beta"], **given)
    elif case.operator == "FMInteraction":
        launch(inputs["E"], reduce=bool(given["reduce"]))
    elif case.operator == "InteractionTritonFast":
        launch([inputs["E"]], "stacked", **given, programs=8 * cost_model.DEVICES[DEVICE].multiprocessors)
    elif case.operator == "SequenceRecommendationInteraction":
        launch(**inputs, outputs=tuple(case.outputs), **given)
    else:
        launch(**inputs, **given)


def _folders() -> list[str]:
    from onnx_fuse.plugin_csrc import operators

    return [path.parent.name for place in operators.__path__ for path in Path(place).glob("*/kernel.py")]


def serial_loads(launch: Launch) -> int:
    """Loads of a block that wait for one another, as the kernels are written; those of a loop wait unless they are pipelined."""
    name, constants, given = launch.variant.function.__name__, launch.variant.constants, launch.arguments
    if name == "fused_embed_layer_norm":
        return 2 * int(given["count"])  # ids, then rows, table by table
    if name == "embed_rows":
        return 2 * math.ceil(given["count"] / 3)  # all ids, then all rows, of 3 tables
    if name == "fm_interaction":
        return math.ceil(given["features"] / 8) * math.ceil(given["size"] / constants["BLOCK"])  # 8 features at once
    if name == "hierarchical_sequence_fusion":
        reach = max(*(int(given[f"radius_{slot}"]) for slot in range(1, 5)), 0)
        return math.ceil(given["width"] / constants["BLOCK"]) * (2 + (math.ceil((2 * reach + 1) / 4) if reach else 0))
    if name == "sequence_interests":
        return math.ceil(given["length"] / constants["ROWS"]) * (3 if given["mask_kind"] else 1)
    if name == "norm_rows":  # x, bias, gate and skip at once, but for a skip of float32 beside T
        once = 2 if given["skip_kind"] == 2 else 1
        steps = 1 if constants["WHOLE"] else 1 + math.ceil(given["width"] / constants["BLOCK"])
        return steps * once + (1 if given["lengths_kind"] else 0)
    return 1


def tiles(launch: Launch) -> int:
    """Pieces that its blocks make; more than blocks where these stay and take one after the other."""
    if launch.variant.function.__name__ == "interaction_triton_fast":
        return math.ceil(launch.arguments["batch"] / launch.variant.constants["SAMPLES"])
    return launch.programs


def products(case: Any, launch: Launch) -> float:
    """Multiplications and additions of its matrix products."""
    given = launch.arguments
    if launch.variant.function.__name__ == "linear":
        return 2.0 * given["rows"] * given["inner"] * given["width"]
    if launch.variant.function.__name__ == "norm_rows" or "interests" in launch.variant.name:
        return 0.0
    behind = [item for item in launches(case, "bfloat16") if item.variant.function.__name__ == "linear"]
    whole = float(case.flops(case.sizes))
    return whole if launch.variant.name.startswith("linear") else whole - sum(products(case, item) for item in behind)


def tiles_of_scores(launch: Launch) -> tuple[int, int]:
    """(tiles of an attention kernel in which every key counts, tiles with the diagonal or the end), of all its blocks."""
    given, constants = launch.arguments, launch.variant.constants
    rows, columns = constants["ROWS"], constants["COLUMNS"]
    queries = given.get("length", given.get("queries"))
    keys = given.get("length", given.get("keys"))
    full = rim = 0
    for first in range(0, queries, rows):
        end = min(keys, first + rows) if given.get("causal") else keys
        whole = min(end, first if given.get("causal") else end) // columns
        full += whole
        rim += math.ceil(end / columns) - whole
    blocks = launch.programs // math.ceil(queries / rows)
    return full * blocks, rim * blocks


def seconds_of_products(case: Any, launch: Launch, row: Mapping[str, Any], architecture: int) -> float:
    """How long its products take, all blocks together: whole tiles, and each at the share that its loop leaves."""
    if not row["share_of_products"]:
        return 0.0
    if row["main"]["unit"] != "score" or "projected" in launch.variant.name:
        return products(case, launch) / (row["share_of_products"] * MATRIX)
    main, constants = row["main"], launch.variant.constants
    instructions = (main["shortest"], row["rim"][0][0] if row["rim"] else main["shortest"])
    seconds = 0.0
    for count, of_a_score in zip(tiles_of_scores(launch), instructions, strict=True):
        work = 4.0 * constants["SIZE"] * constants["ROWS"] * constants["COLUMNS"] * count
        share = roofline.share_of_products(architecture, 4 * 32 * constants["SIZE"], of_a_score, main["special"])
        seconds += work / (share * MATRIX)
    return seconds


def predicted(case: Any, rows: Mapping[tuple[str, int], Mapping[str, Any]], architecture: int) -> dict[str, Any]:
    """The roofline of a case on a device of this architecture, in bfloat16."""
    dtype, device = "bfloat16", cost_model.DEVICES[DEVICE]
    rates = {
        "copy_bytes_per_second": COPY,
        "matrix_flops_per_second": {dtype: MATRIX},
        "launch_seconds": cost_model.LAUNCH,
    }
    limit, by = case.limit(dtype, rates)
    looked_up = max((count(case.sizes) for count in case.gathered.values()), default=0)
    found = []
    for launch in launches(case, dtype):
        row = rows[launch.variant.name, architecture]
        moved, work = launch.bytes(looked_up), products(case, launch)
        resident = min(float(row["resident_blocks"]), launch.programs / device.multiprocessors)
        bandwidth = roofline.share_of_bandwidth(resident, moved / tiles(launch), serial_loads(launch))
        if work and row["share_of_products"]:
            bandwidth = roofline.HIGHEST_SHARE  # keys and values are loaded ahead
        waves = launch.programs / (row["resident_blocks"] * device.multiprocessors)
        seconds = {
            "memory": moved / (bandwidth * COPY),
            "products": seconds_of_products(case, launch, row, architecture) * (math.ceil(waves) / waves),
            "launch": cost_model.LAUNCH,
        }
        what = max(seconds, key=lambda name: seconds[name])
        found.append(
            {
                "variant": launch.variant.name,
                "programs": launch.programs,
                "waves": round(waves, 2),
                "bytes": moved,
                "products": work,
                "serial_loads": serial_loads(launch),
                "share_of_bandwidth": round(bandwidth, 3),
                "limited_by": what,
                "seconds": cost_model.LAUNCH + max(seconds["memory"], seconds["products"]),
            }
        )
    total = sum(item["seconds"] for item in found)
    return {
        "case": case.name,
        "operator": case.operator,
        "dtype": dtype,
        "bytes": case.bytes(dtype),
        "products": case.flops(case.sizes),
        "limited_by": by,
        "limit_seconds": limit,
        "predicted_seconds": total,
        "predicted_share": round(limit / total, 3),
        "launches": found,
    }


# -- tables --------------------------------------------------------------------------------------------------------------


def table(content: Mapping[str, Any], *, dtype: str = "bf16", architecture: int = 90) -> str:
    """The variants of one type on one architecture, and the cases, in Markdown."""
    rows = [row for row in content["variants"] if f".{dtype}" in row["variant"] and row["architecture"] == architecture]
    lines = [
        f"Variants for {dtype} on sm_{architecture}, by {content['versions']['triton']} of Triton:",
        "",
        "| variant | of | instructions | special | rim | registers | stack | shared KB | warps | products | loads | stores |"
        " at best |",
        "| --- | --- " + "| ---: " * 7 + "| --- " * 3 + "| ---: |",
    ]
    for row in rows:
        main = row["main"]
        rim = " ".join(span(*each) for each in row["rim"])
        at_best = "" if row["share_of_products"] is None else f"{row['share_of_products']:.0%}"
        cells = [
            f"`{row['variant']}`",
            main["unit"] if main["is_loop"] else f"{main['unit']}, no loop",
            span(main["shortest"], main["longest"]) + (" (local memory)" if main["local"] else ""),
            f"{main['special']:g}",
            rim,
            str(row["registers"]),
            str(row["stack"]),
            f"{row['shared'] / 1024:.0f}",
            str(row["resident_warps"]),
            row["tensor"],
            "TMA " * bool(row["tma"]) + listed(row["loads"]),
            listed(row["stores"]),
            at_best,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"The cases of `benchmarks/kernels.py` in bfloat16, as the model predicts them for an {DEVICE}:",
        "",
        "| case | MB | GFLOP | launches | waves | limited by | limit us | predicted us | of the limit |",
        "| --- " + "| ---: " * 4 + "| --- " + "| ---: " * 3 + "|",
    ]
    for row in content["cases"]:
        waves = ", ".join(f"{item['waves']:g}" for item in row["launches"])
        cells = [
            row["case"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['products'] / 1e9:.1f}",
            str(len(row["launches"])),
            waves,
            row["limited_by"],
            f"{row['limit_seconds'] * 1e6:.1f}",
            f"{row['predicted_seconds'] * 1e6:.1f}",
            f"{row['predicted_share']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(shortest: float, longest: float) -> str:
    return f"{shortest:g}" if shortest == longest else f"{shortest:g} to {longest:g}"


def listed(found: Mapping[str, int]) -> str:
    """Widths in bytes with their counts, the widest first."""
    return ", ".join(f"{count} x {width}" for width, count in found.items())


def report(
    operators: Sequence[str] | None,
    architectures: Sequence[int],
    before: Sequence[Mapping[str, Any]],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The costs of the variants of some operators (or all), with those of the others from `before`, and the roofline of every case
    whose variants are among them."""
    from benchmarks import kernels

    rows = {(row["variant"], row["architecture"]): row for row in before}
    rows |= {(row["variant"], row["architecture"]): row for row in costs(named(operators), architectures, progress)}
    places = [(variant.name, each) for _, variant in named(None) for each in sorted(variant.architectures)]
    architecture = cost_model.DEVICES[DEVICE].capability
    cases = [
        predicted(case, rows, architecture)
        for case in kernels.CASES
        if all((launch.variant.name, architecture) in rows for launch in launches(case, "bfloat16"))
    ]
    return {
        "versions": installed_versions(["onnx-fuse", "triton"]),
        "assumed": {"device": DEVICE, "copy_bytes_per_second": COPY, "matrix_flops_per_second": MATRIX},
        "cases": cases,
        "variants": [rows[place] for place in places if place in rows],
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--operators",
        nargs="+",
        help="only variants whose names start so, such as norm_rows; the result file keeps what it has of others",
    )
    arguments.add_argument("--architectures", nargs="+", type=int, default=ARCHITECTURES, help="compute capabilities")
    arguments.add_argument("--dtype", default="bf16", help="the type whose variants --print shows")
    arguments.add_argument("--print", action="store_true", help="show the tables, and write no file")
    arguments.add_argument("--out", type=Path, default=RESULT, help="the result file")
    given = arguments.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", str(common.ROOT / ".cache" / "triton"))
    kept = json.loads(given.out.read_text())["variants"] if given.operators and given.out.is_file() else []
    before = [] if given.print else kept
    content = report(given.operators, given.architectures, before, lambda text: print(text, file=sys.stderr))
    if given.print:
        for architecture in given.architectures:
            print(table(content, dtype=given.dtype, architecture=architecture))
    else:
        common.write_json(given.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
