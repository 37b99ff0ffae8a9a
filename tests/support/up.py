"""``python -m serve up`` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 180.0


def wait_until_ready(process: subprocess.Popen[bytes], ready_file: Path, log: Path) -> dict[str, Any]:
    """What the started process writes when it is ready; its log if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready_file.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return dict(json.loads(ready_file.read_text()))
