"""Whole commands and the Python API: inputs stay as they are, outputs that cannot be written are refused, and all that is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnx_fuse
from onnx_fuse import learning
from onnx_fuse.cli.app import app
from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.passes.select.measured import Verdicts
from tests.helpers import model

SWISH = "(float[n,4] x) => (float[n,4] y) { a = Sigmoid(x) b = Mul(x, a) y = Mul(b, w) }"
LONG = "x" * 300


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its weights in weights.bin; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(
        model(SWISH, weights={"w": np.ones(4, np.float32)}),
        "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def untouched(folder: Path, action: Callable[[], object]) -> None:
    before = contents(folder)
    with pytest.raises(UsageError, match="would overwrite"):
        action()
    assert contents(folder) == before


class TestPythonApi:
    def test_a_fused_model(self, split: Path) -> None:
        result = onnx_fuse.fuse("m.onnx", enable=["FusedSwish"])
        os.link("m.onnx", "hard.onnx")
        Path("link.onnx").symlink_to("weights.bin")
        for path in ("m.onnx", "./m.onnx", "hard.onnx", "weights.bin", "link.onnx"):
            untouched(split, lambda path=path: result.save(path))  # type: ignore[misc]
        result.save("fused.onnx")

    def test_a_learned_fusion(self, split: Path) -> None:
        onnx.save(model("(float[n,4] x) => (float[n,4] y) { a = Tanh(x) y = Mul(x, a) }"), "example.onnx")
        fusion = learning.from_example("example.onnx", "Gate")
        untouched(split, lambda: fusion.save("example.onnx"))
        fusion.save("gate.onnx")
        untouched(split, lambda: learning.load("gate.onnx").save("gate.onnx"))

    def test_an_engine(self, split: Path) -> None:
        pytest.importorskip("tensorrt_rtx")
        from onnx_fuse.runtime import builder
        from onnx_fuse.runtime.tensorrt.config import EngineConfig

        Path("lib.so").write_bytes(b"library")
        os.rename("weights.bin", "weights.bin.json")
        changed = onnx.load("m.onnx", load_external_data=False)
        changed.graph.initializer[0].external_data[0].value = "weights.bin.json"
        Path("m.onnx").write_bytes(changed.SerializeToString())
        for output, config in (
            ("m.onnx", EngineConfig()),
            ("weights.bin", EngineConfig()),  # its record would be weights.bin.json
            ("lib.so", EngineConfig(plugins=["lib.so"])),
            ("e.engine", EngineConfig(timing_cache="m.onnx")),
            ("e.engine", EngineConfig(timing_cache="e.engine.json")),
        ):
            untouched(split, lambda output=output, config=config: builder.build("m.onnx", output, config))  # type: ignore[misc]


class TestExitCodes:
    @pytest.mark.parametrize("name", [LONG, "circle", "folder", "/dev/zero", "garbage", "secret"])
    @pytest.mark.parametrize(
        "command",
        [
            ["fuse", "MODEL", "-o", "out.onnx"],
            ["fuse", "m.onnx", "--with", "MODEL", "-o", "out.onnx"],
            ["explain", "MODEL"],
            ["verify", "m.onnx", "MODEL"],
            ["inspect", "MODEL"],
            ["parse", "MODEL"],
            ["bench", "MODEL"],
            ["build", "MODEL", "-o", "e.engine"],
            ["debug", "MODEL", "m.onnx"],
            ["learn", "MODEL", "-o", "out.onnx"],
            ["deploy", "MODEL", "-o", "repo"],
        ],
    )
    def test_a_model_that_cannot_be_read(
        self, split: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], name: str
    ) -> None:
        Path("circle").symlink_to("circle")
        Path("folder").mkdir()
        Path("garbage").write_bytes(b"\xff\xfe garbage")
        Path("secret").write_bytes(Path("m.onnx").read_bytes())
        Path("secret").chmod(0)
        # Tests may run as root, who reads everything; Typer asks os.access.
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, *rest, **more: str(path) != "secret" and access(path, *rest, **more)
        )
        before = sorted(os.listdir())
        done = run(*(name if part == "MODEL" else part for part in command))
        if name != "secret" or os.geteuid():
            assert done.exit_code == 5, done.output
            assert "error: " in done.stderr and "hint: " in done.stderr
            assert sorted(os.listdir()) == before
        else:
            assert "not readable" not in done.stderr

    @pytest.mark.parametrize("name", ["b.txt", "b.onnxtxt"])
    def test_an_example_that_is_no_text(self, split: Path, name: str) -> None:
        Path(name).write_bytes(b"\xff\xfe\x00")
        assert run("learn", name, "-o", "out.onnx").exit_code == 5

    @pytest.mark.parametrize("option", [["--plugins"], ["--config"], ["--timing-cache"]])
    @pytest.mark.parametrize("name", [LONG, "circle", "folder"])
    def test_other_files_that_cannot_be_read(self, split: Path, option: list[str], name: str) -> None:
        Path("circle").symlink_to("circle")
        Path("folder").mkdir()
        done = run("build", "m.onnx", "-o", "e.engine", *option, name)
        assert done.exit_code in (2, 6) and "hint: " in done.stderr, done.output

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_where_nothing_can_be_printed(self, split: Path) -> None:
        script = f"{sys.executable} -m onnx_fuse"
        for command, code, said in (
            (f"{script} inspect m.onnx > /dev/full", 6, "Cannot write to standard output: No space left"),
            (f"{script} inspect m.onnx > /dev/full 2> /dev/full", 6, ""),
            (f"{script} inspect no.onnx 2> /dev/full", 5, ""),
            (f"{script} inspect m.onnx >&-", 0, ""),
        ):
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
            assert done.returncode == code and said in done.stderr and "internal" not in done.stderr, command


def test_weights_with_several_hard_links(split: Path) -> None:
    """As `cp -l` and package stores make them; onnx's own reader refuses such files."""
    made = model(
        "(float[n,4] x) => (float[n,4] y) { a = Sigmoid(x) b = Mul(x, a) c = Mul(b, w) y = Reshape(c, s) }",
        weights={"w": np.ones(1, np.float32), "s": np.array([-1, 4])},
    )
    onnx.save(made, "h.onnx", save_as_external_data=True, location="h.bin", size_threshold=0)
    alone = run("explain", "h.onnx")
    os.link("h.bin", "h2.bin")
    linked = run("explain", "h.onnx")
    assert linked.exit_code == 0 and (linked.stdout, linked.stderr) == (alone.stdout, alone.stderr)
    assert "hard link" not in linked.output


