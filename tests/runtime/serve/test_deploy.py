"""Deployments: what the server would read, and that it fits the model. The server itself was never run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse import runtime
from onnx_fuse.errors import ModelError, OnnxFuseError, OutputError, UsageError
from onnx_fuse.runtime.device import engine_file
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor, ShapeRange
from onnx_fuse.runtime.onnxruntime import kernel_library, sessions
from onnx_fuse.runtime.serve import manifests
from onnx_fuse.runtime.serve.deploy import Deployment, deploy
from tests.helpers import model
from tests.runtime.onnxruntime import libraries

config_messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="onnx-fuse[deploy]")
yaml = pytest.importorskip("yaml")

from google.protobuf import text_format

LINEAR = "(float[N,4] x, int64[N] id) => (float[N,3] y, float[N] total) { t = MatMul(x, w)  f = Cast<to = 1>(id)  i = Unsqueeze(f, one)  y = Add(t, i)  total = ReduceSum<keepdims = 0>(y, one) }"
WEIGHTS = {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "one": np.array([1])}
# The mean over the batch: rows that are computed together are not what they are alone.
MIXED = "(float[N,4] x) => (float[N,4] y) { m = ReduceMean<axes = [0], keepdims = 1>(x)  y = Sub(x, m) }"


def saved(path: Path, text: str, **options: Any) -> Path:
    onnx.save(model(text, **options), path)
    return path


def read_config(done: Deployment) -> Any:
    """config.pbtxt, read by the server's own protobuf."""
    text = (done.folder / "models" / done.name / "config.pbtxt").read_text()
    return text_format.Parse(text, config_messages.ModelConfig())


def tensors(items: Any) -> dict[str, tuple[str, list[int], bool]]:
    """Name -> type, shape, and whether it is reshaped to the empty shape."""
    types = config_messages.DataType
    return {
        item.name: (types.Name(item.data_type), list(item.dims), item.HasField("reshape") and not item.reshape.shape)
        for item in items
    }


def engine(folder: Path, *, plugins: Path | None = None, **changed: Any) -> Path:
    """An engine with its record; its plan is no plan."""
    path = folder / "dlrm.engine"
    path.write_bytes(b"plan")
    facts: dict[str, Any] = {
        "model": "dlrm.onnx",
        "key": "0" * 64,
        "module": "tensorrt",
        "version": "11.1.0",
        "targets": (),
        "inputs": (EngineTensor("dense", "float16", ("batch", 13)), EngineTensor("ids", "int64", ("batch", "items"))),
        "outputs": (EngineTensor("click", "bfloat16", ("batch",)),),
        "profiles": (
            {"dense": ShapeRange((1, 13), (8, 13), (16, 13)), "ids": ShapeRange((1, 1), (8, 4), (16, 9))},
            {"dense": ShapeRange((16, 13), (64, 13), (64, 13)), "ids": ShapeRange((16, 1), (64, 4), (64, 9))},
        ),
        "plugins": {} if plugins is None else {str(plugins): hashlib.sha256(plugins.read_bytes()).hexdigest()},
        "layers": {},
        "sha256": hashlib.sha256(b"plan").hexdigest(),
    }
    engine_file.record_path(path).write_bytes(engine_file.to_json(EngineRecord(**{**facts, **changed})))
    return path


def test_a_model_whose_rows_are_independent_is_batched(tmp_path: Path) -> None:
    path = saved(tmp_path / "linear.v2.onnx", LINEAR, weights=WEIGHTS)
    done = deploy(path, tmp_path / "repo", batch_delay=250, instances=2)
    config = read_config(done)
    assert config == done.config and config.name == done.name == "linear.v2" and config.backend == "onnxruntime"
    assert config.max_batch_size == 32
    assert tensors(config.input) == {"x": ("TYPE_FP32", [4], False), "id": ("TYPE_INT64", [1], True)}
    assert tensors(config.output) == {"y": ("TYPE_FP32", [3], False), "total": ("TYPE_FP32", [1], True)}
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, config_messages.ModelInstanceGroup.KIND_CPU)
    assert "4 batches gave what their rows give alone" in " ".join(done.notes)


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        (MIXED, [-1, 4], [-1, 4]),
        ("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }", [2, 4], [2, 4]),
        ("(float[N,M] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }", [-1, -1], [1]),
        ("(float x) => (float y) { y = Relu(x) }", [1], [1]),
    ],
    ids=["rows mixed", "fixed batch", "scalar output", "scalar input"],
)
def test_a_model_without_a_batch_dimension_is_served_with_its_shapes(
    tmp_path: Path, text: str, inputs: list[int], outputs: list[int]
) -> None:
    path = saved(tmp_path / "m.onnx", text)
    done = deploy(path, tmp_path / "repo")
    config = read_config(done)
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert tensors(config.input) == {"x": ("TYPE_FP32", inputs, False)}
    assert tensors(config.output) == {"y": ("TYPE_FP32", outputs, False)}
    with pytest.raises(UsageError, match=r"cannot be batched: .*(other rows|open dimension)"):
        deploy(path, tmp_path / "again", max_batch_size=8)
    assert not (tmp_path / "again").exists()


