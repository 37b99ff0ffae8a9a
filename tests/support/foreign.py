"""A log written by another program: plain pyarrow, other sizes and names, no optional column."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SURFACE = """
name: videos
objectives: [watch, share, follow]
controlled:
  - {head: watch, minimum: 0, maximum: 1, points: 3, production: 0.4}
  - {head: share, minimum: 5, maximum: 20, points: 2, production: 6}
  - {head: follow, minimum: -1, maximum: 1, points: 3, production: 0}
fixed: {}
state:
  user_embedding: 6
  history: {length: 3, embedding: 2, actions: [view]}
  context: {}
metrics: [complaints]
"""


def write_foreign_log(folder: Path, rows: int = 5000) -> None:
    """Nothing of ours is used here; timestamps have no zone and seconds only, ids are integers."""
    rng = np.random.default_rng(7)
    start = datetime(2025, 3, 1)
    for day in range(4):
        part = folder / f"dt=2025-03-0{day + 1}"
        part.mkdir(parents=True)
        n = rows // 4
        lengths = rng.integers(0, 6, n)
        columns = {
            "request_id": pa.array(np.arange(n) + day * n, pa.int64()),
            "timestamp": pa.array(
                [start + timedelta(days=day, seconds=int(s)) for s in sorted(rng.integers(0, 86_400, n))],
                pa.timestamp("s"),
            ),
            "user_id": pa.array([f"user-{i}" for i in rng.integers(0, 99, n)]).dictionary_encode(),
            "user_embedding": pa.array(rng.normal(size=(n, 6)).tolist(), pa.list_(pa.float64())),
            "history_embedding": pa.array(
                [rng.normal(size=(k, 2)).tolist() for k in lengths], pa.large_list(pa.list_(pa.float64()))
            ),
            "history_action": pa.array([["view"] * k for k in lengths], pa.list_(pa.large_string())),
            "history_age_s": pa.array([list(range(k)) for k in lengths], pa.list_(pa.int64())),
            "weight_watch": pa.array(rng.choice([0, 0.5, 1], n), pa.float32()),
            "weight_share": pa.array(rng.choice([5, 20], n), pa.int16()),
            "weight_follow": pa.array(rng.choice([-1.0, 0, 1], n)),
            "propensity": pa.array(np.full(n, 1 / 18)),
            "reward_watch": pa.array(rng.integers(0, 3, n), pa.int8()),
            "reward_share": pa.array(rng.random(n) < 0.2),
            "reward_follow": pa.array(rng.integers(0, 2, n), pa.uint32()),
            "experiment_name": pa.array(["x"] * n),
        }
        pq.write_table(pa.table(columns), part / "000.parquet", compression="zstd", version="1.0")
