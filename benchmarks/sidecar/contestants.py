"""Who is measured in P3: the bare application first, then the sidecar as it is served in several ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml

from benchmarks.materials import Materials
from benchmarks.sidecar.hosting import plain_sidecar, python_server, ray_sidecar
from serve.cluster import free_port

BARE = "bare uvicorn"
SIDECAR = "sidecar"

ALONE = "sidecar, no shared calls"
"""Each request makes the same two calls as in the bare application; as shipped, several share one."""

GRPC = "sidecar, value network over gRPC"
"""As the bare application asks it, and a sidecar whose value network is elsewhere."""

TENSORS = "sidecar, request as tensors"
"""The same sidecar, asked in the binary form."""

PATIENT = {"budget_ms": 2000.0, "max_in_flight": 1024}
"""No fallbacks: a sidecar that did not ask the value network would win against one that does."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every contestant talks to."""

    materials: Materials
    folder: Path
    value: str
    """gRPC address of the value network."""
    value_http: str
    """The same over HTTP, as ``serve up`` asks a value network that it started."""
    ranker: str


Start = Callable[[Surroundings], AbstractContextManager[str]]


@contextmanager
def _bare(s: Surroundings) -> Iterator[str]:
    port = free_port("127.0.0.1")
    command = ["benchmarks.sidecar.bare", "--surface", str(s.materials.surface_file), "--port", str(port)]
    command += ["--triton", s.value, "--ranker", s.ranker]
    s.folder.mkdir(parents=True, exist_ok=True)
    with python_server(s.folder / "bare.log", command, port) as address:
        yield address


@contextmanager
def _direct(s: Surroundings) -> Iterator[str]:
    with ray_sidecar(s.folder / "direct", _arguments(s)) as stack:
        yield stack.address


@contextmanager
def _alone(s: Surroundings) -> Iterator[str]:
    with ray_sidecar(s.folder / "alone", _arguments(s, "alone", {"coalesce_rows": 1})) as stack:
        yield stack.address


@contextmanager
def _grpc(s: Surroundings) -> Iterator[str]:
    with ray_sidecar(s.folder / "grpc", _arguments(s, value=s.value)) as stack:
        yield stack.address


@contextmanager
def _proxy(s: Surroundings) -> Iterator[str]:
    """Ray's defaults: the request enters through its HTTP proxy."""
    environment = {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    with ray_sidecar(s.folder / "proxy", _arguments(s), environment) as stack:
        yield stack.address


@contextmanager
def _plain(s: Surroundings) -> Iterator[str]:
    config = {
        "surface": s.materials.surface.to_dict(),
        "value_network": {"addresses": [s.value_http], **PATIENT},
        "ranker": {"addresses": [s.ranker]},
    }
    with plain_sidecar(s.folder / "plain", config) as address:
        yield address


def _arguments(
    s: Surroundings,
    name: str = "patient",
    changes: Mapping[str, object] = MappingProxyType({}),
    value: str | None = None,
) -> list[str]:
    config = s.folder / f"{name}.yaml"
    s.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump({"value_network": {**PATIENT, **changes}}), encoding="utf-8")
    arguments = ["--surface", str(s.materials.surface_file), "--config", str(config)]
    return [*arguments, "--triton", value or s.value_http, "--ranker", s.ranker]


CONTESTANTS: Mapping[str, Start] = {
    BARE: _bare,
    SIDECAR: _direct,
    ALONE: _alone,
    GRPC: _grpc,
    "sidecar, plain uvicorn": _plain,
    "sidecar, Ray's default proxy": _proxy,
}
