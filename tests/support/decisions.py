"""Decisions for tests of the decision log, over the small surface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from serve.decision_log_config import DecisionLogConfig
from serve.decision_record import DecisionRecord, make_record
from serve.requests import WeightsRequest
from tests.support.surfaces import small_surface
from triton_models.encoding import encode_state

SURFACE = small_surface()

STATE: dict[str, Any] = {
    "user_embedding": [0.1, -0.2, 0.3, 0.4],
    "history": {"embedding": [[0.1, 0.2, 0.3]], "action": ["save"], "age_s": [60.0]},
    "context": {"device": "phone", "daypart": "dusk"},
}


def answer_of(**changes: Any) -> dict[str, Any]:
    """An answer of the sidecar, as far as the log reads it."""
    return {
        "items": [1, 2],
        "weights": {"repin": 10.0, "p2p": 30.0},
        "action": 2,
        "values": {"repin": 0.5, "p2p": 0.25},
        "source": "value_network",
        "reason": None,
        "arm": "default",
        "policy_version": 3,
        "propensity": None,
        "scalarization": {"repin": 0.8, "p2p": 0.2},
        "surface_fingerprint": SURFACE.fingerprint,
        "timings_ms": {"ranker": 5.0, "added": 0.1, "value_network": 3.0, "total": 6.0},
        **changes,
    }


def request_of(request_id: str, **changes: Any) -> WeightsRequest:
    """A parsed request."""
    settings = {"user_id": "u1", "cohort": None, "placement": None, "state": STATE, "control": True}
    return WeightsRequest(request_id=request_id, **{**settings, **changes})


def record_of(request_id: str, *, timestamp_us: int | None = None, **changes: Any) -> DecisionRecord:
    """A record of a request whose answer has ``changes``."""
    record = make_record(
        SURFACE,
        request_of(request_id),
        answer_of(**changes),
        route="rank",
        tensors=encode_state(SURFACE, STATE),
        probability=0.5,
    )
    return record if timestamp_us is None else record._replace(timestamp_us=timestamp_us)


def log_config(folder: Path | str, **changes: Any) -> DecisionLogConfig:
    """Settings that keep nothing back: every request, no limit on the free space, no pauses."""
    settings = {"sample_rate": 1.0, "min_free_bytes": 0, "fsync_s": None, "retry_s": 0.01, "sweep_s": 0.01}
    return DecisionLogConfig.model_validate({"folder": str(folder), **settings, **changes})


def read_log(folder: Path) -> pa.Table:
    """All rows of all segments; a torn one is an error."""
    files = sorted(str(path) for path in folder.rglob("*.parquet") if "_spool" not in path.parts)
    return ds.dataset(files, format="parquet").to_table() if files else pa.table({"request_id": []})


def logged_ids(folder: Path) -> list[str]:
    """Request ids of all segments, sorted, repeated ones repeatedly."""
    return sorted(read_log(folder)["request_id"].to_pylist())
