"""Records → one Arrow record batch of :mod:`triton_models.decision_format`. Runs in the writer's thread.

Shape legend: n records, D user embedding, E item embedding, N history length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve.decision_record import EXPLORATION, DecisionRecord
from serve.pseudonyms import Rename
from triton_models.surface import HistorySpec, Surface


def to_batch(
    surface: Surface, schema: pa.Schema, records: Sequence[DecisionRecord], rename: Rename | None = None
) -> pa.RecordBatch:
    """Put records into columns.

    Raises:
        pyarrow.ArrowException, UnicodeError, TypeError, ValueError, KeyError: a record that is no decision.
    """
    columns: dict[str, Any] = {
        **_own_columns(records, rename),
        **_answer_columns(surface, [record.answer for record in records]),
        **_state_columns(surface, schema, records),
    }
    arrays = []
    for field in schema:
        values = columns[field.name]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type))
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    for field, array in zip(schema, arrays, strict=True):
        if not field.nullable and array.null_count:
            raise ValueError(f"{field.name} is missing")
    return batch


def _own_columns(records: Sequence[DecisionRecord], rename: Rename | None) -> dict[str, Any]:
    users = [record.user_id for record in records]
    if rename is not None:
        users = [None if user is None else rename(user) for user in users]
    return {
        "request_id": [record.request_id for record in records],
        "timestamp": [record.timestamp_us for record in records],
        "user_id": users,
        "cohort": [record.cohort for record in records],
        "route": [record.route for record in records],
        "frontier_fingerprint": [record.frontier_fingerprint for record in records],
        "run_id": [record.run_id for record in records],
        "log_probability": [record.log_probability for record in records],
        "trace_id": [record.trace_id for record in records],
    }


def _answer_columns(surface: Surface, answers: Sequence[Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        name: [answer[name] for answer in answers]
        for name in ("arm", "policy_version", "source", "reason", "action", "propensity")
    }
    columns["explored"] = [answer["source"] == EXPLORATION for answer in answers]
    columns["surface_fingerprint"] = [answer["surface_fingerprint"] for answer in answers]
    for head in surface.controlled_heads:
        columns[f"weight_{head}"] = [answer["weights"][head] for answer in answers]
    for name in surface.objectives:
        columns[f"value_{name}"] = [(answer["values"] or {}).get(name) for answer in answers]
    columns["scalarization"] = [
        None if answer["scalarization"] is None else list(answer["scalarization"].values())
        for answer in answers
    ]
    for leg in ("ranker", "value_network", "added", "total"):
        columns[f"{leg}_ms"] = [answer["timings_ms"].get(leg) for answer in answers]
    return columns


def _state_columns(surface: Surface, schema: pa.Schema, records: Sequence[DecisionRecord]) -> dict[str, Any]:
    present_n = np.array([record.tensors is not None for record in records], dtype=bool)
    tensors = [record.tensors for record in records if record.tensors is not None]
    users = [each["user_embedding"] for each in tensors]
    columns: dict[str, Any] = {
        "user_embedding": _lists(
            np.where(present_n, surface.state.user_embedding, 0),
            pa.array(np.concatenate(users) if users else np.zeros(0, dtype=np.float32)),
            schema.field("user_embedding").type,
            present_n,
        )
    }
    if surface.state.history is not None:
        columns |= _history_columns(surface.state.history, schema, present_n, tensors)
    for j, name in enumerate(surface.state.context):
        columns[f"context_{name}"] = [record.context[j] if record.context else None for record in records]
    return columns


def _history_columns(
    spec: HistorySpec, schema: pa.Schema, present_n: npt.NDArray[np.bool_], tensors: Sequence[Any]
) -> dict[str, Any]:
    """The entries that are not padding, newest last, as lists of their own lengths."""
    action_nN = np.zeros((len(present_n), spec.length), dtype=np.int64)
    age_nN = np.zeros((len(present_n), spec.length), dtype=np.float32)
    embedding_nNE = np.zeros((len(present_n), spec.length, spec.embedding), dtype=np.float32)
    if tensors:
        action_nN[present_n] = np.stack([each["history_action"] for each in tensors])
        age_nN[present_n] = np.stack([each["history_age_s"] for each in tensors])
        embedding_nNE[present_n] = np.stack([each["history_embedding"] for each in tensors])
    real_nN = action_nN > 0
    codes = pa.array(action_nN[real_nN] - 1)
    item = schema.field("history_embedding").type.value_type
    entries = {
        "history_action": pa.array(spec.actions, pa.string()).take(codes),
        "history_age_s": pa.array(age_nN[real_nN]),
        "history_embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding_nNE[real_nN].ravel()), type=item
        ),
    }
    lengths_n = real_nN.sum(axis=1)
    return {
        name: _lists(lengths_n, values, schema.field(name).type, present_n)
        for name, values in entries.items()
    }


def _lists(
    lengths_n: npt.NDArray[Any], values: pa.Array, kind: pa.DataType, present_n: npt.NDArray[np.bool_]
) -> pa.Array:
    """Lists of these lengths, cut from ``values`` one after the other; null where not ``present_n``."""
    offsets = np.concatenate(([0], np.cumsum(lengths_n))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=pa.array(~present_n))
