"""The command as a whole: help, wrong usage, exit codes, what goes to stdout and what to stderr, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import onnx_fuse
from onnx_fuse.errors import VerificationError
from tests.onnx_fuse.cli.helpers import (
    assert_error,
    assert_fits,
    fake_api,
    process,
    run,
    small_model,
)


def test_help_is_quick_and_complete() -> None:
    start = time.perf_counter()
    done = process("--help")
    seconds = time.perf_counter() - start
    assert done.returncode == 0 and done.stderr == ""
    for command in ("fuse", "explain", "verify", "inspect", "parse", "list"):
        assert f"\n  {command} " in done.stdout
    assert_fits(done.stdout)
    assert seconds < 2  # 0.3 s on an idle machine


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from onnx_fuse.cli.app import app\n"
        "try: app(['fuse', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'onnx', 'numpy', 'onnxruntime', 'torch', 'onnx_graphsurgeon'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    options = (
        "--output --fusions --enable --disable --require --select --sizes --device --attention --functions --simplify --no-verify --inputs --report "
        "--external-data --quiet -v"
    )
    for option in options.split():
        assert option in done.stdout


def test_version() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"onnx-fuse {onnx_fuse.__version__}\n")


def test_nothing_given() -> None:
    done = run()
    assert done.exit_code == 2 and "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["fuse"], "onnx-fuse fuse MODEL -o OUT [OPTIONS]"),
        (["verify"], "onnx-fuse verify ORIGINAL FUSED [OPTIONS]"),
        (["plugins", "check"], "onnx-fuse plugins check FOLDER [OPTIONS]"),
    ],
)
def test_usage_shows_what_must_be_given(arguments: list[str], usage: str) -> None:
    assert f"Usage: {usage}\n" in run(*arguments, "--help").stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("onnx-fuse fu", ["fuse"]),
        ("onnx-fuse fuse --sel", ["--select"]),
        ("onnx-fuse fuse --select me", ["measured"]),
        ("onnx-fuse fuse --enable FusedS", ["FusedSkipLayerNorm", "FusedSwish"]),
        ("onnx-fuse explain --pattern HS", ["HSTUHierarchicalAttention"]),
    ],
)
def test_completion_in_a_shell(typed: str, completed: list[str]) -> None:
    done = process(COMP_WORDS=typed, COMP_CWORD=str(typed.count(" ")), _ONNX_FUSE_COMPLETE="complete_bash")
    assert done.stdout.split() == completed, done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["fuze", "m.onnx"], "fuse"),
        (["fuse", "m.onnx", "-o", "out.onnx", "--enabel", "FusedSwish"], "--enable"),
        (["fuse", "m.onnx", "-o", "out.onnx", "--enable", "fusedswich"], "FusedSwish"),
        (["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedAtentionLayerNorm"], "FusedAttentionLayerNorm"),
        (["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedSwish"], "--enable FusedSwish"),
        (["explain", "m.onnx", "--pattern", "HSTUAttention"], "HSTUHierarchicalAttention"),
        (["explain", "m.onx"], "m.onnx"),
    ],
)
def test_what_was_meant(arguments: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code in (2, 5) and meant in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["--nope"],
        ["fuse"],
        ["fuse", "m.onnx"],
        ["fuse", "m.onnx", "-o"],
        ["fuse", "m.onnx", "-o", "out.onnx", "--functions", "drop"],
        ["fuse", "m.onnx", "-o", "out.onnx", "--select", "fastest"],
        ["fuse", "m.onnx", "-o", "out.onnx", "--external-data", "move"],
        ["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedSwish="],
        ["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedSwish=-1"],
        ["fuse", "m.onnx", "-o", "out.onnx", "--require", "=1"],
        ["fuse", "m.onnx", "n.onnx", "-o", "out.onnx"],
        ["verify", "m.onnx"],
        ["inspect"],
        ["list", "all"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert_error(run(*arguments), 2)


def test_wrong_usage_of_the_process() -> None:
    assert_error(process("fuse", "--nope"), 2, "onnx-fuse fuse --help")


@pytest.mark.parametrize("command", ["fuse", "explain", "verify", "inspect", "parse"])
def test_missing_model(tmp_path: Path, command: str) -> None:
    rest: dict[str, list[str | Path]] = {"fuse": ["-o", tmp_path / "out.onnx"], "verify": [tmp_path / "other.onnx"]}
    assert_error(run(command, tmp_path / "no.onnx", *rest.get(command, [])), 5, "no.onnx does not exist")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["verify", "inspect", "parse"])
def test_invalid_model(small: Path, command: str) -> None:
    broken = small.with_name("broken.onnx")
    broken.write_bytes(small.read_bytes()[:100])
    rest = [small] if command == "verify" else []
    assert_error(run(command, broken, *rest), 5, "cut short")


def test_causes_of_many_lines_become_one(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, error=VerificationError("first\n  second\tthird \x1b[31mred", "a\nb"))
    done = run("fuse", small, "-o", tmp_path / "out.onnx")
    assert_error(done, 4, "error: first second third \\x1b[31mred\n", "hint: a b\n")


def test_surprise(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, error=KeyError("surprise"))
    assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 1, "internal error: KeyError: 'surprise'", "-v")
    done = run("fuse", small, "-o", tmp_path / "out.onnx", "-v")
    assert done.exit_code == 1 and "Traceback" in done.stderr and done.stdout == ""
    done = run("-v", "inspect", tmp_path / "no.onnx")
    assert done.exit_code == 5 and "Traceback" in done.stderr


def test_interrupted(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, error=KeyboardInterrupt())  # type: ignore[arg-type]
    done = run("fuse", small, "-o", tmp_path / "out.onnx")
    assert done.exit_code == 130 and "Traceback" not in done.stderr


def test_closed_pipe(small: Path) -> None:
    command = f"{sys.executable} -m onnx_fuse inspect {small} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "error" not in done.stderr


def test_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    model = small_model()
    model.producer_name = "pröducer"
    onnx.save(model, tmp_path / "m.onnx")
    done = process("inspect", tmp_path / "m.onnx", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "pr\\xf6ducer" in done.stdout
