"""What stands beside every figure: the machine, the versions, the load, the command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy", "tritonclient", "nvidia-pytriton")


SERVING_PACKAGES = ("ray", "fastapi", "uvicorn", "locust", "grpcio", *PACKAGES[1:2], *PACKAGES[4:])
"""What the sidecar's figures depend on."""


def describe_machine(
    arguments: list[str] | None = None, *, packages: Sequence[str] = PACKAGES, gpu: bool = True
) -> dict[str, Any]:
    """Machine, versions and command as plain data; ``gpu`` False does not load torch to look for one."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", *(arguments if arguments is not None else _command())]),
        "code_version": _code_version(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name)) is not None},
        "gpu": gpu_name() if gpu else None,
        "load_average": round(os.getloadavg()[0], 2),
    }


def gpu_name() -> str | None:
    """Name of the first GPU that torch sees."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _command() -> list[str]:
    return [Path(sys.argv[0]).parent.name or sys.argv[0], *sys.argv[1:]]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    megahertz = fields.get("cpu MHz", "?")
    return f"{name}, family {fields['cpu family']} model {fields.get('model', '?')}, {megahertz} MHz"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_version() -> str:
    """Commit of this checkout, with ``-dirty`` where files differ; unknown outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
