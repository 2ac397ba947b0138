"""What the compiled kernels cost, told by their machine code: no GPU is needed, and nothing is measured.

    python benchmarks/kernel_costs.py                                       # all operators, sm_80 and sm_90
    python benchmarks/kernel_costs.py --operators hstu_hierarchical_attention --print

For each variant and architecture: registers, stack, shared memory, resident warps, tensor instructions, widths of loads and stores,
and the instructions of the main loop for one score or element. For each case of `benchmarks/kernel_cases.py`: bytes, products,
launches, waves, and the share of the limit that the model of `passes/select/roofline.py` predicts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, and not this folder: see kernels.py

from benchmarks import common
from benchmarks.kernel_cases import CASES, Case
from onnx_fuse.passes.files import staging
from onnx_fuse.passes.select import cost_model, kernel_table, plugin_facts, roofline
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.versions import installed_versions

RESULT = common.RESULTS / "kernel_costs.json"
ARCHITECTURES = (80, 90)
DEVICE = "H200"
MATRIX_SHARE = 790 / 989.4
"""Part of the published rate that a large bfloat16 product reaches, as others measured it on an H200."""


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
    special ones on the shortest, of a thread, for one `unit`; multiplications and additions of its matrix products, of a warp;
    bytes of local memory that it touches. "rim" has the ways of the
    other loops with the same products: those over the diagonal and the end of the keys.
    """
    from onnx_fuse.runtime.plugins import machine_code

    code = machine_code.read(cubin)
    loop = code.main_loop()
    shortest, longest = (loop.shortest, loop.longest) if loop else (code.longest, code.longest)
    unit, handled = units(variant)
    tensor = sum(item.is_tensor for item in longest)
    work = loop.products if loop else 0
    is_float32 = not tensor and unit != "element"
    if is_float32:  # its products are plain instructions
        unit = "way" if unit == "tensor instruction" else unit
        work = 2 * 32 * sum(item.name == "FFMA" for item in longest)
    if unit == "score" and tensor:  # the compiler may write several steps of a loop out
        handled *= max(1, round(work * (threads // 32) / (4 * variant.constants["SIZE"] * handled)))
    share = handled / threads if handled else max(tensor, 1)
    rim_share = share * variant.constants["RIM"] / variant.constants["COLUMNS"] if "RIM" in variant.constants else share
    blocks = roofline.resident_blocks(architecture, threads, code.registers, shared)
    special = sum(item.is_special for item in shortest)
    best = roofline.share_of_products(architecture, work, len(shortest), special, is_float32=is_float32)
    rims = [item for item in code.innermost(lambda each: each.is_tensor) if item is not loop]
    return {
        "variant": variant.name,
        "architecture": architecture,
        "tile": {key: value for key, value in variant.constants.items() if type(value) is int},
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
            "products": round(work / share, 2),
            "local": sum(item.name in machine_code.LOCAL for item in longest),
            "loads": widths(longest, (*machine_code.LOADS, *machine_code.ASYNCHRONOUS)),
            "stores": widths(longest, machine_code.STORES),
        },
        "rim": [[round(len(way) / rim_share, 2) for way in (item.shortest, item.longest)] for item in rims],
        "share_of_products": best if work else None,
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


# -- predictions ---------------------------------------------------------------------------------------------------------


def kernels_of(rows: Iterable[Mapping[str, Any]], architecture: int) -> kernel_table.Kernels:
    """The kernels of an architecture among these rows of `cost`, as the model takes them."""
    found = (row for row in rows if row["architecture"] == architecture)
    return {row["variant"]: kernel_table.Kernel(row["variant"], row["tile"], *_figures(row)) for row in found}


def _figures(row: Mapping[str, Any]) -> list[Any]:
    """What `kernel_table` has in a row, in the order of its `COLUMNS`."""
    main = row["main"]
    work, is_float32 = main["products"], bool(main["products"]) and not row["tensor"]
    instructions = (main["shortest"], main["special"], row["rim"][0][0] if row["rim"] else main["shortest"])
    return [row["registers"], row["shared"], row["threads"], is_float32, work, *(instructions if work else (0, 0, 0))]


def packed(content: Mapping[str, Any]) -> str:
    """The table of kernels that `--select auto` reads, from a cost report."""
    kernels: dict[str, dict[str, Any]] = {}
    for row in sorted(content["variants"], key=lambda row: (row["variant"], row["architecture"])):
        kernels.setdefault(row["variant"], {"tile": row["tile"]})[str(row["architecture"])] = _figures(row)
    head = {"format": kernel_table.FORMAT, "triton": content["versions"]["triton"], "columns": kernel_table.COLUMNS}
    lines = (f"{json.dumps(name)}:{json.dumps(told, separators=(',', ':'))}" for name, told in kernels.items())
    return f'{json.dumps(head)[:-1]}, "kernels": {{\n' + ",\n".join(lines) + "\n}}\n"


def launches(
    case: Case, dtype: str, device: cost_model.Device, kernels: kernel_table.Kernels
) -> tuple[roofline.Launch, ...]:
    """What the plugin of a case launches on a device with these kernels."""
    node = case.node()
    shapes = {**case.inputs, **case.outputs}

    def tensor(name: str) -> plugin_facts.Tensor:
        return plugin_facts.Tensor(case.shape(shapes[name]), case.onnx_type(name, dtype), name)

    facts = plugin_facts.plugin_facts(node, tensor, device, kernels)
    assert facts is not None and facts.refusal is None
    return facts.launches


def predicted(
    case: Case, device: cost_model.Device, kernels: kernel_table.Kernels, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """The roofline of a case on a device with these kernels."""
    rates = {
        "copy_bytes_per_second": cost_model.COPY_SHARE * device.bandwidth,
        "matrix_flops_per_second": {dtype: MATRIX_SHARE * (device.float32 if dtype == "float32" else device.half)},
        "launch_seconds": cost_model.LAUNCH,
    }
    limit, by = case.limit(dtype, rates)
    found = []
    for launch in launches(case, dtype, device, kernels):
        told = roofline.predict(launch, device)
        found.append(
            {
                "variant": launch.kernel.name,
                "programs": launch.programs,
                "waves": round(told.waves, 2),
                "bytes": launch.bytes,
                "products": launch.products,
                "serial_loads": launch.serial_loads,
                "share_of_bandwidth": round(told.share_of_bandwidth, 3),
                "limited_by": told.limited_by,
                "seconds": told.seconds,
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
        f"The cases of `benchmarks/kernel_cases.py` in bfloat16, as the model predicts them for an {DEVICE}:",
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
    rows = {(row["variant"], row["architecture"]): row for row in before}
    rows |= {(row["variant"], row["architecture"]): row for row in costs(named(operators), architectures, progress)}
    places = [(variant.name, each) for _, variant in named(None) for each in sorted(variant.architectures)]
    device = cost_model.DEVICES[DEVICE]
    found = kernels_of(rows.values(), device.capability)
    is_complete = all(place in rows for place in places if place[1] == device.capability)
    return {
        "versions": installed_versions(["onnx-fuse", "triton"]),
        "assumed": {"device": DEVICE},
        "cases": [predicted(case, device, found) for case in CASES if is_complete or is_known(case, device, found)],
        "variants": [rows[place] for place in places if place in rows],
    }


def is_known(case: Case, device: cost_model.Device, kernels: kernel_table.Kernels) -> bool:
    """Whether the kernels that a case needs are among these, by the table of all."""
    wanted = launches(case, "bfloat16", device, kernel_table.kernels(device.capability))
    return all(launch.kernel.name in kernels for launch in wanted)


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