def test_batching_can_be_limited_and_turned_off(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", LINEAR, weights=WEIGHTS)
    assert deploy(path, tmp_path / "some", max_batch_size=5).config.max_batch_size == 5
    config = deploy(path, tmp_path / "none", max_batch_size=0, gpus=1, verify=False).config
    assert tensors(config.input)["x"] == ("TYPE_FP32", [-1, 4], False)
    assert config.instance_group[0].kind == config_messages.ModelInstanceGroup.KIND_GPU


def test_every_type_that_the_server_names(tmp_path: Path) -> None:
    kinds = {
        "bool": "BOOL",
        "uint8": "UINT8",
        "int16": "INT16",
        "uint64": "UINT64",
        "float16": "FP16",
        "double": "FP64",
    }
    kinds |= {"string": "STRING"}
    inputs = ", ".join(f"{kind}[N] {kind}_in" for kind in kinds)
    outputs = ", ".join(f"{kind}[N] {kind}_out" for kind in kinds)
    nodes = "\n".join(f"{kind}_out = Identity({kind}_in)" for kind in kinds)
    path = saved(tmp_path / "m.onnx", f"({inputs}) => ({outputs}) {{ {nodes} }}")
    found = tensors(deploy(path, tmp_path / "repo").config.output)
    assert {name: kind for name, (kind, _, _) in found.items()} == {f"{k}_out": f"TYPE_{v}" for k, v in kinds.items()}
    path = saved(tmp_path / "odd.onnx", "(float8e4m3fn[N] x) => (float8e4m3fn[N] y) { y = Identity(x) }", opset=19)
    with pytest.raises(UsageError, match=r"'x' of .* is float8e4m3fn, a type that the server has no name for"):
        deploy(path, tmp_path / "odd", verify=False)


def test_what_is_deployed_is_the_model_and_runs(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,4] y) { t = MatMul(x, w)  s = Sigmoid(t)  y = Mul(t, s) }"
    original = model(text, weights={"w": np.eye(4, dtype=np.float32)})
    fused = onnx_fuse.fuse(original, enable=["FusedSwish"])
    assert fused.report.fused == {"FusedSwish": 1}
    (tmp_path / "w").mkdir()
    onnx.save(fused.model, tmp_path / "m.onnx", save_as_external_data=True, location="w/m.data", size_threshold=0)
    done = deploy(tmp_path / "m.onnx", tmp_path / "repo", name="swish")
    version = done.folder / "models" / "swish" / "1"
    assert (version / "model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert (version / "w" / "m.data").read_bytes() == (tmp_path / "w" / "m.data").read_bytes()
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    y = sessions.run(sessions.session(version / "model.onnx"), {"x": x})["y"]
    np.testing.assert_allclose(y, x / (1 + np.exp(-x)), rtol=1e-5)


def test_the_newest_that_the_servers_onnx_runtime_knows(tmp_path: Path) -> None:
    made = model("(float[N] x) => (float[N] y) { y = Relu(x) }", opset=onnx.defs.onnx_opset_version())
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"has opset \d+; ONNX Runtime 1.27.0 of server 26.07 knows up to 26"):
        deploy(tmp_path / "m.onnx", tmp_path / "repo")


