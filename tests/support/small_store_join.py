"""A join on a Ray whose object store holds a fraction of the input; run as a process of its own.

    python -m tests.support.small_store_join FOLDER ROWS

Makes ROWS explored decisions with wide states, and their events, in FOLDER; joins them; and prints, as JSON,
how large the input was, how much Ray spilled, and the largest memory of a worker.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import ray
from ray._private.internal_api import memory_summary

from ray_train.attribution import Attribution
from ray_train.decisions import open_decisions, open_events
from ray_train.joining import join
from tests.support.logged_decisions import decisions_of, events_of, write_decisions, write_parts
from tests.support.logs import make_log
from tests.support.surfaces import small_surface_data
from triton_models.local_ray import start_local_ray
from triton_models.surface import Surface

STORE_BYTES = 80 << 20
BUCKET_BYTES = 8 << 20


def wide_surface() -> Surface:
    """States of about 8 kB."""
    data = small_surface_data()
    data["state"] |= {
        "user_embedding": 64,
        "history": {"length": 50, "embedding": 64, "actions": ["save", "click"]},
    }
    return Surface.from_dict(data)


class Peak:
    """Largest private memory of any process below this one, sampled."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    info = process.memory_info()
                    if "ray::" in process.name() or "ray::" in " ".join(process.cmdline()):
                        self.bytes = max(self.bytes, info.rss - info.shared)
                except psutil.Error:
                    continue

    def stop(self) -> int:
        """End, and say."""
        self._over.set()
        self._thread.join()
        return self.bytes


def main() -> None:
    """Make, join, measure."""
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    surface = wide_surface()
    for part in range(rows // 2000):
        log = make_log(surface, 2000, seed=part)
        write_decisions(surface, decisions_of(surface, log), folder / "decisions" / f"{part}")
        write_parts(events_of(surface, log), folder / "events" / f"{part}")
    start_local_ray(num_cpus=2, object_store_memory=STORE_BYTES)
    _, decisions = open_decisions(str(folder / "decisions"), surface)
    events = open_events(str(folder / "events"))
    peak = Peak()
    counts = join(
        surface=surface,
        rules=Attribution(as_of=datetime(2026, 3, 1, tzinfo=UTC), window=timedelta(hours=24)),
        decisions=decisions,
        events=events,
        out=str(folder / "logs"),
        bucket_bytes=BUCKET_BYTES,
    )
    spilled = re.search(
        r"Spilled (\d+) MiB", memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    )
    result = {
        "rows": counts.rows,
        "input_mib": (decisions.size_bytes + events.size_bytes) / 2**20,
        "store_mib": STORE_BYTES / 2**20,
        "spilled_mib": int(spilled[1]) if spilled else 0,
        "worker_mib": peak.stop() / 2**20,
    }
    ray.shutdown()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
