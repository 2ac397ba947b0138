"""Every path on the command line is an input or an output, and no output of any command lands on an input."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import pytest
import typer.main
from typer.testing import CliRunner

from onnx_fuse.cli import paths
from onnx_fuse.cli.app import app
from tests import helpers

# Parameters that take text and are no paths. One that is not here has to say in its type what it is.
TEXT = {
    "fuse": {"disable", "require", "sizes", "device"},
    "explain": {"pattern", "at"},
    "bench": {"shapes"},
    "build": {"shapes", "workspace", "target"},
    "learn": {"op", "inputs", "attribute", "constant", "fixed", "domain", "plugin_namespace", "plugin_version"},
    "deploy": {"name", "server", "image"},
    "plugins check": {"sizes"},
}


def commands() -> dict[str, Any]:
    """Name -> command, of all commands as Typer has them."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for inner, item in command.commands.items():
                yield from walk(f"{name} {inner}".strip(), item)
        else:
            yield name, command

    return dict(walk("", typer.main.get_command(app)))


COMMANDS = commands()


def function(command: Any) -> Any:
    return inspect.unwrap(command.callback)


def parameter_types(command: Any) -> dict[str, set[type]]:
    """Parameter -> the types that are in its annotation, within lists and unions."""

    def within(hint: Any) -> set[type]:
        return set().union(*map(within, get_args(hint))) if get_args(hint) else {hint}

    hints = get_type_hints(function(command))
    return {name: within(hint) for name, hint in hints.items() if name != "return"}


def written() -> Iterator[tuple[str, str]]:
    """Each command with each of its outputs."""
    for name, command in COMMANDS.items():
        for parameter, role in paths.roles(function(command)).items():
            if role.written:
                yield name, parameter


def read() -> Iterator[tuple[str, str, str]]:
    """Each output of a command with each of its inputs."""
    for name, output in written():
        for parameter, role in paths.roles(function(COMMANDS[name])).items():
            if not role.written:
                yield name, output, parameter


def arguments(name: str, given: dict[str, str]) -> list[str]:
    """A command line with these values of parameters, and with something for the other ones that must be there."""
    positional, options = [], []
    for parameter in COMMANDS[name].params:
        value = given.get(parameter.name, f"some_{parameter.name}" if parameter.required else None)
        if value is None:
            continue
        if parameter.param_type_name == "argument":
            positional.append(value)
        else:
            options += [parameter.opts[-1], value]
    return [*name.split(), *positional, *options]


def as_value(name: str, parameter: str, file: Path) -> str:
    """A value of the parameter that stands for the file."""
    role = paths.roles(function(COMMANDS[name]))[parameter]
    return str(file.parent if role is paths.KERNELS else f"{file}:Class" if role is paths.EXAMPLE else file)


def refused(name: str, given: dict[str, str]) -> None:
    done = CliRunner().invoke(app, arguments(name, given))
    assert done.exit_code == 2, done.output
    assert "would overwrite" in done.stderr and "hint: " in done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_says_what_it_is(name: str) -> None:
    roles, text = paths.roles(function(COMMANDS[name])), TEXT.get(name, set())
    types = parameter_types(COMMANDS[name])
    assert set(types) == {parameter.name for parameter in COMMANDS[name].params}
    for parameter, kinds in types.items():
        if Path in kinds or (str in kinds and parameter not in text):
            assert parameter in roles, f"{name}: is {parameter} read or written? See onnx_fuse/cli/paths.py."
    assert text <= set(types) - set(roles)


@pytest.mark.parametrize(("name", "output", "source"), list(read()))
@pytest.mark.parametrize("way", ["itself", "link", "hard link"])
def test_no_output_lands_on_an_input(folder: Path, name: str, output: str, source: str, way: str) -> None:
    file = folder / "in" / "input.py"
    file.parent.mkdir()
    file.write_text('{"format": 1, "inputs": [], "precision": "float32", "plugin_libraries": []}')
    before = file.read_bytes()
    target = file
    if way != "itself":
        target = folder / "other"
        target.symlink_to(file) if way == "link" else os.link(file, target)
    there = sorted(folder.rglob("*"))
    refused(name, {source: as_value(name, source, file), output: str(target)})
    assert file.read_bytes() == before and sorted(folder.rglob("*")) == there


@pytest.mark.parametrize(("name", "output"), list(written()))
def test_no_two_outputs_land_on_one_file(folder: Path, name: str, output: str) -> None:
    (folder / "link").symlink_to(".")
    for other in [parameter for command, parameter in written() if command == name and parameter != output]:
        refused(name, {output: str(folder / "new"), other: str(folder / "link" / "new")})
    assert os.listdir(folder) == ["link"]


def test_the_record_beside_an_output_counts(folder: Path) -> None:
    (folder / "in.json").write_text("{}")
    refused("build", {"model": "in.json", "out": "in"})
    refused("build", {"model": "m.onnx", "out": "e", "report": "e.json"})
    (folder / "x.so.json").write_text("{}")
    refused("build", {"model": "m.onnx", "out": "e", "plugins": "x.so", "report": "x.so.json"})


def test_data_files_count(folder: Path) -> None:
    made = helpers.model("(float[n,4] x) => (float[n,4] y) { y = Mul(x, w) }", weights={"w": np.ones(400, np.float32)})
    onnx.save(made, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = Path("weights.bin").read_bytes()
    os.link("weights.bin", "hard")
    for output in ("weights.bin", "hard", "m.onnx"):
        refused("fuse", {"model": "m.onnx", "out": output})
        refused("fuse", {"model": "m.onnx", "out": "new.onnx", "report": output})
        refused("build", {"model": "m.onnx", "out": "new.engine", "timing_cache": output})
        refused("debug", {"fused": "m.onnx", "dump_network": output})
        refused("learn", {"example": "m.onnx", "out": output})
    # Where a data file is going to be copied, too.
    Path("out").mkdir()
    refused("fuse", {"model": "m.onnx", "out": "out/new.onnx", "report": "out/weights.bin"})
    assert Path("weights.bin").read_bytes() == before and os.listdir("out") == []


def test_what_is_apart_is_written(folder: Path) -> None:
    onnx.save(helpers.model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }"), "m.onnx")
    line = arguments("fuse", {"model": "m.onnx", "out": "new.onnx", "report": "r.json"})
    for _ in range(2):  # outputs that are there already are no inputs
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
    assert sorted(os.listdir(folder)) == ["m.onnx", "new.onnx", "r.json"]


@pytest.mark.parametrize("output", ["/dev/null", "/dev/full", "pipe", "circle", "x" * 300])
def test_outputs_that_are_no_files(folder: Path, output: str) -> None:
    onnx.save(helpers.model("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"), "m.onnx")
    Path("lib").mkdir()
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    before = sorted(os.listdir(folder))
    for name, parameter in written():
        made = {"fused": "m.onnx", "original": "m.onnx", "model": "m.onnx", "example": "m.onnx", "out": "new"}
        known = {item.name for item in COMMANDS[name].params}
        given = {key: value for key, value in made.items() if key in known} | {parameter: output}
        done = CliRunner().invoke(app, arguments(name, given))
        assert done.exit_code == 6 and "hint: " in done.stderr, (name, parameter, done.output)
        assert sorted(os.listdir(folder)) == before


def test_libraries_that_are_found_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib.so").write_bytes(b"library")
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", str(folder / "lib.so"))
    refused("build", {"model": "m.onnx", "out": str(folder / "lib.so")})
    refused("debug", {"dump_network": str(folder / "lib.so")})
    assert (folder / "lib.so").read_bytes() == b"library"
