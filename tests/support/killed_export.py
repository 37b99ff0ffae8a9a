"""The real export of a run, killed at points spread over its work on the repository.

``python -m tests.support.killed_export RUN ONNX TEMPLATE FOLDER``: torch → ONNX, by far the longest part,
is replaced by the file ONNX; everything else is the real thing. FOLDER/<step> is what each death left.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.support.killing import die_before
from triton_models import export

STRIDE = 11


def main(run: Path, onnx: Path, template: Path, folder: Path) -> None:
    """See the module."""
    export.to_onnx = lambda *_: onnx.read_bytes()  # type: ignore[assignment]
    for step in range(1, 1000, STRIDE):
        root = folder / str(step) / "repository"
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            die_before(step, under=root.parent)
            export.export_run(run, root, keep=2)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise SystemExit("the export never came to its end")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
