"""What the benchmarks share: measuring a task in a process of its own, and saying on which machine it ran."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"

CHILD = "--child"
_MARK = "@@result "


class ChildError(RuntimeError):
    """A child process that did not deliver a result."""


def run_child(script: str, job: Mapping[str, Any], timeout: float = 1800) -> dict[str, Any]:
    """Runs `python script --child JOB` and returns what it handed to `deliver`.

    Raises:
        ChildError: it ended without a result or took too long.
    """
    command = [sys.executable, script, CHILD, json.dumps(job)]
    # One thread, so that CPU seconds are work and not waiting in a pool.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ChildError(f"no result within {timeout:g} s") from None
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            result: dict[str, Any] = json.loads(line[len(_MARK) :])
            return result
    last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
    raise ChildError(f"exit code {done.returncode}: {last}")


def child_job() -> dict[str, Any] | None:
    """The job this process was started for by `run_child`; None in the process that the user started."""
    if len(sys.argv) == 3 and sys.argv[1] == CHILD:
        job: dict[str, Any] = json.loads(sys.argv[2])
        return job
    return None


def deliver(result: Mapping[str, Any]) -> None:
    """Hands the result of a child process to `run_child`."""
    sys.stdout.flush()
    print("\n" + _MARK + json.dumps(result), flush=True)


def in_fork(task: Callable[[], Mapping[str, Any]], timeout: float = 300) -> dict[str, Any]:
    """Runs a task in a fork of this process, which has all it needs imported; returns the task's result.

    Nothing of one task is left in memory for the next, and one that crashes takes nobody with it.

    Raises:
        ChildError: it raised, crashed or took too long.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            signal.alarm(math.ceil(timeout))  # its default action ends the process
            result: dict[str, Any] = {"result": dict(task())}
        except BaseException as error:  # whatever it is, it goes to the parent, and this process ends here
            result = {"error": f"{type(error).__name__}: {_first_line(error)}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        raise ChildError(f"no result within {timeout:g} s" if number == signal.SIGALRM else f"ended by signal {number}")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise ChildError(answer["error"])
    outcome: dict[str, Any] = answer["result"]
    return outcome


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def measured(task: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Runs a task; returns what it took, and its result.

    All that the task needs should be imported by now: the baseline is this process as it is.

    Returns:
        `cpu_seconds` (user and system, all threads), `wall_seconds`, `baseline_mb` (resident memory before), `peak_mb`
        (largest resident memory while it ran), `above_mb`, the difference of the two, and `process_cpu_seconds`, those of
        the whole process so far, its imports included; and what the task returned.
    """
    gc.collect()
    baseline = _status_mb("VmRSS")
    _forget_peak()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    result = task()
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
    peak = _status_mb("VmHWM")
    cost = {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "baseline_mb": baseline,
        "peak_mb": peak,
        "above_mb": max(0.0, peak - baseline),
        "process_cpu_seconds": _cpu_seconds(),
    }
    return {name: round(value, 4) for name, value in cost.items()}, result


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _forget_peak() -> None:
    """Makes the kernel forget the peak of this process so far, that of its imports."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or not allowed: the peak then includes the imports
        return


def _status_mb(field: str) -> float:
    # Not ru_maxrss where this is at hand: a child inherits that from the process that forked it.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def machine() -> dict[str, Any]:
    """The machine and the Python that run this."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this, as one would type it in the root of the repository."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT):
        script = script.relative_to(ROOT)
    return shlex.join(["python", str(script), *sys.argv[1:]])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a result file, the folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
