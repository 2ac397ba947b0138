"""Ctrl-C and SIGTERM end any command, whatever runs at that moment, and nothing is left: no file, no process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_fuse.cli import supervisor
from tests.helpers import model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BOUND = 120.0
"""Seconds that a test waits at most: a machine may be busy. What the command takes itself is bounded in its own code."""

ENDLESS = """(float[B, 8] x) => (float[B, 8] y)
  <int64 many = {1099511627776}, bool yes = {1}> {
    s = Sigmoid(x)
    m = Mul(x, s)
    y = Loop(many, yes, m) <body = b (int64 i, bool c, float[B, 8] v) => (bool d, float[B, 8] w) {
      d = Identity(c)
      w = Identity(v)
    }>
}"""

BUSY = "collections.deque(itertools.repeat(0), maxlen=0)"
"""Runs for ever in C."""

COMMANDS = {
    "fuse": ["m.onnx", "-o", "out.onnx", "--enable", "FusedSwish", "--report", "r.json"],
    "verify": ["m.onnx", "n.onnx"],
    "bench": ["m.onnx"],
    "debug": ["m.onnx", "n.onnx"],
    "explain": ["m.onnx"],
    "build": ["m.onnx", "-o", "out.engine"],
}


class Running:
    """A process that runs in a folder, with the temporary files of all that it starts in `tmp` there."""

    def __init__(self, folder: Path, *command: str) -> None:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.folder = folder
        self.before = self.files()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*"))

    def descendants(self) -> set[int]:
        """Itself and all that it and its children have started."""
        found, pending = set(), [self.process.pid]
        while pending:
            process = pending.pop()
            found.add(process)
            with contextlib.suppress(OSError):
                pending += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
        return found

    def child(self) -> int:
        """The process in which the command runs."""
        return max(self.descendants() - {self.process.pid})

    def computes(self, seconds: float = 0.1) -> None:
        """Waits until the command has computed for some time more."""
        child = self.child()
        wanted = ticks(child) + seconds * os.sysconf("SC_CLK_TCK")
        until(lambda: ticks(child) >= wanted)

    def runs_onnxruntime(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return "onnxruntime_pybind11" in Path(f"/proc/{self.child()}/maps").read_text()
        return False

    def interrupt(self, number: int) -> tuple[int, str, float]:
        """Sends the signal; gives the exit code, what was printed on stderr, and the seconds it took."""
        there = self.descendants()
        start = time.monotonic()
        self.process.send_signal(number)
        try:
            _, errors = self.process.communicate(timeout=BOUND)
        finally:
            self.process.kill()
        seconds = time.monotonic() - start
        assert not [process for process in there if alive(process)]
        assert self.files() == self.before
        return self.process.returncode, errors, seconds


def ticks(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11])


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts processes, each in a folder of its own with the endless model and another one like it."""
    started: list[Running] = []

    def run(*command: str, files: Mapping[str, str] = {}) -> Running:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        endless = model(ENDLESS)
        onnx.save(endless, folder / "m.onnx")
        endless.graph.node[0].name = "renamed"
        onnx.save(endless, folder / "n.onnx")
        for name, text in files.items():
            (folder / name).write_text(text)
        started.append(Running(folder, *command))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.communicate()


def script(body: str) -> tuple[str, str]:
    """A supervised command as a program."""
    lines = [
        "from onnx_fuse.cli.supervisor import supervised",
        "def command():",
        *(f"    {line}" for line in body.splitlines()),
    ]
    return "-c", "\n".join([*lines, "supervised(command)"])


def test_less_than_a_second() -> None:
    assert supervisor.GRACE + supervisor.GRACE_OF_CHILDREN <= 0.8


@pytest.mark.parametrize(
    ("name", "sent"),
    [("fuse", signal.SIGINT), ("verify", signal.SIGTERM), ("bench", signal.SIGINT), ("debug", signal.SIGTERM)],
)
def test_while_onnxruntime_runs_for_ever(start: Callable[..., Running], name: str, sent: int) -> None:
    running = start("-m", "onnx_fuse", name, *COMMANDS[name])
    until(running.runs_onnxruntime)
    running.computes(0.3)
    assert running.interrupt(sent)[:2] == (128 + sent, "")


