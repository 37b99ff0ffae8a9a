"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file beside its target, fsync it, and rename it into place."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def write_json(path: str | Path, data: object) -> None:
    """Write strict JSON (no NaN) atomically, indented for people."""
    write_atomically(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def or_null(value: float) -> float | None:
    """A number as strict JSON has it: no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def sync_directory(path: str | Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_directory(target: str | Path) -> Iterator[Path]:
    """Fill a new directory beside ``target``; it appears under its name only when the block succeeds.

    The files are fsynced before the rename. On any error the staging directory is removed and nothing
    is visible.

    Raises:
        FileExistsError: ``target`` exists already.
    """
    final = Path(target)
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        staging.chmod(0o755)
        yield staging
        for folder, _, names in os.walk(staging):
            for name in names:
                with open(Path(folder) / name, "rb") as file:
                    os.fsync(file.fileno())
            sync_directory(folder)
        staging.rename(final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_directory(final.parent)
