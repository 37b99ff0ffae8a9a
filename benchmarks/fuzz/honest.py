"""Honest files of every kind, small, to be spoilt: logs, decisions, events, a frontier, a run, a policy."""

from __future__ import annotations

import io
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_train.logs import log_schema
from triton_models.decision_format import decision_schema, event_schema
from triton_models.surface import Surface

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=30)

CODECS = ("none", "snappy", "zstd")


def _state(pick: random.Random, surface: Surface) -> dict[str, Any]:
    state = surface.state
    row: dict[str, Any] = {"user_embedding": [pick.gauss(0, 1) for _ in range(state.user_embedding)]}
    if state.history is not None:
        size = pick.randint(0, state.history.length + 1)
        width = state.history.embedding
        row["history_embedding"] = [[pick.gauss(0, 1) for _ in range(width)] for _ in range(size)]
        row["history_action"] = [pick.choice(state.history.actions) for _ in range(size)]
        row["history_age_s"] = [pick.uniform(0, 9e5) for _ in range(size)]
    return row | {f"context_{name}": pick.choice(words) for name, words in state.context.items()}


def _who(pick: random.Random, surface: Surface, number: int) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "timestamp": START + timedelta(minutes=7 * number),
        "user_id": f"u{pick.randrange(9)}",
        "cohort": pick.choice([*surface.cohorts, None]),
    }


def exploration_log(pick: random.Random, surface: Surface, rows: int = 40) -> pa.Table:
    """Uniform exploration over the grid."""
    made = []
    for number in range(rows):
        action = pick.randrange(surface.num_actions)
        weights = surface.actions[action].tolist()
        made.append(
            {
                **_who(pick, surface, number),
                **_state(pick, surface),
                **{f"weight_{h}": w for h, w in zip(surface.controlled_heads, weights, strict=True)},
                "propensity": 1.0 / surface.num_actions,
                **{f"reward_{name}": pick.randrange(3) for name in surface.objectives},
                **{f"metric_{name}": pick.choice([0.0, 1.0, None]) for name in surface.metrics},
            }
        )
    return pa.Table.from_pylist(made, schema=log_schema(surface))


def decisions(pick: random.Random, surface: Surface, rows: int = 30) -> pa.Table:
    """Two arms and some exploration."""
    made = []
    for number in range(rows):
        source = pick.choice(["value_network", "static", "exploration", "production"])
        action = pick.randrange(surface.num_actions)
        weights = surface.actions[action].tolist()
        size = len(surface.objectives)
        made.append(
            {
                **_who(pick, surface, number),
                **_state(pick, surface),
                "route": "rank",
                "arm": pick.choice(["static", "knee"]),
                "policy_version": pick.randint(1, 2),
                "source": source,
                "reason": "late" if source == "production" else None,
                "explored": source == "exploration",
                "action": action,
                "propensity": 1.0 / surface.num_actions,
                **{f"weight_{h}": w for h, w in zip(surface.controlled_heads, weights, strict=True)},
                "scalarization": [1.0 / size] * size if source == "value_network" else None,
                **{f"value_{name}": pick.random() for name in surface.objectives},
                "surface_fingerprint": surface.fingerprint,
                "log_probability": 1.0,
                "total_ms": pick.uniform(5, 30),
            }
        )
    return pa.Table.from_pylist(made, schema=decision_schema(surface))


def events(pick: random.Random, surface: Surface, rows: int = 30) -> pa.Table:
    """Engagement with these decisions."""
    names = [*surface.objectives, *surface.metrics, "other"]
    made = [
        {
            "request_id": f"r{pick.randrange(30)}",
            "timestamp": START + timedelta(minutes=7 * number + 1),
            "event": pick.choice(names),
            "value": pick.choice([None, 1.0]),
            "event_id": pick.choice([None, f"e{number}"]),
        }
        for number in range(rows)
    ]
    return pa.Table.from_pylist(made, schema=event_schema())


