"""What runs a model repository: a Dockerfile for the server's image, and manifests for Kubernetes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx_fuse import installation
from onnx_fuse.errors import UsageError

_BASE = "nvcr.io/nvidia/tritonserver:{server}-py3"
_PLUGINS = "/opt/plugins"
REPOSITORY = "/models"
"""Where the image has the model repository."""
_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
_WAITING = "nv_inference_pending_request_count"
"""The server's gauge of requests that wait for an instance, for each model."""
_MOST_REPLICAS = 8


@dataclass(frozen=True)
class Settings:
    """What the files depend on.

    Attributes:
        name: of the model.
        server: release of the server's image.
        image: what the built image is called.
        gpus: GPUs of a pod; 0: it runs on the CPU.
        plugins: file names of the plugin libraries.
        waiting: requests that may wait in a pod, on average, before another one is started.
    """

    name: str
    server: str
    image: str
    gpus: int
    plugins: tuple[str, ...]
    waiting: int


_RELEASE = re.compile(r"\d\d\.\d\d")
_MODEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""The name of a folder and of a part of addresses, and the value of a label in Kubernetes."""
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"([A-Za-z0-9.-]+(:\d+)?/)?{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
)
"""A reference to an image: registry, path, tag and digest (github.com/distribution/reference)."""
_LIBRARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""The server splits its list of plugin libraries at semicolons."""


def check_names(*, model: str, server: str, image: str | None, plugins: Sequence[str]) -> None:
    """Refuses what would be something else than a name in a Dockerfile, a manifest or the server's options.

    Raises:
        UsageError: which one, and what it has to look like.
    """
    for pattern, text, what, remedy in (
        (
            _MODEL,
            model,
            "name for a model",
            "Use up to 63 letters, digits, _, - and dots; begin and end with a letter or digit.",
        ),
        (_RELEASE, server, "release of the server", "Give a year and a month, such as 26.07 (--server)."),
        (
            _IMAGE,
            image or "image",
            "name for an image",
            "Give a name such as registry.example.com/team/model:1 (--image).",
        ),
        *(
            (_LIBRARY, item, "file name for a plugin library", "Use letters, digits and _ . + - only.")
            for item in plugins
        ),
    ):
        if not pattern.fullmatch(text):
            raise UsageError(f"{text!r} is no {what}.", remedy)
    twice = [item for number, item in enumerate(plugins) if item in plugins[:number]]
    if twice:
        raise UsageError(f"Two plugin libraries are called {twice[0]}.", "They go into one folder: rename one of them.")


def resource_name(name: str) -> str:
    """A model's name as Kubernetes takes names: up to 63 lower-case letters, digits and dashes, the first a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:63].strip("-")


def written(settings: Settings) -> dict[str, str]:
    """Path -> text of every file."""
    yaml = installation.require("yaml", extra="deploy", purpose="write manifests", package="PyYAML")
    manifests = {
        "deployment": _deployment(settings),
        "service": _service(settings),
        "autoscaler": _autoscaler(settings),
        "monitor": _monitor(settings),
    }
    texts = {f"kubernetes/{name}.yaml": yaml.safe_dump(item, sort_keys=False) for name, item in manifests.items()}
    return {"Dockerfile": _dockerfile(settings), **texts}


def _dockerfile(settings: Settings) -> str:
    command = ["tritonserver", f"--model-repository={REPOSITORY}", "--disable-auto-complete-config"]
    lines = [f"FROM {_BASE.format(server=settings.server)}"]
    if settings.plugins:
        paths = ";".join(f"{_PLUGINS}/{name}" for name in settings.plugins)
        command.append(f"--backend-config=tensorrt,plugins={paths}")
        # The server opens plugin libraries and asks for no creators: they have to register by themselves.
        lines += [f"COPY plugins {_PLUGINS}", "ENV ONNX_FUSE_REGISTER_PLUGINS=1"]
    lines += [
        f"COPY models {REPOSITORY}",
        f"EXPOSE {' '.join(map(str, _PORTS.values()))}",
        f"CMD {json.dumps(command)}",
    ]
    return "\n".join(lines) + "\n"


def _metadata(settings: Settings) -> dict[str, Any]:
    return {"name": resource_name(settings.name), "labels": _labels(settings)}


def _labels(settings: Settings) -> dict[str, str]:
    return {"app.kubernetes.io/name": resource_name(settings.name)}


def _probe(path: str, **timing: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def _deployment(settings: Settings) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "tritonserver",
        "image": settings.image,
        "ports": [{"name": name, "containerPort": port} for name, port in _PORTS.items()],
        # An engine or a large model takes minutes to load; the other probes begin after the first one.
        "startupProbe": _probe("/v2/health/ready", periodSeconds=5, failureThreshold=120),
        "readinessProbe": _probe("/v2/health/ready", periodSeconds=5),
        "livenessProbe": _probe("/v2/health/live", periodSeconds=10),
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if settings.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(settings.gpus)}}
    pod = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000},
        "terminationGracePeriodSeconds": 60,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(settings),
        "spec": {
            # No number of replicas: that is the autoscaler's.
            "selector": {"matchLabels": _labels(settings)},
            "template": {"metadata": {"labels": _labels(settings)}, "spec": pod},
        },
    }


def _service(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(settings),
        "spec": {
            "selector": _labels(settings),
            "ports": [{"name": name, "port": port, "targetPort": name} for name, port in _PORTS.items()],
        },
    }


def _autoscaler(settings: Settings) -> dict[str, Any]:
    metric = {"name": _WAITING, "selector": {"matchLabels": {"model": settings.name}}}
    target = {"type": "AverageValue", "averageValue": str(settings.waiting)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(settings),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": resource_name(settings.name)},
            "minReplicas": 1,
            "maxReplicas": _MOST_REPLICAS,
            "metrics": [{"type": "Pods", "pods": {"metric": metric, "target": target}}],
        },
    }


def _monitor(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": _metadata(settings),
        "spec": {
            "selector": {"matchLabels": _labels(settings)},
            "endpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }
