"""A decision log under load that is going to be killed.

Run as a script: ``python -m tests.support.killed_log FOLDER NAME RATE_HZ``. Says ``ready``, and then for each
batch of records that the log took: the system-wide monotonic clock, their first number, and how many.
"""

from __future__ import annotations

import os
import sys
import time

from serve.decision_log import DecisionLog
from tests.support.decisions import SURFACE, log_config, record_of

BATCH = 20


def main(folder: str, name: str, rate_hz: float) -> None:
    """Log until killed."""
    # Small files, shipped often: a kill should find every kind of work going on.
    log = DecisionLog(SURFACE, log_config(folder, segment_rows=700, segment_s=0.4, sweep_s=0.2, fsync_s=0.5))
    log.start()
    record = record_of("")
    os.write(1, b"ready\n")
    number, start_s = 0, time.monotonic()
    while True:
        taken = 0
        for i in range(number, number + BATCH):
            stamp = time.time_ns() // 1000
            taken += log.put(record._replace(request_id=f"{name}.{i}", timestamp_us=stamp))
        if taken != BATCH:
            raise SystemExit("the queue is full")
        os.write(1, f"{time.monotonic()} {number} {BATCH}\n".encode())
        number += BATCH
        time.sleep(max(0.0, start_s + number / rate_hz - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