def test_an_engine_is_served_with_its_profiles_and_plugins(tmp_path: Path) -> None:
    library = tmp_path / "libplugins.so"
    library.write_bytes(b"code")
    done = deploy(
        engine(tmp_path, plugins=library), tmp_path / "repo", image="registry/dlrm:7", gpus=2, plugins=[library]
    )
    config = read_config(done)
    assert (config.name, config.backend, config.max_batch_size) == ("dlrm", "tensorrt", 64)
    assert tensors(config.input) == {"dense": ("TYPE_FP16", [13], False), "ids": ("TYPE_INT64", [-1], False)}
    assert tensors(config.output) == {"click": ("TYPE_BF16", [1], True)}
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert (done.folder / "models" / "dlrm" / "1" / "model.plan").read_bytes() == b"plan"
    assert (done.folder / "plugins" / "libplugins.so").read_bytes() == b"code"
    dockerfile = (done.folder / "Dockerfile").read_text()
    assert "--backend-config=tensorrt,plugins=/opt/plugins/libplugins.so" in dockerfile
    assert "ENV ONNX_FUSE_REGISTER_PLUGINS=1" in dockerfile
    pod = yaml.safe_load((done.folder / "kubernetes" / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert pod["containers"][0]["image"] == "registry/dlrm:7"
    assert "11.1.0" in done.notes[0]


def test_an_engine_with_a_fixed_batch_or_a_large_smallest_one(tmp_path: Path) -> None:
    path = engine(
        tmp_path,
        inputs=(EngineTensor("x", "float32", (4, 3)),),
        outputs=(EngineTensor("y", "float32", ()),),
        profiles=(),
    )
    config = deploy(path, tmp_path / "fixed").config
    assert config.max_batch_size == 0 and tensors(config.input)["x"][1] == [4, 3]
    assert tensors(config.output)["y"] == ("TYPE_FP32", [1], False) and not config.instance_group[0].profile
    path = engine(
        tmp_path,
        inputs=(EngineTensor("x", "float32", ("n", 3)),),
        outputs=(EngineTensor("y", "float32", ("n",)),),
        profiles=({"x": ShapeRange((8, 3), (8, 3), (16, 3))},),
    )
    done = deploy(path, tmp_path / "large")
    assert "no batch below 8" in " ".join(done.notes) and done.config.max_batch_size == 16
    with pytest.raises(UsageError, match="max_batch_size is 17, and the engine takes up to 16"):
        deploy(path, tmp_path / "larger", max_batch_size=17)


def test_engines_that_cannot_be_served(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"code")
    with pytest.raises(UsageError, match=r"built with tensorrt_rtx, .* only opens engines of tensorrt"):
        deploy(engine(tmp_path, module="tensorrt_rtx"), tmp_path / "repo")
    with pytest.raises(UsageError, match="needs a GPU"):
        deploy(engine(tmp_path), tmp_path / "repo", gpus=0)
    path = engine(tmp_path, plugins=library)
    moved = library.rename(tmp_path / "moved.so")
    with pytest.raises(UsageError, match=r"needs the plugin library .*lib\.so .* it is not there"):
        deploy(path, tmp_path / "repo")
    assert (deploy(path, tmp_path / "found", plugins=[moved]).folder / "plugins" / "moved.so").is_file()
    path.write_bytes(b"other")
    with pytest.raises(ModelError, match="its hash differs"):
        deploy(path, tmp_path / "repo")
    with pytest.raises(ModelError, match="does not exist"):
        deploy(tmp_path / "none.engine", tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "a/b"}, "'a/b' is no name for a model"),
        ({"instances": 0}, "instances is 0"),
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"plugins": ["lib.so"]}, "is no engine, and needs no plugin library"),
        ({"name": "a\nb"}, "is no name for a model"),
        ({"name": "x" * 64}, "is no name for a model"),
        ({"name": "ends-"}, "is no name for a model"),
        ({"server": "26.07-py3\nRUN evil"}, "is no release of the server"),
        ({"server": "$(evil)"}, "is no release of the server"),
        ({"server": ""}, "is no release of the server"),
        ({"image": "a b"}, "is no name for an image"),
        ({"image": "a:1\n"}, "is no name for an image"),
        ({"image": "$HOME/a"}, "is no name for an image"),
        ({"image": "a:'1'"}, "is no name for an image"),
        ({"plugins": ["a;b.so"]}, "is no file name for a plugin library"),
        ({"plugins": ['a".so']}, "is no file name for a plugin library"),
        ({"plugins": ["one/a.so", "two/a.so"]}, "Two plugin libraries are called a.so"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], error: str) -> None:
    path = saved(tmp_path / "m.onnx", MIXED)
    with pytest.raises(UsageError, match=error):
        deploy(path, tmp_path / "repo", **options)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    "file", ["_a.onnx", "a b\nc.onnx", "x" * 200 + ".onnx", "-.onnx", "$(evil).onnx", 'a"b.onnx', "ü.onnx"]
)
def test_any_file_name_gives_a_name_that_the_server_and_kubernetes_take(tmp_path: Path, file: str) -> None:
    done = deploy(saved(tmp_path / file, MIXED), tmp_path / "repo", verify=False)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", done.name)
    assert read_config(done).name == done.name


