"""Measuring: what the numbers mean, whatever the machine does meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime import OrtSession
from onnx_fuse.runtime.device.executor import LayerTime
from onnx_fuse.runtime.engine import Engine, Timing
from onnx_fuse.runtime.measure import profile
from onnx_fuse.runtime.measure.profile import Ratio, Summary
from onnx_fuse.runtime.verify.random_inputs import input_specs
from tests.helpers import model
from tests.runtime.devices import PosingDevice, PosingExecutor
from tests.runtime.engines import write_engine

X = np.ones((2, 4), np.float32)
RECTIFIER = "(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"


class Paced(OrtSession):
    """A session whose calls take as long as a test says."""

    def __init__(self, latencies: list[float]) -> None:
        super().__init__(model(RECTIFIER))
        self.latencies, self.calls = latencies, 0

    def timed(self, inputs: Any, *, out: Any = None) -> tuple[dict[str, Any], Timing]:
        latency = self.latencies[self.calls % len(self.latencies)]
        self.calls += 1
        return {}, Timing(latency, latency / 2)


def test_a_summary() -> None:
    found = Summary.of([number / 1000 for number in range(101)])
    assert (found.min, found.max, found.median) == (0, 0.1, 0.05)
    assert (found.p90, found.p95, found.p99) == pytest.approx((0.09, 0.095, 0.099))
    assert found.mean == pytest.approx(0.05)


def test_calls_that_warm_up_do_not_count() -> None:
    session = Paced([9.0, 9.0] + [0.001] * 8)
    measured = profile.measure(session, {"x": X}, warm_up=0, duration=0, iterations=8)
    assert session.calls == 10 and measured.runs == 8
    assert measured.phases["latency"].max == 0.001 and measured.phases["compute"].max == 0.0005
    assert set(measured.phases) == {"latency", "compute"}  # on a CPU nothing is copied or enqueued


def test_throughput_is_that_of_all_threads() -> None:
    engine = Engine(PosingExecutor(model(RECTIFIER), PosingDevice(), threads=1), streams=2)
    start = time.perf_counter()
    measured = profile.measure(engine, {"x": X}, streams=2, warm_up=0, duration=0.3, iterations=1)
    assert measured.seconds >= 0.3 and time.perf_counter() - start >= measured.seconds
    assert measured.throughput == pytest.approx(measured.runs / measured.seconds)
    assert measured.runs * measured.phases["latency"].mean > 0.31  # more than one thread has time for
    assert list(measured.phases) == ["latency", "enqueue", "h2d", "compute", "d2h"]
    assert measured.to_dict()["shapes"] == {"x": (2, 4)}


def test_a_ratio_is_that_of_calls_next_to_each_other() -> None:
    # Both become ten times slower in the middle: the ratio does not notice.
    pace = [0.01] * 20 + [0.1] * 20
    ratio = profile.compare(
        Paced(pace), Paced([2 * item for item in pace]), {"x": X}, warm_up=0, duration=0, iterations=36
    )
    assert ratio.pairs == 36 and ratio.differs
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2, 2, 2))


def test_a_difference_within_the_noise_is_none() -> None:
    random = np.random.default_rng(0)
    assert not profile.ratio_of(list(random.lognormal(0.0, 0.3, 200))).differs
    found = profile.ratio_of(list(random.lognormal(0.2, 0.3, 200)))
    assert found.differs and 1 < found.low < found.median < found.high


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    intervals = [profile.ratio_of(list(random.lognormal(np.log(1.5), 0.5, 40))) for _ in range(400)]
    held = sum(found.low <= 1.5 <= found.high for found in intervals)
    assert 0.92 <= held / 400 <= 1


def test_few_pairs_give_the_widest_interval() -> None:
    assert profile.ratio_of([1.0, 2.0, 3.0]) == Ratio(2.0, 1.0, 3.0, 3)


def test_share_of_matrix_products() -> None:
    layers = [LayerTime("a", 3, products=3), LayerTime("b", 1, products=0), LayerTime("c", 2, products=None)]
    assert profile.share_of_products(layers) == 0.75
    assert profile.share_of_products([*layers, LayerTime("d", 5)]) is None  # most of the time is not known
    assert profile.share_of_products([]) is None


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_open_sizes_and_given_shapes() -> None:
    specs = input_specs(
        model(
            "(int64[batch,length] ids, float[batch,length,4] e, float[3] f) => (float[batch,length,4] y) { y = Relu(e) }"
        )
    )
    assert {name: array.shape for name, array in profile.inputs_for(specs, batch=2, length=7).items()} == {
        "ids": (2, 7),
        "e": (2, 7, 4),
        "f": (3,),
    }
    given = profile.with_shapes(specs, {"ids": (5, 6)})
    assert profile.inputs_for(given)["e"].shape == (5, 6, 4)  # the same symbols
    for shapes, message in (
        ({"z": (1,)}, "no input 'z'"),
        ({"f": (4,)}, r"'f' cannot have the shape \[4\]"),
        ({"ids": (1, 2, 3)}, r"'ids' cannot have"),
        ({"ids": (1, 2), "e": (1, 3, 4)}, r"'e' cannot have"),
    ):
        with pytest.raises(UsageError, match=message):
            profile.with_shapes(specs, shapes)


def test_given_inputs(tmp_path: Path) -> None:
    specs = input_specs(model("(bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"))
    np.savez(tmp_path / "x.npz", x=np.ones(3, np.float32))
    array = profile.inputs_for(specs, given=tmp_path / "x.npz")["x"]
    assert array.dtype == ml_dtypes.bfloat16 and array.shape == (3,)


def test_an_engine_is_measured_at_the_shapes_it_was_made_for(tmp_path: Path) -> None:
    for beside in (None, model(RECTIFIER)):
        path = write_engine(tmp_path, beside)
        specs = profile.specs_of(path)
        sizes = profile.best_sizes(path, specs)
        assert profile.inputs_for(specs, sizes=sizes)["x"].shape == (8, 4)
        chosen = profile.with_shapes(specs, {"x": (3, 4)})  # unless others are asked for
        assert profile.inputs_for(chosen, sizes=profile.best_sizes(path, chosen))["x"].shape == (3, 4)
        np.savez(tmp_path / "x.npz", x=np.ones((5, 4), np.float32))
        assert profile.inputs_for(specs, given=tmp_path / "x.npz", sizes=sizes)["x"].shape == (5, 4)
    onnx.save(model(RECTIFIER), tmp_path / "plain.onnx")
    assert profile.best_sizes(tmp_path / "plain.onnx", profile.specs_of(tmp_path / "plain.onnx")) == {}
