"""Spoils models at random and looks for what must never happen: `python -m tests.trust.fuzz --minutes 10 --seed 1`.

A case is a seed model and a few mutations (`tests.trust.mutations`), each with a number of its own, so that a case is told in one
line and is made again from it. What must hold for each:

- `fuse` and `explain` give a result or an OnnxFuseError that is no internal one, in finite time, and leave the model alone;
- no rule, pattern or body raises on the way;
- where ONNX Runtime runs the original, it runs the fused model too, to the same outputs.

With `--folding` a case is one node on constants (`tests.trust.foldings`): what the view folds it to is what ONNX Runtime makes of
it, to the bit.

Cases run in a process of their own, so that a crash or an endless loop is a finding and not the end. Findings are reduced to the
fewest mutations that still show them and printed once each; the models go to `--keep`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.errors import OnnxFuseError, PatternError, RewriteError
from onnx_fuse.passes.files import io, wire
from tests.trust import foldings
from tests.trust.foldings import Fold
from tests.trust.hostile import HOSTILE
from tests.trust.mutations import MUTATIONS, SEEDS, flip_bytes

OPT_IN = ("FusedSkipLayerNorm", "FusedSwish")
MOST_MUTATIONS = 4
TOLERANCE = {np.dtype(np.float16): 2e-2, np.dtype(np.float32): 2e-4, np.dtype(np.float64): 1e-4}
"""Difference allowed, relative to the largest magnitude of an output."""
EXTREME = 1e15
"""Values beyond this (or not finite) inside the original make an order of operations matter."""
SIZES: tuple[dict[str, int], ...] = ({"B": 2, "S": 3, "N": 3}, {"B": 1, "S": 4, "N": 2})
_TIMEOUT = 60.0
_LINES = 7  # of a traceback
_MEMORY = 12 << 30
_PHASES = ("make", "run the original", "fuse", "run the fused model", "explain")


@dataclass(frozen=True)
class Case:
    """How a model is made and what is done with it.

    Attributes:
        seed: name of the seed model, or the path of an .onnx file.
        mutations: (name, number) of each mutation.
        flip: number of the spoiling of the file's bytes; 0 for none. The model then goes through a file.
        simplify, inline: options of `fuse`.
    """

    seed: str
    mutations: tuple[tuple[str, int], ...] = ()
    flip: int = 0
    simplify: bool = False
    inline: bool = False

    def model(self) -> ModelProto:
        """The spoiled model; a mutation that cannot be done is left out."""
        known = {**SEEDS, **HOSTILE}
        model = known[self.seed]() if self.seed in known else onnx.load(self.seed)
        for name, number in self.mutations:
            with contextlib.suppress(ValueError, TypeError, IndexError):
                MUTATIONS[name](model, random.Random(number))
        return model


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        kind: "same", "unfused" (nothing to fuse, same), "refused" (an OnnxFuseError), "unrunnable" (ONNX Runtime does not
            run the original), "ill" (differs as much when inputs change by rounding, or holds extreme values), or one of
            `FINDINGS`.
        detail: for a finding, what was seen; findings with one key are one finding.
    """

    kind: str
    detail: str = ""

    @property
    def is_finding(self) -> bool:
        return self.kind in FINDINGS

    @property
    def key(self) -> str:
        return f"{self.kind}: {re.sub(r'[0-9]+|m[0-9]+|#.*', '#', self.detail.splitlines()[-1] if self.detail else '')[:100]}"


FINDINGS = ("raised", "internal", "rule", "changed", "unloadable", "fails", "differs", "crashed", "hangs")


def draw(chance: random.Random, seeds: Sequence[str]) -> Case:
    """A case at random."""
    count = chance.randint(1, MOST_MUTATIONS)
    mutations = tuple((chance.choice(list(MUTATIONS)), chance.randrange(1 << 32)) for _ in range(count))
    flip = chance.randrange(1, 1 << 32) if chance.random() < 0.15 else 0
    if flip and chance.random() < 0.8:
        mutations = ()
    return Case(chance.choice(list(seeds)), mutations, flip, chance.random() < 0.3, chance.random() < 0.2)


