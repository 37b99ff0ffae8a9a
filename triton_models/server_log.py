"""Finding the line of a tritonserver log that tells a person what went wrong."""

from __future__ import annotations

import re
from pathlib import Path

_HARMLESS = ("NVML", "DCGM", "CudaDriverHelper", "CUDA memory pool", "pinned memory", "nvml")
_PREFIX = re.compile(r"^[EF]\d{4} [\d:.]+ +\d+ [\w./]+:\d+\] *")
_NOT_SPOKEN = re.compile(r"^([IWEF]\d{4} |[|+])")
LONGEST = 500


def last_meaningful_line(path: Path, start: int = 0) -> str | None:
    """The most telling error after byte ``start``: the last model or server error that is not noise."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return most_telling(lines)


def most_telling(lines: list[str]) -> str | None:
    """Pick from log lines; see :func:`last_meaningful_line`."""
    errors = [
        _PREFIX.sub("", line).strip()
        for line in lines
        if _PREFIX.match(line) and not any(word in line for word in _HARMLESS)
    ]
    for wanted in ("failed to load", "in use", "failed to start"):
        found = [line for line in errors if wanted in line]
        if found:
            return _shortened(found[0])
    refused = [line for line in lines if "tritonserver: " in line and "option" in line]
    others = [line.strip() for line in lines if line.strip() and not _NOT_SPOKEN.match(line)]
    spoken = errors or refused or others
    return _shortened(spoken[-1]) if spoken else None


def _shortened(line: str) -> str:
    line = " ".join(line.strip('"').split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