def parquet(pick: random.Random, table: pa.Table) -> bytes:
    """A table as a file, in one of the many ways that writers have."""
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression=pick.choice(CODECS),
        use_dictionary=pick.random() < 0.5,
        write_statistics=pick.random() < 0.7,
        row_group_size=pick.choice([1000, max(1, table.num_rows // 2)]),
        data_page_version=pick.choice(["1.0", "2.0"]),
        store_schema=pick.random() < 0.7,
    )
    return out.getvalue()


def stream(table: pa.Table) -> bytes:
    """A table as a spool file: an Arrow stream, a batch for each few rows."""
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def frontier(surface: Surface) -> dict[str, Any]:
    """Two operating points, as ``frontier.json`` holds them."""
    weights = dict(zip(surface.controlled_heads, surface.production.tolist(), strict=True))
    size = len(surface.objectives)

    def point(first: float, lift: float) -> dict[str, Any]:
        return {
            "scalarization": [first, *[(1.0 - first) / max(1, size - 1)] * (size - 1)],
            "cohort": None,
            "values": dict.fromkeys(surface.objectives, 0.5 * (1 + lift)),
            "lifts": dict.fromkeys(surface.objectives, lift),
            "intervals": {name: [lift - 0.01, lift + 0.01] for name in surface.objectives},
            "metrics": {m: {"value": 0.5, "lift": 0.0, "interval": [-0.1, 0.1]} for m in surface.metrics},
            "hits": 12,
            "effective_sample_size": 12.0,
            "mean_weights": weights,
            "dominated": lift < 0,
            "extrapolated": False,
        }

    baseline = {
        "cohort": None,
        "rows": 100,
        "values": dict.fromkeys(surface.objectives, 0.5),
        "metrics": dict.fromkeys(surface.metrics, 0.5),
        "hits": 40,
        "effective_sample_size": 38.0,
        "hypervolume": 0.0,
    }
    estimator = {"name": "snips", "formula": "SNIPS", "interval": "bootstrap", "confidence": 0.95}
    return {
        "version": 2,
        "surface": surface.to_dict(),
        "run": {"run_id": "r", "surface_fingerprint": surface.fingerprint, "code_version": "x"},
        "window": {"start": "a", "end": "b", "split": "holdout", "rows": 100, "logs": "logs"},
        "estimator": {**estimator, "resamples": 100, "seed": 0},
        "production": {"valuation": "mixture", "note": "", "weights": weights, "estimates": [baseline]},
        "points": [point(0.75, 0.02), point(0.25, -0.01)],
        "candidates": {"knee": {"point": 0, "reason": "far from the chord"}},
        "warnings": [],
    }


def manifest(surface: Surface) -> dict[str, Any]:
    """``run.json``."""
    window = [START.isoformat(), NOW.isoformat()]
    return {
        "version": 1,
        "run_id": "r",
        "created_at": START.isoformat(),
        "surface": surface.to_dict(),
        "surface_fingerprint": surface.fingerprint,
        "network": {},
        "training": {"seed": 0},
        "data": {
            "logs": "logs",
            "rows_train": 10,
            "rows_holdout": 5,
            "train_window": window,
            "holdout_window": window,
        },
        "metrics": {"loss": 0.25},
        "code_version": "x",
        "verdict": None,
    }


def policy() -> dict[str, Any]:
    """A policy for ``policy apply --policy FILE``."""
    return {
        "arms": [
            {"name": "static", "choice": "static"},
            {"name": "knee", "choice": [0.75, 0.25], "cohorts": {"core": "static"}},
        ],
        "ramp": {"arm": "knee", "steps": [{"share": 0.01, "hold_s": 3600.0}, {"share": 0.25}]},
        "exploration": {"share": 0.01, "cap": 0.0125, "burst": 10},
        "excluded": {"users": ["u1"], "placements": ["checkout"]},
        "guardrails": {"metrics": {"successful_session": {"minimum_lift": -0.01}}},
    }
