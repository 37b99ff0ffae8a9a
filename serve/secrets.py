"""Secrets come from files or the environment, never from a command line, and are never shown.

A source is ``env:NAME`` or the path of a file. Only sources travel in the configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from triton_models.errors import ConfigurationError

SHORTEST = 8
"""What is shorter is a word of many lines, and no secret worth the name."""

READ: set[str] = set()
"""Every secret that this process has read: what the log blots out, whoever would write it (serve.logs)."""


def read_secret(source: str, *, what: str) -> str:
    """The text behind a source.

    Raises:
        ConfigurationError: it is not set, cannot be read or is empty; the message has the source only.
    """
    if source.startswith("env:"):
        text = os.environ.get(source.removeprefix("env:"))
        if not text:
            raise ConfigurationError(f"{what}: environment variable {source.removeprefix('env:')} is not set")
        return _remembered(text.strip())
    try:
        text = Path(source).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what}: {source} cannot be read: {type(error).__name__}") from error
    if not text:
        raise ConfigurationError(f"{what}: {source} is empty")
    return _remembered(text)


def _remembered(text: str) -> str:
    # A file may hold several, one a line, each behind a name.
    for line in (text, *text.splitlines()):
        READ.update(part for part in (line.strip(), line.strip().partition(":")[2]) if len(part) >= SHORTEST)
    return text
