"""Steps on disk that leave a model repository whole after a crash between any two of them.

Everything new is filled in a staging folder beside the repository, fsynced, and renamed into place;
everything old is renamed out of it and then removed. One process at a time holds the lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_models.errors import RepositoryError
from triton_models.files import sync_directory

PUBLISH_LOCK = ".lock"
ROLLOUT_LOCK = ".rollout.lock"


@contextmanager
def locked(root: Path, name: str = PUBLISH_LOCK, *, wait: bool = True) -> Iterator[None]:
    """One process at a time; the lock ends with its process.

    Raises:
        RepositoryError: ``wait`` is off and another process holds it.
    """
    with open(root / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RepositoryError(
                f"{root}: another process works on this repository ({name}); wait for its end"
            ) from error
        yield


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A scratch folder on the repository's file system, removed at the end; hold the lock around it.

    It lies beside the repository, so that Triton never sees it; inside only if that is another file system.
    """
    parent = _staging_parent(root)
    prefix = f".{root.resolve().name}.staging."
    # Publishers hold the lock, so what lies there was left by one that was killed.
    for left in parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _staging_parent(root: Path) -> Path:
    parent = root.resolve().parent
    same = parent.stat().st_dev == root.stat().st_dev and os.access(parent, os.W_OK)
    return parent if same else root


def sync_tree(folder: Path) -> None:
    """Make a folder durable, with everything in it."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_directory(place)