def judge(case: Case | Fold, phase: Callable[[int], None] = lambda _: None) -> Outcome:
    """Runs one case."""
    phase(0)
    model = case.model()
    if isinstance(case, Fold):
        return _judge_fold(model, phase)
    with tempfile.TemporaryDirectory() as folder:
        given: Any = model
        path = Path(folder) / "m.onnx"
        if case.flip:
            path.write_bytes(flip_bytes(model.SerializeToString(), random.Random(case.flip)))
            given = path
            try:
                model = ModelProto.FromString(path.read_bytes())
            except Exception:
                model = ModelProto()
        before = path.read_bytes() if case.flip else model.SerializeToString(deterministic=True)
        phase(2)
        try:
            # Weights stay in the file, as those of a large model do.
            with mock.patch.object(io, "WORTHWHILE", 1), mock.patch.object(wire, "LARGE", 100):
                result = onnx_fuse.fuse(
                    given,
                    enable=OPT_IN,
                    verify=False,
                    simplify=case.simplify,
                    functions="inline" if case.inline else "keep",
                )
        except (RewriteError, PatternError) as error:
            return Outcome("internal", str(error))
        except OnnxFuseError as error:
            return Outcome("refused", str(error))
        except Exception:
            return Outcome("raised", traceback.format_exc().strip())
        after = path.read_bytes() if case.flip else model.SerializeToString(deterministic=True)
        if after != before:
            return Outcome("changed", "fuse changed the model it was given")
        raised = [item for item in result.report.warnings if " raised " in item]
        if raised:
            return Outcome("rule", raised[0])
    if not result.changed:
        phase(4)
        try:
            onnx_fuse.explain(model)
        except OnnxFuseError:
            return Outcome("refused")
        except Exception:
            return Outcome("raised", traceback.format_exc().strip())
        return Outcome("unfused")
    return compare(model, result.model, phase)


def _judge_fold(model: ModelProto, phase: Callable[[int], None]) -> Outcome:
    phase(2)
    try:
        if not foldings.folded(model):
            return Outcome("unfused")
        problem = foldings.problem(model)
    except Exception:
        return Outcome("raised", traceback.format_exc().strip())
    return Outcome("same") if problem is None else Outcome("differs", f"{model.graph.node[0].op_type}: {problem}")


def compare(original: ModelProto, fused: ModelProto, phase: Callable[[int], None] = lambda _: None) -> Outcome:
    """Whether two models give the same outputs on random inputs."""
    phase(1)
    try:
        one = _session(original)
        runs = [(given, one.run(None, given)) for given in (feeds(original, sizes) for sizes in SIZES)]
    except Exception as error:
        return Outcome("unrunnable", str(error)[:200])
    phase(3)
    try:
        other = _session(fused)
    except Exception as error:
        return Outcome("unloadable", str(error)[:400])
    names = [item.name for item in one.get_outputs()]
    for given, wanted in runs:
        try:
            got = other.run(None, given)
        except Exception as error:
            return Outcome("fails", str(error)[:400])
        for name, want, have in zip(names, wanted, got, strict=True):
            problem = difference(want, have)
            if problem is not None and not _ill(original, one, given, wanted):
                return Outcome("differs", f"{name[:40]!r}: {problem}")
            if problem is not None:
                return Outcome("ill", problem)
    return Outcome("same")


def difference(want: Any, have: Any) -> str | None:
    """How an output differs; None where it does not."""
    if not isinstance(want, np.ndarray):
        return None if str(want) == str(have) else "is another value"
    if want.dtype != have.dtype or want.shape != have.shape:
        return f"is {have.dtype}{list(have.shape)}, the original's is {want.dtype}{list(want.shape)}"
    if want.dtype.kind != "f":
        return None if np.array_equal(want, have) else "has other elements"
    wide, other = want.astype(np.float64), have.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(finite, np.isfinite(other)) or not np.array_equal(
        wide[~finite], other[~finite], equal_nan=True
    ):
        return "is not finite elsewhere"
    if not finite.any():
        return None
    worst = float(np.abs(wide - other)[finite].max())
    allowed = TOLERANCE.get(want.dtype, 1e-4) * max(float(np.abs(wide[finite]).max()), 1e-6)
    return None if worst <= allowed else f"differs by {worst:.3g}, {allowed:.3g} is allowed"


