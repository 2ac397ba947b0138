"""Builds engines in a process of its own, as plugin libraries stay loaded: JSON in and out.

    {"jobs": [{"model": PATH, "output": PATH, "config": {...}}]}

Each job answers with what `Built.to_dict` says, or {"error": its cause}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.runtime import EngineConfig, build


def answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return build(job["model"], job["output"], EngineConfig(**job["config"])).to_dict()
    except OnnxFuseError as error:
        return {"error": error.cause}


def main() -> None:
    json.dump([answer(job) for job in json.load(sys.stdin)["jobs"]], sys.stdout)


if __name__ == "__main__":
    main()
