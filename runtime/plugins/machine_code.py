"""Reads compiled kernels: registers, loops, and how many instructions each way through a loop has.

The text is that of NVIDIA's own tools, which come with Triton: `cuobjdump` tells registers and stack, `nvdisasm` the instructions,
with a label wherever something jumps. (Its own control-flow graph is there for some formats of machine code alone: not for sm_80.)
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_fuse import installation
from onnx_fuse.errors import UsageError

LOADS, STORES, ASYNCHRONOUS = ("LDG",), ("STG",), ("LDGSTS",)
"""Global memory: to registers, from registers, and to shared memory past the registers (cp.async)."""
TMA = ("UTMALDG", "UTMASTG", "UBLKCP")
LOCAL = ("LDL", "STL")
"""Registers that did not fit, or arrays that are indexed: memory of a thread's own."""
_TENSOR = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA", "UTCHMMA", "UTCQMMA")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+|\$\S+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_CALLED = re.compile(r"`\((\$\S+)\)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: where it is (bytes from the kernel's start), its guard ("@!P0" or ""), opcode with all modifiers
    ("LDG.E.128"), and operands as they are written."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a load or store moves for each thread."""
        sizes = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((sizes[part] for part in self.opcode.split(".") if part in sizes), 4)

    @property
    def is_tensor(self) -> bool:
        return self.name in _TENSOR

    @property
    def is_special(self) -> bool:
        """Whether it runs on the special function unit, 16 threads a cycle."""
        return self.name == "MUFU"

    @property
    def products(self) -> int:
        """Multiplications and additions of a tensor instruction, for a warp; 0 where the opcode does not tell."""
        if not self.is_tensor:
            return 0
        wide = re.search(r"\.(\d+)x(\d+)x(\d+)\.", self.opcode)
        if wide:  # wgmma: four warps together
            return 2 * int(wide[1]) * int(wide[2]) * int(wide[3]) // 4
        single = re.search(r"\.16(8)(\d+)\.", self.opcode)
        return 2 * 16 * 8 * int(single[2]) if single else 0


@dataclass(frozen=True)
class Loop:
    """A loop: what jumps back to one place.

    Attributes:
        header: address of its first instruction.
        instructions: all of it, with the loops inside it.
        shortest, longest: the ways once through it that have the fewest and the most instructions, with those of what they call;
            loops inside count once.
    """

    header: int
    instructions: tuple[Instruction, ...]
    shortest: tuple[Instruction, ...]
    longest: tuple[Instruction, ...]

    @property
    def products(self) -> int:
        """Multiplications and additions of its tensor instructions, once through it, for a warp."""
        return sum(item.products for item in self.longest)


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        instructions: those that can be reached, in order.
        longest: the way through the kernel with the most instructions, with those of what it calls; loops count once.
        loops: outer ones before those inside them.
    """

    registers: int
    stack: int
    instructions: tuple[Instruction, ...]
    longest: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    def main_loop(self) -> Loop | None:
        """The innermost loop with the most work: of those with tensor instructions the one that multiplies most, else the one
        that loads most. Of several with the same work it is the shortest, the others being the same for a rim."""
        loops = self.innermost(lambda item: item.is_tensor)
        if loops:
            return min(loops, key=lambda loop: (-loop.products, len(loop.shortest)))
        loops = self.innermost(lambda item: item.name in (*LOADS, *ASYNCHRONOUS, *TMA))
        return min(loops, key=lambda loop: (-moved(loop.longest), len(loop.shortest)), default=None)

    def innermost(self, wanted: Callable[[Instruction], bool]) -> list[Loop]:
        """Loops that have such an instruction and no loop inside that has one."""
        found = [loop for loop in self.loops if any(map(wanted, loop.instructions))]
        return [
            loop
            for loop in found
            if not any(set(other.instructions) < set(loop.instructions) for other in found if other is not loop)
        ]


def moved(instructions: Iterable[Instruction]) -> int:
    """Bytes that these load from global memory for each thread; what TMA loads is not told by the opcode and counts 16."""
    return sum(
        16 if item.name in TMA else item.width for item in instructions if item.name in (*LOADS, *ASYNCHRONOUS, *TMA)
    )


def read(cubin: bytes) -> MachineCode:
    """A cubin with one kernel.

    Raises:
        UsageError: triton is not installed, or its tools do not read this.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _USAGE.search(_run("cuobjdump", "-res-usage", file.name))
        text = _run("nvdisasm", "-c", "-ndf", file.name)
    if usage is None:
        raise UsageError("cuobjdump does not tell the registers of this kernel.", "Compile the kernel again.")
    return parse(text, registers=int(usage[1]), stack=int(usage[2]))


def parse(text: str, *, registers: int = 0, stack: int = 0) -> MachineCode:
    """The text of `nvdisasm -c` for one kernel.

    Raises:
        UsageError: it jumps to places that are known at run time alone.
    """
    graph = _Graph(text)
    loops = tuple(graph.loops())
    entry = frozenset(graph.dominators)
    return MachineCode(registers, stack, graph.code(sorted(entry)), graph.longest(entry, 0, graph.ends()), loops)


def _run(tool: str, *arguments: str) -> str:
    installation.require("triton", extra="kernels", purpose="read compiled kernels")
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise UsageError(f"{tool} does not read this kernel: {said}", "Compile the kernel again.")
    return done.stdout


class _Graph:
    """Basic blocks of a kernel, and which follows which."""

    def __init__(self, text: str) -> None:
        self.blocks: list[list[Instruction]] = [[]]
        labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := _LABEL.match(line):
                self._open()
                labels[label[1]] = len(self.blocks) - 1
            elif found := _INSTRUCTION.match(line):
                self.blocks[-1].append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4]))
                if _leaves(self.blocks[-1][-1]):
                    self._open()
        meetings: dict[str, int] = {}
        self.successors: list[list[int]] = []
        for number, block in enumerate(self.blocks):
            for item in block:
                if item.name == "BSSY" and (target := _TARGET.search(item.operands)):
                    meetings[item.operands.partition(",")[0]] = labels[target[1]]
            following = _successors(block, number, labels, meetings)
            self.successors.append([each for each in following if each < len(self.blocks)])
        self.dominators = _dominators(self.successors)
        bodies = {name: self._called(at) for name, at in labels.items() if name.startswith("$")}
        self.executed = [
            [each for item in block for each in (item, *bodies.get(_called(item), ()))] for block in self.blocks
        ]

    def _called(self, block: int) -> list[Instruction]:
        """What is called, up to where it returns: division of 64-bit integers and the like, without loops."""
        body: list[Instruction] = []
        for part in self.blocks[block:]:
            body += part
            if part[-1:] and part[-1].name == "RET":
                break
        return body

    def _open(self) -> None:
        if self.blocks[-1]:
            self.blocks.append([])

    def code(self, blocks: Iterable[int]) -> tuple[Instruction, ...]:
        return tuple(item for block in blocks for item in self.blocks[block])

    def ends(self) -> set[int]:
        return {block for block in self.dominators if self.blocks[block][-1:] and self.blocks[block][-1].name == "EXIT"}

    def loops(self) -> Iterator[Loop]:
        """Natural loops, those with the same header as one, by size."""
        before: dict[int, list[int]] = {block: [] for block in self.dominators}
        for block in before:
            for following in self.successors[block]:
                before[following].append(block)
        latches: dict[int, set[int]] = {}
        for block in before:
            for following in self.successors[block]:
                if following in self.dominators[block]:
                    latches.setdefault(following, set()).add(block)
        bodies = {}
        for header, back in latches.items():
            body, waiting = {header}, list(back)
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += before[block]
            bodies[header] = frozenset(body)
        for header, inside in sorted(bodies.items(), key=lambda item: -len(item[1])):
            first = self.blocks[header][0].address
            ways = (self._way(inside, header, latches[header], pick) for pick in (min, max))
            yield Loop(first, self.code(sorted(inside)), *ways)

    def longest(self, body: frozenset[int], entry: int, ends: set[int]) -> tuple[Instruction, ...]:
        return self._way(body, entry, ends, max)

    def _way(
        self, body: frozenset[int], entry: int, ends: set[int], pick: Callable[..., tuple[int, list[int]]]
    ) -> tuple[Instruction, ...]:
        """The way from `entry` to one of `ends` within `body` that `pick` prefers by its number of instructions."""
        found: dict[int, tuple[int, list[int]] | None] = {}

        def from_here(block: int) -> tuple[int, list[int]] | None:
            if block not in found:
                found[block] = None  # a jump back to what is being looked at is no way
                ways: list[tuple[int, list[int]]] = [(0, [])] if block in ends else []
                ways += [
                    way
                    for following in self.successors[block]
                    if following in body and following not in self.dominators[block]
                    if (way := from_here(following)) is not None
                ]
                if ways:
                    length, blocks = pick(ways, key=lambda way: way[0])
                    found[block] = (length + len(self.executed[block]), [block, *blocks])
            return found[block]

        way = from_here(entry)
        return tuple(item for block in way[1] for item in self.executed[block]) if way is not None else ()


def _leaves(item: Instruction) -> bool:
    """Whether something else than the next instruction may follow."""
    return item.name in ("BRA", "EXIT", "RET", "BSYNC", "BRX", "JMX") or _jumps_by_call(item)


def _called(item: Instruction) -> str:
    """The name of what it calls; "" where it calls nothing."""
    found = _CALLED.search(item.operands) if item.name == "CALL" else None
    return found[1] if found else ""


def _jumps_by_call(item: Instruction) -> bool:
    """A call of a place in the kernel itself is a jump: what is called and comes back has a name."""
    return item.name == "CALL" and _TARGET.search(item.operands) is not None


def _successors(
    block: Sequence[Instruction], number: int, labels: Mapping[str, int], meetings: Mapping[str, int]
) -> Iterator[int]:
    if not block:
        return
    item = block[-1]
    if item.name in ("BRX", "JMX"):
        raise UsageError(f"The kernel jumps to a place that is computed ({item.opcode}).", "Write it without that.")
    if item.name == "BSYNC" and (meeting := meetings.get(item.operands)) is not None:
        yield meeting
    elif item.opcode.startswith("BRA.DIV"):
        yield number + 1  # it jumps where the threads of a warp are not together, which they are at that place
    elif not _leaves(item):
        yield number + 1
    else:
        target = _TARGET.search(item.operands)
        if target:
            yield labels[target[1]]
        asks = item.guard not in ("", "@PT") or re.match(r"!?U?P\d", item.operands)
        if asks:
            yield number + 1


def _dominators(successors: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Block that can be reached -> the blocks on every way to it, itself among them."""
    order: list[int] = []
    seen: set[int] = set()
    waiting = [(0, False)]
    while waiting:
        block, is_done = waiting.pop()
        if is_done:
            order.append(block)
        elif block not in seen:
            seen.add(block)
            waiting += [(block, True), *((following, False) for following in successors[block])]
    order.reverse()
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for following in successors[block]:
            before[following].append(block)
    found = {block: set(order) for block in order}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = {block}.union(set.intersection(*(found[item] for item in before[block])))
            if new != found[block]:
                found[block], changed = new, True
    return found