def _ill(original: ModelProto, session: Any, given: dict[str, Any], wanted: list[Any]) -> bool:
    """Whether the original itself answers a change in the last digits by much, or holds values where any order counts."""
    noise = np.random.default_rng(1)
    near = {
        name: (array * (1 + 1e-6 * noise.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in given.items()
    }
    with contextlib.suppress(Exception):
        if any(difference(want, have) for want, have in zip(wanted, session.run(None, near), strict=True)):
            return True
    wider = ModelProto.FromString(original.SerializeToString())
    shown = {value.name for value in wider.graph.output}
    names = dict.fromkeys(name for node in wider.graph.node for name in node.output if name and name not in shown)
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with contextlib.suppress(Exception):
        inside = [item for item in _session(wider).run(None, given) if isinstance(item, np.ndarray)]
        return any(item.dtype.kind == "f" and not bool(np.all(np.abs(item) < EXTREME)) for item in inside)
    return False


def feeds(model: ModelProto, sizes: dict[str, int]) -> dict[str, Any]:
    """Random inputs for what the model declares; ValueError where it cannot be had."""
    chance = np.random.default_rng(3)
    held = {tensor.name for tensor in model.graph.initializer}
    arrays: dict[str, Any] = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, 2) for dim in kind.shape.dim]
        if any(not 0 <= size <= 4096 for size in shape):
            raise ValueError(f"input {value.name} has the shape {shape}")
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type == TensorProto.BOOL:
            arrays[value.name] = np.asarray(chance.random(shape) < 0.5)
        elif np.issubdtype(dtype, np.integer):
            arrays[value.name] = np.asarray(chance.integers(0, 3, shape), dtype)
        else:
            arrays[value.name] = np.asarray(chance.standard_normal(shape), dtype)
    return arrays


def _session(model: ModelProto) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def quiet() -> None:
    """Keeps what the libraries say of spoiled models off the terminal."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)


class Worker:
    """A process that judges cases, replaced by another one when it dies or hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._phase = self._context.Value("i", 0)
        self._pipe, end = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(end, self._phase), daemon=True)
        self._process.start()
        end.close()

    def judge(self, case: Case | Fold) -> Outcome:
        """What `judge` says, or that the process did not live to tell."""
        outcome: Outcome | None = None
        kind = "crashed"
        try:
            self._pipe.send(case)
            if self._pipe.poll(_TIMEOUT):
                outcome = self._pipe.recv()
            else:
                kind = "hangs"
        except (EOFError, OSError):
            pass
        if outcome is not None:
            return outcome
        where = _PHASES[self._phase.value]
        self.stop()
        self._start()
        # What ONNX Runtime does with a spoiled model is not ours.
        return Outcome("unrunnable" if where == "run the original" else kind, where)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Any, phase: Any) -> None:
    quiet()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))

    def enter(number: int) -> None:
        phase.value = number

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pipe.send(judge(pipe.recv(), enter))


def reduced(case: Case, outcome: Outcome, judged: Callable[[Case], Outcome]) -> Case:
    """The case with as few mutations and options as still show the finding."""
    smaller: list[Callable[[Case], Case]] = [
        lambda item: replace(item, simplify=False),
        lambda item: replace(item, inline=False),
        lambda item: replace(item, flip=0),
    ]
    for change in smaller:
        tried = change(case)
        if tried != case and judged(tried).kind == outcome.kind:
            case = tried
    place = 0
    while place < len(case.mutations):
        tried = replace(case, mutations=case.mutations[:place] + case.mutations[place + 1 :])
        if judged(tried).kind == outcome.kind:
            case = tried
        else:
            place += 1
    return case


def main() -> int:
    """The command; gives 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cases", type=int, help="stop after so many: the same ones on every machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="further .onnx files to start from")
    parser.add_argument("--folding", action="store_true", help="single nodes on constants, which the view folds")
    parser.add_argument("--keep", type=Path, help="a folder for the models of findings")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    # Half of the cases start from models that fuse.
    seeds = [
        *(seed for _ in range(len(HOSTILE) // len(SEEDS)) for seed in SEEDS),
        *HOSTILE,
        *(str(path) for path in options.models),
    ]
    found: dict[str, Case | Fold] = {}
    counts: Counter[str] = Counter()
    worker = Worker()
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end and counts.total() != options.cases:
        case: Case | Fold = (
            Fold(chance.choice(foldings.OPERATORS), chance.randrange(1 << 32))
            if options.folding
            else draw(chance, seeds)
        )
        outcome = worker.judge(case)
        counts[outcome.kind] += 1
        if not outcome.is_finding or outcome.key in found:
            continue
        if isinstance(case, Case):
            case = reduced(case, outcome, worker.judge)
        found[outcome.key] = case
        print(f"\n== {outcome.kind}: " + "\n".join(outcome.detail.splitlines()[-_LINES:]) + f"\n{case!r}", flush=True)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Exception):
                onnx.save(case.model(), options.keep / f"{len(found)}-{outcome.kind}.onnx")
    worker.stop()
    print(f"\n{counts.total()} cases: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}")
    print(f"{len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
