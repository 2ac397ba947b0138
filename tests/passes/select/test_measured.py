"""Decisions by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import measured
from onnx_fuse.passes.select.measured import Verdict, Verdicts, choose, judge
from tests import helpers
from tests.passes.select.small_models import feed_forward


def drawn(seconds: float, noise: float, seed: int, count: int = 40) -> list[float]:
    return [seconds * (1 + noise * item) for item in np.random.default_rng(seed).standard_normal(count)]


def test_verdict_on_given_samples() -> None:
    old = drawn(1e-3, 0.02, 0)
    faster = judge(old, [0.9 * item for item in drawn(1e-3, 0.02, 1)])
    assert faster.wins and faster.low < 0.9 < faster.high < 1
    assert not judge(old, drawn(1e-3, 0.02, 2)).wins  # the same
    assert not judge(old, [0.98 * item for item in drawn(1e-3, 0.3, 3)]).wins  # lost in the noise
    assert not judge(old, [0.995 * item for item in old]).wins  # clear, and too little
    assert not judge(old[:3], [0.5 * item for item in old[:3]]).wins  # too few to say
    assert judge(old, [1.1 * item for item in old]).ratio == pytest.approx(1.1)


def test_both_are_slowed_by_what_slows_the_machine() -> None:
    """The second of two equal models is not blamed for a machine that gets slower all the time."""
    clock = [1.0]

    def run() -> float:
        clock[0] *= 1.01
        return clock[0]

    verdict = judge(*measured.compare(run, run))
    assert verdict.ratio == pytest.approx(1.0, abs=0.011) and not verdict.wins


class GivenTimer:
    """Seconds by the operators in a model."""

    name = "a device, version 1"

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.opened: list[list[str]] = []

    def open(self, model: ModelProto) -> Callable[[], float]:
        operators = helpers.operators(model)
        self.opened.append(operators)
        samples = iter(drawn(sum(self.seconds[item] for item in operators), 0.01, len(self.opened), 10_000))
        return lambda: next(samples)


def build(kept: Sequence[str]) -> ModelProto:
    """One node for each of three parts, fused (A, B, C) or not (a, b, c)."""
    nodes = [item if item in kept else item.lower() for item in "ABC"]
    model = helpers.model(
        f"(float[n] x) => (float[n] y) {{ t = d.{nodes[0]}(x)  u = d.{nodes[1]}(t)  y = d.{nodes[2]}(u) }}"
    )
    return model


def test_operators_are_chosen_one_by_one(tmp_path: Path) -> None:
    timer = GivenTimer({"a": 3.0, "A": 1.0, "b": 2.0, "B": 2.0, "c": 2.0, "C": 3.0})
    store = Verdicts(tmp_path / "verdicts")
    found = choose("ABC", build, timer, verdicts=store)
    assert {name: verdict.wins for name, verdict in found.items()} == {"A": True, "B": False, "C": False}
    assert found["A"].ratio == pytest.approx(5 / 7, rel=0.02)
    assert timer.opened == [["a", "b", "c"], ["A", "b", "c"], ["A", "B", "c"], ["A", "b", "C"]]

    again = GivenTimer(timer.seconds)
    assert choose("ABC", build, again, verdicts=store) == found and again.opened == []  # remembered
    other = GivenTimer(timer.seconds)
    other.name = "a device, version 2"
    choose("ABC", build, other, verdicts=store)
    assert other.opened  # another version, another verdict
    for path in (tmp_path / "verdicts").iterdir():
        path.write_text("{ damaged")
    assert choose("ABC", build, again, verdicts=store).keys() == found.keys() and again.opened
    assert {path.suffix for path in (tmp_path / "verdicts").iterdir()} == {".json"}


def test_a_verdict_that_is_remembered_opens_what_comes_after(tmp_path: Path) -> None:
    """A is remembered as a winner, B is not: it is timed on top of A."""
    store = Verdicts(tmp_path)
    seconds = {"a": 3.0, "A": 1.0, "b": 2.0, "B": 1.0, "c": 2.0, "C": 2.0}
    key = measured.key_of(build("AB"), "A", [], GivenTimer.name, {})
    store.put(key, Verdict(0.7, 0.69, 0.71, 40, True), {})
    timer = GivenTimer(seconds)
    found = choose("AB", build, timer, verdicts=store)
    assert found["B"].wins and timer.opened == [["A", "b", "c"], ["A", "B", "c"]]


def test_timing_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times: what they are does not matter here, that they are taken, judged and remembered does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = onnx_fuse.fuse(
        feed_forward(), enable=["FusedSwish"], select="measured", device="cpu", sizes={"batch": 2, "length": 8}
    )
    (decision,) = done.report.to_dict()["selection"]["decisions"]
    assert decision["operator"] == "FusedSwish" and decision["ratio"] > 0 and decision["before_us"] is None
    assert "40 pairs of runs" in decision["reason"]
    assert (done.report.fused == {"FusedSwish": 1}) == decision["keep"]
    assert len(list(tmp_path.glob("onnx-fuse/*/verdicts/*.json"))) == 1


def test_without_a_gpu_measuring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_fuse.runtime.device import gpus

    monkeypatch.setattr(gpus, "devices", lambda: ((), None, "there is no NVIDIA driver"))
    with pytest.raises(UsageError, match="no GPU can be used: there is no NVIDIA driver"):
        onnx_fuse.fuse(feed_forward(), enable=["FusedSwish"], select="measured")
