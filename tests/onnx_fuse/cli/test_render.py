"""What is printed for a given report: all of it, and readable at 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.onnx_fuse.cli.helpers import (
    TERMINAL,
    assert_fits,
    fake_api,
    full_report,
    run,
)


def test_summary(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "Verified: equal in 1 case, relative difference up to 1.5e-06 (allowed 0.0001).",
        "normalize 0.250",
    ):
        assert said in text, said
    assert f"Wrote {out} in " in done.stdout
    assert "reason 4" not in text
    assert done.stderr == "warning: several bodies of one name\nwarning: fuse failed and was left out: a rule raised\n"
    assert_fits(done.stdout)


def test_nothing_fused(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = full_report()
    report.matches, report.verification = [], {"skipped": "it needs 80 GiB, 20 are free"}
    fake_api(monkeypatch, report)
    done = run("fuse", small, "-o", tmp_path / "out.onnx")
    assert "Nothing was fused: 9 places came near it." in done.stdout and "Nearest to fusing:" in done.stdout
    assert "Not verified: it needs 80 GiB, 20 are free" in done.stdout


def test_explanation(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_api(monkeypatch, full_report())
    done = run("explain", small, **TERMINAL)
    assert done.exit_code == 0 and called["pattern"] is None and called["at"] is None
    for said in (
        "Would fuse: 3 places",
        "Near misses: 9 places, 6 reasons",
        "reason 4",
        "left out: rotary stays outside",
    ):
        assert said in done.stdout, said
    assert_fits(done.stdout)
    done = run("explain", small, "--at", "multiply", "--pattern", "FusedSwish", **TERMINAL)
    assert called["pattern"] == "FusedSwish" and called["at"] == "multiply"
    assert "matched 3 nodes: a, b, /encoder" in " ".join(done.stdout.split()) and "inputs: query, key" in done.stdout
    assert_fits(done.stdout)
