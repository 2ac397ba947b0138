"""`onnx-fuse fuse`, `explain` and `list`: options, what is checked before the work, what is written, and exit codes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_fuse.errors import RequirementError, VerificationError
from onnx_fuse.passes.files import io
from onnx_fuse.passes.refusals import BY_CODE
from tests import helpers
from tests.onnx_fuse.cli.helpers import (
    HIDDEN,
    TERMINAL,
    assert_error,
    assert_fits,
    assert_plain,
    fake_api,
    full_report,
    process,
    run,
    small_model,
)

# --- with a double in the place of the API ----------------------------------------------------------------------------


def test_options_reach_the_api(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_api(monkeypatch)
    np.savez(tmp_path / "x.npz", x=np.zeros((1, HIDDEN), np.float32))
    done = run(
        "fuse", small, "-o", tmp_path / "out.onnx", "--fusions", "A,B", "--enable", "C", "--enable", "D,E", "--disable",
        "F", "--require", "A=2", "--require", "B=0,C=1", "--functions", "inline", "--simplify", "--no-verify",
        "--inputs", tmp_path / "x.npz", "--verify-timeout", "60", "--select", "auto", "--sizes", "batch=4,length=8", "--device", "L4", "--attention", "native", "--external-data", "copy", "--quiet",
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
        "verify_timeout": 60.0,
    }


def test_defaults(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_api(monkeypatch)
    assert run("fuse", small, "-o", tmp_path / "out.onnx").exit_code == 0
    assert called["fusions"] is None and called["require"] is None and called["verify"] and not called["simplify"]
    assert called["functions"] == "keep" and called["select"] == "all"


def test_report_to_stdout_is_json_alone(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, full_report())
    done = run("fuse", small, "-o", tmp_path / "out.onnx", "--report", "-")
    assert json.loads(done.stdout)["fused"] == {"FusedAttentionLayerNorm": 3}
    assert "Wrote" in done.stderr


def test_missing_model_goes_before_missing_folder(tmp_path: Path) -> None:
    assert_error(run("fuse", tmp_path / "no.onnx", "-o", tmp_path / "no" / "out.onnx"), 5)


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_output_is_checked_before_the_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    called = fake_api(monkeypatch)
    options: dict[str, Path] = {"-o": tmp_path / "out.onnx", option: tmp_path / "no" / "x"}
    assert_error(run("fuse", small, *(part for pair in options.items() for part in pair)), 6, "Create the folder")
    assert_error(run("fuse", small, "-o", tmp_path), 6, "Is a directory")
    assert_error(run("fuse", small, "-o", small / "out.onnx"), 6)
    assert not called


def test_report_onto_the_model(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_api(monkeypatch)
    before = small.read_bytes()
    assert_error(run("fuse", small, "-o", tmp_path / "out.onnx", "--report", small), 2, "overwrite")
    assert_error(run("fuse", small, "-o", tmp_path / "out", "--report", tmp_path / "." / "out"), 2, "overwrite")
    assert not called and small.read_bytes() == before


def test_missing_inputs(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_api(monkeypatch)
    assert_error(run("fuse", small, "-o", tmp_path / "out.onnx", "--inputs", tmp_path / "no.npz"), 2, "no.npz")
    assert not called


def test_external_data_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, code: int
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


def test_disk_that_fills_up(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch)

    def full(*paths: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 6, "free some space")
    assert list(tmp_path.iterdir()) == [small]


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_trained_model(minilm: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    arguments = ("fuse", minilm, "-o", out, "--report", report, "--require", "FusedAttentionLayerNorm=3")
    done = process(*arguments, **TERMINAL)
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


def test_report_has_the_documented_fields(minilm: Path, tmp_path: Path) -> None:
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


def test_requirement_not_met(minilm: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    arguments = ("fuse", minilm, "-o", tmp_path / "out.onnx", "--no-verify", "--report", report)
    assert_error(process(*arguments, "--require", "FusedAttentionLayerNorm=99"), 3, "FusedAttentionLayerNorm")
    assert json.loads(report.read_text())["fused"]["FusedAttentionLayerNorm"] == 3
    assert not (tmp_path / "out.onnx").exists()


def test_unknown_fusion(minilm: Path, tmp_path: Path) -> None:
    for option in ("--fusions", "--enable", "--disable"):
        done = run("fuse", minilm, "-o", tmp_path / "out.onnx", option, "FusedNothing")
        assert_error(done, 2, "FusedNothing")
    assert_error(run("explain", minilm, "--pattern", "FusedNothing"), 2, "FusedNothing")


def test_nothing_to_fuse_is_byte_identical(small: Path, tmp_path: Path) -> None:
    done = run("fuse", small, "-o", tmp_path / "out.onnx")
    assert done.exit_code == 0 and "Nothing was fused: nothing in the model looks like" in done.stdout
    assert (tmp_path / "out.onnx").read_bytes() == small.read_bytes()


def test_invalid_graph(small: Path, tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, small)
    assert_error(run("fuse", small, "-o", tmp_path / "out.onnx"), 5, "nowhere")
    assert list(tmp_path.iterdir()) == [small]


def test_quiet(minilm: Path, tmp_path: Path) -> None:
    done = process("fuse", minilm, "-o", tmp_path / "out.onnx", "--no-verify", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_explain(minilm: Path) -> None:
    done = run("explain", minilm, **TERMINAL)
    assert done.exit_code == 0
    assert "FusedAttentionLayerNorm" in done.stdout
    assert_fits(done.stdout)
    done = run("explain", minilm, "--pattern", "FusedSkipLayerNorm")
    assert done.exit_code == 0
    assert "FusedEmbedLayerNorm" not in done.stdout


def test_explain_one_place(minilm: Path) -> None:
    norm = next(node for node in io.load(minilm).graph.node if node.op_type == "LayerNormalization")
    assert_error(run("explain", minilm, "--at", "nowhere"), 2, "nowhere")
    for place in (norm.name, norm.output[0]):
        done = run("explain", minilm, "--at", place)
        assert done.exit_code == 0 and "No fusion begins" not in done.stdout


def test_explain_as_json(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(helpers.model("(float[N, 8] x) => (float[N, 8] y) { s = Sigmoid(x) y = Mul(x, s) }"), path)
    assert json.loads(run("explain", path, "--json").stdout)["fused"] == {}
    assert json.loads(run("explain", path, "--json", "--enable", "FusedSwish").stdout)["fused"] == {"FusedSwish": 1}


def test_requiring_anything(small: Path, minilm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert_error(run("fuse", small, "-o", out, "--require", "any"), 3, "1 fused node required, 0 fused", "nothing in")
    assert not out.exists()
    done = run("fuse", minilm, "-o", out, "--require", "any=4", "--no-verify")
    assert done.exit_code == 0, done.stderr
    assert_error(run("fuse", minilm, "-o", out, "--require", "any=5"), 3, "5 fused nodes required, 4 fused")


def test_inlined_bodies_count(minilm: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    done = run("fuse", minilm, "-o", out, "--functions", "inline", "--no-verify", "--report", report)
    written, nodes = json.loads(report.read_text()), len(io.load(out).graph.node)
    assert f"{written['nodes_before']} before, {nodes} after" in done.stdout
    assert nodes == written["nodes_after"] > 145


def test_fusions() -> None:
    done = run("list")
    assert done.exit_code == 0 and done.stderr == ""
    assert_plain(done.stdout)
    assert (
        "FusedAttentionLayerNorm             default   multi-head softmax attention with its output projection, residual"
        in done.stdout
    )
    for name in ("FusedAttentionLayerNorm", "FusedEmbedLayerNorm", "FusedSkipLayerNorm", "FusedSwish"):
        assert name in done.stdout
    assert "default" in done.stdout and "opt-in" in done.stdout
    assert_fits(run("list", **TERMINAL).stdout)


def test_codes_of_refusals(minilm: Path) -> None:
    listed = run("explain", "--codes")
    assert listed.exit_code == 0 and all(code in listed.stdout for code in BY_CODE)
    told = run("explain", "of101")
    assert told.exit_code == 0 and BY_CODE["OF101"].meaning in told.stdout and "to get it: " in told.stdout
    assert_error(run("explain", "OF199"), 2, "no code OF199", "--codes")
    assert_error(run("explain"), 2, "MODEL")
    report = json.loads(run("explain", minilm, "--json", "--enable", "FusedSkipLayerNorm").stdout)
    assert report["near_misses"] and all(miss["code"] in BY_CODE for miss in report["near_misses"])
    assert f"[{report['near_misses'][0]['code']}]" in run("explain", minilm, "--enable", "FusedSkipLayerNorm").stdout
