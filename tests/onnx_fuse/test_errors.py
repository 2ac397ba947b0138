"""What errors say: with options on the command line, with arguments in Python."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import onnx_fuse
from docs.generate import messages
from onnx_fuse import errors, runtime
from onnx_fuse.errors import did_you_mean, in_python
from onnx_fuse.learning import from_example
from onnx_fuse.runtime.serve.deploy import deploy
from onnx_fuse.runtime.tensorrt.config import EngineConfig

ERRORS = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.OnnxFuseError)]


@pytest.mark.parametrize(
    ("told", "in_words_of_python"),
    [
        ("Give inputs that it runs on: --inputs FILE.npz.", 'Give inputs that it runs on: inputs="FILE.npz".'),
        ("--no-verify deploys it without running it.", "verify=False deploys it without running it."),
        ("Leave it out with --disable FusedSwish.", 'Leave it out with disable=["FusedSwish"].'),
        ("Give it longer with --verify-timeout SECONDS.", "Give it longer with verify_timeout=SECONDS."),
        ("Give sizes, with --sizes NAME=N for each.", 'Give sizes, with sizes={"NAME": N} for each.'),
        ("Leave --max-batch-size out.", "Leave max_batch_size out."),
        ("Keep them as functions (--functions keep).", 'Keep them as functions (functions="keep").'),
        ("Force the kernels with --library.", "Force the kernels with library=True."),
        ("A target such as --target SM86.", 'A target such as targets=["SM86"].'),
        ("Build it: onnx-fuse plugins build --for onnxruntime", "Build it: onnx-fuse plugins build --for onnxruntime"),
        ("Build one (onnx-fuse plugins build --arch), or --plugins.", "Build one (onnx-fuse plugins build --arch), or plugins."),
        ("Install it: pip install --no-deps headers", "Install it: pip install --no-deps headers"),
    ],
)  # fmt: skip
def test_options_are_arguments_in_python(told: str, in_words_of_python: str) -> None:
    error = errors.UsageError("It does not fit.", told)
    assert error.remedy == told
    assert str(error) == f"It does not fit.\n{in_words_of_python}"


def test_every_argument_that_is_told_exists() -> None:
    functions = (
        onnx_fuse.fuse,
        onnx_fuse.FuseResult.save,
        onnx_fuse.verify,
        onnx_fuse.explain,
        onnx_fuse.export,
        runtime.open,
        deploy,
        from_example,
    )
    known = {name for function in functions for name in inspect.signature(function).parameters}
    known |= {field.name for field in dataclasses.fields(EngineConfig)}
    for _, cause, remedy in messages():
        for option in re.findall(r"--(?:no-)?[a-z-]+", remedy):
            told = in_python(f"Say {option}.")
            named = re.fullmatch(r"Say (\w+)(=.*)?\.", told)
            assert named is not None, (cause, remedy)
            is_kept = option in in_python(remedy)  # part of a command
            of_command = cause.startswith("-") or "of your own are for" in cause  # only the command raises it
            assert is_kept or of_command or named[1] in known, (cause, remedy)


def test_the_name_that_was_meant() -> None:
    known = ["FusedSwish", "FMInteraction"]
    assert did_you_mean("fusedswich", known) == "Did you mean FusedSwish? "
    assert did_you_mean("something", known) == ""


def test_all_errors_are_at_the_top() -> None:
    for kind in ERRORS:
        assert getattr(onnx_fuse, kind.__name__) is kind and kind.__name__ in onnx_fuse.__all__
        assert kind.__doc__ and kind.exit_code