@pytest.mark.parametrize("name", ["explain", "build"])
def test_while_it_starts(start: Callable[..., Running], name: str) -> None:
    """From the first lines of the program on, and at some moments of the imports."""
    moments = [(delay, sent) for delay in (0.0, 0.1, 0.2) for sent in (signal.SIGINT, signal.SIGTERM)]
    for delay, sent in moments:
        running = start("-m", "onnx_fuse", name, *COMMANDS[name])
        until(lambda running=running: handles(running.process.pid, signal.SIGTERM))
        time.sleep(delay)
        assert running.interrupt(sent)[:2] == (128 + sent, ""), delay


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_a_library_holds_the_interpreter(start: Callable[..., Running], sent: int) -> None:
    """No line of Python runs then, in no thread, so nothing in the process itself can help."""
    running = start(*script(f"import collections, itertools; print('now', flush=True); {BUSY}"))
    assert running.process.stdout.readline() == "now\n"
    running.computes()
    code, errors, seconds = running.interrupt(sent)
    assert (code, errors) == (128 + sent, "") and seconds >= supervisor.GRACE / 2


@pytest.mark.parametrize("wait", ["while True: pass", f"{BUSY}  # without a chance to clean up"])
def test_while_files_are_written(start: Callable[..., Running], wait: str) -> None:
    running = start(
        *script(
            "import collections, itertools, os, tempfile, time; from pathlib import Path; from onnx_fuse.passes.files.staging import Staging\n"
            "tempfile.mkdtemp()\n"
            "with Staging() as staging:\n"
            "    staging.write(Path('out.onnx'), b'half')\n"
            "    staging.write(Path('tmp/other'), b'half')\n"
            "    print(len(os.listdir('.')), flush=True)\n"
            f"    {wait}"
        )
    )
    assert int(running.process.stdout.readline()) == 4  # two models, the folder, and the temporary one
    running.computes()
    assert running.interrupt(signal.SIGTERM)[:2] == (143, "")


def test_while_other_programs_run(start: Callable[..., Running]) -> None:
    """As a compiler that make has started, which cmake has started: also one that cares for no signal."""
    cmake = "sh deaf.sh & sh -c 'sleep 60; true' & mktemp; wait"
    deaf = "trap '' TERM INT; echo now; while true; do sleep 0.05; done"
    running = start(
        *script("import subprocess; subprocess.run(['sh', 'cmake.sh'])"), files={"cmake.sh": cmake, "deaf.sh": deaf}
    )
    until(lambda: running.process.stdout.readline() == "now\n")
    until(lambda: len(running.descendants()) >= 6)
    assert running.interrupt(signal.SIGINT)[0] == 130


def test_half_written_files_of_other_programs_are_theirs_to_remove(start: Callable[..., Running]) -> None:
    """make deletes what a compiler has not finished, if it is asked to end and not just killed."""
    make = "trap 'rm half.o; exit 1' TERM; touch half.o; echo now; while true; do sleep 0.02; done"
    body = "import subprocess; subprocess.run(['sh', '-c', 'sh make.sh; true'])"
    running = start(*script(body), files={"make.sh": make})
    assert running.process.stdout.readline() == "now\n"
    assert running.interrupt(signal.SIGTERM)[0] == 143


def test_what_is_ignored_stays_ignored(start: Callable[..., Running]) -> None:
    """nohup, and a shell that starts it in the background."""
    body = "import time; print('now', flush=True); time.sleep(1); print('done')"
    kind, text = script(body)
    running = start(kind, f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{text}")
    assert running.process.stdout.readline() == "now\n"
    running.process.send_signal(signal.SIGHUP)
    assert running.process.communicate(timeout=BOUND) == ("done\n", "") and running.process.returncode == 0


def test_exit_codes_are_passed_on(start: Callable[..., Running]) -> None:
    for body, code in (("pass", 0), ("import sys; sys.exit(5)", 5), ("raise ValueError", 1)):
        running = start(*script(body))
        running.process.communicate(timeout=BOUND)
        assert running.process.returncode == code and running.files() == running.before


def test_a_crash_of_a_library_is_told(start: Callable[..., Running]) -> None:
    running = start(*script("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    _, errors = running.process.communicate(timeout=BOUND)
    assert running.process.returncode == 128 + signal.SIGSEGV
    assert errors.startswith("error: ") and "SIGSEGV" in errors and "hint: " in errors
    assert running.files() == running.before


def test_killed_by_force_it_takes_the_command_along(start: Callable[..., Running]) -> None:
    running = start(*script("import time; print('now', flush=True); time.sleep(60)"))
    assert running.process.stdout.readline() == "now\n"
    there = running.descendants()
    assert len(there) == 2
    running.process.kill()
    until(lambda: not [process for process in there if alive(process)])
    # What it has left, the next one removes.
    assert running.files() != running.before
    environment = {**os.environ, "TMPDIR": str(running.folder / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, *script("pass")], env=environment, check=True)
    assert running.files() == running.before


def handles(process: int, number: int) -> bool:
    with contextlib.suppress(OSError):
        (line,) = [
            line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt")
        ]
        return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
