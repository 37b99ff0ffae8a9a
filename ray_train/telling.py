"""How far training is, told by rank 0 through the storage of the checkpoints, and shown by the driver.

A file needs no actor of its own (seconds to start), works for local and remote storage alike, and is
there when a new driver resumes. It is a courtesy: nothing depends on it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from triton_models.files import write_atomically

logger = logging.getLogger(__name__)

FILE = "progress.json"
POLL_S = 0.3

LINE_INTERVAL_S = 10.0
"""Between two lines about a long epoch."""

Record = Mapping[str, float]


def tell(storage: str, history: Sequence[Record], *, step: int = 0, steps: int = 0) -> None:
    """Write the epochs so far, and how far the present one is."""
    text = json.dumps({"epochs": list(history), "step": step, "steps": steps})
    try:
        if "://" not in storage:
            write_atomically(Path(storage) / FILE, text)
            return
        filesystem, path = pafs.FileSystem.from_uri(f"{storage.rstrip('/')}/{FILE}")
        with filesystem.open_output_stream(path) as stream:
            stream.write(text.encode())
    except (OSError, pa.ArrowException) as error:
        logger.warning("progress cannot be written to %s: %s", storage, error)


def _read(storage: str) -> dict[str, Any]:
    """What was told last; nothing yet is an empty history."""
    try:
        if "://" not in storage:
            text = (Path(storage) / FILE).read_text(encoding="utf-8")
        else:
            filesystem, path = pafs.FileSystem.from_uri(f"{storage.rstrip('/')}/{FILE}")
            with filesystem.open_input_stream(path) as stream:
                text = stream.read().decode()
        return dict(json.loads(text))
    except (OSError, ValueError, pa.ArrowException):
        return {"epochs": [], "step": 0, "steps": 0}


def told(storage: str) -> list[Record]:
    """The epochs so far; empty if there is nothing to read yet."""
    return list(_read(storage)["epochs"])


@contextmanager
def following_epochs(storage: str, epochs: int, say: Callable[[str], None]) -> Iterator[None]:
    """Say one line per finished epoch while the block runs."""
    over = threading.Event()
    shown = len(told(storage))
    if shown:
        say(f"resuming   after epoch {shown} of {epochs}")

    spoken = time.monotonic()

    def follow() -> None:
        nonlocal shown, spoken
        now = _read(storage)
        history = now["epochs"]
        # After a lost worker the history is shorter for a while: epochs since the checkpoint come again.
        for i in range(shown, len(history)):
            say(epoch_line(history, i, epochs))
            spoken = time.monotonic()
        if now["step"] and time.monotonic() - spoken > LINE_INTERVAL_S:
            say(f"epoch {len(history) + 1:>3}/{epochs}  step {now['step']:,} of {now['steps']:,}")
            spoken = time.monotonic()
        shown = max(shown, len(history))

    def poll() -> None:
        while not over.wait(POLL_S):
            follow()

    thread = threading.Thread(target=poll, name="fit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        follow()


def epoch_line(history: Sequence[Record], index: int, epochs: int) -> str:
    """One epoch for a person."""
    record = history[index]
    best = all(record["selection_loss"] < other["selection_loss"] for other in history[:index])
    speed = record["rows"] / max(record["seconds"], 1e-9)
    return (
        f"epoch {record['epoch']:>3g}/{epochs}  loss: training {record['train_loss']:.5f}, selection "
        f"{record['selection_loss']:.5f}{' (best)' if best else ''}, hold-out sample "
        f"{record['holdout_loss']:.5f}  {speed:,.0f} rows/s"
    )