class TestRecords:
    @pytest.mark.parametrize(
        "text", ["", "[]", "[" * 100_000, '{"a":' * 100_000, "{}", '{"format": 1, "definition": []}']
    )
    def test_of_a_learned_fusion(self, split: Path, text: str) -> None:
        onnx.save(model("(float[n,4] x) => (float[n,4] y) { a = Tanh(x) y = Mul(x, a) }"), "example.onnx")
        learning.from_example("example.onnx", "Gate").save("gate.onnx")
        changed = onnx.load("gate.onnx")
        changed.metadata_props[0].value = text
        onnx.save(changed, "gate.onnx")
        with pytest.raises(ModelError, match="is damaged") as caught:
            learning.load("gate.onnx")
        assert "Learn it again" in caught.value.remedy
        assert run("explain", "m.onnx", "--with", "gate.onnx").exit_code == 5

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"ratio": "x"}', '{"ratio": 1.0, "low": null}'])
    def test_of_a_verdict_is_as_if_there_were_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "key.json").write_text(text)
        assert Verdicts(tmp_path).get("key") is None

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, json.dumps({"format": 1}), json.dumps({"format": [1]})])
    def test_of_a_build(self, split: Path, text: str) -> None:
        Path("m.build.json").write_text(text)
        done = run("build", "m.onnx", "-o", "e.engine", "--config", "m.build.json")
        assert done.exit_code == 2 and "m.build.json" in done.stderr and "hint: " in done.stderr
