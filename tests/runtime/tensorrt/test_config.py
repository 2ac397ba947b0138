"""What can be asked of a build: shapes as text, sizes, the export step's configuration; and the profiles that follow for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime import EngineConfig, read_shapes
from onnx_fuse.runtime.device.engine_file import ShapeRange
from onnx_fuse.runtime.tensorrt.config import read_size
from onnx_fuse.runtime.tensorrt.profiles import profiles_for
from onnx_fuse.runtime.verify.random_inputs import input_specs
from tests.helpers import model

TWO_INPUTS = "(int64[batch, sequence] ids, float[batch, sequence] mask) => (float[batch, sequence] y) { c = Cast<to=1>(ids) y = Mul(c, mask) }"


def profiles(text: str, **settings: Any) -> tuple[Any, Any]:
    return profiles_for(input_specs(model(text)), EngineConfig(**settings))


def test_shapes_as_text() -> None:
    assert read_shapes([]) == ()
    (one,) = read_shapes(["ids:1x16:8x128:32x512", "scale:4"])
    assert one == {"ids": ShapeRange((1, 16), (8, 128), (32, 512)), "scale": ShapeRange((4,), (4,), (4,))}
    (tensorflow,) = read_shapes(["input:0:1x2:2x2:3x2"])
    assert tensorflow == {"input:0": ShapeRange((1, 2), (2, 2), (3, 2))}


def test_a_name_that_comes_again_begins_another_profile() -> None:
    first, second = read_shapes(["x:1:2:3", "mask:1:9:9", "x:4:5:6"])
    assert (first["x"].opt, second["x"].opt) == ((2,), (5,))
    assert first["mask"] == second["mask"]
    with pytest.raises(UsageError, match="y has 2 ranges of shapes, another input has 3"):
        read_shapes(["x:1:2:3", "x:1:2:3", "x:1:2:3", "y:1:2:3", "y:1:2:3"])


@pytest.mark.parametrize("text", ["ids", "ids:", "ids:axb", "1x16", "ids:1x:2x:3x"])
def test_text_that_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="NAME:MIN:OPT:MAX"):
        read_shapes([text])


@pytest.mark.parametrize("text", ["x:4:2:8", "x:1:9:8", "x:1x2:2:3"])
def test_ranges_out_of_order(text: str) -> None:
    with pytest.raises(UsageError, match="not in the order min, opt, max"):
        read_shapes([text])


def test_sizes() -> None:
    assert [read_size(text) for text in ("2G", "512m", "1.5K", "4096", "1 GiB", "3kb")] == [
        2 << 30, 512 << 20, 1536, 4096, 1 << 30, 3072,
    ]  # fmt: skip
    for text in ("", "G", "2P", "-1", "two"):
        with pytest.raises(UsageError, match="is no size"):
            read_size(text)


def test_settings_have_one_form() -> None:
    config = EngineConfig(precision="bf16", workspace="1M", targets=["sm_86", "12.0", "SM120"], plugins=["a.so"])
    assert config.precision == "bfloat16" and config.workspace == 1 << 20
    assert config.targets == ("SM86", "SM120") and config.plugins == (Path("a.so"),)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"precision": "half"}, "precision 'half' is not known"),
        ({"opt_level": 6}, "level is 6"),
        ({"workspace": 0}, "workspace is 0"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"targets": ["hopper"]}, "'hopper' is no compute capability"),
        ({"profiles": [{"x": ShapeRange((2,), (1,), (3,))}]}, "not in the order"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineConfig(**settings)


def test_what_is_not_given_is_assumed_and_said() -> None:
    (profile,), assumed = profiles(TWO_INPUTS)
    assert profile["ids"] == profile["mask"] == ShapeRange((1, 1), (8, 128), (32, 512))
    assert assumed == ("batch is 1 to 32, optimised for 8", "sequence is 1 to 512, optimised for 128")


def test_one_input_speaks_for_the_others_and_max_batch_size_for_batches() -> None:
    (profile,), assumed = profiles(TWO_INPUTS, profiles=read_shapes(["ids:2x16:4x32:8x64"]))
    assert profile["mask"] == ShapeRange((2, 16), (4, 32), (8, 64)) and assumed == ()
    (profile,), assumed = profiles(TWO_INPUTS, max_batch_size=64)
    assert profile["ids"] == ShapeRange((1, 1), (64, 128), (64, 512)) and len(assumed) == 1


def test_sizes_that_follow_from_others() -> None:
    text = '(float[batch, past] a, float[batch, "past + 1"] b) => (float[batch, m] y) { y = Concat<axis=1>(a, b) }'
    made = model(text.replace('"past + 1"', "total"))
    made.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "past + 1"
    (profile,), _ = profiles_for(input_specs(made), EngineConfig(profiles=read_shapes(["a:1x4:2x5:3x6"])))
    assert profile["b"] == ShapeRange((1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"profiles": read_shapes(["idx:1:2:3"])}, "no input 'idx'"),
        ({"profiles": read_shapes(["ids:1:2:3"])}, "shapes of rank 1"),
        ({"profiles": read_shapes(["ids:1x1:2x2:3x3", "mask:1x1:2x2:4x3"])}, "batch of input mask was given 1:2:4"),
    ],
)
def test_shapes_that_do_not_fit_the_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles(TWO_INPUTS, **settings)


def test_a_fixed_dimension_stays() -> None:
    fixed = "(float[4, n] x) => (float[4, n] y) { y = Relu(x) }"
    with pytest.raises(UsageError, match=r"4:5:6 for a dimension that is always 4"):
        profiles(fixed, profiles=read_shapes(["x:4x1:5x2:6x3"]))
    static = "(float[4, 2] x) => (float[4, 2] y) { y = Relu(x) }"
    assert profiles(static)[0] == ({"x": ShapeRange((4, 2), (4, 2), (4, 2))},)
    with pytest.raises(UsageError, match="no input has a batch"):
        profiles(static, max_batch_size=2)


def test_the_configuration_of_a_real_export(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    done = onnx_fuse.export(
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).half(),
        (torch.randn(2, 5, 8).half(),),
        tmp_path / "block.onnx",
        dynamic_shapes={"input": {0: "batch", 1: "sequence"}},
        sizes={"batch": [1, 4, 16]},
        plugin_libraries=["libp.so"],
        dynamo=False,
    )
    config = EngineConfig.from_json(done.build)
    assert config == EngineConfig(
        profiles=[{"input": ShapeRange((1, 5, 8), (4, 5, 8), (16, 5, 8))}],
        precision="float16",
        plugins=["libp.so"],
        assumed=["sequence = 5, as in the example of the export"],
    )
    (profile,), assumed = profiles_for(input_specs(onnx_fuse.passes.files.io.load(done.fused)), config)
    assert profile == config.profiles[0] and assumed == tuple(config.assumed)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "x.build.json"
    for content, message in (
        ("{", "cannot be read"),
        ("[]", "it is no JSON object"),
        ('{"format": 2}', "no build configuration of format 1"),
        ('{"format": 1, "inputs": [{}]}', "is damaged"),
        (json.dumps({"format": 1, "inputs": [], "precision": "fp4", "plugin_libraries": []}), "fp4"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            EngineConfig.from_json(path)
    with pytest.raises(UsageError, match="cannot be read"):
        EngineConfig.from_json(tmp_path / "none.json")
