"""Dying by ``kill -9`` before each step that a piece of work asks of the operating system.

Run as a script: ``python -m tests.support.killing FOLDER WORK``. For step 1, 2, … a fresh copy of the
prepared repository is worked on by a forked child that kills itself just before that step; what is left
is read back and printed, a JSON line per step, until the work gets to its end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton_models.errors import RepositoryError
from triton_models.repository import publish_model, require_model, select_version
from triton_models.selection import selection_config
from triton_models.tensors import TensorSpec

X = (TensorSpec("x", "FP32", (2,)),)
Y = (TensorSpec("y", "FP32", (2,)),)


def publish(root: Path, number: int, **options: Any) -> int:
    """A version whose content, parameters and further file all say ``number``."""
    return publish_model(
        root,
        name="m",
        onnx_bytes=content(number),
        inputs=X,
        outputs=Y,
        # One more row each time: every version has a warm-up file of its own.
        warmup_batch_sizes=(1, number),
        input_rules={"x": "simplex"},
        parameters={"run_id": str(number)},
        files={"cases.npz": str(number).encode()},
        **options,
    )


def content(number: int) -> bytes:
    """The model of a version."""
    return (str(number) * 50_000).encode()


def read_back(root: Path) -> dict[str, Any]:
    """What the repository says, and whether everything in it is whole."""
    try:
        model = require_model(root, "m")
    except RepositoryError as error:
        return {"problem": str(error)}
    problems = []
    for version in model.versions:
        folder = root / "m" / str(version)
        try:
            parameters = selection_config(root, "m", version).parameters
        except RepositoryError as error:
            problems.append(str(error))
            continue
        number = int(parameters["run_id"].string_value)
        if number != version or (folder / "model.onnx").read_bytes() != content(number):
            problems.append(f"{folder}: not the model of version {version}")
        if (folder / "cases.npz").read_bytes() != str(number).encode():
            problems.append(f"{folder}: not the cases of version {version}")
    if model.parameters["run_id"] != str(model.served):
        problems.append(f"config.pbtxt serves {model.served} and describes {model.parameters['run_id']}")
    return {"served": model.served, "versions": list(model.versions), "problem": "; ".join(problems)}


def die_before(step: int, under: Path | None = None) -> None:
    """SIGKILL this process before the ``step``-th thing that it asks of the operating system.

    Args:
        under: Count only what concerns paths in there (and every fsync).
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.", "tempfile.")):
            if under is not None and event != "os.fsync" and str(under) not in str(arguments):
                return
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def audited(descriptor: int) -> None:
        sys.audit("os.fsync", descriptor)
        fsync(descriptor)

    os.fsync = audited  # type: ignore[assignment]
    sys.addaudithook(hook)


WORK: dict[str, Callable[[Path], object]] = {
    "first": lambda root: publish(root, 1),
    "publish": lambda root: publish(root, 4, keep=2),
    "select": lambda root: select_version(root, "m", 2),
}


def main(folder: Path, work: str) -> None:
    """See the module."""
    template, root = folder / "template", folder / "work" / "r"
    publish(folder / "imports", 1)  # once here, and not once in every child
    template.mkdir(parents=True)
    if work != "first":
        for number in (1, 2, 3):
            publish(template, number)
    for step in range(1, 1000):
        shutil.rmtree(root.parent, ignore_errors=True)
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            die_before(step)
            WORK[work](root)
            os._exit(0)
        killed = os.waitpid(child, 0)[1] != 0
        state = read_back(root) if (root / "m").exists() else {"served": None, "versions": [], "problem": ""}
        if step % 4 == 0:  # whatever was left lying does not stop the next one, which clears it away
            state["next"] = publish(root, max(state.get("versions") or [0]) + 1)
            state["beside"] = [path.name for path in root.parent.iterdir()]
            names = (path.name for path in (root / "m").iterdir())
            state["in_model"] = sorted(name for name in names if not name.isdecimal())
        sys.stdout.write(json.dumps(state | {"killed": killed}) + "\n")
        if not killed:
            return
    raise SystemExit("the work never came to its end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
