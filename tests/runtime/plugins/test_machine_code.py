"""The reader of machine code, on kernels whose loops are known and on lines as nvdisasm writes them."""

from __future__ import annotations

import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.plugins import aot, machine_code
from tests.plugin_csrc.built import CACHE
from tests.runtime.plugins import known_loops

THREADS, SIDE = 128, known_loops.SIDE
architectures = pytest.mark.parametrize("architecture", [80, 90])


@cache
def cubins() -> dict[tuple[str, int], bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(CACHE / "triton"))
        wanted = [(known_loops.__file__, variant) for variant in known_loops.variants()]
        kernels = aot.compile_variants(wanted, (80, 90), jobs=1)
    return {
        (kernel.name, image.architecture): zlib.decompress(image.packed)
        for kernel in kernels
        for image in kernel.images
        if not image.ptx
    }


@cache
def code(name: str, architecture: int) -> machine_code.MachineCode:
    return machine_code.read(cubins()[name, architecture])


def count(instructions: Any, *names: str) -> int:
    return sum(item.name in names for item in instructions)


@architectures
def test_a_kernel_without_a_loop(architecture: int) -> None:
    found = code("copied", architecture)
    assert found.loops == () and found.main_loop() is None
    assert found.stack == 0 and 8 <= found.registers <= 64
    assert found.longest == found.instructions
    moved = [item for item in found.instructions if item.name in (*machine_code.LOADS, *machine_code.STORES)]
    assert [item.width for item in moved] == [16] * 4, (
        "2048 elements of 2 bytes are two vectors for each of 128 threads"
    )
    assert machine_code.moved(found.instructions) == 2 * 2048 // THREADS


@architectures
def test_a_loop_with_a_branch(architecture: int) -> None:
    """Its shortest way leaves out what the branch does, its longest has it; nothing else differs."""
    found = code("multiplied", architecture)
    (loop,) = found.loops
    assert found.main_loop() == loop
    assert loop.products == 2 * SIDE**3 // (THREADS // 32)
    specials = [sum(item.is_special for item in way) for way in (loop.shortest, loop.longest)]
    assert specials == [0, SIDE * SIDE // THREADS]
    assert len(loop.shortest) < len(loop.longest) <= len(loop.instructions) < len(found.instructions)
    for way in (loop.shortest, loop.longest):
        assert machine_code.moved(way) == 2 * SIDE * SIDE // THREADS
        assert {item.name for item in way if item.is_tensor} == {"HGMMA" if architecture == 90 else "HMMA"}
    assert count(found.longest, "STG") and not count(loop.instructions, "STG")


@architectures
def test_the_main_loop_is_the_inner_one(architecture: int) -> None:
    found = code("nested", architecture)
    outer, inner = found.loops[0], found.main_loop()
    assert inner is not None and set(inner.instructions) < set(outer.instructions)
    # The compiler may write several steps out, with a loop for the rest.
    steps, rest = divmod(inner.products, 2 * SIDE**3 // (THREADS // 32))
    assert steps >= 1 and rest == 0
    assert machine_code.moved(inner.longest) == steps * 2 * SIDE * SIDE // THREADS
    assert count(outer.instructions, "STG") and not count(inner.instructions, "STG")


@architectures
def test_what_is_called_counts(architecture: int) -> None:
    found = code("divided", architecture)
    assert count(found.instructions, "CALL") and not count(found.instructions, "RET")
    assert count(found.longest, "RET"), "the way goes through the function and back"


@pytest.mark.parametrize("name", ["multiplied", "nested"])
def test_the_jumps_are_those_that_nvdisasm_draws(name: str, tmp_path: Path) -> None:
    """It draws the graph of code for sm_90, not for sm_80."""
    (tmp_path / "kernel").write_bytes(cubins()[name, 90])
    drawn = machine_code._run("nvdisasm", "-bbcfg", "-poff", str(tmp_path / "kernel"))
    places = {
        block: int(first[1], 16)
        for block, label in re.findall(r'^"([^"]+)"\n\[label="(.*)"\]$', drawn, re.MULTILINE)
        if (first := re.search(r"(?:^|\\l|>)([0-9a-f]{4,}):", label))
    }
    wanted = {(places[a], places[b]) for a, b in re.findall(r'^"([^"]+)":\w+:\w -> "([^"]+)"', drawn, re.MULTILINE)}
    graph = machine_code._Graph(machine_code._run("nvdisasm", "-c", str(tmp_path / "kernel")))
    found = {
        (graph.blocks[block][0].address, graph.blocks[following][0].address)
        for block in graph.dominators
        for following in graph.successors[block]
    }
    assert found == wanted


LINES = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/              @!P0 LDG.E.U16.CONSTANT R2, [R4.64] ;
        /*0020*/                   BSSY B0, `(.L_x_2) ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R2], [R4.64] ;
        /*0050*/                   STL.64 [R1], R2 ;
.L_x_1:
        /*0060*/                   BSYNC B0 ;
.L_x_2:
        /*0070*/                   BRA.DIV ~URZ, `(.L_x_4) ;
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0090*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*00a0*/               @P2 CALL.REL.NOINC `(.L_x_3) ;
        /*00b0*/                   BRA `(.L_x_0) ;
.L_x_3:
        /*00c0*/                   EXIT ;
.L_x_4:
        /*00d0*/                   WARPSYNC.COLLECTIVE R1, `(.L_x_5) ;
.L_x_5:
        /*00e0*/                   BRA `(.L_x_2) ;
.L_x_6:
        /*00f0*/                   BRA `(.L_x_6) ;
"""


def test_lines() -> None:
    found = machine_code.parse(LINES, registers=8, stack=16)
    assert (found.registers, found.stack) == (8, 16)
    (loop,) = found.loops
    assert loop.header == 0x10
    assert [item.address for item in loop.longest] == [*range(0x10, 0xC0, 0x10)]
    assert [item.address for item in loop.shortest] == [0x10, 0x20, 0x30, *range(0x60, 0xC0, 0x10)]
    widths = {item.name: item.width for item in loop.longest if item.name in ("LDG", "LDGSTS", "STL")}
    assert widths == {"LDG": 2, "LDGSTS": 16, "STL": 8}
    assert loop.products == 2 * 16 * 8 * 16 + 2 * 64 * 128 * 16 // 4
    assert found.longest[-1].address == 0xC0 and 0xD0 not in {item.address for item in found.instructions}


def test_a_place_that_is_computed_is_refused() -> None:
    with pytest.raises(UsageError, match="BRX"):
        machine_code.parse("        /*0000*/  BRX R2 -0x10 ;\n")


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="does not read"):
        machine_code.read(b"no cubin")