def test_names_of_tensors_are_quoted(tmp_path: Path) -> None:
    made = model("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    odd = 'a"\n} backend: "python'
    made.graph.input[0].name = made.graph.node[0].input[0] = odd
    onnx.save(made, tmp_path / "m.onnx")
    done = deploy(tmp_path / "m.onnx", tmp_path / "repo")
    assert read_config(done) == done.config and [item.name for item in done.config.input] == [odd]


@pytest.mark.parametrize("image", ["a", "a/b:1", "registry:5000/a/b_c.d--e:V1.2", "r.io/a@sha256:" + "0" * 64])
def test_images_that_there_can_be(image: str) -> None:
    manifests.check_names(model="m", server="26.07", image=image, plugins=["libx-1.2+3.so"])


def test_models_that_cannot_be_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "(float[N] x) => (float[N] y) { y = com.example.Unknown(x) }")
    with pytest.raises(ModelError, match="Unknown"):
        deploy(path, tmp_path / "repo")
    shapeless = model("(float[N,2] x) => (float[N,2] y) { t = NonZero(x)  s = Squeeze(t)  y = Cast<to = 1>(s) }")
    shapeless.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(shapeless, tmp_path / "shapeless.onnx")
    with pytest.raises(ModelError, match=r"Output 'y' of .* has no shape"):
        deploy(tmp_path / "shapeless.onnx", tmp_path / "repo")


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.onnx", MIXED)
    taken = tmp_path / "taken"
    taken.mkdir()
    deploy(path, taken)  # an empty folder is as good as none
    before = sorted(taken.rglob("*"))
    with pytest.raises(OutputError, match="exists and is not empty"):
        deploy(path, taken)
    assert sorted(taken.rglob("*")) == before
    with pytest.raises(OutputError, match="Cannot write"):
        deploy(path, tmp_path / "missing" / "repo")

    def fail(settings: manifests.Settings) -> dict[str, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests, "written", fail)
    with pytest.raises(OutputError, match="No space left"):
        deploy(path, tmp_path / "repo")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.onnx", "taken"]


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(OnnxFuseError, match=r"tritonclient is not installed[\s\S]+\[deploy\]") as caught:
        deploy(saved(tmp_path / "m.onnx", MIXED), tmp_path / "repo")
    assert caught.value.exit_code == 2


def test_the_dockerfile_parses_and_copies_what_is_there(tmp_path: Path) -> None:
    dockerfile = pytest.importorskip("dockerfile")
    library = tmp_path / "lib.so"
    library.write_bytes(b"code")
    folder = deploy(engine(tmp_path, plugins=library), tmp_path / "repo", server="26.05", plugins=[library]).folder
    commands = dockerfile.parse_file(str(folder / "Dockerfile"))
    assert [item.cmd.upper() for item in commands] == ["FROM", "COPY", "ENV", "COPY", "EXPOSE", "CMD"]
    assert commands[0].value[0].endswith("/tritonserver:26.05-py3")
    for copy in (item for item in commands if item.cmd.upper() == "COPY"):
        assert (folder / copy.value[0]).is_dir()
    assert commands[-1].json and commands[-1].value[0] == "tritonserver"
    loaded = commands[-1].value[-1].partition("plugins=")[2]
    assert (folder / "plugins" / Path(loaded).name).is_file()


