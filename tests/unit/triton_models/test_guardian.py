"""Whose shared-memory regions may be removed: those of owners that are gone, of our own process ids, only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triton_models import guardian


def test_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "SHARED_MEMORY", tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = guardian.pid_namespace()
    kept = [
        f"{guardian.region_prefix(os.getpid(), 'ab12')}triton_python_backend_shm_region_1",
        f"puts_{gone.pid}_{here}f_ab12_other_namespace",
        f"puts_{gone.pid}_short",
        f"somebody_{gone.pid}_{here}_ab12_else",
        f"puts_x_{here}_ab12_1",
    ]
    orphan = f"{guardian.region_prefix(gone.pid, 'ab12')}triton_python_backend_shm_region_1"
    for name in (*kept, orphan):
        (tmp_path / name).touch()
    assert guardian.remove_orphans() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert guardian.remove_orphans() == 0