@pytest.mark.long
def test_the_manifests_are_what_kubernetes_and_the_prometheus_operator_take(tmp_path: Path) -> None:
    """Read into classes made from their published schemas, and written again: nothing is missing, unknown or of another type."""
    pytest.importorskip("cloudcoil.models.prometheus_operator")
    from cloudcoil.models.kubernetes.apps.v1 import Deployment as KubernetesDeployment
    from cloudcoil.models.kubernetes.autoscaling.v2 import HorizontalPodAutoscaler
    from cloudcoil.models.kubernetes.core.v1 import Service
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

    kinds = {
        "deployment": KubernetesDeployment,
        "service": Service,
        "autoscaler": HorizontalPodAutoscaler,
        "monitor": ServiceMonitor,
    }
    folder = deploy(engine(tmp_path), tmp_path / "repo", name="DLRM_v2.1").folder / "kubernetes"
    assert {path.stem for path in folder.iterdir()} == set(kinds)
    found = {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in kinds}
    for name, kind in kinds.items():
        made = kind.model_validate(found[name])
        assert made.model_dump(by_alias=True, exclude_unset=True) == found[name]
    # What the schemas do not say: the parts find each other.
    labels = found["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == found["deployment"]["spec"]["selector"]["matchLabels"] == found["service"]["spec"]["selector"]
    assert found["monitor"]["spec"]["selector"]["matchLabels"] == found["service"]["metadata"]["labels"]
    assert found["autoscaler"]["spec"]["scaleTargetRef"]["name"] == found["deployment"]["metadata"]["name"]
    ports = {port["name"] for port in found["deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in found["service"]["spec"]["ports"]} == ports
    assert found["monitor"]["spec"]["endpoints"][0]["port"] in ports


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("DLRM_v2.1", "dlrm-v2-1"),
        ("7b", "model-7b"),
        ("_", "model"),
        ("x" * 80, "x" * 63),
        ("a." * 40, "a-" * 31 + "a"),
    ],
)
def test_names_that_kubernetes_takes(name: str, resource: str) -> None:
    assert manifests.resource_name(name) == resource


# --- the kernel library -----------------------------------------------------------------------------------------------


@pytest.fixture
def swish(tmp_path: Path) -> Path:
    """A fused model in a file."""
    original = model("(float[N,4] x) => (float[N,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    onnx_fuse.fuse(original, enable=["FusedSwish"]).save(tmp_path / "swish.onnx")
    return tmp_path / "swish.onnx"


def test_the_kernel_library_goes_into_the_repository(
    swish: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_library.VARIABLE, str(libraries.library()))
    done = deploy(swish, tmp_path / "repo", name="swish.v1")
    (named,) = read_config(done).model_operations.op_library_filename
    assert named == f"/models/swish.v1/1/{kernel_library.LIBRARY}"
    # The Dockerfile copies the repository to where the configuration says that the library is.
    assert "COPY models /models" in (done.folder / "Dockerfile").read_text().splitlines()
    inside = done.folder / Path(named).relative_to("/")
    assert inside.read_bytes() == libraries.library().read_bytes()
    assert sum("by the kernels" in note for note in done.notes) == 1
    assert any("4 batches gave what their rows give alone" in note for note in done.notes)
    kept = runtime.OrtSession(inside.with_name("model.onnx"), library=inside)
    assert kept.kernels.nodes == {"FusedSwish": 1}


@pytest.mark.parametrize("options", [{"library": False}, {"gpus": 1}])
def test_without_the_kernel_library(
    options: dict[str, Any], swish: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not wanted, and on a GPU, for which it has no kernels."""
    monkeypatch.setenv(kernel_library.VARIABLE, str(libraries.library()))
    done = deploy(swish, tmp_path / "repo", **options)
    assert not read_config(done).model_operations.op_library_filename
    assert [path.name for path in (done.folder / "models" / "swish" / "1").iterdir()] == ["model.onnx"]
    assert any("fused nodes by their bodies" in note for note in done.notes)


def test_a_kernel_library_that_is_asked_for_has_to_be_there(swish: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No kernel library is found"):
        deploy(swish, tmp_path / "repo", library=True)
    with pytest.raises(UsageError, match="is an engine, and needs no kernel library"):
        deploy(engine(tmp_path), tmp_path / "repo", library=True)
    assert not (tmp_path / "repo").exists()
